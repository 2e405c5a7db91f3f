"""Distillation objectives: functions of tensors, one per method, found by name.

Every member of the consistency family is the same sentence (`consistency_pair`): walk one jump from t to t', let the
student land from t and the target land from t', and compare. The members differ in the jump and in where they land:

    LCM               the guided teacher's jump, the clean latent through c_skip and c_out    `latent_consistency`
    TCD PCM TDD TSCD  the same jump, a target time s by the DDIM map (`targets.py`)           `target_time_consistency`
    LCF               the data's own jump, the same noise at t', no teacher                   `consistency_fine_tuning`

Sources: LCM (2310.04378) Algorithm 1, LCM-LoRA (2311.05556) Algorithm 1, DDIM (2010.02502) equation 12.
Departure: the papers' guidance scale w is the API's guidance minus 1.

Shapes: B batch, C channels, H, W latent height and width. All arithmetic is float32, whatever the networks compute in:
in float16 c_out is zero from t = 26 up, and in bfloat16 sigma_0 is zero.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Protocol

import torch

from fewstep.distill.recipes import Recipe
from fewstep.distill.targets import Target, to_anywhere, to_clean, to_edge, to_later_steps
from fewstep.errors import RecipeError
from fewstep.sampling.consistency import consistency_function
from fewstep.sampling.guidance import guide
from fewstep.sampling.ode import ddim_map
from fewstep.sampling.schedule import Schedule, add_noise, to_eps, to_z0

Network = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
GuidedNetwork = Callable[[torch.Tensor, torch.Tensor], tuple[torch.Tensor, torch.Tensor | None]]
Landing = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]
Jump = Callable[["Networks", Schedule, "Draw"], tuple[torch.Tensor, torch.Tensor]]
Distance = Callable[[torch.Tensor], torch.Tensor]


@dataclass(frozen=True)
class Networks:
    """Three functions (z_BCHW, timestep_B) -> output in the schedule's prediction, conditioned already.

    `teacher` answers (conditional, unconditional) from one batch; unconditional is None where w is zero throughout.
    """

    student: Network
    target: Network
    teacher: GuidedNetwork


@dataclass(frozen=True)
class Draw:
    """The random part of one step: latents, unit noise, timesteps t > t' on the grid, the target time s <= t', and
    the guidance scale w.
    """

    z0_BCHW: torch.Tensor
    noise_BCHW: torch.Tensor
    t_B: torch.Tensor
    t_next_B: torch.Tensor
    s_B: torch.Tensor
    w_B: torch.Tensor


class Loss(Protocol):
    """The loss of each item, [B] float32, differentiable in the student's weights."""

    def __call__(self, networks: Networks, schedule: Schedule, draw: Draw, *, distance: Distance) -> torch.Tensor:
        """Return loss_B."""
        ...


@dataclass(frozen=True)
class Objective:
    """A distillation method: its loss, and how it draws its target times from a recipe's numbers."""

    loss: Loss
    target: Callable[[Recipe], Target] = lambda recipe: to_clean


def grid(origin_steps: int, count: int = 1000) -> tuple[int, ...]:
    """The teacher's grid, ascending: (1..N) * count/N - 1.

    >>> grid(50)[:3], grid(50)[-1]
    ((19, 39, 59), 999)
    """
    if not 1 <= origin_steps <= count or count % origin_steps:
        raise RecipeError(
            f"origin_steps = {origin_steps} does not divide the {count} timesteps evenly. Use 50, 40, 25 or 20."
        )
    stride = count // origin_steps
    return tuple(stride * place - 1 for place in range(1, origin_steps + 1))


def grid_pair(index_B: torch.Tensor, origin_steps: int, count: int = 1000) -> tuple[torch.Tensor, torch.Tensor]:
    """Timesteps t = grid[index] and t' = max(t - stride, 0), both [B] int64; at index 0, t' is timestep 0, not -1."""
    t_B = torch.tensor(grid(origin_steps, count), device=index_B.device)[index_B]
    return t_B, (t_B - count // origin_steps).clamp(min=0)


def pseudo_huber(c: float) -> Distance:
    """Elementwise sqrt(d^2 + c^2) - c: squared error near zero, absolute error beyond c."""
    return lambda delta: torch.sqrt(delta.square() + c * c) - c


def squared(delta: torch.Tensor) -> torch.Tensor:
    """Elementwise squared error."""
    return delta.square()


def guided_jump(
    schedule: Schedule,
    z_BCHW: torch.Tensor,
    conditional: torch.Tensor,
    unconditional: torch.Tensor | None,
    *,
    w_B: torch.Tensor,
    t_B: torch.Tensor,
    t_next_B: torch.Tensor,
) -> torch.Tensor:
    """One DDIM step of the guided teacher: z' = a' z0~ + s' eps~, both guided as (1 + w) cond - w uncond.

    z0 and eps are linear in the network's output, so guiding the output once guides both exactly. At t' = 0 the
    schedule's own alpha_0 and sigma_0 are used. LCM section 4.2; DDIM equation 12 with eta = 0.
    """
    output = conditional.float()
    if unconditional is not None:
        output = guide(output, unconditional, 1 + w_B)
    alpha, sigma = schedule.alpha_sigma(t_next_B, z_BCHW)
    return alpha * to_z0(schedule, z_BCHW, output, t_B) + sigma * to_eps(schedule, z_BCHW, output, t_B)


def teacher_jump(networks: Networks, schedule: Schedule, draw: Draw) -> tuple[torch.Tensor, torch.Tensor]:
    """(z at t, z at t'): noised data, and one guided step of the teacher from there."""
    z_BCHW = add_noise(schedule, draw.z0_BCHW, draw.noise_BCHW, draw.t_B)
    with torch.no_grad():
        outputs = networks.teacher(z_BCHW, draw.t_B)
        return z_BCHW, guided_jump(schedule, z_BCHW, *outputs, w_B=draw.w_B, t_B=draw.t_B, t_next_B=draw.t_next_B)


def data_jump(networks: Networks, schedule: Schedule, draw: Draw) -> tuple[torch.Tensor, torch.Tensor]:
    """(z at t, z at t'): the same data under the same noise; no teacher is asked."""
    t_BCHW, t_next_BCHW = (add_noise(schedule, draw.z0_BCHW, draw.noise_BCHW, t_B) for t_B in (draw.t_B, draw.t_next_B))
    return t_BCHW, t_next_BCHW


def consistency_pair(
    networks: Networks, schedule: Schedule, draw: Draw, *, jump: Jump, land: Landing
) -> tuple[torch.Tensor, torch.Tensor]:
    """Prediction and target of a consistency method: `land(z, z0, t_B)` says where both ends of the jump must meet.

    The target carries no gradient. A landing that is the identity at its own target time anchors the method there.
    """
    z_BCHW, jumped_BCHW = jump(networks, schedule, draw)

    def landed(network: Network, z_BCHW: torch.Tensor, t_B: torch.Tensor) -> torch.Tensor:
        return land(z_BCHW, to_z0(schedule, z_BCHW, network(z_BCHW, t_B).float(), t_B), t_B)

    with torch.no_grad():
        target_BCHW = landed(networks.target, jumped_BCHW, draw.t_next_B)
    return landed(networks.student, z_BCHW, draw.t_B), target_BCHW


def latent_consistency(networks: Networks, schedule: Schedule, draw: Draw, *, distance: Distance) -> torch.Tensor:
    """Latent consistency distillation (LCM Algorithm 1): both ends land on the clean latent; returns loss_B."""
    pair = consistency_pair(networks, schedule, draw, jump=teacher_jump, land=consistency_function)
    return _loss(*pair, distance)


def consistency_fine_tuning(networks: Networks, schedule: Schedule, draw: Draw, *, distance: Distance) -> torch.Tensor:
    """Latent consistency fine-tuning (LCM Algorithm 4): as LCM, with the data's own jump; returns loss_B.

    It keeps a consistency model consistent while it learns new pictures, so it starts from one.
    """
    pair = consistency_pair(networks, schedule, draw, jump=data_jump, land=consistency_function)
    return _loss(*pair, distance)


def target_time_consistency(networks: Networks, schedule: Schedule, draw: Draw, *, distance: Distance) -> torch.Tensor:
    """Both ends land at the target time s by the DDIM map, which is the identity at t' = s; returns loss_B."""

    def land(z_BCHW: torch.Tensor, z0_BCHW: torch.Tensor, t_B: torch.Tensor) -> torch.Tensor:
        return ddim_map(schedule, z_BCHW, z0_BCHW, t_B, draw.s_B)

    pair = consistency_pair(networks, schedule, draw, jump=teacher_jump, land=land)
    return _loss(*pair, distance)


def _loss(predicted_BCHW: torch.Tensor, target_BCHW: torch.Tensor, distance: Distance) -> torch.Tensor:
    return distance(predicted_BCHW - target_BCHW).flatten(1).mean(1)


OBJECTIVES: dict[str, Objective] = {
    "lcm": Objective(latent_consistency),
    "lcf": Objective(consistency_fine_tuning),
    "tcd": Objective(target_time_consistency, lambda recipe: to_anywhere),
    "pcm": Objective(target_time_consistency, lambda recipe: partial(to_edge, phases=recipe.phases)),
    "tscd": Objective(target_time_consistency, lambda recipe: partial(to_anywhere, segments=recipe.phases)),
    "tdd": Objective(target_time_consistency, lambda recipe: to_later_steps),
}


def objective_named(name: str) -> Objective:
    """The objective a recipe names. Raises RecipeError listing the known ones."""
    if name not in OBJECTIVES:
        raise RecipeError(f"There is no objective '{name}'. Use one of: {', '.join(OBJECTIVES)}.")
    return OBJECTIVES[name]


def distance_named(name: str, *, huber_c: float) -> Distance:
    """The distance a recipe names: "huber" or "l2". Raises RecipeError."""
    distances = {"huber": pseudo_huber(huber_c), "l2": squared}
    if name not in distances:
        raise RecipeError(f"There is no distance '{name}'. Use one of: {', '.join(distances)}.")
    return distances[name]
