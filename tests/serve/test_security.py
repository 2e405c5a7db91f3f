"""A test for each rule of the door, and of what may be uploaded."""

import base64
import io
import time
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from fewstep.errors import ImageError
from fewstep.serve.security import ADDRESSES, COOKIE, FAILURES, WITHIN_S, Door
from fewstep.serve.uploads import from_base64, from_bytes

starlette = pytest.importorskip("starlette")
from starlette.applications import Starlette  # noqa: E402
from starlette.responses import JSONResponse  # noqa: E402
from starlette.routing import Route, WebSocketRoute  # noqa: E402
from starlette.testclient import TestClient  # noqa: E402
from starlette.websockets import WebSocketDisconnect  # noqa: E402


async def echo(request):
    return JSONResponse({"bytes": len(await request.body())})


async def greet(socket):
    await socket.accept()
    await socket.send_text("in")
    await socket.close()


def door(**how):
    routes = [Route(path, echo, methods=["GET", "POST"]) for path in ("/", "/healthz", "/thing")]
    return Door(Starlette(routes=[*routes, WebSocketRoute("/live", greet)]), **how)


def client(base="http://localhost:7860", **how):
    return TestClient(door(**how), base_url=base)


def enter(one, path="/live", **headers):
    try:
        with one.websocket_connect(f"ws://localhost:7860{path}", headers=headers) as socket:
            return socket.receive_text()
    except WebSocketDisconnect as refused:
        return refused.code - 4000


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1:7860", "LOCALHOST:1", "[::1]:7860"])
def test_this_machine_is_answered(host):
    assert client().get("/thing", headers={"host": host}).status_code == 200


@pytest.mark.parametrize("host", ["evil.example", "localhost.evil.example", "127.0.0.1.nip.io:7860", "", "[::2]"])
def test_another_host_name_is_refused(host):
    answer = client().get("/thing", headers={"host": host})
    assert answer.status_code == 421 and "host name" in answer.json()["detail"]
    assert enter(client(), host=host) == 421


def test_a_named_host():
    assert client(hosts=["Box.lan"]).get("/thing", headers={"host": "box.lan:7860"}).status_code == 200


@pytest.mark.parametrize(
    "origin", ["http://evil.example", "null", "http://localhost:9999", "http://localhost:7860.evil"]
)
def test_another_sites_page_is_refused(origin):
    one = client()
    assert one.post("/thing", headers={"origin": origin}).status_code == 403
    assert enter(one, origin=origin, host="localhost:7860") == 403
    assert one.get("/thing", headers={"origin": origin}).status_code == 200  # changes nothing, and may not be read
    assert "access-control-allow-origin" not in one.get("/thing", headers={"origin": origin}).headers


def test_the_own_page_and_programs_may_write():
    one = client()
    assert one.post("/thing", headers={"origin": "http://localhost:7860"}).status_code == 200
    assert one.post("/thing").status_code == 200
    assert enter(one) == "in"


BASIC = base64.b64encode(b"anybody:s3cret").decode()


@pytest.mark.parametrize(
    "headers",
    [{"authorization": "Bearer s3cret"}, {"authorization": f"Basic {BASIC}"}, {"cookie": f"a=b; {COOKIE}=s3cret"}],
)
def test_the_key_opens(headers):
    one = client(key="s3cret")
    assert one.get("/thing", headers=headers).status_code == 200
    assert enter(one, **headers) == "in"


@pytest.mark.parametrize(
    "headers",
    [{}, *({"authorization": text} for text in ("Bearer S3CRET", "Bearer ", "Basic !!")), {"cookie": f"{COOKIE}=x"}],
)
def test_nothing_else_does(headers):
    one = client(key="s3cret")
    answer = one.get("/thing", headers=headers)
    assert answer.status_code == 401 and "Basic" in answer.headers["www-authenticate"]
    assert answer.json()["error"]["type"] == "invalid_request_error"
    assert enter(one, **headers) == 401
    assert one.get("/healthz").status_code == 200


def test_wrong_keys_are_counted():
    one = client(key="s3cret")
    for _ in range(FAILURES):
        assert one.get("/thing", headers={"authorization": "Bearer no"}).status_code == 401
    answer = one.get("/thing", headers={"authorization": "Bearer s3cret"})
    assert answer.status_code == 429 and answer.headers["retry-after"] == "60"


def test_wrong_keys_are_remembered_of_so_many_addresses_only():
    gate, now = door(key="s3cret"), time.monotonic()
    for number in range(ADDRESSES + 50):
        gate._count_failure(f"address {number}", now)
    assert len(gate.failures) == ADDRESSES and "address 49" not in gate.failures
    gate._count_failure("later", now + WITHIN_S + 1)
    assert list(gate.failures) == ["later"]
    client_ = TestClient(gate, base_url="http://localhost:7860")
    client_.get("/thing")  # without any key nothing is counted
    assert list(gate.failures) == ["later"]


def test_a_ticket_opens_one_socket_once():
    gate = door(key="s3cret")
    one = TestClient(gate, base_url="http://localhost:7860")
    word = gate.ticket()
    assert enter(one, f"/live?ticket={word}") == "in"
    assert enter(one, f"/live?ticket={word}") == 401
    assert enter(one, f"/live?ticket={gate.ticket(seconds=-1)}") == 401
    assert one.get(f"/thing?ticket={gate.ticket()}").status_code == 401


def test_a_body_has_a_limit_whatever_its_header_says():
    one = client(body_limit=1000)
    assert one.post("/thing", content=b"x" * 1000).json() == {"bytes": 1000}
    assert one.post("/thing", content=b"x" * 1001).status_code == 413
    assert one.post("/thing", content=(b"x" * 600 for _ in range(9))).status_code == 413
    assert one.post("/thing", headers={"content-length": "many"}).status_code == 400


def test_every_answer_has_the_safe_headers():
    headers = client().get("/").headers
    assert headers["x-content-type-options"] == "nosniff" and "default-src 'self'" in headers["content-security-policy"]
    assert "unsafe" not in headers["content-security-policy"]


# ---- uploads


def data(image, kind="PNG", **how):
    stream = io.BytesIO()
    image.save(stream, kind, **how)
    return stream.getvalue()


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
def test_pictures_come_in(kind):
    image = Image.new("RGB", (30, 20), "red")
    found = from_base64("data:image/x;base64," + base64.b64encode(data(image, kind)).decode())
    assert found.size == (30, 20) and found.getpixel((5, 5))[0] > 240


def bomb(side):
    """A PNG of `side` x `side` grey pixels in a few kilobytes."""
    import struct

    def chunk(name, body):
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    head = struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0)
    rows = zlib.compress(bytes(side + 1) * 64, 9)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


@pytest.mark.parametrize("side", [4097, 9000, 100_000])
def test_a_picture_that_is_too_large_is_not_decoded(side):
    started = time.process_time()
    with pytest.raises(ImageError, match="at most 4096 on a side|cannot be read|can be read"):
        from_bytes(bomb(side))
    assert time.process_time() - started < 0.1


GIF = data(Image.new("P", (4, 4)), "GIF")


@pytest.mark.parametrize(
    "bad", [b"", b"GIF89a", GIF, b"\x80\x04pickle", data(Image.new("RGB", (9, 9)))[:40], b"<svg/>"]
)
def test_what_is_no_picture(bad):
    with pytest.raises(ImageError) as said:
        from_bytes(bad)
    assert str(said.value) == "The image is not a PNG, JPEG or WebP that can be read."


@pytest.mark.parametrize("bad", ["/etc/passwd", "http://evil.example/a.png", "../a.png", "%%%", None, 3])
def test_no_text_is_ever_a_path_or_an_address(bad):
    with pytest.raises(ImageError, match="base64"):
        from_base64(bad)


@given(st.binary(max_size=200))
def test_any_bytes(body):
    with pytest.raises(ImageError):
        from_bytes(body)
