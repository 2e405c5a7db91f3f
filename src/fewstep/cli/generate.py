"""`fewstep generate PROMPT -o apple.png`: parse, check, paint, write, say."""

from __future__ import annotations

import argparse
import dataclasses
import json
import secrets
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import fewstep
from fewstep.cli.hires import add_hires_options, add_hires_pipeline, check_hires, hires_settings
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
from fewstep.cli.output import check_new_folder, check_outputs, default_name, numbered, step_name
from fewstep.cli.progress import painting
from fewstep.request import SEED_COUNT, Request
from fewstep.wildcards import expanded

if TYPE_CHECKING:
    from fewstep.cli.recall import Recalled
    from fewstep.infotext import Picture
    from fewstep.pipeline import PictureStep, Pipeline
    from fewstep.plan import Plan


def register(subparsers: Any) -> None:
    """Add `generate` to the command line."""
    parser = subparsers.add_parser(
        "generate",
        help="paint pictures from a prompt",
        description="Paint pictures from a prompt; with --image from a picture, with --mask only a part of it.",
        allow_abbrev=False,
    )
    add_request_options(parser)
    parser.add_argument(
        "-o", "--out", type=Path, metavar="FILE", help="png, jpg, webp or avif; named by the prompt if none"
    )
    add_loading_options(parser)
    add_hires_options(parser)
    add_source_option(parser)
    parser.add_argument(
        "--dynamic", action="store_true", help="prompts are templates, {a|b}: each picture's seed chooses one"
    )
    parser.add_argument("--wildcards", metavar="FOLDER", help="the same, with __name__ for a line of name.txt in it")
    parser.add_argument("--grid", action="store_true", help="write one contact sheet instead of single pictures")
    parser.add_argument("--preview", type=Path, metavar="FOLDER", help="also write what each step sees here")
    add_saying_options(parser, document="files, seeds, settings, timings")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Paints and writes; returns the exit code. What can be wrong without the model is found before it is loaded."""
    recalled, request = request_asked(arguments, example='fewstep generate "a red apple" -o apple.png')
    check_hires(arguments, request.hires)
    request = request.replaced(seed=secrets.randbelow(SEED_COUNT)) if request.seed is None else request
    out = arguments.out or default_name(request.prompt, request.seed or 0)
    paths = numbered(out, 1 if arguments.grid else request.count)
    check_outputs(paths, (request.image, request.mask, arguments.source))
    if arguments.preview is not None:
        check_new_folder(arguments.preview)
    request = opened(request)
    requests = _each(arguments, request)
    started = time.perf_counter()
    pipe = fewstep.load(**loading_asked(arguments, recalled))
    add_hires_pipeline(pipe, arguments, recalled)
    plans = [_recorded(pipe.plan(one), one, request) for one in requests]
    plan, loaded, known = plans[0], time.perf_counter(), pipe.notes
    of_plans = dict.fromkeys(note for plan in plans for note in plan.notes)
    notes = [*of_plans, *(_differences(recalled, plan, pipe) if recalled else ())]
    if not arguments.quiet:
        say_notes(notes, (*pipe.notes, *_lengths(pipe, plan)) if arguments.verbose else ())
    pictures = _paint(arguments, pipe, plans, paths)
    notes += (unsaid := [*_not_carried(paths, pictures), *(note for note in pipe.notes if note not in known)])
    if not arguments.quiet:
        say_notes(unsaid)
    timings = {"load_s": loaded - started, "generate_s": time.perf_counter() - loaded}
    if arguments.json:
        print(json.dumps(_document(pipe, plans, paths, pictures, timings, notes), ensure_ascii=False, indent=2))
    elif not arguments.quiet:
        _say_files(_seeds(plans), paths, timings, arguments)
    return 0


def _each(arguments: argparse.Namespace, request: Request) -> list[Request]:
    """The request; of a template one for each picture, with the prompts that its seed chooses."""
    if not (arguments.dynamic or arguments.wildcards):
        return [request]
    seeds = [((request.seed or 0) + index) % SEED_COUNT for index in range(request.count)]
    texts = ("prompt", "negative_prompt")
    return [
        request.replaced(
            count=1,
            seed=seed,
            **{name: expanded(getattr(request, name), seed, folder=arguments.wildcards) for name in texts},
        )
        for seed in seeds
    ]


def _recorded(plan: Plan, request: Request, template: Request) -> Plan:
    """The plan, whose pictures record the template that their prompt was made from."""
    keys = {"Template": "prompt", "Negative Template": "negative_prompt"}
    changed = {
        key: getattr(template, name) for key, name in keys.items() if getattr(template, name) != getattr(request, name)
    }
    return dataclasses.replace(plan, extra={**plan.extra, **changed})


def _differences(recalled: Recalled, plan: Plan, pipe: Pipeline) -> list[str]:
    from fewstep.cli.recall import differences

    return differences(recalled, plan, pipe.facts(plan.tags))


def _paint(arguments: argparse.Namespace, pipe: Pipeline, plans: list[Plan], paths: list[Path]) -> list[Picture]:
    """Runs the plans; each picture is written when it is done, so that an interruption loses only what is missing."""
    from fewstep.image import save_image

    pictures: list[Picture] = []
    total = len(_seeds(plans))
    names = numbered(paths[0], total) if arguments.grid else paths
    with painting(arguments.quiet or arguments.json) as show:
        for step in (step for plan in plans for step in pipe.run(plan)):
            show(len(pictures) * step.count + step.index + 1, total * step.count)
            if arguments.preview is not None:
                _write_preview(arguments.preview, names[len(pictures) :], step)
            if not step.last:
                continue
            for picture in step.pictures():
                if not arguments.grid:
                    save_image(picture, paths[len(pictures)])
                pictures.append(picture)
    if arguments.grid:
        save_image(_sheet(_seeds(plans), pictures), paths[0])
    return pictures


def _seeds(plans: list[Plan]) -> list[int]:
    return [plan.seed_of(index) for plan in plans for index in range(plan.request.count)]


def _not_carried(paths: list[Path], pictures: list[Picture]) -> list[str]:
    """A note where a file's format had no room for the settings of its picture."""
    from fewstep.image import format_of
    from fewstep.infotext import PNG_KEY, no_room

    notes = (no_room(picture.info[PNG_KEY], format_of(path)) for path, picture in zip(paths, pictures, strict=False))
    return [*dict.fromkeys(filter(None, notes))]


def _write_preview(folder: Path, names: list[Path], step: PictureStep) -> None:
    from fewstep.image import save_image

    folder.mkdir(exist_ok=True)
    for offset, picture in enumerate(step.preview()):
        save_image(picture, step_name(folder, names[offset], step.index + 1))


def _sheet(seeds: list[int], pictures: list[Picture]) -> Picture:
    """All pictures with their seeds; it carries the first one's settings."""
    from fewstep.grid import contact_sheet
    from fewstep.infotext import PNG_KEY, Picture

    labels = [f"seed {seed}" for seed in seeds]
    return Picture.of(contact_sheet(pictures, labels=labels), pictures[0].info[PNG_KEY])


def _document(
    pipe: Pipeline,
    plans: list[Plan],
    paths: list[Path],
    pictures: list[Picture],
    timings: dict[str, float],
    notes: list[str],
) -> dict[str, Any]:
    """What `--json` prints."""
    from fewstep.plan import IMAGE_HASH, MASK_HASH

    plan = plans[0]
    pictures_used = {"image": plan.hashes.get(IMAGE_HASH), "mask": plan.hashes.get(MASK_HASH)}
    settings = {field.name: getattr(plan.request, field.name) for field in dataclasses.fields(plan.request)}
    settings |= pictures_used | {"steps": len(plan.timesteps), "guidance": plan.guidance, "sampler": plan.sampler.name}
    settings |= {"schedule": plan.table, "width": plan.size[0], "height": plan.size[1]}
    settings |= {"timesteps": list(plan.timesteps), "seed": plan.seed}
    settings |= {"strength": plan.strength if plan.image else None, "model": pipe.model.name}
    settings |= hires_settings(plan)
    settings["loras"] = [{"name": lora.name, "weight": weight} for lora, weight in pipe.loras]
    return {
        "files": [str(path) for path in paths],
        "seed": plan.seed,
        "seeds": _seeds(plans),
        "prompts": [plan.request.prompt for plan in plans for _ in range(plan.request.count)],
        "settings": settings,
        "tokens": pipe.tokens(plan),
        "parameters": [picture.info["parameters"] for picture in pictures],
        "timings": {name: round(value, 3) for name, value in timings.items()},
        "notes": notes,
    }


def _lengths(pipe: Pipeline, plan: Plan) -> list[str]:
    room = pipe.model.text.length - 2
    return [
        f"{name.replace('_', ' ')}: {found['tokens']} tokens of {found['chunks'] * room}"
        for name, found in pipe.tokens(plan).items()
    ]


def _say_files(seeds: list[int], paths: list[Path], timings: dict[str, float], arguments: argparse.Namespace) -> None:
    for seed, path in zip(seeds, paths, strict=False):  # a grid is one file
        print(f"{path}  seed {seed}")
    if arguments.verbose:
        print(f"loaded in {timings['load_s']:.2f} s, painted in {timings['generate_s']:.2f} s", file=sys.stderr)
