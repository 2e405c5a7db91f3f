"""A plan's prompts as one Denoiser: composed with AND, changing from step to step.

Predictions of clean latents are mixed, which is the same as mixing those of noise (or v): at one z and t each is the
same linear function of the other, and the weights add up to 1.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from fewstep.errors import RequestError
from fewstep.models.chunks import Vectors
from fewstep.plan import Plan
from fewstep.prompt.stages import Stage
from fewstep.runners import Reading, Runner
from fewstep.sampling.arrays import namespace, times
from fewstep.sampling.sampler import Denoiser

ROUNDING = 5e-4
"""Of a timestep in single precision, and far below the distance of any two."""


def conditioned(runner: Runner, plan: Plan, embeddings: Mapping[str, Vectors]) -> Denoiser:
    """The network with the plan's prompts and guidance inside; each text is encoded once.

    Raises RequestError for a prompt that cannot be read.
    """
    beside = runner.beside(plan.image, plan.mask, plan.size)
    reading = Reading(plan.request.clip_skip, plan.request.emphasis, embeddings, beside, plan.draft)

    @cache
    def simple(words: str, negative: str | None, guidance: float) -> Denoiser:
        return runner.denoiser(words, negative, guidance, reading)

    @cache
    def of(stage: Stage) -> Denoiser:
        away = stage.away(plan.guidance)
        if len(stage.parts) == 1:
            negative = stage.negative if away and not plan.embedded else None
            return simple(stage.parts[0].words, negative, plan.guidance)
        if plan.embedded:
            total = sum(part.weight for part in stage.parts)
            if not total:
                raise RequestError("The weights of the prompts around AND add up to 0. This model takes their mean.")
            shares = ((simple(part.words, None, plan.guidance), part.weight / total) for part in stage.parts)
            return Composed(tuple(shares))
        terms = [(simple(part.words, None, 1.0), plan.guidance * part.weight) for part in stage.parts]
        return Composed((*terms, (simple(stage.negative, None, 1.0), away)) if away else tuple(terms))

    found = tuple((plan.timesteps[stage.first], of(stage)) for stage in plan.stages)
    return found[0][1] if len(found) == 1 else Staged(found)


@dataclass(frozen=True, eq=False)
class Composed:
    """A Denoiser: the weighted sum of several predictions.

    Source: Liu et al. 2022 (arXiv:2206.01714, eq. 11): uncond + sum of w_i (cond_i - uncond), the w_i here holding the
    guidance, and uncond being one of the terms.
    """

    terms: tuple[tuple[Denoiser, float], ...]

    def __call__(self, z_BCHW: Any, timestep_B: Any) -> Any:
        """The clean latents predicted."""
        return sum(weight * denoiser(z_BCHW, timestep_B) for denoiser, weight in self.terms)


@dataclass(frozen=True, eq=False)
class Staged:
    """A Denoiser of several, each from its timestep on downwards until the next one's; per item.

    Which one counts follows from the timestep alone: evaluations between two steps belong to the earlier one.
    """

    stages: tuple[tuple[float, Denoiser], ...]

    def at(self, timestep: float) -> Denoiser:
        """The one that counts at this timestep."""
        return self.stages[self._index(timestep)][1]

    def _index(self, timestep: float) -> int:
        return max((index for index, (start, _) in enumerate(self.stages) if timestep <= start + ROUNDING), default=0)

    def __call__(self, z_BCHW: Any, timestep_B: Any) -> Any:
        """The clean latents predicted."""
        asked = [self._index(timestep) for timestep in times(timestep_B, like=z_BCHW).tolist()]
        if len(set(asked)) == 1:
            return self.stages[asked[0]][1](z_BCHW, timestep_B)
        rows = [
            self.stages[at][1](z_BCHW[item : item + 1], timestep_B[item : item + 1]) for item, at in enumerate(asked)
        ]
        return namespace(z_BCHW).concatenate(rows)


@dataclass(frozen=True, eq=False)
class Known:
    """A Denoiser that knows the clean latents already, one row for each item, and costs no evaluation."""

    known_BCHW: Any
    kind = "known"

    @staticmethod
    def joined(denoisers: Sequence[Known]) -> Known:
        """One for as many items."""
        first_BCHW = denoisers[0].known_BCHW
        return Known(namespace(first_BCHW).concatenate([one.known_BCHW for one in denoisers]))

    def __call__(self, z_BCHW: Any, timestep_B: Any) -> Any:
        """The latents that are known."""
        return self.known_BCHW


def residual(denoiser: Denoiser, known_BCHW: Any, guidance: float) -> Denoiser:
    """Guidance away from the picture that was begun from, at one evaluation a step: `denoiser` is that of guidance 1.

    Source: residual classifier-free guidance, self-negative (Kodaira et al. 2023, arXiv:2312.12491, section 3.2):
    eps_bar + s (eps - eps_bar), where eps_bar = (z_t - alpha z) / sigma is the noise that leads back to the picture's
    own clean latents z. At one z_t and t a prediction of noise and one of clean latents are the same linear function of
    each other, and eps_bar's is z: so this is z + s (z0 - z).
    Departures: z is kept for each picture, where the paper follows eps_bar from step to step, which holds only for its
    own sampler; its damping factor delta is 1.
    """

    def away(one: Denoiser) -> Denoiser:
        terms = one.terms if isinstance(one, Composed) else ((one, 1.0),)
        guided = tuple((term, guidance * weight) for term, weight in terms)
        return Composed((*guided, (Known(known_BCHW), 1 - guidance)))

    if guidance == 1:
        return denoiser
    if isinstance(denoiser, Staged):
        return Staged(tuple((start, away(one)) for start, one in denoiser.stages))
    return away(denoiser)


def terms_at(denoiser: Denoiser, timestep: float) -> tuple[tuple[Denoiser, float], ...]:
    """The predictions, with their weights, whose sum this denoiser gives at a timestep."""
    if isinstance(denoiser, Staged):
        denoiser = denoiser.at(timestep)
    return denoiser.terms if isinstance(denoiser, Composed) else ((denoiser, 1.0),)
