"""Distillation objectives: functions of tensors, one per method, found by name.

Every member of the consistency family is the same sentence (`consistency_pair`): walk one jump from t to t', let the
student land from t and the target land from t', and compare. The members differ in the jump and in where they land:

    LCM               the guided teacher's jump, the clean latent through c_skip and c_out    `latent_consistency`
    TCD PCM TDD TSCD  the same jump, a target time s by the DDIM map (`times.py`)             `target_time_consistency`
    LCF               the data's own jump, the same noise at t', no teacher                   `consistency_fine_tuning`

The other family lets the student draw, and moves what it drew towards the teacher's distribution (`matching.py`).

Sources: LCM (2310.04378) Algorithms 1 and 4, LCM-LoRA (2311.05556) Algorithm 1, DDIM (2010.02502) equation 12; the
others stand in `times.py`. Departure: the papers' guidance scale w is the API's guidance minus 1.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch

from fewstep.distill.matching import trajectory_matching
from fewstep.distill.recipes import Recipe
from fewstep.distill.terms import Distance, Draw, Loss, Network, Networks, guided, per_item, z0_of
from fewstep.distill.times import (
    Target,
    Times,
    jump_times,
    segment_times,
    to_anywhere,
    to_clean,
    to_edge,
    to_later_steps,
)
from fewstep.errors import RecipeError
from fewstep.sampling.consistency import consistency_function
from fewstep.sampling.ode import ddim_map
from fewstep.sampling.schedule import Schedule, add_noise

Landing = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]
Walk = Callable[[Networks, Schedule, Draw], tuple[torch.Tensor, torch.Tensor]]
Losses = dict[str, torch.Tensor]


def teacher_jump(networks: Networks, schedule: Schedule, draw: Draw) -> tuple[torch.Tensor, torch.Tensor]:
    """(z at t, z at t'): noised data, and one DDIM step of the guided teacher from there (LCM section 4.2).

    At t' = 0 the schedule's own alpha_0 and sigma_0 are used.
    """
    t_B, t_next_B = draw.times.t_B, draw.times.t_next_B
    z_BCHW = add_noise(schedule, draw.z0_BCHW, draw.noise_BCHW, t_B)
    z0_BCHW = z0_of(guided(networks.teacher, 1 + draw.w_B), schedule, z_BCHW, t_B)
    return z_BCHW, ddim_map(schedule, z_BCHW, z0_BCHW, t_B, t_next_B)


def data_jump(networks: Networks, schedule: Schedule, draw: Draw) -> tuple[torch.Tensor, torch.Tensor]:
    """(z at t, z at t'): the same data under the same noise; no teacher is asked."""
    ends = (draw.times.t_B, draw.times.t_next_B)
    at_t_BCHW, at_next_BCHW = (add_noise(schedule, draw.z0_BCHW, draw.noise_BCHW, t_B) for t_B in ends)
    return at_t_BCHW, at_next_BCHW


def consistency_pair(
    networks: Networks, schedule: Schedule, draw: Draw, *, walk: Walk, land: Landing
) -> tuple[torch.Tensor, torch.Tensor]:
    """Prediction and target of a consistency method: `land(z, z0, t_B)` says where both ends of the jump must meet.

    The target carries no gradient. A landing that is the identity at its own target time anchors the method there.
    """
    z_BCHW, jumped_BCHW = walk(networks, schedule, draw)

    def landed(network: Network, z_BCHW: torch.Tensor, t_B: torch.Tensor) -> torch.Tensor:
        return land(z_BCHW, z0_of(network, schedule, z_BCHW, t_B), t_B)

    with torch.no_grad():
        target_BCHW = landed(networks.target, jumped_BCHW, draw.times.t_next_B)
    return landed(networks.student, z_BCHW, draw.times.t_B), target_BCHW


def latent_consistency(networks: Networks, schedule: Schedule, draw: Draw, *, distance: Distance) -> Losses:
    """Latent consistency distillation (LCM Algorithm 1): both ends land on the clean latent."""
    return _compared(consistency_pair(networks, schedule, draw, walk=teacher_jump, land=consistency_function), distance)


def consistency_fine_tuning(networks: Networks, schedule: Schedule, draw: Draw, *, distance: Distance) -> Losses:
    """Latent consistency fine-tuning (LCM Algorithm 4): as LCM, with the data's own jump.

    It keeps a consistency model consistent while it learns new pictures, so it starts from one.
    """
    return _compared(consistency_pair(networks, schedule, draw, walk=data_jump, land=consistency_function), distance)


def target_time_consistency(networks: Networks, schedule: Schedule, draw: Draw, *, distance: Distance) -> Losses:
    """Both ends land at the target time s by the DDIM map, which is the identity at t' = s."""

    def land(z_BCHW: torch.Tensor, z0_BCHW: torch.Tensor, t_B: torch.Tensor) -> torch.Tensor:
        return ddim_map(schedule, z_BCHW, z0_BCHW, t_B, draw.times.s_B)

    return _compared(consistency_pair(networks, schedule, draw, walk=teacher_jump, land=land), distance)


def _compared(pair: tuple[torch.Tensor, torch.Tensor], distance: Distance) -> Losses:
    return {"consistency": per_item(distance(pair[0] - pair[1]))}


@dataclass(frozen=True)
class Objective:
    """A distillation method: its loss, the times it draws for a recipe, and whether it needs a `fake` network, and
    `pictures` or prompts alone.
    """

    loss: Loss
    times: Callable[[Recipe, int, torch.Generator], Times]
    fake: bool = False
    pictures: bool = True


def _jumps(loss: Loss, target: Callable[[Recipe], Target]) -> Objective:
    def times(recipe: Recipe, count: int, generator: torch.Generator) -> Times:
        return jump_times(target(recipe), recipe.batch, recipe.origin_steps, count, generator)

    return Objective(loss, times)


def _segments(recipe: Recipe, count: int, generator: torch.Generator) -> Times:
    return segment_times(recipe.phases, recipe.batch, recipe.origin_steps, count, generator)


OBJECTIVES: dict[str, Objective] = {
    "lcm": _jumps(latent_consistency, lambda recipe: to_clean),
    "lcf": _jumps(consistency_fine_tuning, lambda recipe: to_clean),
    "tcd": _jumps(target_time_consistency, lambda recipe: to_anywhere),
    "pcm": _jumps(target_time_consistency, lambda recipe: partial(to_edge, phases=recipe.phases)),
    "tscd": _jumps(target_time_consistency, lambda recipe: partial(to_anywhere, segments=recipe.phases)),
    "tdd": _jumps(target_time_consistency, lambda recipe: to_later_steps),
    "tdm": Objective(trajectory_matching, _segments, fake=True, pictures=False),
}


def objective_named(name: str) -> Objective:
    """The objective a recipe names. Raises RecipeError listing the known ones."""
    if name not in OBJECTIVES:
        raise RecipeError(f"There is no objective '{name}'. Use one of: {', '.join(OBJECTIVES)}.")
    return OBJECTIVES[name]
