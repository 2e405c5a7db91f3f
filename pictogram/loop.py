"""The resumable loop that the autoencoder, the teacher and the judge are trained with."""

from __future__ import annotations

import json
import math
import os
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

CHECKPOINT_SECONDS = 240


def best_device() -> str:
    """A GPU where there is one."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def bf16_on_gpu(device: torch.device) -> torch.autocast:
    """bfloat16 autocast on a GPU; on a CPU it does not pay at these sizes (docs/log.md)."""
    return torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda")


def cosine(step: int, steps: int, *, warm_up: int) -> float:
    """Learning-rate factor: linear warm-up, then a cosine to 2 %."""
    if step < warm_up:
        return (step + 1) / warm_up
    return 0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * (step - warm_up) / max(1, steps - warm_up)))


def save_atomically(value: Any, path: Path) -> None:
    """torch.save to a neighbour, then rename."""
    partial = path.with_suffix(".partial")
    torch.save(value, partial)
    os.replace(partial, path)


def run(
    name: str,
    step: Callable[[int, torch.Generator], float],
    state: dict[str, Any],
    *,
    steps: int,
    folder: Path,
    seed: int = 0,
    at_checkpoint: Callable[[int], None] | None = None,
    notes: dict[str, Any] | None = None,
) -> None:
    """Call `step(i, generator)` for i < steps, saving `state` (things with state_dict) now and then.

    Each step has a generator of its own made from (seed, i), so a resumed run equals an unbroken one.
    """
    folder.mkdir(parents=True, exist_ok=True)
    checkpoint = folder / f"{name}.checkpoint.pt"
    start = 0
    if checkpoint.exists():
        saved = torch.load(checkpoint, weights_only=True, map_location="cpu")
        start = saved["step"]
        for key, thing in state.items():
            thing.load_state_dict(saved[key])

    def save(done: int) -> None:
        save_atomically({"step": done} | {key: thing.state_dict() for key, thing in state.items()}, checkpoint)
        if at_checkpoint is not None:
            at_checkpoint(done)

    saved_at = time.monotonic()
    for i in with_progress(name, start, steps):
        i.loss = step(i.number, torch.Generator().manual_seed(seed * 1_000_003 + i.number))
        if time.monotonic() - saved_at > CHECKPOINT_SECONDS:
            save(i.number + 1)
            saved_at = time.monotonic()
    if steps > start:  # a run that is further on already keeps its checkpoint as it is
        save(steps)
        record_stage(folder, {"stage": name, "from_step": start, "to_step": steps, "seed": seed, **(notes or {})})


@dataclass
class Turn:
    """One turn of the loop: its number, and the loss that the body fills in."""

    number: int
    loss: float = math.nan


def with_progress(name: str, start: int, steps: int) -> Iterator[Turn]:
    """The turns from `start` to `steps`, with a bar that shows the mean of the last losses, and a line each hundred."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    losses: deque[float] = deque(maxlen=100)
    with Progress(*columns) as progress:
        task = progress.add_task(name, total=steps, completed=start)
        for number in range(start, steps):
            turn = Turn(number)
            yield turn
            losses.append(turn.loss)
            mean = sum(losses) / len(losses)
            progress.update(task, advance=1, description=f"{name} (loss {mean:.4f})")
            if (number + 1) % 100 == 0:
                progress.console.print(f"{name} {number + 1}/{steps} loss {mean:.5f}")


def record_stage(folder: Path, stage: dict[str, Any]) -> None:
    """Add a line to the folder's stages.json: what was trained, in which order; it goes into the model's papers."""
    path = folder / "stages.json"
    stages = json.loads(path.read_text()) if path.exists() else []
    path.write_text(json.dumps([*stages, stage], indent=1) + "\n")
