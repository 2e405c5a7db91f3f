"""A dry run over a source: every sample is opened as training would open it, and counted; nothing is written."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import islice
from statistics import median
from typing import Any

from PIL import Image

from fewstep.data.buckets import Framing, Shape
from fewstep.data.samples import Filters, Frame, Tally, ahead, frame_of
from fewstep.data.sources import Source, walk

THUMB_PX = 160


@dataclass
class Inspection:
    """What was found. Sizes are the pictures' own (height, width) px; `enlarged` counts those smaller than their
    bucket; `thumbs` are the first kept pictures as they are cut, with their captions.
    """

    source: Source
    tally: Tally = field(default_factory=Tally)
    sizes: list[Shape] = field(default_factory=list)
    buckets: Counter[Shape] = field(default_factory=Counter)
    captions: list[str] = field(default_factory=list)
    enlarged: int = 0
    thumbs: list[tuple[Image.Image, str]] = field(default_factory=list)

    def add(self, frame: Frame, thumbs: int) -> None:
        """Take a kept sample."""
        self.captions.append(frame.caption)
        if frame.pixels_HWC is None or frame.time_ids is None:
            return
        height, width, _, _, *shape = frame.time_ids
        self.sizes.append((height, width))
        self.buckets[shape[0], shape[1]] += 1
        self.enlarged += height < shape[0] or width < shape[1]
        if len(self.thumbs) < thumbs:
            thumb = Image.fromarray(frame.pixels_HWC)
            thumb.thumbnail((THUMB_PX, THUMB_PX))
            self.thumbs.append((thumb, frame.caption))

    def facts(self) -> dict[str, Any]:
        """Everything but the pictures, for json."""
        words = [len(caption.split()) for caption in self.captions]
        return {
            "where": self.source.where,
            "kind": self.source.kind,
            "pictures": self.source.pictures,
            "parts": len(self.source.names),
            "seen": self.tally.seen,
            "kept": self.tally.kept,
            "dropped": dict(self.tally.dropped.most_common()),
            "corrupt": [list(pair) for pair in self.tally.faults],
            "height_px": spread([height for height, _ in self.sizes]),
            "width_px": spread([width for _, width in self.sizes]),
            "enlarged": self.enlarged,
            "buckets": {f"{height}x{width}": count for (height, width), count in self.buckets.most_common()},
            "caption_letters": spread([len(caption) for caption in self.captions]),
            "caption_words": spread(words),
            "distinct_captions": len(set(self.captions)),
        }


def inspect(
    source: Source, framing: Framing, filters: Filters, *, workers: int = 2, most: int | None = None, thumbs: int = 0
) -> Inspection:
    """Open all samples, or the first `most`, and count."""
    found = Inspection(source)
    records = (record for _, _, record in islice(walk(source), most))
    for frame in ahead(lambda record: frame_of(record, framing, filters), records, workers=workers):
        if found.tally.count(frame):
            found.add(frame, thumbs)
    return found


def spread(values: Sequence[int]) -> dict[str, float] | None:
    """Least, median and greatest; None of nothing.

    >>> spread([3, 1, 2])
    {'least': 1, 'median': 2, 'most': 3}
    """
    return {"least": min(values), "median": median(values), "most": max(values)} if values else None
