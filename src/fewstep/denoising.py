"""How a pass begins: from noise, from a picture, or from a picture of which a part is kept.

Shapes: B pictures, C 4 latent channels, H and W latent height and width (pixels / 8).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np

from fewstep import second
from fewstep.image import mask_cells
from fewstep.plan import Plan
from fewstep.runners import Runner
from fewstep.sampling.sampler import Denoiser
from fewstep.sampling.schedule import Schedule, add_noise

Array: TypeAlias = Any


@dataclass(frozen=True, eq=False)
class Begun:
    """Latents at the first timestep; `how` are the other keywords of `sample`.

    `known_BCHW` are the clean latents it began from, if any; they stay where `repaint` is 0.
    """

    z_BCHW: Array
    how: dict[str, Any]
    known_BCHW: Array | None = None
    repaint: Array | None = None

    def kept(self, z0_BCHW: Array) -> Array:
        """A prediction, with the known clean latents where nothing is repainted.

        With z0 known there, every sampler's step leaves there exactly the known latents noised to the next timestep:
        what other programs do by mixing after each step (RePaint, arXiv:2201.09865, eq. 8, without resampling).
        """
        return z0_BCHW if self.repaint is None else self.repaint * z0_BCHW + (1 - self.repaint) * self.known_BCHW

    def keeping(self, denoiser: Denoiser) -> Denoiser:
        """The denoiser, whose every prediction is `kept`."""
        return denoiser if self.repaint is None else lambda z_BCHW, timestep_B: self.kept(denoiser(z_BCHW, timestep_B))


def begin(
    runner: Runner,
    schedule: Schedule,
    plan: Plan,
    first: int,
    count: int,
    known_BCHW: Array | None = None,
    draw: Callable[[], Array] | None = None,
) -> Begun:
    """Pictures `first` to `first + count - 1` of a plan, by any back end.

    `known_BCHW` is the start of a second pass, in place of the plan's picture; `draw` gives other noise than the
    seeds' own.
    """
    seeds, rng, ensd = [plan.seed_of(first + offset) for offset in range(count)], plan.request.rng, plan.request.ensd
    draw = draw or runner.noise(seeds, plan.size, rng)
    z_BCHW = draw()
    how = {"sampler": plan.sampler, "schedule": schedule, "noise": _numbered(draw)}
    if ensd:
        how["noise"] = _numbered(runner.noise([seed + ensd for seed in seeds], plan.size, rng))
    if plan.image is not None and known_BCHW is None:
        known_BCHW = second.encode(runner, np.asarray(plan.image)[None], plan.request.tile, tiny=plan.tiny)
    if known_BCHW is None:
        return Begun(z_BCHW, how)
    known_BCHW = second.placed(known_BCHW, like=z_BCHW)
    noised_BCHW = add_noise(schedule, known_BCHW, z_BCHW, plan.timesteps[0])
    start_BCHW = z_BCHW if plan.strength == 1 else noised_BCHW
    if plan.mask is None:
        return Begun(start_BCHW, how, known_BCHW)
    repaint = runner.weights(mask_cells(plan.mask))
    return Begun(repaint * start_BCHW + (1 - repaint) * noised_BCHW, how, known_BCHW, repaint)


def _numbered(draw: Callable[[], Array]) -> Callable[[int], Array]:
    return lambda _step: draw()
