"""The second pass carried out: what it is asked, how the first one's pictures are enlarged, and large ones in tiles.

It is image to image of the enlarged first result: the same plan, runner and loop, with its own noise, drawn from the
same seeds at the larger size.

Shapes: B pictures, C 4 latent channels, H and W latent height and width (pixels / 8).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from PIL import Image

from fewstep.errors import RequestError
from fewstep.hires import DEFAULT_STRENGTH, DEFAULT_UPSCALER, LATENT, OWN_STRENGTHS, target_size, upscaler_named
from fewstep.image import CELL_PX, fit
from fewstep.models.preview import COLOURS, latent_colours
from fewstep.plan import Plan, Start, number_text
from fewstep.request import Request
from fewstep.runners import Runner
from fewstep.sampling.arrays import constant, is_torch
from fewstep.sampling.resize import cover
from fewstep.sampling.sampler import Denoiser
from fewstep.sampling.tiles import blended, tiled
from fewstep.sampling.timesteps import LABELS
from fewstep.upscale import open_upscaler

if TYPE_CHECKING:
    from fewstep.models.family import Family

Array: TypeAlias = Any
VAE_TILE, VAE_OVERLAP = 96, 16
"""In latents: 768 px. Chosen by measurement: docs/log.md, "Tiles"."""

VAE_WHOLE = 128 * 128
"""Latents, 1024 x 1024 px, up to which a picture is decoded whole."""


def second_request(first: Plan, *, same: bool) -> Request:
    """What the second pass is asked. `same`: its model wants to be sampled as the first one, so it inherits that."""
    asked = first.request
    own_schedule = None if asked.hires_sampler else first.table
    return Request(
        prompt=asked.hires_prompt or asked.prompt,
        negative_prompt=asked.hires_negative_prompt or asked.negative_prompt,
        steps=asked.hires_steps or (len(first.timesteps) if same else None),
        guidance=first.guidance if same and asked.hires_guidance is None else asked.hires_guidance,
        sampler=asked.hires_sampler or (first.sampler.name if same else None),
        schedule=asked.hires_schedule or (own_schedule if same else None),
        seed=first.seed,
        count=asked.count,
        rng=asked.rng,
        ensd=asked.ensd,
        clip_skip=asked.clip_skip,
        emphasis=asked.emphasis,
        tile=asked.tile,
        autoencoder=asked.autoencoder,
    )


def second_start(first: Plan, family: Family) -> Start:
    """The size, the strength and the steps of the second pass; raises RequestError for a size above the limit."""
    asked = first.request
    size = target_size(first.size, asked.hires_scale, asked.hires_width, asked.hires_height)
    strength = asked.hires_strength or OWN_STRENGTHS.get(family.name, DEFAULT_STRENGTH)
    return Start(size, strength, len(first.timesteps), fewer=asked.hires_steps is None)


def other_facts(first: Mapping[str, str], second: Mapping[str, str]) -> dict[str, str]:
    """What a picture records of another pipeline that painted its second pass."""
    checkpoint = f"{second['Model']} [{second['Model hash']}]"
    same = all(first[key] == second[key] for key in ("Model", "Model hash"))
    return {"Hires checkpoint": "" if same else checkpoint, "Hires loras": second["Loras"] or "none"}


def with_second(
    first: Plan, second: Plan, families: tuple[Family, Family], *, same: bool, facts: Mapping[str, str]
) -> Plan:
    """The plan of both passes; `facts` are of the pipeline that paints the second, where it is another.

    Raises:
        RequestError, CheckpointError: the upscaler is not there, or cannot serve these two models.
    """
    upscaler = upscaler_named(first.request.hires_upscaler or DEFAULT_UPSCALER)
    if upscaler not in LATENT:
        open_upscaler(upscaler)
    elif _latents(families[0]) != _latents(families[1]):
        raise RequestError(
            f"The upscaler {upscaler} keeps the latents, but those of {families[0].label} mean nothing to "
            f"{families[1].label}. Use Lanczos."
        )
    extra = {key: value for key, value in (_settings(first, second, upscaler, same) | dict(facts)).items() if value}
    notes = (*first.notes, *(note for note in second.notes if note not in first.notes))
    return replace(first, hires=replace(second, upscaler=upscaler), extra=extra, notes=notes)


def _latents(family: Family) -> str:
    return "xl" if family.text_encoders > 1 else "pictogram" if family.name == "pictogram" else "sd"


def _settings(first: Plan, second: Plan, upscaler: str, same: bool) -> dict[str, str]:
    """A1111's keys; what the second pass takes over from the first is left out, so that its programs read it so."""
    asked, by_size = first.request, first.request.hires_scale is None
    other_table = not same or second.table != first.table or second.sampler != first.sampler
    table = LABELS.get(second.table, "") if other_table else ""
    return {
        "Denoising strength": number_text(first.strength if first.image else second.strength),
        "Hires denoising strength": number_text(second.strength) if first.image else "",
        "Hires upscale": "" if asked.hires_scale is None else number_text(asked.hires_scale),
        "Hires resize": f"{asked.hires_width or 0}x{asked.hires_height or 0}" if by_size else "",
        "Hires steps": str(len(second.timesteps)),
        "Hires upscaler": upscaler,
        "Hires sampler": "" if same and second.sampler == first.sampler else second.sampler.label,
        "Hires schedule type": table,
        "Hires timestep table": second.table if other_table and not table else "",
        "Hires CFG Scale": "" if same and second.guidance == first.guidance else number_text(second.guidance),
        "Hires prompt": asked.hires_prompt,
        "Hires negative prompt": asked.hires_negative_prompt,
    }


def enlarge(runners: tuple[Runner, Runner], plan: Plan, z_BCHW: Array) -> Array:
    """The first pass's latents as the second one's start: at its size, in its model's latents."""
    first, second = runners
    assert plan.hires is not None
    (width, height), upscaler = plan.hires.size, plan.hires.upscaler
    if upscaler in LATENT:
        z_BCHW = cover(z_BCHW, (height // CELL_PX, width // CELL_PX), LATENT[upscaler])
        return z_BCHW.cpu().numpy() if is_torch(z_BCHW) else z_BCHW
    enlarging = open_upscaler(upscaler)
    pixels_BHWC = decode(first, z_BCHW, plan.request.tile, tiny=plan.tiny)
    pictures = [Image.fromarray(pixels_HWC) for pixels_HWC in pixels_BHWC]
    large = [np.asarray(fit(enlarging(picture, (width, height)), (width, height))) for picture in pictures]
    return encode(second, np.stack(large), plan.request.tile, tiny=plan.hires.tiny)


def placed(known_BCHW: Array, *, like: Array) -> Array:
    """Latents of any back end as an array of this one's kind, on its device."""
    return known_BCHW if type(known_BCHW) is type(like) else constant(known_BCHW, like=like)


def windowed(denoiser: Denoiser, plan: Plan, at_once: int) -> Denoiser:
    """The same in windows of the plan's size, which overlap by half; itself where the plan has none."""
    if not plan.window:
        return denoiser
    size = plan.window // CELL_PX
    return tiled(denoiser, size=size, overlap=size // 2, batch=at_once)


def decode(runner: Runner, z_BCHW: Array, tile: int | None = None, *, tiny: bool = False) -> np.ndarray:
    """Latents to pictures, uint8 (B, height, width, 3); large ones in tiles; `tiny`: by the tiny autoencoder."""
    size = vae_tile(z_BCHW.shape[-2] * z_BCHW.shape[-1], tile)
    if not size:
        return runner.decode(z_BCHW, tiny=tiny)

    def run(part_BCHW: Array) -> np.ndarray:
        return runner.decode(part_BCHW, tiny=tiny).transpose(0, 3, 1, 2)

    pictures = []
    for index in range(len(z_BCHW)):
        image_BCHW = _blended(run, z_BCHW[index : index + 1], size, scale=CELL_PX)
        pictures.append(np.rint(image_BCHW).astype(np.uint8).transpose(0, 2, 3, 1))
    return np.concatenate(pictures)


def preview(runner: Runner, z_BCHW: Array) -> np.ndarray:
    """Latents as pictures, roughly and at little cost: by the tiny autoencoder, else as colours, else whole."""
    model = runner.model
    if model.tiny or model.family.name not in COLOURS:
        return decode(runner, z_BCHW, tiny=bool(model.tiny))
    return latent_colours(model.family, z_BCHW.cpu().numpy() if is_torch(z_BCHW) else z_BCHW)


def encode(runner: Runner, pixels_BHWC: np.ndarray, tile: int | None = None, *, tiny: bool = False) -> Array:
    """Pictures to latents; large ones in tiles; `tiny`: by the tiny autoencoder."""
    size = vae_tile(pixels_BHWC.shape[1] * pixels_BHWC.shape[2] // CELL_PX**2, tile)
    if not size:
        return runner.encode(pixels_BHWC, tiny=tiny)

    def run(part_BCHW: np.ndarray) -> Array:
        return runner.encode(part_BCHW.transpose(0, 2, 3, 1), tiny=tiny)

    return _blended(run, pixels_BHWC.transpose(0, 3, 1, 2), size, cell=CELL_PX)


def vae_tile(cells: int, tile: int | None) -> int:
    """The side in latents of the tiles for a picture of so many; 0 for the whole.

    >>> vae_tile(128 * 128, None), vae_tile(192 * 128, None), vae_tile(192 * 128, 512), vae_tile(192 * 128, 0)
    (0, 96, 64, 0)
    """
    if tile is not None:
        return tile // CELL_PX
    return VAE_TILE if cells > VAE_WHOLE else 0


def _blended(run: Any, x_BCHW: Array, size: int, **how: int) -> Array:
    return blended(run, x_BCHW, size=size, overlap=min(VAE_OVERLAP, size // 2), **how)
