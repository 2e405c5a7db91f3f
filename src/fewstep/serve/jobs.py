"""Between the doors and the engine: a request becomes a job, whose steps and pictures a door hears of as they come.

Doors are asyncio, the engine is a thread; what the engine tells crosses over by the loop's own thread-safe call.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from fewstep.engine.local import LocalEngine
from fewstep.engine.pictures import PictureNetwork, Preview, paint
from fewstep.engine.work import CancelledError, Work
from fewstep.errors import FewstepError, RequestError
from fewstep.hires import LATENT, PIXEL, upscaler_named
from fewstep.infotext import Picture
from fewstep.pipeline import Pipeline
from fewstep.plan import Plan
from fewstep.request import Request
from fewstep.sampling.sampler import evaluations
from fewstep.serve.answers import sentence_of
from fewstep.serve.limits import Limits

PATIENCE_S = 600.0
"""A job's deadline: jobs of one moment come in turn, and always behind live frames."""

REMEMBERED = 64


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


@dataclass
class Job:
    """One request on its way. `done` of `total` evaluations; `pictures` by their number, None while missing; `watched`
    says that somebody wants to see previews.
    """

    id: str
    plan: Plan
    total: int
    started_s: float = field(default_factory=time.monotonic)
    done: int = 0
    pictures: list[Picture | None] = field(default_factory=list)
    preview: Picture | None = None
    watched: bool = False
    active: bool = True
    cancelled: bool = False
    error: str = ""
    works: list[Work] = field(default_factory=list)

    def forget(self) -> None:
        """Let go of the pictures, once they were handed out."""
        self.pictures, self.preview = [None] * len(self.pictures), None

    @property
    def progress(self) -> float:
        """From 0 to 1."""
        return self.done / self.total if self.total else 1.0

    @property
    def eta_s(self) -> float:
        """Seconds that are left, by the pace so far."""
        passed = time.monotonic() - self.started_s
        return passed / self.progress - passed if self.progress else 0.0


class Studio:
    """A pipeline with its engine, and the jobs of the last while. `waiting` is the limit of pictures that wait."""

    def __init__(self, pipe: Pipeline, *, waiting: int = 64, limits: Limits | None = None) -> None:
        self.pipe, self.limits = pipe, limits or Limits()
        self.engine = LocalEngine(PictureNetwork(), waiting=waiting)
        self.jobs: OrderedDict[str, Job] = OrderedDict()

    def close(self) -> None:
        """End the engine; jobs that are left are told."""
        self.engine.close()

    @property
    def current(self) -> Job | None:
        """The job that began first of those that are active."""
        return next((job for job in self.jobs.values() if job.active), None)

    def job(self, job_id: str | None) -> Job | None:
        """The job of that name; the current one where there is no name."""
        return self.jobs.get(job_id) if job_id else self.current

    def cancel(self, job: Job) -> None:
        """Give up what is left of a job."""
        job.cancelled = True
        self.cancel_rest(job)

    async def open(self, request: Request, *, job_id: str | None = None) -> Job:
        """Look at a request and make it a job, which `run` carries out.

        Raises FewstepError for what cannot be done.
        """
        if request.hires_upscaler is not None and upscaler_named(request.hires_upscaler) not in (*LATENT, *PIXEL):
            raise RequestError(f"There is no upscaler '{request.hires_upscaler[:60]}' here; a file is not taken.")
        if job_id is not None and (known := self.jobs.get(job_id)) is not None and known.active:
            raise RequestError(f"There is a task '{job_id}' already. Choose another id, or leave it out.")
        plan = await asyncio.to_thread(self.pipe.plan, request)
        self.limits.check(plan)
        steps = evaluations(plan.sampler, self.pipe.model.schedule, plan.timesteps)
        if plan.hires is not None:
            other = self.pipe.hires or self.pipe
            steps += evaluations(plan.hires.sampler, other.model.schedule, plan.hires.timesteps)
        count = plan.request.count
        job = Job(job_id or secrets.token_urlsafe(12), plan, steps * count, pictures=[None] * count)
        self.jobs[job.id] = job
        while len(self.jobs) > REMEMBERED and not next(iter(self.jobs.values())).active:
            self.jobs.popitem(last=False)
        return job

    async def run(
        self, job: Job, *, owner: str, wanted: Callable[[int, int], bool] | None = None
    ) -> AsyncIterator[Stepped | Painted]:
        """What becomes of a job, as it comes. Leaving the loop early gives the job up.

        `wanted(step, steps)` says after which steps a preview is made. Raises what went wrong.
        """
        loop, told = asyncio.get_running_loop(), asyncio.Queue()
        steps = job.total // len(job.pictures)

        def say(event: Any) -> None:
            loop.call_soon_threadsafe(told.put_nowait, event)

        def heard(index: int, step: int, preview: Preview) -> None:
            job.done += 1
            seen = preview.make() if wanted is not None and step < steps and wanted(step, steps) else None
            job.preview = seen or job.preview
            say(Stepped(index, step, steps, seen))

        def ended(index: int, result: Any, error: BaseException | None) -> None:
            say(error if error is not None else Painted(index, result))

        try:
            self._submit(job, owner, heard, ended)
            left = len(job.pictures)
            while left:
                event = await told.get()
                if isinstance(event, BaseException):
                    raise event
                if isinstance(event, Painted):
                    left, job.pictures[event.index] = left - 1, event.picture
                yield event
        except FewstepError as error:
            job.error = sentence_of(error)
            raise
        finally:
            job.active = False
            self.cancel_rest(job)

    def cancel_rest(self, job: Job) -> None:
        """End the works of a job that are still there; those that are done stay done."""
        for work in job.works:
            self.engine.cancel(work)
        job.works.clear()

    def _submit(self, job: Job, owner: str, heard: Any, ended: Any) -> None:
        deadline = self.engine.clock() + PATIENCE_S
        for index in range(len(job.pictures)):
            begin = partial(paint, self.pipe, job.plan, index, partial(heard, index))
            work = Work(begin, owner, deadline + index * 1e-3, partial(ended, index))
            self.engine.submit(work)
            job.works.append(work)

    async def pictures(self, job: Job, *, owner: str) -> list[Picture]:
        """All pictures of a job; those that were done when it was interrupted."""
        try:
            async for _ in self.run(job, owner=owner):
                pass
        except CancelledError:
            if not job.cancelled:
                raise
        pictures = [picture for picture in job.pictures if picture is not None]
        job.forget()
        return pictures
