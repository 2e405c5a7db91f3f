"""`fewstep grid PROMPT --x steps=1-8 --y guidance=1,1.5,2`: other settings of one picture, as a sheet and a page."""

from __future__ import annotations

import argparse
import json
import time
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import fewstep
from fewstep.cli.options import (
    add_loading_options,
    add_request_options,
    add_saying_options,
    add_source_option,
    loading_asked,
    opened,
    request_asked,
    say_notes,
)
from fewstep.cli.output import check_new_folder, folder_names
from fewstep.cli.progress import painting
from fewstep.errors import RequestError

if TYPE_CHECKING:
    from fewstep.grid.cells import Grid
    from fewstep.grid.easel import Painted
    from fewstep.grid.folder import Folder

EXAMPLE = 'fewstep grid "a red apple, 3d" --x steps=1-8 --y guidance=1,1.5,2'
NAMES = (
    "any option with a value, or size, model, vae, lora, lora:NAME (its weight), prompt-sr (search,replacement,...), "
    "prompt-order. VALUES have commas between them, quotes around commas; numbers also 1-8, 1-9 (+2), 1-10 [5]"
)


def register(subparsers: Any) -> None:
    """Add `grid` to the command line."""
    parser = subparsers.add_parser(
        "grid",
        help="paint the same picture with other settings side by side",
        description="Paint the same picture with other settings: a sheet with legends, a page to walk through, a CSV "
        "table. The same command again goes on where it stopped.",
        allow_abbrev=False,
    )
    add_request_options(parser, without=("count",))
    for side, what in (("x", "columns"), ("y", "rows"), ("z", "sheets")):
        text = f"{what}; NAME is {NAMES}" if side == "x" else what
        parser.add_argument(f"--{side}", metavar="NAME=VALUES", help=text)
    parser.add_argument("-o", "--out", type=Path, metavar="FOLDER", help="named by the prompt if absent")
    parser.add_argument("--most", type=int, metavar="N", help="how many pictures are not yet a slip [256]")
    add_loading_options(parser)
    add_source_option(parser)
    add_saying_options(parser, document="files, cells, settings, timings")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Paints what is missing and writes; returns the exit code."""
    from fewstep.grid.easel import check

    grid, how = asked(arguments)
    parts = {name: how.pop(name) for name in ("base", "prediction")}
    folder = _folder(arguments, grid, how | parts)
    check(folder.grid.cells(), lora_folder=how["lora_folder"], **parts)
    missing, started = folder.missing(), time.perf_counter()
    there = len(grid.cells()) - len(missing)
    say = not arguments.quiet and not arguments.json
    if there and say:
        print(f"{there} of {len(grid.cells())} pictures are there already")
    try:
        _paint(arguments, folder, partial(fewstep.load, **how, **parts))
    except KeyboardInterrupt:
        folder.finish()
        done = sum(bool(row.file) for row in folder.rows.values())
        say_notes([f"{done} of {len(grid.cells())} pictures are in '{folder.path}'; the same command goes on."])
        raise
    folder.finish()
    _check_any(folder)
    _say(arguments, folder, time.perf_counter() - started)
    return 0


def asked(arguments: argparse.Namespace) -> tuple[Grid, dict[str, Any]]:
    """The grid, and how its models are loaded."""
    from fewstep.grid.axes import Axis
    from fewstep.grid.cells import MOST_CELLS, Grid
    from fewstep.grid.setting import Setting
    from fewstep.pipeline import lora_pairs

    axes = {side: Axis.parse(text) for side in "xyz" if (text := getattr(arguments, side)) is not None}
    if arguments.prompt is None and (of_prompts := [axis for axis in axes.values() if axis.name == "prompt"]):
        arguments.prompt = of_prompts[0].values[0]
    recalled, request = request_asked(arguments, example=EXAMPLE)
    how = loading_asked(arguments, recalled)
    model, vae, loras = (how.pop(name) for name in ("path", "vae", "lora"))
    pairs = None if loras is None else tuple(lora_pairs(loras))
    base = Setting(opened(request), model, vae, pairs)
    return Grid(base, **axes, most=MOST_CELLS if arguments.most is None else arguments.most), how


def _folder(arguments: argparse.Namespace, grid: Grid, how: dict[str, Any]) -> Folder:
    """The folder that was asked for, or one named by the prompt that is new or holds this grid."""
    from fewstep.errors import OutputError
    from fewstep.grid.folder import Folder

    if arguments.out is not None:
        check_new_folder(arguments.out)
        return Folder(arguments.out, grid, how)
    names = folder_names("grid", grid.base.request.prompt)
    while True:
        with suppress(OutputError):
            return Folder(next(names), grid, how)


def _paint(arguments: argparse.Namespace, folder: Folder, load: Any) -> None:
    from fewstep.grid.easel import paint

    cells = folder.missing()
    say = not arguments.quiet and not arguments.json
    with painting(arguments.quiet or arguments.json) as show:
        for done, painted in enumerate(paint(cells, load), 1):
            folder.save(painted)
            show(done, len(cells))
            if say and painted.picture is None:
                say_notes([_said(painted)])


def _said(painted: Painted) -> str:
    return f"{', '.join(painted.cell.labels)}: not painted. {painted.refusal}"


def _check_any(folder: Folder) -> None:
    if not any(row.file for row in folder.rows.values()):
        first = next(row.refusal for _, row in sorted(folder.rows.items()))
        raise RequestError(f"Not one picture could be painted. The first: {first}")


def _say(arguments: argparse.Namespace, folder: Folder, seconds: float) -> None:
    from fewstep.grid.folder import PAGE, SHEET, TABLE

    if arguments.json:
        print(json.dumps(document(folder, seconds), ensure_ascii=False, indent=2))
    elif not arguments.quiet:
        if notes := dict.fromkeys(note for row in folder.rows.values() for note in row.notes):
            say_notes(list(notes))
        for name in (SHEET, PAGE, TABLE):
            print(folder.path / name)
        if arguments.verbose:
            print(f"painted in {seconds:.1f} s")


def document(folder: Folder, seconds: float) -> dict[str, Any]:
    """What `--json` prints."""
    from fewstep.grid.folder import PAGE, SHEET, TABLE, Row

    cells = []
    for cell in folder.grid.cells():
        row = folder.rows.get(cell.number, Row())
        axes = {axis.name: label for axis, label in zip(folder.grid.axes, cell.labels, strict=True)}
        found = {"number": cell.number, "axes": axes, "file": row.file and str(folder.path / row.file)}
        found |= {"ms": row.ms and round(row.ms), "refusal": row.refusal, "parameters": row.text}
        cells.append(found)
    files = {"sheet": SHEET, "page": PAGE, "table": TABLE}
    return {
        "folder": str(folder.path),
        **{name: str(folder.path / file) for name, file in files.items()},
        "seed": folder.seed,
        "cells": cells,
        "timings": {"paint_s": round(seconds, 3)},
    }
