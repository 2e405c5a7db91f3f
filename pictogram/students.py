"""One table of all students beside their teacher, at equal numbers of network evaluations.

    python -m pictogram.students          # -> docs/students.md, docs/pictures, build/pictogram/students.json

The students are what `make pictogram-students` leaves in build/pictogram/students, and the package's LCM-LoRA. Every
cell draws the same prompts from the same noise. Distances to the teacher's distribution are taken to pictures that it
draws from other noise, so that the teacher itself has a row to be compared with.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fewstep.checkpoints.files import write_json, write_whole
from fewstep.checkpoints.load import Model, assets_path, load_model
from fewstep.checkpoints.lora import Lora, read_lora
from fewstep.evaluate.cases import Case, seen_cases, with_other_seeds
from fewstep.evaluate.distance import precision_recall
from fewstep.evaluate.diversity import groups_by_label, pair_diversity, vendi
from fewstep.evaluate.frechet import frechet_distance, moments
from fewstep.evaluate.judge import Judge
from fewstep.evaluate.recognition import top
from fewstep.evaluate.score import Seen
from fewstep.evaluate.suite import Cell, Easel, Pictures, equal_cells, own_cell, teacher_cell
from pictogram.evaluate import cells_file, labels_of, pictures_of, real_pictures, write_sheets
from pictogram.fetch import BUILD
from pictogram.judge import reconstructed
from pictogram.scenes import load_cutouts

STUDENTS = BUILD / "students"
NAMES = {
    "lcm-lora": "LCM-LoRA",
    "full-lcm": "full LCM",
    "tcd": "TCD",
    "tdd": "TDD",
    "pcm": "PCM",
    "pcm-adversarial": "PCM-adversarial",
    "full-pcm": "full PCM",
    "tdm": "TDM",
}
LIGHTER = {"pcm-adversarial": 0.64, "full-pcm": 0.65}
"""Students that are drawn with a second time, at another weight than 1: of the LoRA, or of the way from the teacher."""
SOLVERS = ("ddim", "dpmpp_2m", "unipc")
COLUMNS = {
    "recognised": "recognised, %",
    "frechet_data": "Fréchet to data ↓",
    "frechet_teacher": "Fréchet to teacher ↓",
    "recall_teacher": "recall of teacher",
    "diversity": "diversity",
    "vendi": "Vendi score",
}
LOWER_IS_BETTER = {"frechet_data", "frechet_teacher"}
ALLOWED = 0.03
PAGE = """# The students of pictogram, side by side

Every way of drawing gets the same 500 prompts and the same noise, and as many evaluations of the network (guidance
counts twice). Made by one script, `make pictogram-students-table`, on two CPU cores; recipes in
`recipes/pictogram-*.toml`.

- *recognised*: the judge's first answer is the word asked for.
- *Fréchet to data*, *to teacher*: distance in the judge's features to 500 real pictures, and to 500 pictures that the
  teacher draws of the same prompts from **other** noise, which is why the teacher itself is not at zero. This is no
  FID: features and number of pictures are our own.
- *recall of teacher*: share of the teacher's pictures (other noise) that have one of this set nearby.
- *diversity*: mean distance between pictures of the same word and style; *Vendi score*: effective number of different
  pictures.

*x 0.64* is the same LoRA at that weight, as every LoRA can be drawn with; of a full student it is so much of the way
from the teacher's weights to its own.

The teacher's own distance to itself, of other noise, is all sampling: no student is within 3 % of that. Those two are
within 3 % of every other column at four evaluations; nearest to the teacher is the full student at its whole weight.

**Bold** is within 3 % of the teacher in 50 guided steps, or better; a name is bold where every column is. Pictures:
[all at four evaluations](pictures/students-equal.webp), [the teacher](pictures/students-steps.webp).

{figures}

What they cost. A student that goes on from another carries its cost too.

{cost}
"""


@dataclass(frozen=True)
class Student:
    """A few-step student: on which model, with which LoRA, how it wants to be sampled, and what it cost."""

    name: str
    model: Model
    lora: Lora | None
    cost: dict[str, Any]
    weight: float = 1.0

    def cell(self, steps: int) -> Cell:
        """It at some number of steps."""
        sampling = self.model.sampling if self.lora is None else self.lora.sampling
        assert sampling is not None, f"{self.name} does not say how it is sampled"
        return own_cell(self.name, steps, sampling, lora=self.lora is not None)


def students(base: Model) -> Iterator[Student]:
    """The LCM-LoRA of the package, then what lies in build/pictogram/students, in the order of NAMES."""
    for stem, name in NAMES.items():
        file, folder = STUDENTS / f"{stem}.safetensors", STUDENTS / stem
        if stem == "lcm-lora":
            file = assets_path() / "lcm-lora.safetensors"
        if file.is_file():
            lora = read_lora(file, family=base.family)
            student = Student(name, base, lora, cost_of(stem, lora.metadata))
            yield student
            if stem in LIGHTER:
                yield replace(student, name=f"{name} x {LIGHTER[stem]}", weight=LIGHTER[stem])
        elif folder.is_dir():
            made = json.loads((folder / "training.json").read_text())
            student = Student(name, load_model(folder, dtype="float32"), None, cost_of(stem, made))
            yield student
            if stem in LIGHTER:
                part = between(base, load_model(folder, dtype="float32"), LIGHTER[stem])
                yield replace(student, name=f"{name} x {LIGHTER[stem]}", model=part, weight=LIGHTER[stem])


def between(teacher: Model, student: Model, weight: float) -> Model:
    """The student, with the UNet's weights so far from the teacher's to its own; what the teacher lacks stays."""
    start = teacher.unet.state_dict()
    with torch.no_grad():
        for name, end in student.unet.state_dict().items():
            if name in start:
                end.copy_(torch.lerp(start[name], end, weight))
    return student


def cost_of(stem: str, metadata: dict[str, str]) -> dict[str, Any]:
    """Samples seen and, where the run's metrics are there, minutes of training; `start` is what it went on from."""
    recipe = json.loads(metadata["fewstep.recipe"])
    found: dict[str, Any] = {"samples": recipe["steps"] * recipe["batch"] * recipe.get("accumulate", 1)}
    found["start"] = NAMES.get(Path(recipe.get("start", "")).stem, "")
    metrics = (STUDENTS if stem != "lcm-lora" else BUILD) / f"{stem}.run" / "metrics.jsonl"
    if metrics.is_file():
        rows = map(json.loads, metrics.read_text().splitlines())
        size = recipe["batch"] * recipe.get("accumulate", 1)
        speeds = [row["samples_per_s"] for row in rows if "samples_per_s" in row]
        found["minutes"] = round(sum(size / speed for speed in speeds) / 60, 1)
    return found


class Measures:
    """The columns, for pictures of one list of cases."""

    def __init__(self, judge: Judge, cases: Sequence[Case], real: Seen, teacher: Seen) -> None:
        """`real` are pictures composed from the data, `teacher` the teacher's of other noise."""
        self.judge, self.groups = judge, groups_by_label(cases)
        self.wanted = np.array([judge.labels.concepts.index(case.concept or "") for case in cases])
        self.real, self.teacher = real.reading.features_ND, teacher.reading.features_ND

    def row(self, seen: Seen) -> dict[str, float]:
        """All columns of one cell."""
        found = seen.reading.features_ND
        return {
            "recognised": 100 * top(seen.reading.concepts_NC, self.wanted).share,
            "frechet_data": frechet_distance(moments(found), moments(self.real)),
            "frechet_teacher": frechet_distance(moments(found), moments(self.teacher)),
            "recall_teacher": 100 * precision_recall(self.teacher, found)[1],
            "diversity": pair_diversity(found, self.groups),
            "vendi": vendi(found),
        }


def keeps(row: dict[str, Any], teacher: dict[str, Any]) -> list[str]:
    """The columns in which a row is within ALLOWED of the teacher's, or better."""
    return [
        key
        for key in COLUMNS
        if (
            row[key] <= (1 + ALLOWED) * teacher[key]
            if key in LOWER_IS_BETTER
            else row[key] >= (1 - ALLOWED) * teacher[key]
        )
    ]


def draw_all(
    base: Model, cases: Sequence[Case], found: Sequence[Student], evaluations: Sequence[int], *, guidance: float
) -> Iterator[tuple[Cell, Student | None, Pictures]]:
    """Every cell's pictures: the teacher in many steps, its solvers, then the students."""

    def drawn(easel: Easel, lora: Lora | None, cell: Cell) -> Pictures:
        return pictures_of(easel, cell, cells_file(easel.model, lora, cell, cases), batch=64)[0]

    bare = Easel(base, cases)
    solvers = equal_cells(evaluations, found[0].cell(1), guidance=guidance, solvers=SOLVERS)
    for cell in [teacher_cell(guidance), *solvers]:
        if not cell.lora and cell.sampler != "lcm":
            yield cell, None, drawn(bare, None, cell)
    for student in found:
        easel = Easel(student.model, cases, lora=student.lora, weight=student.weight)
        for steps in evaluations:
            yield student.cell(steps), student, drawn(easel, student.lora, student.cell(steps))


def shown(key: str, value: Any) -> str:
    """One figure of the table."""
    return (
        "" if value is None else f"{value:.1f}" if key in ("recognised", "recall_teacher", "vendi") else f"{value:.2f}"
    )


def table(rows: Sequence[dict[str, Any]], evaluations: Sequence[int]) -> str:
    """Markdown: ceilings first, then one block for each number of evaluations; what keeps to the teacher is bold."""
    heads = ["drawn by", *COLUMNS.values()]
    teacher = next(row for row in rows if row["role"] == "teacher")
    parts = []
    for title, chosen in [
        ("Nothing can do better; the teacher in many steps", [row for row in rows if row["role"] != "few"]),
        *(
            (
                "1 evaluation" if count == 1 else f"{count} evaluations",
                [r for r in rows if r["role"] == "few" and r["evaluations"] == count],
            )
            for count in evaluations
        ),
    ]:
        lines = [f"| {title} | " + " | ".join(heads[1:]) + " |", "| --- |" + " ---: |" * len(COLUMNS)]
        for row in chosen:
            kept = keeps(row, teacher) if row["role"] == "few" else []
            cells = [f"**{shown(key, row[key])}**" if key in kept else shown(key, row[key]) for key in COLUMNS]
            name = f"**{row['cell']}**" if len(kept) == len(COLUMNS) else row["cell"]
            lines.append(f"| {name} | " + " | ".join(cells) + " |")
        parts.append("\n".join(lines))
    return "\n\n".join(parts)


def costs(found: Sequence[Student]) -> str:
    """Markdown: what each student cost."""
    lines = ["| student | goes on from | samples | minutes, two shared cores |", "| --- | --- | ---: | ---: |"]
    for student in [student for student in found if student.weight == 1]:
        cost = student.cost
        lines.append(f"| {student.name} | {cost['start']} | {cost['samples']:,} | {cost.get('minutes', '')} |")
    return "\n".join(lines)


def parsed() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=500, help="prompts")
    parser.add_argument("--words", choices=("all", "everyday"), default="everyday")
    parser.add_argument("--evaluations", type=int, nargs="+", default=[1, 2, 4, 8])
    parser.add_argument("--guidance", type=float, default=3.0, help="the teacher's")
    parser.add_argument("--page", type=Path, default=Path("docs/students.md"))
    parser.add_argument("--pictures", type=Path, default=Path("docs/pictures"))
    return parser.parse_args()


def main() -> None:
    """Draw what is missing, measure, write the page."""
    args = parsed()
    judge, base = Judge(BUILD / "judge"), load_model(None, dtype="float32")
    cases, found = seen_cases(labels_of(judge, args.words), args.count), list(students(base))
    others = with_other_seeds(cases)
    teacher, cutouts = teacher_cell(args.guidance), load_cutouts(BUILD / "cutouts.npz")
    again = pictures_of(Easel(base, others), teacher, cells_file(base, None, teacher, others), batch=64)[0]
    real = real_pictures(cutouts, cases, seed=7_001), real_pictures(cutouts, cases, seed=7_002)
    measures = Measures(judge, cases, Seen.by(judge, real[0]), Seen.by(judge, again))
    rows = [
        {"cell": name, "role": "ceiling"} | measures.row(Seen.by(judge, pictures))
        for name, pictures in [
            ("real pictures", real[1]),
            ("real, through the autoencoder", reconstructed(real[1], base.path / "vae")),
        ]
    ]
    drawn: dict[Cell, Pictures] = {}
    for cell, _student, pictures in draw_all(base, cases, found, args.evaluations, guidance=args.guidance):
        drawn[cell] = pictures
        role = "teacher" if cell == teacher else "few"
        facts = {"cell": cell.name, "role": role, "steps": cell.steps, "evaluations": cell.evaluations}
        rows.append(facts | measures.row(Seen.by(judge, pictures)))
    document = {"model": base.content_hash, "count": args.count, "words": args.words, "guidance": args.guidance}
    document |= {"rows": rows, "costs": {student.name: student.cost for student in found}}
    write_json(BUILD / "students.json", document)
    write_page(args.page, table(rows, args.evaluations), costs(found))
    write_sheets(
        {cell: pictures for cell, pictures in drawn.items() if cell.evaluations in (4, 100)},
        cases,
        args.pictures,
        name="students",
    )


def write_page(path: Path, figures: str, cost: str) -> None:
    """The page of the results."""
    text = PAGE.format(figures=figures, cost=cost)
    write_whole(path, lambda part: part.write_text(text, encoding="utf-8"))
    print(text)


if __name__ == "__main__":
    main()
