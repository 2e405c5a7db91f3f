"""What a distillation method is made of: networks as functions of tensors, one step's random draw, distances.

Shapes: B batch, C channels, H, W latent height and width. All arithmetic is float32, whatever the networks compute in:
in float16 c_out is zero from t = 26 up, and in bfloat16 sigma_0 is zero.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

import torch

from fewstep.distill.adversarial import Critic
from fewstep.distill.times import Times
from fewstep.errors import RecipeError
from fewstep.sampling.guidance import guide
from fewstep.sampling.schedule import Schedule, to_z0

Network = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
GuidedNetwork = Callable[[torch.Tensor, torch.Tensor], tuple[torch.Tensor, torch.Tensor | None]]
Distance = Callable[[torch.Tensor], torch.Tensor]


@dataclass(frozen=True)
class Networks:
    """Functions (z_BCHW, timestep_B) -> output in the schedule's prediction, conditioned already.

    `teacher` answers (conditional, unconditional) from one batch; unconditional is None where w is zero throughout.
    `fake`, where a method asks for it, learns what the student draws; `critic` is asked where there is one.
    """

    student: Network
    target: Network
    teacher: GuidedNetwork
    fake: Network | None = None
    critic: Critic | None = None


@dataclass(frozen=True)
class Draw:
    """The random part of one step: latents, two unit noises, times, the papers' guidance scale w, and a number in
    [0, 1) that says when a critic looks.
    """

    z0_BCHW: torch.Tensor
    noise_BCHW: torch.Tensor
    again_BCHW: torch.Tensor
    times: Times
    w_B: torch.Tensor
    chance_B: torch.Tensor = field(default_factory=lambda: torch.zeros(1))


class Loss(Protocol):
    """The losses of a step by name, each [B] float32; what is minimised is the mean of their sum."""

    def __call__(
        self, networks: Networks, schedule: Schedule, draw: Draw, *, distance: Distance
    ) -> dict[str, torch.Tensor]:
        """Return {name: loss_B}."""
        ...


def z0_of(network: Network, schedule: Schedule, z_BCHW: torch.Tensor, t_B: torch.Tensor) -> torch.Tensor:
    """The clean latent that a network sees, float32."""
    return to_z0(schedule, z_BCHW, network(z_BCHW, t_B).float(), t_B)


def guided(teacher: GuidedNetwork, guidance: torch.Tensor | float) -> Network:
    """The teacher as one network, with guidance 1 + w: (1 + w) cond - w uncond; no gradient.

    z0 and eps are linear in the network's output, so guiding the output once guides both exactly.
    """

    @torch.no_grad()
    def network(z_BCHW: torch.Tensor, t_B: torch.Tensor) -> torch.Tensor:
        conditional, unconditional = teacher(z_BCHW, t_B)
        return conditional.float() if unconditional is None else guide(conditional.float(), unconditional, guidance)

    return network


def per_item(value_BCHW: torch.Tensor) -> torch.Tensor:
    """The mean over each item, [B]."""
    return value_BCHW.flatten(1).mean(1)


def pseudo_huber(c: float) -> Distance:
    """Elementwise sqrt(d^2 + c^2) - c: squared error near zero, absolute error beyond c."""
    return lambda delta: torch.sqrt(delta.square() + c * c) - c


def squared(delta: torch.Tensor) -> torch.Tensor:
    """Elementwise squared error."""
    return delta.square()


def distance_named(name: str, *, huber_c: float) -> Distance:
    """The distance a recipe names: "huber" or "l2". Raises RecipeError."""
    distances = {"huber": pseudo_huber(huber_c), "l2": squared}
    if name not in distances:
        raise RecipeError(f"There is no distance '{name}'. Use one of: {', '.join(distances)}.")
    return distances[name]
