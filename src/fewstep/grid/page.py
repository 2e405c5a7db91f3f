"""The grid as one HTML file that stands alone: its pictures, style and script are inside, and it asks no network.

It is a plain table without the script; with it cells open, are walked through by arrow keys, pinned and compared.
Its content security policy allows exactly this style and this script, by their hashes, and pictures from the page.
"""

from __future__ import annotations

import base64
import hashlib
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from urllib.parse import quote

from PIL import Image

from fewstep.grid.cells import Cell, Grid

LARGEST_PX, LOSSLESS_AREA, QUALITY = 1024, 256 * 256, 90


@dataclass(frozen=True)
class Entry:
    """One cell of the page: its picture, or why there is none; `file` is its address from the page, `text` what it
    records.
    """

    cell: Cell
    picture: Image.Image | None
    file: str = ""
    text: str = ""
    ms: float | None = None
    refusal: str = ""


def page(grid: Grid, entries: Sequence[Entry], common: Sequence[str]) -> str:
    """The whole page; `common` are lines on what all pictures share, `entries` the cells in the sheet's order."""
    style, script = (Path(__file__).with_name(f"page.{kind}").read_text(encoding="utf-8") for kind in ("css", "js"))
    policy = (
        f"default-src 'none'; img-src data:; style-src '{_hash(style)}'; script-src '{_hash(script)}'; "
        "base-uri 'none'; form-action 'none'"
    )
    title = " × ".join(axis.name for axis in grid.axes)
    facts = [_facts(entry, [axis.name for axis in grid.axes]) for entry in entries]
    data = json.dumps(facts, ensure_ascii=False).replace("<", "\\u003c")
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{style}</style></head><body>"
        f"<header><h1>{escape(title)}</h1>{''.join(f'<p>{escape(line)}</p>' for line in common)}</header>"
        f"{_bar(grid)}<main>{_tables(grid, entries)}</main>{_DIALOG}"
        f'<script type="application/json" id="cells">{data}</script><script>{script}</script></body></html>\n'
    )


def _hash(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def _facts(entry: Entry, names: Sequence[str]) -> dict[str, object]:
    """What the script knows of a cell; pictures are taken from the table."""
    cell = entry.cell
    return {
        "number": cell.number,
        "place": cell.place,
        "labels": cell.labels,
        "axes": list(zip(names, cell.labels, strict=True)),
        "file": quote(entry.file),
        "text": entry.text,
        "ms": None if entry.ms is None else round(entry.ms),
        "refusal": entry.refusal,
    }


def _bar(grid: Grid) -> str:
    """Size of the cells, and which z is shown."""
    switch = ""
    if grid.z is not None:
        buttons = [("all", "all"), *((str(place), label) for place, label in enumerate(grid.z.labels))]
        inside = "".join(f'<button data-z="{value}">{escape(label)}</button>' for value, label in buttons)
        switch = f'<div class="switch" role="group" aria-label="{escape(grid.z.name)}">{inside}</div>'
    slider = '<label>size <input id="size" type="range" min="48" max="768" step="8"></label>'
    return f'<nav class="bar">{slider}{switch}<span id="pinned"></span></nav>'


def _tables(grid: Grid, entries: Sequence[Entry]) -> str:
    columns, rows, _ = grid.shape
    per_table = columns * rows
    tables = [entries[start : start + per_table] for start in range(0, len(entries), per_table)]
    return "".join(_table(grid, z, part) for z, part in enumerate(tables))


def _table(grid: Grid, z: int, entries: Sequence[Entry]) -> str:
    columns = grid.shape[0]
    x, y = grid.x, grid.y
    corner = " ".join([f"{y.name} ↓" if y is not None else "", f"{x.name} →" if x is not None else ""]).strip()
    heads = "".join(f'<th scope="col">{escape(label)}</th>' for label in (x.labels if x is not None else ("",)))
    lines = []
    for row in range(grid.shape[1]):
        label = "" if y is None else y.labels[row]
        cells = "".join(_cell(entry) for entry in entries[row * columns : (row + 1) * columns])
        lines.append(f'<tr><th scope="row">{escape(label)}</th>{cells}</tr>')
    title = "" if grid.z is None else f"<h2>{escape(grid.z.name)}: {escape(grid.z.labels[z])}</h2>"
    return (
        f'<section data-z="{z}">{title}<div class="scroll"><table><thead><tr><th>{escape(corner)}</th>{heads}</tr>'
        f"</thead><tbody>{''.join(lines)}</tbody></table></div></section>"
    )


def _cell(entry: Entry) -> str:
    number = entry.cell.number
    if entry.picture is None:
        return f'<td class="hole">{escape(entry.refusal or "not painted yet")}</td>'
    name = escape(", ".join(entry.cell.labels))
    width, height = entry.picture.size
    image = f'<img src="{_data(entry.picture)}" width="{width}" height="{height}" alt="{name}">'
    return f'<td><button class="cell" id="cell-{number}" title="{name}">{image}</button></td>'


def _data(picture: Image.Image) -> str:
    """As WebP inside the page: without loss where small, else at most 1024 px wide and high."""
    shown = picture.convert("RGB")
    shown.thumbnail((LARGEST_PX, LARGEST_PX), Image.Resampling.LANCZOS)
    stream = io.BytesIO()
    shown.save(stream, "WEBP", quality=QUALITY, lossless=shown.width * shown.height <= LOSSLESS_AREA)
    return "data:image/webp;base64," + base64.b64encode(stream.getvalue()).decode()


_DIALOG = (
    '<dialog id="zoom"><figure><img id="large" alt=""><figcaption id="name"></figcaption></figure><aside>'
    '<dl id="facts"></dl><pre id="text"></pre><p class="row"><button id="copy">copy settings</button>'
    '<button id="pin">pin</button><button id="compare">hold to compare</button><a id="file">file</a>'
    '<button id="close">close</button></p><p class="keys"><kbd>←</kbd> <kbd>→</kbd> x, <kbd>↑</kbd> <kbd>↓</kbd> y, '
    "<kbd>[</kbd> <kbd>]</kbd> z, <kbd>p</kbd> pin, hold <kbd>space</kbd> or the picture: the pinned one, "
    "<kbd>1</kbd> true size, <kbd>c</kbd> copy, <kbd>esc</kbd> close</p></aside></dialog>"
)
