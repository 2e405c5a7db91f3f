"""A1111's orders and answers as schemas, for the description of the interface; orders are still taken leniently."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, Field

from fewstep.hires import PIXEL
from fewstep.request import schema
from fewstep.serve.a1111_options import POLICIES
from fewstep.serve.a1111_orders import NAMES, SECOND

Values = dict[str, Any]
_PICTURE = "a PNG, JPEG or WebP in base64, with or without a data: prefix"
_OTHERS: Values = {
    "hr_upscaler": {"type": "string", "description": "second pass: one of /upscalers or /latent-upscale-modes"},
    "sampler_name": {"type": "string", "description": "A1111's name, joined ones too; also as sampler_index"},
    "scheduler": {"type": "string", "description": "A1111's name of the schedule type", "default": "automatic"},
    "batch_size": {"type": "integer", "description": "pictures; n_iter times as many", "default": 1},
    "n_iter": {"type": "integer", "default": 1},
    "enable_hr": {"type": "boolean", "description": "whether there is a second pass", "default": False},
    "override_settings": {"type": "object", "description": "options for this order alone"},
    "override_settings_restore_afterwards": {"type": "boolean", "default": True},
    "send_images": {"type": "boolean", "description": "whether the answer holds the pictures", "default": True},
    "force_task_id": {"type": "string", "description": "the order's name for progress and interrupt", "maxLength": 100},
}
_STARTED: Values = {
    "init_images": {"type": "array", "items": {"type": "string"}, "description": _PICTURE},
    "denoising_strength": {"type": "number", "description": "how much to replace", "minimum": 0, "maximum": 1},
    "mask": {"type": "string", "description": f"white is repainted; {_PICTURE}"},
    "inpainting_mask_invert": {"type": "integer", "enum": [0, 1]},
}

BATCH_LIMIT = 16
"""Pictures that are enlarged at once."""

IMAGE: Values = {"image": {"type": "string", "description": _PICTURE}}
IMAGES: Values = {
    "imageList": {
        "type": "array",
        "minItems": 1,
        "maxItems": BATCH_LIMIT,
        "items": {
            "type": "object",
            "properties": {"data": {"type": "string", "description": _PICTURE}, "name": {"type": "string"}},
            "required": ["data"],
        },
    }
}
_UPSCALER: Values = {"type": "string", "enum": [*PIXEL], "default": "None"}
_SHARE: Values = {"type": "number", "minimum": 0, "maximum": 1, "default": 0}
_ENLARGING: Values = {
    "resize_mode": {"type": "integer", "enum": [0, 1], "description": "0: so many times its size; 1: to a size"},
    "upscaling_resize": {"type": "number", "exclusiveMinimum": 0, "default": 2},
    "upscaling_resize_w": {"type": "integer", "minimum": 1, "default": 512},
    "upscaling_resize_h": {"type": "integer", "minimum": 1, "default": 512},
    "upscaling_crop": {"type": "boolean", "description": "cut to the size's proportions", "default": True},
    "upscaler_1": _UPSCALER,
    "upscaler_2": _UPSCALER,
    "extras_upscaler_2_visibility": {**_SHARE, "description": "how much of the second upscaler's picture"},
}


class Answer(BaseModel):
    """What an order is answered."""

    images: list[str] = Field(description="PNGs in base64, with their settings")
    parameters: Values = Field(description="the order, without its pictures")
    info: str = Field(description="JSON: prompts, seeds, sizes, model, and what was changed")


class Enlarged(BaseModel):
    """A picture in another size."""

    image: str = Field(description="a PNG in base64")
    html_info: str


class AllEnlarged(BaseModel):
    """Pictures in another size."""

    images: list[str] = Field(description="PNGs in base64")
    html_info: str


class Memory(BaseModel):
    """Bytes that are free, and that are taken."""

    ram: dict[str, int] = Field(description="of this machine: free, used by this program, total")
    cuda: Values = Field(description="of the GPU")


class Info(BaseModel):
    """What a picture says of itself."""

    info: str
    items: Values
    parameters: Values


class State(BaseModel):
    """Where a job is."""

    skipped: bool
    interrupted: bool
    stopping_generation: bool
    job: str
    job_count: int
    job_timestamp: str
    job_no: int
    sampling_step: int
    sampling_steps: int


class Progress(BaseModel):
    """How far the job is that was asked for, or else the first one."""

    progress: float = Field(description="from 0 to 1")
    eta_relative: float = Field(description="seconds that are left")
    state: State
    current_image: str | None = Field(description="the newest preview, a PNG in base64")
    textinfo: str | None


class TaskProgress(BaseModel):
    """How far one task is."""

    active: bool
    queued: bool
    completed: bool
    progress: float | None
    eta: float | None
    live_preview: str | None = Field(description="a data: address")
    textinfo: str | None


class Pending(BaseModel):
    """The tasks that have not ended."""

    size: int
    tasks: list[str]


class ModelItem(BaseModel):
    """A model that can be chosen, by any of its names."""

    title: str
    model_name: str
    filename: str
    hash: str | None
    sha256: str | None
    config: str | None


def body_of(*, started: bool) -> Values:
    """The OpenAPI part of an order's body; `started` from a picture."""
    own = schema()["properties"]
    fields = {name: own[ours] for name, ours in {**SECOND, **NAMES}.items()} | _OTHERS | (_STARTED if started else {})
    plain = {name: _rounded(one) for name, one in sorted(fields.items())}
    required = {"required": ["init_images"]} if started else {}
    whole = {"type": "object", "title": "Order", "properties": plain, "additionalProperties": True, **required}
    return {"requestBody": {"content": {"application/json": {"schema": whole}}}}


def enlarging_body(pictures: Values) -> Values:
    """The OpenAPI part of an order for extras; `pictures` is `IMAGE` or `IMAGES`, which it needs."""
    whole = {"type": "object", "title": "Enlarging", "properties": pictures | _ENLARGING, "required": [*pictures]}
    return {"requestBody": {"content": {"application/json": {"schema": whole}}}}


def options_body() -> Values:
    """The OpenAPI part of the body of options."""
    own = schema()["properties"]
    properties = {
        "sd_model_checkpoint": {"type": "string", "description": "a model's title, name, file name or hash"},
        "CLIP_stop_at_last_layers": own["clip_skip"],
        "eta_noise_seed_delta": own["ensd"],
        "fewstep_policy": {
            "type": "string",
            "enum": [*POLICIES],
            "description": "whether orders of many steps are brought down to what a few-step model is made for",
        },
    }
    whole = {"type": "object", "title": "Options", "properties": properties, "additionalProperties": True}
    return {"requestBody": {"content": {"application/json": {"schema": whole}}}}


def _rounded(field: Values) -> Values:
    """Sizes may be any: they are rounded to the multiple."""
    return {key: value for key, value in field.items() if key != "multipleOf"}
