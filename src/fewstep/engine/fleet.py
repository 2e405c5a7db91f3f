"""An engine whose works are carried out by workers: other processes, or machines. As `LocalEngine` to its users.

What waits, waits here, by its deadline; a worker has a few errands at a time, the one with the fewest gets the next. A
live session stays with its worker, which has its prompts and noise. When a worker is lost another takes its place;
pictures of jobs are painted again, frames of live sessions are not: the next one comes soon.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

from fewstep.engine.errands import Errand, picture_of
from fewstep.engine.local import WAITING
from fewstep.engine.wire import Letter
from fewstep.engine.work import BusyError, CancelledError, Stats, Work
from fewstep.errors import FewstepError

AT_ONCE = 4
"""Errands that a worker has at a time: enough to share network calls, few enough to leave the order to us."""

TRIES = 2
LOOK_S = 0.5
SCALE_S = 2.0
"""A work that waited so long asks for another worker."""

IDLE_S = 60.0
SHORT_S, SHORT_LIVES = 10.0, 3
"""A worker that was lost sooner than this, so many times one after the other, is not started again."""


class LostError(FewstepError):
    """The worker was lost before the picture was done."""

    http_status = 503


class RemoteError(FewstepError):
    """What a worker said went wrong."""

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.http_status = status


class Worker(Protocol):
    """The near end of a worker. `heard` and `lost`, which it was made with, are called from any thread."""

    def send(self, letter: Letter) -> None:
        """To the worker; after it was lost to nobody."""
        ...

    def close(self) -> None:
        """End it."""
        ...


Hire = Callable[[int, Callable[[Letter], None], Callable[[], None]], Worker]
"""Starts worker number n, which tells what it hears, and when it is lost."""


@dataclass(eq=False)
class Place:
    """A worker with what it is doing."""

    index: int
    worker: Worker
    since_s: float
    busy_s: float
    flights: dict[int, Work] = field(default_factory=dict)
    counts: tuple[int, int, float] = (0, 0, 0.0)


class Fleet:
    """See the module. From `least` to `most` workers, made by `hire`; `waiting` is the limit of works that wait."""

    def __init__(
        self,
        hire: Hire,
        least: int = 1,
        most: int | None = None,
        *,
        waiting: int = WAITING,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.hire, self.least, self.most, self.waiting, self.clock = hire, least, most or least, waiting, clock
        self.lost = 0
        self._stats = Stats()
        self._gone = (0, 0)
        self._lock = threading.Lock()
        self._wait: dict[Work, float] = {}
        self._events: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._places: dict[int, Place] = {}
        self._errands: dict[int, tuple[Errand, int]] = {}
        self._homes: dict[str, int] = {}
        self._short = self._next_index = self._number = 0
        self._closed = False
        for _ in range(least):
            self._start()
        self._thread = threading.Thread(target=self._run, name="fewstep-fleet", daemon=True)
        self._thread.start()

    def submit(self, work: Work) -> None:
        """Take a work in, whose `begin` gives an `Errand`. Raises BusyError when too many wait already."""
        with self._lock:
            if self._closed:
                raise RuntimeError("the engine is closed")
            if len(self._wait) >= self.waiting:
                self._stats.turned_away += 1
                seconds = max(1.0, round(self.stats.call_s * 4 * len(self._wait) / max(1, len(self._places)), 1))
                raise BusyError(f"{len(self._wait)} pictures are waiting already. Try again in {seconds:g} s.", seconds)
            self._wait[work] = self.clock()
        self._events.put(self._dispatch)

    def cancel(self, work: Work) -> None:
        """End a work before its next evaluation; its owner is told with `CancelledError`."""
        work.cancelled = True
        self._events.put(lambda: self._cancel(work))

    def position(self, work: Work) -> int:
        """How many works are ahead of one that waits; 0 when it has begun, or is next."""
        with self._lock:
            if work not in self._wait:
                return 0
            return sum(other.deadline_s < work.deadline_s for other in self._wait)

    @property
    def stats(self) -> Stats:
        """All workers' figures together; `calls_s` are their medians."""
        places = list(self._places.values())
        self._stats.asks = self._gone[0] + sum(place.counts[0] for place in places)
        self._stats.ticks = self._gone[1] + sum(place.counts[1] for place in places)
        self._stats.calls_s.clear()
        self._stats.calls_s.extend(place.counts[2] for place in places if place.counts[2])
        return self._stats

    @property
    def workers(self) -> int:
        """How many there are."""
        return len(self._places)

    def close(self, *, patience_s: float = 10.0) -> None:
        """Cancel what is left and end the workers."""
        with self._lock:
            self._closed = True
        self._events.put(None)
        if threading.current_thread() is not self._thread:
            self._thread.join(patience_s)

    def _run(self) -> None:
        try:
            while True:
                try:
                    event = self._events.get(timeout=LOOK_S)
                except queue.Empty:
                    event = self._scale
                if event is None:
                    return
                event()
        finally:  # also after a fault of ours: nobody waits for ever
            with self._lock:
                self._closed = True
                left, self._wait = list(self._wait), {}
            for place in self._places.values():
                left += place.flights.values()
                place.worker.close()
            for work in left:
                work.end(None, CancelledError("The server is shutting down."))

    def _start(self) -> None:
        index = self._next_index
        self._next_index += 1

        def heard(letter: Letter) -> None:
            self._events.put(lambda: self._heard(index, letter))

        def lost() -> None:
            self._events.put(lambda: self._lose(index))

        now = self.clock()
        self._places[index] = Place(index, self.hire(index, heard, lost), now, now)

    def _dispatch(self) -> None:
        """Send what waits, the most urgent first, while there is room where it may go."""
        with self._lock:
            waiting = sorted(self._wait, key=lambda work: work.deadline_s)
            self._wait = self._wait if self._places else {}
        if not self._places:
            for work in waiting:
                self._end(work, None, LostError("No worker can be started here. See the server's log."))
            return
        for work in waiting:
            place = self._place_for(work)
            if place is not None:
                with self._lock:
                    del self._wait[work]
                self._send(work, place)
            elif all(len(place.flights) >= AT_ONCE for place in self._places.values()):
                return

    def _place_for(self, work: Work) -> Place | None:
        home = self._places.get(self._homes.get(work.owner, -1))
        if home is not None:
            return home if len(home.flights) < AT_ONCE else None
        free = [place for place in self._places.values() if len(place.flights) < AT_ONCE]
        return min(free, key=lambda place: len(place.flights), default=None)

    def _send(self, work: Work, place: Place) -> None:
        try:
            errand = work.begin() if work.number is None else self._errands[work.number][0]
        except Exception as error:  # noqa: BLE001 - whatever it is, its owner is told and the others go on
            self._end(work, None, error)
            return
        if work.number is None:
            self._number += 1
            work.number = self._number
        if not errand.lasting:
            self._homes[work.owner] = place.index
        tried = self._errands.get(work.number, (errand, 0))[1]
        self._errands[work.number] = errand, tried + 1
        place.flights[work.number], place.busy_s = work, self.clock()
        watch = errand.wanted is not None and errand.wanted(1)
        values = {**errand.letter.values, "number": work.number, "owner": work.owner, "watch": watch}
        values["within_s"] = max(0.0, work.deadline_s - self.clock())
        place.worker.send(Letter(values, errand.letter.pictures))

    def _cancel(self, work: Work) -> None:
        with self._lock:
            waits = self._wait.pop(work, None) is not None
        if waits:
            self._end(work, None, CancelledError("The picture was cancelled."))
        for place in self._places.values():
            if work.number in place.flights:
                place.worker.send(Letter({"kind": "cancel", "number": work.number}))

    def _heard(self, index: int, letter: Letter) -> None:
        place, values = self._places.get(index), letter.values
        if place is None or (work := place.flights.get(values["number"])) is None:
            return
        self._short = 0
        errand = self._errands[values["number"]][0]
        if values["kind"] == "stepped":
            self._stepped(place, errand, letter)
            return
        del place.flights[values["number"]]
        place.counts = values["asks"], values["ticks"], values["call_s"]
        place.busy_s = self.clock()
        if errand.told is not None:
            errand.told(values)
        if values["kind"] == "painted":
            self._end(work, picture_of(letter), None)
        elif values["cancelled"]:
            self._end(work, None, CancelledError(values["said"]))
        else:
            self._end(work, None, RemoteError(values["said"], values["status"]))
        self._dispatch()

    def _stepped(self, place: Place, errand: Errand, letter: Letter) -> None:
        number, step = letter.values["number"], letter.values["step"]
        if errand.heard is not None:
            errand.heard(step, letter.pictures.get("preview"))  # type: ignore[arg-type]
        if errand.wanted is not None:
            place.worker.send(Letter({"kind": "watch", "number": number, "on": errand.wanted(step + 1)}))

    def _end(self, work: Work, result: Any, error: BaseException | None) -> None:
        if work.number is not None:
            self._errands.pop(work.number, None)
        self._stats.ended += 1
        work.end(result, error)

    def _lose(self, index: int) -> None:
        """A worker is gone: its jobs go to another one, and it is replaced, unless none of them lives."""
        place = self._places.pop(index, None)
        if place is None:
            return
        self.lost += 1
        self._gone = self._gone[0] + place.counts[0], self._gone[1] + place.counts[1]
        self._homes = {owner: home for owner, home in self._homes.items() if home != index}
        short = self.clock() - place.since_s < SHORT_S and not place.counts[0]
        self._short = self._short + 1 if short else 0
        if self._short < SHORT_LIVES and len(self._places) < self.least:
            self._start()
        for number, work in place.flights.items():
            errand, tries = self._errands[number]
            if errand.lasting and tries < TRIES and self._places and not work.cancelled:
                with self._lock:
                    self._wait[work] = self.clock()
            else:
                self._end(work, None, LostError("The worker that painted this was lost. Send it again."))
        self._dispatch()

    def _scale(self) -> None:
        """Another worker while works wait too long; one fewer when it had nothing to do for long."""
        now = self.clock()
        with self._lock:
            waited_s = max((now - since_s for since_s in self._wait.values()), default=0.0)
        if waited_s > SCALE_S and len(self._places) < self.most and self._short < SHORT_LIVES:
            self._start()
            self._dispatch()
        idle = [place for place in self._places.values() if not place.flights and now - place.busy_s > IDLE_S]
        if idle and len(self._places) > self.least:
            place = idle[-1]
            del self._places[place.index]
            self._homes = {owner: home for owner, home in self._homes.items() if home != place.index}
            place.worker.close()
