"""`fewstep generate PROMPT -o apple.png`: parse, check, paint, write, say."""

from __future__ import annotations

import argparse
import dataclasses
import json
import secrets
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fewstep.cli.options import MODEL, add_model_options, lora_choice, model_options
from fewstep.cli.output import check_new_folder, check_outputs, default_name, numbered, step_name
from fewstep.errors import RequestError
from fewstep.request import DEFAULTS, SEED_COUNT, SPECS, Request, Spec, request_of
from fewstep.sampling.sampler import SAMPLERS
from fewstep.sampling.timesteps import TABLES

if TYPE_CHECKING:
    from fewstep.cli.recall import Recalled
    from fewstep.infotext import Picture
    from fewstep.pipeline import PictureStep, Pipeline
    from fewstep.plan import Plan

PATIENCE_S = 2.0


def register(subparsers: Any) -> None:
    """Add `generate` to the command line."""
    parser = subparsers.add_parser(
        "generate",
        help="paint pictures from a prompt",
        description="Paint pictures from a prompt; with --image from a picture, with --mask only a part of it.",
        allow_abbrev=False,
    )
    _add_request_options(parser)
    parser.add_argument(
        "-o", "--out", type=Path, metavar="FILE", help="png, jpg, webp or avif; named by the prompt if none"
    )
    parser.add_argument("--model", metavar="PATH", help=f"{MODEL}; the embedded model if absent")
    add_model_options(parser)
    parser.add_argument(
        "--lora", action="append", type=lora_choice, metavar="FILE[:WEIGHT]", help="LoRA; may be repeated"
    )
    parser.add_argument("--no-lora", action="store_true", help="without the embedded model's own few-step LoRA")
    parser.add_argument("--from", dest="source", type=Path, metavar="PICTURE", help="take its settings from this one")
    parser.add_argument(
        *("--look-in",), action="append", type=Path, metavar="FOLDER", help="where models and LoRAs of --from may be"
    )
    parser.add_argument("--grid", action="store_true", help="write one contact sheet instead of single pictures")
    parser.add_argument("--preview", type=Path, metavar="FOLDER", help="also write what each step sees here")
    parser.add_argument("--device", help="cpu, cuda, cuda:1, mps; chosen if absent")
    parser.add_argument("--dtype", help="float32, float16, bfloat16; chosen if absent")
    parser.add_argument("--json", action="store_true", help="print one JSON document: files, seeds, settings, timings")
    parser.add_argument("-q", "--quiet", action="store_true", help="print nothing but errors")
    parser.add_argument("-v", "--verbose", action="store_true", default=argparse.SUPPRESS, help="say what is chosen")
    parser.set_defaults(run=run)


def _add_request_options(parser: argparse.ArgumentParser) -> None:
    names = {"sampler": ", ".join(SAMPLERS), "schedule": ", ".join(("automatic", *TABLES))}
    for name, spec in SPECS.items():
        if name == "prompt":
            parser.add_argument("prompt", nargs="?", help=spec.help)
            continue
        limits = f" ({names.get(name, spec.limits())})" if spec.kind in ("whole", "number", "name") else ""
        default = f" [{DEFAULTS[name]}]" if DEFAULTS.get(name) not in (None, "") else ""
        flags = dict.fromkeys([f"--{name.replace('_', '-')}", *spec.flags])
        metavar = {"whole": "N", "number": "X", "picture": "FILE", "text": "TEXT", "name": "NAME"}[spec.kind]
        kind, text = _type_of(spec), f"{spec.help}{limits}{default}".replace("%", "%%")
        parser.add_argument(*flags, dest=name, type=kind, metavar=metavar, help=text)


def _type_of(spec: Spec) -> Any:
    def number(text: str) -> int | float:
        try:
            return int(text) if spec.kind == "whole" else float(text)
        except ValueError:
            what = "a whole number" if spec.kind == "whole" else "a number"
            raise argparse.ArgumentTypeError(f"'{text}' is not {what} {spec.limits()}") from None

    return number if spec.kind in ("whole", "number") else str


def run(arguments: argparse.Namespace) -> int:
    """Paints and writes; returns the exit code. What can be wrong without the model is found before it is loaded."""
    recalled, request = _request(arguments)
    out = arguments.out or default_name(request.prompt, request.seed or 0)
    paths = numbered(out, 1 if arguments.grid else request.count)
    check_outputs(paths, (request.image, request.mask, arguments.source))
    if arguments.preview is not None:
        check_new_folder(arguments.preview)
    request = _opened(request)
    started = time.perf_counter()
    pipe = _load(arguments, recalled)
    plan = pipe.plan(request)
    loaded = time.perf_counter()
    notes = [*plan.notes, *(_differences(recalled, plan, pipe) if recalled else ())]
    if not arguments.quiet:
        _say_notes(notes, pipe.notes if arguments.verbose else ())
    pictures = _paint(arguments, pipe, plan, paths)
    notes += (unsaid := _not_carried(paths, pictures))
    if not arguments.quiet:
        _say_notes(unsaid, ())
    timings = {"load_s": loaded - started, "generate_s": time.perf_counter() - loaded}
    if arguments.json:
        print(json.dumps(_document(pipe, plan, paths, pictures, timings, notes), ensure_ascii=False, indent=2))
    elif not arguments.quiet:
        _say_files(plan, paths, timings, arguments)
    return 0


def _request(arguments: argparse.Namespace) -> tuple[Recalled | None, Request]:
    """The request with a seed, and what `--from` said."""
    from fewstep.cli.recall import merged, recall

    fields = {name: getattr(arguments, name) for name in SPECS if getattr(arguments, name) is not None}
    recalled = (
        None
        if arguments.source is None
        else recall(arguments.source, look_in=arguments.look_in or (), model=arguments.model)
    )
    if recalled is not None:
        fields = merged(recalled, fields)
    if "prompt" not in fields:
        raise RequestError('No prompt was given. Write: fewstep generate "a red apple" -o apple.png')
    if arguments.no_lora and arguments.lora:
        raise RequestError("--no-lora and --lora were both given. --lora alone already replaces the model's own LoRA.")
    request = request_of(fields)
    return recalled, request.replaced(seed=secrets.randbelow(SEED_COUNT)) if request.seed is None else request


def _opened(request: Request) -> Request:
    """The same with its pictures read, so that a bad one is found before the model is loaded."""
    from fewstep.image import open_image, open_mask

    image = None if request.image is None else open_image(request.image)
    return request.replaced(image=image, mask=None if request.mask is None else open_mask(request.mask))


def _load(arguments: argparse.Namespace, recalled: Recalled | None) -> Pipeline:
    import fewstep

    model, lora, dtype, parts = arguments.model, arguments.lora, arguments.dtype, model_options(arguments)
    if recalled is not None:
        from fewstep.cli.recall import recalled_dtype, recalled_loras, recalled_model, recalled_vae
        from fewstep.device import choose

        model = recalled_model(recalled) if model is None else model
        lora = recalled_loras(recalled, False if arguments.no_lora else lora)
        parts["vae"] = parts["vae"] or recalled_vae(recalled)
        dtype = recalled_dtype(recalled, choose(arguments.device).device) if dtype is None else dtype
    elif arguments.no_lora:
        lora = False
    return fewstep.load(model, lora=lora, device=arguments.device, dtype=dtype, **parts)


def _differences(recalled: Recalled, plan: Plan, pipe: Pipeline) -> list[str]:
    from fewstep.cli.recall import differences

    return differences(recalled, plan, pipe.facts(plan.tags))


def _paint(arguments: argparse.Namespace, pipe: Pipeline, plan: Plan, paths: list[Path]) -> list[Picture]:
    """Runs the plan; each picture is written when it is done, so that an interruption loses only what is missing."""
    from fewstep.image import save_image

    pictures: list[Picture] = []
    names = numbered(paths[0], plan.request.count) if arguments.grid else paths
    with _progress(arguments.quiet or arguments.json) as show:
        for step in pipe.run(plan):
            show(step)
            if arguments.preview is not None:
                _write_preview(arguments.preview, names, step)
            if not step.last:
                continue
            for picture in step.pictures():
                if not arguments.grid:
                    save_image(picture, paths[len(pictures)])
                pictures.append(picture)
    if arguments.grid:
        save_image(_sheet(plan, pictures), paths[0])
    return pictures


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
        save_image(picture, step_name(folder, names[step.first + offset], step.index + 1))


def _sheet(plan: Plan, pictures: list[Picture]) -> Picture:
    """All pictures with their seeds; it carries the first one's settings."""
    from fewstep.grid import contact_sheet
    from fewstep.infotext import PNG_KEY, Picture

    labels = [f"seed {plan.seed_of(index)}" for index in range(len(pictures))]
    return Picture.of(contact_sheet(pictures, labels=labels), pictures[0].info[PNG_KEY])


@contextmanager
def _progress(quiet: bool) -> Iterator[Any]:
    """A function to call after each step: on a terminal, after two seconds, it shows a bar on stderr."""
    if quiet or not sys.stderr.isatty():
        yield lambda step: None
        return
    started, bars = time.perf_counter(), []

    def show(step: PictureStep) -> None:
        if not bars and time.perf_counter() - started > PATIENCE_S:
            bars.append(_bar(step.plan.request.count * step.count))
        for bar, task in bars:
            bar.update(task, completed=step.first * step.count + step.index + 1)

    try:
        yield show
    finally:
        for bar, _ in bars:
            bar.stop()


def _bar(total: int) -> tuple[Any, Any]:
    from rich.console import Console
    from rich.progress import Progress

    bar = Progress(console=Console(stderr=True), transient=True)
    bar.start()
    return bar, bar.add_task("painting", total=total)


def _document(
    pipe: Pipeline, plan: Plan, paths: list[Path], pictures: list[Picture], timings: dict[str, float], notes: list[str]
) -> dict[str, Any]:
    """What `--json` prints."""
    from fewstep.plan import IMAGE_HASH, MASK_HASH

    pictures_used = {"image": plan.hashes.get(IMAGE_HASH), "mask": plan.hashes.get(MASK_HASH)}
    settings = {field.name: getattr(plan.request, field.name) for field in dataclasses.fields(plan.request)}
    settings |= pictures_used | {"steps": len(plan.timesteps), "guidance": plan.guidance, "sampler": plan.sampler.name}
    settings |= {"schedule": plan.table, "width": plan.size[0], "height": plan.size[1]}
    settings |= {"timesteps": list(plan.timesteps), "seed": plan.seed}
    settings |= {"strength": plan.strength if plan.image else None, "model": pipe.model.name}
    settings["loras"] = [{"name": lora.name, "weight": weight} for lora, weight in pipe.loras]
    return {
        "files": [str(path) for path in paths],
        "seed": plan.seed,
        "seeds": [plan.seed_of(index) for index in range(len(pictures))],
        "settings": settings,
        "parameters": [picture.info["parameters"] for picture in pictures],
        "timings": {name: round(value, 3) for name, value in timings.items()},
        "notes": notes,
    }


def _say_notes(notes: list[str], choices: tuple[str, ...]) -> None:
    for sentence in (*choices, *notes):
        print(f"fewstep: note: {sentence}", file=sys.stderr)


def _say_files(plan: Plan, paths: list[Path], timings: dict[str, float], arguments: argparse.Namespace) -> None:
    for index, path in enumerate(paths):
        print(f"{path}  seed {plan.seed_of(index)}")
    if arguments.verbose:
        print(f"loaded in {timings['load_s']:.2f} s, painted in {timings['generate_s']:.2f} s", file=sys.stderr)
