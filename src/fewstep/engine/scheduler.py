"""Which asks share the next network call: the most urgent one, and others of its kind, owners taking turns."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Sequence

from fewstep.engine.work import Work


def pick(ready: Iterable[Work], room: Callable[[Hashable], int], head: Work | None = None) -> list[Work]:
    """The works of the next tick: all of one key, at most `room(key)`, the earliest deadline first, or `head`.

    After the most urgent work, owners take turns, each with its own most urgent one: somebody who asks for a hundred
    pictures gets the room that others leave. Works have an ask; none gives an empty list.
    """
    ready = list(ready)
    if not ready:
        return []
    first = min(ready, key=_urgency) if head is None else head
    assert first.ask is not None
    key = first.ask.key
    others = [work for work in ready if work is not first and work.ask is not None and work.ask.key == key]
    return [first, *_by_turns(others, first.owner)][: max(1, room(key))]


def _urgency(work: Work) -> float:
    return work.deadline_s


def _by_turns(works: Sequence[Work], had: str) -> list[Work]:
    """First every owner's most urgent work, then every owner's second, ...; `had` is who had the first one."""
    turn = {had: 1}
    placed: list[tuple[int, float, Work]] = []
    for work in sorted(works, key=_urgency):
        placed.append((turn.get(work.owner, 0), work.deadline_s, work))
        turn[work.owner] = turn.get(work.owner, 0) + 1
    return [work for _, _, work in sorted(placed, key=lambda entry: entry[:2])]
