r"""Words that count more or less: `(word)` 1.1 times, `(word:1.3)`, `[word]` 1/1.1 times, `\(` for the sign itself.

Source: AUTOMATIC1111's web interface. A bracket that is never closed reaches to the end; BREAK ends a passage, which is
read by itself (`fewstep.models.chunks`).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from itertools import groupby
from typing import TypeAlias

from fewstep.errors import RequestError

MODES = ("original", "no norm", "ignore", "none")
"""What is done with weights: multiply and restore the mean, only multiply, read the signs but give no weight, or take
every sign for text."""

LIMIT = 1000.0
_MORE = 1.1
_NUMBER = r":\s*([+-]?(?:\d+\.?\d*|\.\d+))\s*\)"
_TOKEN = re.compile(rf"\\(.?)|([(\[\])])|{_NUMBER}|[^\\()\[\]:]+|:", re.DOTALL)
_BREAK = re.compile(r"\bBREAK\b")


@dataclass(frozen=True)
class Span:
    """Some words and how strongly they count, 1 being plain."""

    text: str
    weight: float = 1.0


Passage: TypeAlias = tuple[Span, ...]


def passages(prompt: str, mode: str = "original") -> tuple[Passage, ...]:
    """The prompt's passages, between one BREAK and the next, as spans.

    >>> passages("a (red:1.2) cat")
    ((Span(text='a ', weight=1.0), Span(text='red', weight=1.2), Span(text=' cat', weight=1.0)),)
    >>> passages("sky BREAK[sea]")[1]
    (Span(text='sea', weight=0.9090909090909091),)

    Raises:
        RequestError: a weight beyond 1000.
    """
    if mode == "none":
        return ((Span(prompt),),)
    found: list[list[Span]] = [[]]
    for text, weight in _weighted(prompt):
        first, *others = _BREAK.split(text)
        found[-1].append(Span(first, weight))
        found += [[Span(other, weight)] for other in others]
    return tuple(_joined(spans, plain=mode == "ignore") for spans in found)


def _joined(spans: list[Span], *, plain: bool) -> Passage:
    """Neighbours of one weight as one span; empty ones left out. Plain: each span then counts 1."""
    groups = groupby((span for span in spans if span.text), key=lambda span: span.weight)
    return tuple(Span("".join(span.text for span in group), 1.0 if plain else weight) for weight, group in groups)


def _weighted(prompt: str) -> list[tuple[str, float]]:
    texts: list[str] = []
    weights: list[float] = []
    opened: dict[str, list[int]] = {"(": [], "[": []}

    def multiply(start: int, factor: float) -> None:
        weights[start:] = [weight * factor for weight in weights[start:]]
        if any(abs(weight) > LIMIT for weight in weights[start:]):
            raise RequestError(f"The prompt gives '{texts[start][:40]}' a weight beyond {LIMIT:g}. Use 0 to 2.")

    for match in _TOKEN.finditer(prompt):
        sign, number = match[2], match[3]
        if sign in opened:
            opened[sign].append(len(texts))
        elif (sign == ")" or number) and opened["("]:
            multiply(opened["("].pop(), float(number) if number else _MORE)
        elif sign == "]" and opened["["]:
            multiply(opened["["].pop(), 1 / _MORE)
        else:
            texts.append(match[0] if match[1] is None else match[1])
            weights.append(1.0)
    for sign, factor in (("(", _MORE), ("[", 1 / _MORE)):
        for start in opened[sign]:
            multiply(start, factor)
    return list(zip(texts, weights, strict=True)) or [("", 1.0)]
