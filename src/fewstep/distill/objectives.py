"""Distillation objectives: functions of tensors, one per method, found by name.

Every member of the consistency family is the same sentence (`consistency_pair`): walk one jump from t to t', let the
student land from t and the target land from t', and compare. The members differ in the jump and in where they land:

    LCM               the guided teacher's jump, the clean latent through c_skip and c_out    `latent_consistency`
    TCD PCM TDD TSCD  the same jump, a target time s by the DDIM map (`times.py`)             `target_time_consistency`
    LCF               the data's own jump, the same noise at t', no teacher                   `consistency_fine_tuning`
    sCM               an endless number of endless small jumps; experimental                  `continuous_consistency`

A critic, where a run has one, is asked about either end (`adversarial.py`).

The other family lets the student draw, and moves what it drew towards the teacher's distribution (`matching.py`).

Sources: LCM (2310.04378) Algorithms 1 and 4, LCM-LoRA (2311.05556) Algorithm 1, DDIM (2010.02502) equation 12; the
others stand in `times.py`. Departure: the papers' guidance scale w is the API's guidance minus 1.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch

from fewstep.distill.adversarial import hinge_between
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
from fewstep.sampling.schedule import Schedule, add_noise, to_eps, to_z0

Landing = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]
Walk = Callable[[Networks, Schedule, Draw], tuple[torch.Tensor, torch.Tensor]]
Losses = dict[str, torch.Tensor]
TANGENT_FLOOR = 0.1


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
    pair = consistency_pair(networks, schedule, draw, walk=teacher_jump, land=consistency_function)
    return _compared(networks, schedule, draw, pair, distance)


def consistency_fine_tuning(networks: Networks, schedule: Schedule, draw: Draw, *, distance: Distance) -> Losses:
    """Latent consistency fine-tuning (LCM Algorithm 4): as LCM, with the data's own jump.

    It keeps a consistency model consistent while it learns new pictures, so it starts from one.
    """
    pair = consistency_pair(networks, schedule, draw, walk=data_jump, land=consistency_function)
    return _compared(networks, schedule, draw, pair, distance)


def target_time_consistency(networks: Networks, schedule: Schedule, draw: Draw, *, distance: Distance) -> Losses:
    """Both ends land at the target time s by the DDIM map, which is the identity at t' = s."""

    def land(z_BCHW: torch.Tensor, z0_BCHW: torch.Tensor, t_B: torch.Tensor) -> torch.Tensor:
        return ddim_map(schedule, z_BCHW, z0_BCHW, t_B, draw.times.s_B)

    pair = consistency_pair(networks, schedule, draw, walk=teacher_jump, land=land)
    return _compared(networks, schedule, draw, pair, distance)


def continuous_consistency(networks: Networks, schedule: Schedule, draw: Draw, *, distance: Distance) -> Losses:
    """Continuous-time consistency (sCM, Lu and Song 2024, 2410.11081, algorithm 1) by finite differences; experimental.

    On the circle tau = atan2(sigma, alpha) a variance-preserving schedule is TrigFlow with sigma_data 1, its v is the
    paper's F, and f = cos(tau) z - sin(tau) F. The tangent of F is its difference to the target's v one grid point
    below, on the guided teacher's path; a difference to both sides swings up, because what is known flows upwards from
    t = 0. Departures: no tangent warm-up, no learnt weighting, the tangent's norm is taken per element, and `distance`
    is not asked: the loss is squared.
    """
    t_B, below_B = draw.times.t_B, draw.times.t_next_B
    z_BCHW, below_BCHW = teacher_jump(networks, schedule, draw)
    v_BCHW = _v_of(networks.student, schedule, z_BCHW, t_B)
    with torch.no_grad():
        low_BCHW = _v_of(networks.target, schedule, below_BCHW, below_B)
        tau = _angle(schedule, t_B, z_BCHW)
        apart = tau - _angle(schedule, below_B, z_BCHW)
        # The teacher's v from its jump, which turns z by -apart: z' = cos(apart) z - sin(apart) v.
        path_BCHW = (apart.cos() * z_BCHW - below_BCHW) / apart.sin()
        cos, sin = tau.cos(), tau.sin()
        slope_BCHW = (v_BCHW - low_BCHW) / apart
        g_BCHW = -(cos**2) * (v_BCHW - path_BCHW) - cos * sin * (z_BCHW + slope_BCHW)
        size_B = per_item(g_BCHW.square()).sqrt()
        aim_BCHW = v_BCHW + g_BCHW / (size_B + TANGENT_FLOOR).view(-1, *[1] * (z_BCHW.ndim - 1))
    return {"consistency": per_item((v_BCHW - aim_BCHW).square())}


def _v_of(network: Network, schedule: Schedule, z_BCHW: torch.Tensor, t_B: torch.Tensor) -> torch.Tensor:
    alpha, sigma = schedule.alpha_sigma(t_B, z_BCHW)
    output_BCHW = network(z_BCHW, t_B).float()
    return alpha * to_eps(schedule, z_BCHW, output_BCHW, t_B) - sigma * to_z0(schedule, z_BCHW, output_BCHW, t_B)


def _angle(schedule: Schedule, t_B: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    alpha, sigma = schedule.alpha_sigma(t_B, like)
    return torch.atan2(sigma, alpha)


def _compared(
    networks: Networks, schedule: Schedule, draw: Draw, pair: tuple[torch.Tensor, torch.Tensor], distance: Distance
) -> Losses:
    losses, times = {"consistency": per_item(distance(pair[0] - pair[1]))}, draw.times
    if networks.critic is None:
        return losses
    return losses | hinge_between(
        networks.critic, schedule, *pair, draw.again_BCHW, s_B=times.s_B, t_B=times.t_B, chance_B=draw.chance_B
    )


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
    "scm": _jumps(continuous_consistency, lambda recipe: to_clean),
    "tdm": Objective(trajectory_matching, _segments, fake=True, pictures=False),
}


def objective_named(name: str) -> Objective:
    """The objective a recipe names. Raises RecipeError listing the known ones."""
    if name not in OBJECTIVES:
        raise RecipeError(f"There is no objective '{name}'. Use one of: {', '.join(OBJECTIVES)}.")
    return OBJECTIVES[name]
