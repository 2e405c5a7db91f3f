"""The second pass ("hires fix") in words: upscalers by name, sizes, and what a picture records of it.

The names are those of A1111 and Forge, whose pictures are read and which read ours. Nothing here imports torch.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from fewstep.errors import RequestError

SIDE_LIMIT_PX = 8192
"""Of a target, on each side."""

LATENT = {
    "Latent": "bilinear",
    "Latent (antialiased)": "bilinear-antialiased",
    "Latent (bicubic)": "bicubic",
    "Latent (bicubic antialiased)": "bicubic-antialiased",
    "Latent (nearest)": "nearest",
    "Latent (nearest-exact)": "nearest-exact",
}
"""Upscalers that stay among the latents -> their resize (`fewstep.sampling.resize`)."""

PIXEL = ("Lanczos", "Nearest", "None")
"""Upscalers of pictures; None resizes as Lanczos does, as in A1111."""

MODEL_SUFFIXES = (".onnx", ".safetensors")
DEFAULT_UPSCALER = "Lanczos"

DEFAULT_STRENGTH = 0.4
"""For a pixel upscaler. Those of latents leave a blur that wants more (A1111's default, for them, is 0.7)."""

OWN_STRENGTHS = {"pictogram": 0.06}
"""By family: the embedded model has seen one size only, and above this it composes anew (docs/log.md, "Hires")."""

SECOND_PASS = ("hires_scale", "hires_width", "hires_height")
"""The fields of `Request` that ask for a second pass; the other `hires_` fields say how."""

KEYS = (
    *("Hires upscale", "Hires resize", "Hires steps", "Hires upscaler", "Hires sampler", "Hires schedule type"),
    *("Hires timestep table", "Hires CFG Scale", "Hires prompt", "Hires negative prompt", "Hires checkpoint"),
    *("Hires loras", "Hires denoising strength"),
)
"""What a picture's settings say of its second pass."""

_ALIASES = {"latent (bilinear)": "Latent"}
_SIZE = re.compile(r"(\d+)x(\d+)")
_SAME = ("use same sampler", "use same scheduler", "use same checkpoint")
_NUMBERS: tuple[tuple[str, str, Callable[[str], float]], ...] = (
    ("hires_scale", "Hires upscale", float),
    ("hires_steps", "Hires steps", int),
    ("hires_guidance", "Hires CFG Scale", float),
)
_TEXTS = (
    ("hires_upscaler", "Hires upscaler"),
    ("hires_sampler", "Hires sampler"),
    ("hires_schedule", "Hires schedule type"),
    ("hires_schedule", "Hires timestep table"),
    ("hires_prompt", "Hires prompt"),
    ("hires_negative_prompt", "Hires negative prompt"),
)


def upscaler_named(name: str) -> str:
    """The upscaler's own name for that in any case; a path of a model (.onnx, .safetensors) as it is.

    >>> upscaler_named("latent (bilinear)"), upscaler_named("lanczos"), upscaler_named("x4.onnx")
    ('Latent', 'Lanczos', 'x4.onnx')

    Raises:
        RequestError: there is no such upscaler.
    """
    wanted = name.strip().lower()
    known = {label.lower(): label for label in (*LATENT, *PIXEL)} | _ALIASES
    if wanted in known:
        return known[wanted]
    if Path(wanted).suffix in (*MODEL_SUFFIXES, ".pth", ".pt"):
        return name
    raise RequestError(
        f"There is no upscaler '{name}'. Choose one of: {', '.join((*LATENT, *PIXEL))}; or give the file of a model "
        f"({' or '.join(MODEL_SUFFIXES)})."
    )


def target_size(size: tuple[int, int], scale: float | None, width: int | None, height: int | None) -> tuple[int, int]:
    """(width, height) after upscaling `size` by `scale`, in multiples of 8; or the one given, whose missing side
    follows from the picture's proportions.

    >>> target_size((512, 768), 1.5, None, None), target_size((512, 768), None, 1024, None)
    ((768, 1152), (1024, 1536))

    Raises:
        RequestError: a side would be above the limit.
    """
    from fewstep.image import CELL_PX, round_to_cell

    grow = scale or max((width or 0) / size[0], (height or 0) / size[1])
    wide, high = (given or round_to_cell(side * grow) for given, side in zip((width, height), size, strict=True))
    if max(wide, high) > SIDE_LIMIT_PX:
        raise RequestError(
            f"{size[0]}x{size[1]} pixels enlarged to {wide}x{high} are more than {SIDE_LIMIT_PX} on a side. "
            "Use a smaller scale."
        )
    return max(CELL_PX, wide), max(CELL_PX, high)


def hires_fields(settings: Mapping[str, str]) -> dict[str, Any]:
    """A picture's settings of the second pass as fields of `Request`; none where it had no second pass.

    Raises:
        RequestError: a setting is not a number.
    """
    if "Hires upscale" not in settings and "Hires resize" not in settings:
        return {}
    there = ((name, key, kind) for name, key, kind in _NUMBERS if key in settings)
    fields: dict[str, Any] = {name: _number(key, settings[key], kind) for name, key, kind in there}
    texts = ((name, settings.get(key, "")) for name, key in _TEXTS)
    fields |= {name: text for name, text in texts if text and text.lower() not in _SAME}
    if match := _SIZE.fullmatch(settings.get("Hires resize", "")):
        sides = {"hires_width": int(match[1]), "hires_height": int(match[2])}
        fields = {name: value for name, value in fields.items() if name != "hires_scale"}
        fields |= {name: side for name, side in sides.items() if side}
    strength = "Hires denoising strength" if "Hires denoising strength" in settings else "Denoising strength"
    if strength in settings:
        fields["hires_strength"] = _number(strength, settings[strength], float)
    return fields


def _number(key: str, value: str, kind: Callable[[str], float]) -> float:
    try:
        return kind(value)
    except ValueError:
        raise RequestError(f"The picture's settings say {key}: {value}, which is not a number.") from None
