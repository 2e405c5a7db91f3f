"""What planning needs to know of a model, without its weights: for a server whose pictures are painted elsewhere."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from fewstep.checkpoints.complete import describe_model
from fewstep.checkpoints.description import Sampling
from fewstep.checkpoints.search import model_hash
from fewstep.models.family import Family
from fewstep.sampling.schedule import Schedule


@dataclass(eq=False)
class Outline:
    """As `load.Model`, of which nothing but descriptions was read."""

    name: str
    path: Path
    family: Family
    schedule: Schedule
    sampling: Sampling
    notes: tuple[str, ...]
    tiny: str = ""
    device: str = "cpu"
    dtype: str = "float32"
    vae_path: None = None

    @cached_property
    def content_hash(self) -> str:
        """As the model's own."""
        return model_hash(self.path)


def open_outline(path: str | Path | None = None, **parts: Any) -> Outline:
    """Of what `load.load_model` would load; `parts` are its base, vae and prediction. Raises what that raises."""
    found = describe_model(path, **parts)
    notes = (*found.notes, found.why)
    return Outline(found.name, found.path, found.family, found.schedule, found.sampling, notes, found.tiny)
