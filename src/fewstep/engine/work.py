"""What an engine has to do: works, their asks, and how they end."""

from __future__ import annotations

from collections.abc import Callable, Generator, Hashable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeAlias

from fewstep.errors import FewstepError


@dataclass(frozen=True, eq=False)
class Ask:
    """One evaluation that a work waits for. Asks of one `key` may share a network call; `what` is the network's."""

    key: Hashable
    what: Any


Steps: TypeAlias = "Generator[Ask, Any, Any]"
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
    owners take turns. `deadline_s` is on the engine's clock. `ended` is called once, on the engine's thread, with the
    result or with what went wrong. `number` is its own where it was sent away.
    """

    begin: Callable[[], Any]
    owner: str
    deadline_s: float
    ended: Callable[[Any, BaseException | None], None]
    cancelled: bool = False
    ask: Ask | None = None
    steps: Steps | None = field(default=None, repr=False)
    number: int | None = None

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
            self.end(end.value)
        except Exception as error:  # noqa: BLE001 - whatever it is, its owner is told and the others go on
            self.end(None, error)
        else:
            return True
        return False

    def end(self, result: Any, error: BaseException | None = None) -> None:
        """Close the generator and tell the owner, once."""
        steps, self.steps, self.ask = self.steps, None, None
        if steps is not None:
            steps.close()
        ended, self.ended = self.ended, _nobody
        ended(result, error)


def _nobody(result: Any, error: BaseException | None) -> None:
    """Has been told."""
