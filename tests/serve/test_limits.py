"""Rule 4 of the server's security: what bodies, pictures and orders may be."""

import io
import socket
import struct
import threading
import time
import zlib
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest
from PIL import Image

import fewstep
from fewstep.serve import uploads
from tests.serve.pictures import file_of, text_of
from tests.serve.running import running

FEW = {"prompt": "a cat", "steps": 1, "seed": 1}


def test_rule_4_a_long_body_is_answered_413(other):
    with running(other, body_limit=5000) as port:
        url = f"http://127.0.0.1:{port}/sdapi/v1/txt2img"
        assert httpx.post(url, json={**FEW, "x": "y" * 4000}).status_code == 200
        declared = httpx.post(url, json={**FEW, "x": "y" * 6000})
        assert declared.status_code == 413 and "5000 bytes" in declared.json()["detail"]
        for path in ("/sdapi/v1/txt2img", "/v1/images/generations", "/v1/images/edits"):
            kind = "multipart/form-data; boundary=x" if "edits" in path else "application/json"
            head = (
                f"POST {path} HTTP/1.1\r\nhost: localhost\r\ncontent-type: {kind}\r\ntransfer-encoding: chunked\r\n\r\n"
            )
            part = b'--x\r\ncontent-disposition: form-data; name="image"; filename="a"\r\n\r\n'.ljust(4096, b"x")
            with socket.create_connection(("127.0.0.1", port), timeout=10) as line:
                line.sendall(head.encode() + b"1000\r\n" + part + b"\r\n")
                line.sendall(b"1000\r\n" + b"x" * 4096 + b"\r\n")
                assert line.recv(100).startswith(b"HTTP/1.1 413"), path
        assert httpx.post(url, json=FEW).status_code == 200


def png_of(side):
    """A whole PNG of side x side white pixels: hundreds of times smaller than what it becomes."""

    def chunk(name, body):
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    press = zlib.compressobj(9)
    row = bytes([0]) + b"\xff" * side
    rows = b"".join(press.compress(row) for _ in range(side)) + press.flush()
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


def test_rule_4_eighty_one_megapixels_are_refused_by_their_header(http):
    bomb = png_of(9000)
    assert len(bomb) < 300_000 and Image.open(io.BytesIO(bomb)).size == (9000, 9000)
    began = time.thread_time()
    with pytest.raises(fewstep.errors.ImageError, match="9000x9000 pixels, but at most 4096"):
        uploads.from_bytes(bomb)
    assert time.thread_time() - began < 0.05  # decoding takes more than a second
    for path, body in (
        ("/sdapi/v1/png-info", {"image": text_of(bomb)}),
        ("/sdapi/v1/img2img", {**FEW, "init_images": [text_of(bomb)]}),
        ("/sdapi/v1/extra-single-image", {"image": text_of(bomb)}),
    ):
        answer = http.post(path, json=body)
        assert answer.status_code == 400 and "at most 4096" in answer.json()["detail"]
    answer = http.post("/v1/images/edits", data={"prompt": "x"}, files={"image": bomb})
    assert answer.status_code == 400 and "at most 4096" in answer.json()["error"]["message"]


RED = Image.effect_noise((64, 64), 90).convert("RGB")


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
def test_rule_4_truncated_files_are_refused_at_any_length(kind):
    whole = file_of(RED, kind)
    for share in (0.1, 0.5, 0.9):
        with pytest.raises(fewstep.errors.ImageError, match="can be read"):
            uploads.from_bytes(whole[: int(len(whole) * share)])


@pytest.mark.parametrize("kind", ["GIF", "TIFF", "BMP", "PPM", "ICO", "TGA", "PDF", "SVG"])
def test_rule_4_other_formats_are_refused(http, kind):
    data = b"<svg xmlns='http://www.w3.org/2000/svg'/>" if kind == "SVG" else file_of(RED, kind)
    answer = http.post("/sdapi/v1/img2img", json={**FEW, "init_images": [text_of(data)]})
    assert answer.json() == {"detail": "The image is not a PNG, JPEG or WebP that can be read."}


@pytest.mark.parametrize("kind", ["PNG", "WEBP"])
def test_rule_4_of_what_moves_the_first_picture_alone(kind):
    colours = ("red", "green", "blue")
    frames = [Image.new("RGB", (16, 16), colour) for colour in colours]
    data = file_of(frames[0], kind, save_all=True, append_images=frames[1:])
    assert Image.open(io.BytesIO(data)).n_frames == 3
    found = uploads.from_bytes(data).convert("RGB").getpixel((8, 8))
    assert found[0] > 240 and max(found[1:]) < 10


def test_rule_4_pictures_are_read_by_few_threads_and_not_for_ever(other, monkeypatch):
    at_once, most, gate = [], [], threading.Event()

    def slow(data, what="image"):
        at_once.append(1)
        most.append(len(at_once))
        gate.wait(10)
        at_once.pop()
        return RED

    monkeypatch.setattr("fewstep.serve.a1111_orders.from_base64", slow)
    monkeypatch.setattr(uploads, "PATIENCE_S", 0.3)
    order = {**FEW, "init_images": ["x"]}
    with running(other) as port, ThreadPoolExecutor(6) as pool:
        url = f"http://127.0.0.1:{port}"
        answers = [pool.submit(httpx.post, f"{url}/sdapi/v1/img2img", json=order, timeout=20) for _ in range(6)]
        assert httpx.get(f"{url}/healthz", timeout=5).status_code == 200  # the loop goes on
        found = [answer.result() for answer in answers]
        gate.set()
    assert {answer.status_code for answer in found} == {429} and max(most) == uploads.THREADS
    assert all(int(answer.headers["retry-after"]) > 0 for answer in found)


@pytest.mark.parametrize(
    ("order", "said"),
    [
        ({"prompt": "a" * 10_001}, "prompt has 10001 characters"),
        ({"negative_prompt": "a" * 10_001}, "negative_prompt has"),
        ({"batch_size": 17}, "17 pictures are more than 16"),
        ({"batch_size": 5, "n_iter": 4}, "20 pictures are more than 16"),
        ({"n_iter": 10**30}, "count is"),
        ({"batch_size": 5, "width": 2048, "height": 2048}, "5 of 2048x2048 are"),
        ({"width": 100_000}, "width is 100000"),
        ({"steps": 51, "override_settings": {"fewstep_policy": "respect"}}, "51 steps are more than the 50"),
        ({"enable_hr": True, "hr_scale": 8, "width": 1024, "height": 1024}, "of 8192x8192 are"),
    ],
)
def test_rule_4_orders_have_limits(http, order, said):
    answer = http.post("/sdapi/v1/txt2img", json={**FEW, **order})
    assert answer.status_code == 400 and said in answer.json()["detail"]


@pytest.mark.parametrize(
    ("order", "said"),
    [
        ({"prompt": "a" * 10_001}, "prompt: String should have at most"),
        ({"n": 11}, "n: Input should be less than"),
        ({"steps": 51}, "51 steps are more than the 50"),
        ({"size": "2048x2048", "n": 5}, "5 of 2048x2048 are"),
        ({"size": "64x64", "n": 2, "hires_scale": 8, "hires_steps": 60}, "60 steps are more than"),
    ],
)
def test_rule_4_holds_for_openais_orders_too(http, order, said):
    answer = http.post("/v1/images/generations", json={**FEW, **order})
    assert answer.status_code == 400 and said in answer.json()["error"]["message"]
