"""The whole surface of the client library webuiapi against a running server: every call that it has."""

import asyncio
import json

import numpy as np
import pytest
from PIL import Image

webuiapi = pytest.importorskip("webuiapi")
FEW = {"steps": 2, "cfg_scale": 1, "seed": 5, "width": 64, "height": 64, "sampler_name": "LCM"}
RED = Image.new("RGB", (64, 48), "red")
NOISE = Image.effect_noise((64, 64), 80).convert("RGB")


@pytest.fixture(scope="module")
def api(server):
    return webuiapi.WebUIApi(host="127.0.0.1", port=server)


def same(one, other):
    return np.array_equal(np.asarray(one.convert("RGB")), np.asarray(other.convert("RGB")))


def test_what_it_learns_at_its_start(api):
    assert (api.has_controlnet, api.has_adetailer, api.has_animatediff) == (False, False, False)


def test_a_password(studio):
    from tests.serve.null import NullPipeline
    from tests.serve.running import running

    other = type(studio)(NullPipeline(studio.pipe.model.path))
    with running(other, key="s3cret") as port:
        api = webuiapi.WebUIApi(host="127.0.0.1", port=port, username="me", password="s3cret")
        assert api.txt2img(prompt="a cat", **FEW).image.size == (64, 64)
        with pytest.raises(RuntimeError, match="401"):
            webuiapi.WebUIApi(host="127.0.0.1", port=port).txt2img(prompt="a cat", **FEW)


def test_txt2img(api, studio):
    result = api.txt2img(prompt="a cat", batch_size=2, n_iter=2, **FEW)
    how = {"steps": 2, "guidance": 1, "seed": 5, "width": 64, "height": 64, "count": 4}
    expected = studio.pipe("a cat", sampler="LCM", schedule="automatic", **how)
    assert len(result.images) == 4 and all(map(same, result.images, expected))
    assert result.info["all_seeds"] == [5, 6, 7, 8] and result.parameters["prompt"] == "a cat"
    assert len(result.info["infotexts"]) == 4 and result.info["infotexts"][0].startswith("a cat")


def test_txt2img_with_its_own_defaults_is_brought_down_and_says_so(api, studio):
    info = api.txt2img(prompt="a cat", width=64, height=64).info
    assert (info["steps"], info["cfg_scale"], info["sampler_name"]) == (4, 1.0, "LCM")
    assert set(info["extra_generation_params"]) == {"fewstep steps", "fewstep guidance", "fewstep sampler"}


def test_txt2img_hires(api):
    enlarged = {"enable_hr": True, "hr_scale": 1.5, "denoising_strength": 0.5}
    for upscaler in (webuiapi.HiResUpscaler.Latent, webuiapi.HiResUpscaler.Lanczos, webuiapi.HiResUpscaler.none):
        assert api.txt2img(prompt="a cat", hr_upscaler=upscaler, **enlarged, **FEW).image.size == (96, 96)
    with pytest.raises(RuntimeError, match="There is no upscaler .*R-ESRGAN 4x"):
        api.txt2img(prompt="a cat", hr_upscaler=webuiapi.HiResUpscaler.ESRGAN_4x, **enlarged, **FEW)


def test_img2img_with_and_without_a_mask(api):
    whole = api.img2img(images=[NOISE], prompt="a dog", denoising_strength=0.5, **FEW)
    assert whole.image.size == (64, 64) and whole.info["denoising_strength"] == 0.5
    mask = Image.new("L", (64, 64))
    mask.paste(255, (0, 0, 32, 64))
    half = api.img2img(images=[NOISE], mask_image=mask, prompt="a dog", denoising_strength=1.0, **FEW)
    assert same(half.image.crop((32, 0, 64, 64)), NOISE.crop((32, 0, 64, 64))) and not same(half.image, NOISE)


def test_what_is_not_served_is_painted_without_and_said(api):
    unit = webuiapi.ControlNetUnit(image=RED, module="canny", model="control_canny")
    detailer = webuiapi.ADetailer(ad_model="face_yolov8n.pt")
    for how in ({}, {"use_deprecated_controlnet": True}):
        result = api.txt2img(prompt="a cat", controlnet_units=[unit], restore_faces=True, **FEW, **how)
        said = result.info["extra_generation_params"].values()
        assert "faces are not restored" in said and any("ControlNet" in words for words in said)
    result = api.img2img(images=[RED], prompt="a cat", adetailer=[detailer], alwayson_scripts={}, **FEW)
    assert result.info["extra_generation_params"]["fewstep ADetailer"] == "the script ADetailer is not served"
    interface = webuiapi.ControlNetInterface(api)
    old = interface.txt2img(prompt="a cat", width=64, height=64, steps=2, cfg_scale=1, sampler_index="LCM")
    assert old.image.size == (64, 64) and interface.model_list() == []


def test_an_unknown_sampler(api):
    with pytest.raises(RuntimeError, match="Sampler not found"):
        api.txt2img(prompt="a cat", **{**FEW, "sampler_name": "Nonsense"})


def test_orders_through_aiohttp(api):
    pytest.importorskip("aiohttp", reason="webuiapi's asynchronous calls need aiohttp")

    async def both():
        return await asyncio.gather(*(api.txt2img(prompt="a cat", use_async=True, **FEW) for _ in range(2)))

    one, other = asyncio.run(both())
    assert same(one.image, other.image)


@pytest.mark.parametrize(
    ("how", "size"),
    [
        ({}, (128, 96)),
        ({"upscaling_resize": 1.5, "upscaler_1": webuiapi.Upscaler.Lanczos}, (96, 72)),
        ({"upscaling_resize": 0.5, "upscaler_1": webuiapi.Upscaler.Nearest}, (32, 24)),
        ({"resize_mode": 1, "upscaling_resize_w": 100, "upscaling_resize_h": 100}, (100, 100)),
        ({"resize_mode": 1, "upscaling_resize_w": 128, "upscaling_resize_h": 100, "upscaling_crop": False}, (128, 96)),
        ({"upscaler_2": "Nearest", "extras_upscaler_2_visibility": 0.5}, (128, 96)),
    ],
)
def test_extra_single_image(api, how, size):
    result = api.extra_single_image(RED, **how)
    assert result.image.size == size and result.image.getpixel((5, 5)) == (255, 0, 0)


def test_an_enlarged_picture_is_cut_in_its_middle(api):
    striped = Image.new("RGB", (64, 32), "red")
    striped.paste("blue", (16, 0, 48, 32))
    how = {"resize_mode": 1, "upscaling_resize_w": 64, "upscaling_resize_h": 64, "upscaler_1": "Nearest"}
    assert same(api.extra_single_image(striped, **how).image, Image.new("RGB", (64, 64), "blue"))


def test_extra_batch_images(api):
    result = api.extra_batch_images([RED, NOISE], name_list=["a", "b"], upscaling_resize=2)
    assert [image.size for image in result.images] == [(128, 96), (128, 128)]


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ({"upscaler_1": webuiapi.Upscaler.ESRGAN_4x}, "There is no upscaler"),
        ({"upscaler_1": "Latent"}, "There are: Lanczos"),
        ({"gfpgan_visibility": 0.5}, "faces are not restored"),
        ({"upscaling_resize": 500}, "Ask for a smaller size"),
        ({"upscaling_resize": 0}, "Ask for at least one"),
        ({"upscaling_resize": "big"}, "not a number"),
    ],
)
def test_extras_say_what_they_cannot(api, how, said):
    with pytest.raises(RuntimeError, match=said):
        api.extra_single_image(RED, **how)


def test_png_info(api):
    image = api.txt2img(prompt="a (cat:1.2)", **FEW).image
    found = api.png_info(image)
    assert found.info.startswith("a (cat:1.2)") and found.parameters["Seed"] == "5"
    assert api.png_info(RED).info == ""


@pytest.mark.parametrize("model", ["clip", "deepdanbooru"])
def test_interrogate_says_that_there_is_no_captioner(api, model):
    with pytest.raises(RuntimeError, match="no captioning model"):
        api.interrogate(RED, model=model)


def test_options(api, studio):
    before = api.get_options()
    keys = {"sd_model_checkpoint", "sd_checkpoint_hash", "CLIP_stop_at_last_layers", "sd_vae", "samples_format"}
    assert keys <= set(before)
    assert api.set_options(before) is None and api.get_options() == before
    assert api.util_get_model_names() == ["null [0123456789]"] and api.util_get_current_model() == "null [0123456789]"
    for name in ("null", "NULL", "null [0123456789]"):
        api.util_set_model(name)
    assert "LCM" in api.util_get_sampler_names() and "automatic" in api.util_get_scheduler_names()


def test_lists(api):
    keys = {
        "samplers": {"name", "aliases", "options"},
        "schedulers": {"name", "label", "aliases", "default_rho", "need_inner_model"},
        "upscalers": {"name", "model_name", "model_path", "model_url", "scale"},
        "latent_upscale_modes": {"name"},
        "sd_models": {"title", "model_name", "hash", "sha256", "filename", "config"},
    }
    for name, wanted in keys.items():
        found = getattr(api, f"get_{name}")()
        assert found and all(wanted <= set(entry) for entry in found)
    assert api.get_upscalers()[0]["name"] == "None"
    for name in ("sd_vae", "loras", "hypernetworks", "face_restorers", "realesrgan_models", "prompt_styles"):
        assert getattr(api, f"get_{name}")() == []
    assert api.get_embeddings() == {"loaded": {}, "skipped": {}} and set(api.get_scripts()) == {"txt2img", "img2img"}
    assert api.get_cmd_flags()["api"] is True
    assert not [title for title in api.util_get_model_names() if "/" in title or "\\" in title]


def test_memory(api):
    memory = api.get_memory()
    assert set(memory) == {"ram", "cuda"}
    ram = memory["ram"]
    assert "error" in ram or (0 < ram["used"] < ram["total"] and 0 < ram["free"] < ram["total"])


def test_calls_without_an_answer_worth_reading(api):
    assert api.interrupt() == {} and api.skip() is None and api.refresh_checkpoints() is None
    api.util_wait_for_ready(check_interval=0.01)
    progress = api.get_progress()
    assert (progress["progress"], progress["state"]["job_count"], progress["current_image"]) == (0.0, 0, None)


def test_controlnet(api):
    assert (api.controlnet_version(), api.controlnet_model_list()) == (3, [])
    assert api.controlnet_module_list() == ["none"]
    with pytest.raises(RuntimeError, match="ControlNet is not served here"):
        api.controlnet_detect([RED], module="canny")


def test_what_only_extensions_have_is_not_found_in_json(api):
    assert api.get_artists() == api.get_artist_categories() == {"detail": "Not Found"}
    for path in ("sam/heartbeat", "tagger/v1/interrogators", "promptgen/list_models", "model_keyword/get_keywords"):
        assert api.custom_get(path) == {"detail": "Not Found"}
    assert api.custom_get("progress", baseurl=True)["progress"] == 0
    with pytest.raises(RuntimeError, match="404"):
        webuiapi.RemBGInterface(api).rembg(input_image=RED)
    with pytest.raises(RuntimeError, match="Not Found"):
        api.custom_post("unknown", baseurl=True)


def test_the_answers_info_is_a_text_of_json(http):
    body = http.post("/sdapi/v1/txt2img", json={"prompt": "a cat", **FEW}).json()
    assert isinstance(body["info"], str) and json.loads(body["info"])["seed"] == 5
    assert not body["images"][0].startswith("data:")
