"""The quality table as Markdown: one row per cell, only the columns that something is in."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

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
    "frechet": "Fréchet ↓",
    "kernel": "kernel ×1000 ↓",
    "precision": "precision",
    "recall": "recall",
    "teacher_rms": "RMS to teacher ↓",
    "teacher_features": "features to teacher ↓",
    "nearest_median": "RMS to nearest training picture",
    "picture_ms": "ms a picture",
}


def show(key: str, value: Any) -> str:
    """One figure as text: rates as percent with half the width of their interval, distances with few digits.

    >>> show("top1", {"share": 0.5, "low": 0.4, "high": 0.6, "count": 100}), show("frechet", 1.2345), show("cell", None)
    ('50.0 ± 10.0', '1.23', '')
    """
    if value is None:
        return ""
    if isinstance(value, Mapping):
        return f"{100 * value['share']:.1f} ± {50 * (value['high'] - value['low']):.1f}"
    if key == "kernel":
        return f"{1000 * value:.1f}"
    return f"{value:.2f}" if isinstance(value, float) else str(value)


def markdown(rows: Sequence[Mapping[str, Any]], *, columns: Mapping[str, str] = COLUMNS) -> str:
    """A Markdown table, ending in a line break; empty for no rows."""
    used = {key: heading for key, heading in columns.items() if any(row.get(key) is not None for row in rows)}
    if not used:
        return ""
    lines = ["| " + " | ".join(used.values()) + " |"]
    lines.append("|" + "|".join("---" if key == "cell" else "---:" for key in used) + "|")
    lines += ["| " + " | ".join(show(key, row.get(key)) for key in used) + " |" for row in rows]
    return "\n".join(lines) + "\n"
