"""What a run was made with, beside its recipe: command, code, machine, versions, data. Written once into facts.json."""

import os
import platform
import shlex
import subprocess
import sys
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from fewstep import __version__
from fewstep.checkpoints.files import write_json
from fewstep.device import cpu_name
from fewstep.distill.history import FACTS
from fewstep.distill.run import Run

LIBRARIES = ("torch", "diffusers", "transformers", "peft", "safetensors", "numpy")


def write_facts(run: Run) -> None:
    """Write facts.json into the run's folder, of this process; a resumed run tells of its last one."""
    write_json(
        run.folder / FACTS,
        {
            "command": command(),
            "began": datetime.now(UTC).isoformat(timespec="seconds"),
            "from_step": run.step,
            "git": git_state(),
            "machine": machine(run.device),
            "versions": versions(),
            "model": {"name": run.model.name, "family": run.model.family.label, "hash": run.model.content_hash},
            "data": {"folder": str(run.cache.folder), "items": run.cache.count, "captions": len(run.cache.captions)},
            "size_px": list(run.size),
            "predicted": run.kept.get("predicted"),
            "timesteps": run.model.schedule.count,
            "trained": sum(value.numel() for value in run.student.parameters.values()),
        },
    )


def command() -> str:
    """The command line of this process, to copy into a shell."""
    name = Path(sys.argv[0]).name
    words = ["fewstep"] if name in ("__main__.py", "fewstep") else ["python", sys.argv[0]]
    return shlex.join([*words, *sys.argv[1:]])


def git_state(folder: Path | None = None) -> dict[str, Any] | None:
    """{"commit", "dirty"} of the repository around `folder` (the current one); None outside of any."""
    try:
        commit, changes = (
            subprocess.run(
                ["git", *words], cwd=folder, capture_output=True, text=True, check=True, timeout=10
            ).stdout.strip()
            for words in (("rev-parse", "HEAD"), ("status", "--porcelain", "--untracked-files=no"))
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return {"commit": commit, "dirty": bool(changes)}


def machine(device: torch.device) -> dict[str, Any]:
    """The device's name, and the computer's."""
    found: dict[str, Any] = {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "cpu": cpu_name(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "system": platform.platform(),
    }
    if device.type == "cuda":
        found["memory_gib"] = round(torch.cuda.get_device_properties(device).total_memory / 2**30, 1)
    return found


def versions() -> dict[str, str]:
    """Of Python, fewstep and what it computes with."""
    found = {"python": platform.python_version(), "fewstep": __version__}
    for name in LIBRARIES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found
