"""What a worker is sent to do, as plain values: one picture of a request, or one frame of a live session.

A worker, in another process or on another machine, has models and an engine of its own; errands of all its users share
network calls there, as they would here.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from PIL import Image

from fewstep.engine.live import Frame, Order
from fewstep.engine.live_request import LiveRequest
from fewstep.engine.local import LocalEngine
from fewstep.engine.painter import LivePainter
from fewstep.engine.pictures import PictureNetwork, Preview, paint
from fewstep.engine.wire import Letter
from fewstep.engine.work import CancelledError, Steps, Work
from fewstep.errors import FewstepError
from fewstep.image import open_image, open_mask
from fewstep.infotext import Picture
from fewstep.pipeline import Pipeline, load
from fewstep.plan import Plan
from fewstep.request import SPECS, Request, request_of

MODELS = 2
"""Models that a worker keeps loaded."""

SESSIONS = 64
"""Live sessions whose painters a worker keeps."""

PICTURES = ("image", "mask")


@dataclass
class Errand:
    """The letter to the worker, and what becomes of its answers here. `lasting`: whoever sent it may send it again.

    `heard(step, preview)` is told of each evaluation, `told` the values of the last answer; `wanted(step)` says whether
    a preview is made after a step.
    """

    letter: Letter
    heard: Callable[[int, Picture | None], None] | None = None
    wanted: Callable[[int], bool] | None = None
    lasting: bool = True
    told: Callable[[Mapping[str, Any]], None] | None = None


def picture_errand(
    how: Mapping[str, Any],
    plan: Plan,
    index: int,
    heard: Callable[[int, Picture | None], None] | None = None,
    wanted: Callable[[int], bool] | None = None,
) -> Errand:
    """Picture `index` of a plan, by a model loaded with the keywords `how` of `fewstep.load`."""
    request, pictures = _plain(plan.request.replaced(seed=plan.seed))
    values = {"kind": "picture", "load": dict(how), "request": request, "index": index}
    return Errand(Letter(values, pictures), heard, wanted)


class RemotePainter:
    """The `paint` and `moving` of a live session whose frames a worker paints."""

    def __init__(self, how: Mapping[str, Any], session: str) -> None:
        self.how, self.session = how, session
        self._moving = False

    def moving(self, fields: LiveRequest) -> bool:
        """Whether the same frame, painted again, would be another picture; as the worker saw it last."""
        return self._moving

    def paint(self, order: Order) -> Any:
        """One frame."""
        frame = order.frame
        pictures = {"image": frame.picture, "mask": frame.mask}
        values = {"kind": "live", "load": dict(self.how), "session": self.session, "fields": order.fields.values()}
        values |= {"seq": frame.seq, "revision": order.revision, "refined": order.refined}
        letter = Letter(values, {name: one for name, one in pictures.items() if one is not None})
        return Errand(letter, lasting=False, told=self._told)

    def _told(self, values: Mapping[str, Any]) -> None:
        self._moving = bool(values.get("moving"))


class Workshop:
    """A worker's inside: loads models, carries errands out, and answers by `say`, from any thread."""

    def __init__(self, say: Callable[[Letter], None], *, at_once: int | None = None) -> None:
        self.say = say
        self.engine = LocalEngine(PictureNetwork(at_once), waiting=10_000)
        self._pipes: OrderedDict[str, Pipeline] = OrderedDict()
        self._painters: OrderedDict[str, LivePainter] = OrderedDict()
        self._works: dict[int, Work] = {}
        self._watched: set[int] = set()

    def take(self, letter: Letter) -> None:
        """An errand, or a word about one that was taken before."""
        values = letter.values
        number, kind = values["number"], values["kind"]
        if kind == "cancel":
            if (work := self._works.get(number)) is not None:
                self.engine.cancel(work)
        elif kind == "watch":
            (self._watched.add if values["on"] else self._watched.discard)(number)
        else:
            begin = partial(self._picture if kind == "picture" else self._frame, number, letter)
            deadline_s = self.engine.clock() + values["within_s"]
            work = Work(begin, values["owner"], deadline_s, partial(self._ended, number, letter))
            self._works[number] = work
            self.engine.submit(work)

    def close(self) -> None:
        """Give up what is left."""
        self.engine.close()

    def _pipe(self, how: Mapping[str, Any]) -> Pipeline:
        key = repr(sorted(how.items()))
        if key not in self._pipes:
            while len(self._pipes) >= MODELS:
                self._pipes.popitem(last=False)
            self._pipes[key] = load(**how)
        self._pipes.move_to_end(key)
        return self._pipes[key]

    def _picture(self, number: int, letter: Letter) -> Steps:
        values = letter.values
        if values["watch"]:
            self._watched.add(number)
        pipe = self._pipe(values["load"])
        plan = pipe.plan(request_of({**values["request"], **letter.pictures}))
        return paint(pipe, plan, values["index"], partial(self._heard, number))

    def _frame(self, number: int, letter: Letter) -> Steps:
        values = letter.values
        pipe, session = self._pipe(values["load"]), values["session"]
        painter = self._painters.get(session)
        if painter is None or painter.pipe is not pipe:
            painter = self._painters[session] = LivePainter(pipe)
        self._painters.move_to_end(session)
        while len(self._painters) > SESSIONS:
            self._painters.popitem(last=False)
        frame = Frame(values["seq"], letter.pictures.get("image"), mask=letter.pictures.get("mask"))
        return painter.paint(Order(frame, values["revision"], _live_request(values["fields"]), values["refined"]))

    def _heard(self, number: int, step: int, preview: Preview) -> None:
        pictures = {"preview": preview.make()} if number in self._watched else {}
        self.say(Letter({"kind": "stepped", "number": number, "step": step}, pictures))

    def _ended(self, number: int, letter: Letter, result: Any, error: BaseException | None) -> None:
        self._works.pop(number, None)
        self._watched.discard(number)
        stats = self.engine.stats
        values = {"number": number, "asks": stats.asks, "ticks": stats.ticks, "call_s": stats.call_s}
        if error is not None:
            ours = isinstance(error, FewstepError)
            said = str(error) if ours else f"A worker failed: {type(error).__name__}."
            status = error.http_status if isinstance(error, FewstepError) else 500
            cancelled = isinstance(error, CancelledError)
            self.say(Letter({**values, "kind": "failed", "said": said, "status": status, "cancelled": cancelled}))
            return
        if letter.values["kind"] == "live":
            painter = self._painters.get(letter.values["session"])
            values["moving"] = painter is not None and painter.moving(_live_request(letter.values["fields"]))
        self.say(Letter({**values, "kind": "painted"}, {"picture": result}))


def _plain(request: Request) -> tuple[dict[str, Any], dict[str, Image.Image]]:
    """A request's JSON values, and its pictures, opened."""
    values = {name: getattr(request, name) for name in SPECS if name not in PICTURES}
    pictures = {} if request.image is None else {"image": open_image(request.image)}
    pictures |= {} if request.mask is None else {"mask": open_mask(request.mask)}
    return {name: value for name, value in values.items() if value is not None}, pictures


def _live_request(values: Mapping[str, Any]) -> LiveRequest:
    return LiveRequest(Request("")).patched(values)


def picture_of(letter: Letter) -> Picture:
    """The painted picture of an answer."""
    picture = letter.pictures["picture"]
    assert isinstance(picture, Picture)
    return picture
