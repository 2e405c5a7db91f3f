"""Rule 11 of the server's security: whatever is sent, the answer is JSON in its documented form, and never a 5xx.

501 is an answer: what is known and not served. The live socket's frames are fuzzed in test_frames.py.
"""

import base64
import json
import math

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from fewstep.serve.limits import Limits
from tests.serve.null import NullPipeline
from tests.serve.pictures import file_of, text_of

EXAMPLES = pytest.mark.parametrize("examples", [8, pytest.param(500, marks=pytest.mark.slow)])
TINY = Image.effect_noise((16, 16), 90).convert("RGB")
WHOLE = [file_of(TINY, kind) for kind in ("PNG", "JPEG", "WEBP")]


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    from starlette.testclient import TestClient

    from fewstep.serve.app import application
    from fewstep.serve.jobs import Studio
    from fewstep.serve.security import Door

    studio = Studio(
        NullPipeline(tmp_path_factory.mktemp("fuzz")), limits=Limits(steps=8, count=3, pixels=3 * 128 * 128)
    )
    with TestClient(Door(application(studio)), base_url="http://localhost") as client:
        yield client


LETTERS = st.text(st.characters(exclude_categories=()), max_size=20)
SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.sampled_from(
        [0, 1, 2, -1, 7, 8, 64, 72, 128, 2**31, 2**63, 10**40, 0.0, 0.5, 1.0, 4.0, -0.5, 1e308, math.inf, math.nan]
    ),
    st.sampled_from(
        [
            "",
            "-1",
            "4",
            "0.5",
            "nan",
            "1e999",
            "None",
            "LCM",
            "Euler a",
            "karras",
            "Latent",
            "Lanczos",
            "../x",
            "respect",
        ]
    ),
    LETTERS,
)
VALUES = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(LETTERS, inner, max_size=3), max_leaves=6
)
PICTURES = (
    st.sampled_from([*map(text_of, WHOLE), "data:image/png;base64," + text_of(WHOLE[0]), "", "AAAA", "%%"]) | VALUES
)

ORDERS = {
    "prompt": VALUES, "negative_prompt": VALUES, "steps": VALUES, "cfg_scale": VALUES, "seed": VALUES, "width": VALUES,
    "height": VALUES, "batch_size": VALUES, "n_iter": VALUES, "sampler_name": VALUES, "sampler_index": VALUES,
    "scheduler": VALUES, "enable_hr": VALUES, "hr_scale": VALUES, "hr_upscaler": VALUES, "hr_resize_x": VALUES,
    "hr_second_pass_steps": VALUES, "hr_sampler_name": VALUES, "hr_cfg": VALUES, "hr_prompt": VALUES,
    "denoising_strength": VALUES, "override_settings": VALUES, "alwayson_scripts": VALUES, "styles": VALUES,
    "script_name": VALUES, "send_images": VALUES, "force_task_id": VALUES, "mask": PICTURES,
    "init_images": st.lists(PICTURES, max_size=2), "inpainting_mask_invert": VALUES, "infotext": VALUES,
}  # fmt: skip
EXTRAS = {
    "image": PICTURES, "imageList": st.lists(st.fixed_dictionaries({"data": PICTURES}) | VALUES, max_size=2),
    "resize_mode": VALUES, "upscaling_resize": VALUES, "upscaling_resize_w": VALUES, "upscaling_resize_h": VALUES,
    "upscaling_crop": VALUES, "upscaler_1": VALUES, "upscaler_2": VALUES, "extras_upscaler_2_visibility": VALUES,
    "gfpgan_visibility": VALUES,
}  # fmt: skip
OPENAIS = {
    "prompt": VALUES, "n": VALUES, "size": VALUES | st.just("64x64"), "output_format": VALUES | st.just("webp"),
    "output_compression": VALUES, "stream": VALUES, "partial_images": VALUES, "response_format": VALUES,
    "model": VALUES, "steps": VALUES, "seed": VALUES, "guidance": VALUES, "sampler": VALUES, "strength": VALUES,
    "hires_scale": VALUES,
    "rng": VALUES, "emphasis": VALUES, "tile": VALUES, "clip_skip": VALUES, "ensd": VALUES,
}  # fmt: skip
ROUTES = {
    "/sdapi/v1/txt2img": ORDERS,
    "/sdapi/v1/img2img": ORDERS,
    "/sdapi/v1/extra-single-image": EXTRAS,
    "/sdapi/v1/extra-batch-images": EXTRAS,
    "/sdapi/v1/png-info": {"image": PICTURES},
    "/sdapi/v1/interrogate": {"image": PICTURES},
    "/sdapi/v1/options": {"sd_model_checkpoint": VALUES, "fewstep_policy": VALUES, "CLIP_stop_at_last_layers": VALUES},
    "/internal/progress": {"id_task": VALUES, "live_preview": VALUES},
    "/v1/images/generations": OPENAIS,
}


def fuzzed(examples, *strategies):
    """Runs the function below it, so many times."""

    def run(function):
        quiet = settings(max_examples=examples, deadline=None, suppress_health_check=list(HealthCheck))
        return quiet(given(*strategies)(function))()

    return run


def check(answer, path):
    assert answer.status_code < 500 or answer.status_code == 501, answer.text
    kind = answer.headers.get("content-type", "")
    if kind.startswith(("text/html", "text/plain")) or answer.is_redirect:  # the page, figures
        assert answer.status_code < 400
        return
    if kind.startswith("text/event-stream"):
        assert all(line.startswith(("event: ", "data: ")) for line in answer.text.splitlines() if line)
        return
    body = answer.json()
    if answer.status_code != 200 and path.startswith("/v1/"):
        assert set(body["error"]) == {"message", "type", "param", "code"} and body["error"]["message"]
    elif answer.status_code != 200:
        assert set(body) == {"detail"} and body["detail"] and isinstance(body["detail"], str)
    elif path.endswith(("txt2img", "img2img")):
        assert set(body) == {"images", "parameters", "info"} and isinstance(json.loads(body["info"])["seed"], int)
    elif path.startswith("/v1/images"):
        assert body["data"] and all(base64.b64decode(entry["b64_json"]) for entry in body["data"])


@EXAMPLES
@pytest.mark.parametrize("path", ROUTES)
def test_any_json_has_an_answer(server, path, examples):
    begun = {"prompt": "x", "width": 64, "height": 64} if "2img" in path else {"prompt": "x"}

    @fuzzed(examples, st.fixed_dictionaries({}, optional=ROUTES[path]), st.booleans())
    def _run(body, good):
        content = json.dumps({**(begun if good else {}), **body}).encode()
        check(server.post(path, content=content, headers={"content-type": "application/json"}), path)


@EXAMPLES
@pytest.mark.parametrize("path", [*ROUTES, "/v1/images/edits"])
def test_any_bytes_have_an_answer(server, path, examples):
    kinds = [
        "application/json",
        "application/json; charset=utf-16",
        "application/vnd.x+json",
        "multipart/form-data",
        "text/plain",
        "",
    ]

    bodies = st.binary(max_size=60) | VALUES.map(lambda value: json.dumps(value).encode())

    @fuzzed(examples, bodies, st.sampled_from(kinds))
    def _run(content, kind):
        check(server.post(path, content=content, headers={"content-type": kind} if kind else {}), path)

    deep = b"[" * 200_000
    check(server.post(path, content=deep, headers={"content-type": "application/json"}), path)


@pytest.mark.parametrize("odd", ["\ud800", "a\udfff", float("nan"), float("-inf"), 10**400, {"\ud800": ["\ud800"]}])
def test_what_json_cannot_say_is_echoed_without(server, odd):
    content = json.dumps({"prompt": "x", "x": odd, str(odd): 1, "width": 64, "height": 64}).encode()
    check(server.post("/sdapi/v1/txt2img", content=content, headers={"content-type": "application/json"}), "txt2img")


PART = st.tuples(
    st.sampled_from(["image", "image[]", "mask", "prompt", "n", "size", "stream", "steps", "x"]),
    st.sampled_from(
        [*WHOLE, b"", b"x", b"true", b"-1", b"64x64", b"\xff\xfe", "\ud83d\ude00".encode("utf-16", "surrogatepass")]
    ),
    st.sampled_from(["", '; filename="a.png"', '; filename="../../a.png"', "; filename=", '; filename="']),
    st.sampled_from(
        ["", "content-type: image/png\r\n", "content-type: x\r\n", "content-transfer-encoding: base64\r\n"]
    ),
)


@EXAMPLES
def test_any_form_has_an_answer(server, examples):
    @fuzzed(examples, st.lists(PART, max_size=5), st.integers(0, 3), st.integers(0, 400))
    def _run(parts, ending, cut):
        body = b"".join(
            f'--b\r\ncontent-disposition: form-data; name="{name}"{file}\r\n{kind}\r\n'.encode() + data + b"\r\n"
            for name, data, file, kind in parts
        )
        body = [body + b"--b--\r\n", body, body[:cut] + b"--b--\r\n", body + b"--b"][ending]
        headers = {"content-type": "multipart/form-data; boundary=b"}
        check(server.post("/v1/images/edits", content=body, headers=headers), "/v1/images/edits")


@EXAMPLES
def test_damaged_pictures_have_an_answer(server, examples):
    @fuzzed(
        examples,
        st.sampled_from(WHOLE),
        st.lists(st.tuples(st.integers(0, 10_000), st.integers(0, 255)), max_size=6),
        st.integers(0, 40),
    )
    def _run(whole, changes, cut):
        data = bytearray(whole)
        for place, value in changes:
            data[place % len(data)] = value
        path = "/sdapi/v1/png-info"
        check(server.post(path, json={"image": text_of(bytes(data[: len(data) - cut]))}), path)


KEYS = [
    "parameters",
    "prompt",
    "workflow",
    "Comment",
    "Description",
    "Software",
    "sd-metadata",
    "invokeai_metadata",
    "Dream",
]
HOSTILE = st.one_of(
    st.text(max_size=60),
    st.text('{}[]":,0123456789e\\nulltrue', max_size=60),
    VALUES.map(json.dumps),
    st.text("Steps: 1234,Size x-\n<lora:>()", max_size=80),
    st.sampled_from(
        [
            "[" * 100_000,
            '{"a":' * 50_000,
            "(" * 50_000,
            "Steps: " + "9" * 5000,
            "x\nSteps: 1, Size: 9999999999x1, Seed: -5",
        ]
    ),
)


@EXAMPLES
def test_any_settings_in_a_picture_have_an_answer(server, examples):
    @fuzzed(examples, st.dictionaries(st.sampled_from(KEYS), HOSTILE, max_size=3))
    def _run(texts):
        info = PngInfo()
        for key, text in texts.items():
            info.add_itxt(key, text.encode(errors="replace").decode())
        path = "/sdapi/v1/png-info"
        check(server.post(path, json={"image": text_of(file_of(TINY, pnginfo=info))}), path)


@EXAMPLES
def test_any_query_and_path_have_an_answer(server, examples):
    @fuzzed(
        examples,
        st.text(max_size=60),
        st.sampled_from(["/sdapi/v1/progress", "/v1/models/", "/sdapi/v1/interrupt", "/nothing/"]),
    )
    def _run(text, path):
        from urllib.parse import quote

        plain = text.encode(errors="replace").decode()
        for url in (f"{path}?id_task={quote(plain)}&skip_current_image={quote(plain)}", path + quote(plain)):
            check(server.request("POST" if "interrupt" in path else "GET", url), url)
