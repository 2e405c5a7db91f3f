"""The training loop: a generator of step reports. What is learnt is the objective's business, who learns is the
student's.

VAE and text encoder never run here, except to decode the sample grids.
"""

import time
from collections.abc import Callable, Generator
from dataclasses import asdict, dataclass, replace

import torch

from fewstep.data.seeds import generator_at
from fewstep.distill.best import forget_best, keep_if_best, out_of_patience
from fewstep.distill.facts import write_facts
from fewstep.distill.history import RESULT, Row
from fewstep.distill.objectives import objective_named
from fewstep.distill.page import write_report
from fewstep.distill.recipes import learning_rate_at
from fewstep.distill.report import look
from fewstep.distill.run import Run, save
from fewstep.distill.sharding import on_whole, whole
from fewstep.distill.students import choose, networks
from fewstep.distill.terms import Draw, distance_named
from fewstep.distill.times import Times
from fewstep.distill.watch import waited, waiting, watched
from fewstep.distill.world import average_gradients, on_first, together_N
from fewstep.errors import QualityError
from fewstep.models.text import Text


@dataclass(frozen=True)
class StepReport:
    """One finished optimiser step. `losses` are the parts of the loss by name; `loss_quarters` is the student's by
    timestep quarter, cleanest first, None where none was drawn; `gradient_norm` is the student's before clipping;
    `data_wait` the share of the step's time that was spent waiting for data.
    """

    step: int
    loss: float
    learning_rate: float
    gradient_norm: float
    samples_per_s: float
    loss_quarters: tuple[float | None, ...]
    losses: dict[str, float]
    data_wait: float = 0.0


def train(run: Run) -> Generator[StepReport]:
    """Train until the recipe's last step, or until its patience is at an end. Stop iterating at any time and call
    `save`: `begin(resume=True)` goes on bit for bit.

    Checkpoints, metrics.jsonl, sample grids, the best weights and report.html appear in `run.folder` on the way.
    Raises QualityError when the loss is no longer finite.
    """
    recipe = run.recipe
    on_first(run.world, lambda: _open(run))
    with watched(run) as record:
        if run.step == 0 and recipe.look_every:
            _look(run, record)
        stopped = on_first(run.world, lambda: out_of_patience(run))
        while run.step < recipe.steps and not stopped:
            report = _timed_step(run)
            record(asdict(report))
            last = run.step == recipe.steps
            if recipe.look_every and (last or run.step % recipe.look_every == 0):
                _look(run, record)
                stopped = on_first(run.world, lambda: out_of_patience(run))
            if last or stopped or run.step % recipe.save_every == 0:
                save(run)
            yield report


def take_step(run: Run) -> StepReport:
    """One optimiser step: `accumulate` batches forward and backward, clip, AdamW, moving average."""
    recipe, began = run.recipe, time.perf_counter()
    rate = learning_rate_at(recipe, run.step)
    for place, group in enumerate(run.optimiser.param_groups):
        group["lr"] = rate * (recipe.rival_rate if place else 1)
    run.optimiser.zero_grad(set_to_none=True)
    parts = [_backward(run, run.step * recipe.accumulate + place) for place in range(recipe.accumulate)]
    average_gradients(run.world, run.student.parameters.values())
    norms = [float(whole(clip_gradients(group, recipe.clip))) for group in run.student.groups]
    norm, t_N = norms[0], together_N(run.world, torch.cat([t_B for t_B, _ in parts]))
    loss_N = {name: together_N(run.world, torch.cat([found[name] for _, found in parts])) for name in parts[0][1]}
    losses = {name: float(values.mean()) for name, values in loss_N.items()}
    loss = sum(losses.values())
    if not (loss == loss and abs(loss) < float("inf") and all(norm == norm for norm in norms)):
        raise QualityError(
            f"The loss is {loss} at step {run.step + 1}. Lower learning_rate (now {recipe.learning_rate:g}), or "
            f"raise warmup."
        )
    run.optimiser.step()
    run.student.stepped()
    run.step += 1
    quarters = loss_by_quarter(t_N, next(iter(loss_N.values())), run.model.schedule.count)
    run.seconds.append(time.perf_counter() - began)
    speed = run.batch * recipe.accumulate / run.seconds[-1]
    return StepReport(run.step, loss, rate, norm, speed, quarters, losses)


def clip_gradients(parameters: list[torch.nn.Parameter], limit: float) -> torch.Tensor:
    """Scale all gradients so that their joint norm is at most `limit`; returns the norm before. Takes a list: an
    iterator would be empty by now.
    """
    return torch.nn.utils.clip_grad_norm_(parameters, limit)


def draw(run: Run, place: int) -> tuple[Draw, Text]:
    """This process's items of forward pass `place` (from 0) with their noise, timesteps, w and text.

    What all processes together see is a function of (seed, place) and the number of items, and not of how many
    processes share them: everything random is drawn for all, and each takes its rows.
    """
    recipe, world = run.recipe, run.world
    mine = slice(world.rank * recipe.batch, (world.rank + 1) * recipe.batch)
    with waiting(run):
        batch = run.cache.batch(recipe.seed, place, size=recipe.batch, rank=world.rank, world=world.size)
    generator = generator_at(recipe.seed, place, "draw")
    count, shape = run.model.schedule.count, (run.batch, *batch.z0_BCHW.shape[1:])
    times = objective_named(recipe.objective).times(replace(recipe, batch=run.batch), count, generator)
    noise_BCHW, again_BCHW = (torch.randn(shape, generator=generator) for _ in range(2))
    w_B = recipe.w_min + (recipe.w_max - recipe.w_min) * torch.rand(run.batch, generator=generator)
    empty_B = torch.rand(run.batch, generator=generator) < recipe.empty_captions
    chance_B = torch.rand(run.batch, generator=generator)
    drawn = Draw(
        batch.z0_BCHW.to(run.device),
        noise_BCHW[mine].to(run.device),
        again_BCHW[mine].to(run.device),
        Times(times.t_B[mine], times.t_next_B[mine], times.s_B[mine], times.path).to(run.device),
        w_B[mine].to(run.device),
        chance_B[mine].to(run.device),
    )
    return drawn, choose(empty_B[mine], run.cache.empty, batch.text).to(run.device)


def loss_by_quarter(t_N: torch.Tensor, loss_N: torch.Tensor, count: int) -> tuple[float | None, ...]:
    """Mean loss in each quarter of the timesteps, cleanest first; None where no item fell."""
    quarter_N = t_N * 4 // count
    found = (loss_N[quarter_N == quarter] for quarter in range(4))
    return tuple(float(losses.mean()) if len(losses) else None for losses in found)


def _backward(run: Run, place: int) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    recipe = run.recipe
    drawn, text = draw(run, place)
    losses = objective_named(recipe.objective).loss(
        networks(
            run.student,
            text,
            run.cache.empty.to(run.device),
            w_B=drawn.w_B,
            adversarial=recipe.adversarial,
            guided=recipe.w_max > 0,
        ),
        run.model.schedule,
        drawn,
        distance=distance_named(recipe.distance, huber_c=recipe.huber_c),
    )
    torch.stack([loss_B.mean() / recipe.accumulate for loss_B in losses.values()]).sum().backward()
    return drawn.times.t_B.cpu(), {name: loss_B.detach().cpu() for name, loss_B in losses.items()}


def _open(run: Run) -> None:
    write_facts(run)
    (run.folder / RESULT).unlink(missing_ok=True)
    if run.step == 0:
        forget_best(run)


def _timed_step(run: Run) -> StepReport:
    waited(run)
    began = time.perf_counter()
    report = take_step(run)
    return replace(report, data_wait=waited(run) / (time.perf_counter() - began))


def _look(run: Run, record: Callable[[Row], None]) -> None:
    row = on_whole(run, look)
    record(row | {"kept": True} if keep_if_best(run, row) else row)
    on_first(run.world, lambda: write_report(run.folder))
