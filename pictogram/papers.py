"""Put the measured figures into the README and the model's card, between their TABLE marks.

python -m pictogram.papers            # evaluation.json -> README.md, src/fewstep/assets/pictogram/card.md
"""

import argparse
import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from fewstep.checkpoints.files import write_whole
from fewstep.checkpoints.load import assets_path
from fewstep.evaluate.cases import GROUPS
from fewstep.evaluate.table import show
from pictogram.fetch import BUILD

Row = dict[str, Any]
EVALUATIONS = (1, 2, 4, 8)
METRICS = {"top1": "Recognised, %", "frechet": "Fréchet distance ↓", "teacher_rms": "RMS to the teacher's picture ↓"}


def table(headings: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """A Markdown table whose first column is text."""
    marks = ["---", *["---:"] * (len(headings) - 1)]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in (headings, marks, *lines))


def by_evaluations(rows: Sequence[Row], metric: str, heading: str) -> str:
    """One line for each way of drawing, one column for each number of evaluations."""
    ways = dict.fromkeys(row["cell"] for row in rows if row.get("evaluations") in EVALUATIONS)
    found = {(row["cell"], row.get("evaluations")): show(metric, row.get(metric)) for row in rows}
    cells = [[way, *(found.get((way, count), "") for count in EVALUATIONS)] for way in ways]
    return table([f"{heading} at evaluations:", *map(str, EVALUATIONS)], cells)


def ceilings(rows: Sequence[Row]) -> str:
    """What nothing can exceed, and the teacher in many steps."""
    chosen = [row for row in rows if row.get("evaluations") not in EVALUATIONS]
    names = [
        f"{row['cell']}, {row['evaluations']} evaluations" if row.get("evaluations") else row["cell"] for row in chosen
    ]
    keys = ("top1", "style", "background", "frechet")
    headings = ("", "recognised, %", "style, %", "background, %", "Fréchet distance ↓")
    return table(
        headings, [[name, *(show(key, row.get(key)) for key in keys)] for name, row in zip(names, chosen, strict=True)]
    )


def quality(document: dict[str, Any]) -> str:
    """The README's table: the seen prompts."""
    rows = [row for row in document["rows"] if row["group"] == "seen"]
    parts = [ceilings(rows), *(by_evaluations(rows, metric, heading) for metric, heading in METRICS.items())]
    return "\n\n".join(parts)


def groups(document: dict[str, Any]) -> str:
    """The card's table: the student and the teacher in many steps on every group of prompts."""
    lines = []
    for group in GROUPS:
        for row in document["rows"]:
            mine = row["cell"].startswith("LCM-LoRA") or row.get("evaluations", 0) > max(EVALUATIONS)
            if row["group"] == group and mine:
                figures = [show(key, row.get(key)) for key in ("count", "top1", "style", "background", "nearest_p5")]
                lines.append([group, f"{row['cell']}, {row['evaluations']} evaluations", *figures])
    return table(
        ["prompts", "", "N", "recognised, %", "style, %", "background, %", "nearest training picture, RMS"], lines
    )


def universal(document: dict[str, Any]) -> str:
    """The same LoRA on a base fine-tuned to another style."""
    return by_evaluations(document["rows"], "top1", "Recognised, %") + "\n\n" + ceilings(document["rows"])


def filled(text: str, name: str, content: str) -> str:
    """The text with what stands between the marks of a table replaced; unchanged where it has no such marks."""
    pattern = re.compile(rf"(<!-- TABLE:{name} -->\n).*?(<!-- /TABLE:{name} -->)", re.S)
    return pattern.sub(lambda match: f"{match[1]}{content}\n{match[2]}", text)


def main() -> None:
    """Fill both papers."""
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    sources: dict[str, tuple[Path, Callable[[dict[str, Any]], str]]] = {
        "quality": (assets_path() / "evaluation.json", quality),
        "groups": (assets_path() / "evaluation.json", groups),
        "universal": (BUILD / "evaluation-blob.json", universal),
    }
    for paper in (Path("README.md"), assets_path() / "card.md"):
        text = paper.read_text(encoding="utf-8")
        for name, (source, make) in sources.items():
            if source.exists():
                text = filled(text, name, make(json.loads(source.read_text(encoding="utf-8"))))
        write_whole(paper, lambda part, text=text: part.write_text(text, encoding="utf-8"))


if __name__ == "__main__":
    main()
