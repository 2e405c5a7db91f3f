"""The training loop: a generator of step reports. What is learnt is the objective's business, who learns is the
student's.

VAE and text encoder never run here, except to decode the sample grids.
"""

import json
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import torch

from fewstep.data.seeds import generator_at
from fewstep.distill.objectives import Draw, distance_named, grid_pair, objective_named
from fewstep.distill.recipes import learning_rate_at
from fewstep.distill.report import look
from fewstep.distill.run import METRICS, Run, save
from fewstep.distill.students import choose, networks
from fewstep.distill.targets import Ends
from fewstep.errors import QualityError
from fewstep.models.text import Text


@dataclass(frozen=True)
class StepReport:
    """One finished optimiser step. `loss_quarters` is the loss by timestep quarter, cleanest first; None where none
    was drawn.
    """

    step: int
    loss: float
    learning_rate: float
    gradient_norm: float
    samples_per_s: float
    loss_quarters: tuple[float | None, ...]


def train(run: Run) -> Iterator[StepReport]:
    """Train until the recipe's last step. Stop iterating at any time and call `save`: `begin(resume=True)` goes on
    bit for bit.

    Checkpoints, metrics.jsonl and sample grids appear in `run.folder` on the way. Raises QualityError when the loss
    is no longer finite.
    """
    recipe = run.recipe
    if recipe.look_every and run.step == 0:
        _record(run, look(run))
    while run.step < recipe.steps:
        report = take_step(run)
        _record(run, asdict(report))
        if recipe.look_every and run.step % recipe.look_every == 0:
            _record(run, look(run))
        if run.step % recipe.save_every == 0 or run.step == recipe.steps:
            save(run)
        yield report


def take_step(run: Run) -> StepReport:
    """One optimiser step: `accumulate` batches forward and backward, clip, AdamW, moving average."""
    recipe, began = run.recipe, time.perf_counter()
    rate = learning_rate_at(recipe, run.step)
    for group in run.optimiser.param_groups:
        group["lr"] = rate
    run.optimiser.zero_grad(set_to_none=True)
    parts = [_backward(run, run.step * recipe.accumulate + place) for place in range(recipe.accumulate)]
    norm = float(clip_gradients(list(run.student.parameters.values()), recipe.clip))
    t_N, loss_N = (torch.cat(column) for column in zip(*parts, strict=True))
    loss = float(loss_N.mean())
    if not (loss == loss and abs(loss) < float("inf") and norm == norm):
        raise QualityError(
            f"The loss is {loss} at step {run.step + 1}. Lower learning_rate (now {recipe.learning_rate:g}), or "
            f"raise warmup."
        )
    run.optimiser.step()
    run.student.stepped()
    run.step += 1
    quarters = loss_by_quarter(t_N, loss_N, run.model.schedule.count)
    speed = recipe.batch * recipe.accumulate / (time.perf_counter() - began)
    return StepReport(run.step, loss, rate, norm, speed, quarters)


def clip_gradients(parameters: list[torch.nn.Parameter], limit: float) -> torch.Tensor:
    """Scale all gradients so that their joint norm is at most `limit`; returns the norm before. Takes a list: an
    iterator would be empty by now.
    """
    return torch.nn.utils.clip_grad_norm_(parameters, limit)


def draw(run: Run, place: int) -> tuple[Draw, Text]:
    """The items of forward pass `place` (from 0) with their noise, timesteps, w and text: a function of (seed,
    place).
    """
    recipe = run.recipe
    batch = run.cache.batch(recipe.seed, place, size=recipe.batch)
    generator = generator_at(recipe.seed, place, "draw")
    index_B = torch.randint(recipe.origin_steps, (recipe.batch,), generator=generator)
    noise_BCHW = torch.randn(batch.z0_BCHW.shape, generator=generator)
    w_B = recipe.w_min + (recipe.w_max - recipe.w_min) * torch.rand(recipe.batch, generator=generator)
    empty_B = torch.rand(recipe.batch, generator=generator) < recipe.empty_captions
    count = run.model.schedule.count
    t_B, t_next_B = grid_pair(index_B, recipe.origin_steps, count)
    uniform_B2 = torch.rand((recipe.batch, 2), generator=generator)
    s_B = objective_named(recipe.objective).target(recipe)(Ends(t_B, t_next_B, uniform_B2, recipe.origin_steps, count))
    tensors = (value.to(run.device) for value in (batch.z0_BCHW, noise_BCHW, t_B, t_next_B, s_B, w_B))
    return Draw(*tensors), choose(empty_B, run.cache.empty, batch.text).to(run.device)


def loss_by_quarter(t_N: torch.Tensor, loss_N: torch.Tensor, count: int) -> tuple[float | None, ...]:
    """Mean loss in each quarter of the timesteps, cleanest first; None where no item fell."""
    quarter_N = t_N * 4 // count
    found = (loss_N[quarter_N == quarter] for quarter in range(4))
    return tuple(float(losses.mean()) if len(losses) else None for losses in found)


def _backward(run: Run, place: int) -> tuple[torch.Tensor, torch.Tensor]:
    recipe = run.recipe
    drawn, text = draw(run, place)
    loss_B = objective_named(recipe.objective).loss(
        networks(run.student, text, run.cache.empty.to(run.device), w_B=drawn.w_B),
        run.model.schedule,
        drawn,
        distance=distance_named(recipe.distance, huber_c=recipe.huber_c),
    )
    (loss_B.mean() / recipe.accumulate).backward()
    return drawn.t_B.cpu(), loss_B.detach().cpu()


def _record(run: Run, row: dict[str, Any]) -> None:
    with (run.folder / METRICS).open("a") as file:
        file.write(json.dumps(row) + "\n")
