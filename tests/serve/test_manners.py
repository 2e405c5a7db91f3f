"""How the server treats those who wait, leave, or ask for much; how it ends; what it writes down."""

import asyncio
import json
import logging
import os
import socket
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import httpx
import pytest

from fewstep.request import Request
from fewstep.serve import journal
from fewstep.serve.jobs import Studio
from fewstep.serve.journal import Journal, Lines
from fewstep.serve.orders import LeavingError
from tests.serve.running import asking, running, wait_until

ORDER = {"prompt": "a secret cat", "steps": 2, "cfg_scale": 1, "width": 64, "height": 64, "sampler_name": "LCM"}
GENERATION = {"prompt": "a secret cat", "steps": 2, "size": "64x64"}


@contextmanager
def gated(studio):
    """The network answers only while this is set."""
    opened, network = threading.Event(), studio.engine.network
    answer = network.answer

    def waiting(asks):
        assert opened.wait(20)
        return answer(asks)

    network.answer = waiting
    try:
        yield opened
    finally:
        opened.set()
        network.answer = answer


@pytest.fixture
def gate(studio):
    with gated(studio) as opened:
        yield opened


@pytest.fixture(scope="module")
def http(server):
    with asking(server) as client:
        yield client


@pytest.fixture
def own(studio):
    """A studio that may be ended."""
    made = Studio(studio.pipe)
    yield made
    made.close()


@contextmanager
def client_of(studio, **how):
    with running(studio, **how) as port, httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=30) as client:
        yield client


@pytest.fixture
def pool():
    with ThreadPoolExecutor(8) as threads:
        yield threads


def paint(http, **more):
    return http.post("/sdapi/v1/txt2img", json={**ORDER, **more})


def send_and_leave(http, path, body):
    """A request whose client is gone before anything is answered."""
    text = json.dumps(body).encode()
    head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: {len(text)}"
    with socket.create_connection(("127.0.0.1", http.base_url.port)) as line:
        line.sendall(head.encode() + b"\r\n\r\n" + text)
        yield  # whatever is to happen before it leaves


# ---- those who leave


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/sdapi/v1/txt2img", ORDER),
        ("/v1/images/generations", GENERATION),
        ("/v1/images/generations", {**GENERATION, "stream": True, "partial_images": 1}),
    ],
    ids=["a1111", "openai", "openai stream"],
)
def test_a_job_ends_with_its_client(studio, gate, http, pool, path, body):
    first = pool.submit(paint, http)
    wait_until(lambda: studio.current and studio.current.began_s)
    for _ in send_and_leave(http, path, body):
        wait_until(lambda: len(studio.active) == 2)
    wait_until(lambda: len(studio.active) == 1)  # though it has not begun: the engine is busy with the first
    gate.set()
    assert first.result().status_code == 200 and not studio.active
    wait_until(lambda: not studio.engine._works)


def test_a_stream_that_nobody_begins_to_read_leaves_no_job(studio, http):
    for _ in range(5):
        for _ in send_and_leave(http, "/v1/images/generations", {**GENERATION, "stream": True}):
            pass
    assert paint(http).status_code == 200
    wait_until(lambda: not studio.active)


def test_what_is_remembered_holds_no_pictures(studio, http):
    paint(http, force_task_id="mine", n_iter=2)
    job = studio.jobs["mine"]
    assert job.done == 4 and not job.active and job.preview is None and not job.works
    assert not any("picture" in name or name in ("plan", "pipe") for name in vars(job))


# ---- those who wait


def test_a_job_that_waits_too_long_is_answered_503(studio, gate, http, pool, monkeypatch):
    first = pool.submit(paint, http)
    wait_until(lambda: studio.current and studio.current.began_s)
    monkeypatch.setattr(studio, "patience_s", 0.05)
    for path, body in (("/sdapi/v1/txt2img", ORDER), ("/v1/images/generations", GENERATION)):
        late = http.post(path, json=body)
        assert late.status_code == 503 and int(late.headers["retry-after"]) >= 1 and late.headers["x-task-id"]
        assert "waited 0.05 s" in late.text
    gate.set()
    assert first.result().status_code == 200  # it began in time


def test_a_stream_that_cannot_begin_has_a_status(studio, gate, http, pool, monkeypatch):
    first = pool.submit(paint, http)
    wait_until(lambda: studio.current and studio.current.began_s)
    stream = {**GENERATION, "stream": True}
    monkeypatch.setattr(studio.engine, "waiting", 0)
    full = http.post("/v1/images/generations", json=stream)
    assert full.status_code == 429 and int(full.headers["retry-after"]) >= 1
    assert full.json()["error"]["type"] == "rate_limit_error"
    monkeypatch.undo()
    monkeypatch.setattr(studio, "patience_s", 0.05)
    late = http.post("/v1/images/generations", json=stream)
    assert late.status_code == 503 and "waited" in late.json()["error"]["message"]
    gate.set()
    assert first.result().status_code == 200 and not studio.active


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/sdapi/v1/txt2img", ORDER),
        ("/v1/images/generations", GENERATION),
        ("/v1/images/generations", {**GENERATION, "stream": True}),
    ],
)
def test_a_fault_of_ours_is_500_without_its_words(studio, http, monkeypatch, path, body):
    monkeypatch.setattr(studio.engine.network, "answer", lambda asks: {}["somewhere/else.py"])
    answer = http.post(path, json=body)
    assert answer.status_code == 500 and "log" in answer.text and "somewhere" not in answer.text
    assert set(answer.json()) == ({"detail"} if "sdapi" in path else {"error"})
    monkeypatch.undo()
    assert http.post(path, json=body).status_code == 200 and not studio.active


def test_owners_take_turns_however_much_one_asks(studio, gate):
    ended = []

    async def ask(owner, count):
        order = await studio.open(Request("a cat", steps=1, count=count, width=64, height=64), owner=owner)
        async for event in studio.run(order):
            if hasattr(event, "picture"):
                ended.append(owner)

    async def all_of_them():
        greedy = asyncio.create_task(ask("greedy", 8))
        while not studio.active:
            await asyncio.sleep(0.01)
        later = [asyncio.create_task(ask(owner, 2)) for owner in ("anne", "ben")]
        while len(studio.active) < 3:
            await asyncio.sleep(0.01)
        gate.set()
        await asyncio.gather(greedy, *later)

    asyncio.run(all_of_them())
    assert ended[-5:] == ["greedy"] * 5 and sorted(ended[2:5]) in (
        ["anne", "ben", "greedy"],
        ["anne", "anne", "ben"],
        ["anne", "ben", "ben"],
    )


def test_keys_are_owners_where_there_are_several(own, pool):
    with client_of(own, key=["one", "two"]) as http, gated(own) as gate:
        heads = [{"authorization": f"Bearer {key}"} for key in ("two", "one", "no")]
        sent = [pool.submit(http.post, "/sdapi/v1/txt2img", json=ORDER, headers=head) for head in heads]
        wait_until(lambda: len(own.engine._works) == 2)
        assert {work.owner for work in own.engine._works} == {"key 1", "key 2"}
        gate.set()
        assert [one.result().status_code for one in sent] == [200, 200, 401]


# ---- the end


def test_told_to_leave_it_ends_what_has_begun_and_turns_the_rest_away(own, pool):
    with client_of(own) as http, gated(own) as gate:
        begun = pool.submit(paint, http, n_iter=2)
        wait_until(lambda: own.current and own.current.began_s)
        waiting = pool.submit(paint, http)
        wait_until(lambda: len(own.active) == 2)
        leaving = pool.submit(asyncio.run, own.leave(10))
        turned = waiting.result()
        assert turned.status_code == 503 and turned.headers["retry-after"] and "shutting down" in turned.text
        assert http.get("/readyz").status_code == 503 and http.get("/healthz").status_code == 200
        assert paint(http).status_code == 503
        assert http.post("/v1/images/generations", json=GENERATION).json()["error"]["type"] == "server_error"
        assert not leaving.done()
        gate.set()
        assert begun.result().status_code == 200 and len(begun.result().json()["images"]) == 2
        leaving.result()


def test_what_does_not_end_in_time_is_turned_away(own, pool):
    with client_of(own) as http, gated(own):
        begun = pool.submit(paint, http)
        wait_until(lambda: own.current and own.current.began_s)
        asyncio.run(own.leave(0.05))
        assert begun.result().status_code == 503


def test_an_engine_that_ends_answers_503(own):
    async def ask():
        order = await own.open(Request("a cat", steps=2, width=64, height=64), owner="me")
        asyncio.get_running_loop().call_later(0.1, lambda: threading.Thread(target=own.close).start())
        asyncio.get_running_loop().call_later(0.2, gate.set)
        await own.pictures(order, gone=asyncio.Event().wait())

    with gated(own) as gate, pytest.raises(LeavingError):
        asyncio.run(ask())


# ---- what is written down


@pytest.fixture
def lines(monkeypatch):
    written, log = [], logging.getLogger("fewstep.serve")
    listener = logging.Handler()
    listener.emit = lambda record: written.append(json.loads(Lines("json").format(record)))
    monkeypatch.setattr(log, "level", logging.INFO)
    log.addHandler(listener)
    yield written
    log.removeHandler(listener)


def test_one_line_for_each_request_and_job_without_prompts_and_keys(own, lines):
    with running(own, around=Journal, key="s3cret") as port:
        base = f"http://127.0.0.1:{port}"
        headers = {"authorization": "Bearer s3cret"}
        answer = httpx.post(f"{base}/sdapi/v1/txt2img?ticket=word", json=ORDER, headers=headers, timeout=30)
        httpx.get(f"{base}/sdapi/v1/options", headers={"authorization": "Bearer wr0ng"})
        wait_until(lambda: len(lines) == 3)
    job, request, refused = lines
    assert (job["event"], job["outcome"], job["evaluations"], job["pictures"]) == ("job", "done", 2, 1)
    assert job["job"] == request["job"] == answer.headers["x-task-id"] and job["ms"] >= job["queue_ms"] >= 0
    assert (request["method"], request["path"], request["status"]) == ("POST", "/sdapi/v1/txt2img", 200)
    assert refused["status"] == 401 and request["ms"] >= job["ms"]
    assert not any(word in json.dumps(lines) for word in ("secret", "s3cret", "wr0ng", "ticket"))


def test_prompts_are_written_where_they_are_asked_for(studio, http, lines, monkeypatch):
    monkeypatch.setattr(studio, "log_prompts", True)
    bad = {**ORDER, "prompt": "line\nbreak \x1b[31m"}
    http.post("/sdapi/v1/txt2img", json=bad)
    assert lines[0]["prompt"] == bad["prompt"]
    record = logging.LogRecord("x", 20, "", 0, "job", None, None)
    record.facts = {"prompt": bad["prompt"]}
    assert all(line.isprintable() for line in (Lines("plain").format(record), Lines("json").format(record)))


def test_lines_go_to_stderr(capsys):
    log = logging.getLogger("fewstep.serve")
    before = log.handlers[:], log.level, log.propagate
    try:
        journal.begin("plain")
        journal.say("model", name="a b", error=None)
        log.handlers[0].settle(10)
        assert capsys.readouterr().err.endswith('Z model name="a b"\n')
        log.error("a frame failed", exc_info=ValueError("five"))
        log.handlers[0].settle(10)
        said = capsys.readouterr().err
        assert 'error message="a frame failed" trace=' in said and "five" in said and said.count("\n") == 1
    finally:
        log.handlers[:], log.level, log.propagate = before


def test_a_pipe_that_nobody_reads_holds_nobody_up(monkeypatch):
    monkeypatch.setattr(journal, "WAITING", 10)
    reading, writing = (os.fdopen(end, mode) for end, mode in zip(os.pipe(), "rw", strict=True))
    lines = journal.Aside(logging.StreamHandler(writing))
    log = logging.Logger("apart")
    log.addHandler(lines)
    for number in range(5000):  # far more than a pipe holds
        log.error("%d %s", number, "x" * 100)
    lines.settle(0.05)
    assert reading.readline().startswith("0 x") and reading.readline().startswith("1 x")
    threading.Thread(target=reading.read, daemon=True).start()
    lines.settle(10)
    log.error("there is room again")
    lines.settle(10)
    assert not lines.queue.unfinished_tasks


def test_metrics_count(own):
    with client_of(own) as http:
        for steps, status in ((2, 200), (2, 200), (0, 400)):
            assert paint(http, steps=steps).status_code == status
        http.get("/nothing")
        assert http.request("BREW", "/nothing").status_code == 404
        lines = http.get("/metrics").text.splitlines()
    found = dict(line.rsplit(" ", 1) for line in lines if line[0] != "#")
    assert float(found['fewstep_jobs_total{outcome="done"}']) == 2 == float(found["fewstep_pictures_total"])
    assert float(found["fewstep_evaluations_total"]) == 4 and float(found["fewstep_jobs_active"]) == 0
    route = 'method="POST",route="/sdapi/v1/txt2img"'
    assert float(found[f'fewstep_requests_total{{{route},status="200"}}']) == 2
    assert float(found[f'fewstep_requests_total{{{route},status="400"}}']) == 1
    assert float(found['fewstep_requests_total{method="GET",route="other",status="404"}']) == 1
    assert float(found['fewstep_requests_total{method="other",route="other",status="404"}']) == 1
    assert not any("BREW" in name or "nothing" in name for name in found)
    assert float(found['fewstep_job_seconds_bucket{le="+Inf"}']) == 2 == float(found["fewstep_job_seconds_count"])
    assert float(found["fewstep_models_bytes"]) == own.models.first.size > 0


@pytest.mark.parametrize("given", ["a\r\nx-evil: 1", "é", "", "a" * 101, 5, None])
def test_a_task_id_that_cannot_stand_in_a_header_is_not_taken(http, given):
    answer = paint(http, force_task_id=given)
    assert answer.status_code == 200 and answer.headers["x-task-id"] != given and "x-evil" not in answer.headers


def test_two_tasks_of_one_name(studio, gate, http, pool):
    first = pool.submit(paint, http, force_task_id="task(1)")
    wait_until(lambda: studio.active)
    second = paint(http, force_task_id="task(1)")
    assert second.status_code == 400 and "task(1)" in second.json()["detail"]
    gate.set()
    assert first.result().headers["x-task-id"] == "task(1)"
    assert paint(http, force_task_id="task(1)").status_code == 200


def test_streams_say_their_task(http, studio):
    with http.stream("POST", "/v1/images/generations", json={**GENERATION, "stream": True}) as answer:
        assert answer.headers["x-task-id"] and "completed" in "".join(answer.iter_text())
    assert answer.headers["x-task-id"] in studio.jobs
