"""Between the doors and the engine: a request becomes a job, whose steps and pictures a door hears of as they come.

Doors are asyncio, the engine is a thread; what the engine tells crosses over by the loop's own thread-safe call.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from collections import OrderedDict
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing, asynccontextmanager
from functools import partial
from typing import Any

from fewstep.engine.painting import Here, Painting
from fewstep.engine.work import CancelledError, Work
from fewstep.errors import FewstepError, RequestError
from fewstep.hires import LATENT, PIXEL, upscaler_named
from fewstep.infotext import Picture
from fewstep.pipeline import Pipeline
from fewstep.request import Request
from fewstep.sampling.sampler import evaluations
from fewstep.serve.answers import sentence_of
from fewstep.serve.figures import Figures
from fewstep.serve.history import History
from fewstep.serve.journal import fault, say
from fewstep.serve.limits import Limits
from fewstep.serve.models import Models
from fewstep.serve.orders import OUTCOMES, FaultError, Job, LateError, LeavingError, Order, Painted, Stepped
from fewstep.serve.turns import Turns

PATIENCE_S = 600.0
"""How long a job may wait before it begins, where nothing else is said."""

BEHIND_LIVE = 1e9
"""Deadline of the first place in the queue, in seconds on the engine's clock: behind every live frame."""

REMEMBERED = 64


class Studio:
    """Pipelines with their engine, and the jobs of the last while.

    `painting` says where pictures are painted: here, where `waiting` is the limit of those that wait, unless told
    otherwise. `limits` are of one order, `patience_s` of the seconds that a job waits; `history` keeps what was
    painted; `log_prompts` writes prompts to the log.
    """

    def __init__(
        self,
        pipe: Pipeline,
        *,
        models: Models | None = None,
        painting: Painting | None = None,
        waiting: int = 64,
        limits: Limits | None = None,
        patience_s: float = PATIENCE_S,
        history: History | None = None,
        log_prompts: bool = False,
    ) -> None:
        self.models, self.history = models or Models(pipe), history
        self.limits, self.patience_s, self.log_prompts = limits or Limits(), patience_s, log_prompts
        self.painting = painting or Here(waiting=waiting)
        self.engine = self.painting.engine
        self.jobs: OrderedDict[str, Job] = OrderedDict()
        self.leaving = False
        self.figures = Figures(self)
        self._turns = Turns()

    def close(self) -> None:
        """End the engine and what it needs; jobs that are left are told."""
        self.leaving = True
        self.engine.close()
        if self.history is not None:
            self.history.close()

    async def leave(self, within_s: float) -> None:
        """Take no more work, turn away what has not begun, and let what has end, within so many seconds."""
        self.leaving = True
        for job in self.active:
            if job.began_s is None:
                job.give_up(LeavingError())
        until = time.monotonic() + within_s
        while self.active and time.monotonic() < until:
            await asyncio.sleep(0.05)
        for job in self.active:
            job.give_up(LeavingError())

    @property
    def pipe(self) -> Pipeline:
        """The first model's; while that is not in memory one without weights, which plans."""
        return self.models.first.pipe or self.models.outline

    async def pipe_of(self, name: str | None = None) -> Pipeline:
        """The pipeline of a model by its name, title, file name or hash, loaded if need be; see `Models.pipe_of`."""
        return await self.models.pipe_of(name)

    @property
    def active(self) -> list[Job]:
        """The jobs that have not ended."""
        return [job for job in self.jobs.values() if job.active]

    @property
    def current(self) -> Job | None:
        """The job that began first of those that are active."""
        return next(iter(self.active), None)

    def job(self, job_id: str | None) -> Job | None:
        """The job of that name; the current one where there is no name."""
        return self.jobs.get(job_id) if job_id else self.current

    def cancel(self, job: Job) -> None:
        """Give up what is left of a job, at once."""
        job.cancelled = True
        job.give_up(CancelledError("The job was cancelled."))

    async def open(
        self, request: Request, *, owner: str, pipe: Pipeline | None = None, job_id: str | None = None
    ) -> Order:
        """Look at a request and make it a job, which `run` carries out. Until then nothing knows of it.

        Raises FewstepError for what cannot be done.
        """
        if self.leaving:
            raise LeavingError
        if request.hires_upscaler is not None and upscaler_named(request.hires_upscaler) not in (*LATENT, *PIXEL):
            raise RequestError(f"There is no upscaler '{request.hires_upscaler[:60]}' here; a file is not taken.")
        pipe = pipe or await self.pipe_of()
        plan = await asyncio.to_thread(pipe.plan, request)
        self.limits.check(plan)
        steps = evaluations(plan.sampler, pipe.model.schedule, plan.timesteps)
        if plan.hires is not None:
            other = pipe.hires or pipe
            steps += evaluations(plan.hires.sampler, other.model.schedule, plan.hires.timesteps)
        count = plan.request.count
        job = Job(job_id or secrets.token_urlsafe(12), count, steps * count)
        return Order(job, pipe, plan, owner, [None] * count)

    async def run(
        self, order: Order, *, wanted: Callable[[int, int], bool] | None = None
    ) -> AsyncGenerator[Stepped | Painted, None]:
        """What becomes of an order, as it comes. Leaving the loop early gives the job up.

        `wanted(step, steps)` says after which steps a preview is made. Raises what went wrong.
        """
        job, loop, told = order.job, asyncio.get_running_loop(), asyncio.Queue()
        tell = partial(loop.call_soon_threadsafe, told.put_nowait)
        self._remember(job)
        job.give_up = told.put_nowait
        late = loop.call_later(self.patience_s, self._late, job)
        ended: FewstepError | None = None
        try:
            with self.models.holding(order.pipe):
                self._submit(order, tell, wanted)
                while None in order.pictures:
                    event = await told.get()
                    if isinstance(event, BaseException):
                        raise event
                    if isinstance(event, Painted):
                        order.pictures[event.index] = event.picture
                    yield event
        except Exception as error:  # noqa: BLE001 - it is raised again, once it is written down
            ended = self._told(job, error)
            raise ended from None
        finally:
            late.cancel()
            self._end(order, ended)

    async def pictures(
        self, order: Order, *, gone: Awaitable[None], wanted: Callable[[int, int], bool] | None = None
    ) -> list[Picture]:
        """All pictures of an order; those that were done when it was interrupted. It is given up when `gone` ends."""
        try:
            async with self.while_there(order, gone), aclosing(self.run(order, wanted=wanted)) as events:
                async for _ in events:
                    pass
        except CancelledError:
            if not order.job.cancelled:
                raise
        return order.painted

    @asynccontextmanager
    async def while_there(self, order: Order, gone: Awaitable[None]) -> AsyncGenerator[None, None]:
        """As long as this lasts, the order is given up when `gone` ends: its client has left."""
        leaving = asyncio.ensure_future(gone)
        leaving.add_done_callback(lambda ended: None if ended.cancelled() else self.cancel(order.job))
        try:
            yield
        finally:
            leaving.cancel()
            await asyncio.gather(leaving, return_exceptions=True)

    def _told(self, job: Job, error: Exception) -> FewstepError:
        """What a client hears of it."""
        if self.leaving and isinstance(error, CancelledError) and not job.cancelled:
            return LeavingError()
        if isinstance(error, FewstepError):
            return error
        fault(f"job {job.id} failed", error)
        return FaultError()

    def _end(self, order: Order, error: FewstepError | None) -> None:
        """Whatever came of it: its rest is given up, and it is told of. Without an error its client has left."""
        job, now = order.job, time.monotonic()
        for work in job.works:  # those that are done stay done
            self.engine.cancel(work)
        job.end()
        for place in order.places:
            self._turns.leave(order.owner, place)
        job.error = sentence_of(error) if error is not None else ""
        if self.history is not None:
            self.history.keep(order)
        outcome = "cancelled" if error is None else OUTCOMES.get(type(error), "failed")
        outcome = outcome if None in order.pictures else "done"
        waited_s = (job.began_s or now) - job.started_s
        self.figures.job(outcome, len(order.painted), waited_s, now - job.started_s)
        times = {"queue_ms": round(waited_s * 1000, 1), "ms": round((now - job.started_s) * 1000, 1)}
        prompt = order.plan.request.prompt if self.log_prompts else None
        facts = {"owner": order.owner, "model": order.pipe.model.name, "prompt": prompt, "error": job.error or None}
        say("job", job=job.id, outcome=outcome, pictures=len(order.painted), evaluations=job.done, **times, **facts)

    def _remember(self, job: Job) -> None:
        if (other := self.jobs.get(job.id)) is not None and other.active:
            raise RequestError(f"There is a task '{job.id[:40]}' already that is not done. Give another force_task_id.")
        self.jobs[job.id] = job
        ended = [name for name, one in self.jobs.items() if not one.active]
        for name in ended[: max(0, len(self.jobs) - REMEMBERED)]:
            del self.jobs[name]

    def _late(self, job: Job) -> None:
        if job.began_s is None:
            text = f"The job waited {self.patience_s:g} s without its turn. Try again when the server is less busy."
            job.give_up(LateError(text, self.retry_after_s))

    @property
    def retry_after_s(self) -> float:
        """When there may be room again: a guess by the pace of the last network calls."""
        return max(1.0, self.engine.stats.call_s * 4 * len(self.active))

    def _submit(self, order: Order, tell: Callable[[Any], Any], wanted: Callable[[int, int], bool] | None) -> None:
        job, plan = order.job, order.plan
        steps = job.total // job.count
        width, height = (plan.hires or plan).size

        def begin(index: int, place: float) -> Any:
            self._turns.begin(order.owner, place)
            job.began_s = job.began_s or time.monotonic()
            return self.painting.picture(order.pipe, plan, index, partial(heard, index), seeing)

        def seeing(step: int) -> bool:
            return wanted is not None and step < steps and wanted(step, steps)

        def heard(index: int, step: int, look: Callable[[], Picture | None]) -> None:
            job.done = min(job.total, job.done + 1)
            seen = look() if seeing(step) else None
            job.preview = seen or job.preview
            tell(Stepped(index, step, steps, seen))

        def ended(index: int, result: Any, error: BaseException | None) -> None:
            tell(error if error is not None else Painted(index, result))

        for index in range(job.count):
            place = self._turns.place(order.owner, steps * width * height / 512**2)
            order.places.append(place)
            work = Work(partial(begin, index, place), order.owner, BEHIND_LIVE + place, partial(ended, index))
            self.engine.submit(work)
            job.works.append(work)
