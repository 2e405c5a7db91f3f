"""Pictures as works of the engine: a plan's passes as asks, and the network that answers asks of many pictures at once.

Shapes: B asks, C 4 latent channels, H and W latent height and width (pixels / 8).
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Hashable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeAlias

from fewstep import second
from fewstep.conditioning import terms_at
from fewstep.denoising import Begun, begin
from fewstep.engine.work import Ask, Rest, Steps
from fewstep.image import CELL_PX
from fewstep.infotext import Picture
from fewstep.pipeline import Pipeline
from fewstep.plan import Plan
from fewstep.sampling.arrays import float32, namespace, same_timestep
from fewstep.sampling.sampler import Denoiser, questions

Array: TypeAlias = Any
Told: TypeAlias = Callable[[int, "Preview"], None]


@dataclass(frozen=True, eq=False)
class Question:
    """What one picture asks: by which pipeline, with which prompts, at which latents (1, C, H, W) and timestep."""

    pipe: Pipeline
    plan: Plan
    denoiser: Denoiser
    z_BCHW: Array
    timestep: float


@dataclass(frozen=True, eq=False)
class Preview:
    """The picture as it is predicted after a step; made on demand, on the engine's thread."""

    make: Callable[[], Picture]


def paint(pipe: Pipeline, plan: Plan, index: int = 0, told: Told | None = None) -> Steps:
    """Picture `index` of a plan, as a work; the result is the picture.

    `told` hears after each evaluation how many there were, and gets a preview to be made at once or never.
    """
    done = 0

    def heard(passed: Plan, z0_BCHW: Array, runner: Any) -> None:
        nonlocal done
        done += 1
        if told is not None:
            told(done, Preview(lambda: pipe.finish(passed, z0_BCHW, index, runner, preview=True)[0]))

    z_BCHW = yield from _pass(pipe, plan, index, None, lambda z0: heard(plan, z0, pipe.runner))
    other = pipe.hires or pipe
    if plan.hires is None:
        return finished(pipe, plan, z_BCHW, index, pipe)
    pipe.use_loras(plan)
    known_BCHW = second.enlarge((pipe.runner, other.runner), plan, z_BCHW)
    z_BCHW = yield from _pass(other, plan.hires, index, known_BCHW, lambda z0: heard(plan, z0, other.runner))
    return finished(pipe, plan, z_BCHW, index, other)


def finished(pipe: Pipeline, plan: Plan, z_BCHW: Array, index: int, last: Pipeline) -> Picture | Rest:
    """The picture of the latents that the `last` pipeline came to, made at once or, where that is safe, aside."""

    def make() -> Picture:
        return pipe.finish(plan, z_BCHW, index, last.runner)[0]

    return Rest(make) if last.runner.decodes_aside else make()


def _pass(
    pipe: Pipeline, plan: Plan, index: int, known_BCHW: Array | None, heard: Callable[[Array], None]
) -> Generator[Ask, Array, Array]:
    denoiser = pipe.denoiser(plan)
    begun = begin(pipe.runner, pipe.model.schedule, plan, index, 1, known_BCHW)
    return (yield from walked(pipe, plan, denoiser, begun, heard))


def walked(
    pipe: Pipeline, plan: Plan, denoiser: Denoiser, begun: Begun, heard: Callable[[Array], None] | None = None
) -> Generator[Ask, Array, Array]:
    """One pass that has begun, as asks: its last latents; `heard` gets the clean ones predicted after each answer."""
    walk = questions(z=begun.z_BCHW, timesteps=plan.timesteps, **begun.how)
    z_BCHW, timestep = next(walk)
    while True:
        question = Question(pipe, plan, denoiser, z_BCHW, timestep)
        z0_BCHW = begun.kept(float32((yield Ask(_key(question), question))))
        if heard is not None:
            heard(z0_BCHW)
        try:
            z_BCHW, timestep = walk.send(z0_BCHW)
        except StopIteration as end:
            return end.value


class Kind(NamedTuple):
    """The key of asks that can share a call."""

    loras: Hashable
    shape: tuple[int, ...]
    texts: tuple[Hashable, ...]


def _key(question: Question) -> Hashable:
    """Asks of one key can share a call: of one model with the same LoRAs, one size, and texts of the same lengths."""
    terms = terms_at(question.denoiser, question.timestep)
    kinds = tuple(getattr(denoiser, "kind", None) for denoiser, _ in terms)
    if None in kinds:  # windows of a large picture share calls among themselves
        return object()
    return Kind(question.pipe.lora_state(question.plan), tuple(question.z_BCHW.shape), kinds)


class PictureNetwork:
    """Answers questions of pictures. `at_once` is how many share a call, or says so of their (width, height) in pixels:
    a pipeline's own batch where it is None.
    """

    def __init__(self, at_once: int | Callable[[tuple[int, int]], int] | None = None) -> None:
        self.at_once = at_once
        self._room = 1

    def room(self, key: Hashable) -> int:
        """How many asks one call holds."""
        if not callable(self.at_once):
            return self.at_once or self._room
        if not isinstance(key, Kind):
            return 1
        height, width = key.shape[-2:]
        return self.at_once((CELL_PX * width, CELL_PX * height))

    def answer(self, asks: Sequence[Ask]) -> list[Array]:
        """The clean latents for each ask's own latents."""
        questions_asked: list[Question] = [ask.what for ask in asks]
        first = questions_asked[0]
        self._room = first.pipe.batch
        first.pipe.use_loras(first.plan)
        if len(asks) == 1:
            return [first.denoiser(first.z_BCHW, same_timestep(first.timestep, like=first.z_BCHW))]
        return _together(questions_asked)


def _together(asked: Sequence[Question]) -> list[Array]:
    """One call for each term: all questions have as many, and of the same kinds in the same order."""
    xp = namespace(asked[0].z_BCHW)
    z_BCHW = xp.concatenate([question.z_BCHW for question in asked])
    timestep_B = xp.concatenate([same_timestep(float(q.timestep), like=q.z_BCHW) for q in asked])
    columns = zip(*(terms_at(question.denoiser, question.timestep) for question in asked), strict=True)
    total: list[Array] | None = None
    for column in columns:
        denoisers = [denoiser for denoiser, _ in column]
        z0_BCHW = type(denoisers[0]).joined(denoisers)(z_BCHW, timestep_B)
        part = [weight * z0_BCHW[item : item + 1] for item, (_, weight) in enumerate(column)]
        total = part if total is None else [one + other for one, other in zip(total, part, strict=True)]
    assert total is not None
    return total
