"""Pictures side by side with words at the edges: contact sheets, comparison tables. Pillow only."""

from __future__ import annotations

import math
from collections.abc import Sequence

from PIL import Image, ImageDraw, ImageFont

GAP_PX = 8
FONT_PX = 14
PAPER, INK = "white", "black"
Font = ImageFont.FreeTypeFont | ImageFont.ImageFont


def table(
    rows: Sequence[Sequence[Image.Image | None]],
    *,
    row_labels: Sequence[str] = (),
    column_labels: Sequence[str] = (),
) -> Image.Image:
    """A table of pictures with labels to the left and on top; None leaves a place empty.

    Every place is as large as the largest picture. Labels too long for their place are shortened.

    Raises:
        ValueError: no picture at all, or as many labels as there are not rows or columns.
    """
    width, height = _largest([picture for row in rows for picture in row])
    columns = max(len(row) for row in rows)
    _check_labels("row", row_labels, len(rows))
    _check_labels("column", column_labels, columns)
    font = _font()
    left = GAP_PX + (max(math.ceil(font.getlength(label)) for label in row_labels) + GAP_PX if row_labels else 0)
    top = GAP_PX + (FONT_PX + GAP_PX if column_labels else 0)
    sheet = Image.new("RGB", (left + columns * (width + GAP_PX), top + len(rows) * (height + GAP_PX)), PAPER)
    draw = ImageDraw.Draw(sheet)
    for index, label in enumerate(column_labels):
        draw.text((left + index * (width + GAP_PX), GAP_PX), shortened(label, width, font), INK, font)
    for index, row in enumerate(rows):
        y = top + index * (height + GAP_PX)
        if row_labels:
            draw.text((GAP_PX, y + (height - FONT_PX) // 2), row_labels[index], INK, font)
        for column, picture in enumerate(row):
            if picture is not None:
                sheet.paste(picture.convert("RGB"), (left + column * (width + GAP_PX), y))
    return sheet


def contact_sheet(
    pictures: Sequence[Image.Image], *, labels: Sequence[str] = (), columns: int | None = None
) -> Image.Image:
    """All pictures in nearly as many rows as columns, each with its label below.

    Raises:
        ValueError: no picture, or not one label for each.
    """
    _largest(pictures)
    _check_labels("picture", labels, len(pictures))
    columns = columns or math.ceil(math.sqrt(len(pictures)))
    cells = [_labelled(*pair) for pair in zip(pictures, labels, strict=True)] if labels else list(pictures)
    return table([cells[start : start + columns] for start in range(0, len(cells), columns)])


def _labelled(picture: Image.Image, label: str) -> Image.Image:
    font = _font()
    cell = Image.new("RGB", (picture.width, picture.height + FONT_PX + GAP_PX), PAPER)
    cell.paste(picture.convert("RGB"))
    ImageDraw.Draw(cell).text((0, picture.height + GAP_PX // 2), shortened(label, picture.width, font), INK, font)
    return cell


def shortened(label: str, width_px: float, font: Font | None = None) -> str:
    """The label, its end replaced by two dots where it is wider than `width_px`.

    >>> shortened("cat", 200)
    'cat'
    """
    font = font or _font()
    if font.getlength(label) <= width_px:
        return label
    kept = next((n for n in range(len(label) - 1, 0, -1) if font.getlength(label[:n] + "..") <= width_px), 0)
    return label[:kept] + ".." if kept else ""


def _largest(pictures: Sequence[Image.Image | None]) -> tuple[int, int]:
    sizes = [picture.size for picture in pictures if picture is not None]
    if not sizes:
        raise ValueError("a sheet needs at least one picture")
    return max(width for width, _ in sizes), max(height for _, height in sizes)


def _check_labels(what: str, labels: Sequence[str], count: int) -> None:
    if labels and len(labels) != count:
        raise ValueError(f"{len(labels)} {what} labels for {count} of them")


def _font() -> Font:
    return ImageFont.load_default(FONT_PX)
