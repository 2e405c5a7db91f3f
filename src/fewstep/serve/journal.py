"""What the server writes down: one line for each request, job and model, as JSON or as words.

Never keys, and prompts only where `prompts` was asked for: a prompt is its author's own business.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import logging
import sys
import threading
import time
from logging.handlers import QueueHandler
from queue import Full, Queue
from typing import Any

from fewstep.serve.security import App, Message, Receive, Scope, Send

FORMS = ("json", "plain")
WAITING = 10_000
"""Lines."""

PATH_LIMIT = 300
"""Characters of a path that are written down."""

_LOG = logging.getLogger("fewstep.serve")


def say(event: str, **facts: Any) -> None:
    """One line; facts that are None are left out."""
    _LOG.info(event, extra={"facts": {name: value for name, value in facts.items() if value is not None}})


def fault(what: str, error: BaseException) -> None:
    """A line with the error's trace."""
    _LOG.error(what, exc_info=error)


def begin(form: str) -> None:
    """Write lines to stderr, in one of `FORMS`, by a thread: a pipe that nobody reads does not hold the server up."""
    lines = Aside(logging.StreamHandler(sys.stderr))
    lines.setFormatter(Lines(form))
    _LOG.handlers[:] = [lines]
    _LOG.setLevel(logging.INFO)
    _LOG.propagate = False
    atexit.register(lines.settle)


class Aside(QueueHandler):
    """Gives lines to a thread that writes them; above `WAITING` the next are left out, until there is room again."""

    def __init__(self, writer: logging.Handler) -> None:
        self._lines: Queue[logging.LogRecord] = Queue(WAITING)
        super().__init__(self._lines)
        self._writer = writer
        threading.Thread(target=self._write, name="fewstep-journal", daemon=True).start()

    def enqueue(self, record: logging.LogRecord) -> None:
        """Never waits."""
        with contextlib.suppress(Full):
            self._lines.put_nowait(record)

    def settle(self, within_s: float = 1.0) -> None:
        """Wait until what was said is written, for a while."""
        until = time.monotonic() + within_s
        while self._lines.unfinished_tasks and time.monotonic() < until:
            time.sleep(0.005)

    def _write(self) -> None:
        while True:
            self._writer.handle(self._lines.get())
            self._lines.task_done()


class Lines(logging.Formatter):
    """A record as a line.

    >>> record = logging.LogRecord("x", 20, "", 0, "job", None, None)
    >>> record.facts, record.created = {"id": "a b", "ms": 5}, 0.0
    >>> print(Lines("plain").format(record))
    1970-01-01T00:00:00.000Z job id="a b" ms=5
    >>> print(Lines("json").format(record))
    {"time": "1970-01-01T00:00:00.000Z", "event": "job", "id": "a b", "ms": 5}
    """

    def __init__(self, form: str) -> None:
        super().__init__()
        self.form = form

    def format(self, record: logging.LogRecord) -> str:
        """One line without line breaks: control characters of strangers are escaped by JSON."""
        now = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created)) + f".{int(record.created % 1 * 1000):03}Z"
        event, facts = record.getMessage(), getattr(record, "facts", None)
        if facts is None:  # somebody else's sentence
            event, facts = record.levelname.lower(), {"message": event}
        if record.exc_info:
            facts = {**facts, "trace": self.formatException(record.exc_info)}
        if self.form == "json":
            return json.dumps({"time": now, "event": event, **facts})
        return " ".join([now, event, *(f"{name}={json.dumps(value)}" for name, value in facts.items())])


class Journal:
    """An ASGI application around another, which writes a line when a request is answered."""

    def __init__(self, app: App) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass it on, and say what came of it; never what stands behind the path's question mark."""
        if scope["type"] == "lifespan":
            return await self.app(scope, receive, send)
        began, found = time.monotonic(), {}

        async def sending(message: Message) -> None:
            if message["type"] == "http.response.start":
                found["status"] = message["status"]
                found["job"] = dict(message["headers"]).get(b"x-task-id", b"").decode() or None
            elif message["type"] == "websocket.close":
                found["status"] = message.get("code", 1000)
            await send(message)

        try:
            await self.app(scope, receive, sending)
        finally:
            method = scope["method"] if scope["type"] == "http" else "SOCKET"
            client = (scope.get("client") or ("", 0))[0]
            ms = round((time.monotonic() - began) * 1000, 1)
            say("request", method=method, path=scope["path"][:PATH_LIMIT], client=client, ms=ms, **found)
