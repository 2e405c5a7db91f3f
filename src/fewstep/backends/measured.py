"""How fast each back end was here, on a model of this shape: measured once on request, then remembered.

Remembered by processor, cores, versions and the model's configs; anything else in the file is left as it is.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from fewstep.backends.cache import cache_folder
from fewstep.backends.onnx_session import thread_count
from fewstep.checkpoints.description import Description
from fewstep.device import cpu_name

PACKAGES = ("fewstep", "torch", "onnxruntime", "openvino")


@dataclass(frozen=True)
class Measured:
    """Milliseconds for the same picture by each back end that could paint it, and when."""

    ms: Mapping[str, float]
    date: str

    @property
    def best(self) -> str:
        """The fastest."""
        return min(self.ms, key=lambda name: self.ms[name])

    @property
    def why(self) -> str:
        """The fastest and by how much, in words.

        >>> Measured({"onnx": 140.0, "eager": 300.0, "openvino": 100.0}, "2026-11-21").why
        'openvino: 1.4 times as fast as onnx here, measured 2026-11-21'
        """
        first, *others = sorted(self.ms, key=lambda name: self.ms[name])
        if not others:
            return f"{first}: the only one that runs this model here, measured {self.date}"
        ratio = self.ms[others[0]] / self.ms[first]
        return f"{first}: {ratio:.2g} times as fast as {others[0]} here, measured {self.date}"


def recall(found: Description, use: str = "") -> Measured | None:
    """What was measured for a model of this shape on this machine, for a certain use; None where nothing was."""
    entry = _stored().get(_key(found, use)) if _path().is_file() else None
    try:
        ms = {str(name): float(value) for name, value in entry["ms"].items()} if entry else {}
        return Measured(ms, str(entry["date"])) if entry and ms else None
    except (AttributeError, KeyError, TypeError, ValueError):
        return None


def remember(found: Description, ms: Mapping[str, float], use: str = "") -> Measured:
    """Keep what was measured now. Where the cache cannot be written it is not kept, and nothing else happens."""
    measured = Measured(dict(ms), date.today().isoformat())
    stored = _stored() | {_key(found, use): {"ms": measured.ms, "date": measured.date, "model": found.name}}
    try:
        _path().parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=_path().parent, prefix=".backends-")
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            json.dump(stored, file, indent=1)
        Path(name).replace(_path())
    except OSError:
        pass
    return measured


def _path() -> Path:
    return cache_folder() / "backends.json"


def _stored() -> dict[str, Any]:
    try:
        found = json.loads(_path().read_text(encoding="utf-8"))
        return found if isinstance(found, dict) else {}
    except (OSError, ValueError):
        return {}


def _key(found: Description, use: str) -> str:
    """Of the machine, the versions, the networks' configs (not the weights, which cost the same time) and the use."""
    configs = {part: config for part, config in found.configs.items() if part not in ("model_index", "scheduler")}
    facts = [chip(), thread_count(), [_version(name) for name in PACKAGES], configs, *([use] if use else [])]
    return hashlib.sha256(json.dumps(facts, sort_keys=True, default=str).encode()).hexdigest()[:24]


def chip() -> str:
    """The processor's name, with what it can multiply where Linux says so."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8", errors="replace").splitlines() if info.is_file() else []
    flags = next((line.partition(":")[2].split() for line in lines if line.startswith("flags")), [])
    return " ".join([cpu_name(), *sorted({flag for flag in flags if flag.startswith(("avx", "amx"))})])


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return ""
