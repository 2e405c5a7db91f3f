"""What an engine has to do: works, their asks, and how they end."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Hashable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeAlias

from fewstep.errors import FewstepError


@dataclass(frozen=True, eq=False)
class Ask:
    """One evaluation that a work waits for. Asks of one `key` may share a network call; `what` is the network's."""

    key: Hashable
    what: Any


@dataclass(frozen=True, eq=False)
class Rest:
    """What a work may return in place of its result: how to make that without the network, on any thread."""

    make: Callable[[], Any]


Steps: TypeAlias = "Generator[Ask, Any, Any | Rest]"
"""Yields asks, is sent answers, returns its result."""


class Network(Protocol):
    """What answers asks."""

    def room(self, key: Hashable) -> int:
        """How many asks of this key one call should hold, at least 1."""
        ...

    def answer(self, asks: Sequence[Ask]) -> Sequence[Any]:
        """An answer for each; all have one key."""
        ...


class CancelledError(FewstepError):
    """The work was cancelled before its end."""

    http_status = 499


class BusyError(FewstepError):
    """There is no room for another work now; `retry_after_s` is when there may be."""

    http_status = 429

    def __init__(self, message: str, retry_after_s: float) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


@dataclass(eq=False)
class Work:
    """A picture, or a batch of them, in the making.

    `begin` makes the generator, on the engine's thread, when the work is first looked at. `owner` is whom it is for:
    owners take turns. `deadline_s` is on the engine's clock. `ended` is called once, on a thread of the engine's, with
    the result or with what went wrong; `resting` before that, when a `Rest` of the work is left to do. `number` is its
    own where it was sent away, `since_s` when the engine took it in.
    """

    begin: Callable[[], Any]
    owner: str
    deadline_s: float
    ended: Callable[[Any, BaseException | None], None]
    resting: Callable[[], None] | None = None
    rest: Rest | None = None
    cancelled: bool = False
    ask: Ask | None = None
    steps: Steps | None = field(default=None, repr=False)
    number: int | None = None
    since_s: float = 0.0

    @property
    def started(self) -> bool:
        """Whether it was looked at."""
        return self.steps is not None

    def go_on(self, answer: Any = None) -> bool:
        """Begin, or take an answer; whether there is another ask. What goes wrong ends the work, not the engine."""
        try:
            if self.steps is None:
                steps = self.steps = self.begin()
                self.ask = next(steps)
            else:
                self.ask = self.steps.send(answer)
        except StopIteration as end:
            if isinstance(end.value, Rest):
                self.rest, self.ask = end.value, None
            else:
                self.end(end.value)
        except Exception as error:  # noqa: BLE001 - whatever it is, its owner is told and the others go on
            self.end(None, error)
        else:
            return True
        return False

    def finish(self) -> None:
        """Do the rest, and end."""
        assert self.rest is not None
        try:
            result = self.rest.make()
        except Exception as error:  # noqa: BLE001 - as in `go_on`
            self.end(None, error)
        else:
            self.end(result)

    def end(self, result: Any, error: BaseException | None = None) -> None:
        """Close the generator and tell the owner, once."""
        steps, self.steps, self.ask = self.steps, None, None
        if steps is not None:
            steps.close()
        ended, self.ended = self.ended, _nobody
        ended(result, error)


REMEMBERED = 256


@dataclass
class Stats:
    """What the engine did: ticks and asks since its start, works that ended or were turned away, its last calls."""

    ticks: int = 0
    asks: int = 0
    ended: int = 0
    turned_away: int = 0
    calls_s: deque[float] = field(default_factory=lambda: deque(maxlen=REMEMBERED))

    @property
    def call_s(self) -> float:
        """The median of the last network calls, in seconds; 0 before the first."""
        calls = sorted(self.calls_s)
        return calls[len(calls) // 2] if calls else 0.0


class Engine(Protocol):
    """What works are given to (`LocalEngine`, `Fleet`)."""

    @property
    def stats(self) -> Stats:
        """What it did."""
        ...

    @property
    def clock(self) -> Callable[[], float]:
        """Seconds that deadlines are in."""
        ...

    def submit(self, work: Work) -> None:
        """Take a work in. Raises BusyError when too many wait already."""
        ...

    def cancel(self, work: Work) -> None:
        """End a work before its next evaluation."""
        ...

    def position(self, work: Work) -> int:
        """How many works are ahead of one that waits."""
        ...

    def close(self) -> None:
        """Cancel what is left."""
        ...


def _nobody(result: Any, error: BaseException | None) -> None:
    """Has been told."""
