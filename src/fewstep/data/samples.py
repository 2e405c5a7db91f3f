"""One sample on its way in: a record as it lies on disk, opened, filtered and cut, or lost with the reason.

Nothing is thrown away without a word: what cannot be read becomes a `Lost` with its name, and so does what a filter
drops.
"""

import io
import json
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from fewstep.data.buckets import Framing, Shape, TimeIds, framed
from fewstep.data.seeds import seed_at
from fewstep.errors import RecipeError

CAPTION_KEYS = ("caption", "text", "txt", "prompt")
_TURNED = {5, 6, 7, 8}
_ORIENTATION = 0x0112
NAMES_SHOWN = 5


@dataclass(frozen=True)
class Record:
    """A sample as it lies on disk. `picture` is not decoded yet: bytes or a path, None in a source of prompts alone;
    `caption` is None where there is none; `fault` says why the record cannot be read, "" if it can.
    """

    name: str
    caption: str | None = None
    picture: bytes | Path | None = None
    fault: str = ""


@dataclass(frozen=True)
class Lost:
    """A sample that is not used: corrupt (`fault`), or dropped by a filter."""

    name: str
    reason: str
    fault: bool = False


@dataclass(frozen=True)
class Frame:
    """A sample ready to be encoded: uint8 pixels_HWC with SDXL's time ids, or a prompt alone. `finished` holds
    scaled latents [C, h, w] instead, where somebody has encoded already.
    """

    name: str
    caption: str
    pixels_HWC: np.ndarray | None = None
    time_ids: TimeIds | None = None
    finished: Any = None


@dataclass(frozen=True)
class Filters:
    """What a sample must have to be used; the defaults ask for a caption only."""

    least_px: int = 0
    most_aspect: float = 0.0
    least_caption: int = 1
    most_caption: int = 0
    share: float = 1.0

    def __post_init__(self) -> None:
        """Raises RecipeError for values that can let nothing through."""
        if not 0 < self.share <= 1:
            raise RecipeError(f"A share of {self.share} keeps nothing. Use a number above 0 and at most 1.")
        if self.most_aspect and self.most_aspect < 1:
            raise RecipeError(f"No picture has an aspect ratio below 1, but {self.most_aspect} was asked. Use 2, say.")
        if self.most_caption and self.most_caption < self.least_caption:
            raise RecipeError(f"No caption has from {self.least_caption} to {self.most_caption} letters.")

    def of_record(self, record: Record) -> Lost | None:
        """What is lost before the picture is opened. `share` depends on the name alone."""
        if record.fault:
            return Lost(record.name, record.fault, fault=True)
        if self.share < 1 and seed_at(0, record.name, "share") >= self.share * 2**63:
            return Lost(record.name, f"outside the share of {self.share:g}")
        if not (record.caption or "").strip() and self.least_caption:
            return Lost(record.name, "no caption")
        length = len((record.caption or "").strip())
        if length < self.least_caption:
            return Lost(record.name, f"caption shorter than {self.least_caption} letters")
        if self.most_caption and length > self.most_caption:
            return Lost(record.name, f"caption longer than {self.most_caption} letters")
        return None

    def of_size(self, name: str, size: Shape) -> Lost | None:
        """What is lost for its (height, width)."""
        if min(size) < self.least_px:
            return Lost(name, f"a side below {self.least_px} px")
        if self.most_aspect and max(size) > self.most_aspect * min(size):
            return Lost(name, f"sides differ by more than {self.most_aspect:g}")
        return None


def measure(record: Record, filters: Filters) -> Lost | Shape | None:
    """The upright picture's (height, width) from the file's head, None for a prompt alone, or why it is lost."""
    lost = filters.of_record(record)
    if lost or record.picture is None:
        return lost
    try:
        with _opened(record.picture) as image:
            width, height = image.size
            head = image.format != "PNG" or "exif" in image.info  # asking a PNG for more would decode it whole
            turned = head and image.getexif().get(_ORIENTATION) in _TURNED
    except Exception as error:  # noqa: BLE001 - a corrupt picture raises anything; it is named, and never fatal
        return Lost(record.name, f"not a picture that can be read ({_line(error)})", fault=True)
    size = (width, height) if turned else (height, width)
    return filters.of_size(record.name, size) or size


def frame_of(record: Record, framing: Framing, filters: Filters, *, epoch: int = 0) -> Frame | Lost:
    """The record decoded whole, upright, and cut to its bucket; or why it is lost."""
    found = measure(record, filters)
    caption = (record.caption or "").strip()
    if isinstance(found, Lost):
        return found
    if record.picture is None:
        return Frame(record.name, caption)
    try:
        with _opened(record.picture) as image:
            image.load()
            pixels_HWC, time_ids = framed(ImageOps.exif_transpose(image), framing, name=record.name, epoch=epoch)
    except Exception as error:  # noqa: BLE001 - as above
        return Lost(record.name, f"the picture is damaged ({_line(error)})", fault=True)
    return Frame(record.name, caption, pixels_HWC, time_ids)


def caption_of(content: Any) -> str | None:
    """The caption in a parsed json object, None where there is none."""
    if isinstance(content, dict):
        return next((str(content[key]) for key in CAPTION_KEYS if isinstance(content.get(key), str)), None)
    return content if isinstance(content, str) else None


def read_caption(data: bytes, kind: str) -> str | None:
    """A caption file's text; `kind` is its extension. Raises ValueError for bytes that are no UTF-8 or no json."""
    text = data.decode("utf-8")
    return caption_of(json.loads(text)) if kind == "json" else text.strip()


def ahead(function: Callable[[Any], Any], items: Iterable[Any], *, workers: int) -> Iterator[Any]:
    """`map` in threads, a few items ahead, results in the order of the items (Pillow decodes without the lock)."""
    if workers < 1:
        yield from map(function, items)
        return
    pool, waiting = ThreadPoolExecutor(workers, thread_name_prefix="decode"), deque()
    try:
        for item in items:
            waiting.append(pool.submit(function, item))
            if len(waiting) > 4 * workers:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


@dataclass
class Tally:
    """How many samples were kept, corrupt ones by name, and how many each filter dropped."""

    kept: int = 0
    faults: list[tuple[str, str]] = field(default_factory=list)
    dropped: Counter[str] = field(default_factory=Counter)

    @property
    def seen(self) -> int:
        """All samples that came by."""
        return self.kept + len(self.faults) + self.dropped.total()

    def count(self, found: Any) -> bool:
        """Count one; whether it is kept."""
        if not isinstance(found, Lost):
            self.kept += 1
        elif found.fault:
            self.faults.append((found.name, found.reason))
        else:
            self.dropped[found.reason] += 1
        return not isinstance(found, Lost)

    def sentence(self) -> str:
        """What was lost and why, in one line; "" when nothing was."""
        parts = [f"{count} {reason}" for reason, count in self.dropped.most_common()]
        if self.faults:
            names = "; ".join(f"{name}: {reason}" for name, reason in self.faults[:NAMES_SHOWN])
            more = f"; and {len(self.faults) - NAMES_SHOWN} more" if len(self.faults) > NAMES_SHOWN else ""
            parts.append(f"{len(self.faults)} corrupt ({names}{more})")
        return ", ".join(parts)

    def check(self, where: str) -> None:
        """Raises RecipeError, with every reason, when nothing was kept."""
        if self.kept:
            return
        why = f"of {self.seen} samples not one is kept: {self.sentence()}" if self.seen else "there is not one sample"
        raise RecipeError(f"In '{where}' {why}. Loosen the filters, or mend the data.")


def _opened(picture: bytes | Path) -> Image.Image:
    return Image.open(io.BytesIO(picture) if isinstance(picture, bytes) else picture)


def _line(error: Exception) -> str:
    """The first line of an error, the same each time: Pillow's own names a place in memory."""
    if isinstance(error, UnidentifiedImageError):
        return "no format that is known"
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:160]
