"""Quality against network evaluations as one small SVG, readable on light and on dark paper; no plotting library."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

WIDTH, HEIGHT, LEFT, TOP, RIGHT, BOTTOM = 720, 420, 64, 44, 200, 48
#: Okabe and Ito's colours, told apart also without red and green; each holds on white and on black.
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#b58900", "#56b4e9", "#8a6fd1", "#7f7f7f")
STYLE = (
    "<style>text{font:13px system-ui,sans-serif;fill:#222}.axis{stroke:#888}.grid{stroke:#8884}"
    "@media(prefers-color-scheme:dark){text{fill:#ddd}}</style>"
)
Point = tuple[float, float]


def ticks(low: float, high: float, *, about: int = 5) -> list[float]:
    """Round numbers that span low to high.

    >>> ticks(0, 9.3), ticks(0.21, 0.24)
    ([0.0, 2.0, 4.0, 6.0, 8.0, 10.0], [0.21, 0.215, 0.22, 0.225, 0.23, 0.235, 0.24])
    """
    raw = (high - low) / about
    power = 10.0 ** math.floor(math.log10(raw))
    step = min((power * m for m in (1, 2, 2.5, 5, 10)), key=lambda s: abs(s - raw))
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(i * step, 10) for i in range(first, last + 1)]


def lines(
    series: Mapping[str, Sequence[Point]], *, title: str, y_label: str, levels: Mapping[str, float] | None = None
) -> str:
    """An SVG of one line per series over network evaluations (logarithmic); `levels` are dashed horizontal lines.

    Raises:
        ValueError: there is no point.
    """
    points = [point for part in series.values() for point in part]
    if not points:
        raise ValueError("a plot needs at least one point")
    levels = dict(levels or {})
    xs = sorted({x for x, _ in points})
    low, high = min([y for _, y in points] + [*levels.values()]), max([y for _, y in points] + [*levels.values()])
    y_ticks = ticks(low, high) if high > low else [low - 1, low, low + 1]

    def at_x(x: float) -> float:
        span = math.log2(xs[-1] / xs[0]) or 1
        return LEFT + (WIDTH - LEFT - RIGHT) * math.log2(x / xs[0]) / span

    def at_y(y: float) -> float:
        return HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * (y - y_ticks[0]) / (y_ticks[-1] - y_ticks[0])

    parts = [_frame(title, y_label)]
    parts += [_grid(at_y(y), f"{y:g}") for y in y_ticks]
    parts += [_text(at_x(x), HEIGHT - BOTTOM + 18, f"{x:g}", "middle") for x in xs]
    named = [(name, sorted(part), None) for name, part in series.items() if part]
    named += [(name, [], level) for name, level in levels.items()]
    for index, (name, part, level) in enumerate(named):
        colour = COLOURS[index % len(COLOURS)]
        drawn = [(LEFT, at_y(level)), (WIDTH - RIGHT, at_y(level))] if level is not None else []
        drawn = drawn or [(at_x(x), at_y(y)) for x, y in part]
        parts.append(_line(drawn, colour, dashed=level is not None))
        parts.append(_key(index, name, colour))
    return "\n".join([*parts, "</svg>"]) + "\n"


def _frame(title: str, y_label: str) -> str:
    box = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" height="{HEIGHT}">'
    middle = LEFT + (WIDTH - LEFT - RIGHT) / 2
    words = [_text(LEFT, 20, title, "start"), _text(middle, HEIGHT - 10, "network evaluations", "middle")]
    words.append(_text(LEFT, 36, y_label, "start"))
    return "\n".join([box, STYLE, *words])


def _text(x: float, y: float, words: str, anchor: str) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(words)}</text>'


def _grid(y: float, label: str) -> str:
    rule = f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>'
    return rule + _text(LEFT - 8, y + 4, label, "end")


def _line(points: Sequence[Point], colour: str, *, dashed: bool) -> str:
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
    dash = ' stroke-dasharray="6 4"' if dashed else ""
    stroke = f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"{dash}/>'
    dots = "" if dashed else "".join(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3.5" fill="{colour}"/>' for x, y in points)
    return stroke + dots


def _key(index: int, name: str, colour: str) -> str:
    y = TOP + 20 * index
    return f'<rect x="{WIDTH - RIGHT + 12}" y="{y - 10}" width="12" height="12" fill="{colour}"/>' + _text(
        WIDTH - RIGHT + 30, y, name if len(name) <= 24 else name[:22] + "..", "start"
    )


def number(value: Any) -> float | None:
    """The figure of a table's cell to be drawn: a rate's share in percent, a mean, or the number itself.

    >>> number({"share": 0.5}), number({"mean": 3.0, "std": 1.0}), number(2), number(None)
    (50.0, 3.0, 2.0, None)
    """
    if isinstance(value, Mapping):
        return 100 * value["share"] if "share" in value else value.get("mean")
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None


def quality_plots(rows: Sequence[Mapping[str, Any]], columns: Mapping[str, str], *, title: str) -> dict[str, str]:
    """One SVG for each column that is measured at two or more numbers of evaluations, by the column's key.

    What is drawn at one number of evaluations only, as the teacher in many steps, is a dashed line.
    """
    found: dict[str, str] = {}
    for key, heading in columns.items():
        points = [
            (str(row["cell"]), (float(row["evaluations"]), value))
            for row in rows
            if row.get("evaluations") and (value := number(row.get(key))) is not None
        ]
        series: dict[str, list[Point]] = {}
        for name, point in points:
            series.setdefault(name, []).append(point)
        many = {name: part for name, part in series.items() if len(part) > 1}
        if many:
            single = {f"{name} ({part[0][0]:g})": part[0][1] for name, part in series.items() if len(part) == 1}
            found[key] = lines(many, title=title, y_label=heading, levels=single)
    return found
