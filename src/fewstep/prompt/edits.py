"""Prompts that change while the picture is made: `[from:to:when]`, `[to:when]`, `[from::when]` and `[a|b]`.

Source: AUTOMATIC1111's web interface. `when` with a point is a share of the steps, without one a number of steps. The
edited places nest, and may hold words with weights; brackets that are no edit are left to `emphasis`.
Departure: options of an alternation may hold a colon, which then is only a colon.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import TypeAlias

from fewstep.errors import RequestError

DEPTH = 50
"""Square brackets inside one another."""

_TOKEN = re.compile(r"\\.|[\[\]():|]|[^\\\[\]():|]+|\\$", re.DOTALL)
_WHEN = re.compile(r"\s*((?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?)\s*")
Node: TypeAlias = "str | Switch | Turns"


@dataclass(frozen=True)
class Switch:
    """`before` for the first steps, then `after`."""

    before: tuple[Node, ...]
    after: tuple[Node, ...]
    when: str

    def chosen(self, step: int, steps: int, done: int) -> tuple[Node, ...]:
        """What counts in `step`, from 0, of `steps`."""
        return self.before if step < _boundary(self.when, steps, done) else self.after


@dataclass(frozen=True)
class Turns:
    """One option after the other."""

    options: tuple[tuple[Node, ...], ...]

    def chosen(self, step: int, steps: int, done: int) -> tuple[Node, ...]:
        """What counts in `step`, from 0."""
        return self.options[step % len(self.options)]


@dataclass
class _Bracket:
    """An open bracket: its parts so far, and the signs (`:` or `|`) between them."""

    opened: str
    parts: list[list[Node]] = field(default_factory=lambda: [[]])
    signs: list[str] = field(default_factory=list)

    def literal(self) -> list[Node]:
        """As it was written, without its end."""
        found: list[Node] = [self.opened, *self.parts[0]]
        for sign, part in zip(self.signs, self.parts[1:], strict=True):
            found += [sign, *part]
        return found


def texts(prompt: str, steps: int, *, done: int = 0) -> tuple[str, ...]:
    """The prompt at each of `steps` steps; `done` are the steps of an earlier pass, if this is a second one.

    In a second pass numbers count on from the first, and shares from 1 (`[a:b:1.5]` changes in its middle).

    >>> texts("a [red:green:0.5] [cat|dog]", 4)
    ('a red cat', 'a red dog', 'a green cat', 'a green dog')
    >>> texts("[a:b:2](c:1.2)[d]", 3)
    ('a(c:1.2)[d]', 'a(c:1.2)[d]', 'b(c:1.2)[d]')

    Raises:
        RequestError: square brackets stand deeper inside one another than `DEPTH`.
    """
    nodes = _parsed(prompt)
    if all(isinstance(node, str) for node in nodes):
        return (prompt,) * steps
    return tuple("".join(_said(nodes, step, steps, done)) for step in range(steps))


def _said(nodes: tuple[Node, ...] | list[Node], step: int, steps: int, done: int) -> list[str]:
    found: list[str] = []
    for node in nodes:
        found += [node] if isinstance(node, str) else _said(node.chosen(step, steps, done), step, steps, done)
    return found


def _boundary(when: str, steps: int, done: int) -> int:
    value = (float(when) - (1.0 if done else 0.0)) * steps if "." in when else float(when) - done
    return int(min(steps, max(0.0, value)))


def _parsed(prompt: str) -> list[Node]:
    stack, depth = [_Bracket("")], 0
    for token in _TOKEN.findall(prompt):
        top = stack[-1]
        if token in ("[", "("):
            stack.append(_Bracket(token))
            depth += token == "["
            if depth > DEPTH:
                raise RequestError(f"The prompt has more than {DEPTH} square brackets inside one another. Close some.")
        elif token == ")" and top.opened == "(":
            _close(stack, [*top.literal(), ")"])
        elif token == "]" and depth:
            while stack[-1].opened == "(":
                _close(stack, stack[-1].literal())
            _close(stack, _edit(stack[-1]))
            depth -= 1
        elif token in (":", "|") and top.opened == "[":
            top.signs.append(token)
            top.parts.append([])
        else:
            top.parts[-1].append(token)
    while len(stack) > 1:
        _close(stack, stack[-1].literal())
    return stack[0].parts[0]


def _close(stack: list[_Bracket], nodes: list[Node]) -> None:
    stack.pop()
    stack[-1].parts[-1] += nodes


def _edit(bracket: _Bracket) -> list[Node]:
    """What `[...]` is: turns, a switch, or only brackets."""
    if "|" in bracket.signs:
        return [Turns(_options(bracket))]
    last = bracket.parts[-1]
    when = _WHEN.fullmatch(last[0]) if len(last) == 1 and isinstance(last[0], str) else None
    if when is None or len(bracket.signs) not in (1, 2):
        return [*bracket.literal(), "]"]
    *before, after = (tuple(part) for part in bracket.parts[:-1])
    return [Switch(before[0] if before else (), after, when[1])]


def _options(bracket: _Bracket) -> tuple[tuple[Node, ...], ...]:
    options = [list(bracket.parts[0])]
    for sign, part in zip(bracket.signs, bracket.parts[1:], strict=True):
        if sign == "|":
            options.append(list(part))
        else:
            options[-1] += [":", *part]
    return tuple(map(tuple, options))
