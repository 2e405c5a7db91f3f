"""The quality table as Markdown: one row per cell, only the columns that something is in."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fewstep.evaluate.features import Features
    from fewstep.evaluate.preference import Score

#: key of a score -> heading of its column.
COLUMNS = {
    "cell": "drawn by",
    "evaluations": "evaluations",
    "steps": "steps",
    "count": "N",
    "top1": "recognised %",
    "top5": "in top 5 %",
    "style": "style %",
    "background": "background %",
    "white": "white kept %",
    "frechet": "FD-judge ↓",
    "kernel": "KD-judge ×1000 ↓",
    "precision": "precision (judge)",
    "recall": "recall (judge)",
    "teacher_rms": "RMS to teacher ↓",
    "teacher_features": "features to teacher ↓",
    "nearest_median": "RMS to nearest training picture",
    "picture_ms": "ms a picture",
}


#: what is measured in some network's features -> heading, with the names of its distances put in.
SET_COLUMNS = {
    "frechet": "{frechet}{to} ↓",
    "kernel_subsets": "{kernel}{to} ×1000 ↓",
    "precision": "precision{to} ({network})",
    "recall": "recall{to} ({network})",
    "density": "density{to} ({network})",
    "coverage": "coverage{to} ({network})",
}
DIVERSITY_COLUMNS = {
    "seed_diversity": "between seeds ({network})",
    "label_diversity": "within a label ({network})",
    "vendi": "Vendi ({network})",
}
#: what stands after the measures of quality.
LAST = ("nearest_median", "picture_ms")


def all_columns(features: Sequence[Features], scores: Sequence[Score] = ()) -> dict[str, str]:
    """`COLUMNS` with those of every network's features, against data and against the teacher, and of every score."""
    found = {key: heading for key, heading in COLUMNS.items() if key not in LAST}
    for read in features:
        names = {"frechet": read.frechet, "kernel": read.kernel, "network": read.network}
        for prefix, to in (("", ""), ("teacher_", " to teacher")):
            found |= {f"{prefix}{read.key}_{k}": text.format(to=to, **names) for k, text in SET_COLUMNS.items()}
        found |= {f"{read.key}_{k}": text.format(**names) for k, text in DIVERSITY_COLUMNS.items()}
    found |= {one.key: f"{one.heading} ({one.model})" for one in scores}
    return found | {"cut_prompts": "prompts cut"} | {key: COLUMNS[key] for key in LAST}


def show(key: str, value: Any) -> str:
    """One figure as text: rates as percent with half the width of their interval, distances with few digits.

    >>> show("top1", {"share": 0.5, "low": 0.4, "high": 0.6, "count": 100}), show("frechet", 1.2345), show("cell", None)
    ('50.0 ± 10.0', '1.23', '')
    >>> show("fid_clean_kernel_subsets", {"mean": 0.0123, "std": 0.001})
    '12.3 ± 1.0'
    """
    if value is None:
        return ""
    if isinstance(value, Mapping) and "mean" in value:
        times, places = (1000, 1) if "kernel" in key else (1, 2)
        spread = f" ± {times * value['std']:.{places}f}" if value["std"] else ""  # 0: one subset, which is the whole
        return f"{times * value['mean']:.{places}f}{spread}"
    if isinstance(value, Mapping):
        return f"{100 * value['share']:.1f} ± {50 * (value['high'] - value['low']):.1f}"
    if key == "kernel":
        return f"{1000 * value:.1f}"
    if isinstance(value, float):
        return f"{value:.3g}" if 0 < abs(value) < 0.1 else f"{value:.2f}"
    return str(value)


def markdown(rows: Sequence[Mapping[str, Any]], *, columns: Mapping[str, str] = COLUMNS) -> str:
    """A Markdown table, ending in a line break; empty for no rows."""
    used = {key: heading for key, heading in columns.items() if any(row.get(key) is not None for row in rows)}
    if not used:
        return ""
    lines = ["| " + " | ".join(used.values()) + " |"]
    lines.append("|" + "|".join("---" if key == "cell" else "---:" for key in used) + "|")
    lines += ["| " + " | ".join(show(key, row.get(key)) for key in used) + " |" for row in rows]
    return "\n".join(lines) + "\n"
