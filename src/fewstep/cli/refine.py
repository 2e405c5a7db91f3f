"""`fewstep refine 3,7 --steps 8 --strength .4`: the variants you like, painted over with their own settings."""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import fewstep
from fewstep.cli.options import (
    add_field,
    add_loading_options,
    add_request_options,
    add_saying_options,
    check_loras,
    fields_asked,
    loading_asked,
    opened,
    say_notes,
)
from fewstep.cli.output import check_folder
from fewstep.cli.progress import painting
from fewstep.cli.variants import document
from fewstep.errors import RequestError
from fewstep.request import SPECS

if TYPE_CHECKING:
    from PIL import Image

    from fewstep.grid.variants import Variants
    from fewstep.plan import Plan

Pair = tuple[str, str, "Image.Image", "Image.Image"]


def register(subparsers: Any) -> None:
    """Add `refine` to the command line."""
    parser = subparsers.add_parser(
        "refine",
        help="paint over some variants with their own settings",
        description="Paint over variants that you like, each as image to image with its own seed, prompt, model and "
        "LoRAs; every option may be another, such as a larger size.",
        allow_abbrev=False,
    )
    parser.add_argument("names", metavar="NUMBERS", nargs="?", help="such as 3,7-9, or 3-refined to go on with that")
    add_field(parser, "prompt", SPECS["prompt"])
    add_request_options(parser, without=("prompt", "count", "image"))
    parser.add_argument("--from", dest="folder", type=Path, metavar="FOLDER", help="the newest variants here if absent")
    add_loading_options(parser)
    add_saying_options(parser, document="folder, files, settings, timings")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Paints and writes; returns the exit code."""
    from fewstep.grid.variants import Variants, newest

    if arguments.names is None:
        raise RequestError("No picture was chosen. Write its number: fewstep refine 3,7 --steps 8 --strength 0.4")
    check_loras(arguments)
    variants = Variants.open(newest(Path()) if arguments.folder is None else arguments.folder)
    check_folder(variants.path)
    names, explicit = variants.chosen(arguments.names), fields_asked(arguments)
    requests = {name: opened(variants.refinement(name, explicit)) for name in names}
    started = time.perf_counter()
    pipe = fewstep.load(**_loading(arguments, variants.load))
    plans = {name: pipe.plan(request) for name, request in requests.items()}
    if not arguments.quiet:
        notes = dict.fromkeys(note for plan in plans.values() for note in plan.notes)
        say_notes(list(notes), pipe.notes if arguments.verbose else ())
    pairs: list[Pair] = []
    sheet = variants.sheet_file()
    try:
        _paint(arguments, pipe, plans, variants, pairs)
    finally:
        if pairs:
            _write_sheet(pairs, sheet)
    _say(arguments, variants, pairs, sheet, time.perf_counter() - started)
    return 0


def _loading(arguments: argparse.Namespace, remembered: Mapping[str, Any]) -> dict[str, Any]:
    """What painted the variants, but for what is asked for now; another model comes without the first one's LoRAs."""
    asked = loading_asked(arguments, None)
    if asked["path"] is not None:
        return asked
    return {**remembered, **{key: value for key, value in asked.items() if value is not None}}


def _paint(
    arguments: argparse.Namespace,
    pipe: fewstep.Pipeline,
    plans: Mapping[str, Plan],
    variants: Variants,
    pairs: list[Pair],
) -> None:
    from fewstep.image import save_image

    with painting(arguments.quiet or arguments.json) as show:
        for name, plan in plans.items():
            *_, last = pipe.run(plan)
            picture, new = last.pictures()[0], variants.refined_name(name)
            save_image(picture, variants.file(new))
            variants.add(new, plan.request)
            assert plan.image is not None
            pairs.append((name, new, plan.image, picture))
            show(len(pairs), len(plans))


def _write_sheet(pairs: list[Pair], path: Path) -> None:
    """One row for each picture; before is scaled to the size of after."""
    from fewstep.grid.contact import table
    from fewstep.image import save_image
    from fewstep.infotext import PNG_KEY, Picture

    rows = [[before, after] for _, _, before, after in pairs]
    sheet = table(rows, row_labels=[name for name, *_ in pairs], column_labels=["before", "after"])
    save_image(Picture.of(sheet, pairs[0][3].info[PNG_KEY]), path)


def _say(arguments: argparse.Namespace, variants: Variants, pairs: list[Pair], sheet: Path, seconds: float) -> None:
    if arguments.json:
        print(json.dumps(document(variants, [new for _, new, *_ in pairs], sheet, seconds), indent=2))
    elif not arguments.quiet:
        for _, new, *_ in pairs:
            print(variants.file(new))
        print(sheet)
