"""Looks: how far the student is from its teacher, measured from the same noise on a fixed set, and a picture to see it.
Where the recipe names a judge, also how well that judge reads the pictures.

The distance is the root mean square over a latent, averaged over the set, to the teacher's many-step guided DDIM
solution. Beside the student stand two rows without it: the guided teacher under the student's sampler, and the plain
one (w = 0). A sampler that draws fresh noise on the way leaves the teacher's solution by that noise alone, however good
the student; in its place distances are measured by DDIM jumps over the same timesteps.

Shapes: N items of the fixed set, C channels, H, W latent height and width.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from PIL import Image

from fewstep.data.seeds import generator_at, noise_at
from fewstep.distill.run import Run
from fewstep.distill.scores import scores_of
from fewstep.distill.students import networks
from fewstep.distill.terms import Network, guided
from fewstep.distill.watch import sample_path
from fewstep.grid import shortened, table
from fewstep.image import save_image
from fewstep.models import vae
from fewstep.models.text import Text
from fewstep.sampling.sampler import sample, sampler_named
from fewstep.sampling.schedule import to_z0
from fewstep.sampling.timesteps import timesteps

GRID_ROWS = 8
DECODED_AT_ONCE = 8
TEACHER = "teacher"


def look(run: Run) -> dict[str, Any]:
    """Measure the student and write samples-<step>.png.

    Returns {"step", "distance": {who: {steps: rms}}}, and where the recipe names a judge "scores": {score: {who:
    {steps: value}}}, for the student and for the teacher's solution.
    """
    recipe = run.recipe
    found = {steps: solve(run, "student", steps) for steps in recipe.look_steps}
    drawn = {
        steps: decoded(run, _sample(run, "student", steps, sampler=recipe.sampler, table=recipe.table))
        for steps in recipe.look_steps
    }
    save_image(picture_grid(run, drawn), sample_path(run.folder, run.step))
    row = {"step": run.step, "distance": {"student": _distances(run, found)} | teacher_distances(run)}
    scores = _scores(run, drawn)
    return row | {"scores": scores} if scores else row


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


def picture_grid(run: Run, drawn: Mapping[int, np.ndarray]) -> Image.Image:
    """The first items of the set, one row each: the student's by sampling steps, and the teacher's at the end."""
    columns = [*drawn.values(), teacher_pictures(run)]
    heads = [f"{steps} step{'s' if steps > 1 else ''}" for steps in drawn] + [TEACHER]
    width = 2 * run.size[1]
    return table(
        [[Image.fromarray(column[row]) for column in columns] for row in range(min(GRID_ROWS, len(columns[0])))],
        row_labels=[shortened(caption, width) for caption in look_captions(run)[:GRID_ROWS]],
        column_labels=heads,
    )


def teacher_pictures(run: Run) -> np.ndarray:
    """The teacher's solution as pictures (N, H, W, 3) uint8; decoded once in a run."""
    if "pictures" not in run.kept:
        run.kept["pictures"] = decoded(run, teacher_solution(run))
    return run.kept["pictures"]


@torch.no_grad()
def decoded(run: Run, z_NCHW: torch.Tensor) -> np.ndarray:
    """Pictures (N, H, W, 3) uint8: the whole set where a score reads it, else the rows of the grid."""
    parameter = next(run.model.vae.parameters())
    count = len(z_NCHW) if _judges(run) else GRID_ROWS
    parts = [
        vae.decode(run.model.vae, part_NCHW.to(parameter.device, parameter.dtype)).float().cpu()
        for part_NCHW in z_NCHW[:count].split(DECODED_AT_ONCE)
    ]
    return ((torch.cat(parts) + 1) * 127.5).round().clamp(0, 255).byte().permute(0, 2, 3, 1).numpy()


def look_captions(run: Run) -> list[str]:
    """The captions of the fixed set."""
    return [run.cache.captions[row] for row in _look_rows(run)]


def _judges(run: Run) -> dict[str, Any]:
    if "judges" not in run.kept:
        run.kept["judges"] = scores_of(run.recipe)
    return run.kept["judges"]


def _scores(run: Run, drawn: Mapping[int, np.ndarray]) -> dict[str, dict[str, dict[str, float]]]:
    """Each score of the student by steps and of the teacher's solution; scores that can say nothing are left out."""
    captions, teacher_steps = look_captions(run), run.recipe.look_teacher_steps
    found = {}
    for name, score in _judges(run).items():
        teacher = score(teacher_pictures(run), captions)
        if teacher is not None:
            student = {str(steps): score(pictures, captions) for steps, pictures in drawn.items()}
            found[name] = {"student": student, TEACHER: {str(teacher_steps): teacher}}
    return found


def _distances(run: Run, found: dict[int, torch.Tensor]) -> dict[str, float]:
    return {str(steps): rms(z_NCHW - teacher_solution(run)) for steps, z_NCHW in found.items()}


@torch.no_grad()
def _sample(run: Run, who: str, steps: int, *, sampler: str, table: str) -> torch.Tensor:
    recipe, schedule = run.recipe, run.model.schedule
    shape = (recipe.look_count, *run.cache.shape)
    grid = timesteps(table, steps, schedule=schedule, origin_steps=recipe.origin_steps)
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


def _look_rows(run: Run) -> list[int]:
    order = torch.randperm(len(run.cache.captions), generator=generator_at(run.recipe.seed, "look"))
    return [int(order[place % len(order)]) for place in range(run.recipe.look_count)]


def _look_text(run: Run) -> Text:
    return run.cache.text(_look_rows(run)).to(run.device)


def _batch_of(t: Any, z_NCHW: torch.Tensor) -> torch.Tensor:
    return torch.as_tensor(t, device=z_NCHW.device).expand(len(z_NCHW))
