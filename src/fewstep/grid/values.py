"""What stands behind `steps=`: values with commas, quotes around those that hold one, and ranges of numbers.

Source: the notation of the X/Y/Z plot of AUTOMATIC1111's web interface: `1, 2, 4`, `1-8`, `1-9 (+2)`, `1-10 [5]`.
Departures: `8-1` counts down by itself, fractions are exact, and what A1111 drops or rounds silently is an error.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from decimal import Decimal

from fewstep.errors import RequestError

MOST_VALUES = 10_000
_PART = re.compile(r'\s*(?:"((?:[^"]|"")*)"\s*|([^,]*))(?:,|$)')
_NUMBER = r"[+-]?(?:\d+\.?\d*|\.\d+)"
_RANGE = re.compile(
    rf"({_NUMBER})\s*-\s*({_NUMBER})(?:\s*\(\s*(?P<step>{_NUMBER})\s*\)|\s*\[\s*(?P<count>\d{{1,9}})\s*\])?"
)
_ONE = re.compile(rf"{_NUMBER}(?:[eE][+-]?\d{{1,3}})?")


def split_values(text: str) -> list[str]:
    """The values between commas, without outer spaces; in quotes a value may hold commas, spaces, or nothing.

    >>> split_values('LCM, Euler a,"a cat, sleeping",""'), split_values("a,,b,")
    (['LCM', 'Euler a', 'a cat, sleeping', ''], ['a', 'b'])

    Raises:
        RequestError: a quote is not closed, or text stands behind it.
    """
    found, start = [], 0
    while start < len(text):
        match = _PART.match(text, start)
        quoted, plain = (match[1], (match[2] or "").strip()) if match else (None, '"')
        if match is None or (quoted is None and plain.startswith('"')):
            raise RequestError(f'The quotes in {text[start:].strip()[:60]!r} are not closed. Write "one, two",three.')
        if quoted is not None or plain:
            found.append(plain if quoted is None else quoted.replace('""', '"'))
        start = match.end()
    return found


def joined(values: Sequence[str]) -> str:
    """The text that `split_values` reads back.

    >>> joined(["a", "b, c"])
    'a,"b, c"'
    """
    return ",".join(value if _is_plain(value) else '"{}"'.format(value.replace('"', '""')) for value in values)


def _is_plain(value: str) -> bool:
    return bool(value) and value == value.strip() and not set('",') & set(value)


def numbers(text: str, *, whole: bool) -> list[int | float]:
    """Numbers and ranges of them, each once, in their order.

    >>> numbers("1, 2, 4-6", whole=True), numbers("8-1 (-3)", whole=True), numbers("1-10 [5]", whole=True)
    ([1, 2, 4, 5, 6], [8, 5, 2], [1, 3, 5, 7, 10])
    >>> numbers("0.1-0.4 (+0.1), 1", whole=False), numbers("1-2 [3]", whole=False)
    ([0.1, 0.2, 0.3, 0.4, 1.0], [1.0, 1.5, 2.0])

    Raises:
        RequestError: no number, a fraction where whole ones are asked for, or a range that cannot be counted.
    """
    found: dict[Decimal, None] = {}
    for part in split_values(text):
        found |= dict.fromkeys(_numbers_of(part, whole=whole))
    return [int(value) if whole else float(value) for value in found]


def _numbers_of(part: str, *, whole: bool) -> list[Decimal]:
    match = _RANGE.fullmatch(part)
    if match is None and not _ONE.fullmatch(part):
        raise RequestError(f"{part!r} is no number and no range. Write 4, or 1-8, or 1-9 (+2), or 1-10 [5].")
    ends = (match[1], match[2], match["step"] or "1") if match else (part,)
    values = [Decimal(end) for end in ends]
    if whole and any(value != value.to_integral_value() for value in values):
        raise RequestError(f"{part!r} is not whole, but only whole numbers are allowed here. Write 4, or 1-8.")
    if match is None:
        return values
    start, end, step = values
    if match["count"] is not None:
        return _counted(part, start, end, int(match["count"]), whole=whole)
    return _stepped(part, start, end, step if match["step"] or end >= start else -step)


def _counted(part: str, start: Decimal, end: Decimal, count: int, *, whole: bool) -> list[Decimal]:
    """`count` numbers from start to end; whole ones without their fraction, as A1111 takes them."""
    _check_count(part, count)
    values = [start + (end - start) * place / max(count - 1, 1) for place in range(count)]
    return [Decimal(int(value)) if whole else round(value, 10).normalize() for value in values]


def _stepped(part: str, start: Decimal, end: Decimal, step: Decimal) -> list[Decimal]:
    if step == 0 or (end - start) * step < 0:
        raise RequestError(f"{part!r} never arrives: its step is {step:f}. Write 1-9 (+2) or 9-1 (-2).")
    if abs(step) > abs(end - start) > 0:
        raise RequestError(
            f"{part!r} is only {start:f}, as its step {step:f} is larger than the whole. Write a smaller step, such as "
            f"{start:f}-{end:f} ({(end - start) / 4:+f}), or a count, {start:f}-{end:f} [5]."
        )
    count = int((end - start) / step) + 1
    _check_count(part, count)
    return [start + step * place for place in range(count)]


def _check_count(part: str, count: int) -> None:
    if not 0 < count <= MOST_VALUES:
        raise RequestError(f"{part!r} is {count} values, but from 1 to {MOST_VALUES} are allowed. Take fewer.")
