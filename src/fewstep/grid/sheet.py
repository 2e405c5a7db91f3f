"""The whole grid as one picture: legends on both edges, a block for each z, what all have in common below.

Sizes are (width, height) in pixels.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from PIL import Image, ImageDraw, ImageFont

from fewstep.grid.axes import Axis
from fewstep.grid.cells import Grid
from fewstep.grid.contact import Font

PAPER, INK, MUTED, LINE, HOLE, ALARM = "#f3f1ec", "#1c2230", "#5b6270", "#cfcbc2", "#e7e4dc", "#a52c18"
MOST_PX = 40_000_000
LABEL_LINES, FOOTER_LINES, SMALLEST_FONT, LARGEST_FONT = 5, 12, 13, 30


def wrapped(text: str, width_px: float, font: Font, *, most: int = LABEL_LINES) -> list[str]:
    """The text in at most so many lines that are not wider than `width_px`; dots stand for what is left out.

    Words that are too long are broken. Line breaks in the text are spaces here.
    """
    lines: list[str] = []
    for word in text.split():
        joined = f"{lines[-1]} {word}" if lines else word
        if lines and font.getlength(joined) <= width_px:
            lines[-1] = joined
            continue
        while word:
            kept = _fitting(word, width_px, font)
            lines.append(word[:kept])
            word = word[kept:]
    if len(lines) <= most:
        return lines
    last = lines[most - 1]
    while last and font.getlength(last + "...") > width_px:
        last = last[:-1]
    return [*lines[: most - 1], last + "..."]


def _fitting(word: str, width_px: float, font: Font) -> int:
    return next((count for count in range(len(word), 1, -1) if font.getlength(word[:count]) <= width_px), 1)


@dataclass(frozen=True)
class Layout:
    """Where everything lies, for cells of `cell` pixels; x and y are of the whole sheet."""

    grid: Grid
    cell: tuple[int, int]

    @property
    def font_px(self) -> int:
        """Readable beside pictures of this size."""
        return min(LARGEST_FONT, max(SMALLEST_FONT, round(self.cell[0] / 18)))

    @cached_property
    def font(self) -> Font:
        """Of labels."""
        return ImageFont.load_default(self.font_px)

    @property
    def gap(self) -> int:
        """Between cells, and around the sheet."""
        return max(6, self.font_px // 2)

    @property
    def line(self) -> int:
        """The height of a line of text."""
        return round(self.font_px * 1.3)

    @cached_property
    def columns(self) -> list[list[str]]:
        """The x labels, wrapped."""
        return self._labels(self.grid.x, self.cell[0])

    @cached_property
    def rows(self) -> list[list[str]]:
        """The y labels, wrapped."""
        return self._labels(self.grid.y, max(self.cell[0], 8 * self.font_px), most=self._row_lines)

    @property
    def _row_lines(self) -> int:
        return max(1, self.cell[1] // self.line)

    def _labels(self, axis: Axis | None, width_px: int, *, most: int = LABEL_LINES) -> list[list[str]]:
        labels = () if axis is None else axis.labels
        return [wrapped(label, width_px, self.font, most=most) for label in labels]

    @cached_property
    def left(self) -> int:
        """Where the first column begins."""
        if self.grid.y is None:
            return self.gap
        lines = [self.grid.y.name, *(line for label in self.rows for line in label)]
        return 4 * self.gap + math.ceil(max(self.font.getlength(line) for line in lines))

    @property
    def head(self) -> int:
        """The height of what stands above the cells of one block: its title, the x axis and its labels."""
        title = 0 if self.grid.z is None else 2 * self.line
        axis = 0 if self.grid.x is None and self.grid.y is None else self.line + self.gap // 2
        labels = max((len(label) for label in self.columns), default=0) * self.line
        return title + axis + labels + self.gap

    @property
    def block(self) -> int:
        """The height of one z block."""
        return self.head + self.grid.shape[1] * (self.cell[1] + self.gap) + self.gap

    @property
    def width(self) -> int:
        """Of the sheet; at least wide enough for a footer that can be read."""
        return max(self.left + self.grid.shape[0] * (self.cell[0] + self.gap), 24 * self.font_px)

    def at(self, place: tuple[int, int, int]) -> tuple[int, int]:
        """The upper left corner of a cell."""
        x, y, z = place
        top = self.gap + z * self.block + self.head
        return self.left + x * (self.cell[0] + self.gap), top + y * (self.cell[1] + self.gap)


def layout_of(grid: Grid, sizes: Sequence[tuple[int, int]]) -> Layout:
    """For pictures of these sizes: every cell is as large as the largest, or smaller where the sheet would be huge.

    Raises:
        ValueError: there is no picture.
    """
    if not sizes:
        raise ValueError("a sheet needs at least one picture")
    width, height = max(width for width, _ in sizes), max(height for _, height in sizes)
    scale = min(1.0, math.sqrt(MOST_PX / (width * height * math.prod(grid.shape))))
    return Layout(grid, (max(1, int(width * scale)), max(1, int(height * scale))))


def sheet(
    grid: Grid,
    pictures: Mapping[int, Image.Image],
    *,
    refusals: Mapping[int, str] | None = None,
    footer: Sequence[str] = (),
) -> Image.Image:
    """The grid with its pictures by cell number; a cell without one is an empty place that says why.

    Raises:
        ValueError: there is no picture.
    """
    layout = layout_of(grid, [picture.size for picture in pictures.values()])
    small = ImageFont.load_default(max(SMALLEST_FONT - 1, round(layout.font_px * 0.8)))
    below = [line for text in footer for line in wrapped(text, layout.width - 2 * layout.gap, small, most=FOOTER_LINES)]
    height = layout.gap + grid.shape[2] * layout.block + len(below) * layout.line + layout.gap
    image = Image.new("RGB", (layout.width, height), PAPER)
    draw = ImageDraw.Draw(image)
    for z in range(grid.shape[2]):
        _legend(draw, layout, z)
    for cell in grid.cells():
        left, top = layout.at(cell.place)
        picture = pictures.get(cell.number)
        if picture is None:
            _hole(draw, layout, (left, top), (refusals or {}).get(cell.number) or cell.refusal or "not painted yet")
        else:
            shown = _fitted(picture, layout.cell)
            image.paste(shown, (left, top))
    _lines(draw, below, (layout.gap, height - layout.gap - len(below) * layout.line), layout.line, small, MUTED)
    return image


def _fitted(picture: Image.Image, cell: tuple[int, int]) -> Image.Image:
    """Unchanged where it fits, else smaller, in its own proportions."""
    picture = picture.convert("RGB")
    if picture.width > cell[0] or picture.height > cell[1]:
        picture.thumbnail(cell, Image.Resampling.LANCZOS)
    return picture


def _legend(draw: ImageDraw.ImageDraw, layout: Layout, z: int) -> None:
    grid, line = layout.grid, layout.line
    left, first = layout.at((0, 0, z))
    top = first - layout.head
    if grid.z is not None:
        draw.line((layout.gap, top, layout.width - layout.gap, top), LINE)
        label = f"{grid.z.name}: {grid.z.labels[z]}"
        big = ImageFont.load_default(round(layout.font_px * 1.2))
        title = wrapped(label, layout.width - 2 * layout.gap, big, most=1)
        _lines(draw, title, (layout.gap, top + line // 3), line, big, INK)
        top += 2 * line
    if grid.x is not None:
        draw.text((left, top), grid.x.name, MUTED, layout.font)
    if grid.y is not None:
        draw.text((layout.gap, first - layout.gap - line), grid.y.name, MUTED, layout.font)
    for x, label in enumerate(layout.columns):
        _lines(draw, label, (layout.at((x, 0, z))[0], top + line + layout.gap // 2), line, layout.font, INK)
    for y, label in enumerate(layout.rows):
        middle = layout.at((0, y, z))[1] + (layout.cell[1] - len(label) * line) // 2
        _lines(draw, label, (layout.gap, middle), line, layout.font, INK)


def _hole(draw: ImageDraw.ImageDraw, layout: Layout, corner: tuple[int, int], why: str) -> None:
    (left, top), (width, height) = corner, layout.cell
    draw.rectangle((left, top, left + width - 1, top + height - 1), HOLE, LINE)
    font = ImageFont.load_default(SMALLEST_FONT - 1)
    lines = wrapped(why, width - 12, font, most=max(1, (height - 12) // SMALLEST_FONT - 1))
    _lines(draw, lines, (left + 6, top + 6), SMALLEST_FONT + 2, font, ALARM)


def _lines(
    draw: ImageDraw.ImageDraw, lines: Sequence[str], corner: tuple[int, int], line: int, font: Font, ink: str
) -> None:
    for number, text in enumerate(lines):
        draw.text((corner[0], corner[1] + number * line), text, ink, font)
