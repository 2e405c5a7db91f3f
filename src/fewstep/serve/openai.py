"""OpenAI's Images interface: generations, edits, models; partial pictures as server-sent events.

Source: the public API reference and the `openai` package. Our own parameters (negative_prompt, steps, guidance, seed,
strength, sampler, ...) come as further keys, as `extra_body` sends them.

Several images are edited one by one, each with the prompt: n pictures of the first, then n of the next. Models that
combine pictures would make one of them all; Stable Diffusion's start from one, and to leave out the others, or to lay
them side by side, would be to pretend. As OpenAI says, a mask is for the first image.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from contextlib import aclosing
from typing import Any, TypeAlias, TypeVar

from fastapi import APIRouter, Request, UploadFile
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, StreamingResponse
from PIL import Image
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from fewstep import request as asked
from fewstep.errors import FewstepError, RequestError
from fewstep.infotext import Picture
from fewstep.pipeline import Pipeline
from fewstep.serve.answers import Answer, sentence_of
from fewstep.serve.fields import typed
from fewstep.serve.jobs import Studio
from fewstep.serve.models import Entry, UnknownModelError
from fewstep.serve.orders import Order, Painted, Stepped
from fewstep.serve.security import Receive, Scope, Send, gone, owner_of
from fewstep.serve.uploads import aside, from_bytes, to_base64

FORMATS = {"png": "PNG", "jpeg": "JPEG", "webp": "WEBP"}
ALIASES = {"n": "count", "num_inference_steps": "steps", "guidance_scale": "guidance", "scheduler": "sampler"}
_SIZE = re.compile(r"(\d{2,5})x(\d{2,5})")
_OPENAIS = re.compile(r"(gpt|chatgpt|dall)-")
Event: TypeAlias = Stepped | Painted
T = TypeVar("T")
_OWN = frozenset(asked.SPECS) - {"prompt", "image", "mask", "count", "width", "height"}


class Generation(BaseModel):
    """What is asked for. Further keys are parameters of ours (negative_prompt, steps, guidance, seed, ...), or
    ignored.
    """

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


class Datum(BaseModel):
    """One picture."""

    b64_json: str


class Images(BaseModel):
    """The pictures that were asked for."""

    created: int
    data: list[Datum]
    output_format: str
    size: str
    quality: str
    background: str
    usage: dict[str, Any]


class Listing(BaseModel):
    """A model, by its name."""

    id: str
    object: str
    created: int
    owned_by: str


class Listed(BaseModel):
    """All models."""

    object: str
    data: list[Listing]


_STREAM: Any = {200: {"content": {"text/event-stream": {}}}}


def _form_body() -> dict[str, Any]:
    """The OpenAPI part of a form: what a generation has, with the pictures."""
    picture = {"type": "string", "format": "binary", "description": "a PNG, JPEG or WebP; image also as image[]"}
    fields = Generation.model_json_schema()["properties"]
    form = {"type": "object", "properties": {**fields, "image": picture, "mask": picture}}
    form["required"] = ["prompt", "image"]
    return {"requestBody": {"required": True, "content": {"multipart/form-data": {"schema": form}}}}


def router(studio: Studio) -> APIRouter:
    """The routes, for one studio."""
    routes = APIRouter(prefix="/v1", tags=["openai"])

    @routes.get("/models", response_model=Listed)
    async def models() -> dict[str, Any]:
        """The models that can be named."""
        return {"object": "list", "data": [_model(entry) for entry in studio.models.list()]}

    @routes.get("/models/{name:path}", response_model=Listing, responses={404: {"description": "There is none."}})
    async def model(name: str) -> Any:
        """One model."""
        try:
            return _model(await studio.models.find(name))
        except UnknownModelError as error:
            return failure(404, sentence_of(error), "model", "model_not_found")

    @routes.post("/images/generations", response_model=Images, responses=_STREAM)
    async def generations(body: Generation, http: Request) -> Any:
        """Pictures from words; with `stream` as events, partial pictures first."""
        return await _answer(studio, http, body.model_dump(exclude_none=True), [{}], "image_generation")

    @routes.post("/images/edits", response_model=Images, responses=_STREAM, openapi_extra=_form_body())
    async def edits(http: Request) -> Any:
        """Pictures from a picture, as a whole or where a mask, or the picture itself, is transparent.

        Several images are edited one by one, each with the prompt; the mask is for the first.
        """
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


def _model(entry: Entry) -> dict[str, Any]:
    return {"id": entry.name, "object": "model", "created": entry.stamp // 10**9, "owned_by": "fewstep"}


async def _pipe(studio: Studio, name: str | None) -> Pipeline:
    """Of the model that is named; OpenAI's own names stand for the server's first one."""
    return await studio.pipe_of(None if name is None or _OPENAIS.match(name) else name)


async def _form(http: Request) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The text fields of a multipart form and its pictures: each `image` or `image[]`, the first one with `mask`."""
    fields: dict[str, Any] = {}
    images: list[Image.Image] = []
    mask: dict[str, Any] = {}
    async with http.form(max_files=17, max_fields=64) as form:
        for name, value in form.multi_items():
            if isinstance(value, str):
                fields[name] = {"true": True, "false": False}.get(value, value)
            elif name in ("image", "image[]"):
                images.append(await _picture(value, "image"))
            elif name == "mask":
                mask["mask"] = await _picture(value, "mask")
    if not images:
        raise RequestError("No image was sent. Send a PNG, JPEG or WebP as image.")
    return fields, [{"image": images[0], **mask}, *({"image": image} for image in images[1:])]


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


async def _answer(
    studio: Studio, http: Request, body: dict[str, Any], starts: Sequence[Mapping[str, Any]], event: str
) -> Any:
    """`starts` are the image and mask of each order."""
    kind = body.get("output_format", "png")
    if kind not in FORMATS:
        raise RequestError(f"output_format is {kind!r}, but pictures are {', '.join(FORMATS)} here.")
    if body.get("response_format") == "url":
        raise RequestError("response_format url is not served: pictures come as b64_json. Leave it out.")
    pipe = await _pipe(studio, body.get("model"))
    owner = owner_of(http.scope)
    orders = [await studio.open(request_of(body, start), owner=owner, pipe=pipe) for start in starts]
    studio.limits.check(*(order.plan for order in orders))
    http.state.task = orders[0].job.id
    how = [_Written(kind, body.get("output_compression"), order) for order in orders]
    if body.get("stream"):
        return await _stream(studio, how, http, event, body.get("partial_images", 0))
    data: list[dict[str, str]] = []
    for one in how:
        painted = await studio.pictures(one.order, gone=gone(http))
        data += [{"b64_json": await one.text(picture)} for picture in painted]
        if one.order.job.cancelled:
            break
    return {"created": int(time.time()), "data": data, **how[0].facts()}


class _Written:
    """How a job's pictures are written, and what its answers say of them."""

    def __init__(self, kind: str, compression: int | None, order: Order) -> None:
        self.kind, self.quality, self.order = kind, 100 if compression is None else compression, order

    async def text(self, picture: Picture) -> str:
        options = {} if self.kind == "png" else {"quality": max(1, min(95, self.quality))}
        return await aside(lambda: to_base64(picture, FORMATS[self.kind], **options))

    def facts(self) -> dict[str, Any]:
        plan = self.order.plan
        width, height = (plan.hires or plan).size
        words = len(plan.request.prompt.split())
        usage = {"input_tokens": words, "output_tokens": 0, "total_tokens": words}
        return {
            "output_format": self.kind,
            "size": f"{width}x{height}",
            "quality": "auto",
            "background": "opaque",
            "usage": usage | {"input_tokens_details": {"text_tokens": words, "image_tokens": 0}},
        }


async def _stream(
    studio: Studio, how: Sequence[_Written], http: Request, event: str, partials: int
) -> StreamingResponse:
    """The pictures as they come. The answer begins with the first evaluation: until then errors have a status."""

    def wanted(step: int, steps: int) -> bool:
        """The last steps before the end, evenly."""
        return step in {round((number + 1) * steps / (partials + 1)) for number in range(partials)}

    painting = _run(studio, how, wanted if partials else None)
    async with studio.while_there(how[0].order, gone(http)):
        first = await anext(painting)
    return _Streamed(_events(first, painting, event), painting)


async def _run(studio: Studio, how: Sequence[_Written], wanted: Any) -> AsyncGenerator[tuple[_Written, Event], None]:
    """What becomes of one order after the other."""
    for one in how:
        async with aclosing(studio.run(one.order, wanted=wanted)) as events:
            async for event in events:
                yield one, event


class _Streamed(StreamingResponse):
    """Events, which end what they come from, also where nobody begins to read."""

    def __init__(self, events: AsyncIterator[str], source: AsyncGenerator[Any, None]) -> None:
        super().__init__(events, media_type="text/event-stream")
        self.source = source

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send them."""
        try:
            await super().__call__(scope, receive, send)
        finally:
            await self.source.aclose()


async def _events(
    first: tuple[_Written, Event], rest: AsyncIterator[tuple[_Written, Event]], event: str
) -> AsyncIterator[str]:
    """`event: image_generation.partial_image` for as many previews as were asked for, then `.completed` each."""
    sent: dict[tuple[str, int], int] = {}
    try:
        async for how, one in _again(first, rest):
            if isinstance(one, Stepped) and one.preview is not None:
                picture = how.order.job.id, one.index
                number = sent[picture] = sent.get(picture, -1) + 1
                more = {"partial_image_index": number}
                yield await _event(f"{event}.partial_image", how, one.preview, more)
            elif isinstance(one, Painted):
                yield await _event(f"{event}.completed", how, one.picture, {})
    except FewstepError as error:  # the answer has begun: what went wrong can only be one more event
        yield f"event: error\ndata: {json.dumps({'type': 'error', 'error': {'message': sentence_of(error)}})}\n\n"


async def _again(first: T, rest: AsyncIterator[T]) -> AsyncIterator[T]:
    yield first
    async for one in rest:
        yield one


async def _event(name: str, how: _Written, picture: Picture, more: dict[str, Any]) -> str:
    facts = how.facts() if name.endswith("completed") else {k: v for k, v in how.facts().items() if k != "usage"}
    body = {"type": name, "b64_json": await how.text(picture), "created_at": int(time.time()), **facts, **more}
    return f"event: {name}\ndata: {json.dumps(body)}\n\n"
