"""Which asks share the next network call: the most urgent one, and others of its kind, owners taking turns."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Sequence

from fewstep.engine.work import Work


def pick(ready: Iterable[Work], room: Callable[[Hashable], int]) -> list[Work]:
    """The works of the next tick: all of one key, at most `room(key)`, the earliest deadline first.

    After the most urgent work, owners take turns, each with its own most urgent one: somebody who asks for a hundred
    pictures gets the room that others leave. Works have an ask; none gives an empty list.
    """
    ready = list(ready)
    if not ready:
        return []
    head = min(ready, key=_urgency)
    assert head.ask is not None
    key = head.ask.key
    return _by_turns([work for work in ready if work.ask is not None and work.ask.key == key])[: max(1, room(key))]


def _urgency(work: Work) -> float:
    return work.deadline_s


def _by_turns(works: Sequence[Work]) -> list[Work]:
    """First every owner's most urgent work, then every owner's second, ..."""
    turn: dict[str, int] = {}
    placed: list[tuple[int, float, Work]] = []
    for work in sorted(works, key=_urgency):
        placed.append((turn.get(work.owner, 0), work.deadline_s, work))
        turn[work.owner] = turn.get(work.owner, 0) + 1
    return [work for _, _, work in sorted(placed, key=lambda entry: entry[:2])]
