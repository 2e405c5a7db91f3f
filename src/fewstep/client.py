"""A client of the live socket (docs/live.md): pictures in, painted pictures out, as fast as server and line allow.

    with fewstep.client.Live("http://127.0.0.1:7860", prompt="an oil painting") as live:
        live.paint(picture).picture.save("painted.png")

`paint` sends one picture and waits. `send` and `newest` are for streams: a frame that the line has no room for is not
sent, and what is late is never shown.
"""

from __future__ import annotations

import base64
import contextlib
import io
import json
import threading
import time
import urllib.request
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.parse import quote, urlsplit

from PIL import Image

from fewstep.errors import FewstepError
from fewstep.serve.frames import LIMIT, Codec, Flag, Kind, Message, unpacked

PROTOCOL = "fewstep.live.v1"
BEST_QUALITY, LEAST_QUALITY = 88, 40
"""Of the JPEGs that are sent; it falls while the line has no room for every frame, and rises again slowly."""

LOOK_EVERY = 15
MAY_MISS = 0.05


class LiveError(FewstepError):
    """The server refused something, or the connection is gone."""


@dataclass(frozen=True)
class Painted:
    """An output: the picture, the frame it was painted from, the parameters' revision, and milliseconds.

    `final`: nothing else that came in is to be painted; `refined`: the better one of an idle session. `late_ms` is the
    time since its frame was sent.
    """

    picture: Image.Image
    source: int
    revision: int
    final: bool
    refined: bool
    server_ms: float
    queue_ms: float
    late_ms: float


class Live:
    """One live session. The keywords are its parameters: prompt, steps, guidance, strength, seed, ...

    `key` is the server's, `mode` as in docs/live.md, `every` has all frames painted, also those that did not change.

    Raises LiveError where the server cannot be reached, or refuses.
    """

    def __init__(
        self,
        address: str = "http://127.0.0.1:7860",
        *,
        key: str | None = None,
        mode: str = "canvas",
        fps: float = 30.0,
        every: bool = False,
        timeout_s: float = 30.0,
        **parameters: Any,
    ) -> None:
        self.address, self.timeout_s = address.rstrip("/"), timeout_s
        self.quality = BEST_QUALITY
        self.stats: dict[str, Any] = {}
        self.sent = self.missed = 0
        self._key, self._closing = key, contextlib.ExitStack()
        self._news = threading.Condition()
        self._seq, self._upto, self._credit, self._revision = 0, 0, 2, 0
        self._waiting: list[Painted] = []
        self._skipped = 0
        self._answers: dict[str, dict[str, Any]] = {}
        self._fault: LiveError | None = None
        self._trouble: LiveError | None = None
        self._looked = (0, 0)
        self._socket = self._connected()
        hello = {"mode": mode, "fps": fps, "codecs": ["jpeg"], "values": parameters, "every": every}
        self._text("hello", proto=PROTOCOL, **hello)
        self._thread = threading.Thread(target=self._receive, name="fewstep-live", daemon=True)
        self._thread.start()
        self.welcome = self._answer("welcome")

    def __enter__(self) -> Live:
        """Itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """`close`."""
        self.close()

    def close(self) -> None:
        """End the session."""
        with contextlib.suppress(Exception):
            self._text("bye")
        self._closing.close()
        self._thread.join(5)

    @property
    def watch_address(self) -> str:
        """Where a browser or a player sees the pictures (MJPEG)."""
        return f"{self.address}/live/{self.welcome['session']}.mjpg"

    def change(self, **parameters: Any) -> dict[str, Any]:
        """Other parameters, from the next picture on; returns all of them as they are now.

        Raises LiveError for what cannot be.
        """
        self._revision += 1
        self._text("params", rev=self._revision, patch=parameters)
        return self._answer("params_ack")["effective"]

    def send(self, picture: Image.Image) -> bool:
        """Send a frame if the line has room for it now; whether it was sent."""
        self._mind_quality()
        with self._news:
            self._check()
            if self._seq - self._upto >= self._credit:
                self.missed += 1
                return False
            self._seq += 1
        self.sent += 1
        self._frame(picture, Kind.INPUT, self._seq)
        return True

    def mask(self, mask: Image.Image | None) -> None:
        """Where frames are repainted from now on (white); None: everywhere."""
        self._frame(mask.convert("L") if mask is not None else Image.new("L", (8, 8)), Kind.MASK, self._seq)

    def newest(self, timeout_s: float | None = None) -> Painted | None:
        """The newest output that was not taken yet; waits for one, up to the timeout, then None."""
        return (self._came(timeout_s) or [None])[-1]

    def _came(self, timeout_s: float | None) -> list[Painted]:
        """The outputs that were not taken yet, the last two at the most; waits for one."""
        with self._news:
            self._news.wait_for(lambda: self._waiting or self._fault or self._trouble, timeout_s)
            self._check()
            came, self._waiting = self._waiting, []
            return came

    def paint(self, picture: Image.Image) -> Painted:
        """Send a picture and wait for what is painted from it."""
        until = time.monotonic() + self.timeout_s
        while not self.send(picture):
            time.sleep(0.002)
            self._before(until)
        wanted = self._seq
        while True:
            found = self.newest(0.5)
            if found is not None and found.source >= wanted:
                return found
            self._before(until)

    def stream(self, pictures: Iterable[Image.Image]) -> Iterator[Painted]:
        """Send pictures at the pace they come, and yield outputs as they come; at the end the last one's."""
        for picture in pictures:
            self.send(picture)
            yield from self._came(0)
        until = time.monotonic() + self.timeout_s
        while time.monotonic() < until:
            came = self._came(0.1)
            yield from came
            if self._skipped >= self._seq or (came and came[-1].final and came[-1].source == self._seq):
                return

    def snapshot(self) -> tuple[Image.Image, str]:
        """The last output as it was painted, without loss, and its settings as A1111 writes them."""
        self._text("snapshot")
        answer = self._answer("snapshot")
        picture = Image.open(io.BytesIO(base64.b64decode(answer["png"])))
        picture.load()
        return picture, answer["infotext"]

    def _before(self, until: float) -> None:
        if time.monotonic() > until:
            raise LiveError(f"No picture came within {self.timeout_s:g} s.")

    def _check(self) -> None:
        if self._fault is not None:
            raise self._fault
        trouble, self._trouble = self._trouble, None
        if trouble is not None:
            raise trouble

    def _mind_quality(self) -> None:
        offered, missed = self.sent + self.missed, self.missed
        if offered - self._looked[0] < LOOK_EVERY:
            return
        share = (missed - self._looked[1]) / (offered - self._looked[0])
        self._looked = offered, missed
        step = -8 if share > MAY_MISS else 1
        self.quality = max(LEAST_QUALITY, min(BEST_QUALITY, self.quality + step))

    def _frame(self, picture: Image.Image, kind: Kind, seq: int) -> None:
        stream, codec = io.BytesIO(), Codec.PNG if kind is Kind.MASK else Codec.JPEG
        how = {} if codec is Codec.PNG else {"quality": self.quality}
        plain = picture if picture.mode in ("L", "RGB") else picture.convert("RGB")
        plain.save(stream, codec.name, **how)
        self._send(Message(kind, codec, seq, stream.getvalue(), sender_ms=_now_ms()).packed())

    def _text(self, kind: str, **values: Any) -> None:
        self._send(json.dumps({"type": kind, **values}))

    def _send(self, data: str | bytes) -> None:
        try:
            self._socket.send(data)
        except Exception as error:
            raise self._fault or LiveError(f"The connection to {self.address} is gone. Connect again.") from error

    def _answer(self, kind: str) -> dict[str, Any]:
        """Wait for a text message of this kind; an error in its place is raised."""
        with self._news:
            if not self._news.wait_for(lambda: kind in self._answers or self._fault, self.timeout_s):
                raise LiveError(f"{self.address} did not answer within {self.timeout_s:g} s.")
            if kind in self._answers:
                answer = self._answers.pop(kind)
                if answer["type"] == "error":
                    raise LiveError(answer["message"])
                return answer
            self._check()
            raise AssertionError

    def _receive(self) -> None:
        fault = LiveError(f"{self.address} closed the connection.")
        try:
            for data in self._socket:
                if isinstance(data, bytes):
                    self._output(unpacked(data))
                else:
                    self._heard(json.loads(data))
        except Exception as error:  # noqa: BLE001 - the thread ends, its callers are told
            fault = LiveError(f"The connection to {self.address} broke: {type(error).__name__}.")
        with self._news:
            self._fault = self._fault or fault
            self._news.notify_all()

    def _heard(self, message: dict[str, Any]) -> None:
        kind = message["type"]
        with self._news:
            if kind == "credit":
                self._credit, self._upto = message["n"], message["upto"]
            elif kind == "stats":
                self.stats, self._skipped = message, message["skipped"]
            elif kind == "error":
                self._refused(message)
            elif kind in ("welcome", "params_ack", "snapshot"):
                self._answers[kind] = message
            self._news.notify_all()
        if kind == "welcome":
            self._text("ack", seq=0)

    def _refused(self, message: dict[str, Any]) -> None:
        if message["code"] == "params":
            self._answers["params_ack"] = message
        elif not hasattr(self, "welcome"):
            self._answers["welcome"] = message
        elif message["code"] == "protocol":
            self._answers["snapshot"] = message
        else:
            self._trouble = LiveError(message["message"])

    def _output(self, message: Message) -> None:
        self._text("ack", seq=message.seq)
        picture = Image.open(io.BytesIO(message.payload))
        picture.load()
        painted = Painted(
            picture,
            message.source_seq,
            message.revision,
            Flag.FINAL in message.flags,
            Flag.REFINED in message.flags,
            message.server_ms,
            message.queue_ms,
            (_now_ms() - message.sender_ms) % 2**32,
        )
        with self._news:
            self._waiting = [*self._waiting[-1:], painted]
            self._news.notify_all()

    def _connected(self) -> Any:
        try:
            from websockets.exceptions import WebSocketException
            from websockets.sync.client import connect
        except ImportError:
            raise LiveError("The live client needs one more library: pip install 'fewstep[live]'") from None
        headers = {"Authorization": f"Bearer {self._key}"} if self._key else {}
        address = f"{self._ticketed(headers)}"
        try:
            how: dict[str, Any] = {"subprotocols": [PROTOCOL], "compression": None, "max_size": 2 * LIMIT}
            return self._closing.enter_context(connect(address, open_timeout=self.timeout_s, max_queue=4, **how))
        except (OSError, WebSocketException) as error:
            raise LiveError(f"{self.address} has no live socket: {type(error).__name__}.") from None

    def _ticketed(self, headers: dict[str, str]) -> str:
        """The socket's address with a ticket."""
        parts = urlsplit(self.address)
        if parts.scheme not in ("http", "https") or not parts.netloc:
            raise LiveError(f"'{self.address}' is no address of a server. Give one such as http://127.0.0.1:7860.")
        asked = urllib.request.Request(
            f"{self.address}/api/v1/live/tickets", b"{}", {"Content-Type": "application/json", **headers}
        )
        try:
            with urllib.request.urlopen(asked, timeout=self.timeout_s) as answer:
                ticket = json.load(answer)["ticket"]
        except HTTPError as error:
            why = "it wants its key" if error.code == 401 else f"it answered {error.code}"
            raise LiveError(f"{self.address} does not let us in: {why}.") from None
        except (URLError, OSError, ValueError, KeyError):
            raise LiveError(f"{self.address} cannot be reached. Is `fewstep serve` running there?") from None
        scheme = "wss" if parts.scheme == "https" else "ws"
        return f"{scheme}://{parts.netloc}{parts.path}/api/v1/live?ticket={quote(ticket)}"


def _now_ms() -> int:
    return int(time.monotonic() * 1000) % 2**32
