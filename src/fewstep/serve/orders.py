"""What a door asks for and hears of: an order, its job, and what becomes of it."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field

from fewstep.engine.work import BusyError, CancelledError, Work
from fewstep.errors import FewstepError
from fewstep.infotext import Picture
from fewstep.pipeline import Pipeline
from fewstep.plan import Plan


class LateError(FewstepError):
    """The job waited longer than it may."""

    http_status = 503

    def __init__(self, message: str, retry_after_s: float) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class FaultError(FewstepError):
    """A fault of ours, or of the machine; what it was stands in the log."""

    http_status = 500

    def __init__(self) -> None:
        super().__init__("The picture could not be painted: a fault of the server, whose log says more.")


class LeavingError(FewstepError):
    """The server is shutting down."""

    http_status = 503
    retry_after_s = 10.0

    def __init__(self) -> None:
        super().__init__("The server is shutting down and takes no more work. Try again soon.")


OUTCOMES = {CancelledError: "cancelled", BusyError: "turned away", LateError: "late", LeavingError: "leaving"}
"""What ended a job -> what figures and lines call it; "done" is a job with all its pictures, "failed" any other."""


@dataclass(frozen=True)
class Stepped:
    """One evaluation of picture `index` is done; `preview` is the picture as it is predicted, where it was wanted."""

    index: int
    step: int
    steps: int
    preview: Picture | None = None


@dataclass(frozen=True)
class Painted:
    """Picture `index` is done."""

    index: int
    picture: Picture


def _nobody(error: FewstepError) -> None:
    """Nobody paints it."""


@dataclass
class Job:
    """How far a request is, for those who watch; it is remembered for a while. `done` of `total` evaluations of `count`
    pictures; `watched` says that somebody wants to see previews, `began_s` when the first of it was painted.
    """

    id: str
    count: int
    total: int
    started_s: float = field(default_factory=time.monotonic)
    began_s: float | None = None
    done: int = 0
    preview: Picture | None = None
    watched: bool = False
    active: bool = True
    cancelled: bool = False
    error: str = ""
    works: list[Work] = field(default_factory=list)
    give_up: Callable[[FewstepError], None] = field(default=_nobody, repr=False)

    def end(self) -> None:
        """It is over: what it needed is let go."""
        self.active, self.preview, self.give_up = False, None, _nobody
        self.works.clear()

    @property
    def progress(self) -> float:
        """From 0 to 1."""
        return self.done / self.total if self.total else 1.0

    @property
    def eta_s(self) -> float:
        """Seconds that are left, by the pace so far."""
        passed = time.monotonic() - self.started_s
        return passed / self.progress - passed if self.progress else 0.0


@dataclass
class Order:
    """A job with what it takes to carry it out; the pipeline is the one that it was planned with. `pictures` by their
    number, None while missing.
    """

    job: Job
    pipe: Pipeline
    plan: Plan
    owner: str
    pictures: list[Picture | None]
    places: list[float] = field(default_factory=list)

    @property
    def painted(self) -> list[Picture]:
        """Those that are done."""
        return [picture for picture in self.pictures if picture is not None]
