"""One live session: the newest frame wins, a started one always finishes, the last stroke is always resolved.

A session has a mailbox of one frame, parameters with a revision, and up to `depth` frames in the making, in order. When
nothing is left to do it may paint the last frame once more, better; that gives way to whatever comes next.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from PIL import Image

from fewstep.engine.changes import Changes
from fewstep.engine.work import CancelledError, Engine, Steps, Work


@dataclass(frozen=True)
class Frame:
    """What came in: its number, the picture (None: prompt only), and when it was sent, by the sender's clock.

    `mask` ("L", white: repaint) is None where all of the picture is painted over.
    """

    seq: int
    picture: Image.Image | None = None
    sender_ms: int = 0
    mask: Image.Image | None = None


@dataclass(frozen=True)
class Order:
    """One painting: a frame with the parameters of a revision; `refined` is the better one of an idle session.

    `place` counts a session's paintings: a client that came back may number its frames anew.
    """

    frame: Frame
    revision: int
    fields: Any
    refined: bool = False
    place: int = 0


@dataclass(frozen=True)
class Output:
    """A finished order, seconds in the queue and in the making, and whether more will follow without a new frame."""

    order: Order
    result: Any
    queued_s: float
    painted_s: float
    final: bool


@dataclass(frozen=True)
class Failed:
    """An order that went wrong."""

    order: Order
    error: BaseException


@dataclass
class Counts:
    """Frames that came in, were replaced by newer ones, were the same as before, and were painted."""

    taken: int = 0
    dropped: int = 0
    unchanged: int = 0
    painted: int = 0


class LiveSession:
    """See the module. `depth` is how many frames are in the making at once, at the most; one more may be at its `Rest`.

    `paint` makes an order's steps, on the engine's thread. `tell` gets every Output and Failed, on that thread too; it
    must not wait. `period_s` is what a frame may take: its deadline. `refine` says how an idle session's fields change
    (None: not now), `refine_after_s` for how long nothing may have come before. `moving(fields)` says whether the last
    frame, painted again, would be another picture: the session then goes on by itself, a frame every `period_s`, until
    it is not.
    """

    def __init__(
        self,
        engine: Engine,
        paint: Callable[[Order], Steps],
        tell: Callable[[Output | Failed], None],
        fields: Any,
        *,
        owner: str,
        period_s: float = 0.1,
        depth: int = 1,
        changes: Changes | None = None,
        refine: Callable[[Any], Any] | None = None,
        refine_after_s: float = 0.0,
        moving: Callable[[Any], bool] | None = None,
    ) -> None:
        self.engine, self.paint, self.tell, self.owner = engine, paint, tell, owner
        self.period_s, self.depth, self.refine, self.moving = period_s, depth, refine, moving
        self.refine_after_s = refine_after_s
        self.changes = changes or Changes(exact=True)
        self.counts = Counts()
        self.fields, self.revision = fields, 0
        self._lock = threading.RLock()
        self._mailbox: Frame | None = None
        self._frame: Frame | None = None
        self._stale = False
        self._next: threading.Timer | None = None
        self._better: threading.Timer | None = None
        self._begun_s = 0.0
        self._works: dict[Work, Order] = {}
        self._resting: set[Work] = set()
        self._begun = self._shown = 0
        self._refined = False
        self._closed = self._paused = False

    def offer(self, frame: Frame) -> bool:
        """A new frame; False when it is the same as the one painted last, and nothing is to be done."""
        with self._lock:
            if self._closed:
                return False
            self.counts.taken += 1
            same = frame.picture is not None and not self.changes.changed(frame.picture)
            if same and not self._stale and self._mailbox is None:
                self.counts.unchanged += 1
                return False
            self.counts.dropped += self._mailbox is not None
            self._mailbox = frame
            self._start()
            return True

    def change(self, revision: int, fields: Any) -> None:
        """Other parameters, from the next painting on; the last frame is painted with them even if none follows."""
        with self._lock:
            self.fields, self.revision, self._stale = fields, revision, True
            self._start()

    def expect(self, *, period_s: float, depth: int, changes: Changes | None = None) -> None:
        """Frames at another pace from now on, and (`changes`) of another kind: the next one counts as changed."""
        with self._lock:
            self.period_s, self.depth, self.changes = period_s, depth, changes or self.changes

    def pause(self, *, on: bool) -> None:
        """Begin nothing while it is on; what came meanwhile follows after it, the newest frame of it."""
        with self._lock:
            self._paused = on
            self._start()

    def close(self) -> None:
        """No more outputs; what is in the making is given up."""
        with self._lock:
            self._closed, self._mailbox = True, None
            self._wait_no_more()
            for work in self._works:
                self.engine.cancel(work)

    @property
    def position(self) -> int:
        """How many works are ahead of the first of this session that has not begun; 0 where none waits."""
        with self._lock:
            return min((self.engine.position(work) for work in self._works if not work.started), default=0)

    @property
    def idle(self) -> bool:
        """Whether everything that came in has been answered."""
        with self._lock:
            return not (self._works or self._mailbox or self._stale or self._next)

    def _start(self) -> None:
        """Begin the next order if there is one and there is room for it; under the lock."""
        if self._closed or self._paused:
            return
        if self._mailbox is None and not (self._stale and self._frame is not None):
            return
        for work, order in self._works.items():
            if order.refined:
                self.engine.cancel(work)
        making = [work for work, order in self._works.items() if not order.refined and work not in self._resting]
        if len(making) >= self.depth or len(self._resting) > 1:
            return
        frame, self._mailbox = self._mailbox or self._frame, None
        assert frame is not None
        self._wait_no_more()
        self._begun_s = self.engine.clock()
        self._frame, self._stale, self._refined = frame, False, False
        if frame.picture is not None:
            self.changes.painted(frame.picture)
        self._submit(Order(frame, self.revision, self.fields, place=self._next_place()), self.period_s)

    def _go_on_later(self) -> None:
        """Paint the last frame again, a period after it was begun; a new frame comes before."""
        self._wait_no_more()
        wait_s = self._begun_s + self.period_s - self.engine.clock()
        if wait_s <= 0:
            self._stale = True
            return
        self._next = threading.Timer(wait_s, self._go_on)
        self._next.daemon = True
        self._next.start()

    def _go_on(self) -> None:
        with self._lock:
            if self._next is threading.current_thread():
                self._next, self._stale = None, True
                self._start()

    def _wait_no_more(self) -> None:
        for timer in (self._next, self._better):
            if timer is not None:
                timer.cancel()
        self._next = self._better = None

    def _submit(self, order: Order, within_s: float) -> None:
        taken, begun = self.engine.clock(), [0.0]

        def begin() -> Steps:
            begun[0] = self.engine.clock()
            return self.paint(order)

        def ended(result: Any, error: BaseException | None) -> None:
            now = self.engine.clock()
            self._ended(work, result, error, (begun[0] or now) - taken, now - (begun[0] or now))

        def resting() -> None:
            with self._lock:
                self._resting.add(work)
                self._start()

        work = Work(begin, self.owner, taken + within_s, ended, resting)
        self._works[work] = order
        try:
            self.engine.submit(work)
        except Exception as error:  # noqa: BLE001 - the queue is full: this frame is lost, the session stays
            del self._works[work]
            self.tell(Failed(order, error))

    def _ended(self, work: Work, result: Any, error: BaseException | None, queued_s: float, painted_s: float) -> None:
        with self._lock:
            order = self._works.pop(work)
            self._resting.discard(work)
            if self._closed:
                return
            if error is None and not order.refined and self.moving is not None and self.moving(self.fields):
                self._go_on_later()
            self._start()
            final = self.idle
            late = order.refined and work.cancelled
            if error is None and not late and order.place > self._shown:
                self._shown = order.place
                self.counts.painted += 1
                self.tell(Output(order, result, queued_s, painted_s, final))
            elif error is not None and not (order.refined and isinstance(error, CancelledError)):
                self.tell(Failed(order, error))
            if final and error is None and self.refine is not None and not order.refined and not self._refined:
                self._refine_later(order)

    def _refine_later(self, order: Order) -> None:
        """Paint it once more, better, when nothing came for a while."""
        if not self.refine_after_s:
            self._refine(order)
            return
        self._better = threading.Timer(self.refine_after_s, self._refine_now, [order])
        self._better.daemon = True
        self._better.start()

    def _refine_now(self, order: Order) -> None:
        with self._lock:
            if self._better is threading.current_thread() and not (self._closed or self._paused):
                self._better = None
                self._refine(order)

    def _refine(self, order: Order) -> None:
        assert self.refine is not None
        self._refined = True
        better = self.refine(order.fields)
        if better is not None:
            again = replace(order, fields=better, refined=True, place=self._next_place())
            self._submit(again, 1000 * self.period_s)

    def _next_place(self) -> int:
        self._begun += 1
        return self._begun
