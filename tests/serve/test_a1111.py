"""A1111's interface: the client library webuiapi, and orders as other clients send them."""

import base64
import concurrent.futures
import io
import json
import threading
import time

import httpx
import numpy as np
import pytest
from PIL import Image

webuiapi = pytest.importorskip("webuiapi")
FEW = {"steps": 2, "cfg_scale": 1, "seed": 5, "width": 64, "height": 64}


@pytest.fixture(scope="module")
def api(server):
    return webuiapi.WebUIApi(host="127.0.0.1", port=server)


@pytest.fixture(scope="module")
def http(server):
    with httpx.Client(base_url=f"http://127.0.0.1:{server}", timeout=60) as client:
        yield client


def picture(text):
    return Image.open(io.BytesIO(base64.b64decode(text)))


def same(one, other):
    return np.array_equal(np.asarray(one.convert("RGB")), np.asarray(other.convert("RGB")))


def test_webuiapi_paints_what_the_pipeline_paints(api, studio):
    result = api.txt2img(
        prompt="a cat", negative_prompt="moon", sampler_name="LCM", batch_size=2, **{**FEW, "cfg_scale": 2}
    )
    expected = studio.pipe(
        "a cat",
        negative_prompt="moon",
        steps=2,
        guidance=2,
        seed=5,
        width=64,
        height=64,
        count=2,
        sampler="LCM",
        schedule="automatic",
    )
    assert all(map(same, result.images, expected)) and len(result.images) == 2
    assert result.info["all_seeds"] == [5, 6] and result.info["sampler_name"] == "LCM" and result.info["steps"] == 2
    assert result.info["infotexts"][1] == expected[1].info["parameters"] == result.images[1].info["parameters"]


def test_webuiapi_image_to_image_and_masks(api):
    image = Image.effect_noise((64, 64), 60).convert("RGB")
    mask = Image.new("L", (64, 64))
    mask.paste(255, (0, 0, 32, 64))
    result = api.img2img(
        images=[image], prompt="a dog", mask_image=mask, denoising_strength=1.0, sampler_name="LCM", **FEW
    )
    found, before = np.asarray(result.image.convert("RGB")), np.asarray(image)
    assert np.array_equal(found[:, 32:], before[:, 32:]) and not np.array_equal(found[:, :32], before[:, :32])
    inverted = api.img2img(
        images=[image],
        prompt="a dog",
        mask_image=mask,
        inpainting_mask_invert=1,
        denoising_strength=1.0,
        sampler_name="LCM",
        **FEW,
    )
    assert np.array_equal(np.asarray(inverted.image.convert("RGB"))[:, :32], before[:, :32])


def test_webuiapi_hires(api):
    result = api.txt2img(
        prompt="a cat",
        enable_hr=True,
        hr_scale=1.5,
        hr_upscaler="Latent",
        denoising_strength=0.5,
        hr_second_pass_steps=2,
        sampler_name="LCM",
        **FEW,
    )
    assert result.image.size == (96, 96) and "Hires upscaler: Latent" in result.image.info["parameters"]


def test_image_to_image_and_its_second_pass_have_strengths_of_their_own(studio):
    from fewstep.serve.a1111_orders import request_of

    start, body = (
        {"image": Image.new("RGB", (64, 64)), "strength": 0.2},
        {"enable_hr": True, "hr_scale": 2, "denoising_strength": 0.2},
    )
    assert request_of(body, start, {}, studio.pipe)[0].hires_strength is None
    assert request_of({**body, "hr_denoising_strength": 0.3}, start, {}, studio.pipe)[0].hires_strength == 0.3
    assert request_of(body, {}, {}, studio.pipe)[0].hires_strength == 0.2


def test_webuiapi_lists_and_options(api, studio):
    assert "LCM" in [one["name"] for one in api.get_samplers()] and api.get_schedulers()
    assert api.get_sd_models()[0]["model_name"] == studio.pipe.model.name
    title = api.get_options()["sd_model_checkpoint"]
    api.util_set_model(studio.pipe.model.name)
    assert api.util_get_current_model() == title
    lists = "upscalers loras embeddings memory cmd_flags latent_upscale_modes prompt_styles face_restorers"
    lists += " hypernetworks realesrgan_models scripts sd_vae"
    calls = [f"get_{name}" for name in lists.split()]
    for call in (*calls, "refresh_checkpoints", "interrupt", "skip", "util_wait_for_ready"):
        getattr(api, call)()
    assert api.controlnet_version() == 3 and api.controlnet_model_list() == []
    progress = api.get_progress()
    assert progress["progress"] == 0 and progress["state"]["job_count"] == 0


def test_webuiapi_png_info(api):
    image = api.txt2img(prompt="a (cat:1.2)", sampler_name="LCM", **FEW).image
    info = api.png_info(image)
    assert info.info.startswith("a (cat:1.2)") and info.parameters["Seed"] == "5"


def test_an_order_of_twenty_steps_is_clamped_and_says_so(http, studio, monkeypatch):
    few = studio.pipe.model.sampling
    from dataclasses import replace

    monkeypatch.setattr(
        studio.pipe.model,
        "sampling",
        replace(few, sampler="lcm", table="linspace-lcm", steps=4, guidance=1.0, origin_steps=50),
    )
    order = {
        "prompt": "a cat",
        "steps": 20,
        "cfg_scale": 7,
        "sampler_name": "Euler a",
        "width": 64,
        "height": 64,
        "seed": 1,
    }
    answer = http.post("/sdapi/v1/txt2img", json=order)
    info = json.loads(answer.json()["info"])
    assert (info["steps"], info["cfg_scale"], info["sampler_name"]) == (4, 1.0, "LCM")
    assert set(info["extra_generation_params"]) == {"fewstep steps", "fewstep guidance", "fewstep sampler"}
    assert "steps 20 became 4" in answer.headers["warning"]
    kept = http.post("/sdapi/v1/txt2img", json={**order, "override_settings": {"fewstep_policy": "respect"}})
    assert json.loads(kept.json()["info"])["steps"] == 20 and "warning" not in kept.headers


def test_open_webui_sends_little_and_posts_all_options_back(http):
    options = http.get("/sdapi/v1/options").json()
    assert http.post("/sdapi/v1/options", json=options).status_code == 200
    answer = http.post("/sdapi/v1/txt2img", json={"prompt": "a cat", "batch_size": 1, "width": 64, "height": 64})
    assert answer.status_code == 200 and picture(answer.json()["images"][0]).size == (64, 64)


def test_ai_render_sends_joined_names_and_controlnet_without_an_image(http):
    unit = {"weight": 1, "module": "canny", "model": "x"}
    order = {"prompt": "a cat", "sampler_index": "DPM++ 2M Karras", "seed": 1, "steps": 3, "cfg_scale": 2, "width": 67}
    order |= {"height": 64, "alwayson_scripts": {"controlnet": {"args": [unit]}}, "styles": None, "eta": None}
    answer = http.post("/sdapi/v1/txt2img", json=order)
    text = picture(answer.json()["images"][0]).info["parameters"]
    assert "Sampler: DPM++ 2M, Schedule type: Karras" in text and "Size: 64x64" in text
    lost = http.post("/sdapi/v1/txt2img", json={**order, "sampler_index": "Nonsense"})
    assert (lost.status_code, lost.json()) == (404, {"detail": "Sampler not found"})
    assert http.get("/sdapi/v1/nothing").json() == {"detail": "Not Found"}


def test_progress_preview_and_interrupt_of_one_task(http):
    order = {
        "prompt": "a cat",
        "steps": 400,
        "cfg_scale": 1,
        "width": 64,
        "height": 64,
        "force_task_id": "mine",
        "sampler_name": "Euler",
    }
    with concurrent.futures.ThreadPoolExecutor() as pool:
        painting = pool.submit(
            http.post, "/sdapi/v1/txt2img", json={**order, "override_settings": {"fewstep_policy": "respect"}}
        )
        until, seen = time.monotonic() + 30, {}
        while time.monotonic() < until and not seen.get("live_preview"):
            seen = http.post("/internal/progress", json={"id_task": "mine"}).json()
            time.sleep(0.01)
        assert seen["active"] and 0 < seen["progress"] < 1 and seen["eta"] > 0
        assert picture(seen["live_preview"].partition(",")[2]).size == (64, 64)
        global_state = http.get("/sdapi/v1/progress").json()
        assert global_state["state"]["sampling_steps"] == 400 and global_state["current_image"]
        assert http.get("/internal/pending-tasks").json() == {"size": 1, "tasks": ["mine"]}
        http.post("/sdapi/v1/interrupt")
        answer = painting.result(timeout=60)
    assert answer.status_code == 200 and answer.json()["images"] == []
    assert http.get("/sdapi/v1/progress").json()["progress"] == 0


@pytest.mark.parametrize(
    ("path", "order", "status"),
    [
        ("txt2img", {"prompt": "x", "steps": 0}, 400),
        ("txt2img", {"prompt": "x", "width": "wide"}, 400),
        ("txt2img", {"prompt": 5}, 400),
        ("txt2img", {"prompt": "x", "batch_size": 1000}, 400),
        ("txt2img", {"prompt": "x", "enable_hr": True, "hr_scale": 2, "hr_upscaler": "../x.onnx"}, 400),
        ("txt2img", {"prompt": "x", "override_settings": []}, 200),
        ("img2img", {"prompt": "x"}, 404),
        ("img2img", {"prompt": "x", "init_images": [None]}, 404),
        ("img2img", {"prompt": "x", "init_images": ["/etc/passwd"]}, 400),
        ("img2img", {"prompt": "x", "init_images": ["http://evil.example/a.png"]}, 400),
        ("options", {"sd_model_checkpoint": "other.safetensors"}, 404),
        ("png-info", {"image": "AAAA"}, 400),
    ],
)
def test_bad_orders_get_a_sentence(http, path, order, status):
    answer = http.post(f"/sdapi/v1/{path}", json={**order, **({"width": 64} if status == 200 else {})})
    assert answer.status_code == status
    if status != 200:
        assert answer.json()["detail"] and "Traceback" not in answer.text


def test_a_full_queue_answers_429(http, studio, monkeypatch):
    monkeypatch.setattr(studio.engine, "waiting", 2)
    order = {"prompt": "a cat", "steps": 2, "cfg_scale": 1, "width": 64, "height": 64, "sampler_name": "LCM"}
    gate = threading.Barrier(12)

    def send():
        gate.wait()
        return http.post("/sdapi/v1/txt2img", json=order)

    with concurrent.futures.ThreadPoolExecutor(12) as pool:
        answers = [one.result() for one in [pool.submit(send) for _ in range(12)]]
    assert {answer.status_code for answer in answers} == {200, 429}
    assert all(int(answer.headers["retry-after"]) >= 1 for answer in answers if answer.status_code == 429)
    monkeypatch.undo()
    assert http.post("/sdapi/v1/txt2img", json=order).status_code == 200


def test_health_and_metrics(http):
    assert http.get("/healthz").json() == {"status": "ok"} and http.get("/readyz").json()["status"] == "ready"
    lines = http.get("/metrics").text.splitlines()
    assert any(line.startswith("fewstep_evaluations_total ") for line in lines)
    assert http.get("/openapi.json").status_code == 200


def test_loras_are_those_that_prompts_may_name(tmp_path):
    from fewstep.pipeline import Pipeline
    from fewstep.serve.jobs import Studio
    from tests.serve.running import running
    from tests.tiny import tiny_model

    (tmp_path / "deep").mkdir()
    pipe = Pipeline(tiny_model("sd15"), lora_folder=tmp_path)
    with running(Studio(pipe)) as port:
        address = f"http://127.0.0.1:{port}/sdapi/v1/loras"
        assert httpx.get(address).json() == []
        write_tiny_lora(tmp_path / "deep" / "ink.safetensors")
        assert [(one["name"], one["path"]) for one in httpx.get(address).json()] == [("ink", "ink")]
        order = {"prompt": "a cat <lora:ink:1>", "steps": 1, "seed": 1, "width": 64, "height": 64}
        painted = httpx.post(address.replace("loras", "txt2img"), json=order, timeout=30)
        assert "Lora hashes: " in painted.json()["info"]


def write_tiny_lora(path):
    import torch

    from fewstep.checkpoints.lora import write_lora

    name = "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"
    write_lora(path, {name: (torch.zeros(2, 32), torch.zeros(32, 2))}, alpha=2.0)
