"""What a live session is asked: a request without pictures, and what only live painting has.

Every name here is a parameter of the live socket and of the page, whose form is made from `schema`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from PIL import Image

from fewstep import request
from fewstep.errors import RequestError
from fewstep.request import Request, Spec

ASKED = (
    "prompt",
    "negative_prompt",
    "steps",
    "guidance",
    "strength",
    "seed",
    "width",
    "height",
    "sampler",
    "schedule",
    "clip_skip",
    "autoencoder",
)
"""The fields of `Request` that a session may change."""

STEPS_LIMIT = 50
LORAS_LIMIT = 8
REFINED_STEPS = 8
"""Of an idle session's better picture, or twice the session's own where that is more."""

SPECS: dict[str, tuple[Spec, Any]] = {
    "blend": (Spec("whole", "painted frames over which a changed prompt takes the place of the old one", 0, 120), 0),
    "noise": (
        Spec("name", "the same noise for every frame, or a slow walk from seed to seed", choices=("fixed", "walk")),
        "fixed",
    ),
    "noise_speed": (Spec("number", "of the walk: the part of the way to the next seed that a frame goes", 0, 1), 0.05),
    "guidance_mode": (
        Spec(
            "name",
            "what guidance above 1 leads away from. full: the negative prompt, at twice the time. residual: the input "
            "picture, at no cost; the negative prompt is not used, and without a picture it is full",
            choices=("full", "residual"),
        ),
        "full",
    ),
}
"""Those of live painting alone that are plain values, with their defaults."""

OWN: dict[str, dict[str, Any]] = {
    **{name: request.entry(spec, default) for name, (spec, default) in SPECS.items()},
    "loras": {
        "type": "array",
        "maxItems": LORAS_LIMIT,
        "description": "LoRAs of the server's folder with their weights; as <lora:name:weight> in the prompt",
        "default": [],
        "items": {
            "type": "object",
            "properties": {"name": {"type": "string"}, "weight": {"type": "number", "minimum": -4, "maximum": 4}},
            "required": ["name", "weight"],
        },
    },
    "refine": {
        "type": "boolean",
        "description": "paint the last picture again with more steps when nothing else is to be done",
        "default": True,
    },
    "keep": {
        "type": "boolean",
        "description": "put refined pictures and snapshots into the server's history",
        "default": False,
    },
}


@dataclass(frozen=True)
class LiveRequest:
    """The parameters of one session at one revision."""

    request: Request
    loras: tuple[tuple[str, float], ...] = ()
    refine: bool = True
    keep: bool = False
    blend: int = SPECS["blend"][1]
    noise: str = SPECS["noise"][1]
    noise_speed: float = SPECS["noise_speed"][1]
    guidance_mode: str = SPECS["guidance_mode"][1]

    def patched(self, patch: Mapping[str, Any]) -> LiveRequest:
        """With some parameters changed; None means the model's own again.

        Raises RequestError for an unknown name, or a value that is not allowed; nothing is changed then.
        """
        unknown = [name for name in patch if name not in (*ASKED, *OWN)]
        if unknown:
            raise RequestError(
                f"A live session has no parameter {unknown[0]!r}. Known are: {', '.join((*ASKED, *OWN))}."
            )
        asked = {name: request.checked(name, patch[name]) for name in ASKED if name in patch}
        if (asked.get("steps") or 0) > STEPS_LIMIT:
            raise RequestError(f"steps is {asked['steps']}, but a live session takes at most {STEPS_LIMIT}.")
        own = {name: _own(name, patch[name]) for name in OWN if name in patch}
        return replace(self, request=self.request.replaced(**asked), **own)

    def of(self, picture: Image.Image | None, mask: Image.Image | None = None) -> Request:
        """The request for one frame; None: from the prompt alone."""
        tags = "".join(f" <lora:{name}:{weight:g}>" for name, weight in self.loras if weight)
        asked = self.request.replaced(prompt=self.request.prompt + tags)
        if picture is None:
            return asked.replaced(strength=None)
        return asked.replaced(image=picture, mask=mask)

    def refined(self, usual_steps: int) -> LiveRequest:
        """For the better picture of an idle session; `usual_steps` are the model's where none are asked for."""
        steps = min(STEPS_LIMIT, max(REFINED_STEPS, 2 * (self.request.steps or usual_steps)))
        return replace(self, request=self.request.replaced(steps=steps))

    def values(self) -> dict[str, Any]:
        """Every parameter by its name, as JSON has it."""
        asked = {name: getattr(self.request, name) for name in ASKED}
        return asked | {
            "loras": [{"name": name, "weight": weight} for name, weight in self.loras],
            "refine": self.refine,
            "keep": self.keep,
            **{name: getattr(self, name) for name in SPECS},
        }


def schema(*, history: bool = True) -> dict[str, Any]:
    """The parameters as a JSON schema, in the order of a form; `history`: whether there is one to keep pictures in."""
    asked = request.schema()["properties"]
    properties = {name: dict(asked[name]) for name in ASKED} | OWN
    if not history:
        del properties["keep"]
    properties["steps"]["maximum"] = STEPS_LIMIT
    return {"type": "object", "properties": properties, "additionalProperties": False}


def _own(name: str, value: Any) -> Any:
    if name in SPECS:
        return request.checked(name, value, SPECS[name][0])
    return _loras(value) if name == "loras" else _yes(name, value)


def _loras(value: Any) -> tuple[tuple[str, float], ...]:
    found = []
    for entry in value if isinstance(value, list) else [value]:
        name, weight = (entry.get("name"), entry.get("weight")) if isinstance(entry, dict) else (None, None)
        if not _is_name(name) or not _is_weight(weight):
            raise RequestError('loras is no list of LoRAs. Give entries such as {"name": "ink", "weight": 0.8}.')
        found.append((str(name), float(weight or 0)))
    if len(found) > LORAS_LIMIT:
        raise RequestError(f"There are {len(found)} LoRAs, but a live session takes at most {LORAS_LIMIT}.")
    return tuple(found)


def _is_name(name: object) -> bool:
    return isinstance(name, str) and bool(name) and not any(mark in name for mark in "<>:/\\")


def _is_weight(weight: object) -> bool:
    return isinstance(weight, (int, float)) and not isinstance(weight, bool) and math.isfinite(weight)


def _yes(name: str, value: Any) -> bool:
    if not isinstance(value, bool):
        raise RequestError(f"{name} is {value!r}. Give true or false.")
    return value
