"""Pictures of other programs, made here from the facts of their formats, and texts that are made to break a reader."""

import json
import time

import pytest
from PIL import Image, PngImagePlugin

from fewstep.foreign import settings_in, settings_of
from fewstep.foreign.names import SAMPLERS, SCHEDULES, file_name, sampler_names, schedule_name
from fewstep.infotext import exif_of, parse, request_from_infotext
from fewstep.sampling.sampler import sampler_named
from fewstep.sampling.timesteps import table_named

CHECKPOINT = {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": "sd15\\dream.safetensors"}}


def node(kind, **inputs):
    return {"class_type": kind, "inputs": inputs}


def comfy(**changes):
    """The plainest graph: a checkpoint, two texts, an empty latent, one sampler."""
    how = {"seed": 5, "steps": 8, "cfg": 1.5, "sampler_name": "lcm", "scheduler": "sgm_uniform", "denoise": 1.0}
    wires = {"model": ["4", 0], "positive": ["6", 0], "negative": ["7", 0], "latent_image": ["5", 0]}
    return {
        "3": node("KSampler", **how, **wires),
        "4": CHECKPOINT,
        "5": node("EmptyLatentImage", width=512, height=768, batch_size=1),
        "6": node("CLIPTextEncode", text="a cat", clip=["4", 1]),
        "7": node("CLIPTextEncode", text="blurry", clip=["4", 1]),
        "8": node("VAEDecode", samples=["3", 0], vae=["4", 2]),
        "9": node("SaveImage", images=["8", 0]),
    } | changes


def read_graph(nodes):
    return settings_in({"prompt": json.dumps(nodes)})


def png(path, **texts):
    chunks = PngImagePlugin.PngInfo()
    for key, text in texts.items():
        chunks.add_text(key, text)
    Image.new("RGB", (8, 8)).save(path, pnginfo=chunks)
    return path


def facts(info):
    """What a request takes from a picture, in one line."""
    r = request_from_infotext(info)
    return (r.prompt, r.negative_prompt, r.steps, r.guidance, r.seed, r.width, r.height, r.sampler, r.schedule, r.rng)


# ---- ComfyUI


def test_a_graph(tmp_path):
    info = settings_of(png(tmp_path / "a.png", prompt=json.dumps(comfy()), workflow="{}"))
    assert facts(info) == ("a cat", "blurry", 8, 1.5, 5, 512, 768, "LCM", "SGM Uniform", "cpu")
    assert info.settings["Model"] == "dream"
    assert not {"Denoising strength", "Nodes", "Sampling passes"} & set(info.settings)


def test_a_graph_in_a_webp(tmp_path):
    exif = Image.Exif()
    exif[0x010F], exif[0x0110] = f"prompt:{json.dumps(comfy())}", "workflow:{}"
    Image.new("RGB", (8, 8)).save(tmp_path / "a.webp", exif=exif)
    assert facts(settings_of(tmp_path / "a.webp"))[:2] == ("a cat", "blurry")


def test_the_custom_sampler_and_its_parts():
    wires = {"noise": ["n", 0], "guider": ["g", 0], "sampler": ["s", 0], "sigmas": ["t", 0], "latent_image": ["5", 0]}
    parts = {
        "3": node("SamplerCustomAdvanced", **wires),
        "n": node("RandomNoise", noise_seed=["p", 0]),
        "p": node("PrimitiveInt", value=2**40),
        "g": node("CFGGuider", model=["l", 0], positive=["c", 0], negative=["7", 0], cfg=3),
        "c": node("ControlNetApplyAdvanced", positive=["6", 0], negative=["7", 0], control_net=["x", 0], strength=1),
        "s": node("KSamplerSelect", sampler_name="dpmpp_2m_sde_gpu"),
        "t": node("KarrasScheduler", steps=6, sigma_max=14.6, sigma_min=0.03, rho=7.0),
        "l": node("LoraLoader", lora_name="a/ink.safetensors", strength_model=0.8, strength_clip=0.5, model=["m", 0]),
        "m": node("Power Lora Loader (rgthree)", lora_1={"on": True, "lora": "fox.pt", "strength": 1}, model=["4", 0]),
    }  # fmt: skip
    info = read_graph(comfy(**parts))
    assert info.prompt == "a cat <lora:fox:1> <lora:ink:0.5:0.8>"
    assert info.negative_prompt == "blurry"
    picked = [info.settings[key] for key in ("Steps", "CFG scale", "Seed", "Sampler", "Schedule type", "Nodes")]
    assert picked == ["6", "3", str(2**40), "DPM++ 2M SDE", "Karras", "ControlNetApplyAdvanced"]


def test_texts_through_other_nodes_keep_their_order():
    parts = {
        "6": node("CLIPTextEncodeSDXL", text_g=["a", 0], text_l=["a", 0], width=1024, clip=["4", 1]),
        "a": node("StringConcatenate", string_a=["b", 0], string_b="on a beach", delimiter=", "),
        "b": node("PrimitiveString", value="a dog"),
        "7": node("ConditioningCombine", conditioning_1=["x", 0], conditioning_2=["y", 0]),
        "x": node("CLIPTextEncode", text="blurry", clip=["4", 1]),
        "y": node("CLIPTextEncode", text="dark", clip=["4", 1]),
    }
    info = read_graph(comfy(**parts))
    assert (info.prompt, info.negative_prompt) == ("a dog, on a beach", "blurry, dark")
    assert read_graph(comfy(**{"7": node("ConditioningZeroOut", conditioning=["6", 0])})).negative_prompt == ""


def test_both_prompts_in_one_node():
    loader = node("Efficient Loader", ckpt_name="m.ckpt", positive="a fox", negative="bad", clip_skip=-2)
    sampler = comfy()["3"]["inputs"] | {"positive": ["e", 1], "negative": ["e", 2], "model": ["e", 0]}
    info = read_graph(comfy(**{"3": node("KSampler (Efficient)", **sampler), "e": loader}))
    assert (info.prompt, info.negative_prompt, info.settings["Model"]) == ("a fox", "bad", "m")


def test_the_first_of_two_passes_is_the_picture_that_is_restored():
    second = comfy()["3"]["inputs"] | {"seed": 99, "steps": 3, "denoise": 0.5, "latent_image": ["u", 0]}
    upscaled = {"u": node("LatentUpscaleBy", samples=["3", 0], scale_by=2.0), "k": node("KSampler", **second)}
    info = read_graph(comfy(**upscaled, **{"8": node("VAEDecode", samples=["k", 0], vae=["4", 2])}))
    assert (info.settings["Seed"], info.settings["Steps"], info.settings["Size"]) == ("5", "8", "512x768")
    assert (info.settings["Sampling passes"], info.settings["Nodes"]) == ("2", "LatentUpscaleBy")
    assert "Denoising strength" not in info.settings
    third = {"z": node("KSampler", **second | {"seed": 98, "latent_image": ["k", 0]})}
    info = read_graph(comfy(**upscaled, **third, **{"8": node("VAEDecode", samples=["z", 0], vae=["4", 2])}))
    assert (info.settings["Seed"], info.settings["Sampling passes"]) == ("5", "3")


def test_a_graph_that_begins_with_a_picture():
    started = comfy()["3"]["inputs"] | {"denoise": 0.4, "latent_image": ["e", 0]}
    parts = {"e": node("VAEEncode", pixels=["i", 0], vae=["4", 2]), "i": node("LoadImage", image="in.png")}
    skip = node("CLIPSetLastLayer", stop_at_clip_layer=-2, clip=["4", 1])
    text = node("CLIPTextEncode", text="a cat", clip=["c", 0])
    info = read_graph(comfy(**parts, **{"3": node("KSampler", **started), "c": skip, "6": text}))
    assert [info.settings[key] for key in ("Init image", "Denoising strength", "Clip skip")] == ["in.png", "0.4", "2"]


BROKEN = {
    "cycles": comfy(**{"3": node("KSampler", seed=["3", 0], steps=["5", 0], cfg=["5", 0], sampler_name=["3", 0],
                                 positive=["6", 0], negative=["6", 0], latent_image=["3", 0], model=["3", 0]),
                       "5": node("Reroute", value=["5", 0]), "6": node("Combine", a=["6", 0], b=["7", 0]),
                       "7": node("Combine", a=["6", 0])}),
    "missing nodes": comfy(**{"4": None, "5": [], "6": {"inputs": 3}, "7": node("X", text=["77", 0])}),
    "lists": comfy(**{"3": node("KSampler", seed=[1], steps=[[1, 2], 0], cfg={}, sampler_name=[None, 0],
                                positive=["6"], negative=[["6", 0], 0], latent_image=[], model=None)}),
    "kinds": {"a": {"class_type": ["KSampler"], "inputs": {"steps": None, "cfg": "x", "sampler_name": 5}}},
}  # fmt: skip


@pytest.mark.parametrize("name", BROKEN)
def test_broken_graphs_end(name):
    info = read_graph(BROKEN[name])
    assert info is None or info.settings["Version"] == "ComfyUI"


# ---- the others


def test_invokeai():
    document = {
        **{"positive_prompt": "a cat", "negative_prompt": "dog", "width": 768, "height": 512, "seed": 7, "steps": 30},
        **{"cfg_scale": 5.0, "scheduler": "dpmpp_2m_k", "rand_device": "cpu", "clip_skip": 1, "seamless_x": True},
        "model": {"key": "x", "hash": "blake3:12", "name": "dream", "base": "sd-1"},
        "loras": [{"model": {"name": "ink"}, "weight": 0.7}, {"lora": {"model_name": "fox"}, "weight": 1}],
    }
    info = settings_in({"invokeai_metadata": json.dumps(document), "invokeai_graph": "{}"})
    prompt = "a cat <lora:ink:0.7> <lora:fox:1>"
    assert facts(info) == (prompt, "dog", 30, 5, 7, 768, 512, "DPM++ 2M", "Karras", "cpu")
    assert [info.settings[key] for key in ("Model", "Clip skip", "seamless_x")] == ["dream", "2", "true"]
    assert "Model hash" not in info.settings
    info = settings_in({"invokeai_metadata": json.dumps(document | {"scheduler": "lcm"})})
    assert (info.settings["Sampler"], info.settings.get("Schedule type")) == ("LCM", None)


def test_older_invokeai():
    image = {"prompt": [{"prompt": "a cat [dog]", "weight": 1.0}], "steps": 9, "cfg_scale": 7.5, "seed": 3}
    image |= {"width": 512, "height": 640, "sampler": "k_euler_a", "type": "txt2img"}
    info = settings_in({"sd-metadata": json.dumps({"model_weights": "dream", "image": image})})
    assert facts(info) == ("a cat", "dog", 9, 7.5, 3, 512, 640, "Euler a", "Normal", "cpu")
    info = settings_in({"Dream": '"say "hi" [dog]" -s 9 -S 3 -W 512 -H 640 -C7.5 -A k_lms'})
    assert facts(info) == ('say "hi"', "dog", 9, 7.5, 3, 512, 640, "LMS", "Normal", "cpu")


FOOOCUS = {
    **{"prompt": "a cat", "negative_prompt": "dog", "steps": 8, "guidance_scale": 1.0, "resolution": "(1152, 896)"},
    **{"base_model": "jug.safetensors", "base_model_hash": "0123456789", "sampler": "lcm", "scheduler": "lcm"},
    **{"seed": "55", "lora_combined_1": "sdxl_lcm : 1.0", "sharpness": 2.0, "metadata_scheme": "fooocus"},
}


def test_fooocus(tmp_path):
    expected = ("a cat <lora:sdxl_lcm:1>", "dog", 8, 1, 55, 1152, 896, "LCM", "SGM Uniform", "cpu")
    info = settings_in({"parameters": json.dumps(FOOOCUS), "fooocus_scheme": "fooocus"})
    assert facts(info) == expected
    assert [info.settings[key] for key in ("Model", "Model hash", "sharpness")] == ["jug", "0123456789", "2"]
    endless = json.dumps(FOOOCUS).replace('"sharpness": 2.0', '"sharpness": 1e999')
    assert settings_in({"parameters": endless}).settings["sharpness"] == "inf"
    Image.new("RGB", (8, 8)).save(tmp_path / "a.jpg", exif=exif_of(json.dumps(FOOOCUS)))
    assert facts(settings_of(tmp_path / "a.jpg")) == expected
    exif = Image.Exif()
    exif[0x9286], exif[0x927C] = json.dumps(FOOOCUS), "fooocus"  # as it writes them: not in the folder for them
    Image.new("RGB", (8, 8)).save(tmp_path / "b.jpg", exif=exif)
    assert facts(settings_of(tmp_path / "b.jpg")) == expected


def test_swarmui():
    document = {"prompt": "a cat", "negativeprompt": "", "steps": 4, "cfgscale": 1.0, "seed": 9, "width": 512}
    document |= {"height": 512, "sampler": "euler_ancestral", "scheduler": "karras", "loras": ["ink"], "model": "a/b"}
    info = settings_in({"parameters": json.dumps({"sui_image_params": document})})
    assert facts(info) == ("a cat <lora:ink:1>", "", 4, 1, 9, 512, 512, "Euler a", "Karras", "cpu")


def test_novelai():
    document = {"prompt": "{a cat}", "uc": "dog", "steps": 28, "scale": 5, "seed": 1, "width": 832, "height": 1216}
    document |= {"sampler": "k_dpmpp_2s_ancestral", "noise_schedule": "karras", "uncond_scale": 1.0}
    texts = {"Comment": json.dumps(document), "Software": "NovelAI", "Source": "Stable Diffusion XL C1E1DE52"}
    info = settings_in(texts | {"Description": "{a cat}"})
    assert facts(info)[:-1] == ("{a cat}", "dog", 28, 5, 1, 832, 1216, "DPM++ 2S a", "Karras")
    assert info.settings["Model"] == "Stable Diffusion XL C1E1DE52"
    newer = {"v4_prompt": {"caption": {"base_caption": "a fox"}}, "v4_negative_prompt": {"caption": 3}}
    assert settings_in({"Comment": json.dumps(document | newer)}).prompt == "a fox"


def test_draw_things(tmp_path):
    document = {
        "c": 'a <cat> & "dog"',
        "uc": "x",
        "model": "sd_v1.5_f16.ckpt",
        "sampler": "DPM++ 2M Trailing",
        "scale": 2,
    }
    document |= {"seed": 4, "steps": 6, "size": "512x640", "strength": 1}
    document |= {"seed_mode": "Torch CPU Compatible", "v2": {}, "scale": 2}
    document |= {"lora": [{"model": "ink.ckpt", "weight": 0.5}]}
    inside = json.dumps(document).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    item = f'<rdf:Alt><rdf:li xml:lang="x-default">{inside}</rdf:li></rdf:Alt>'
    packet = f"<x:xmpmeta><exif:UserComment>{item}</exif:UserComment></x:xmpmeta>"
    info = settings_of(png(tmp_path / "a.png", **{"XML:com.adobe.xmp": packet}))
    expected = ('a <cat> & "dog" <lora:ink:0.5>', "x", 6, 2, 4, 512, 640, "DPM++ 2M", "trailing", "cpu")
    assert facts(info) == expected
    assert info.settings["Model"] == "sd_v1.5_f16"
    Image.new("RGB", (8, 8)).save(tmp_path / "a.webp", xmp=packet.encode())
    assert facts(settings_of(tmp_path / "a.webp")) == expected


def test_one_chunk_for_each_key(tmp_path):
    lcm = {"prompt": "a cat", "seed": "8", "width": "512", "height": "640", "guidance_scale": "8.0"}
    info = settings_of(png(tmp_path / "a.png", **lcm, num_inference_steps="4"))
    assert facts(info)[:8] == ("a cat", "", 4, 9, 8, 512, 640, "LCM")
    easy = {"sampler_name": "dpmpp_2m", "negative_prompt": "dog", "use_stable_diffusion_model": "sd/dream"}
    easy |= {"num_inference_steps": "25", "clip_skip": "True", "use_lora_model": "ink", "lora_alpha": "0.4"}
    info = settings_of(png(tmp_path / "b.png", **lcm, **easy))
    assert facts(info)[:8] == ("a cat <lora:ink:0.4>", "dog", 25, 8, 8, 512, 640, "DPM++ 2M")
    assert (info.settings["Clip skip"], info.settings["Model"]) == ("2", "dream")


def test_pictures_that_are_nobodys(tmp_path):
    exif = exif_of("Screenshot")
    Image.new("RGB", (8, 8)).save(tmp_path / "a.jpg", exif=exif)
    assert settings_of(tmp_path / "a.jpg") is None
    assert settings_of(png(tmp_path / "b.png", prompt="a cat", Comment="hello", Software="GIMP")) is None
    assert settings_of(png(tmp_path / "c.png", parameters="only words")).prompt == "only words"
    Image.new("RGB", (8, 8)).save(tmp_path / "d.jpg", exif=b"Exif\0\0MM\0*\0\0\0\x08\0\xff" + b"\xff" * 40)
    assert settings_of(tmp_path / "d.jpg") is None


# ---- names


@pytest.mark.parametrize("label", sorted(set(SAMPLERS.values())))
def test_every_sampler_that_names_lead_to_is_ours(label):
    assert sampler_named(label).label == label


def test_every_schedule_that_names_lead_to_is_ours():
    assert {table_named(label) for label in SCHEDULES.values()}
    assert [sampler_names(name)[0] for name in ("k_dpm_2_a", "kdpm_2_a_k", "dpm_2_ancestral")] == ["DPM2 a"] * 3
    assert schedule_name("made up") == "made up"
    assert file_name("v1.5") == "v1.5"


# ---- texts that are made to break a reader


ADVERSARIAL = {
    "quotes": '"' * 300_000,
    "backslashes": 'Steps: "' + "\\" * 300_000,
    "odd backslashes": 'aa: "\\' * 60_000,
    "opened quotes": 'aa: "x, ' * 60_000,
    "letters": "a" * 500_000,
    "spaces": "Steps:" + " " * 500_000 + "x",
    "blank runs": "a " * 200_000,
    "colons": "aa:" * 150_000,
    "braces": "aa: {" * 100_000,
    "brackets": "aa: [" + "[" * 300_000,
    "json strings": 'aa: ["x ' * 60_000,
    "numbers": "Steps: " + "9" * 300_000 + ", Seed: 1, Size: " + "9" * 9000 + "x1",
    "lines": "Negative prompt:\n" * 60_000,
    "deep json": '{"a":' * 100_000,
    "deep list": "{" + '"a":' + "[" * 100_000,
    "big json": json.dumps({"base_model": "x", "prompt": ["a"] * 100_000, "seed": {"b": [1] * 100_000}}),
    "huge number": '{"base_model": "x", "prompt": "a", "seed": 1e999, "steps": ' + "9" * 5000 + "}",
    "samplers": json.dumps({str(k): node("KSampler", positive=["1", 0], samples=[str(k + 1), 0]) for k in range(3000)}),
    "one cycle": json.dumps({str(k): node("R", a=[str((k * 7 + 1) % 9000), 0], text=[str(k), 0]) for k in range(9000)}
                            | {"s": node("KSampler", positive=["1", 0], latent_image=["1", 0], model=["1", 0])}),
    "a dream": '"' + "[" * 200_000 + '" -s ' + "-" * 200_000,
    "dream quotes": '" -' * 100_000,
    "xmp": "<exif:UserComment>" * 20_000 + "<rdf:li" * 20_000 + "&#" + "9" * 9000 + ";",
    "surrogates": '{"base_model": "\\ud800", "prompt": "\\udfff\\u0000"}',
}  # fmt: skip
KEYS = ("parameters", "UserComment", "prompt", "Comment", "Dream", "invokeai_metadata", "sd-metadata", "xmp")


@pytest.mark.parametrize("name", ADVERSARIAL)
def test_no_text_takes_long_or_fails(name):
    started = time.process_time()
    for key in KEYS:
        info = settings_in({key: ADVERSARIAL[name]})
        if info is not None:
            "".join((info.prompt, info.negative_prompt, *info.settings.values())).encode()
    assert time.process_time() - started < 3


def test_a_line_of_settings_takes_time_in_proportion_to_its_length():
    def seconds(text):
        started = time.process_time()
        parse(text)
        return time.process_time() - started

    for name in ("letters", "blank runs", "odd backslashes", "opened quotes", "json strings"):
        text = ADVERSARIAL[name]
        assert seconds(text) < 0.5 + 40 * seconds(text[: len(text) // 10])
