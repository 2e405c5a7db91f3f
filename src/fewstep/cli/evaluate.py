"""`fewstep evaluate [MODEL] --lora FILE --steps 1,2,4,8`: how good are few steps, at equal numbers of evaluations?"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fewstep.cli.options import MODEL, add_model_options, model_options
from fewstep.errors import RequestError

if TYPE_CHECKING:
    from fewstep.checkpoints.load import Model
    from fewstep.checkpoints.lora import Lora
    from fewstep.evaluate.cases import Case
    from fewstep.evaluate.judge import Judge
    from fewstep.evaluate.measure import Gauges, Look
    from fewstep.evaluate.protocols import Protocol
    from fewstep.evaluate.reference import Reference
    from fewstep.evaluate.suite import Cell, Easel, Pictures

RESIZES = ("clean", "torch-fidelity", "pytorch-fid")
BATCH = 32
MOST_KEPT_BYTES = 2 * 10**9


def register(subparsers: Any) -> None:
    """Add `evaluate` to the command line."""
    parser = subparsers.add_parser(
        "evaluate",
        help="measure a model's pictures at few steps",
        description="Draw fixed prompts in few steps, or take a folder of pictures, and measure them: with the "
        "package's own judge, and with the FID's Inception, CLIP and preference models where their files are given. "
        "With a LoRA, the same model without it is measured beside it at equal numbers of network evaluations.",
    )
    _register_pictures(parser)
    _register_measures(parser)
    parser.add_argument("--device", help="cpu, cuda or mps")
    parser.add_argument("--json", action="store_true", help="print one JSON document instead of a table")
    parser.add_argument(
        "-o", "--out", type=Path, metavar="DIR", help="also write evaluation.json, evaluation.md, plots and pictures"
    )
    parser.set_defaults(run=run)


def _register_pictures(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("what is measured")
    group.add_argument("model", nargs="?", metavar="MODEL", help=f"{MODEL} (default: the embedded model)")
    add_model_options(group)
    group.add_argument("--lora", type=Path, metavar="FILE", help="few-step LoRA (with the embedded model: its own)")
    group.add_argument("--pictures", type=Path, metavar="DIR", help="measure this folder's pictures; draw nothing")
    group.add_argument(
        "--steps",
        type=_counts,
        default=(1, 2, 4, 8),
        metavar="1,2,4,8",
        help="steps; a LoRA's teacher gets as many evaluations",
    )
    group.add_argument(
        "--guidance", type=float, default=4.0, help="guidance of the teacher that a LoRA is measured against"
    )
    group.add_argument("--alone", action="store_true", help="measure the student only, not its teacher beside it")
    group.add_argument(
        "--prompts", type=Path, metavar="FILE", help="one prompt a line (default: the judge's fixed prompts)"
    )
    group.add_argument(
        "--count", type=int, metavar="N", help="number of prompts (default: 64, or what the protocol says)"
    )
    group.add_argument(
        "--seeds-per-prompt", type=int, default=1, metavar="K", help="draw every prompt K times, to measure diversity"
    )


def _register_measures(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("how it is measured (every model is a local file; nothing is downloaded)")
    group.add_argument("--protocol", metavar="NAME", help="a published way to measure, e.g. coco30k-2014, fid-teacher")
    group.add_argument(
        "--reference", type=Path, metavar="DIR|NPZ", help="real pictures, or their mu and sigma in an .npz file"
    )
    group.add_argument("--judge", type=Path, metavar="FOLDER", help="another judge than the one in the package")
    group.add_argument("--inception", type=Path, metavar="FILE", help="weights of the FID's Inception: FID and KID")
    group.add_argument("--resize", choices=RESIZES, help="how pictures come to the Inception (default: clean)")
    group.add_argument("--clip", type=Path, metavar="FOLDER", help="a CLIP model's folder: CLIP score and FD-CLIP")
    group.add_argument("--clip-prefix", metavar="TEXT", help="text before each prompt for the CLIP score")
    group.add_argument("--pickscore", type=Path, metavar="FOLDER", help="PickScore's folder")
    group.add_argument("--hps", type=Path, metavar="FOLDER", help="HPSv2's folder, in the layout of transformers")
    group.add_argument("--image-reward", type=Path, metavar="FILE", help="ImageReward.pt beside its med_config.json")
    group.add_argument(
        "--write-stats",
        type=Path,
        metavar="NPZ",
        help="write the reference's mu and sigma, to be given as --reference later",
    )


def run(arguments: argparse.Namespace) -> int:
    """Draw or read, measure, print; returns the exit code."""
    from fewstep.evaluate.protocols import protocol_named
    from fewstep.evaluate.table import all_columns, markdown

    protocol = None if arguments.protocol is None else protocol_named(arguments.protocol)
    _check(arguments, protocol)
    judge, gauges = _gauges(arguments, protocol)
    task = Task(judge, gauges, _references(arguments, gauges, protocol), protocol, arguments.out)
    facts, rows = _of_pictures(arguments, task) if arguments.pictures is not None else _of_model(arguments, task)
    name = None if protocol is None else protocol.name
    document = facts | {
        "protocol": name,
        "judge": None if gauges.judge is None else str(gauges.judge.folder),
        "features": [read.facts() for read in gauges.features],
        "scores": {score.key: score.model for score in gauges.scores},
        "reference": None if arguments.reference is None else str(arguments.reference),
        "rows": [{"protocol": name} | row for row in rows],
    }
    columns = all_columns(gauges.features, gauges.scores)
    text = _lines(document, protocol) + markdown(rows, columns=columns)
    if arguments.out is not None:
        _write(arguments.out, document, text, columns)
    print(json.dumps(document) if arguments.json else text, end="\n" if arguments.json else "")
    return 0


@dataclass(frozen=True, eq=False)
class Task:
    """What every set of pictures is measured with and against, and where its sheet goes."""

    judge: Judge
    gauges: Gauges
    references: dict[str, Reference]
    protocol: Protocol | None
    out: Path | None

    @property
    def with_other_seeds(self) -> bool:
        """Is the distance to the teacher's own pictures wanted? Protocols of a data set are of that set alone."""
        return self.protocol is None or self.protocol.name == "fid-teacher"


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


def _check(arguments: argparse.Namespace, protocol: Protocol | None) -> None:
    """What can be said before anything is opened; raises RequestError."""
    for name in ("count", "seeds_per_prompt"):
        value = getattr(arguments, name)
        if value is not None and value < 1:
            raise RequestError(f"--{name.replace('_', '-')} must be at least 1, not {value}.")
    if arguments.pictures is not None and (arguments.model or arguments.lora or arguments.seeds_per_prompt != 1):
        raise RequestError("--pictures measures what is already drawn; leave out the model, --lora and the seeds.")
    if arguments.write_stats is not None and (arguments.reference is None or arguments.reference.suffix == ".npz"):
        raise RequestError("--write-stats writes the figures of a folder of real pictures; name it with --reference.")
    if arguments.resize is not None and arguments.inception is None:
        raise RequestError("--resize is about the FID's Inception; give its file with --inception.")
    if protocol is not None:
        _check_protocol(arguments, protocol)


def _check_protocol(arguments: argparse.Namespace, protocol: Protocol) -> None:
    own = protocol.name == "fid-teacher" and arguments.pictures is None
    if arguments.inception is None:
        raise RequestError(f"The protocol {protocol.name} is defined by the FID's Inception; give it with --inception.")
    if own and arguments.reference is not None:
        raise RequestError("fid-teacher draws its own reference; leave --reference out, or give --pictures.")
    if not own and arguments.reference is None:
        raise RequestError(
            f"The protocol {protocol.name} measures against {protocol.reference}; give them with --reference, a folder "
            "or an .npz file of mu and sigma."
        )
    if protocol.count is not None and arguments.prompts is None and arguments.pictures is None:
        raise RequestError(f"The protocol {protocol.name} has its own captions; give the file with --prompts.")
    if protocol.count is not None and arguments.seeds_per_prompt != 1:
        raise RequestError(f"The protocol {protocol.name} draws every prompt once; leave --seeds-per-prompt out.")


def _gauges(arguments: argparse.Namespace, protocol: Protocol | None) -> tuple[Judge, Gauges]:
    from fewstep.device import choose
    from fewstep.evaluate.gauges import Files, open_gauges
    from fewstep.evaluate.judge import Judge, default_folder

    judge = Judge(arguments.judge or default_folder())
    files = Files(
        arguments.inception,
        arguments.clip,
        arguments.pickscore,
        arguments.hps,
        arguments.image_reward,
        arguments.resize,
        arguments.clip_prefix,
    )
    return judge, open_gauges(files, judge=judge, protocol=protocol, device=choose(arguments.device).device)


def _references(arguments: argparse.Namespace, gauges: Gauges, protocol: Protocol | None) -> dict[str, Reference]:
    from fewstep.evaluate.gauges import for_moments, read_references
    from fewstep.evaluate.reference import write_moments

    if arguments.reference is None:
        return {}
    found = read_references(arguments.reference, gauges, protocol)
    if arguments.write_stats is not None:
        read = for_moments(gauges)
        write_moments(arguments.write_stats, found[read.key], read, protocol=protocol.name if protocol else "none")
    return found


def _cases(arguments: argparse.Namespace, task: Task) -> tuple[Case, ...]:
    from fewstep.evaluate.cases import read_cases, seen_cases, with_seeds

    if arguments.prompts is None:
        cases = seen_cases(task.judge.labels, arguments.count or 64)
    else:
        limit = arguments.count if task.protocol is not None else arguments.count or 64
        cases = read_cases(arguments.prompts, task.judge.labels, count=limit)
    if task.protocol is not None:
        task.protocol.check(count=len(cases))
    return with_seeds(cases, arguments.seeds_per_prompt)


def _of_pictures(arguments: argparse.Namespace, task: Task) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Facts and the one row of a folder's pictures, in the order of their names."""
    from fewstep.evaluate.cases import Case, read_cases
    from fewstep.evaluate.measure import figures, look
    from fewstep.evaluate.reference import batches_of, open_picture, picture_files

    files = picture_files(arguments.pictures)[: arguments.count]
    height, width, _ = open_picture(files[0]).shape
    if task.protocol is not None:
        task.protocol.check(count=len(files), size_px=(width, height))
    cases: tuple[Case, ...] = tuple(Case("", index) for index in range(len(files)))
    if arguments.prompts is not None:
        cases = read_cases(arguments.prompts, task.judge.labels)
    elif task.gauges.scores:
        raise RequestError(f"{task.gauges.scores[0].heading} needs the pictures' prompts; give them with --prompts.")
    if len(cases) != len(files):
        raise RequestError(f"'{arguments.pictures}' holds {len(files)} pictures, but there are {len(cases)} prompts.")
    gauges = task.gauges
    if len(files) * height * width * 3 > MOST_KEPT_BYTES:  # the judge's rates need all pictures at once
        gauges = replace(gauges, judge=None)
    drawn = _told(batches_of(files, batch=BATCH), arguments.pictures.name, len(files))
    found = look(gauges, drawn, [case.prompt for case in cases])
    row = figures(gauges, found, cases, references=task.references) | {"picture_ms": None}
    return {"pictures": str(arguments.pictures)}, [{"cell": arguments.pictures.resolve().name} | row]


def _of_model(arguments: argparse.Namespace, task: Task) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Facts and a row for each cell of a model."""
    from fewstep.checkpoints.load import load_model

    cases = _cases(arguments, task)
    model = load_model(arguments.model, device=arguments.device, **model_options(arguments))
    lora = _lora(arguments, model)
    cells, teacher = _cells(arguments, model, lora)
    if arguments.alone and task.protocol is not None and task.protocol.name != "fid-teacher":
        teacher = None
    if teacher is None and task.protocol is not None and task.protocol.name == "fid-teacher":
        raise RequestError("fid-teacher compares a LoRA's or a slow model's pictures with its teacher's; give --lora.")
    rows = list(_rows(model, cases, lora, task, cells, teacher))
    facts = {
        "model": model.name,
        "lora": None if lora is None else lora.name,
        "seeds_per_prompt": arguments.seeds_per_prompt,
        "compared_with": None if teacher is None else f"{teacher.name}: {teacher.evaluations} evaluations",
    }
    return facts, rows


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
    cells = list(equal_cells(arguments.steps, student, guidance=arguments.guidance))
    return [cell for cell in cells if cell.lora or not arguments.alone], teacher_cell(arguments.guidance)


def _rows(
    model: Model, cases: tuple[Case, ...], lora: Lora | None, task: Task, cells: list[Cell], teacher: Cell | None
) -> Iterator[dict[str, Any]]:
    """One row per cell, the teacher first; its pictures from other seeds are what sets are compared with."""
    from fewstep.evaluate.cases import with_other_seeds
    from fewstep.evaluate.measure import figures
    from fewstep.evaluate.score import row
    from fewstep.evaluate.suite import Easel

    easel, first, other = Easel(model, cases, lora=lora), None, None
    if teacher is not None and task.with_other_seeds:
        other = _seen(Easel(model, with_other_seeds(cases)), teacher, task, say=", other seeds")
    for cell in ([] if teacher is None else [teacher]) + cells:
        found = _seen(easel, cell, task)
        if task.out is not None:
            _save_pictures(found.first, task.out / f"{cell.stem}.png")
        measured = figures(task.gauges, found, cases, references=task.references, teacher=first, teacher_other=other)
        yield row(cell, "prompts", measured)
        if cell is teacher:
            first = found


def _seen(easel: Easel, cell: Cell, task: Task, *, say: str = "") -> Look:
    from fewstep.evaluate.measure import look

    size_px = None if task.protocol is None else task.protocol.size_px
    name = f"{cell.name}, {cell.evaluations} evaluations{say}"
    drawn = _told(easel.draw(cell, batch=BATCH, size_px=size_px), name, len(easel.cases))
    return look(task.gauges, drawn, [case.prompt for case in easel.cases])


def _told(batches: Iterator[Pictures], name: str, total: int) -> Iterator[Pictures]:
    """The same batches; progress goes to stderr, apart from the result, and only for a person."""
    done = 0
    for part in batches:
        done += len(part)
        if sys.stderr.isatty():
            print(f"\r\x1b[2K{name}: {done} of {total} pictures", end="", file=sys.stderr, flush=True)
        yield part


def _save_pictures(pictures_NHWC: Pictures, path: Path) -> None:
    """The first pictures of a cell side by side."""
    from PIL import Image

    from fewstep.checkpoints.files import write_whole
    from fewstep.grid import contact_sheet

    sheet = contact_sheet([Image.fromarray(picture) for picture in pictures_NHWC], columns=8)
    write_whole(path, lambda part: sheet.save(part, "PNG"))


def _lines(document: dict[str, Any], protocol: Protocol | None) -> str:
    """What stands above the table: the protocol, or that this is none; what the networks are."""
    if protocol is not None:
        note = f" Note: {protocol.note}." if protocol.note else ""
        return f"{protocol.line} Source: {protocol.source}.{note}\n\n"
    names = ", ".join(f"{f['frechet']} = {f['network']} ({f['convention']})" for f in document["features"])
    return f"No published protocol. Compare only within this table. {names}.\n\n"


def _write(folder: Path, document: dict[str, Any], text: str, columns: dict[str, str]) -> None:
    from fewstep.checkpoints.files import write_json, write_whole
    from fewstep.evaluate.plot import quality_plots

    write_json(folder / "evaluation.json", document)
    write_whole(folder / "evaluation.md", lambda part: part.write_text(text, encoding="utf-8"))
    drawn = {key: heading for key, heading in columns.items() if key not in ("cell", "evaluations", "steps", "count")}
    name = str(document.get("lora") or document.get("model"))
    for key, svg in quality_plots(document["rows"], drawn, title=name).items():
        write_whole(folder / f"{key}.svg", lambda part, svg=svg: part.write_text(svg, encoding="utf-8"))
