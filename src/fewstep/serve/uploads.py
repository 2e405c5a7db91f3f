"""Pictures as bytes and base64 texts. Those that come in are looked at by their header before anything is decoded.

Only PNG, JPEG and WebP, only the first frame, at most 4096 pixels on a side; base64 with or without a data: prefix.
What Pillow says of a bad file is not passed on. Reading and writing belong `aside`: on a few threads, for a while.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import io
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from PIL import Image, ImageOps

from fewstep.engine.work import BusyError
from fewstep.errors import ImageError

SIDE_LIMIT_PX = 4096
FORMATS = ("PNG", "JPEG", "WEBP")
THREADS, PATIENCE_S = 2, 20.0
T = TypeVar("T")
_POOL = ThreadPoolExecutor(THREADS, thread_name_prefix="fewstep-pictures")


async def aside(work: Callable[[], T], *, patience_s: float | None = None) -> T:
    """What `work` gives, on one of a few threads, so that others are answered meanwhile.

    Raises:
        BusyError: it takes, or waits, too long; and what `work` raises.
    """
    task = asyncio.get_running_loop().run_in_executor(_POOL, work)
    try:
        return await asyncio.wait_for(task, PATIENCE_S if patience_s is None else patience_s)
    except TimeoutError:
        raise BusyError(
            "Reading or writing these pictures takes too long now. Try again, with smaller ones.", 5
        ) from None


def from_bytes(data: bytes, *, what: str = "image") -> Image.Image:
    """The picture in these bytes, upright, in the mode it was written in.

    Raises:
        ImageError: it is no PNG, JPEG or WebP, too large, or damaged.
    """
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            if max(image.size) > SIDE_LIMIT_PX:
                width, height = image.size
                raise ImageError(
                    f"The {what} has {width}x{height} pixels, but at most {SIDE_LIMIT_PX} on a side are allowed. "
                    "Make it smaller."
                )
            image.seek(0)
            image.load()
            return ImageOps.exif_transpose(image)
    except ImageError:
        raise
    except Exception:  # noqa: BLE001 - a decoder may raise anything, and what it says is not for strangers
        raise ImageError(f"The {what} is not a PNG, JPEG or WebP that can be read.") from None


def from_base64(text: str, *, what: str = "image") -> Image.Image:
    """The picture in a base64 text, with or without `data:...;base64,`; raises ImageError as `from_bytes`."""
    if not isinstance(text, str):
        raise ImageError(f"The {what} is not a base64 text.")
    body = text.partition(",")[2] if text[:5].lower() == "data:" else text
    try:
        data = base64.b64decode("".join(body.split()), validate=True)
    except (binascii.Error, ValueError):
        raise ImageError(
            f"The {what} is not base64. Send a picture's bytes in base64; paths and addresses are not read."
        ) from None
    return from_bytes(data, what=what)


def to_base64(picture: Image.Image, kind: str = "PNG", **options: int) -> str:
    """The picture as a base64 text, in Pillow's format `kind`; a generated one with its settings."""
    stream = io.BytesIO()
    picture.save(stream, kind, **options)
    return base64.b64encode(stream.getvalue()).decode()
