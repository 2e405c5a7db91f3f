"""Where pictures are painted: by the engine of this process, or by workers. What uses it does not see which."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol, TypeAlias
from weakref import WeakKeyDictionary

from fewstep.engine.errands import RemotePainter, picture_errand
from fewstep.engine.fleet import Fleet
from fewstep.engine.live import Order
from fewstep.engine.live_request import LiveRequest
from fewstep.engine.local import LocalEngine, wait_for
from fewstep.engine.pace import ALONE, Pace, measured
from fewstep.engine.painter import LivePainter
from fewstep.engine.pictures import PictureNetwork, paint
from fewstep.engine.work import Engine
from fewstep.infotext import Picture
from fewstep.pipeline import Pipeline
from fewstep.plan import Plan

Heard: TypeAlias = Callable[[int, Callable[[], "Picture | None"]], None]
"""Told of an evaluation: which one, and how to see what is predicted; None where that was not asked for before."""


class Painter(Protocol):
    """What paints one live session's frames."""

    def paint(self, order: Order) -> Any:
        """What the work of a frame begins with."""
        ...

    def moving(self, fields: LiveRequest) -> bool:
        """Whether the same frame, painted again, would be another picture."""
        ...


class Painting(Protocol):
    """An engine, and what its works begin with."""

    @property
    def engine(self) -> Engine:
        """The engine."""
        ...

    def picture(self, pipe: Pipeline, plan: Plan, index: int, heard: Heard, wanted: Callable[[int], bool]) -> Any:
        """What the work of picture `index` of a plan begins with; `wanted(step)`: where to see what is predicted."""
        ...

    def painter(self, pipe: Pipeline, session: str) -> Painter:
        """For one live session."""
        ...

    def pace(self, pipe: Pipeline, period_s: float) -> Pace:
        """What calls of a pipeline take, for sessions with such a period; may take a measurement, and wait for it."""
        ...


class Here:
    """By this process."""

    def __init__(self, *, waiting: int = 64) -> None:
        self.network = PictureNetwork()
        self.engine = LocalEngine(self.network, waiting=waiting)
        self._paces: WeakKeyDictionary[Pipeline, Pace] = WeakKeyDictionary()

    def picture(self, pipe: Pipeline, plan: Plan, index: int, heard: Heard, wanted: Callable[[int], bool]) -> Any:
        """The steps of the picture."""
        return paint(pipe, plan, index, lambda step, preview: heard(step, preview.make))

    def painter(self, pipe: Pipeline, session: str) -> Painter:
        """With the pipeline itself."""
        return LivePainter(pipe)

    def pace(self, pipe: Pipeline, period_s: float) -> Pace:
        """Measured once; `ALONE` where pictures are not computed together at all."""
        if pipe.batch == 1:
            return ALONE
        if pipe not in self._paces:
            self._paces[pipe] = wait_for(self.engine, lambda: measured(pipe, budget_s=period_s))
            self.network.at_once = self._paces[pipe].room(period_s)
        return self._paces[pipe]


class Away:
    """By workers, which load the models that the pipelines here were loaded from."""

    def __init__(self, fleet: Fleet) -> None:
        self.engine = fleet

    def picture(self, pipe: Pipeline, plan: Plan, index: int, heard: Heard, wanted: Callable[[int], bool]) -> Any:
        """An errand."""
        return picture_errand(pipe.source, plan, index, lambda step, seen: heard(step, lambda: seen), wanted)

    def painter(self, pipe: Pipeline, session: str) -> Painter:
        """One that sends errands."""
        return RemotePainter(pipe.source, session)

    def pace(self, pipe: Pipeline, period_s: float) -> Pace:
        """`ALONE`: a worker shares calls among its sessions, not among one session's frames."""
        return ALONE
