"""The engine in this process: one thread that owns the network, and a queue with a limit.

Everything that touches the network runs on that thread: a work's generator, and the network's answers. A `Rest` is made
on a second one, while the network goes on. Callers are on any other; they hand works in and are told of the end by the
work's `ended`.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from fewstep.engine.scheduler import pick
from fewstep.engine.work import BusyError, CancelledError, Network, Stats, Work

WAITING = 64
"""Works that may wait before others are turned away."""


LATE_EVERY, LATE_S = 4, 1.0
"""Every so many calls the next is for works that are here for longer than this, whatever is more urgent: frames of a
live session, which are never so old, do not keep everybody else waiting for ever."""


class LocalEngine:
    """See the module. `clock` is for tests; `waiting` the limit of works that have not begun."""

    def __init__(
        self, network: Network, *, waiting: int = WAITING, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.network, self.waiting, self.clock = network, waiting, clock
        self.stats = Stats()
        self._works: list[Work] = []
        self._condition = threading.Condition()
        self._closed = False
        self._rests = ThreadPoolExecutor(1, thread_name_prefix="fewstep-rests")
        self._thread = threading.Thread(target=self._run, name="fewstep-engine", daemon=True)
        self._thread.start()

    def submit(self, work: Work) -> None:
        """Take a work in. Raises BusyError when too many wait already, and RuntimeError after `close`."""
        with self._condition:
            if self._closed:
                raise RuntimeError("the engine is closed")
            waiting = sum(not work.started for work in self._works)
            if waiting >= self.waiting:
                self.stats.turned_away += 1
                seconds = max(1.0, round(self.stats.call_s * 4 * waiting, 1))
                raise BusyError(f"{waiting} pictures are waiting already. Try again in {seconds:g} s.", seconds)
            work.since_s = self.clock()
            self._works.append(work)
            self._condition.notify()

    def cancel(self, work: Work) -> None:
        """End a work before its next evaluation; its owner is told with `CancelledError`. One that ended stays so."""
        with self._condition:
            work.cancelled = True
            self._condition.notify()

    def position(self, work: Work) -> int:
        """How many works that have not begun are ahead of this one; 0 when it has, or is next."""
        with self._condition:
            ahead = [other for other in self._works if not other.started and other.deadline_s < work.deadline_s]
            return 0 if work.started else len(ahead)

    def close(self, *, patience_s: float = 10.0) -> None:
        """Cancel what is left and end the thread."""
        with self._condition:
            self._closed = True
            self._condition.notify()
        if threading.current_thread() is not self._thread:
            self._thread.join(patience_s)

    def _run(self) -> None:
        try:
            while self._await_works():
                self._tick()
        finally:  # also after a fault of ours: nobody waits for ever
            with self._condition:
                self._closed = True
                left, self._works = self._works, []
            for work in left:
                work.end(None, CancelledError("The server is shutting down."))
            self._rests.shutdown()

    def _await_works(self) -> bool:
        """Sleep until there is something to do; False at the end."""
        with self._condition:
            while not self._works and not self._closed:
                self._condition.wait()
            return not self._closed

    def _tick(self) -> None:
        """Drop what was cancelled, begin what is next, answer one call's asks."""
        with self._condition:
            works = sorted(self._works, key=self._order())
        for work in [work for work in works if work.cancelled]:
            self._end(work, CancelledError("The picture was cancelled."))
        self._begin([work for work in works if not work.cancelled])
        ready = [work for work in works if work.ask is not None and not work.cancelled]
        if chosen := pick(ready, self.network.room, ready[0] if ready else None):
            self._answer(chosen)

    def _order(self) -> Callable[[Work], tuple[bool, float]]:
        """The most urgent first; every so often the most urgent of those that are here for long."""
        late, now = self.stats.ticks % LATE_EVERY == LATE_EVERY - 1, self.clock()
        return lambda work: (late and now - work.since_s <= LATE_S, work.deadline_s)

    def _begin(self, works: list[Work]) -> None:
        """The most urgent work at once, others a few at a time: what has begun holds memory."""
        for place, work in enumerate(works):
            begun = [other.ask for other in works if other.ask is not None]
            if work.started or (
                place and len(begun) >= 2 * max((self.network.room(ask.key) for ask in begun), default=1)
            ):
                continue
            if not work.go_on():
                self._drop(work)

    def _answer(self, chosen: list[Work]) -> None:
        started = self.clock()
        try:
            answers = self.network.answer([work.ask for work in chosen if work.ask is not None])
        except Exception as error:  # noqa: BLE001 - out of memory, say: these works fail, the engine stays
            for work in chosen:
                self._end(work, error)
            return
        self.stats.calls_s.append(self.clock() - started)
        self.stats.ticks += 1
        self.stats.asks += len(chosen)
        for work, answer in zip(chosen, answers, strict=True):
            if not work.go_on(answer):
                self._drop(work)

    def _end(self, work: Work, error: BaseException) -> None:
        work.end(None, error)
        self._drop(work)

    def _drop(self, work: Work) -> None:
        with self._condition:
            if work in self._works:
                self._works.remove(work)
                self.stats.ended += 1
        if work.rest is not None:
            if work.resting is not None:
                work.resting()
            self._rests.submit(work.finish)


def wait_for(engine: LocalEngine, begin: Callable[[], Any], *, owner: str = "", within_s: float = 60.0) -> Any:
    """Submit and wait: the result, or what went wrong, raised."""
    done, found = threading.Event(), []

    def ended(result: Any, error: BaseException | None) -> None:
        found.append((result, error))
        done.set()

    engine.submit(Work(begin, owner, engine.clock() + within_s, ended))
    done.wait()
    result, error = found[0]
    if error is not None:
        raise error
    return result
