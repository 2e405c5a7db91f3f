"""A grid in a folder: its pictures, written one by one, and what is made of them: sheet, page, table.

grid.json     which grid this is, so that the same command goes on where it stopped, and another does not mix in
pictures/     001-steps-1.png ..., each with its own settings
grid.png      the sheet                    index.html    the same to walk through
cells.csv     every cell: axes, seed, file, milliseconds, settings
"""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import re
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from PIL import Image

from fewstep import __version__
from fewstep.checkpoints.files import write_json, write_whole
from fewstep.errors import FewstepError, OutputError
from fewstep.grid.axes import FILES
from fewstep.grid.cells import Cell, Grid
from fewstep.grid.easel import Painted
from fewstep.grid.page import Entry, page
from fewstep.grid.sheet import sheet
from fewstep.image import save_image
from fewstep.infotext import Infotext, Picture, parse, read, write
from fewstep.request import SEED_COUNT, Request

STATE, SHEET, PAGE, TABLE, PICTURES = "grid.json", "grid.png", "index.html", "cells.csv", "pictures"


@dataclasses.dataclass(frozen=True)
class Row:
    """What came of a cell: the picture's file under the folder and its infotext, or why there is none."""

    file: str = ""
    text: str = ""
    ms: float | None = None
    refusal: str = ""
    notes: tuple[str, ...] = ()

    @property
    def info(self) -> Infotext:
        """The picture's settings."""
        return parse(self.text) if self.text else Infotext()


class Folder:
    """Where one grid lies. Nothing is written before the first picture is saved.

    A grid whose seed is left open gets one here: that of the folder, or a random one. `how` is whatever else tells
    two grids apart, such as the device.

    Raises:
        OutputError: the folder holds something else, or cannot be written to.
    """

    def __init__(self, path: Path, grid: Grid, how: Mapping[str, Any] | None = None) -> None:
        self.path = path
        self._identity = identity(grid, how or {})
        state = read_state(path)
        if state is None and path.exists() and (not path.is_dir() or any(path.iterdir())):
            raise OutputError(f"'{path}' holds something else. Choose another name, or an empty folder, with -o.")
        if state is not None and state.get("identity") != self._identity:
            raise OutputError(
                f"'{path}' holds a grid with other settings. Repeat its command to go on with it, or choose another "
                "name with -o."
            )
        seed = grid.base.request.seed
        self.seed: int = seed if seed is not None else (state or {}).get("seed", secrets.randbelow(SEED_COUNT))
        self.grid = dataclasses.replace(grid, base=grid.base.with_fields(seed=self.seed))
        self.rows: dict[int, Row] = _found(path, self.grid) if state is not None else {}

    def missing(self) -> list[Cell]:
        """The cells that are still to be painted, in the cheapest order."""
        return [cell for cell in self.grid.painting_order() if not self.rows.get(cell.number, Row()).file]

    def save(self, painted: Painted) -> None:
        """Writes the picture at once; a refusal is remembered for the table."""
        cell, picture = painted.cell, painted.picture
        if picture is None:
            self.rows[cell.number] = Row(refusal=painted.refusal)
            return
        name = file_name(cell)
        target = self.path / name
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise OutputError(f"'{target.parent}' cannot be made ({error.strerror}). Choose another place.") from None
        if not (self.path / STATE).exists():
            write_json(self.path / STATE, {"identity": self._identity, "seed": self.seed})
        save_image(picture, target)
        self.rows[cell.number] = Row(name, str(picture.info["parameters"]), painted.ms, notes=painted.notes)

    def finish(self) -> None:
        """Writes sheet, page and table of what there is; nothing where no picture is."""
        painted = {number: self.path / row.file for number, row in self.rows.items() if row.file}
        if not painted:
            return
        refusals = {number: row.refusal for number, row in self.rows.items()}
        common = self.common()
        text = self.table()
        write_whole(self.path / TABLE, lambda part: part.write_text(text, encoding="utf-8", newline=""))
        pictures = {number: _opened(file) for number, file in painted.items()}
        lines = footer(common, self.grid)
        image = sheet(self.grid, pictures, refusals=refusals, footer=lines)
        save_image(Picture.of(image, self.infotext()), self.path / SHEET)
        entries = [
            Entry(cell, pictures.get(cell.number), row.file, row.text, row.ms, row.refusal or cell.refusal)
            for cell in self.grid.cells()
            for row in [self.rows.get(cell.number, Row())]
        ]
        made = page(self.grid, entries, lines)
        write_whole(self.path / PAGE, lambda part: part.write_text(made, encoding="utf-8"))

    def common(self) -> Infotext:
        """What all pictures have in common: the prompts, where they are the same, and settings."""
        infos = [row.info for row in self.rows.values() if row.file]
        prompt, negative = {info.prompt for info in infos}, {info.negative_prompt for info in infos}
        same = set.intersection(*(set(info.settings.items()) for info in infos))
        settings = {key: value for key, value in infos[0].settings.items() if (key, value) in same}
        return Infotext(
            prompt.pop() if len(prompt) == 1 else "", negative.pop() if len(negative) == 1 else "", settings
        )

    def infotext(self) -> str:
        """What the sheet records: the first picture's settings, and the axes as A1111 names them."""
        first = next(row.info for _, row in sorted(self.rows.items()) if row.file)
        axes = {"Script": "X/Y/Z plot"}
        for side in "XYZ":
            axis = getattr(self.grid, side.lower())
            if axis is not None:
                axes |= {f"{side} Type": axis.foreign_type, f"{side} Values": axis.text}
        return write(Infotext(first.prompt, first.negative_prompt, {**first.settings, **axes}))

    def table(self) -> str:
        """Every cell as a row of a CSV file."""
        keys = list(dict.fromkeys(key for _, row in sorted(self.rows.items()) for key in row.info.settings))
        sides = [(side, getattr(self.grid, side)) for side in "xyz"]
        names = [f"{side}: {axis.name}" for side, axis in sides if axis is not None]
        stream = io.StringIO()
        lines = csv.writer(stream)
        lines.writerow(["number", *names, "file", "seed", "ms", "refusal", "notes", "prompt", "negative_prompt", *keys])
        for cell in self.grid.cells():
            row = self.rows.get(cell.number, Row())
            info, ms = row.info, "" if row.ms is None else f"{row.ms:.0f}"
            said = (row.file, info.settings.get("Seed", ""), ms, row.refusal or cell.refusal, " ".join(row.notes))
            values = [info.settings.get(key, "") for key in keys]
            lines.writerow([cell.number, *cell.labels, *said, info.prompt, info.negative_prompt, *values])
        return stream.getvalue()


def file_name(cell: Cell) -> str:
    """Where a cell's picture goes, under the folder."""
    words = "-".join(re.findall(r"[a-z0-9.]+", " ".join(cell.labels).lower()))[:60].strip("-.")
    return f"{PICTURES}/{cell.number:03d}-{words}.png" if words else f"{PICTURES}/{cell.number:03d}.png"


def footer(common: Infotext, grid: Grid) -> list[str]:
    """What all pictures have in common, as lines; of prompts in which words are replaced, the one that was given."""
    given = "" if "prompt" in [axis.name for axis in grid.axes] else grid.base.request.prompt
    settings = ", ".join(f"{key}: {value}" for key, value in common.settings.items())
    negative = f"Negative prompt: {common.negative_prompt}" if common.negative_prompt else ""
    return [line for line in (common.prompt or given, negative, settings) if line]


def identity(grid: Grid, how: Mapping[str, Any]) -> dict[str, Any]:
    """All that the pictures depend on, as plain JSON; files by path, size and time."""
    request = grid.base.request
    fields = {name: _plain(getattr(request, name)) for name in (f.name for f in dataclasses.fields(Request))}
    axes = {side: getattr(grid, side) for side in "xyz"}
    files = [grid.base.model, grid.base.vae, *(path for path, _ in grid.base.all_loras)]
    for axis in axes.values():
        if axis is not None and axis.name in FILES:
            files += [value[0] if isinstance(value, tuple) else value for value in axis.values]
    found = {
        "fields": fields,
        "axes": {side: [axis.name, axis.text] for side, axis in axes.items() if axis is not None},
        "model": _plain(grid.base.model),
        "vae": _plain(grid.base.vae),
        "loras": [[str(path), weight] for path, weight in grid.base.all_loras],
        "files": {str(path): _stamp(Path(path)) for path in files if path is not None},
        "how": {key: _plain(value) for key, value in how.items()},
        "version": __version__,
    }
    return json.loads(json.dumps(found))


def _plain(value: Any) -> Any:
    if isinstance(value, Image.Image):
        from fewstep.image import content_hash

        return content_hash(value)
    return str(value) if isinstance(value, Path) else value


def _stamp(path: Path) -> list[int] | None:
    path = path.expanduser()
    return [path.stat().st_size, path.stat().st_mtime_ns] if path.is_file() else None


def read_state(folder: Path) -> dict[str, Any] | None:
    """What a grid's folder says of itself; None where it is no such folder, {} where that cannot be read."""
    path = folder / STATE
    if not path.is_file():
        return None
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, OSError, RecursionError):
        return {}
    return found if isinstance(found, dict) and isinstance(found.get("seed"), int) else {}


def _found(folder: Path, grid: Grid) -> dict[int, Row]:
    """The pictures that are there already; a picture that cannot be read is painted again."""
    times = _times(folder / TABLE)
    rows: dict[int, Row] = {}
    for cell in grid.cells():
        name = file_name(cell)
        try:
            text = read(folder / name)
        except FewstepError:
            continue
        if text:
            ms, notes = times.get(name, (None, ""))
            rows[cell.number] = Row(name, text, ms, notes=(notes,) if notes else ())
    return rows


def _times(path: Path) -> dict[str, tuple[float | None, str]]:
    """(milliseconds, notes) by file, from the table of an earlier run."""
    try:
        with path.open(encoding="utf-8", newline="") as stream:
            rows = list(csv.DictReader(stream))
        return {row["file"]: (float(row["ms"]) if row["ms"] else None, row["notes"] or "") for row in rows}
    except (OSError, ValueError, KeyError, TypeError, csv.Error):
        return {}


def _opened(path: Path) -> Image.Image:
    with Image.open(path) as image:
        return image.convert("RGB")
