"""The quality table of the embedded model, at equal numbers of network evaluations.

    python -m pictogram.evaluate            # -> evaluation.json in build/pictogram and beside the model, docs/pictures
    python -m pictogram.evaluate --model build/pictogram/style-model --lora LORA --prompts-only-style blob --name blob

Every cell draws the same prompts from the same noise; its pictures are kept in build/pictogram/cells, so a run that was
stopped goes on with the next cell.
"""

from __future__ import annotations

import argparse
import hashlib
import re
import time
from collections.abc import Iterator, Sequence
from dataclasses import astuple, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from rich.progress import track

from fewstep.checkpoints.files import write_json, write_whole
from fewstep.checkpoints.load import Model, Sampling, load_model
from fewstep.checkpoints.lora import Lora, read_lora
from fewstep.evaluate.cases import GROUPS, Case, held_out_background_cases, held_out_style_cases, seen_cases
from fewstep.evaluate.judge import Judge, Labels
from fewstep.evaluate.score import Seen, row, score
from fewstep.evaluate.suite import Cell, Easel, Pictures, equal_cells, own_cell, teacher_cell
from fewstep.evaluate.table import markdown
from fewstep.grid import table
from fewstep.sampling.sampler import sampler_named
from pictogram.concepts import CONCEPTS, EVERYDAY
from pictogram.fetch import BUILD
from pictogram.judge import reconstructed
from pictogram.scenes import Cutouts, compose, load_cutouts, single, trained

SLUG_OF = {names[0]: slug for slug, names in CONCEPTS.items()}
TRAINING_SCENES = 3000


def labels_of(judge: Judge, words: str) -> Labels:
    """What the prompts are made of: all concepts, or the everyday ones; the judge always chooses among all."""
    labels = judge.labels
    if words == "all":
        return labels
    keep = {CONCEPTS[slug][0] for slug in EVERYDAY}
    return replace(
        labels,
        concepts=tuple(c for c in labels.concepts if c in keep),
        phrases=tuple(p for c, p in zip(labels.concepts, labels.phrases, strict=True) if c in keep),
        held_out_styles=tuple(pair for pair in labels.held_out_styles if pair[0] in keep),
        held_out_backgrounds=tuple(pair for pair in labels.held_out_backgrounds if pair[0] in keep),
    )


def all_cases(labels: Labels, cutouts: Cutouts, count: int, style: str | None) -> tuple[Case, ...]:
    """The fixed prompts: `count` seen ones and a fifth as many of each held-out kind; or one foreign style alone."""
    if style is not None:
        wide = seen_cases(labels, 2 * count, styles=(style,))
        return tuple(case for case in wide if f"{style}/{SLUG_OF[case.concept or '']}" in cutouts)[:count]
    fifth = max(1, count // 5)
    held = held_out_style_cases(labels, fifth), held_out_background_cases(labels, fifth)
    return (*seen_cases(labels, count), *held[0], *held[1])


def real_pictures(cutouts: Cutouts, cases: Sequence[Case], *, seed: int) -> Pictures:
    """What was asked for, composed from the cut-outs: the ceiling, and the set that distances are taken to."""
    rng = np.random.default_rng(seed)
    made = [
        single(cutouts, SLUG_OF[case.concept or ""], case.style or "", case.background or "white", rng)
        for case in cases
    ]
    return np.stack([np.asarray(image) for image in made])


def training_pictures(cutouts: Cutouts, count: int, *, seed: int = 0) -> Pictures:
    """Scenes of the training distribution, to look for the nearest one."""
    rng, pairs = np.random.default_rng(seed), trained()
    return np.stack([np.asarray(compose(cutouts, rng, pairs).image) for _ in track(range(count), "training scenes")])


def all_cells(lora: Lora | None, evaluations: Sequence[int], guidance: float) -> list[Cell]:
    """The teacher in many steps first, then all ways at equal numbers of evaluations."""
    sampling = (lora.sampling if lora else None) or Sampling("lcm", "linspace-lcm", steps=4, guidance=1.0)
    student = own_cell("LCM-LoRA", 1, sampling, lora=True)
    cells = [teacher_cell(guidance), *equal_cells(evaluations, student, guidance=guidance)]
    if sampler_named(sampling.sampler).noisy:  # fresh noise on the way leaves the teacher's picture by itself
        cells += [replace(student, name="LCM-LoRA, DDIM jumps", sampler="ddim", steps=count) for count in evaluations]
    return [cell for cell in cells if lora is not None or not cell.lora]


def fingerprint(model: Model, lora: Lora | None, cell: Cell, cases: Sequence[Case]) -> str:
    """Eight hexadecimal digits that change with anything a cell's pictures depend on."""
    weights = lora.fingerprint if lora is not None and cell.lora else ""
    facts = (model.content_hash, weights, astuple(cell), [(case.prompt, case.seed) for case in cases])
    return hashlib.sha256(repr(facts).encode()).hexdigest()[:8]


def cells_file(model: Model, lora: Lora | None, cell: Cell, cases: Sequence[Case], *, build: Path = BUILD) -> Path:
    """Where a cell's pictures are kept."""
    return build / "cells" / f"{cell.stem}-{fingerprint(model, lora, cell, cases)}.npz"


def pictures_of(easel: Easel, cell: Cell, path: Path, *, batch: int) -> tuple[Pictures, float]:
    """A cell's pictures and the milliseconds each took, drawn now or found on disk."""
    if not path.exists():
        started, total = time.perf_counter(), -(-len(easel.cases) // batch)
        batches = easel.draw(cell, batch=batch)
        parts = list(track(batches, f"{cell.name}, {cell.evaluations} evaluations", total=total))
        picture_ms = 1000 * (time.perf_counter() - started) / len(easel.cases)
        arrays: dict[str, Any] = {"pictures": np.concatenate(parts), "picture_ms": np.array(picture_ms)}
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(path.name + ".partial")
        with partial.open("wb") as file:
            np.savez_compressed(file, **arrays)
        partial.replace(path)
    with np.load(path) as saved:
        return saved["pictures"], float(saved["picture_ms"])


class Measure:
    """Scores cells of one set of cases, group by group, against real pictures, the teacher's, and the training set."""

    def __init__(self, judge: Judge, cases: Sequence[Case], cutouts: Cutouts, *, training: int) -> None:
        """Compose the real pictures, once more for their own floor, and the training scenes."""
        self.judge, self.cases = judge, tuple(cases)
        self.real = Seen.by(judge, real_pictures(cutouts, cases, seed=7_001))
        self.real_again = Seen.by(judge, real_pictures(cutouts, cases, seed=7_002))
        self.training_KHWC = training_pictures(cutouts, training)
        self.teacher: Seen | None = None

    def rows(self, cell: Cell, seen: Seen, **facts: Any) -> Iterator[dict[str, Any]]:
        """One row per group that has cases."""
        for group in dict.fromkeys(case.group for case in self.cases):
            keep = np.array([i for i, case in enumerate(self.cases) if case.group == group])
            found = score(
                self.judge,
                seen.rows(keep),
                [self.cases[i] for i in keep],
                real=self.real.rows(keep),
                teacher=None if self.teacher is None else self.teacher.rows(keep),
                training_KHWC=self.training_KHWC,
            )
            yield row(cell, group, found | facts)

    def ceiling_rows(self, vae: Path) -> Iterator[dict[str, Any]]:
        """Real pictures, and those through the autoencoder: no model can do better."""
        rebuilt = Seen.by(self.judge, reconstructed(self.real_again.pictures_NHWC, vae))
        for name, seen in (("real pictures", self.real_again), ("real, through the autoencoder", rebuilt)):
            for found in self.rows(Cell(name, "", 0), seen):
                yield {
                    key: value
                    for key, value in found.items()
                    if key not in ("steps", "guidance", "sampler", "evaluations")
                }


def write_sheets(
    drawn: dict[Cell, Pictures], cases: Sequence[Case], folder: Path, *, name: str, rows: int = 10
) -> None:
    """One sheet of the student at every number of steps, one of all ways at four evaluations."""
    order = [i for i, case in enumerate(cases) if case.group in ("seen", "held-out style")]
    chosen = np.array(order[:: max(1, len(order) // rows)][:rows])
    sheets = {
        "steps": [cell for cell in drawn if cell.lora or cell.evaluations > 50],
        "equal": [cell for cell in drawn if cell.evaluations == 4],
    }
    for which, cells in sheets.items():
        if not cells:
            continue
        pictures = [[Image.fromarray(drawn[cell][i]) for cell in cells] for i in chosen]
        titles = [f"{cell.name.removeprefix('teacher ').replace('guided', '(g)')} {cell.steps}" for cell in cells]
        folder.mkdir(parents=True, exist_ok=True)
        sheet = table(pictures, row_labels=[cases[i].prompt for i in chosen], column_labels=titles)
        sheet.save(folder / f"{name}-{which}.webp", quality=90)


def write_report(document: dict[str, Any], build: Path, name: str) -> str:
    """evaluation.json and evaluation.md, one table for each group of prompts; returns the Markdown."""
    rows = document["rows"]
    parts = [f"### {group}\n\n" + markdown([r for r in rows if r["group"] == group]) for group in GROUPS]
    text = "\n".join(part for part in parts if "|" in part)
    stem = "evaluation" if name == "pictogram" else f"evaluation-{name}"
    write_json(build / f"{stem}.json", document)
    write_whole(build / f"{stem}.md", lambda part: part.write_text(text, encoding="utf-8"))
    return text


def parsed() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, help="diffusers folder (default: the embedded model)")
    parser.add_argument("--lora", type=Path, help="LCM-LoRA (default: lcm-lora.safetensors in the model's folder)")
    parser.add_argument("--judge", type=Path, default=BUILD / "judge")
    parser.add_argument("--count", type=int, default=500, help="seen prompts; a fifth as many of each held-out kind")
    parser.add_argument("--words", choices=("all", "everyday"), default="all", help="which concepts to ask for")
    parser.add_argument("--evaluations", type=int, nargs="+", default=[1, 2, 4, 8])
    parser.add_argument("--guidance", type=float, default=3.0, help="the teacher's")
    parser.add_argument("--cells", default="", help="regular expression on cell names like teacher-ddim-guided-4")
    parser.add_argument(
        "--prompts-only-style", metavar="STYLE", help="ask for this style alone, e.g. a fine-tuned base's"
    )
    parser.add_argument(
        "--training", type=int, default=TRAINING_SCENES, help="training scenes to look for the nearest in"
    )
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--device")
    parser.add_argument("--name", default="pictogram", help="what the files written are named after")
    parser.add_argument("--build", type=Path, default=BUILD)
    parser.add_argument("--pictures", type=Path, default=Path("docs/pictures"))
    return parser.parse_args()


def main() -> None:
    """Draw every cell, measure, write the table and the sheets."""
    args = parsed()
    model = load_model(args.model, device=args.device, dtype="float32")
    path = args.lora or model.path / "lcm-lora.safetensors"
    lora = read_lora(path, family=model.family) if path.exists() else None
    judge, cutouts = Judge(args.judge), load_cutouts(BUILD / "cutouts.npz")
    cases = all_cases(labels_of(judge, args.words), cutouts, args.count, args.prompts_only_style)
    measure, easel = Measure(judge, cases, cutouts, training=args.training), Easel(model, cases, lora=lora)
    rows, drawn = list(measure.ceiling_rows(model.path / "vae")), {}
    for cell in all_cells(lora, args.evaluations, args.guidance):
        file = cells_file(model, lora, cell, cases, build=args.build)
        if not re.search(args.cells, cell.stem) and not (cell.evaluations > 50 and file.exists()):
            continue
        pictures, picture_ms = pictures_of(easel, cell, file, batch=args.batch)
        seen = Seen.by(judge, pictures)
        rows += measure.rows(cell, seen, picture_ms=round(picture_ms, 1))
        drawn[cell] = pictures
        if cell.evaluations > 50:
            measure.teacher = seen
    document = {
        "model": model.content_hash,
        "lora": lora.fingerprint[:10] if lora else None,
        "guidance": args.guidance,
        "words": args.words,
        "judge_ceilings": judge.ceilings,
        "threads": torch.get_num_threads(),
        "rows": rows,
    }
    print(write_report(document, args.build, args.name))
    if args.model is None and args.name == "pictogram":
        write_json(model.path / "evaluation.json", document)
    write_sheets(drawn, cases, args.pictures, name=args.name)


if __name__ == "__main__":
    main()
