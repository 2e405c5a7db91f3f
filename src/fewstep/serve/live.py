"""The live socket `fewstep.live.v1` (docs/live.md): frames in, pictures out, never out of date.

Three tasks a socket: one reads, and answers each frame with credit for the next as soon as it is there; one decodes the
newest frame and hands it to the engine; one writes what waits. A session outlives its socket by a minute.
"""

from __future__ import annotations

import asyncio
import contextlib
import io
import json
import secrets
from collections.abc import AsyncIterator, Mapping
from typing import Any

from fastapi import APIRouter, Body, Request, Response, WebSocket, WebSocketDisconnect
from fastapi.responses import StreamingResponse
from starlette.websockets import WebSocketState

from fewstep.engine.live import Frame, Output
from fewstep.engine.live_request import schema
from fewstep.engine.work import BusyError
from fewstep.errors import FewstepError, RequestError
from fewstep.infotext import PNG_KEY
from fewstep.serve.answers import sentence_of
from fewstep.serve.frames import LIMIT, Codec, Flag, Kind, Message, unpacked
from fewstep.serve.jobs import Studio
from fewstep.serve.orders import LeavingError
from fewstep.serve.seats import Hello, Seat, filled, first_fields, looked_at
from fewstep.serve.uploads import SIDE_LIMIT_PX, aside, to_base64

PROTOCOL = "fewstep.live.v1"
SESSIONS = 16
TEXT_LIMIT = 2**16
HELLO_S = 10.0
TICKET_S = 30.0
KEPT_S = 60.0
"""How long a session waits for its client to come back."""

QUALITY = {"jpeg": {"quality": 88}, "webp": {"quality": 85, "method": 0}, "png": {"compress_level": 1}}
FINE_PX = 256
"""Up to this size JPEGs keep the colour of every pixel: small pictures are shown enlarged."""

BOUNDARY = "fewstep"
VIEWER_S = 5.0
"""After so long without a new picture an MJPEG viewer gets the last one again: it sees that the stream lives."""


class Room:
    """All live sessions of a server."""

    def __init__(self, studio: Studio, *, sessions: int = SESSIONS, kept_s: float = KEPT_S) -> None:
        self.studio, self.sessions, self.kept_s = studio, sessions, kept_s
        self.seats: dict[str, Seat] = {}
        self.sockets: dict[str, Socket] = {}
        self._leaving: dict[str, asyncio.TimerHandle] = {}

    async def seat_for(self, hello: Hello) -> Seat:
        """The session that a resume token belongs to, or a new one. Raises BusyError when there are too many."""
        for seat in self.seats.values():
            if hello.token and secrets.compare_digest(seat.token.encode(), hello.token.encode()):
                return await self._back(seat, hello)
        if self.studio.leaving:
            raise LeavingError
        if len(self.seats) >= self.sessions and self._leaving:
            self.end(self.seats[next(iter(self._leaving))])  # whoever left first
        if len(self.seats) >= self.sessions:
            raise BusyError(f"There are {self.sessions} live sessions already. Try again later.", 5.0)
        pipe = await self.studio.pipe_of(hello.model or None)
        family = pipe.model.family
        fields = filled(first_fields(family).patched(hello.values), family)
        _, depth = await looked_at(self.studio, pipe, hello, fields)
        seat = Seat(self.studio, pipe, hello, fields, depth)
        self.seats[seat.id] = seat
        return seat

    async def _back(self, seat: Seat, hello: Hello) -> Seat:
        """The client of a session is here again. Raises FewstepError for a hello that it cannot go on with."""
        if timer := self._leaving.pop(seat.id, None):
            timer.cancel()
        try:
            await seat.greet(hello)
        except FewstepError:
            if seat.id not in self.sockets:
                self.left(seat)
            raise
        return seat

    def left(self, seat: Seat) -> None:
        """Its client is gone; it may come back for a while."""
        loop = asyncio.get_running_loop()
        self._leaving[seat.id] = loop.call_later(self.kept_s, self.end, seat)

    def end(self, seat: Seat) -> None:
        """The session is over."""
        self._leaving.pop(seat.id, None)
        self.seats.pop(seat.id, None)
        seat.close()

    def close(self) -> None:
        """All sessions are over."""
        for seat in list(self.seats.values()):
            self.end(seat)


class Socket:
    """One connection of one session."""

    def __init__(self, room: Room, socket: WebSocket, seat: Seat) -> None:
        self.room, self.socket, self.seat = room, socket, seat
        self.over = False

    async def serve(self) -> None:
        """Until the client leaves, says bye, or comes back by another connection."""
        seat, older = self.seat, self.room.sockets.get(self.seat.id)
        self.room.sockets[seat.id] = self
        if older is not None:
            await older.socket.close(4409, "This session goes on elsewhere.")
        self._welcome()
        if seat.hello.mode == "prompt" and (seat.last is None or seat.last.order.frame.picture is not None):
            seat.session.offer(Frame(0))
        tasks = [asyncio.ensure_future(work()) for work in (self._read, self._look, self._write, self._report)]
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            if self.room.sockets.get(seat.id) is self:
                del self.room.sockets[seat.id]
                (self.room.end if self.over else self.room.left)(seat)

    def _welcome(self) -> None:
        seat, model = self.seat, self.seat.pipe.model
        seat.forget_socket()
        seat.number()
        limits = {"message_bytes": LIMIT, "side_px": SIDE_LIMIT_PX, "size_px": model.family.size_px}
        seat.say(
            "welcome",
            session=seat.id,
            resume_token=seat.token,
            model=model.name,
            limits=limits | {"window": seat.window},
            schema=schema(history=seat.studio.history is not None),
            values=seat.fields.values(),
            rev=seat.revision,
        )

    async def _read(self) -> None:
        while not self.over:
            message = await self.socket.receive()
            if message["type"] == "websocket.disconnect":
                return
            try:
                if (data := message.get("bytes")) is not None:
                    self._binary(unpacked(data))
                else:
                    await self._text(_object(message.get("text") or ""))
            except FewstepError as error:
                self.seat.fail("protocol", error)

    def _binary(self, message: Message) -> None:
        if message.kind not in (Kind.INPUT, Kind.MASK):
            raise RequestError(f"A client sends pictures and masks, not {message.kind.name.lower()}.")
        self.seat.take(message)

    async def _text(self, body: Mapping[str, Any]) -> None:
        seat, kind = self.seat, body.get("type")
        if kind == "ack":
            seat.acknowledged(_whole(body, "seq"))
        elif kind == "params":
            await self._params(_whole(body, "rev"), body.get("patch"))
        elif kind == "pause":
            seat.session.pause(on=bool(body.get("on")))
        elif kind == "snapshot":
            await self._snapshot()
        elif kind == "bye":
            self.over = True
        else:
            raise RequestError(f"There is no message of the type {kind!r}. See docs/live.md.")

    async def _params(self, revision: int, patch: Any) -> None:
        try:
            if not isinstance(patch, dict):
                raise RequestError("params has no patch: an object of names and values.")
            await self.seat.change(revision, patch)
        except FewstepError as error:
            self.seat.fail("params", error, rev=revision)

    async def _snapshot(self) -> None:
        if self.seat.last is None:
            raise RequestError("There is no picture yet.")
        picture = self.seat.last.result
        self.seat.keep(self.seat.last)
        png = await aside(lambda: to_base64(picture))
        self.seat.say("snapshot", seq=self.seat.last_number, infotext=picture.info.get(PNG_KEY, ""), png=png)

    async def _look(self) -> None:
        seat = self.seat
        while True:
            await seat.arrived.wait()
            seat.arrived.clear()
            mask, picture, seat.mask_came, seat.came = seat.mask_came, seat.came, None, None
            for message, look in ((mask, seat.look_at_mask), (picture, seat.look_at)):
                try:
                    if message is not None:
                        await look(message)
                except FewstepError as error:
                    seat.fail("frame", error, seq=message.seq if message else 0)

    async def _write(self) -> None:
        seat = self.seat
        while True:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(seat.news.wait(), None if seat.output is None else 0.25)
            seat.news.clear()
            while seat.texts:
                kind = next(iter(seat.texts))
                await self.socket.send_text(json.dumps(seat.texts.pop(kind)))
            if seat.output is not None and seat.may_send:
                output, seat.output, codec = seat.output, None, seat.hello.codecs[0]
                data = await asyncio.to_thread(_encoded, output.result, codec)
                await self.socket.send_bytes(_packed(output, data, codec, seat))

    async def _report(self) -> None:
        while True:
            await asyncio.sleep(1)
            self.seat.report()


def _object(text: str) -> Mapping[str, Any]:
    if len(text) > TEXT_LIMIT:
        raise RequestError(f"A text message has {len(text)} characters, but at most {TEXT_LIMIT} are allowed.")
    try:
        body = json.loads(text)
    except (ValueError, RecursionError):
        body = None
    if not isinstance(body, dict):
        raise RequestError("A text message is no JSON object.")
    return body


def _whole(body: Mapping[str, Any], name: str) -> int:
    value = body.get(name)
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < 2**32:
        raise RequestError(f"{name} is {value!r}. Give a whole number from 0 to {2**32 - 1}.")
    return value


def _encoded(picture: Any, codec: str) -> bytes:
    stream, how = io.BytesIO(), dict(QUALITY[codec])
    if codec == "jpeg" and max(picture.size) <= FINE_PX:
        how["subsampling"] = 0
    picture.copy().save(stream, codec.upper(), **how)
    return stream.getvalue()


def _packed(output: Output, data: bytes, codec: str, seat: Seat) -> bytes:
    flags = (Flag.FINAL if output.final else Flag.NONE) | (Flag.REFINED if output.order.refined else Flag.NONE)
    frame, number = output.order.frame, seat.number()
    seat.last_number = number
    return Message(
        Kind.OUTPUT,
        Codec[codec.upper()],
        number,
        data,
        flags,
        output.order.revision,
        frame.sender_ms,
        frame.seq,
        1e3 * output.painted_s,
        1e3 * output.queued_s,
    ).packed()


def router(studio: Studio, room: Room) -> APIRouter:
    """The live routes."""
    routes = APIRouter(tags=["live"])
    _entering(routes, studio)
    _watching(routes, room)

    @routes.websocket("/api/v1/live")
    async def live(socket: WebSocket) -> None:
        if PROTOCOL not in socket.scope["subprotocols"]:
            await socket.close(4406, f"This socket speaks {PROTOCOL}.")
            return
        await socket.accept(PROTOCOL)
        with contextlib.suppress(WebSocketDisconnect, RuntimeError):  # the client may be gone at any moment
            await _attend(room, socket)
        if socket.application_state is WebSocketState.CONNECTED:
            with contextlib.suppress(WebSocketDisconnect, RuntimeError):
                await socket.close()

    return routes


def _entering(routes: APIRouter, studio: Studio) -> None:
    @routes.get("/api/v1/live/schema")
    async def live_schema() -> dict[str, Any]:
        """The parameters of live sessions, as a JSON schema, with their first values."""
        model = studio.pipe.model
        fields = first_fields(model.family)
        return {
            "schema": schema(history=studio.history is not None),
            "defaults": fields.values(),
            "model": model.name,
            "size_px": model.family.size_px,
        }

    @routes.post("/api/v1/live/tickets")
    async def ticket(http: Request) -> dict[str, Any]:
        """A word that opens one socket once."""
        return {"ticket": http.scope["fewstep.door"].ticket(seconds=TICKET_S), "seconds": TICKET_S}

    @routes.post("/api/v1/login")
    async def login(http: Request, key: str = Body(embed=True)) -> Response:
        """The key for a cookie, which scripts of the page cannot read."""
        cookie = http.scope["fewstep.door"].login(http.scope, key)
        if cookie is None:
            return Response('{"detail": "That is not the key."}', 401, media_type="application/json")
        return Response("{}", headers={"set-cookie": cookie}, media_type="application/json")


def _watching(routes: APIRouter, room: Room) -> None:
    @routes.get("/live/{session}.mjpg", response_class=StreamingResponse)
    async def mjpeg(session: str) -> Response:
        """A session's pictures, one after the other, to look at only."""
        seat = room.seats.get(session)
        if seat is None:
            return Response('{"detail": "There is no such live session."}', 404, media_type="application/json")
        kind = f"multipart/x-mixed-replace; boundary={BOUNDARY}"
        return StreamingResponse(_parts(seat, room), media_type=kind, headers={"cache-control": "no-store"})


async def _attend(room: Room, socket: WebSocket) -> None:
    try:
        body = _object(await asyncio.wait_for(socket.receive_text(), HELLO_S))
        if body.get("type") != "hello" or body.get("proto", PROTOCOL) != PROTOCOL:
            raise RequestError(f"The first message must be a hello of {PROTOCOL}.")
        seat = await room.seat_for(Hello.of(body))
    except (FewstepError, TimeoutError, KeyError) as error:
        busy = isinstance(error, BusyError)
        said = sentence_of(error) if isinstance(error, FewstepError) else "No hello came."
        await socket.send_text(json.dumps({"type": "error", "code": "busy" if busy else "protocol", "message": said}))
        await socket.close(4429 if busy else 4400)
        return
    await Socket(room, socket, seat).serve()


async def _parts(seat: Seat, room: Room) -> AsyncIterator[bytes]:
    """Each picture ends with the next one's boundary: a viewer need not wait for that to show it."""
    yield f"--{BOUNDARY}\r\n".encode()
    shown: Output | None = None
    while seat.id in room.seats:
        if seat.last is not None and seat.last is not shown:
            shown = seat.last
        if shown is not None:
            data = await asyncio.to_thread(_encoded, shown.result, "jpeg")
            head = f"Content-Type: image/jpeg\r\nContent-Length: {len(data)}\r\n\r\n"
            yield head.encode() + data + f"\r\n--{BOUNDARY}\r\n".encode()
        await seat.next_picture(shown, VIEWER_S)
