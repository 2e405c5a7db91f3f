"""`fewstep variants PROMPT --count 16 --steps 4`: numbered pictures to choose from; `fewstep refine` goes on."""

from __future__ import annotations

import argparse
import json
import secrets
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import fewstep
from fewstep.cli.options import (
    add_field,
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
from fewstep.request import SEED_COUNT, SPECS, Request

if TYPE_CHECKING:
    from fewstep.grid.variants import Variants
    from fewstep.infotext import Picture
    from fewstep.plan import Plan


def register(subparsers: Any) -> None:
    """Add `variants` to the command line."""
    parser = subparsers.add_parser(
        "variants",
        help="paint numbered pictures of one prompt, to refine some of them",
        description="Paint numbered pictures of one prompt and a sheet; `fewstep refine 3,7` refines those you like.",
        allow_abbrev=False,
    )
    add_request_options(parser, without=("count",))
    add_field(parser, "count", SPECS["count"], usual=16)
    parser.add_argument("-o", "--out", type=Path, metavar="FOLDER", help="new folder; named by the prompt if absent")
    add_loading_options(parser)
    add_source_option(parser)
    add_saying_options(parser, document="folder, files, seeds, settings, timings")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Paints and writes; returns the exit code."""
    from fewstep.grid.variants import SHEET, Variants, check_empty
    from fewstep.pipeline import lora_pairs

    recalled, request = _request(arguments)
    path = arguments.out or next(p for p in folder_names("variants", request.prompt) if not p.exists())
    check_new_folder(path)
    check_empty(path)
    load = loading_asked(arguments, recalled)
    if load["lora"]:
        load["lora"] = lora_pairs(load["lora"])
    started = time.perf_counter()
    pipe = fewstep.load(**load)
    plan = pipe.plan(opened(request))
    if not arguments.quiet:
        say_notes(plan.notes, pipe.notes if arguments.verbose else ())
    variants, pictures = Variants(path, load), []
    try:
        _paint(arguments, pipe, plan, variants, pictures)
    finally:
        if pictures:
            _write_sheet(plan, pictures, path / SHEET)
    _say(arguments, variants, pictures, time.perf_counter() - started)
    return 0


def _request(arguments: argparse.Namespace) -> tuple[Any, Request]:
    from fewstep.grid.variants import COUNT

    recalled, request = request_asked(arguments, example='fewstep variants "a red apple" --count 16 --steps 4')
    seed = secrets.randbelow(SEED_COUNT) if request.seed is None else request.seed
    return recalled, request.replaced(seed=seed, count=COUNT if arguments.count is None else request.count)


def _paint(
    arguments: argparse.Namespace, pipe: fewstep.Pipeline, plan: Plan, variants: Variants, pictures: list[Picture]
) -> None:
    """Each picture is written when it is done, so that an interruption loses only what is missing."""
    from fewstep.image import save_image

    with painting(arguments.quiet or arguments.json) as show:
        for step in pipe.run(plan):
            show(step.first * step.count + step.index + 1, plan.request.count * step.count)
            for picture in step.pictures() if step.last else ():
                variants.path.mkdir(exist_ok=True)
                name = str(len(pictures) + 1)
                save_image(picture, variants.file(name))
                variants.add(name, plan.request.replaced(seed=plan.seed_of(len(pictures))))
                pictures.append(picture)


def _write_sheet(plan: Plan, pictures: list[Picture], path: Path) -> None:
    from fewstep.grid.contact import contact_sheet
    from fewstep.image import save_image
    from fewstep.infotext import PNG_KEY, Picture

    labels = [f"{index + 1}: seed {plan.seed_of(index)}" for index in range(len(pictures))]
    save_image(Picture.of(contact_sheet(pictures, labels=labels), pictures[0].info[PNG_KEY]), path)


def _say(arguments: argparse.Namespace, variants: Variants, pictures: list[Picture], seconds: float) -> None:
    from fewstep.grid.variants import SHEET

    sheet = variants.path / SHEET
    if arguments.json:
        print(json.dumps(document(variants, list(variants.pictures), sheet, seconds), ensure_ascii=False, indent=2))
    elif not arguments.quiet:
        print(f"{sheet}  {len(pictures)} pictures; refine some with: fewstep refine 1,2 --from {variants.path}")


def document(variants: Variants, names: list[str], sheet: Path, seconds: float) -> dict[str, Any]:
    """What `--json` prints, here and when pictures are refined."""
    from fewstep.infotext import read

    return {
        "folder": str(variants.path),
        "sheet": str(sheet),
        "pictures": [
            {"name": name, "file": str(variants.file(name)), "settings": variants.pictures[name]} for name in names
        ],
        "parameters": [read(variants.file(name)) for name in names],
        "timings": {"paint_s": round(seconds, 3)},
    }
