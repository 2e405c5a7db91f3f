"""What A1111's clients ask for beside painting: pictures made larger, memory, and answers for what is not served here.

Formats are facts taken from the public interface and its clients; nothing is copied. Face restoration, captions and
ControlNet are not served: whoever asks for them is told so, instead of being given something else.
"""

from __future__ import annotations

import sys
from typing import Any

import psutil
from fastapi import APIRouter, Body, HTTPException
from PIL import Image, ImageOps

from fewstep.errors import FewstepError, RequestError
from fewstep.hires import PIXEL, upscaler_named
from fewstep.serve.a1111_schemas import BATCH_LIMIT, IMAGE, IMAGES, AllEnlarged, Enlarged, Memory, enlarging_body
from fewstep.serve.answers import answering
from fewstep.serve.limits import Limits
from fewstep.serve.uploads import aside, from_base64, to_base64

Values = dict[str, Any]
_ANYTHING = Body(default_factory=dict)
SIDE_LIMIT_PX = 8192
_CONTROL = "ControlNet is not served here: there are no models and no modules. Send the picture without it."


class NotServedError(FewstepError):
    """The place is known, and there is nothing behind it."""

    http_status = 501


def router(limits: Limits | None = None) -> APIRouter:
    """The routes. `limits` are of what an enlarged picture may have."""
    routes = APIRouter(tags=["a1111"])
    _enlarging(routes, limits or Limits())
    _absent(routes)
    routes.add_api_route("/sdapi/v1/memory", _memory, methods=["GET"], response_model=Memory)
    return routes


def _enlarging(routes: APIRouter, limits: Limits) -> None:
    @routes.post("/sdapi/v1/extra-single-image", response_model=Enlarged, openapi_extra=enlarging_body(IMAGE))
    async def extra_single_image(body: Values = _ANYTHING) -> Values:
        """A picture made larger, or smaller."""
        return {"image": await aside(lambda: enlarged(body, body.get("image"), limits)), "html_info": ""}

    @routes.post("/sdapi/v1/extra-batch-images", response_model=AllEnlarged, openapi_extra=enlarging_body(IMAGES))
    async def extra_batch_images(body: Values = _ANYTHING) -> Values:
        """Several pictures made larger, or smaller."""
        entries = body.get("imageList")
        if not isinstance(entries, list) or not 1 <= len(entries) <= BATCH_LIMIT:
            raise RequestError(
                f'imageList is no list of 1 to {BATCH_LIMIT} pictures. Send {{"data": base64, "name": text}}.'
            )
        pictures = [entry.get("data") if isinstance(entry, dict) else None for entry in entries]
        images = [await aside(lambda picture=picture: enlarged(body, picture, limits)) for picture in pictures]
        return {"images": images, "html_info": ""}


def enlarged(order: Values, picture: Any, limits: Limits) -> str:
    """The picture of an order for extras, as it asks, in base64.

    Raises:
        RequestError: an unknown upscaler, too large a size, or the restoration of faces, which is not served.
        ImageError: the picture cannot be read.
    """
    for key in ("gfpgan_visibility", "codeformer_visibility"):
        if _number(order, key, 0.0):
            raise RequestError(f"{key} is {order[key]!r}, but faces are not restored here. Leave it out.")
    first, second = (_upscaler(order, f"upscaler_{place}") for place in (1, 2))
    image = from_base64(picture)
    size = _target(order, image.size)
    if max(size) > SIDE_LIMIT_PX or size[0] * size[1] > limits.pixels:
        raise RequestError(f"{size[0]}x{size[1]} pixels are more than {limits.pixels} in all. Ask for a smaller size.")
    share = min(1.0, max(0.0, _number(order, "extras_upscaler_2_visibility", 0.0)))
    result = _resized(image, size, first, order)
    if share and second != "None":
        result = Image.blend(result, _resized(image, size, second, order), share)
    return to_base64(result)


def _target(order: Values, size: tuple[int, int]) -> tuple[int, int]:
    """resize_mode 0: so many times its size; 1: to a width and a height."""
    if _number(order, "resize_mode", 0.0) == 1:
        wide, high = (_number(order, f"upscaling_resize_{side}", 512.0) for side in "wh")
    else:
        wide, high = (side * _number(order, "upscaling_resize", 2.0) for side in size)
    if not (1 <= wide < 1e6 and 1 <= high < 1e6):
        raise RequestError(f"A picture of {wide:g}x{high:g} pixels was asked for. Ask for at least one, and fewer.")
    return round(wide), round(high)


def _resized(image: Image.Image, size: tuple[int, int], upscaler: str, order: Values) -> Image.Image:
    """In that size: cut to its proportions, or within it where upscaling_crop is false."""
    from fewstep.upscale import open_upscaler

    enlarge, exact = open_upscaler(upscaler), _number(order, "resize_mode", 0.0) != 1
    if exact or image.width * size[1] == image.height * size[0]:
        return enlarge(image, size)
    if not order.get("upscaling_crop", True):
        return enlarge(image, ImageOps.contain(Image.new("1", image.size), size).size)
    scale = max(size[0] / image.width, size[1] / image.height)
    covering = (max(size[0], round(image.width * scale)), max(size[1], round(image.height * scale)))
    left, top = (covering[0] - size[0]) // 2, (covering[1] - size[1]) // 2
    return enlarge(image, covering).crop((left, top, left + size[0], top + size[1]))


def _upscaler(order: Values, key: str) -> str:
    """A known name; None where none is given. Files are not taken from strangers."""
    given = order.get(key) or "None"
    name = upscaler_named(given) if isinstance(given, str) else ""
    if name not in PIXEL:
        raise RequestError(f"{key} is {str(given)[:60]!r}. There are: {', '.join(PIXEL)}.")
    return name


def _number(order: Values, key: str, default: float) -> float:
    value = order.get(key)
    if value is None:
        return default
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not abs(value) < 1e6:
        raise RequestError(f"{key} is {str(value)[:40]!r}, which is not a number that can be meant.")
    return float(value)


def _absent(routes: APIRouter) -> None:
    """Captions and ControlNet: lists are empty, orders are refused with a sentence."""
    for name, value in {
        "version": {"version": 3},
        "model_list": {"model_list": []},
        "module_list": {"module_list": ["none"], "module_detail": {}},
        "control_types": {"control_types": {}},
        "settings": {"control_net_unit_count": 0},
    }.items():
        path, title = f"/controlnet/{name}", f"controlnet {name}"
        routes.add_api_route(path, answering(value), methods=["GET"], name=title, response_model=Values)

    @routes.post("/sdapi/v1/interrogate")
    async def interrogate(body: Values = _ANYTHING) -> None:
        """What is in a picture: not served."""
        if not body.get("image"):
            raise HTTPException(404, "Image not found")
        raise NotServedError("Pictures are not described here: there is no captioning model.")

    @routes.post("/controlnet/detect")
    async def controlnet() -> None:
        """What a module of ControlNet makes of a picture: not served."""
        raise NotServedError(_CONTROL)


async def _memory() -> Values:
    """Bytes of this machine and of this program, and of the GPU where torch has one."""
    ram = psutil.virtual_memory()
    own = psutil.Process().memory_info().rss
    return {"ram": {"free": ram.available, "used": own, "total": ram.total}, "cuda": _cuda()}


def _cuda() -> Values:
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_available():
        return {"error": "unavailable"}
    free, total = torch.cuda.mem_get_info()
    stats = torch.cuda.memory_stats()
    events = {"retries": stats.get("num_alloc_retries", 0), "oom": stats.get("num_ooms", 0)}
    kinds = {"active": "active_bytes", "allocated": "allocated_bytes", "reserved": "reserved_bytes"}
    kinds["inactive"] = "inactive_split_bytes"
    pairs = {
        name: {"current": stats.get(f"{key}.all.current", 0), "peak": stats.get(f"{key}.all.peak", 0)}
        for name, key in kinds.items()
    }
    return {"system": {"free": free, "used": total - free, "total": total}, **pairs, "events": events}
