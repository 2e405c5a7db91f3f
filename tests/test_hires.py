"""The second pass on tiny random models: what it equals, what it records, what it refuses; both back ends."""

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("onnx")

import fewstep
from fewstep import second
from fewstep.checkpoints.load import load_model
from fewstep.conditioning import conditioned
from fewstep.errors import CheckpointError, RequestError
from fewstep.export.onnx import export_graphs
from fewstep.hires import LATENT
from fewstep.infotext import parse, request_from_infotext
from fewstep.pipeline import Pipeline
from fewstep.request import Request, request_of, schema
from fewstep.sampling.resize import resize
from fewstep.sampling.schedule import add_noise
from fewstep.sampling.tiles import blended
from tests.tiny import tiny_folder, tiny_model

HOW = {"seed": 0, "steps": 2, "guidance": 1, "sampler": "lcm"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tiny_folder("pictogram", into=tmp_path_factory.mktemp("hires") / "tiny")
    export_graphs(folder)
    return folder


@pytest.fixture(scope="module")
def pair(folder):
    return Pipeline(load_model(folder, device="cpu")), fewstep.load(folder, device="cpu")


@pytest.fixture(scope="module")
def pipe(pair):
    return pair[0]


def furthest(one, other):
    return int(np.abs(np.asarray(one, int) - np.asarray(other, int)).max())


def settings_of(image):
    return parse(image.info["parameters"]).settings


# ---- what it is


@pytest.mark.parametrize("strength", [0.3, 1.0])
def test_it_is_image_to_image_of_the_resized_picture(pipe, strength):
    """Defined by hand: generate, resize, paint again with the same seed."""
    found = pipe("a cat", **HOW, hires_scale=1.5, hires_strength=strength, hires_upscaler="Lanczos")
    small = pipe("a cat", **HOW)
    large = small.resize((96, 96), Image.Resampling.LANCZOS)
    assert furthest(found, pipe("a cat", image=large, strength=strength, **HOW)) == 0


@pytest.mark.parametrize("upscaler", LATENT)
def test_latent_upscalers_stay_among_the_latents(pipe, upscaler, monkeypatch):
    request = Request("a cat", **HOW, hires_scale=2, hires_strength=0.5, hires_upscaler=upscaler)
    monkeypatch.setattr(pipe.runner, "encode", None)
    steps = [step.step for step in pipe.steps(request)]
    large = resize(steps[1].z, (16, 16), LATENT[upscaler])
    noise = pipe.runner.noise([0], (128, 128))()
    plan = pipe.plan(request)
    asked = add_noise(pipe.model.schedule, large, noise, plan.hires.timesteps[0])
    z0 = conditioned(pipe.runner, plan.hires, {})(asked, np.array([plan.hires.timesteps[0]]))
    assert (z0 - steps[2].z0).abs().max() < 1e-4


@pytest.mark.parametrize(("steps", "strength"), [*zip(range(1, 9), (0.2, 1.0) * 4, strict=True)])
def test_steps_are_evaluations_in_both_passes(pipe, steps, strength):
    request = Request("a", **HOW, hires_scale=1, hires_steps=steps, hires_strength=strength)
    found = list(pipe.steps(request))
    assert [step.index for step in found] == list(range(2 + steps))
    assert {step.count for step in found} == {2 + steps}
    assert [step.last for step in found] == [False] * (1 + steps) + [True]


def test_steps_that_nobody_asked_for_are_as_many_as_the_strength_has(pipe):
    how = HOW | {"steps": 8, "hires_scale": 2}
    assert len(pipe.plan(Request("a", **how)).hires.timesteps) == 3
    assert len(pipe.plan(Request("a", **how, hires_strength=0.5)).hires.timesteps) == 8
    with pytest.raises(RequestError, match="8 steps at strength 0.06 need 8"):
        pipe.plan(Request("a", **how, hires_steps=8))


@pytest.mark.parametrize(("scale", "side"), [(1, 64), (1.5, 96), (2, 128), (4, 256)])
def test_scales(pipe, scale, side):
    image = pipe("", **HOW, hires_scale=scale, hires_steps=1)
    assert image.size == (side, side)
    assert (settings_of(image)["Size"], settings_of(image)["Hires upscale"]) == ("64x64", f"{scale:g}")


@pytest.mark.parametrize("upscaler", ["Lanczos", "Latent (nearest)"])
def test_almost_no_strength_keeps_the_enlarged_picture(pipe, upscaler):
    how = {"hires_scale": 2, "hires_steps": 1, "hires_upscaler": upscaler, "sampler": "ddim", "steps": 2}
    request = Request("a", seed=0, guidance=1, **how)
    first = next(step for step in pipe.steps(request) if step.index == 1)
    known = second.enlarge((pipe.runner, pipe.runner), pipe.plan(request), first.step.z)
    noises = []
    for strength in (0.01, 0.9):
        *_, last = pipe.steps(request.replaced(hires_strength=strength))
        noises.append(float(np.abs(last.step.z.numpy() - np.asarray(known)).mean()))
    assert 3 * noises[0] < noises[1]


def test_previews_of_both_passes(pipe):
    sizes = [step.preview()[0].size for step in pipe.steps(Request("a", **HOW, hires_scale=2, hires_steps=1))]
    assert sizes == [(64, 64), (64, 64), (128, 128)]


def test_alone_or_in_a_batch_is_the_same_picture(pipe):
    how = HOW | {"hires_scale": 1.5, "hires_steps": 2, "hires_sampler": "Euler a"}
    alone = [pipe("a cat", **(how | {"seed": seed})) for seed in (8, 9)]
    one_by_one = pipe("a cat", **(how | {"seed": 8}), count=2)
    assert [furthest(*pair) for pair in zip(alone, one_by_one, strict=True)] == [0, 0]
    batched = Pipeline(pipe.model, batch=4)("a cat", **(how | {"seed": 8}), count=2)
    assert all(furthest(*pair) <= 2 for pair in zip(alone, batched, strict=True))


def test_stopping_in_the_second_pass_does_no_harm(pipe):
    before = pipe("a cat", **HOW)
    steps = pipe.steps(Request("a dog", **HOW, hires_scale=2))
    while next(steps).index < 2:
        pass
    steps.close()
    assert furthest(before, pipe("a cat", **HOW)) == 0


# ---- what it records


FULL = {
    "hires_scale": 1.5, "hires_steps": 3, "hires_strength": 0.4, "hires_upscaler": "Latent (nearest-exact)",
    "hires_sampler": "DPM++ 2M Karras", "hires_guidance": 1.5, "hires_prompt": 'a "dog", red',
    "hires_negative_prompt": "cat",
}  # fmt: skip


@pytest.mark.parametrize(
    "fields",
    [
        {"hires_scale": 2},
        {"hires_width": 96},
        {"hires_width": 96, "hires_height": 72, "hires_sampler": "LCM", "hires_schedule": "sgm"},
        FULL,
        {"hires_scale": 1.5, "tile": 64},
        {"hires_scale": 1.5, "tile": 0, "hires_guidance": 0},
    ],
)
def test_round_trip(pipe, fields):
    image = pipe("a cat", **HOW, **fields)
    again = pipe(request_from_infotext(image.info["parameters"]))
    assert furthest(image, again) == 0
    assert again.info["parameters"] == image.info["parameters"]


def test_the_keys_are_a1111_s(pipe):
    found = settings_of(pipe("a cat", **HOW, **FULL))
    expected = {
        "Denoising strength": "0.4", "Hires upscale": "1.5", "Hires steps": "3",
        "Hires upscaler": "Latent (nearest-exact)", "Hires sampler": "DPM++ 2M", "Hires schedule type": "Karras",
        "Hires CFG Scale": "1.5", "Hires prompt": 'a "dog", red', "Hires negative prompt": "cat",
    }  # fmt: skip
    assert {key: value for key, value in found.items() if "ires" in key or "Den" in key} == expected
    plain = settings_of(pipe("a cat", **HOW, hires_scale=2))
    assert [key for key in plain if "ires" in key] == ["Hires upscale", "Hires steps", "Hires upscaler"]
    resized = settings_of(pipe("a cat", **HOW, hires_width=96))
    assert (resized["Hires resize"], "Hires upscale" in resized) == ("96x0", False)
    assert not [key for key in settings_of(pipe("a cat", **HOW)) if "ires" in key]


def test_image_to_image_has_both_strengths(pipe):
    start = Image.effect_noise((64, 64), 60).convert("RGB")
    image = pipe("a", **HOW, image=start, strength=0.6, hires_scale=1.5, hires_strength=0.3)
    found = settings_of(image)
    assert (found["Denoising strength"], found["Hires denoising strength"]) == ("0.6", "0.3")
    assert request_from_infotext(image.info["parameters"]).hires_strength == 0.3


def test_fields_are_in_the_schema_and_their_help_says_second_pass():
    entries = {name: entry for name, entry in schema()["properties"].items() if name.startswith("hires_")}
    assert len(entries) == 11
    assert all(entry["description"].startswith("second pass: ") for entry in entries.values())
    assert entries["hires_scale"]["maximum"] == 8


# ---- another model


def few_step_lora(path):
    """A LoRA that wants to be sampled by TCD in three steps."""
    import torch
    from safetensors.torch import save_file

    module = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_v"
    tensors = {f"{module}.lora_down.weight": torch.ones(2, 160), f"{module}.lora_up.weight": torch.ones(32, 2)}
    metadata = {"fewstep.sampler": "tcd", "fewstep.steps": "3", "fewstep.guidance": "1"}
    save_file(tensors, path, metadata=metadata)
    return path


def test_each_pass_follows_its_own_model(folder, pair, tmp_path):
    quick = few_step_lora(tmp_path / "quick.safetensors")
    for pipe in pair:
        fast = Pipeline(pipe.model, quick, hires=Pipeline(pipe.model))
        plan = fast.plan(Request("a cat", hires_scale=1.5, seed=1))
        assert (plan.sampler.name, len(plan.timesteps), plan.guidance) == ("tcd", 3, 1.0)
        own = fast.model.sampling
        later = (plan.hires.sampler.name, len(plan.hires.timesteps), plan.hires.guidance)
        assert later == (own.sampler, own.steps, own.guidance)
        found = settings_of(fast("a cat", hires_scale=1.5, seed=1, hires_steps=2))
        assert found.items() >= {"Hires loras": "none", "Loras": "quick: 1", "Hires steps": "2"}.items()
        assert {"Hires sampler", "Hires CFG Scale"} <= found.keys()
        assert "Hires checkpoint" not in found
        alone = Pipeline(pipe.model, quick).plan(Request("a cat", hires_scale=1.5, seed=1)).hires
        assert (alone.sampler.name, len(alone.timesteps)) == ("tcd", 3)
        pipe.set_loras(None)


def test_the_second_model_paints_the_second_pass(pipe):
    other = Pipeline(tiny_model("sd15"))
    both = Pipeline(pipe.model, hires=other)
    how = HOW | {"hires_scale": 1.5, "hires_steps": 2, "hires_sampler": "lcm", "hires_guidance": 1}
    image = both("a cat", **how)
    large = pipe("a cat", **HOW).resize((96, 96), Image.Resampling.LANCZOS)
    assert furthest(image, other("a cat", **HOW, image=large, strength=0.4)) == 0
    assert settings_of(image)["Hires checkpoint"] == f"tiny-sd15 [{other.model.content_hash}]"
    with pytest.raises(RequestError, match=r"Latent keeps the latents.*Use Lanczos"):
        both("a cat", **how, hires_upscaler="Latent")


# ---- both back ends


@pytest.mark.parametrize(
    "fields",
    [
        {"hires_scale": 2},
        {"hires_scale": 1.5, "hires_upscaler": "Latent (bicubic antialiased)", "hires_guidance": 2.0},
        {"hires_width": 80, "hires_height": 136, "hires_upscaler": "Latent (nearest)", "count": 2, "rng": "nv"},
        {"hires_scale": 2, "tile": 64},
    ],
)
def test_onnx_paints_the_same(pair, fields):
    wanted, found = (pipe("a cat", **HOW, **fields) for pipe in pair)
    for one, other in zip(*(shown if isinstance(shown, list) else [shown] for shown in (wanted, found)), strict=True):
        assert furthest(one, other) <= 1
        assert one.info["parameters"] == other.info["parameters"]


def test_latents_pass_from_one_back_end_to_the_other(pair):
    for one, other in (pair, pair[::-1]):
        both = Pipeline(one.model, hires=Pipeline(other.model))
        for upscaler in ("Latent", "Lanczos"):
            fields = HOW | {"hires_scale": 1.5, "hires_upscaler": upscaler}
            assert furthest(both("a cat", **fields), pair[0]("a cat", **fields)) <= 1


# ---- tiles


def test_tiles_of_the_autoencoder(pair):
    """None, none by itself, one that covers all, several; what several cost, the embedded model says below."""
    for pipe in pair:
        pixels = np.asarray(Image.effect_noise((192, 128), 60).resize((24, 16)).resize((192, 128)).convert("RGB"))[None]
        z = pipe.runner.encode(pixels)
        assert furthest(second.decode(pipe.runner, z, 0), pipe.runner.decode(z)) == 0
        assert furthest(second.decode(pipe.runner, z), pipe.runner.decode(z)) == 0
        assert furthest(second.decode(pipe.runner, z, 192), pipe.runner.decode(z)) == 0
        assert second.decode(pipe.runner, z, 96).shape == (1, 128, 192, 3)
        assert second.encode(pipe.runner, pixels, 96).shape == z.shape


def test_large_pictures_are_decoded_in_tiles_by_themselves(pipe, monkeypatch):
    asked = []

    def decode(z, *, tiny):
        asked.append(z.shape[-2:])
        return np.zeros((1, z.shape[2] * 8, z.shape[3] * 8, 3))

    monkeypatch.setattr(pipe.runner, "decode", decode)
    z = pipe.runner.noise([0], (1536, 1024))()
    assert second.decode(pipe.runner, z).shape == (1, 1024, 1536, 3)
    assert set(asked) == {(96, 96)}


def test_windows_are_painted_by_themselves_only_far_above_the_model_s_size(pipe):
    plans = {scale: pipe.plan(Request("a", **HOW, hires_scale=scale)).hires.window for scale in (1, 2, 2.5, 4)}
    assert plans == {1: 0, 2: 0, 2.5: 128, 4: 128}
    assert pipe.plan(Request("a", **HOW, width=512, height=512)).window == 0
    assert pipe.plan(Request("a", **HOW, width=512, height=64, tile=128)).window == 128
    assert pipe.plan(Request("a", **HOW, hires_scale=4, tile=0)).hires.window == 0
    assert pipe.plan(Request("a", **HOW, hires_scale=2, tile=256)).hires.window == 0


def test_a_window_as_large_as_the_picture_changes_nothing(pipe):
    how = HOW | {"hires_scale": 1.5, "hires_steps": 1}
    assert furthest(pipe("a cat", **how, tile=96), pipe("a cat", **how)) == 0
    assert furthest(pipe("a cat", **how, tile=64), pipe("a cat", **how)) > 0


def test_windows_in_batches_are_the_same(pipe):
    how = HOW | {"hires_scale": 1.5, "tile": 64, "hires_guidance": 2.0, "hires_steps": 1}
    assert furthest(Pipeline(pipe.model, batch=4)("a cat", **how), pipe("a cat", **how)) <= 2


# ---- what is refused


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"hires_scale": 0}, "hires_scale is 0.0, but it must be from 1 to 8"),
        ({"hires_scale": float("nan")}, "hires_scale is nan"),
        ({"hires_scale": 0.5}, "from 1 to 8"),
        ({"hires_scale": 2, "hires_strength": 0}, "hires_strength is 0.0"),
        ({"hires_scale": 2, "hires_steps": 0}, "hires_steps is 0"),
        ({"hires_scale": 2, "hires_width": 96}, "both given"),
        ({"hires_width": 100}, "multiples of 8"),
        ({"hires_steps": 2}, "hires_steps was given without a second pass"),
        ({"hires_prompt": "a"}, "hires_prompt was given without"),
        ({"hires_scale": 8, "width": 2048, "height": 64}, "16384x512 are more than 8192 on a side"),
        ({"hires_scale": 2, "hires_upscaler": "best"}, "no upscaler 'best'"),
        ({"hires_scale": 2, "hires_sampler": "best"}, "no sampler 'best'"),
        ({"hires_scale": 2, "hires_schedule": "best"}, "no timestep table 'best'"),
        ({"hires_scale": 2, "hires_upscaler": "absent.onnx"}, "'absent.onnx' does not exist"),
        ({"tile": 8}, "at least 64"),
        ({"tile": 100}, "multiples of 8"),
    ],
)
def test_mistakes(pipe, fields, reason, monkeypatch):
    monkeypatch.setattr(pipe.runner, "denoiser", None)
    with pytest.raises((RequestError, CheckpointError), match=reason) as found:
        pipe("a cat", **(HOW | fields))
    assert "\n" not in str(found.value)


def test_a_mask_excludes_a_second_pass():
    with pytest.raises(RequestError, match="Inpaint first"):
        request_of({"prompt": "a", "image": "a.png", "mask": "b.png", "hires_scale": 2})


# ---- the embedded model


@pytest.mark.embedded
def test_tiles_of_the_embedded_autoencoder_leave_no_seam():
    """Steps of brightness across the tiles' borders against all others; tiles see less, so the tone may move a bit."""
    pipe = fewstep.load(device="cpu")
    picture = pipe("a cat on a beach", seed=1).resize((256, 256), Image.Resampling.LANCZOS)
    z = pipe.runner.encode(np.asarray(picture)[None])
    tiled = blended(lambda part: pipe.runner.decode(part).transpose(0, 3, 1, 2), z, size=16, overlap=8, scale=8)
    steps = np.abs(np.diff(tiled[0].mean(axis=0), axis=1)).mean(axis=0)
    borders = [8 * start - 1 for start in (8, 16, 16, 24)]
    rest = np.delete(steps, borders)
    assert steps[borders].mean() < rest.mean() + rest.std()
    whole = pipe.runner.decode(z)[0].transpose(2, 0, 1)
    assert np.abs(tiled[0] - whole).mean() < 5


@pytest.mark.embedded
def test_hires_on_the_embedded_model_without_torch():
    import subprocess
    import sys

    program = (
        "import sys, fewstep; pipe = fewstep.load();"
        "image = pipe('a red apple, 3d', steps=1, seed=0, hires_scale=2, hires_upscaler='Latent');"
        "print(image.size, sorted({'torch', 'diffusers', 'transformers'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "(256, 256) []\n"
