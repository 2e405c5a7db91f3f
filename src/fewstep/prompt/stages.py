"""What a prompt and a negative prompt come to at each step.

Source: AUTOMATIC1111's web interface; `AND` composes prompts after Liu et al. 2022 (arXiv:2206.01714, eq. 11), each
with its weight: `a dog AND a cat :0.5`.
Departures: without AND, a colon and a number at a prompt's end are text. A negative prompt has no AND.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from itertools import groupby

from fewstep.prompt.edits import texts

_AND = re.compile(r"\bAND\b")
_WEIGHT = re.compile(r":\s*([+-]?(?:\d+\.?\d*|\.\d+))\s*$")


@dataclass(frozen=True)
class Part:
    """One of the prompts that are composed."""

    words: str
    weight: float = 1.0


@dataclass(frozen=True)
class Stage:
    """From step `first` on, counted from 0: these prompts, away from this one."""

    first: int
    parts: tuple[Part, ...]
    negative: str = ""

    def away(self, guidance: float) -> float:
        """How much of the negative prompt's prediction is in these steps; 0: it has no effect.

        >>> Stage(0, (Part("a"),)).away(1.0), Stage(0, (Part("a"), Part("b", 0.5))).away(1.0)
        (0.0, -0.5)
        """
        return 1 - guidance * sum(part.weight for part in self.parts)


def stages(prompt: str, negative: str, steps: int, *, done: int = 0) -> tuple[Stage, ...]:
    """The stages of a picture of `steps` steps; `done` are the steps of an earlier pass, if this is a second one.

    >>> stages("[a:b:2] AND c :0.5", "d", 4)[1]
    Stage(first=2, parts=(Part(words='b ', weight=1.0), Part(words=' c ', weight=0.5)), negative='d')

    Raises:
        RequestError: brackets too deep inside one another (`edits.texts`).
    """
    weighted = parts_of(prompt)
    columns = [texts(part.words, steps, done=done) for part in weighted]
    rows = [
        (tuple(Part(*pair) for pair in zip(said, (part.weight for part in weighted), strict=True)), away)
        for *said, away in zip(*columns, texts(negative, steps, done=done), strict=True)
    ]
    runs = [list(run) for _, run in groupby(range(steps), key=lambda step: rows[step])]
    return tuple(Stage(run[0], *rows[run[0]]) for run in runs)


def parts_of(prompt: str) -> tuple[Part, ...]:
    """The prompts between the ANDs, each with its weight."""
    subprompts = _AND.split(prompt)
    if len(subprompts) == 1:
        return (Part(prompt),)
    weights = [_WEIGHT.search(text) for text in subprompts]
    return tuple(
        Part(text[: found.start()], float(found[1])) if found else Part(text)
        for text, found in zip(subprompts, weights, strict=True)
    )
