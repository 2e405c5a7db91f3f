"""Times of contestants as horizontal bars, a small PNG; drawn with Pillow, so that no plotting library is needed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw, ImageFont

from fewstep.evaluate.plot import COLOURS

WIDTH, LEFT, RIGHT, ROW, HEAD, PAD = 960, 250, 190, 26, 40, 14
INK, PAPER, OURS, THEIRS = "#222222", "#ffffff", COLOURS[0], COLOURS[7]


def draw(races: Sequence[Mapping[str, Any]], *, title: str, path: Path) -> None:
    """One group of bars for each race: medians, with a line from the least to the most; ours in blue."""
    rows = sum(len(race["results"]) for race in races)
    image = Image.new("RGB", (WIDTH, HEAD + sum(HEAD for _ in races) + ROW * rows + PAD), PAPER)
    pen, y = ImageDraw.Draw(image), HEAD
    pen.text((PAD, PAD // 2), title, INK, ImageFont.load_default(20))
    for race in races:
        y = _group(pen, race, y)
    image.quantize(16).save(path, optimize=True)


def _group(pen: ImageDraw.ImageDraw, race: Mapping[str, Any], y: int) -> int:
    font, most = ImageFont.load_default(15), max(found["max_ms"] for found in race["results"].values())
    scale = (WIDTH - LEFT - RIGHT) / (most or 1)
    pen.text((PAD, y + 12), race["title"], INK, font)
    y += HEAD
    for name, found in race["results"].items():
        middle, end = y + ROW // 2, LEFT + scale * found["median_ms"]
        pen.text((LEFT - 10, middle), name, INK, font, anchor="rm")
        pen.rectangle((LEFT, y + 4, max(end, LEFT + 1), y + ROW - 4), OURS if _is_ours(name) else THEIRS)
        pen.line((LEFT + scale * found["min_ms"], middle, LEFT + scale * found["max_ms"], middle), INK, 1)
        words = f"{found['median_ms']:.4g} ms" + (f"   {found['ratio']:g}x" if "ratio" in found else "")
        pen.text((max(end, LEFT + scale * found["max_ms"]) + 8, middle), words, INK, font, anchor="lm")
        y += ROW
    return y


def _is_ours(name: str) -> bool:
    return name.startswith("fewstep")
