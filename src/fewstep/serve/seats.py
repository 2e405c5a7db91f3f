"""A live session as the server keeps it: the engine's session, its parameters, and what waits to be sent.

Everything that waits is a slot in which the newer takes the place of the older, so a client that does not read, or
writes faster than can be painted, costs a fixed amount of memory.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import secrets
import time
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from PIL import Image

from fewstep.engine.changes import Always, Changes
from fewstep.engine.live import Failed, Frame, LiveSession, Output
from fewstep.engine.live_request import LiveRequest
from fewstep.engine.painter import depth_of
from fewstep.errors import FewstepError, RequestError
from fewstep.image import open_image
from fewstep.models.family import Family
from fewstep.pipeline import Pipeline
from fewstep.plan import IMAGE_STRENGTH, Plan
from fewstep.request import SEED_COUNT, Request
from fewstep.serve.answers import sentence_of
from fewstep.serve.frames import Kind, Message
from fewstep.serve.jobs import Studio
from fewstep.serve.journal import fault
from fewstep.serve.limits import Limits
from fewstep.serve.uploads import aside, from_bytes

MODES = ("canvas", "camera", "screen", "video", "prompt")
EXACT = ("canvas", "prompt")
"""Modes in which every pixel counts; the others are noisy."""

OWN_STRENGTHS = {"pictogram": 0.2}
"""Where it is not the usual one: the embedded model composes anew far earlier than others (docs/page.md)."""

UNEVEN = 1.25
REFINE_AFTER_S = 0.3
FORGIVEN_S = 2.0
"""After which an output that was not acknowledged no longer holds up the next."""

LIVE = "live"
"""The job of live pictures in the history."""

REMEMBERED = 240
FPS_LIMIT = 120.0


@dataclass(frozen=True)
class Hello:
    """How a client introduces itself. `fps` is what it would send at best, `codecs` what it can read; with `every`
    frame painted, also those that did not change.
    """

    mode: str = "canvas"
    fps: float = 30.0
    codecs: tuple[str, ...] = ("jpeg",)
    values: Mapping[str, Any] = field(default_factory=dict)
    token: str = ""
    every: bool = False
    model: str = ""

    @classmethod
    def of(cls, body: Mapping[str, Any]) -> Hello:
        """From the message's fields; raises RequestError."""
        mode, fps, codecs = body.get("mode", cls.mode), body.get("fps", cls.fps), body.get("codecs", list(cls.codecs))
        if mode not in MODES:
            raise RequestError(f"hello has the mode {mode!r}. Choose one of: {', '.join(MODES)}.")
        if not isinstance(fps, (int, float)) or isinstance(fps, bool) or not 0 < fps <= FPS_LIMIT:
            raise RequestError(f"hello has {fps!r} frames a second. Give a number above 0 and up to {FPS_LIMIT:g}.")
        known = [codec for codec in codecs if codec in ("jpeg", "webp", "png")] if isinstance(codecs, list) else []
        if not known:
            raise RequestError("hello names no codec that this server writes: jpeg, webp, png.")
        values, token, model = body.get("values") or {}, body.get("resume_token") or "", body.get("model") or ""
        if not isinstance(values, dict) or not isinstance(token, str) or not isinstance(model, str):
            raise RequestError("hello has values that are no object, or a model or a resume token that is no text.")
        return cls(mode, float(fps), tuple(known), values, token, body.get("every") is True, model)

    @property
    def changes(self) -> Changes:
        """Which frames need painting."""
        return Always() if self.every else Changes(exact=self.mode in EXACT)


@dataclass
class Second:
    """What happened since the last report."""

    begun_s: float = field(default_factory=time.monotonic)
    came: int = 0
    went: int = 0
    dropped: int = 0
    unchanged: int = 0


class Seat:
    """See the module. Its methods are called on the server's loop."""

    def __init__(self, studio: Studio, pipe: Pipeline, hello: Hello, fields: LiveRequest, depth: int) -> None:
        self.studio, self.pipe, self.hello, self.fields, self.revision = studio, pipe, hello, fields, 0
        self.id, self.token = secrets.token_urlsafe(12), secrets.token_urlsafe(24)
        self.texts: dict[str, dict[str, Any]] = {}
        self.output: Output | None = None
        self.last: Output | None = None
        self._kept: Output | None = None
        self.last_number = 0
        self.came: Message | None = None
        self.mask_came: Message | None = None
        self.mask: Image.Image | None = None
        self.news, self.arrived = asyncio.Event(), asyncio.Event()
        self.viewers: list[asyncio.Future[None]] = []
        self.second = Second()
        self.took_ms: deque[float] = deque(maxlen=REMEMBERED)
        self._skip_said_s, self._skipped = -math.inf, 0
        self._sent: dict[int, float] = {}
        self._next = 0
        self._round_trip_s = math.inf
        loop = asyncio.get_running_loop()

        def tell(event: Output | Failed) -> None:
            loop.call_soon_threadsafe(self._heard, event)

        painter = studio.painting.painter(pipe, self.id)
        self._held = contextlib.ExitStack()
        self._held.enter_context(studio.models.holding(pipe))
        self.session = LiveSession(
            studio.engine,
            painter.paint,
            tell,
            fields,
            owner=f"live {self.id}",
            period_s=1 / hello.fps,
            depth=depth,
            changes=hello.changes,
            refine_after_s=REFINE_AFTER_S,
            refine=lambda fields: better(pipe, self.hello, fields, studio.limits),
            moving=painter.moving,
        )

    async def greet(self, hello: Hello) -> None:
        """Its client is back with another hello: mode, codecs and pace are as that says, the parameters stay.

        Raises FewstepError for what the parameters cannot be painted with; nothing changes then.
        """
        _, depth = await looked_at(self.studio, self.pipe, hello, self.fields)
        same = type(hello.changes) is type(self.hello.changes) and hello.changes.exact == self.hello.changes.exact
        self.session.expect(period_s=1 / hello.fps, depth=depth, changes=None if same else hello.changes)
        self.hello = hello

    def say(self, kind: str, **values: Any) -> None:
        """Send a text message as soon as may be, in place of an older one of this kind."""
        slot = f"{kind} {values['code']}" if "code" in values else kind
        self.texts.pop(slot, None)
        self.texts[slot] = {"type": kind, **values}
        self.news.set()

    def fail(self, code: str, error: BaseException, **more: Any) -> None:
        """Say what went wrong; what is not our own error is not for strangers."""
        ours = isinstance(error, FewstepError)
        if not ours:
            fault("a live picture could not be painted", error)
        message = sentence_of(error) if ours else "This picture could not be painted."
        retry_after_s = getattr(error, "retry_after_s", None)
        more |= {} if retry_after_s is None else {"retry_after": retry_after_s}
        self.say("error", code="busy" if retry_after_s is not None else code, message=message, **more)

    def take(self, message: Message) -> None:
        """A frame or a mask came in: it takes the place of one that was not looked at yet."""
        if message.kind is Kind.MASK:
            self.mask_came = message
        else:
            self.second.came += 1
            self.second.dropped += self.came is not None
            self.came = message
        self.arrived.set()
        self.say("credit", n=self.window, upto=message.seq)

    async def look_at(self, message: Message) -> None:
        """Decode a frame and hand it to the engine. Raises ImageError."""
        before = self.session.counts.dropped
        # Not `aside`: a frame would wait behind somebody's large pictures. A session decodes one frame at a time.
        taken = await asyncio.to_thread(self._offer, message)
        self.second.dropped += self.session.counts.dropped - before
        if taken:
            return
        self.second.unchanged += 1
        self._skipped = message.seq
        now = time.monotonic()
        if now - self._skip_said_s >= 1:
            self._skip_said_s = now
            self.say("skip", seq=message.seq)

    def _offer(self, message: Message) -> bool:
        picture = open_image(from_bytes(message.payload, what="frame"))
        return self.session.offer(Frame(message.seq, picture, message.sender_ms, self.mask))

    async def look_at_mask(self, message: Message) -> None:
        """A mask for all frames that follow; black all over takes it away. Raises ImageError."""
        mask = await aside(lambda: from_bytes(message.payload, what="mask").convert("L"))
        self.mask = mask if mask.getextrema()[1] else None
        self.session.changes.forget()

    async def change(self, revision: int, patch: Mapping[str, Any]) -> None:
        """Other parameters, if they can be painted with; the client is told what they come to."""
        if revision <= self.revision:
            raise RequestError(f"The parameters' revision {revision} is not above {self.revision}, which came before.")
        fields = filled(self.fields.patched(patch), self.pipe.model.family)
        plan, self.session.depth = await looked_at(self.studio, self.pipe, self.hello, fields)
        self.fields, self.revision = fields, revision
        self.session.change(revision, fields)
        self.say("params_ack", rev=revision, effective=effective(fields, plan), warnings=list(plan.notes))

    def keep(self, output: Output) -> None:
        """Put an output into the history, once, where that is asked for."""
        order, history = output.order, self.studio.history
        if history is None or not order.fields.keep or output is self._kept:
            return
        self._kept = output
        frame = order.frame
        history.add(output.result, LIVE, self.pipe.model.name, order.fields.of(frame.picture, frame.mask))

    def acknowledged(self, seq: int) -> None:
        """Output `seq` (0: the welcome) was received: how long that took is how far away the client is."""
        sent_s = self._sent.pop(seq, None)
        if sent_s is not None:
            self._round_trip_s = min(self._round_trip_s, time.monotonic() - sent_s)
        self._sent = {number: when for number, when in self._sent.items() if number > seq}
        self.news.set()

    def forget_socket(self) -> None:
        """Another connection: nothing is on its way, and how far away the client is has to be found again."""
        self._sent, self._next, self._round_trip_s = {}, 0, math.inf
        self.texts.clear()
        self.output = self.last

    def number(self) -> int:
        """The next output's number; it waits for its acknowledgement from now on. The first is 0, the welcome."""
        number, self._next = self._next, self._next + 1
        self._sent[number] = time.monotonic()
        return number

    @property
    def may_send(self) -> bool:
        """Whether the client keeps up with the outputs."""
        now = time.monotonic()
        return sum(now - sent_s < FORGIVEN_S for number, sent_s in self._sent.items() if number) < self.window

    @property
    def window(self) -> int:
        """Frames that may be on their way, each way: as many as are sent in a round trip, some for its unevenness, and
        one; from 2 to 6.
        """
        away_s = 0.0 if math.isinf(self._round_trip_s) else self._round_trip_s
        return min(6, max(2, math.ceil(UNEVEN * away_s * self.hello.fps) + 1))

    def report(self) -> None:
        """The figures of the last second, and the place in the queue while others are served."""
        second, self.second = self.second, Second()
        passed_s, took = self.second.begun_s - second.begun_s, sorted(self.took_ms)
        figures = {"fps_in": second.came / passed_s, "fps_out": second.went / passed_s}
        figures |= {"p50_ms": _at(took, 0.5), "p95_ms": _at(took, 0.95)}
        figures |= {"call_ms": 1e3 * self.studio.engine.stats.call_s}
        rounded = {name: round(value, 2) for name, value in figures.items()}
        self.say("stats", **rounded, dropped=second.dropped, unchanged=second.unchanged, skipped=self._skipped)
        if position := self.session.position:
            self.say("queue", pos=position, eta_s=round(position * self.studio.engine.stats.call_s, 2))

    async def next_picture(self, shown: Output | None, within_s: float) -> None:
        """Wait until there is another picture than `shown`, or for `within_s`."""
        if self.last is shown:
            viewer = asyncio.get_running_loop().create_future()
            self.viewers.append(viewer)
            await asyncio.wait([viewer], timeout=within_s)

    def close(self) -> None:
        """The end of the session."""
        self.session.close()
        self._held.close()
        self._wake_viewers()

    def _wake_viewers(self) -> None:
        viewers, self.viewers = self.viewers, []
        for viewer in viewers:
            if not viewer.done():
                viewer.set_result(None)

    def _heard(self, event: Output | Failed) -> None:
        if isinstance(event, Failed):
            self.fail("painting", event.error, seq=event.order.frame.seq, rev=event.order.revision)
            return
        self.output = self.last = event
        if event.order.refined:
            self.keep(event)
        self.took_ms.append(1e3 * (event.queued_s + event.painted_s))
        self.second.went += 1
        self.news.set()
        self._wake_viewers()


async def looked_at(studio: Studio, pipe: Pipeline, hello: Hello, fields: LiveRequest) -> tuple[Plan, int]:
    """The plan of a session's frames, and how many of them should be in the making at once.

    Raises FewstepError for what cannot be done.
    """
    if fields.keep and studio.history is None:
        raise RequestError("This server keeps no history. Start it with --history, or leave keep out.")
    plan = await asyncio.to_thread(trial, pipe, hello, fields, studio.limits)
    pace = await asyncio.to_thread(studio.painting.pace, pipe, 1 / hello.fps)
    return plan, depth_of(fields, plan, pace, 1 / hello.fps)


def trial(pipe: Pipeline, hello: Hello, fields: LiveRequest, limits: Limits) -> Plan:
    """The plan of a session's frames; nothing is painted. Raises FewstepError for what cannot be done."""
    side = pipe.model.family.size_px
    size = fields.request.width or side, fields.request.height or side
    plan = pipe.plan(fields.of(None if hello.mode == "prompt" else Image.new("RGB", size)))
    limits.check(plan)
    return plan


def better(pipe: Pipeline, hello: Hello, fields: LiveRequest, limits: Limits) -> LiveRequest | None:
    """The parameters of an idle session's better picture: more steps, as many as its strength has; None without any."""
    usual = fields.request.steps or pipe.sampling.steps
    wanted = fields.refined(usual) if fields.refine else fields
    for steps in range(wanted.request.steps or usual, usual, -1):
        with contextlib.suppress(FewstepError):
            trial(pipe, hello, found := wanted.patched({"steps": steps}), limits)
            return found
    return None


def effective(fields: LiveRequest, plan: Plan) -> dict[str, Any]:
    """A session's parameters with everything left open filled in."""
    chosen = {"steps": len(plan.timesteps), "guidance": plan.guidance, "sampler": plan.sampler.name}
    chosen |= {"schedule": plan.table, "strength": plan.strength, "width": plan.size[0], "height": plan.size[1]}
    return fields.values() | chosen


def first_fields(family: Family) -> LiveRequest:
    """A new session's parameters: the model's own size and strength, one seed for all frames."""
    return filled(LiveRequest(Request("", width=family.size_px, height=family.size_px)), family)


def filled(fields: LiveRequest, family: Family) -> LiveRequest:
    """With a seed, so that a session's noise stays the same from frame to frame, and a strength."""
    own = {"seed": secrets.randbelow(SEED_COUNT), "strength": OWN_STRENGTHS.get(family.name, IMAGE_STRENGTH)}
    return fields.patched({name: value for name, value in own.items() if getattr(fields.request, name) is None})


def _at(ordered: list[float], share: float) -> float:
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else 0.0
