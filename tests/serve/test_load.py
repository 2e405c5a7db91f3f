"""Ten times more orders than can be served, and clients that go away: pictures or 429, no growth, and back at once."""

import asyncio
import base64
import gc
import json
import socket
import time
from collections import Counter
from pathlib import Path

import httpx
import pytest

from fewstep.serve.jobs import Studio
from tests.serve.null import NullPipeline
from tests.serve.running import running

ORDER = {"prompt": "a cat", "steps": 4, "cfg_scale": 1, "width": 64, "height": 64, "sampler_name": "LCM"}
PAUSE_S, WAITING = 0.08, 3
SERVED_S = 1 / (4 * PAUSE_S)
"""Pictures a second that the network could paint, if it did nothing else."""


@pytest.fixture
def slow(tmp_path):
    made = Studio(NullPipeline(tmp_path, PAUSE_S), waiting=WAITING)
    yield made
    made.close()


def resident_mb():
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096 / 1e6


async def storm(port, seconds, clients=40):
    """What so many clients, who ask again at once, are told within so many seconds: [(status, retry-after, good)]."""
    until, heard = time.monotonic() + seconds, []
    limits = httpx.Limits(max_connections=clients, max_keepalive_connections=clients)
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=60, limits=limits) as http:

        async def ask(number):
            path, key = [("/sdapi/v1/txt2img", "images"), ("/v1/images/generations", "data")][number % 2]
            body = ORDER if number % 2 == 0 else {"prompt": "a cat", "steps": 4, "size": "64x64"}
            while time.monotonic() < until:
                try:
                    answer = await http.post(path, json=body)
                except httpx.TransportError as error:
                    heard.append((repr(error), "", False))
                    continue
                found = answer.json().get(key)
                text = found and (found[0] if key == "images" else found[0]["b64_json"])
                good = bool(text) and base64.b64decode(text).startswith(b"\x89PNG")
                heard.append((answer.status_code, answer.headers.get("retry-after", ""), good))

        await asyncio.gather(*map(ask, range(clients)))
    return heard


def check(heard, times):
    """Counts by status. There were so many times as many orders as pictures, and each was told what it needs."""
    told = Counter(status for status, *_ in heard)
    assert set(told) == {200, 429} and len(heard) >= times * told[200], told
    assert all(good for status, _, good in heard if status == 200)
    assert all(int(seconds) >= 1 for status, seconds, _ in heard if status == 429)
    return told


def calm(studio, within_s=5.0):
    """Whether nothing is left of what was asked."""
    until = time.monotonic() + within_s
    while time.monotonic() < until:
        if not studio.engine._works and not any(job.active for job in studio.jobs.values()):
            return True
        time.sleep(0.02)
    return False


def test_ten_times_too_much_is_a_picture_or_429(slow):
    with running(slow) as port:
        check(asyncio.run(storm(port, 0.8)), 3)  # 10 on a quiet machine
        assert calm(slow)
        began = time.monotonic()
        assert httpx.post(f"http://127.0.0.1:{port}/sdapi/v1/txt2img", json=ORDER, timeout=30).status_code == 200
        assert time.monotonic() - began < 10 * 4 * PAUSE_S


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="memory is read from /proc")
def test_a_minute_of_it_takes_no_more_memory_than_ten_seconds(slow):
    with running(slow) as port:
        asyncio.run(storm(port, 10.0))
        gc.collect()
        before = resident_mb()
        told = check(asyncio.run(storm(port, 60.0)), 10)
        gc.collect()
        grown = resident_mb() - before
        print(f"{dict(told)} in 60 s; {SERVED_S:g} pictures a second at best; {grown:+.1f} MB")
        assert grown < 20 and calm(slow)


def sent(port, path, body, *, share=1.0):
    """A connection with a POST on its way, or a share of it."""
    text = json.dumps(body).encode()
    head = f"POST {path} HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
    head += f"content-length: {len(text)}\r\n\r\n"
    line = socket.create_connection(("127.0.0.1", port), timeout=10)
    line.sendall(head.encode() + text[: int(len(text) * share)])
    return line


def test_clients_that_go_away_in_a_body_leave_nothing(slow):
    with running(slow) as port:
        for share in (0.0, 0.5, 0.99):
            for path in ("/sdapi/v1/txt2img", "/v1/images/generations", "/v1/images/edits"):
                sent(port, path, {**ORDER, "x": "y" * 100_000}, share=share).close()
        assert httpx.post(f"http://127.0.0.1:{port}/sdapi/v1/txt2img", json=ORDER, timeout=30).status_code == 200
        assert calm(slow) and len(slow.jobs) == 1


@pytest.mark.parametrize("stream", [True, False])
def test_clients_that_go_away_in_an_answer_free_their_place(tmp_path, stream):
    studio = Studio(NullPipeline(tmp_path, 0.05))
    path = "/v1/images/generations" if stream else "/sdapi/v1/txt2img"
    more = {"stream": True, "partial_images": 3} if stream else {"override_settings": {"fewstep_policy": "respect"}}
    with running(studio) as port:
        line = sent(port, path, {**ORDER, "steps": 50, "seed": 1, **more})
        if stream:
            heard = b""
            while b"partial_image" not in heard:
                heard += line.recv(4000) or pytest.fail("the stream ended")
        until = time.monotonic() + 5
        while not studio.engine.stats.asks and time.monotonic() < until:
            time.sleep(0.01)
        line.close()
        assert calm(studio, 1.5), "50 steps take 2.5 s"
        assert 0 < studio.engine.stats.asks < 50
    studio.close()
