"""The live socket when clients misbehave: too many, vanishing in the middle of a frame, silent, never reading."""

import base64
import io
import json
import os
import socket
import struct
import time

import numpy as np
import pytest
from PIL import Image

from fewstep.client import Live, LiveError
from fewstep.serve.frames import Codec, Kind, Message
from fewstep.serve.live import SESSIONS
from tests.serve.null import NullStudio
from tests.serve.running import running

PROTOCOL = "fewstep.live.v1"


@pytest.fixture(scope="module")
def null(studio):
    with running(NullStudio(studio.pipe)) as port:
        yield port


def raw(port):
    """A socket after its handshake and hello, by hand."""
    line = socket.create_connection(("127.0.0.1", port), timeout=10)
    key = base64.b64encode(os.urandom(16)).decode()
    line.sendall(
        f"GET /api/v1/live HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        f"Sec-WebSocket-Key: {key}\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Protocol: {PROTOCOL}\r\n\r\n".encode()
    )
    assert b"101" in line.recv(4096).split(b"\r\n")[0]
    line.sendall(framed(json.dumps({"type": "hello", "every": True}).encode(), 1))
    assert line.recv(65536)
    return line


def framed(data, kind):
    """A masked WebSocket frame (RFC 6455, section 5.2) whose mask is zero."""
    size = struct.pack("!BB", 0x80 | kind, 0x80 | len(data)) if len(data) < 126 else b""
    return (size or struct.pack("!BBH", 0x80 | kind, 0x80 | 126, len(data))) + bytes(4) + data


def small_frame():
    stream = io.BytesIO()
    Image.new("L", (4, 4), 90).save(stream, "JPEG")
    return framed(Message(Kind.INPUT, Codec.JPEG, 1, stream.getvalue()).packed(), 2)


@pytest.mark.parametrize("stride", [16, pytest.param(1, marks=pytest.mark.slow)])
def test_a_client_may_vanish_at_every_byte_of_a_frame(null, stride):
    frame = small_frame()
    for offset in range(0, len(frame) + 1, stride):
        line = raw(null)
        line.sendall(frame[:offset])
        if offset % 2:  # a reset, not a goodbye
            line.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        line.close()
    with Live(f"http://127.0.0.1:{null}", every=True) as live:
        assert live.paint(Image.new("RGB", (64, 64), "red")).picture.size == (64, 64)


def test_too_many_sessions_are_told_so_and_one_that_left_makes_room(null):
    address = f"http://127.0.0.1:{null}"
    lives = [Live(address) for _ in range(SESSIONS)]
    with pytest.raises(LiveError, match="already"):
        Live(address)
    lives[0]._closing.close()  # gone without a word
    time.sleep(0.2)
    Live(address).close()
    for live in lives[1:]:
        live.close()
    Live(address).close()


def test_a_client_that_never_reads_is_no_burden(null):
    line = raw(null)
    line.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    stream = io.BytesIO()
    noise = np.random.default_rng(0).integers(0, 256, (128, 128, 3), np.uint8)
    Image.fromarray(noise).save(stream, "JPEG", quality=90)
    line.settimeout(3)
    with Live(f"http://127.0.0.1:{null}", every=True) as other:
        for seq in range(1, 60):
            line.sendall(framed(Message(Kind.INPUT, Codec.JPEG, seq, stream.getvalue()).packed(), 2))
        before = time.monotonic()
        assert other.paint(Image.new("RGB", (64, 64), "red")).final
        assert time.monotonic() - before < 3
    line.close()


def test_eight_sessions_of_eight_colours_get_their_own(null):
    address, colours = f"http://127.0.0.1:{null}", [(31 * i, 255 - 31 * i, 128) for i in range(8)]
    lives = [Live(address, every=True) for _ in colours]
    for _ in range(12):
        for live, colour in zip(lives, colours, strict=True):
            assert live.send(Image.new("RGB", (64, 64), colour))
        for live, colour in zip(lives, colours, strict=True):
            painted = live.newest(10)
            assert np.abs(np.asarray(painted.picture, int) - colour).max() <= 6
    for live in lives:
        live.close()
