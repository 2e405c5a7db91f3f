"""A plan's prompts as one Denoiser: composed with AND, changing from step to step.

Predictions of clean latents are mixed, which is the same as mixing those of noise (or v): at one z and t each is the
same linear function of the other, and the weights add up to 1.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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
    reading = Reading(plan.request.clip_skip, plan.request.emphasis, embeddings)

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
            return composed([(simple(part.words, None, plan.guidance), part.weight / total) for part in stage.parts])
        terms = [(simple(part.words, None, 1.0), plan.guidance * part.weight) for part in stage.parts]
        return composed([*terms, (simple(stage.negative, None, 1.0), away)] if away else terms)

    return staged([(plan.timesteps[stage.first], of(stage)) for stage in plan.stages])


def composed(terms: Sequence[tuple[Denoiser, float]]) -> Denoiser:
    """The weighted sum of several predictions.

    Source: Liu et al. 2022 (arXiv:2206.01714, eq. 11): uncond + sum of w_i (cond_i - uncond), the w_i here holding the
    guidance, and uncond being one of the terms.
    """

    def predict(z_BCHW: Any, timestep_B: Any) -> Any:
        return sum(weight * denoiser(z_BCHW, timestep_B) for denoiser, weight in terms)

    return predict


def staged(stages: Sequence[tuple[float, Denoiser]]) -> Denoiser:
    """Several denoisers, each from its timestep on downwards until the next one's; per item.

    Which one counts follows from the timestep alone: evaluations between two steps belong to the earlier one.
    """
    if len(stages) == 1:
        return stages[0][1]

    def stage_at(timestep: float) -> int:
        return max((index for index, (start, _) in enumerate(stages) if timestep <= start + ROUNDING), default=0)

    def predict(z_BCHW: Any, timestep_B: Any) -> Any:
        asked = [stage_at(timestep) for timestep in times(timestep_B, like=z_BCHW).tolist()]
        if len(set(asked)) == 1:
            return stages[asked[0]][1](z_BCHW, timestep_B)
        return namespace(z_BCHW).concatenate(
            [stages[at][1](z_BCHW[item : item + 1], timestep_B[item : item + 1]) for item, at in enumerate(asked)]
        )

    return predict
