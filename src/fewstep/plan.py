"""What a request comes to with a certain model: every default filled in, every number that a picture records.

Plain values only: the same plan is carried out by any back end. Nothing here imports torch.
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from PIL import Image

from fewstep.image import content_hash, default_size, fit, fit_mask, open_image, open_mask
from fewstep.infotext import Infotext, number_text
from fewstep.prompt.stages import Stage, stages
from fewstep.prompt.tags import LoraTag, split_lora_tags
from fewstep.request import SEED_COUNT, Request
from fewstep.sampling.sampler import SAMPLERS, Sampler, sampler_named
from fewstep.sampling.schedule import Schedule
from fewstep.sampling.timesteps import LABELS, STABLE_DIFFUSION, available, table_named, timesteps

IMAGE_HASH, MASK_HASH = "Init image hash", "Mask hash"
ORIGIN_TABLES = ("linspace-lcm", "a1111", "sgm")
"""The tables that depend on the grid of the distillation."""

AUTOMATIC = "automatic"
"""The schedule that A1111 takes for a sampler by itself."""

WHOLE = 2
"""Times the model's own size, up to which a picture is painted as a whole, and the size of windows above it: in
windows of once that size each paints the whole prompt (docs/log.md, "Tiles")."""

IMAGE_STRENGTH = 0.6
"""Of a start picture without mask, when none is asked for; with a mask it is 1."""


class SamplingDefaults(Protocol):
    """How a model, or a LoRA, wants to be sampled (`fewstep.checkpoints.load.Sampling`)."""

    @property
    def sampler(self) -> str:
        """Its name."""
        ...

    @property
    def table(self) -> str:
        """The timestep table's name."""
        ...

    @property
    def steps(self) -> int:
        """Model evaluations."""
        ...

    @property
    def guidance(self) -> float:
        """1 is off."""
        ...

    @property
    def origin_steps(self) -> int:
        """The grid of the distillation."""
        ...


@dataclass(frozen=True)
class Defaults:
    """What a plan needs to know of a model. `embedded`: guidance is an input of its UNet, not a second prediction.

    `xl`: it is of SDXL's kind, for which "Align Your Steps" has a table of its own. `tiny` is what its tiny autoencoder
    is good for: "" where there is none, else "previews" or "pictures".
    """

    sampling: SamplingDefaults
    embedded: bool = False
    size_px: int = 512
    schedule: Schedule = STABLE_DIFFUSION
    xl: bool = False
    tiny: str = ""


@dataclass(frozen=True)
class Plan:
    """A request with nothing left open.

    `stages` are the prompts, without LoRA tags, at each step; size is (width, height) in pixels; image and mask have
    that size. hashes are of the pictures as they were given; notes are sentences for the user. `window` is the side in
    pixels of the windows it is painted in, 0 for the whole; `tiny`: by the tiny autoencoder; `draft`: a live frame,
    which the back end `both` predicts by the faster of its two; `hires` is the second
    pass, which begins with `upscaler`, `extra` what a picture records of it.
    """

    request: Request
    stages: tuple[Stage, ...]
    tags: tuple[LoraTag, ...]
    sampler: Sampler
    table: str
    origin_steps: int
    timesteps: tuple[float, ...]
    guidance: float
    embedded: bool
    seed: int
    size: tuple[int, int]
    strength: float
    image: Image.Image | None = None
    mask: Image.Image | None = None
    hashes: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    window: int = 0
    tiny: bool = False
    draft: bool = False
    hires: Plan | None = None
    upscaler: str = ""
    extra: Mapping[str, str] = field(default_factory=dict)

    @property
    def guided(self) -> bool:
        """Whether each step costs a second prediction, of the negative prompt."""
        return not self.embedded and any(stage.away(self.guidance) for stage in self.stages)

    def seed_of(self, index: int) -> int:
        """The seed of picture `index` of this plan, from 0; counting starts anew after the largest seed."""
        return (self.seed + index) % SEED_COUNT

    def infotext(self, index: int, facts: Mapping[str, str]) -> Infotext:
        """The settings that picture `index` records; `facts` are the model's own (name, hash, LoRAs), "" if absent."""
        request = self.request
        settings = {
            "Steps": str(len(self.timesteps)),
            "Sampler": self.sampler.label,
            "Schedule type": LABELS.get(self.table, ""),
            "CFG scale": "" if self.embedded else number_text(self.guidance),
            "Seed": str(self.seed_of(index)),
            "Size": "{}x{}".format(*self.size),
            "Model hash": facts.get("Model hash", ""),
            "Model": facts.get("Model", ""),
            "Denoising strength": number_text(self.strength) if self.image else "",
            "Clip skip": str(request.clip_skip) if request.clip_skip != 1 else "",
            "Emphasis": request.emphasis.capitalize() if request.emphasis != "original" else "",
            "ENSD": str(request.ensd) if request.ensd and self.sampler.noisy else "",
            IMAGE_HASH: self.hashes.get(IMAGE_HASH, ""),
            "RNG": request.rng.upper(),
            MASK_HASH: self.hashes.get(MASK_HASH, ""),
            "Timestep table": "" if self.table in LABELS else self.table,
            "LCM origin steps": str(self.origin_steps) if self.table in ORIGIN_TABLES else "",
            "Guidance embedding": number_text(self.guidance) if self.embedded else "",
            **_vae_types(self),
            "Tile": "" if request.tile is None else str(request.tile),
            **self.extra,
        }
        settings = {key: value for key, value in (settings | dict(facts)).items() if value}
        return Infotext(request.prompt, request.negative_prompt, settings)


@dataclass(frozen=True)
class Start:
    """A start that is not the request's own: its (width, height) in pixels, a strength, and steps done before.

    `fewer`: nobody asked for this many steps, so there are fewer where the strength has fewer.
    """

    size: tuple[int, int]
    strength: float | None = None
    done: int = 0
    fewer: bool = False


def plan_of(request: Request, defaults: Defaults, start: Start | None = None) -> Plan:
    """Fills in what the request leaves open, and opens its pictures. `start`: that of a second pass.

    Raises:
        RequestError: a value is out of range, or contradicts another.
        ImageError: a picture cannot be read.
    """
    request = request.validated()
    words, tags = split_lora_tags(request.prompt)
    sampling, strength = defaults.sampling, (start and start.strength) or _strength(request)
    sampler, table = _sampler(request, defaults)
    image, mask = _pictures(request)
    size = start.size if start else _size(request, image, defaults.size_px)
    times = _times(request, defaults, sampler, table, strength, fewer=bool(start and start.fewer))
    guidance = float(sampling.guidance if request.guidance is None else request.guidance)
    found = stages(words, request.negative_prompt, len(times), done=start.done if start else 0)
    return Plan(
        request=request,
        stages=found,
        tags=tags,
        sampler=sampler,
        table=table,
        origin_steps=sampling.origin_steps,
        timesteps=times,
        guidance=guidance,
        embedded=defaults.embedded,
        seed=secrets.randbelow(SEED_COUNT) if request.seed is None else request.seed,
        size=size,
        strength=strength,
        image=None if image is None else fit(image, size),
        mask=None if image is None or mask is None else fit_mask(mask, image.size, size),
        hashes=_hashes(image, mask),
        notes=(
            *_notes(request, found, guidance, defaults.embedded),
            *_noise_note(request, sampler, times),
            *_tiny_note(request, defaults),
        ),
        tiny=_is_tiny(request, defaults),
        window=_window(request.tile, size, defaults.size_px, known=strength < 1),
    )


def _times(
    request: Request, defaults: Defaults, sampler: Sampler, table: str, strength: float, *, fewer: bool
) -> tuple[float, ...]:
    origin_steps = defaults.sampling.origin_steps
    among: Any = {"strength": strength, "schedule": defaults.schedule, "origin_steps": origin_steps}
    steps = defaults.sampling.steps if request.steps is None else request.steps
    steps = min(steps, available(table, **among)) if fewer else steps
    return timesteps(table, steps, **among, discard=sampler.discard)


def _sampler(request: Request, defaults: Defaults) -> tuple[Sampler, str]:
    """The sampler, and the timestep table: the one asked for, else the model's own for its own sampler."""
    own = sampler_named(defaults.sampling.sampler)
    sampler = own if request.sampler is None else sampler_named(request.sampler)
    table = request.schedule or (defaults.sampling.table if sampler == own else sampler.table)
    if table.lower() == AUTOMATIC:
        plain = sampler == SAMPLERS[sampler.name]
        table = (plain and sampler.automatic) or sampler.table
    table = table_named(table)
    return sampler, f"{table}_xl" if table == "align_your_steps" and defaults.xl else table


def _hashes(image: Image.Image | None, mask: Image.Image | None) -> dict[str, str]:
    given = {IMAGE_HASH: image, MASK_HASH: mask}
    return {key: content_hash(picture) for key, picture in given.items() if picture is not None}


def _pictures(request: Request) -> tuple[Image.Image | None, Image.Image | None]:
    image = None if request.image is None else open_image(request.image)
    return image, None if request.mask is None else open_mask(request.mask)


def _size(request: Request, image: Image.Image | None, size_px: int) -> tuple[int, int]:
    width, height = (size_px, size_px) if image is None else default_size(image)
    return request.width or width, request.height or height


def _window(tile: int | None, size: tuple[int, int], size_px: int, *, known: bool) -> int:
    """The windows asked for; by itself only above WHOLE times the model's own size, and only of a known picture: from
    noise alone every window would paint the whole prompt.
    """
    if tile is None:
        tile = WHOLE * size_px if known and size[0] * size[1] > (WHOLE * size_px) ** 2 else 0
    return tile if tile and max(size) > tile else 0


def _strength(request: Request) -> float:
    if request.image is None:
        return 1.0
    if request.strength is not None:
        return request.strength
    return IMAGE_STRENGTH if request.mask is None else 1.0


def _noise_note(request: Request, sampler: Sampler, times: Sequence[float]) -> tuple[str, ...]:
    if len(times) in (few := sampler.noise_at):
        return (f"{sampler.label} paints noise at {few[0]} to {few[-1]} steps. Use 10 or more, or another sampler.",)
    if request.image is None and times[0] <= 1:
        return (
            "With this schedule 1 step begins at timestep 1, and paints noise. Use 3 or more, or another schedule.",
        )
    return ()


def _vae_types(plan: Plan) -> dict[str, str]:
    """A1111's keys and words for the tiny autoencoder; the full one is named where it was asked for."""
    if not plan.tiny:
        return {"VAE Decoder": "Full" if plan.request.autoencoder == "full" else ""}
    return {"VAE Encoder": "TAESD" if plan.image else "", "VAE Decoder": "TAESD"}


def _is_tiny(request: Request, defaults: Defaults) -> bool:
    if request.autoencoder == "auto":
        return defaults.tiny == "pictures"
    return request.autoencoder == "tiny" and bool(defaults.tiny)


def _tiny_note(request: Request, defaults: Defaults) -> tuple[str, ...]:
    if request.autoencoder != "tiny" or defaults.tiny:
        return ()
    return ("This model has no tiny autoencoder, so the full one is used. Give one (TAESD) as --tiny-vae.",)


def _notes(request: Request, found: tuple[Stage, ...], guidance: float, embedded: bool) -> tuple[str, ...]:
    if not request.negative_prompt:
        return ()
    if embedded:
        return ("The negative prompt has no effect: this model takes its guidance as an input.",)
    if not any(stage.away(guidance) for stage in found):
        return ("The negative prompt has no effect at guidance 1. Use a guidance above 1, such as 1.5.",)
    return ()
