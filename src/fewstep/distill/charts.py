"""Line charts as SVG text, by hand: they scale, follow the page's light or dark colours and need no library.

A point is (x, y). Colours are numbers into the page's palette (`--s0`, `--s1`, ...).
"""

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from html import escape

Points = Sequence[tuple[float, float]]

WIDTH, HEIGHT = 460.0, 240.0
LEFT, RIGHT, TOP, BOTTOM = 50.0, 12.0, 10.0, 26.0
COLOURS = 8
DRAWN_POINTS = 240
LOG_FROM = 30.0


@dataclass(frozen=True)
class Line:
    """One line of a chart. `style` is "" (plain), "faint" (behind, without a legend), "dots" or "dashed"."""

    name: str
    points: Points
    colour: int = 0
    style: str = ""


def chart(title: str, lines: Sequence[Line], *, note: str = "", percent: bool = False, log: bool = True) -> str:
    """A figure with its title, legend and curves; empty text where no line has two points.

    With `log` the vertical axis is logarithmic where the values are positive and span more than a factor of 30.
    """
    lines = [line for line in lines if len(line.points) > 1 or (line.points and line.style == "dots")]
    if not lines:
        return ""
    across = _Axis.linear([x for line in lines for x, _ in line.points])
    upward = _Axis.of([y for line in lines for y in _within(line)], percent=percent, log=log)
    label = f"{title}: {', '.join(line.name for line in lines if line.style != 'faint')}"
    body = "".join((_grid(across, upward, percent=percent), _plot(lines, across, upward)))
    return (
        f'<figure class="chart"><figcaption><b>{escape(title)}</b>{_note(note)}{_legend(lines)}</figcaption>'
        f'<svg viewBox="0 0 {WIDTH:g} {HEIGHT:g}" role="img" aria-label="{escape(label)}">{body}</svg></figure>'
    )


def smoothed(points: Points) -> Points:
    """An exponential average over a fiftieth of the points, without the pull to its beginning; thinned for drawing.

    >>> smoothed([(1, 2.0), (2, 2.0), (3, 2.0)])
    [(1, 2.0), (2, 2.0), (3, 2.0)]
    """
    keep, total, weight = math.exp(-1 / max(len(points) / 50, 1)), 0.0, 0.0
    found: list[tuple[float, float]] = []
    for x, y in points:
        total, weight = keep * total + (1 - keep) * y, keep * weight + (1 - keep)
        found.append((x, total / weight))
    return thinned(found)


def thinned(points: Points) -> Points:
    """At most DRAWN_POINTS points, each the mean of its neighbours."""
    size = math.ceil(len(points) / DRAWN_POINTS)
    if size < 2:
        return list(points)
    groups = (points[start : start + size] for start in range(0, len(points), size))
    return [(sum(x for x, _ in group) / len(group), sum(y for _, y in group) / len(group)) for group in groups]


def number(value: float) -> str:
    """A number to read: four digits at most, no tail of zeros.

    >>> [number(x) for x in (0, 0.000123, 0.25, 12.3456, 1200, 2500000)]
    ['0', '0.000123', '0.25', '12.35', '1200', '2.5M']
    """
    if value and abs(value) < 1e-4:
        return f"{value:.2g}"
    if abs(value) >= 1e6:
        return f"{value / 1e6:.3g}M"
    text = f"{value:.4g}" if abs(value) < 1000 else f"{value:.0f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


def _share(value: float) -> str:
    return f"{100 * value:.3g} %"


@dataclass(frozen=True)
class _Axis:
    """From values to 0..1 of the axis, and the values that are written at it."""

    low: float
    high: float
    ticks: tuple[float, ...]
    log: bool = False

    def at(self, value: float) -> float:
        if self.log:
            return (math.log(max(value, 1e-30)) - math.log(self.low)) / (math.log(self.high) - math.log(self.low))
        return (value - self.low) / (self.high - self.low)

    @classmethod
    def of(cls, values: Sequence[float], *, percent: bool, log: bool) -> "_Axis":
        low, high = min(values), max(values)
        if percent:
            return cls(0.0, 1.0, (0.0, 0.25, 0.5, 0.75, 1.0))
        if log and low > 0 and high / low > LOG_FROM:
            return cls(low / 1.1, high * 1.1, tuple(_log_ticks(low / 1.1, high * 1.1)), log=True)
        pad = 0.06 * (high - low) or abs(high) * 0.1 or 1.0
        return cls._spanning(max(low - pad, 0.0) if low >= 0 else low - pad, high + pad)

    @classmethod
    def linear(cls, values: Sequence[float]) -> "_Axis":
        low, high = min(values), max(values)
        return cls._spanning(low, high if high > low else low + 1)

    @classmethod
    def _spanning(cls, low: float, high: float) -> "_Axis":
        rough = (high - low) / 5
        scale = 10 ** math.floor(math.log10(rough))
        step = next(scale * unit for unit in (1, 2, 2.5, 5, 10) if scale * unit >= rough * 0.999)
        first = math.ceil(low / step - 1e-9)
        count = math.floor(high / step + 1e-9) - first + 1
        return cls(low, high, tuple((first + place) * step for place in range(count)))


def _log_ticks(low: float, high: float) -> Iterator[float]:
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    units = (1,) if len(decades) > 4 else (1, 3)
    for decade in decades:
        yield from (unit * 10.0**decade for unit in units if low <= unit * 10.0**decade <= high)


def _within(line: Line) -> Iterable[float]:
    """The values that the axis must show: of a faint line not its rare peaks."""
    values = sorted(y for _, y in line.points)
    if line.style != "faint":
        return values
    cut = len(values) // 50
    return values[cut : len(values) - cut]


def _grid(across: _Axis, upward: _Axis, *, percent: bool) -> str:
    write = _share if percent else number
    right, bottom = WIDTH - RIGHT, HEIGHT - BOTTOM
    parts = []
    for tick in upward.ticks:
        y = _y(upward, tick)
        parts.append(f'<path class="rule" d="M{LEFT:g} {y:.1f}H{right:g}"/>')
        parts.append(f'<text class="tick" x="{LEFT - 6:g}" y="{y + 3.5:.1f}" text-anchor="end">{write(tick)}</text>')
    for tick in across.ticks:
        x = _x(across, tick)
        anchor = "end" if x > right - 16 else "start" if x < LEFT + 4 else "middle"
        text = f'<text class="tick" x="{x:.1f}" y="{bottom + 17:g}" text-anchor="{anchor}">{number(tick)}</text>'
        parts.append(text)
    return "".join(parts)


def _plot(lines: Sequence[Line], across: _Axis, upward: _Axis) -> str:
    """The curves in a window of their own, which cuts off what leaves it."""
    behind_first = sorted(lines, key=lambda line: line.style != "faint")
    curves = "".join(_curve(line, across, upward) for line in behind_first)
    box = f"{LEFT - 5:g} {TOP - 5:g} {WIDTH - LEFT - RIGHT + 10:g} {HEIGHT - TOP - BOTTOM + 10:g}"
    x, y, width, height = box.split()
    return f'<svg x="{x}" y="{y}" width="{width}" height="{height}" viewBox="{box}">{curves}</svg>'


def _curve(line: Line, across: _Axis, upward: _Axis) -> str:
    places = [(_x(across, x), _y(upward, y)) for x, y in line.points]
    colour = f"c{line.colour % COLOURS}"
    path = "".join(f"{'L' if place else 'M'}{x:.1f} {y:.1f}" for place, (x, y) in enumerate(places))
    drawn = f'<path class="curve {colour} {line.style}" d="{path}"/>'
    if line.style != "dots":
        return drawn
    return drawn + "".join(
        f'<circle class="dot {colour}" cx="{x:.1f}" cy="{y:.1f}" r="3.2">'
        f"<title>{escape(line.name)}, step {number(at)}: {number(value)}</title></circle>"
        for (x, y), (at, value) in zip(places, line.points, strict=True)
    )


def _x(axis: _Axis, value: float) -> float:
    return LEFT + axis.at(value) * (WIDTH - LEFT - RIGHT)


def _y(axis: _Axis, value: float) -> float:
    return HEIGHT - BOTTOM - axis.at(value) * (HEIGHT - TOP - BOTTOM)


def _note(note: str) -> str:
    return f" <small>{escape(note)}</small>" if note else ""


def _legend(lines: Sequence[Line]) -> str:
    shown = [line for line in lines if line.style != "faint"]
    if len(shown) < 2:
        return ""
    items = (f'<li><i class="key c{line.colour % COLOURS} {line.style}"></i>{escape(line.name)}</li>' for line in shown)
    return f'<ul class="legend">{"".join(items)}</ul>'
