"""What can be asked of a pipeline: one frozen dataclass, from which every door is made.

The Python signature, the command line, the HTTP schemas and the documentation all read these fields: their help
texts, their limits and their defaults stand here and nowhere else. Nothing here imports torch.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
import operator
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from fewstep.errors import RequestError
from fewstep.prompt.emphasis import MODES

if TYPE_CHECKING:
    from PIL import Image

Kind = Literal["text", "whole", "number", "picture", "name"]
PROMPT_LIMIT = 10_000
SEED_COUNT = 2**32
TILE_LEAST = 64


@dataclasses.dataclass(frozen=True)
class Spec:
    """What is known about one field beside its name and default."""

    kind: Kind
    help: str
    low: float | None = None
    high: float | None = None
    above: float | None = None
    multiple: int = 1
    hint: str = ""
    flags: tuple[str, ...] = ()
    choices: tuple[str, ...] = ()

    def limits(self) -> str:
        """The allowed values in words, "" where there is no limit.

        >>> Spec("number", "", above=0, high=1).limits()
        'above 0 and up to 1'
        >>> Spec("whole", "", low=64, high=2048, multiple=8).limits()
        'from 64 to 2048 in multiples of 8'
        """
        if self.high is None:
            return ", ".join(self.choices)
        start = f"above {self.above:g} and up to" if self.above is not None else f"from {self.low:.10g} to"
        return f"{start} {self.high:.10g}" + (f" in multiples of {self.multiple}" if self.multiple > 1 else "")


def _field(spec: Spec, default: Any = dataclasses.MISSING) -> Any:
    return dataclasses.field(default=default, metadata={"spec": spec})


_SIDE = {"low": 64, "high": 2048, "multiple": 8, "hint": "512 is Stable Diffusion 1.5's own size."}
_LARGE: dict[str, Any] = {"low": 64, "high": 8192, "multiple": 8}
_SCALE = "1 keeps the size, 2 doubles it."
_TILE = "side in pixels of the windows that large pictures are painted and decoded in; 0 never; chosen when not given"


@dataclasses.dataclass(frozen=True)
class Request:
    """One order for pictures. `None` means: the model's own default.

    With neither `image` nor `mask` it is text to image; with `image`, image to image; with both, inpainting.
    """

    prompt: str = _field(
        Spec(
            "text",
            "what to paint; (word:1.3), [a:b:0.5], AND, BREAK and <lora:name:weight> as in A1111",
            high=PROMPT_LIMIT,
        )
    )
    negative_prompt: str = _field(
        Spec("text", "what to keep away from; has an effect only with guidance above 1", high=PROMPT_LIMIT), ""
    )
    steps: int | None = _field(
        Spec(
            "whole",
            "the same number at any strength; one model evaluation each, two with Heun, DPM2, 2S a, SDE and Restart",
            1,
            1000,
            hint="Few-step models: 1 to 8.",
        ),
        None,
    )
    guidance: float | None = _field(
        Spec("number", "how strictly to follow the prompt; 1 is off", 0, 30, hint="Few-step models like 1 to 2."), None
    )
    seed: int | None = _field(
        Spec("whole", "number of the noise; image i of a batch takes seed + i; random if not given", 0, SEED_COUNT - 1),
        None,
    )
    width: int | None = _field(Spec("whole", "width in pixels", **_SIDE), None)
    height: int | None = _field(Spec("whole", "height in pixels", **_SIDE), None)
    count: int = _field(Spec("whole", "how many pictures", 1, 64), 1)
    image: str | Path | Image.Image | None = _field(Spec("picture", "picture to start from (image to image)"), None)
    mask: str | Path | Image.Image | None = _field(
        Spec("picture", "black and white picture, white where `image` is to be repainted"), None
    )
    strength: float | None = _field(
        Spec(
            "number",
            "how much of `image` to replace: 1 forgets it; 0.6 when not given, 1 with a mask",
            above=0,
            high=1,
            hint="Low values keep the picture, 1 forgets it.",
        ),
        None,
    )
    sampler: str | None = _field(Spec("name", "name of the sampler; the model's own when not given"), None)
    schedule: str | None = _field(
        Spec(
            "name",
            "how the timesteps are spread; the sampler's own when not given, A1111's for it with automatic",
            flags=("--timesteps",),
        ),
        None,
    )
    rng: str = _field(
        Spec("name", "whose noise a seed means: torch's on a CPU, or on an NVIDIA GPU (NV)", choices=("cpu", "nv")),
        "cpu",
    )
    ensd: int = _field(
        Spec("whole", "added to the seed for the noise after the first (eta noise seed delta)", 0, SEED_COUNT - 1), 0
    )
    emphasis: str = _field(
        Spec("name", "what (words:1.3) do: A1111's way; multiply only; nothing; not even read", choices=MODES),
        "original",
    )
    clip_skip: int = _field(Spec("whole", "which layer of the text encoder to read, counted from the last", 1, 12), 1)
    autoencoder: str = _field(
        Spec(
            "name",
            "what turns latents into pictures: the full one, the tiny one, or the smaller that is good enough",
            choices=("auto", "full", "tiny"),
        ),
        "auto",
    )
    hires_scale: float | None = _field(
        Spec("number", "second pass: paint the finished picture again at so many times its size", 1, 8, hint=_SCALE),
        None,
    )
    hires_width: int | None = _field(Spec("whole", "second pass: the width, in place of hires_scale", **_LARGE), None)
    hires_height: int | None = _field(Spec("whole", "second pass: the height, in place of hires_scale", **_LARGE), None)
    hires_upscaler: str | None = _field(
        Spec("name", "second pass: Lanczos, Latent and its kin, or an upscaling model's file; Lanczos if not given"),
        None,
    )
    hires_strength: float | None = _field(
        Spec(
            "number",
            "second pass: how much to paint anew; 0.4 when not given, 0.06 by the embedded model",
            above=0,
            high=1,
        ),
        None,
    )
    hires_steps: int | None = _field(
        Spec("whole", "second pass: model evaluations at any strength; as in the first when not given", 1, 1000), None
    )
    hires_guidance: float | None = _field(Spec("number", "second pass: the guidance, if another", 0, 30), None)
    hires_sampler: str | None = _field(Spec("name", "second pass: the sampler, if another"), None)
    hires_schedule: str | None = _field(Spec("name", "second pass: how its timesteps are spread, if otherwise"), None)
    hires_prompt: str = _field(Spec("text", "second pass: the prompt, if another", high=PROMPT_LIMIT), "")
    hires_negative_prompt: str = _field(
        Spec("text", "second pass: the negative prompt, if another", high=PROMPT_LIMIT), ""
    )
    tile: int | None = _field(
        Spec(
            "whole", _TILE, 0, 4096, multiple=8, hint="0 is never; usual is twice the model's own size, such as 1024."
        ),
        None,
    )

    def validated(self) -> Request:
        """This request with plain numbers, or a `RequestError`: which field, what was found, what is allowed."""
        plain = {name: _checked(name, spec, getattr(self, name)) for name, spec in SPECS.items()}
        request = dataclasses.replace(self, **plain)
        if request.mask is not None and request.image is None:
            raise RequestError("A mask was given without an image. Give the picture to repaint as image.")
        if request.strength is not None and request.image is None:
            raise RequestError(
                f"strength {request.strength:g} was given without an image. Give an image, or leave strength out."
            )
        request._check_second_pass()
        return request

    def _check_second_pass(self) -> None:
        given = [name for name in SPECS if name.startswith("hires_") and getattr(self, name) not in (None, "")]
        if self.tile is not None and 0 < self.tile < TILE_LEAST:
            raise RequestError(f"tile is {self.tile}, but windows have at least {TILE_LEAST} pixels. 0 is never.")
        if given and not self.hires:
            raise RequestError(f"{given[0]} was given without a second pass. Give hires_scale too, such as 2.")
        if self.hires_scale and (self.hires_width or self.hires_height):
            raise RequestError("hires_scale and a size were both given for the second pass. Give one of them.")
        if self.hires and self.mask is not None:
            raise RequestError(
                "A mask and a second pass were both given, but the second pass repaints everything. Inpaint first, "
                "then enlarge the result as image."
            )

    @property
    def hires(self) -> bool:
        """Whether a second pass is asked for."""
        return bool(self.hires_scale or self.hires_width or self.hires_height)

    def replaced(self, **fields: Any) -> Request:
        """A copy with some fields changed; unknown names are a `RequestError`."""
        _check_names(fields)
        return dataclasses.replace(self, **fields)


SPECS: dict[str, Spec] = {field.name: field.metadata["spec"] for field in dataclasses.fields(Request)}
DEFAULTS: dict[str, Any] = {name: getattr(Request, name) for name in SPECS if hasattr(Request, name)}


def request_of(fields: Mapping[str, Any]) -> Request:
    """A validated request from names and values, as a program or a JSON document gives them.

    Raises:
        RequestError: an unknown name, no prompt, or a value that is not allowed.
    """
    _check_names(fields)
    if "prompt" not in fields:
        raise RequestError('No prompt was given. Give one; the empty prompt "" is allowed.')
    return Request(**fields).validated()


def checked(name: str, value: Any, spec: Spec | None = None) -> Any:
    """One field's value as `Request.validated` would have it, whatever the other fields say; `spec`: of a parameter
    that is not a request's.

    >>> checked("steps", 4), checked("rng", "NV")
    (4, 'nv')

    Raises:
        RequestError: the value is not allowed.
    """
    return _checked(name, spec or SPECS[name], value)


def lora_choice(text: str) -> tuple[str, float]:
    """`ink.safetensors:0.6` as (path, weight); without a weight it is 1.

    >>> lora_choice("ink.safetensors:0.6"), lora_choice("ink.safetensors")
    (('ink.safetensors', 0.6), ('ink.safetensors', 1.0))
    """
    path, colon, weight = text.rpartition(":")
    try:
        return (path, float(weight)) if colon else (text, 1.0)
    except ValueError:
        return text, 1.0


def schema() -> dict[str, Any]:
    """The request as a JSON schema, for HTTP doors and documentation; pictures are left to each door."""
    shown = {name: spec for name, spec in SPECS.items() if spec.kind != "picture"}
    properties = {name: entry(spec, DEFAULTS.get(name)) for name, spec in shown.items()}
    return {"type": "object", "properties": properties, "required": ["prompt"], "additionalProperties": False}


def entry(spec: Spec, default: Any) -> dict[str, Any]:
    """One parameter's entry in a JSON schema; a default of None is left out."""
    kinds = {"text": "string", "name": "string", "whole": "integer", "number": "number"}
    found: dict[str, Any] = {"type": kinds[spec.kind], "description": spec.help}
    ends = ("maxLength",) * 2 if spec.kind == "text" else ("minimum", "maximum")
    bounds = {ends[0]: spec.low, ends[1]: spec.high, "exclusiveMinimum": spec.above, "default": default}
    found |= {key: value for key, value in bounds.items() if value is not None}
    found |= {"enum": [*spec.choices]} if spec.choices else {}
    return found | ({"multipleOf": spec.multiple} if spec.multiple > 1 else {})


def _check_names(fields: Mapping[str, Any]) -> None:
    for name in fields:
        if name not in SPECS:
            near = difflib.get_close_matches(name, SPECS, n=1)
            meant = f" Did you mean {near[0]}?" if near else f" Known are: {', '.join(SPECS)}."
            raise RequestError(f"There is no parameter {name!r}.{meant}")


def _checked(name: str, spec: Spec, value: Any) -> Any:
    if value is None and DEFAULTS.get(name, "") is None:
        return None
    if spec.kind == "picture":
        return value
    if spec.kind in ("text", "name"):
        return _checked_text(name, spec, value)
    return _checked_number(name, spec, value)


def _checked_text(name: str, spec: Spec, value: Any) -> str:
    if not isinstance(value, str):
        raise RequestError(f"{name} is {value!r}, which is not text. Give a string.")
    if spec.high is not None and len(value) > spec.high:
        raise RequestError(f"{name} has {len(value)} characters, but at most {spec.high} are allowed. Shorten it.")
    if "\0" in value or any("\ud800" <= letter <= "\udfff" for letter in value):
        raise RequestError(f"{name} has characters that are not text (zero, half a pair). Give plain Unicode text.")
    if not spec.choices:
        return value
    if value.lower() not in spec.choices:
        raise RequestError(f"{name} is {value!r}, which is not known. Choose one of: {spec.limits()}.")
    return value.lower()


def _checked_number(name: str, spec: Spec, value: Any) -> int | float:
    try:
        number = operator.index(value) if spec.kind == "whole" else float(value)
        if isinstance(value, (bool, str)):
            raise TypeError
    except (TypeError, ValueError):
        what = "a whole number" if spec.kind == "whole" else "a number"
        raise RequestError(f"{name} is {value!r}, which is not {what}. Give one {spec.limits()}.") from None
    low = -math.inf if spec.low is None else spec.low
    high = math.inf if spec.high is None else spec.high
    inside = low <= number <= high and (spec.above is None or number > spec.above)
    if not inside or (spec.multiple > 1 and number % spec.multiple):
        raise RequestError(f"{name} is {number}, but it must be {spec.limits()}. {spec.hint}".rstrip())
    return number
