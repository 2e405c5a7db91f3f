"""OpenAI's Images interface: generations, edits, models; partial pictures as server-sent events.

Source: the public API reference and the `openai` package. Our own parameters (negative_prompt, steps, guidance, seed,
strength, sampler, ...) come as further keys, as `extra_body` sends them.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Any, TypeAlias

from fastapi import APIRouter, Request, UploadFile
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, StreamingResponse
from PIL import Image
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from fewstep import request as asked
from fewstep.errors import RequestError
from fewstep.infotext import Picture
from fewstep.serve.answers import Answer, sentence_of
from fewstep.serve.fields import typed
from fewstep.serve.jobs import Job, Painted, Stepped, Studio
from fewstep.serve.uploads import aside, from_bytes, to_base64

FORMATS = {"png": "PNG", "jpeg": "JPEG", "webp": "WEBP"}
ALIASES = {"n": "count", "num_inference_steps": "steps", "guidance_scale": "guidance", "scheduler": "sampler"}
STREAMED: dict[int | str, dict[str, Any]] = {200: {"content": {"text/event-stream": {}}}}
_SIZE = re.compile(r"(\d{2,5})x(\d{2,5})")
Event: TypeAlias = Stepped | Painted
_OWN = frozenset(asked.SPECS) - {"prompt", "image", "mask", "count", "width", "height"}


class Generation(BaseModel):
    """The body of `POST /v1/images/generations`; keys that are not listed are fields of ours, or ignored."""

    model_config = ConfigDict(extra="allow")
    prompt: str = Field(max_length=asked.PROMPT_LIMIT)
    model: str | None = None
    n: int | None = Field(None, ge=1, le=10)
    size: str | None = None
    quality: str | None = None
    response_format: str | None = None
    output_format: str | None = None
    output_compression: int | None = Field(None, ge=0, le=100)
    background: str | None = None
    stream: bool | None = None
    partial_images: int | None = Field(None, ge=0, le=3)
    user: str | None = None


def router(studio: Studio) -> APIRouter:
    """The routes, for one studio."""
    routes = APIRouter(prefix="/v1", tags=["openai"])

    @routes.get("/models")
    async def models() -> dict[str, Any]:
        return {"object": "list", "data": [_model(studio)]}

    @routes.get("/models/{name:path}")
    async def model(name: str) -> Any:
        found = _model(studio)
        return (
            found
            if name == found["id"]
            else failure(404, f"There is no model '{name}' here.", "model", "model_not_found")
        )

    @routes.post("/images/generations", responses=STREAMED)
    async def generations(body: Generation, http: Request) -> Any:
        return await _answer(studio, http, body.model_dump(exclude_none=True), {}, "image_generation")

    @routes.post("/images/edits", responses=STREAMED)
    async def edits(http: Request) -> Any:
        fields, pictures = await _form(http)
        try:
            body = Generation.model_validate(fields).model_dump(exclude_none=True)
        except ValidationError as error:
            raise RequestValidationError(error.errors()) from None
        return await _answer(studio, http, body, pictures, "image_edit")

    return routes


def failure(status: int, sentence: str, parameter: str | None = None, code: str | None = None) -> JSONResponse:
    """An error in OpenAI's form."""
    kind = "server_error" if status >= 500 else "rate_limit_error" if status == 429 else "invalid_request_error"
    return Answer({"error": {"message": sentence, "type": kind, "param": parameter, "code": code}}, status)


def _model(studio: Studio) -> dict[str, Any]:
    return {"id": studio.pipe.model.name, "object": "model", "created": 0, "owned_by": "fewstep"}


async def _form(http: Request) -> tuple[dict[str, Any], dict[str, Any]]:
    """The text fields and the pictures of a multipart form; `image` or `image[]`, and `mask`."""
    fields: dict[str, Any] = {}
    images: list[Image.Image] = []
    pictures: dict[str, Any] = {}
    async with http.form(max_files=17, max_fields=64) as form:
        for name, value in form.multi_items():
            if isinstance(value, str):
                fields[name] = {"true": True, "false": False}.get(value, value)
            elif name in ("image", "image[]"):
                images.append(await _picture(value, "image"))
            elif name == "mask":
                pictures["mask"] = await _picture(value, "mask")
    if not images:
        raise RequestError("No image was sent. Send a PNG, JPEG or WebP as image.")
    if len(images) > 1:
        raise RequestError(f"{len(images)} images were sent, but this model starts from one. Send one image.")
    return fields, {"image": images[0], **pictures}


async def _picture(file: UploadFile | Any, what: str) -> Image.Image:
    data = await file.read()
    return await aside(lambda: from_bytes(data, what=what))


def request_of(body: Mapping[str, Any], pictures: Mapping[str, Any]) -> asked.Request:
    """The body as a request of ours.

    Raises:
        RequestError: a size or a value that is not allowed.
    """
    fields = {ALIASES.get(key, key): value for key, value in body.items()}
    found = {name: typed(name, value) for name, value in fields.items() if name in _OWN}
    found |= {"prompt": fields["prompt"], "count": fields.get("count", 1), **_pictures(pictures)}
    size = fields.get("size") or "auto"
    if size != "auto":
        match = _SIZE.fullmatch(size)
        if match is None:
            raise RequestError(f"size is {size!r}. Give a width and a height such as 512x512, or auto.")
        found |= {"width": int(match[1]) // 8 * 8, "height": int(match[2]) // 8 * 8}
    return asked.request_of(found)


def _pictures(pictures: Mapping[str, Any]) -> dict[str, Any]:
    """Image and mask; OpenAI's mask is transparent where ours is white, and may be the image's own transparency."""
    image, mask = pictures.get("image"), pictures.get("mask")
    if image is None:
        return {}
    source = mask if mask is not None else image if image.has_transparency_data else None
    if source is None or not source.has_transparency_data:
        return {"image": image.convert("RGB")}
    hole = source.convert("RGBA").getchannel("A").point(lambda alpha: 255 - alpha)
    return {"image": image.convert("RGB"), "mask": hole} if hole.getextrema()[1] else {"image": image.convert("RGB")}


async def _answer(studio: Studio, http: Request, body: dict[str, Any], pictures: Mapping[str, Any], event: str) -> Any:
    kind = body.get("output_format", "png")
    if kind not in FORMATS:
        raise RequestError(f"output_format is {kind!r}, but pictures are {', '.join(FORMATS)} here.")
    if body.get("response_format") == "url":
        raise RequestError("response_format url is not served: pictures come as b64_json. Leave it out.")
    owner = http.client.host if http.client else ""
    job = await studio.open(request_of(body, pictures))
    how = _Written(kind, body.get("output_compression"), job)
    if body.get("stream"):
        told = studio.run(job, owner=owner, wanted=_wanted(body.get("partial_images", 0)))
        first = await anext(told)  # who is turned away hears it by the status
        return StreamingResponse(_events(first, told, how, event), media_type="text/event-stream")
    painted = await studio.pictures(job, owner=owner)
    return {
        "created": int(time.time()),
        "data": [{"b64_json": await how.text(picture)} for picture in painted],
        **how.facts(),
    }


class _Written:
    """How a job's pictures are written, and what its answers say of them."""

    def __init__(self, kind: str, compression: int | None, job: Job) -> None:
        self.kind, self.quality, self.job = kind, 100 if compression is None else compression, job

    async def text(self, picture: Picture) -> str:
        options = {} if self.kind == "png" else {"quality": max(1, min(95, self.quality))}
        return await aside(lambda: to_base64(picture, FORMATS[self.kind], **options))

    def facts(self) -> dict[str, Any]:
        width, height = (self.job.plan.hires or self.job.plan).size
        words = len(self.job.plan.request.prompt.split())
        usage = {"input_tokens": words, "output_tokens": 0, "total_tokens": words}
        return {
            "output_format": self.kind,
            "size": f"{width}x{height}",
            "quality": "auto",
            "background": "opaque",
            "usage": usage | {"input_tokens_details": {"text_tokens": words, "image_tokens": 0}},
        }


def _wanted(partials: int) -> Callable[[int, int], bool] | None:
    """After which steps a preview is made: evenly, and none after the last."""
    marks = [(number + 1) / (partials + 1) for number in range(partials)]
    return (lambda step, steps: step in {round(mark * steps) for mark in marks}) if partials else None


async def _events(first: Event, told: AsyncIterator[Event], how: _Written, event: str) -> AsyncIterator[str]:
    """`event: image_generation.partial_image` for as many previews as were asked for, then `.completed` each."""
    sent: dict[int, int] = {}
    one: Event | None = first
    try:
        while one is not None:
            if isinstance(one, Stepped) and one.preview is not None:
                number = sent[one.index] = sent.get(one.index, -1) + 1
                yield await _event(f"{event}.partial_image", how, one.preview, {"partial_image_index": number})
            elif isinstance(one, Painted):
                yield await _event(f"{event}.completed", how, one.picture, {})
            one = await anext(told, None)
    except Exception as error:  # noqa: BLE001 - the answer has begun: what went wrong can only be one more event
        yield f"event: error\ndata: {json.dumps({'type': 'error', 'error': {'message': sentence_of(error)}})}\n\n"
    finally:
        how.job.forget()


async def _event(name: str, how: _Written, picture: Picture, more: dict[str, Any]) -> str:
    facts = how.facts() if name.endswith("completed") else {k: v for k, v in how.facts().items() if k != "usage"}
    body = {"type": name, "b64_json": await how.text(picture), "created_at": int(time.time()), **facts, **more}
    return f"event: {name}\ndata: {json.dumps(body)}\n\n"
