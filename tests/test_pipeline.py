"""The pipeline on tiny random models: seeds, strengths, masks, LoRAs, and what a picture records."""

import warnings

import numpy as np
import pytest
from PIL import Image

import fewstep
from fewstep.checkpoints.description import Sampling
from fewstep.checkpoints.shelves import find_lora
from fewstep.errors import LoraError, RequestError
from fewstep.infotext import parse, request_from_infotext
from fewstep.pipeline import Pipeline, lora_pairs
from fewstep.plan import Defaults, plan_of
from fewstep.request import Request
from tests.tiny import tiny_folder, tiny_model

START = Image.effect_noise((64, 64), 60).convert("RGB")


@pytest.fixture(scope="module")
def pipe():
    return Pipeline(tiny_model("sd15"))


@pytest.fixture(scope="module")
def lora_file(tmp_path_factory):
    import torch

    from fewstep.checkpoints.lora import write_lora

    module = "down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_v"
    pair = torch.linspace(-9, 9, 64).reshape(2, 32), torch.linspace(9, -9, 64).reshape(32, 2)
    return write_lora(tmp_path_factory.mktemp("loras") / "ink.safetensors", {module: pair}, alpha=2).path


def pixels(image):
    return np.asarray(image).astype(int)


def furthest(one, other):
    return int(np.abs(pixels(one) - pixels(other)).max())


@pytest.mark.parametrize("steps", range(1, 9))
def test_steps_are_evaluations(pipe, steps):
    found = list(pipe.steps(Request("a cat", steps=steps, seed=0)))
    assert [step.index for step in found] == list(range(steps))
    assert [step.last for step in found] == [False] * (steps - 1) + [True]


@pytest.mark.parametrize("strength", [0.01, 0.1, 0.5, 1.0])
@pytest.mark.parametrize("sampler", ["lcm", "dpmpp_2m", "tcd"])
def test_strength_costs_no_steps(pipe, strength, sampler):
    steps = 1 if strength == 0.01 and sampler != "dpmpp_2m" else 4
    request = Request("a cat", image=START, strength=strength, steps=steps, sampler=sampler, seed=0, guidance=1)
    assert len(list(pipe.steps(request))) == steps


def test_full_strength_forgets_the_picture(pipe):
    how = {"steps": 2, "seed": 5, "guidance": 1.0}
    assert furthest(pipe("a cat", image=START, strength=1, **how), pipe("a cat", **how)) == 0


def test_little_strength_keeps_the_picture(pipe):
    known = pipe.runner.encode(np.asarray(START)[None])
    request = Request("a", steps=1, seed=5, guidance=1, sampler="ddim", image=START)
    faint, strong = (next(pipe.steps(request.replaced(strength=s))).step.z for s in (0.01, 0.9))
    assert 5 * (faint - known).abs().mean() < (strong - known).abs().mean()


@pytest.mark.parametrize("sampler", ["lcm", "euler_a", "dpmpp_2m"])
def test_alone_or_in_a_batch_is_the_same_picture(pipe, sampler):
    how = {"steps": 2, "guidance": 1.5, "sampler": sampler}
    alone = [pipe("a cat", seed=seed, **how) for seed in (8, 9)]
    one_by_one = pipe("a cat", seed=8, count=2, **how)
    assert [furthest(*pair) for pair in zip(alone, one_by_one, strict=True)] == [0, 0]
    batched = Pipeline(pipe.model, batch=4)("a cat", seed=8, count=2, **how)
    assert all(furthest(*pair) <= 2 for pair in zip(alone, batched, strict=True))
    assert furthest(*alone) > 0


def test_seeds(pipe):
    first = pipe("a cat", steps=1, seed=0)
    assert furthest(first, pipe("a cat", steps=1, seed=0)) == 0
    assert parse(first.info["parameters"]).settings["Seed"] == "0"
    last = pipe("a cat", steps=1, seed=2**32 - 1, count=2)
    assert furthest(last[1], first) == 0


def test_without_a_seed_one_is_drawn_and_recorded(pipe):
    seed = parse(pipe("a cat", steps=1).info["parameters"]).settings["Seed"]
    assert 0 <= int(seed) < 2**32


def test_empty_and_long_prompts(pipe):
    pipe("", steps=1)
    plan = pipe.plan(Request("cat " * 2_500, steps=1))
    assert pipe.tokens(plan)["prompt"] == {"tokens": 2500, "chunks": 34}
    assert not plan.notes
    assert furthest(pipe("cat " * 2_500, steps=1, seed=0), pipe("cat " * 75, steps=1, seed=0)) > 0


def test_a_negative_prompt_without_effect_is_told(pipe):
    with pytest.warns(UserWarning, match="no effect at guidance 1"):
        image = pipe("a cat", steps=1, guidance=1, negative_prompt="dog", seed=1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert furthest(image, pipe("a cat", steps=1, guidance=1, seed=1)) == 0
        pipe("a cat", steps=1, guidance=1.5, negative_prompt="dog", seed=1)


def test_guidance_one_costs_one_prediction(pipe, monkeypatch):
    batches = []
    forward = pipe.model.unet.forward
    monkeypatch.setattr(pipe.model.unet, "forward", lambda z, *a, **k: (batches.append(len(z)), forward(z, *a, **k))[1])
    pipe("a cat", steps=2, guidance=1, seed=1)
    pipe("a cat", steps=2, guidance=2, seed=1)
    assert batches == [1, 1, 2, 2]


def test_embedded_guidance():
    pipe = Pipeline(tiny_model("lcm"))
    assert furthest(pipe("a cat", seed=1, guidance=2), pipe("a cat", seed=1, guidance=9)) > 0
    with pytest.warns(UserWarning, match="takes its guidance as an input"):
        image = pipe("a cat", seed=1, negative_prompt="dog")
    settings = parse(image.info["parameters"]).settings
    assert (settings["Sampler"], settings["Guidance embedding"], settings["Steps"]) == ("LCM", "8", "4")
    assert "CFG scale" not in settings


@pytest.mark.parametrize("kind", ["sd2", "ssd1b", "sdxl", "pictogram"])
def test_every_family_paints(kind):
    pipe = Pipeline(tiny_model(kind))
    assert pipe("a cat", steps=1, seed=1, width=64, height=72).size == (64, 72)


# ---- inpainting


@pytest.mark.parametrize("sampler", ["lcm", "tcd", "ddim", "euler_a", "dpmpp_2m", "unipc"])
@pytest.mark.parametrize("strength", [0.5, 1.0])
def test_outside_the_mask_nothing_changes(pipe, sampler, strength):
    mask = Image.new("L", (64, 64))
    mask.paste(255, (8, 16, 40, 32))
    image = pipe("a cat", image=START, mask=mask, strength=strength, steps=2, sampler=sampler, seed=3, guidance=1)
    changed = (pixels(image) != pixels(START)).any(axis=-1)
    assert not changed[np.asarray(mask) == 0].any()
    assert changed[np.asarray(mask) == 255].mean() > 0.9


def test_a_one_pixel_mask(pipe):
    mask = Image.new("1", (64, 64))
    mask.putpixel((33, 5), 1)
    image = pipe("a cat", image=START, mask=mask, steps=1, seed=3, guidance=1)
    assert np.argwhere((pixels(image) != pixels(START)).any(axis=-1)).tolist() in ([[5, 33]], [])


@pytest.mark.parametrize("sampler", ["lcm", "euler_a", "dpmpp_2m", "unipc"])
def test_the_known_part_is_the_known_latents_noised_anew(pipe, sampler):
    """Whatever the sampler: after each step the known cells are alpha z + sigma noise, with unit noise."""
    mask = Image.new("L", (64, 64))
    mask.paste(255, (0, 0, 64, 8))
    known = pipe.runner.encode(np.asarray(START)[None])
    for step in pipe.steps(Request("a", image=START, mask=mask, steps=4, sampler=sampler, seed=1, guidance=1)):
        alpha, sigma = pipe.model.schedule.alpha_sigma(step.step.t_next, known)
        rest = (step.step.z - alpha * known)[:, :, 1:]
        assert rest.std().item() == pytest.approx(sigma.item(), rel=0.15, abs=1e-5)


def test_mask_and_picture_of_other_sizes(pipe):
    image, mask = Image.new("RGB", (200, 100), "red"), Image.new("L", (50, 25), 255)
    assert pipe("a", image=image, mask=mask, steps=1, seed=1).size == (200, 104)
    assert pipe("a", image=image, steps=1, seed=1, width=64, height=64).size == (64, 64)
    assert pipe("a", image=Image.new("RGB", (8, 8)), steps=1, seed=1).size == (64, 64)


# ---- steps, previews


def test_previews_come_with_every_step(pipe):
    request = Request("a cat", steps=3, seed=4, count=2)
    steps = list(pipe.steps(request))
    assert [(step.first, step.index) for step in steps] == [(first, index) for first in (0, 1) for index in range(3)]
    assert all(image.size == (64, 64) for step in steps for image in step.preview())
    done = [picture for step in steps if step.last for picture in step.pictures()]
    assert [furthest(*pair) for pair in zip(done, pipe(request), strict=True)] == [0, 0]


def test_stopping_early_does_no_harm(pipe):
    before = pipe("a cat", steps=2, seed=1)
    next(iter(pipe.steps(Request("a dog", steps=8, seed=2))))
    assert furthest(before, pipe("a cat", steps=2, seed=1)) == 0


@pytest.mark.parametrize(
    "fields",
    [
        {"stepz": 1},
        {"steps": 0},
        {"sampler": "best"},
        {"schedule": "best"},
        {"rng": "gpu"},
        {"ensd": -1},
        {"clip_skip": 9},
    ],
)
def test_mistakes_in_requests(pipe, fields):
    with pytest.raises(RequestError):
        pipe("a cat", **fields)


def test_too_many_steps_for_the_distillation(pipe):
    with pytest.raises(RequestError, match="1000 steps are more than the 50"):
        pipe("a cat", steps=1000, sampler="lcm")


# ---- what a picture records


def test_a_picture_can_be_made_again_from_its_settings(pipe):
    image = pipe('a (cat), "red"\non: the moon', steps=3, guidance=1.7, sampler="TCD", negative_prompt="dog", seed=77)
    again = pipe(request_from_infotext(image.info["parameters"]))
    assert furthest(image, again) == 0
    assert again.info["parameters"] == image.info["parameters"]


@pytest.mark.parametrize(
    ("fields", "recorded"),
    [
        ({"sampler": "DPM++ SDE Karras"}, {"Sampler": "DPM++ SDE", "Schedule type": "Karras"}),
        ({"sampler": "heun", "schedule": "automatic"}, {"Sampler": "Heun", "Schedule type": "Uniform"}),
        ({"sampler": "DPM2 a", "schedule": "Automatic", "rng": "NV"}, {"Schedule type": "Karras", "RNG": "NV"}),
        ({"sampler": "DPM++ 2M SDE Karras", "schedule": "Automatic"}, {"Schedule type": "Karras"}),
        ({"sampler": "lcm", "schedule": "Automatic"}, {"Timestep table": "a1111", "LCM origin steps": "50"}),
        ({"sampler": "plms", "schedule": "AYS"}, {"Sampler": "PLMS", "Schedule type": "Align Your Steps"}),
        ({"sampler": "DPM adaptive", "count": 2}, {"Sampler": "DPM adaptive", "Timestep table": "trailing"}),
        ({"sampler": "Euler a", "ensd": 31337}, {"ENSD": "31337", "Timestep table": "trailing"}),
    ],
)
def test_samplers_schedules_and_noises_are_recorded_and_repeated(pipe, fields, recorded):
    image = pipe("a cat", steps=3, guidance=1, seed=5, width=64, height=64, **fields)
    image = image[1] if isinstance(image, list) else image
    settings = parse(image.info["parameters"]).settings
    assert settings.items() >= recorded.items()
    assert ("Schedule type" in settings) != ("Timestep table" in settings)
    assert furthest(image, pipe(request_from_infotext(image.info["parameters"]))) == 0


def test_the_kind_of_noise_and_its_second_seed_change_the_picture(pipe):
    how = {"steps": 2, "guidance": 1, "seed": 5, "sampler": "Euler a"}
    pictures = [pipe("a cat", **how, **more) for more in ({}, {"rng": "nv"}, {"ensd": 1}, {"rng": "nv", "ensd": 1})]
    assert all(furthest(a, b) > 0 for i, a in enumerate(pictures) for b in pictures[:i])
    assert furthest(pictures[0], pipe("a cat", **how, ensd=0)) == 0


def test_sdxl_has_steps_of_its_own_to_align():
    sampling = Sampling()
    request = Request("a", sampler="euler", schedule="Align Your Steps", steps=10)
    small, large = (plan_of(request, Defaults(sampling, xl=xl)) for xl in (False, True))
    assert (small.table, large.table) == ("align_your_steps", "align_your_steps_xl")
    assert small.timesteps[0] == large.timesteps[0] == 999
    assert small.timesteps[1] > large.timesteps[1]
    assert large.infotext(0, {}).settings["Schedule type"] == "Align Your Steps"


def test_the_recorded_settings(pipe):
    mask = Image.new("L", (64, 64), 255)
    image = pipe("a cat", image=START, mask=mask, strength=0.5, steps=2, sampler="lcm", seed=1, clip_skip=2)
    settings = parse(image.info["parameters"]).settings
    expected = {
        "Steps": "2", "Sampler": "LCM", "Size": "64x64", "Denoising strength": "0.5", "Clip skip": "2", "RNG": "CPU",
        "Timestep table": "linspace-lcm", "LCM origin steps": "50", "Model": "tiny-sd15", "Precision": "float32",
        "Version": f"fewstep {fewstep.__version__}",
    }  # fmt: skip
    assert settings.items() >= expected.items()
    assert {"Model hash", "Init image hash", "Mask hash"} <= settings.keys()


# ---- LoRAs


def test_loras_come_and_go(pipe, lora_file):
    how = {"steps": 1, "seed": 1, "guidance": 1.0}
    plain = pipe("a cat", **how)
    pipe.set_loras((lora_file, 0.5))
    inked = pipe("a cat", **how)
    assert furthest(plain, inked) > 0
    assert parse(inked.info["parameters"]).settings["Loras"] == "ink: 0.5"
    assert len(parse(inked.info["parameters"]).settings["Lora hashes"]) == len("ink: ") + 12
    assert furthest(pipe("a cat <lora:ink:0>", **how), plain) == 0
    assert furthest(pipe("a cat", **how), inked) == 0
    pipe.set_loras(None)
    assert furthest(pipe("a cat", **how), plain) == 0


def test_a_few_step_lora_brings_its_sampler(lora_file, tmp_path):
    from safetensors import safe_open
    from safetensors.torch import save_file

    with safe_open(lora_file, framework="pt") as file:
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    path = tmp_path / "quick.safetensors"
    save_file(tensors, path, metadata={"fewstep.sampler": "tcd", "fewstep.steps": "3", "fewstep.guidance": "1"})
    pipe = fewstep.load(tiny_folder("sd15"), lora=path, device="cpu")
    plan = pipe.plan(Request("a cat"))
    assert (plan.sampler.name, len(plan.timesteps), plan.guidance) == ("tcd", 3, 1.0)
    pipe.set_loras((path, 0))
    assert pipe.plan(Request("a cat")).sampler.name == "dpmpp_2m"
    pipe.set_loras(False)
    assert pipe.plan(Request("a cat")).sampler.name == "dpmpp_2m"


@pytest.mark.embedded
def test_the_embedded_model_brings_its_own_lora():
    pipe = fewstep.load(device="cpu")
    assert [(lora.name, weight) for lora, weight in pipe.loras] == [("lcm-lora", 1.0)]
    plan = pipe.plan(Request("a red apple"))
    assert plan.sampler.name == "lcm"
    assert len(plan.timesteps) <= 8
    assert fewstep.load(device="cpu", lora=False).loras == ()
    assert [lora.name for lora, _ in fewstep.load(device="cpu", lora="lcm-lora").loras] == ["lcm-lora"]


def test_mistakes_with_loras(pipe, lora_file):
    for name in ("ink", "../ink", "/etc/passwd", ".hidden"):
        with pytest.raises(LoraError):
            pipe(f"a cat <lora:{name}:1>", steps=1)
    with pytest.raises(RequestError, match="twice"):
        pipe.set_loras([lora_file, lora_file])
    with pytest.raises(LoraError, match="a folder"):
        find_lora(lora_file.parent, pipe.model.path)
    assert find_lora(str(lora_file.with_suffix("")), pipe.model.path) == lora_file
    assert find_lora("ink", lora_file.parent) == lora_file
    assert pipe.loras == ()


@pytest.mark.parametrize("bad", [True, 3, [3], [("a", "b")], ("a", float("nan")), [("a", float("inf"))]])
def test_what_is_no_lora(bad):
    with pytest.raises(RequestError):
        lora_pairs(bad)
