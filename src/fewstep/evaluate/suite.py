"""Draw the same prompts from the same noise in several ways ("cells"), to be compared at equal numbers of evaluations.

Legend: B a batch; C, H, W latents; pictures are uint8 (N, H, W, 3).
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fewstep.backends.eager import EagerDenoiser
from fewstep.checkpoints.load import Model, Sampling
from fewstep.checkpoints.lora import Lora, stack_of
from fewstep.errors import RequestError
from fewstep.evaluate.cases import Case
from fewstep.models.text import Text
from fewstep.models.vae import decode, scale_factor
from fewstep.sampling.sampler import sample, sampler_named
from fewstep.sampling.timesteps import timesteps

Pictures = NDArray[np.uint8]


@dataclass(frozen=True)
class Cell:
    """One way to draw: which weights (with or without the LoRA), sampler, steps and guidance (1 = off)."""

    name: str
    sampler: str
    steps: int
    guidance: float = 1.0
    lora: bool = False
    table: str | None = None
    origin_steps: int = 50
    embedded_guidance: bool = False

    @property
    def evaluations(self) -> int:
        """Runs of the network per picture: guidance by two predictions doubles the steps.

        >>> Cell("a", "ddim", 4, guidance=3.0).evaluations, Cell("b", "lcm", 4).evaluations
        (8, 4)
        """
        return self.steps * (1 if self.guidance == 1 or self.embedded_guidance else 2)

    @property
    def stem(self) -> str:
        """The name as a file name, ending in the number of evaluations.

        >>> Cell("teacher DPM++ 2M guided", "dpmpp_2m", 2, 3.0).stem
        'teacher-dpm-2m-guided-4'
        """
        return re.sub(r"[^a-z0-9]+", "-", f"{self.name} {self.evaluations}".lower()).strip("-")


@dataclass(frozen=True, eq=False)
class Prompts:
    """The cases' prompts and the empty one, encoded once for many cells."""

    text: Text
    empty: Text


def encode_prompts(model: Model, cases: Sequence[Case], *, batch: int = 128) -> Prompts:
    """Encode every case's prompt, in pieces.

    Raises:
        RequestError: there is no case.
    """
    if not cases:
        raise RequestError("There is no prompt to evaluate; give a prompts file or a count of at least 1.")
    prompts = [case.prompt for case in cases]
    parts = [model.text.encode(prompts[at : at + batch]) for at in range(0, len(prompts), batch)]
    return Prompts(Text.cat(parts), model.text.encode_negative([""]))


class Easel:
    """A model with the cases it is to draw, with or without a LoRA; texts are encoded once."""

    def __init__(self, model: Model, cases: Sequence[Case], *, lora: Lora | None = None, weight: float = 1.0) -> None:
        """Nothing is merged before a cell asks for it."""
        self.model, self.cases = model, tuple(cases)
        self._stack, self._merged = stack_of(model), [] if lora is None else [(lora, weight, weight)]
        self._prompts: dict[bool, Prompts] = {}

    def draw(self, cell: Cell, *, batch: int = 64, size_px: int | None = None) -> Iterator[Pictures]:
        """The cases' pictures in this way, batch after batch, uint8 (up to `batch`, size_px, size_px, 3).

        Noise comes from one CPU generator per case, seeded with the case's seed: first the start, then the sampler's
        own; so every cell starts from the same noise, in whatever batches.

        Raises:
            RequestError: the cell asks for the LoRA and there is none.
        """
        if cell.lora and not self._merged:
            raise RequestError(f"'{cell.name}' is to be drawn with a LoRA, but none was given; name one with --lora.")
        self._stack.set(self._merged if cell.lora else [])
        side = (size_px or self.model.family.size_px) // scale_factor(self.model.vae)
        for at in range(0, len(self.cases), batch):
            rows = list(range(at, min(at + batch, len(self.cases))))
            with torch.no_grad():
                z_BCHW = _solve(self.model, cell, self._denoiser(cell, rows), [self.cases[i].seed for i in rows], side)
                yield _pictures(decode(self.model.vae, z_BCHW))

    def _denoiser(self, cell: Cell, rows: list[int]) -> EagerDenoiser:
        with_text = cell.lora and any(bool(lora.text_layers) for lora, _, _ in self._merged)
        if with_text not in self._prompts:
            self._prompts[with_text] = encode_prompts(self.model, self.cases)
        prompts = self._prompts[with_text]
        return EagerDenoiser(self.model, prompts.text.rows(rows), prompts.empty, cell.guidance)


def _solve(model: Model, cell: Cell, denoiser: EagerDenoiser, seeds: Sequence[int], side: int) -> Tensor:
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    sampler = sampler_named(cell.sampler)
    table = timesteps(
        cell.table or sampler.table,
        cell.steps,
        schedule=model.schedule,
        origin_steps=cell.origin_steps,
        discard=sampler.discard,
    )

    def noise(_step: int = 0) -> Tensor:
        return torch.stack([torch.randn((4, side, side), generator=g) for g in generators]).to(model.device)

    z_BCHW = noise()
    for step in sample(denoiser, z_BCHW, table, sampler=sampler, schedule=model.schedule, noise=noise):
        z_BCHW = step.z
    return z_BCHW


def _pictures(image_BCHW: Tensor) -> Pictures:
    return ((image_BCHW.float() + 1) * 127.5).round().clamp(0, 255).byte().permute(0, 2, 3, 1).cpu().numpy()


def own_cell(name: str, steps: int, sampling: Sampling, *, lora: bool = False) -> Cell:
    """The way a checkpoint or a LoRA itself asks to be sampled, at some number of steps."""
    return Cell(
        name,
        sampling.sampler,
        steps,
        sampling.guidance,
        lora,
        sampling.table,
        sampling.origin_steps,
        sampling.embedded_guidance,
    )


def teacher_cell(guidance: float, *, steps: int = 50) -> Cell:
    """What a student is measured against: the guided teacher by DPM++ 2M in many steps."""
    return Cell("teacher DPM++ 2M guided", "dpmpp_2m", steps, guidance)


def equal_cells(
    evaluations: Sequence[int], student: Cell, *, guidance: float, solvers: Sequence[str] = ("ddim", "dpmpp_2m")
) -> tuple[Cell, ...]:
    """At each number of evaluations: the teacher by every solver and by the student's sampler, then the student.

    The teacher is drawn guided in half as many steps (where that is a whole number) and unguided in as many.
    """
    cells: list[Cell] = []
    for solver in dict.fromkeys((*solvers, student.sampler)):
        label = sampler_named(solver).label
        teacher = Cell(f"teacher {label}", solver, 1)
        if solver == student.sampler:
            teacher = replace(teacher, table=student.table, origin_steps=student.origin_steps)
        for count in evaluations:
            if count % 2 == 0:
                cells.append(replace(teacher, name=f"{teacher.name} guided", steps=count // 2, guidance=guidance))
            cells.append(replace(teacher, steps=count))
    return (*cells, *(replace(student, steps=count) for count in evaluations))
