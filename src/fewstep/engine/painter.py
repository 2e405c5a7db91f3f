"""How one live session paints: a frame and the session's parameters as a work of the engine.

A plan is made once for a revision of the parameters, and a prompt is encoded once; a frame brings only its picture.
What moves from frame to frame by itself is here too: the way from one prompt to the next, and the walk of the noise.

Shapes: B pictures, C 4 latent channels, H and W latent height and width (pixels / 8).
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Generator, Hashable
from dataclasses import replace
from functools import lru_cache
from itertools import count
from math import floor
from typing import Any, TypeAlias

from PIL import Image

from fewstep.conditioning import residual
from fewstep.denoising import begin
from fewstep.engine.live import Frame, Order
from fewstep.engine.live_request import LiveRequest
from fewstep.engine.pace import Pace
from fewstep.engine.pictures import finished, walked
from fewstep.engine.work import Ask, Rest
from fewstep.image import fit, fit_mask, open_image, open_mask
from fewstep.infotext import Picture
from fewstep.pipeline import Pipeline
from fewstep.plan import Plan, number_text
from fewstep.request import SEED_COUNT
from fewstep.runners import Runner
from fewstep.sampling.rotation import turned
from fewstep.sampling.sampler import Denoiser

Array: TypeAlias = Any
Size: TypeAlias = "tuple[int, int]"
KEPT = 8
"""Plans, and encoded prompts, of the last revisions."""


class LivePainter:
    """The `paint` and the `moving` of one `LiveSession`, whose fields are a `LiveRequest`; not shared between sessions.

    `seed` is the session's where none is asked for. Everything here happens on the engine's thread.
    """

    def __init__(self, pipe: Pipeline, *, seed: int | None = None) -> None:
        self.pipe = pipe
        self.seed = secrets.randbelow(SEED_COUNT) if seed is None else seed
        self._plan = lru_cache(KEPT)(self._planned)
        self._denoisers: dict[Hashable, Denoiser] = {}
        self._mask: tuple[Any, ...] = (None, None, None)
        self._prompts = Travel()
        self._noise = LiveNoise(pipe.runner)

    def moving(self, fields: LiveRequest) -> bool:
        """Whether the same frame, painted again, would be another picture: a prompt on its way, a walk of the noise."""
        return not self._prompts.arrived or (fields.noise == "walk" and fields.noise_speed > 0)

    def paint(self, order: Order) -> Generator[Ask, Array, Picture | Rest]:
        """The steps of an order; the result is its picture. Raises what planning raises: RequestError, LoraError."""
        pipe, fields, frame = self.pipe, order.fields, order.frame
        size = None if frame.picture is None else frame.picture.size
        plan = self._with_frame(self._plan(fields, size, frame.mask is not None), frame)
        if plan.request.autoencoder == "auto" and not order.refined:
            plan = replace(plan, tiny=bool(pipe.model.tiny))
        plan = replace(plan, draft=not order.refined)
        aside = _is_aside(fields, plan)
        denoiser = self._denoiser(replace(plan, guidance=1.0) if aside else plan)
        extra = {"Guidance mode": "residual"} if aside else {}
        if not order.refined:
            if fields.blend:
                pipe.use_loras(plan)  # a text on its way may pass through them
            words = fields.request.prompt, fields.request.negative_prompt
            denoiser, way = self._prompts.step(words, denoiser, fields.blend)
            extra |= {"Prompt blend": way} if way else {}
        place = self._noise.place(fields, plan.seed, still=order.refined)
        extra |= {"Noise walk": number_text(place)} if place else {}
        begun = begin(pipe.runner, pipe.model.schedule, plan, 0, 1, draw=self._noise.draw(plan, place))
        if aside:
            denoiser = residual(denoiser, begun.known_BCHW, plan.guidance)
        z_BCHW = yield from walked(pipe, plan, denoiser, begun)
        return finished(pipe, replace(plan, extra=extra), z_BCHW, 0, pipe)

    def _planned(self, fields: LiveRequest, size: Size | None, masked: bool) -> Plan:
        """The plan of a revision for pictures of this size, without a picture of its own."""
        blank = None if size is None else Image.new("RGB", size)
        request = fields.of(blank, Image.new("L", size, "white") if size and masked else None)
        seed = self.seed if request.seed is None else request.seed
        plan = self.pipe.plan_pass(request.replaced(seed=seed))
        return replace(plan, image=None, mask=None, hashes={})

    def _with_frame(self, plan: Plan, frame: Frame) -> Plan:
        if frame.picture is None:
            return plan
        image, mask = open_image(frame.picture), frame.mask
        if mask is not None and (self._mask[0] is not mask or self._mask[1] != (image.size, plan.size)):
            fitted = fit_mask(open_mask(mask), image.size, plan.size)
            self._mask = mask, (image.size, plan.size), fitted
        return replace(plan, image=fit(image, plan.size), mask=None if mask is None else self._mask[2])

    def _denoiser(self, plan: Plan) -> Denoiser:
        """The network with the plan's prompts inside, which serves every plan with the same ones."""
        if self.pipe.runner.beside(plan.image, plan.mask, plan.size) is not None:
            return self.pipe.denoiser(plan)  # an inpainting network sees each picture beside its latents
        asked, times = plan.request, plan.timesteps if len(plan.stages) > 1 else ()
        key = (
            self.pipe.lora_state(plan),
            plan.stages,
            plan.guidance,
            plan.draft,
            asked.clip_skip,
            asked.emphasis,
            plan.window,
            times,
        )
        if key not in self._denoisers:
            self._denoisers[key] = self.pipe.denoiser(plan)
            if len(self._denoisers) > KEPT:
                del self._denoisers[next(iter(self._denoisers))]
        return self._denoisers[key]


def depth_of(fields: LiveRequest, plan: Plan, pace: Pace, period_s: float) -> int:
    """How many frames of a session to have in the making at once; `plan` is that of one of its frames."""
    rows = 2 if plan.guided and not _is_aside(fields, plan) else 1
    return pace.sized(plan.size).depth(len(plan.timesteps), period_s, rows=rows)


def _is_aside(fields: LiveRequest, plan: Plan) -> bool:
    """Whether guidance leads away from the input picture."""
    has_use = plan.guidance != 1 and plan.image is not None and not plan.embedded
    return has_use and fields.guidance_mode == "residual"


class Travel:
    """The way of a session's prompts: from what was painted last to what is asked now, over so many painted frames.

    Only between two prompts that are one text at all steps (no AND, no [a:b:0.5]), of as many chunks; else at once.
    """

    def __init__(self) -> None:
        self._words: Hashable = None
        self._start: Any = None
        self._shown: Any = None
        self._done = 0

    @property
    def arrived(self) -> bool:
        """Whether what was painted last is what is asked."""
        return self._start is None

    def step(self, words: Hashable, end: Any, frames: int) -> tuple[Denoiser, str]:
        """What the next frame is painted with, and how far it is on its way, in words; `end` is for these `words`."""
        if words != self._words:
            self._start, self._words, self._done = self._shown, words, 0
        self._done += 1
        kind = getattr(end, "kind", None)
        if self._done >= frames or kind is None or kind != getattr(self._start, "kind", None):
            self._start, self._shown = None, end
            return end, ""
        self._shown = end.nearer(self._start, self._done / frames)
        return self._shown, f"{self._done} of {frames}"


class LiveNoise:
    """A session's noise: that of its seed for every frame, or a walk from there to the noises of the next seeds."""

    def __init__(self, runner: Runner) -> None:
        self._drawn = lru_cache(2)(lambda seed, size, rng: _Drawn(runner.noise([seed], size, rng)))
        self._seed: int | None = None
        self._place = 0.0

    def place(self, fields: LiveRequest, seed: int, *, still: bool) -> float:
        """How many seeds further the next frame's noise is; `still`: it stays where the last one's was."""
        if fields.noise != "walk" or seed != self._seed:
            self._seed, self._place = seed, 0.0
        elif not still:
            self._place += fields.noise_speed
        return self._place

    def draw(self, plan: Plan, place: float) -> Callable[[], Array]:
        """One frame's noise, draw after draw; every seed's draws are made once."""
        first, numbers = floor(place), count()
        near, far = (
            self._drawn((plan.seed + seed) % SEED_COUNT, plan.size, plan.request.rng) for seed in (first, first + 1)
        )

        def draw() -> Array:
            k = next(numbers)
            return turned(near[k], far[k], place - first) if place > first else near[k]

        return draw


class _Drawn:
    """The draws of one stream by their number, each made when it is first asked for."""

    def __init__(self, draw: Callable[[], Array]) -> None:
        self._draw, self._made = draw, list[Array]()

    def __getitem__(self, k: int) -> Array:
        while len(self._made) <= k:
            self._made.append(self._draw())
        return self._made[k]
