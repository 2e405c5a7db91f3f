"""`fewstep data inspect WHERE` and `fewstep data encode WHERE -o CACHE`: look at training data, and encode it once."""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fewstep.errors import RecipeError, RequestError

if TYPE_CHECKING:
    from fewstep.data.buckets import Framing
    from fewstep.data.inspection import Inspection
    from fewstep.data.latents import Data
    from fewstep.data.samples import Filters, Tally
    from fewstep.data.sources import Source

SIZE_PX = 512
SHOWN = 20
WHERE = "shards (s-{000..099}.tar, s3://...), folder of pictures, datasets folder, .parquet or .txt of prompts"


def register(subparsers: Any) -> None:
    """Add `data` to the command line."""
    parser = subparsers.add_parser("data", help="look at training data, or encode it", allow_abbrev=False)
    actions = parser.add_subparsers(title="actions", metavar="ACTION", dest="action", required=True)
    inspecting = actions.add_parser(
        "inspect",
        help="count, measure and show what training would see",
        description="Open every sample as training would, and count. Exits with 2 when nothing is let through.",
        allow_abbrev=False,
    )
    inspecting.add_argument("--model", help="count captions that are too long for this model's text encoder")
    inspecting.add_argument("--sheet", type=Path, metavar="SHEET.png", help="write a contact sheet")
    inspecting.add_argument("--limit", type=_count, metavar="N", help="look at the first N samples only")
    inspecting.set_defaults(run=run_inspect)
    encoding = actions.add_parser(
        "encode",
        help="write latents and text embeddings once, for training",
        description="Encode data into a cache. The same command goes on where an interrupted one stopped.",
        allow_abbrev=False,
    )
    encoding.add_argument("-o", "--out", type=Path, required=True, metavar="CACHE", help="folder of the cache")
    encoding.add_argument("--model", help="folder, file or hub name; the embedded model by default")
    encoding.add_argument("--batch", type=_count, default=16, help="pictures encoded at once (16)")
    encoding.add_argument("--shard-size", type=_count, default=1024, help="records in one shard (1024)")
    encoding.add_argument("--part", help="K/N: encode share K (from 0) of N, each in its own process; set by torchrun")
    encoding.add_argument("--device", help="cpu, cuda or mps")
    encoding.add_argument("--dtype", default="fp32", help="number format of the encoders (fp32)")
    encoding.set_defaults(run=run_encode)
    for action in (inspecting, encoding):
        action.add_argument("where", metavar="WHERE", help=WHERE)
        add_options(action)
        action.add_argument("--json", action="store_true", help="print one JSON document")


def add_options(parser: Any) -> None:
    """Options on how samples are read, filtered and cut."""
    parser.add_argument("--size", type=_count, metavar="PX", help=f"side of the square (the model's; {SIZE_PX})")
    parser.add_argument("--buckets", action="store_true", help="keep aspect ratios: shapes of about --size squared")
    parser.add_argument("--bucket-step", type=_count, default=64, metavar="PX", help="sides are multiples of this (64)")
    parser.add_argument("--crop", choices=("centre", "random"), default="centre", help="where the overhang is cut off")
    parser.add_argument("--workers", type=int, default=2, help="threads that decode pictures (2)")
    parser.add_argument("--caption-column", default="", metavar="NAME", help="column of captions in a table")
    parser.add_argument("--image-column", default="", metavar="NAME", help="column of pictures in a table")
    parser.add_argument("--least-px", type=int, default=0, help="drop pictures with a shorter side")
    parser.add_argument("--most-aspect", type=float, default=0.0, help="drop pictures with sides more unequal")
    parser.add_argument("--least-caption", type=int, default=1, help="drop shorter captions; 0 keeps missing ones (1)")
    parser.add_argument("--most-caption", type=int, default=0, help="drop longer captions")
    parser.add_argument("--share", type=float, default=1.0, help="keep this share of the samples, chosen by name (1)")


def source_of(arguments: argparse.Namespace, where: str | Path) -> Source:
    """The source that the options ask for. Raises RecipeError."""
    from fewstep.data.sources import open_source

    return open_source(where, caption=arguments.caption_column, image=arguments.image_column)


def framing_of(arguments: argparse.Namespace, size_px: int) -> Framing:
    """How the options cut pictures; `size_px` where they do not say. Raises RecipeError."""
    from fewstep.data.buckets import Framing, bucket_shapes

    size, step = arguments.size or size_px, arguments.bucket_step
    if size % 8:
        raise RecipeError(f"--size {size} is not a multiple of 8. Use {max(8, round(size / 8) * 8)}.")
    if step % 8:
        raise RecipeError(f"--bucket-step {step} is not a multiple of 8. Use 64, or 32 for small models.")
    shapes = bucket_shapes(size, step=step) if arguments.buckets else ((size, size),)
    return Framing(shapes, arguments.crop)


def filters_of(arguments: argparse.Namespace) -> Filters:
    """The filters that the options ask for. Raises RecipeError."""
    from fewstep.data.samples import Filters

    return Filters(
        arguments.least_px,
        arguments.most_aspect,
        arguments.least_caption,
        arguments.most_caption,
        arguments.share,
    )


def open_data(
    arguments: argparse.Namespace,
    load: Callable[[], Any],
    *,
    folder: Path,
    quiet: bool,
    once: Callable[[Callable[[], Any]], Any] = lambda work: work(),
) -> Data:
    """What `distill --data` names: a cache, or anything that can be encoded, into `folder` or (--stream) on the way.

    `load` gives the model that encodes; `once` does a piece of work in one of several processes. Batches are made ahead
    in a thread. Raises RecipeError.
    """
    from fewstep.data.latents import LatentCache, encode, is_cache
    from fewstep.data.prefetch import Prefetched
    from fewstep.data.stream import Stream

    if is_cache(arguments.data):
        return Prefetched(LatentCache(arguments.data))
    source, model = source_of(arguments, arguments.data), load()
    framing, filters = framing_of(arguments, model.family.size_px), filters_of(arguments)
    if arguments.stream:
        return Prefetched(Stream(source, model, framing, filters=filters, workers=arguments.workers))
    writing = encode(folder, model, source, framing, filters=filters, workers=arguments.workers)
    once(lambda: _show(writing, folder, quiet=quiet))
    return Prefetched(LatentCache(folder))


def run_inspect(arguments: argparse.Namespace) -> int:
    """Count and report; returns 0, or 2 when nothing is let through."""
    from fewstep.data.inspection import inspect

    model = _model(arguments.model) if arguments.model else None
    source, filters = source_of(arguments, arguments.where), filters_of(arguments)
    framing = framing_of(arguments, model.family.size_px if model else SIZE_PX)
    thumbs = 36 if arguments.sheet else 0
    found = inspect(source, framing, filters, workers=arguments.workers, most=arguments.limit, thumbs=thumbs)
    facts = found.facts() | ({"captions_cut": _cut(model, found)} if model else {})
    if arguments.sheet and found.thumbs:
        facts["sheet"] = str(_sheet(found, arguments.sheet))
    print(json.dumps(facts, ensure_ascii=False) if arguments.json else "\n".join(_lines(facts)))
    found.tally.check(source.where)
    return 0


def run_encode(arguments: argparse.Namespace) -> int:
    """Encode into the cache; returns 0."""
    from fewstep.data.latents import encode

    began = time.perf_counter()
    rank, world = share_of(arguments.part)
    model = _model(arguments.model, device=_device(arguments.device, world), dtype=arguments.dtype)
    writing = encode(
        arguments.out,
        model,
        source_of(arguments, arguments.where),
        framing_of(arguments, model.family.size_px),
        filters=filters_of(arguments),
        shard_size=arguments.shard_size,
        batch=arguments.batch,
        workers=arguments.workers,
        rank=rank,
        world=world,
    )
    tally = _show(writing, arguments.out, quiet=arguments.json)
    seconds = round(time.perf_counter() - began, 3)
    facts = {"cache": str(arguments.out), "part": f"{rank}/{world}", "seen": tally.seen, "kept": tally.kept}
    facts |= {"dropped": dict(tally.dropped), "corrupt": [list(pair) for pair in tally.faults], "seconds": seconds}
    lost = f" Lost: {tally.sentence()}." if tally.sentence() else ""
    print(json.dumps(facts, ensure_ascii=False) if arguments.json else f"{arguments.out}: {tally.kept} samples.{lost}")
    return 0


def share_of(asked: str | None) -> tuple[int, int]:
    """(rank, world) of `--part K/N`, or of the environment that torchrun sets, or (0, 1).

    >>> share_of("1/4")
    (1, 4)
    """
    text = asked or f"{os.environ.get('RANK', '0')}/{os.environ.get('WORLD_SIZE', '1')}"
    rank, _, world = text.partition("/")
    if not (rank.isdecimal() and world.isdecimal() and int(rank) < int(world)):
        raise RequestError(f"'{text}' is not a share. Write K/N with K from 0 to N - 1, such as 0/4.")
    return int(rank), int(world)


def _device(asked: str | None, world: int) -> str | None:
    from fewstep.device import choose

    found = choose(asked).device
    return f"cuda:{os.environ.get('LOCAL_RANK', '0')}" if found == "cuda" and world > 1 else asked


def _model(path: str | None, *, device: str | None = "cpu", dtype: str = "fp32") -> Any:
    from fewstep.checkpoints.load import load_model

    return load_model(path or None, device=device, dtype=dtype)


def _cut(model: Any, found: Inspection) -> int:
    return sum(len(model.text.chunks(caption, "none")) > 1 for caption in found.captions)


def _sheet(found: Inspection, path: Path) -> Path:
    from fewstep.grid import contact_sheet
    from fewstep.image import save_image

    pictures, captions = zip(*found.thumbs, strict=True)
    save_image(contact_sheet(pictures, labels=captions), path)
    return path


def _show(writing: Iterable[Tally], folder: Path, *, quiet: bool) -> Tally:
    from fewstep.data.samples import Tally

    tally, named = Tally(), 0
    with _progress(folder, quiet) as show:
        for tally in writing:
            show(tally, tally.faults[named:])
            named = len(tally.faults)
    return tally


@contextmanager
def _progress(folder: Path, quiet: bool) -> Iterator[Any]:
    if quiet:
        yield lambda tally, faults: None
        return
    from rich.console import Console
    from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True)) as progress:
        task, began = progress.add_task(f"encoding into {folder}"), time.perf_counter()
        first: list[int] = []

        def show(tally: Tally, faults: list[tuple[str, str]]) -> None:
            first.append(tally.seen)  # of a resumed run, the first report also counts what was there before
            speed = (tally.seen - first[0]) / (time.perf_counter() - began)
            lost = f", {tally.dropped.total()} dropped, {len(tally.faults)} corrupt"
            progress.update(task, description=f"{folder}: {tally.kept} encoded{lost}, {speed:.1f} samples/s")
            for name, reason in faults[:SHOWN]:
                print(f"corrupt: {name}: {reason}", file=sys.stderr)

        yield show


def _lines(facts: dict[str, Any]) -> list[str]:
    kind = "prompts alone" if not facts["pictures"] else "pictures"
    lines = [
        f"{facts['where']}: {facts['kind']} in {facts['parts']} parts, {kind}",
        f"  {facts['seen']} samples, {facts['kept']} kept",
    ]
    lines += [f"  dropped {count}: {reason}" for reason, count in facts["dropped"].items()]
    lines += [f"  corrupt {name}: {reason}" for name, reason in facts["corrupt"][:SHOWN]]
    if len(facts["corrupt"]) > SHOWN:
        lines.append(f"  ... {len(facts['corrupt'])} corrupt in all; --json names every one")
    for name in ("height_px", "width_px", "caption_letters", "caption_words"):
        if facts[name]:
            spread = facts[name]
            label = name.replace("_", " ")
            lines.append(f"  {label:<16} {spread['least']:g} to {spread['most']:g}, median {spread['median']:g}")
    if facts["enlarged"]:
        lines.append(f"  {facts['enlarged']} pictures are smaller than their bucket, and would be enlarged")
    if facts.get("captions_cut"):
        lines.append(f"  {facts['captions_cut']} captions are longer than the text encoder reads")
    most = max(facts["buckets"].values(), default=1)
    lines += [f"  {name:>9} {'#' * max(1, 40 * n // most)} {n}" for name, n in facts["buckets"].items()]
    return [*lines, *([f"  sheet: {facts['sheet']}"] if "sheet" in facts else [])]


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"'{text}' is not a whole number above 0")
    return int(text)
