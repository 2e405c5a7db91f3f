"""Looks: how far the student is from its teacher, measured from the same noise on a fixed set, and a picture to see it.

The distance is the root mean square over a latent, averaged over the set, to the teacher's many-step guided DDIM
solution. Beside the student stand two rows without it: the guided teacher under the student's sampler, and the plain
one (w = 0). A sampler that draws fresh noise on the way leaves the teacher's solution by that noise alone, however good
the student; in its place distances are measured by DDIM jumps over the same timesteps.

Shapes: N items of the fixed set, C channels, H, W latent height and width.
"""

from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from PIL import Image

from fewstep.data.seeds import generator_at, noise_at
from fewstep.distill.run import Run
from fewstep.distill.students import networks
from fewstep.distill.terms import Network, guided
from fewstep.models import vae
from fewstep.models.text import Text
from fewstep.sampling.sampler import sample, sampler_named
from fewstep.sampling.schedule import to_z0
from fewstep.sampling.timesteps import timesteps

GRID_ROWS = 8


def look(run: Run) -> dict[str, Any]:
    """Measure the student and write samples-<step>.png; returns {"step", "distance": {who: {steps: rms}}}."""
    recipe = run.recipe
    found = {steps: solve(run, "student", steps) for steps in recipe.look_steps}
    drawn = [_sample(run, "student", steps, sampler=recipe.sampler, table=recipe.table) for steps in recipe.look_steps]
    picture_grid(run, [*drawn, teacher_solution(run)]).save(run.folder / f"samples-{run.step:06d}.png")
    return {"step": run.step, "distance": {"student": _distances(run, found)} | teacher_distances(run)}


def distance(run: Run, who: str, steps: int) -> float:
    """RMS distance of `who` ("student", "guided", "plain") at `steps` to the teacher's solution."""
    return rms(solve(run, who, steps) - teacher_solution(run))


def rms(delta_NCHW: torch.Tensor) -> float:
    """Root mean square of each item, averaged over the items."""
    return float(delta_NCHW.square().flatten(1).mean(1).sqrt().mean())


def teacher_solution(run: Run) -> torch.Tensor:
    """The teacher's guided many-step DDIM solution from the set's noise, z_NCHW; computed once in a run."""
    if "solution" not in run.kept:
        run.kept["solution"] = _sample(run, "guided", run.recipe.look_teacher_steps, sampler="ddim", table="trailing")
    return run.kept["solution"]


def teacher_distances(run: Run) -> dict[str, dict[str, float]]:
    """Distances of the guided and the plain teacher under the student's sampler; computed once in a run."""
    if "teacher" not in run.kept:
        found = {who: {k: solve(run, who, k) for k in run.recipe.look_steps} for who in ("guided", "plain")}
        run.kept["teacher"] = {who: _distances(run, latents) for who, latents in found.items()}
    return run.kept["teacher"]


def solve(run: Run, who: str, steps: int) -> torch.Tensor:
    """Sample the fixed set over the recipe's timesteps, by its sampler or, where that is noisy, by DDIM; z_NCHW."""
    sampler = "ddim" if sampler_named(run.recipe.sampler).noisy else run.recipe.sampler
    return _sample(run, who, steps, sampler=sampler, table=run.recipe.table)


def picture_grid(run: Run, columns: Iterable[torch.Tensor]) -> Image.Image:
    """Decode the first items of each column and lay them out, one row an item."""
    parameter = next(run.model.vae.parameters())
    stacked = [_decode(run, z_NCHW[:GRID_ROWS].to(parameter.device, parameter.dtype)) for z_NCHW in columns]
    return Image.fromarray(np.concatenate([np.concatenate(list(column), 0) for column in stacked], 1))


@torch.no_grad()
def _decode(run: Run, z_NCHW: torch.Tensor) -> np.ndarray:
    image_NCHW = vae.decode(run.model.vae, z_NCHW).float().cpu()
    return ((image_NCHW + 1) * 127.5).round().clamp(0, 255).byte().permute(0, 2, 3, 1).numpy()


def _distances(run: Run, found: dict[int, torch.Tensor]) -> dict[str, float]:
    return {str(steps): rms(z_NCHW - teacher_solution(run)) for steps, z_NCHW in found.items()}


@torch.no_grad()
def _sample(run: Run, who: str, steps: int, *, sampler: str, table: str) -> torch.Tensor:
    recipe, schedule = run.recipe, run.model.schedule
    shape = (recipe.look_count, *run.cache.shape)
    grid = timesteps(table, steps, count=schedule.count, origin_steps=recipe.origin_steps)
    network = _networks(run)[who]
    z_NCHW = noise_at(shape, recipe.seed, "look").to(run.device)
    for step in sample(
        lambda z, t_B: to_z0(schedule, z, network(z, _batch_of(t_B, z)), t_B),
        z_NCHW,
        grid,
        sampler=sampler_named(sampler),
        schedule=schedule,
        noise=lambda k: noise_at(shape, recipe.seed, "look", k).to(run.device),
    ):
        z_NCHW = step.z
    return z_NCHW


def _networks(run: Run) -> dict[str, Network]:
    w_N = torch.full((run.recipe.look_count,), run.recipe.w, device=run.device)
    text, empty = _look_text(run), run.cache.empty.to(run.device)
    found = networks(run.student, text, empty, w_B=w_N)
    return {
        "student": found.target,
        "guided": guided(found.teacher, 1 + run.recipe.w),
        "plain": lambda z, t_B: run.student.teacher(z, t_B, text),
    }


def _look_text(run: Run) -> Text:
    order = torch.randperm(len(run.cache.captions), generator=generator_at(run.recipe.seed, "look"))
    rows = [int(order[place % len(order)]) for place in range(run.recipe.look_count)]
    return run.cache.text(rows).to(run.device)


def _batch_of(t: Any, z_NCHW: torch.Tensor) -> torch.Tensor:
    return torch.as_tensor(t, device=z_NCHW.device).expand(len(z_NCHW))
