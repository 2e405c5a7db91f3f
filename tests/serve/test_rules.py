"""The rules of the server's security, numbered: 1 where it listens; 2 keys; 3 hosts, origins, kinds of bodies; 5 names,
not paths; 6 no addresses are fetched; 7 what answers carry; 8 what errors keep to themselves.

What the door alone shows is in test_security.py, rule 4 (limits) in test_limits.py, 9 and 10 (no pickles, no calls)
in test_watched.py, 11 (fuzzers) in test_fuzz.py.
"""

import secrets
import socket
from functools import lru_cache
from pathlib import Path
from types import SimpleNamespace

import pytest
from PIL import Image

import fewstep
from fewstep.cli.main import main
from fewstep.engine.work import BusyError
from fewstep.serve import security
from tests.serve.null import NullPipeline
from tests.serve.pictures import file_of, text_of

BASE = "http://localhost:7860"
RED = Image.effect_noise((64, 64), 90).convert("RGB")
FEW = {"prompt": "a cat", "steps": 1, "seed": 1}


@lru_cache
def app_of(studio):
    from fewstep.serve.app import application

    return application(studio)


def in_process(studio, **door):
    from starlette.testclient import TestClient

    return TestClient(security.Door(app_of(studio), **door), base_url=BASE, raise_server_exceptions=False)


# ---- 1 and 2: where it listens, and keys


def started(monkeypatch, tmp_path, *arguments):
    """(exit code, address, door) of `fewstep serve`, which ends where it would begin to listen."""
    seen = {}

    def run(server):
        seen.update(host=server.config.host, door=server.config.app.app)

    monkeypatch.setattr("fewstep.serve.server.Server.run", run)
    monkeypatch.setattr("fewstep.serve.journal.begin", lambda form: None)
    monkeypatch.setattr("fewstep.pipeline.load", lambda *args, **how: NullPipeline(tmp_path))
    code = main(["serve", *arguments])
    return code, seen.get("host"), seen.get("door")


def test_rule_1_this_machine_alone_unless_asked(monkeypatch, tmp_path, capsys):
    code, host, door = started(monkeypatch, tmp_path)
    assert (code, host, door.keys) == (0, "127.0.0.1", ())
    code, host, door = started(monkeypatch, tmp_path, "--host", "0.0.0.0")
    assert (code, host) == (0, "0.0.0.0") and len(door.keys[0]) >= 20 and door.keys[0] in capsys.readouterr().err
    assert started(monkeypatch, tmp_path, "--host", "0.0.0.0")[2].keys != door.keys
    assert started(monkeypatch, tmp_path, "--host", "0.0.0.0", "--insecure")[2].keys == ()
    assert started(monkeypatch, tmp_path, "--api-key", "mine")[2].keys == ("mine",)


@pytest.mark.parametrize("key", ["", "  "])
def test_rule_1_an_empty_key_is_none_and_refused(monkeypatch, tmp_path, capsys, key):
    assert started(monkeypatch, tmp_path, "--host", "0.0.0.0", "--api-key", key)[0] == 2
    assert "API key is empty" in capsys.readouterr().err
    with pytest.raises(fewstep.errors.RequestError, match="empty"):
        security.Door(None, key=key)


def test_rule_2_keys_are_compared_in_constant_time(null, monkeypatch):
    seen = []
    real = secrets.compare_digest
    monkeypatch.setattr(security.secrets, "compare_digest", lambda one, other: seen.append(one) or real(one, other))
    one = in_process(null, key="s3cret")
    assert one.get("/v1/models", headers={"authorization": "Bearer s3cret"}).status_code == 200
    assert one.get("/v1/models", headers={"authorization": "Bearer s3cre"}).status_code == 401
    assert seen == [b"s3cret", b"s3cre"]


def test_rule_2_a_client_that_guessed_waits_a_minute_and_others_do_not(null, monkeypatch):
    clock = [1000.0]
    monkeypatch.setattr(security, "time", SimpleNamespace(monotonic=lambda: clock[0]))  # not the loops' own
    one = in_process(null, key="s3cret")
    wrong, right = ({"authorization": f"Bearer {word}"} for word in ("no", "s3cret"))
    answers = [one.get("/v1/models", headers=wrong).status_code for _ in range(security.FAILURES + 1)]
    assert answers == [401] * security.FAILURES + [429]
    refused = one.get("/v1/models", headers=right)
    assert refused.status_code == 429 and refused.json()["error"]["type"] == "rate_limit_error"
    neighbour = type(one)(one.app, base_url=BASE, client=("192.0.2.7", 5))
    assert neighbour.get("/v1/models", headers=right).status_code == 200
    clock[0] += security.WITHIN_S + 1
    assert one.get("/v1/models", headers=right).status_code == 200


@pytest.mark.parametrize(
    "path", ["/v1/models", "/sdapi/v1/options", "/metrics", "/openapi.json", "/internal/pending-tasks"]
)
def test_rule_2_everything_that_says_something_wants_the_key(null, path):
    assert in_process(null, key="s3cret").get(path).status_code == 401


# ---- 3: hosts, origins, kinds of bodies


def json_routes(app):
    for path, methods in app.openapi()["paths"].items():
        for method, what in methods.items():
            if "application/json" in what.get("requestBody", {}).get("content", {}):
                yield method, path


def test_rule_3_json_is_taken_as_json_alone(null, http):
    from fewstep.serve.app import application

    found = list(json_routes(application(null)))
    assert {path for _, path in found} >= {"/sdapi/v1/txt2img", "/sdapi/v1/options", "/v1/images/generations"}
    for method, path in found:
        for kind in ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x", ""):
            answer = http.request(
                method, path, content=b'{"prompt": "x"}', headers={"content-type": kind} if kind else {}
            )
            assert answer.status_code == 415 and "Content-Type: application/json" in answer.text, (path, kind)


@pytest.mark.parametrize(
    "origin", ["http://evil.example", "null", "http://[", "", "http://localhost:7860@evil.example"]
)
def test_rule_3_no_page_of_another_site_orders_or_learns_anything(null, origin):
    one = in_process(null)
    assert one.post("/sdapi/v1/txt2img", json=FEW, headers={"origin": origin}).status_code == 403
    asked = {
        "origin": origin,
        "access-control-request-method": "POST",
        "access-control-request-headers": "content-type",
    }
    assert not [name for name in one.options("/sdapi/v1/txt2img", headers=asked).headers if "access-control" in name]
    assert one.get("/v1/models", headers={"host": "evil.example"}).status_code == 421


# ---- 5 and 6: names are not paths, and not addresses


PATHS = [
    "/etc/passwd",
    "../secret",
    "..\\secret",
    "C:\\secret",
    "~root",
    "a/../../b.safetensors",
    "evil.ckpt",
    "evil.pt",
]


@pytest.mark.parametrize("path", PATHS)
def test_rule_5_models_loras_and_upscalers_are_names(http, path):
    assert http.post("/sdapi/v1/options", json={"sd_model_checkpoint": path}).status_code in (400, 404)
    assert http.get(f"/v1/models/{path}").status_code == 404
    for upscaler in (path, f"{path}.onnx"):
        order = {"image": text_of(file_of(RED)), "upscaler_1": upscaler}
        assert http.post("/sdapi/v1/extra-single-image", json=order).status_code == 400
        second = {"enable_hr": True, "hr_scale": 2, "hr_upscaler": upscaler}
        assert http.post("/sdapi/v1/txt2img", json={**FEW, **second}).status_code == 400
    answer = http.post("/sdapi/v1/txt2img", json={**FEW, "prompt": f"a <lora:{path}:1>"})
    said = ("is a path", "There is no LoRA", "has the weight 'secret'")
    assert answer.status_code == 400 and any(words in answer.text for words in said)


def test_rule_6_addresses_are_not_fetched(http):
    with socket.create_server(("127.0.0.1", 0)) as trap:
        trap.settimeout(0.2)
        url = f"http://127.0.0.1:{trap.getsockname()[1]}/a.png"
        for path, body in (
            ("/sdapi/v1/img2img", {**FEW, "init_images": [url]}),
            ("/sdapi/v1/img2img", {**FEW, "init_images": [text_of(file_of(RED))], "mask": url}),
            ("/sdapi/v1/png-info", {"image": url}),
            ("/sdapi/v1/extra-single-image", {"image": url}),
        ):
            assert http.post(path, json=body).status_code == 400
        answer = http.post("/v1/images/edits", data={"prompt": "x", "image": url})
        assert answer.status_code == 400 and "No image was sent" in answer.text
        with pytest.raises(TimeoutError):
            trap.accept()


# ---- 7 and 8: what answers carry, and what they keep


def test_rule_7_every_answer_of_every_kind_has_the_safe_headers(null):
    one = in_process(null, key="k", body_limit=3000)
    key = {"authorization": "Bearer k"}
    answers = [
        one.get("/healthz"),
        one.get("/v1/models"),
        one.get("/nowhere", headers=key),
        one.get("/v1/models", headers={"host": "evil.example"}),
        one.post("/sdapi/v1/txt2img", json=FEW, headers=key),
        one.post("/sdapi/v1/txt2img", json={"prompt": 5}, headers=key),
        one.post("/sdapi/v1/txt2img", json={"prompt": "x" * 4000}, headers=key),
        one.post("/v1/images/generations", json={**FEW, "stream": True}, headers=key),
    ]
    assert [answer.status_code for answer in answers] == [200, 401, 404, 421, 200, 400, 413, 200]
    for answer in answers:
        for name, value in security.HEADERS.items():
            assert answer.headers[name] == value
        assert "text/html" not in answer.headers["content-type"] and "server" not in answer.headers


def test_rule_8_no_folder_of_this_machine_is_named(null, tmp_path, monkeypatch):
    from fewstep.checkpoints.shelves import LoraShelf

    monkeypatch.setattr(null.pipe, "_lora_shelf", LoraShelf(tmp_path))
    one = in_process(null)
    for path, body in (
        ("/sdapi/v1/txt2img", {**FEW, "prompt": "a <lora:nothing:1>"}),
        ("/v1/images/generations", {**FEW, "prompt": "a <lora:nothing:1>"}),
    ):
        answer = one.post(path, json=body)
        assert answer.status_code == 400 and "There is no LoRA 'nothing'" in answer.text
        assert str(tmp_path.parent) not in answer.text and tmp_path.name in answer.text


def test_rule_8_a_fault_of_ours_says_nothing_of_the_inside(null, monkeypatch):
    def broken(request):
        raise RuntimeError(f"secret at {Path(__file__)}")

    monkeypatch.setattr(null.pipe, "plan", broken)
    one = in_process(null)
    for path in ("/sdapi/v1/txt2img", "/v1/images/generations"):
        answer = one.post(path, json=FEW)
        assert answer.status_code == 500 and "Its log says more" in answer.text and "secret" not in answer.text
    monkeypatch.undo()
    monkeypatch.setattr(null.pipe.runner, "decode", broken)
    streamed = one.post("/v1/images/generations", json={**FEW, "steps": 2, "stream": True})
    assert "event: error" in streamed.text and "secret" not in streamed.text


def test_rule_8_what_pillow_says_stays_here(http):
    for broken in (
        file_of(RED)[:200],
        b"RIFF\0\0\0\0WEBPVP8 ",
        b"\xff\xd8\xff\xe0" + bytes(90),
        b"\x89PNG\r\n\x1a\n" + bytes(50),
    ):
        answer = http.post("/sdapi/v1/png-info", json={"image": text_of(broken)})
        assert answer.json() == {"detail": "The image is not a PNG, JPEG or WebP that can be read."}


def test_busy_answers_say_when(null, monkeypatch):
    def full(work):
        raise BusyError("many are waiting", 2.4)

    monkeypatch.setattr(null.engine, "submit", full)
    one = in_process(null)
    for path, more in (
        ("/sdapi/v1/txt2img", {}),
        ("/v1/images/generations", {}),
        ("/v1/images/generations", {"stream": True}),
    ):
        answer = one.post(path, json={**FEW, **more})
        assert (answer.status_code, answer.headers["retry-after"]) == (429, "3")


def test_rule_10_no_address_of_others_stands_in_what_is_served(http):
    for path in ("/openapi.json", "/docs", "/"):
        answer = http.get(path)
        assert "//cdn." not in answer.text and '<script src="http' not in answer.text
