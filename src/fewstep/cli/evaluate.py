"""`fewstep evaluate [MODEL] --lora FILE --steps 1,2,4,8`: how good are few steps, at equal numbers of evaluations?"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fewstep.errors import RequestError

if TYPE_CHECKING:
    from fewstep.checkpoints.load import Model
    from fewstep.checkpoints.lora import Lora
    from fewstep.evaluate.cases import Case
    from fewstep.evaluate.judge import Judge
    from fewstep.evaluate.suite import Cell, Easel, Pictures


def register(subparsers: Any) -> None:
    """Add `evaluate` to the command line."""
    parser = subparsers.add_parser(
        "evaluate",
        help="measure a model's pictures at few steps",
        description="Draw fixed prompts in few steps and measure the pictures with the package's own judge. "
        "With a LoRA, the same model without it is measured beside it at equal numbers of network evaluations.",
    )
    parser.add_argument(
        "model", nargs="?", metavar="MODEL", help="model folder or hub name (default: the embedded model)"
    )
    parser.add_argument(
        "--lora", type=Path, metavar="FILE", help="few-step LoRA (default with the embedded model: its own)"
    )
    parser.add_argument(
        "--steps",
        type=_counts,
        default=(1, 2, 4, 8),
        metavar="1,2,4,8",
        help="steps; a LoRA's teacher gets as many evaluations",
    )
    parser.add_argument(
        "--guidance", type=float, default=4.0, help="guidance of the teacher that a LoRA is measured against"
    )
    parser.add_argument(
        "--prompts", type=Path, metavar="FILE", help="one prompt a line (default: the judge's fixed prompts)"
    )
    parser.add_argument("--count", type=int, default=64, metavar="N", help="number of prompts")
    parser.add_argument("--judge", type=Path, metavar="FOLDER", help="another judge than the one in the package")
    parser.add_argument("--device", help="cpu, cuda or mps")
    parser.add_argument("--json", action="store_true", help="print one JSON document instead of a table")
    parser.add_argument(
        "-o", "--out", type=Path, metavar="DIR", help="also write evaluation.json, evaluation.md and pictures there"
    )
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Draw, measure, print; returns the exit code."""
    from fewstep.checkpoints.load import load_model
    from fewstep.evaluate.judge import Judge, default_folder
    from fewstep.evaluate.suite import Easel
    from fewstep.evaluate.table import markdown

    if arguments.count < 1:
        raise RequestError(f"--count must be at least 1, not {arguments.count}.")
    judge = Judge(arguments.judge or default_folder())
    cases = _cases(arguments, judge)
    model = load_model(arguments.model, device=arguments.device)
    lora = _lora(arguments, model)
    cells, reference = _cells(arguments, model, lora)
    rows = list(_rows(Easel(model, cases, lora=lora), judge, cells, reference, out=arguments.out))
    document = {
        "model": model.name,
        "lora": None if lora is None else lora.name,
        "judge": str(judge.folder),
        "compared_with": None if reference is None else f"{reference.name}: {reference.evaluations} evaluations",
        "rows": rows,
    }
    if arguments.out is not None:
        _write(arguments.out, document, markdown(rows))
    print(json.dumps(document) if arguments.json else markdown(rows), end="\n" if arguments.json else "")
    return 0


def _counts(text: str) -> tuple[int, ...]:
    """'1,2,4' as numbers.

    >>> _counts("4,1,2")
    (1, 2, 4)
    """
    try:
        found = sorted({int(part) for part in text.split(",")})
    except ValueError:
        found = []
    if not found or found[0] < 1:
        raise argparse.ArgumentTypeError(f"'{text}' is not a list of whole numbers from 1 on, like 1,2,4,8")
    return tuple(found)


def _cases(arguments: argparse.Namespace, judge: Judge) -> tuple[Case, ...]:
    from fewstep.evaluate.cases import read_cases, seen_cases

    if arguments.prompts is None:
        return seen_cases(judge.labels, arguments.count)
    return read_cases(arguments.prompts, judge.labels, count=arguments.count)


def _lora(arguments: argparse.Namespace, model: Model) -> Lora | None:
    from fewstep.checkpoints.load import assets_path
    from fewstep.checkpoints.lora import read_lora

    own = assets_path() / "lcm-lora.safetensors"
    path = arguments.lora or (own if arguments.model is None and own.is_file() else None)
    return None if path is None else read_lora(path, family=model.family)


def _cells(arguments: argparse.Namespace, model: Model, lora: Lora | None) -> tuple[list[Cell], Cell | None]:
    """The ways to draw, and the one among them that the others are compared with, where there is a teacher."""
    from fewstep.checkpoints.load import Sampling
    from fewstep.evaluate.suite import equal_cells, own_cell, teacher_cell

    if lora is None:
        cells = [own_cell(model.name, count, model.sampling) for count in arguments.steps]
        slow = not model.sampling.embedded_guidance and model.sampling.sampler not in ("lcm", "tcd", "pcm")
        return cells, teacher_cell(model.sampling.guidance) if slow else None
    sampling = lora.sampling or Sampling("lcm", steps=4, guidance=1.0)
    student = own_cell(lora.name, 1, sampling, lora=True)
    return list(equal_cells(arguments.steps, student, guidance=arguments.guidance)), teacher_cell(arguments.guidance)


def _rows(
    easel: Easel, judge: Judge, cells: list[Cell], reference: Cell | None, *, out: Path | None
) -> Iterator[dict[str, Any]]:
    """One row per cell, the reference first."""
    from fewstep.evaluate.score import Seen, row, score

    teacher: Seen | None = None
    for cell in ([] if reference is None else [reference]) + cells:
        seen = Seen.by(judge, _drawn(easel, cell))
        if out is not None:
            _save_pictures(seen.pictures_NHWC, out / f"{cell.stem}.png")
        yield row(cell, "prompts", score(judge, seen, easel.cases, real=teacher, teacher=teacher))
        if cell is reference:
            teacher = seen


def _drawn(easel: Easel, cell: Cell) -> Pictures:
    import numpy as np

    parts = []
    for part in easel.draw(cell, batch=32):
        parts.append(part)
        _say(f"{cell.name}, {cell.evaluations} evaluations: {sum(map(len, parts))} of {len(easel.cases)} pictures")
    return np.concatenate(parts)


def _say(line: str) -> None:
    """Progress, kept apart from the result, and only for a person."""
    if sys.stderr.isatty():
        print(f"\r\x1b[2K{line}", end="", file=sys.stderr, flush=True)


def _save_pictures(pictures_NHWC: Pictures, path: Path, *, most: int = 32) -> None:
    """The first pictures of a cell side by side."""
    from PIL import Image

    from fewstep.checkpoints.files import write_whole
    from fewstep.grid import contact_sheet

    sheet = contact_sheet([Image.fromarray(picture) for picture in pictures_NHWC[:most]], columns=8)
    write_whole(path, lambda part: sheet.save(part, "PNG"))


def _write(folder: Path, document: dict[str, Any], table: str) -> None:
    from fewstep.checkpoints.files import write_json, write_whole

    write_json(folder / "evaluation.json", document)
    write_whole(folder / "evaluation.md", lambda part: part.write_text(table, encoding="utf-8"))
