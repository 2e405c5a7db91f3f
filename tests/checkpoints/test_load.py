"""Loading and saving whole models: every family, every damage, the Hub, and the way there and back with diffusers."""

import hashlib
import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from fewstep.backends.eager import EagerDenoiser
from fewstep.checkpoints import description
from fewstep.checkpoints.load import Sampling, load_model, schedule_from
from fewstep.checkpoints.save import save_model
from fewstep.errors import CheckpointError, DeviceError, OutputError
from fewstep.models.unet import predict
from fewstep.sampling.schedule import scaled_linear
from tests.tiny import KINDS, noise_config, tiny_folder, tiny_model, tiny_taesd

torch.manual_seed(0)
Z_BCHW = torch.randn(1, 4, 8, 8)
UNET = "unet/diffusion_pytorch_model.safetensors"


def z0_of(model):
    return EagerDenoiser(model, model.text.encode(["a cat"]), None, 2.0)(Z_BCHW, 499)


def change(path, **changes):
    content = json.loads(path.read_text())
    content.update(changes)
    path.write_text(json.dumps({key: value for key, value in content.items() if value != "drop"}))


@pytest.mark.parametrize("kind", KINDS)
def test_every_family_loads_and_its_files_weights_are_in_it(kind):
    model = tiny_model(kind)
    assert model.family.name == {"lcm": "sd15"}.get(kind, kind)
    weights = load_file(tiny_folder(kind) / UNET)
    assert all(torch.equal(tensor, weights[name]) for name, tensor in model.unet.state_dict().items())
    assert not any(p.requires_grad or p.is_meta for p in model.unet.parameters()) and not model.unet.training
    assert model.name == f"tiny-{kind}" and model.device == "cpu" and model.dtype == torch.float32
    assert bool(torch.isfinite(z0_of(model)).all())


def test_content_hash_is_of_the_unets_bytes():
    expected = hashlib.sha256((tiny_folder() / UNET).read_bytes()).hexdigest()[:10]
    assert tiny_model().content_hash == expected


# ---- what a checkpoint says of its sampling and its schedule


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("sd15", Sampling("dpmpp_2m", "linspace", 20, 7.5)),
        ("lcm", Sampling("lcm", "linspace-lcm", 4, 8.0, embedded_guidance=True)),
    ],
)
def test_sampling_by_the_network(kind, expected):
    model = tiny_model(kind)
    assert model.sampling == expected
    assert any(model.sampling.sampler in note for note in model.notes)


@pytest.mark.parametrize(
    ("scheduler", "record", "expected"),
    [
        ({"_class_name": "LCMScheduler"}, None, Sampling("lcm", "linspace-lcm", 4, 1.0)),
        ({"_class_name": "TCDScheduler"}, None, Sampling("tcd", "linspace-lcm", 4, 1.0)),
        ({}, {"sampler": "LCM", "steps": 2, "guidance": 1.5}, Sampling("lcm", "linspace-lcm", 2, 1.5)),
        ({}, {"table": "trailing", "origin_steps": 20}, Sampling("dpmpp_2m", "trailing", 20, 7.5, 20)),
    ],
)
def test_sampling_by_the_files(tmp_path, scheduler, record, expected):
    folder = tiny_folder("sd15", into=tmp_path / "m")
    change(folder / "scheduler" / "scheduler_config.json", **scheduler)
    if record is not None:
        (folder / "fewstep.json").write_text(json.dumps(record))
    assert load_model(folder, device="cpu").sampling == expected


def test_sampling_in_model_index_gives_way_to_fewstep_json(tmp_path):
    folder = tiny_folder("sd15", into=tmp_path / "m")
    change(folder / "model_index.json", _fewstep={"sampler": "tcd", "steps": 3})
    (folder / "fewstep.json").write_text('{"steps": 5}')
    found = load_model(folder, device="cpu").sampling
    assert (found.sampler, found.steps) == ("tcd", 5)


@pytest.mark.parametrize(
    "record", [{"stepz": 4}, {"steps": 0}, {"steps": "4"}, {"steps": True}, {"sampler": "nobody"}, {"table": "odd"}]
)
def test_a_wrong_record_is_an_error(tmp_path, record):
    folder = tiny_folder("sd15", into=tmp_path / "m")
    (folder / "fewstep.json").write_text(json.dumps(record))
    with pytest.raises(CheckpointError, match=r"fewstep\.json"):
        load_model(folder, device="cpu")


def test_schedules_against_diffusers(tmp_path):
    from diffusers.schedulers.scheduling_ddim import DDIMScheduler

    for changes in (
        {},
        {"beta_schedule": "linear", "beta_start": 1e-4, "beta_end": 0.02},
        {"rescale_betas_zero_snr": True, "prediction_type": "v_prediction"},
        {"trained_betas": [0.1, 0.2, 0.3], "num_train_timesteps": 3},
    ):
        config = noise_config() | changes
        expected = DDIMScheduler.from_config(config).alphas_cumprod
        found = schedule_from(config, tmp_path)
        torch.testing.assert_close(torch.tensor(found.alphas_cumprod), expected, rtol=1e-4, atol=1e-6)
        assert found.prediction == config["prediction_type"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"beta_start": "drop"}, "lacks beta_start"),
        ({"beta_schedule": "sigmoid"}, "sigmoid"),
        ({"beta_start": "a"}, "no noise schedule"),
        ({"prediction_type": "flow"}, "flow"),
        ({"rescale_betas_zero_snr": True}, "zero terminal SNR"),
    ],
)
def test_a_wrong_schedule(tmp_path, changes, message):
    folder = tiny_folder("sd15", into=tmp_path / "m")
    change(folder / "scheduler" / "scheduler_config.json", **changes)
    with pytest.raises(CheckpointError, match=message) as caught:
        load_model(folder, device="cpu")
    assert "scheduler_config.json" in str(caught.value)


# ---- damage


def _drop(folder, name):
    (folder / name).unlink()


def _cut(folder, name):
    (folder / name).write_bytes((folder / name).read_bytes()[:-100])


def _tensors(folder, name, edit):
    tensors = load_file(folder / name)
    edit(tensors)
    save_file(tensors, folder / name, metadata={"format": "pt"})


def _poison(tensors):
    tensors["conv_in.weight"][0, 0, 0, 0] = float("nan")


def _reshape(tensors):
    tensors["conv_in.weight"] = tensors["conv_in.weight"][:, :, :1].contiguous()


def _as_pickle(folder):
    (folder / UNET).unlink()
    torch.save({}, folder / "unet" / "diffusion_pytorch_model.bin")


DAMAGE = {
    "no index": (lambda f: _drop(f, "model_index.json"), "no model_index.json"),
    "index not json": (lambda f: (f / "model_index.json").write_text("{"), r"model_index\.json.*json"),
    "another pipeline": (lambda f: change(f / "model_index.json", transformer=["diffusers", "X"]), "only SD 1.5"),
    "no vae named": (lambda f: change(f / "model_index.json", vae="drop"), "names no vae"),
    "no unet config": (lambda f: _drop(f, "unet/config.json"), r"unet/config\.json"),
    "config key": (
        lambda f: change(f / "unet" / "config.json", cross_attention_dim="drop"),
        "lacks cross_attention_dim",
    ),
    "config value": (lambda f: change(f / "text_encoder" / "config.json", hidden_size="x"), "where a number belongs"),
    "config width": (lambda f: change(f / "unet" / "config.json", cross_attention_dim=48), "text encoder"),
    "config nonsense": (lambda f: change(f / "unet" / "config.json", down_block_types=["Odd"] * 4), "cannot be built"),
    "config of another": (lambda f: change(f / "unet" / "config.json", layers_per_block=3), "lacks .* weights"),
    "config too small": (lambda f: change(f / "unet" / "config.json", layers_per_block=1), "does not know"),
    "other class": (lambda f: change(f / "unet" / "config.json", _class_name="UNet3D"), "UNet3D"),
    "vae class": (lambda f: change(f / "vae" / "config.json", _class_name="VQModel"), "VQModel"),
    "vae channels": (lambda f: change(f / "vae" / "config.json", latent_channels=16), "4 latent channels"),
    "text heads": (lambda f: change(f / "text_encoder" / "config.json", num_attention_heads=5), "cannot be built"),
    "no weights": (lambda f: _drop(f, UNET), r"diffusion_pytorch_model\.safetensors' is missing"),
    "pickle": (_as_pickle, "pickle"),
    "cut": (lambda f: _cut(f, UNET), "cut short"),
    "nan": (lambda f: _tensors(f, UNET, _poison), "NaN or infinity"),
    "shape": (lambda f: _tensors(f, UNET, _reshape), r"conv_in\.weight.*shape"),
    "lacks a weight": (lambda f: _tensors(f, UNET, lambda t: t.pop("conv_in.bias")), r"lacks 1 of .*conv_in\.bias"),
    "no vocabulary": (lambda f: _drop(f, "tokenizer/vocab.json"), r"vocab\.json' is missing"),
    "vocabulary not json": (lambda f: (f / "tokenizer" / "vocab.json").write_text("{"), "tokenizer"),
    "empty vocabulary": (lambda f: (f / "tokenizer" / "vocab.json").write_text("{}"), "tokenizer"),
    "no schedule": (lambda f: _drop(f, "scheduler/scheduler_config.json"), r"scheduler_config\.json"),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_damage_is_one_sentence_that_names_the_file(tmp_path, name):
    folder = tiny_folder("sd15", into=tmp_path / "m")
    damage, message = DAMAGE[name]
    damage(folder)
    with pytest.raises(CheckpointError, match=message) as caught:
        load_model(folder, device="cpu")
    assert str(folder) in str(caught.value) and "\n" not in str(caught.value)


def test_weights_beyond_float16(tmp_path):
    folder = tiny_folder("sd15", into=tmp_path / "m")
    _tensors(folder, UNET, lambda tensors: tensors["conv_in.weight"].fill_(1e6))
    with pytest.raises(CheckpointError, match=r"beyond float16.*bf16"):
        load_model(folder, device="cpu", dtype="fp16")
    assert load_model(folder, device="cpu", dtype="bf16").dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("x.ckpt", b"PK", "pickle"),
        ("model.safetensors", {"model.diffusion_model.out.2.weight": 1}, "not whole"),
        ("ink.safetensors", {"lora_unet_mid.lora_down.weight": 1}, "pass this file as lora="),
        ("peft.safetensors", {"unet.mid.lora_A.weight": 1}, "pass this file as lora="),
    ],
)
def test_single_files(tmp_path, name, content, message):
    path = tmp_path / name
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        save_file({key: torch.ones(size) for key, size in content.items()}, path)
    with pytest.raises(CheckpointError, match=message):
        load_model(path, device="cpu")


@pytest.mark.parametrize("path", ["nowhere", "./a/b", "/no/such/folder", "a/b.safetensors", "a/b/c", ""])
def test_a_path_that_is_not_there(tmp_path, monkeypatch, path):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(CheckpointError, match=r"does not exist|no model_index"):
        load_model(path, device="cpu")


def test_the_embedded_model_is_looked_for_in_the_package(monkeypatch, tmp_path):
    assert description.assets_path().parts[-3:] == ("fewstep", "assets", "pictogram")
    monkeypatch.setattr(description, "assets_path", lambda: tiny_folder("pictogram"))
    assert load_model(device="cpu").family.name == "pictogram"
    monkeypatch.setattr(description, "assets_path", lambda: tmp_path / "none")
    with pytest.raises(CheckpointError, match="no embedded model"):
        load_model(device="cpu")


def test_a_device_that_is_not_there_comes_first():
    with pytest.raises(DeviceError):
        load_model("nowhere", device="cuda:99")


# ---- files of other versions


def test_half_precision_on_disk_is_float32_on_a_cpu(tmp_path):
    saved = save_model(tiny_model(), tmp_path / "half", dtype="fp16")
    assert load_file(saved / UNET)["conv_in.weight"].dtype == torch.float16
    model = load_model(saved, device="cpu")
    assert model.dtype == model.unet.conv_in.weight.dtype == torch.float32
    torch.testing.assert_close(z0_of(model), z0_of(tiny_model()), rtol=0.05, atol=0.5)


def test_old_names_variants_and_shards(tmp_path):
    folder = tiny_folder("sd15", into=tmp_path / "m")
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}

    def age(tensors):
        for name in [name for name in tensors if ".attentions." in name]:
            new = name
            for now, then in old.items():
                new = new.replace(f".{now}.", f".{then}.")
            tensor = tensors.pop(name)
            tensors[new] = tensor[:, :, None, None].contiguous() if tensor.ndim == 2 else tensor

    _tensors(folder, "vae/diffusion_pytorch_model.safetensors", age)

    def prefix(tensors):
        for name in list(tensors):
            tensors[f"text_model.{name.removeprefix('text_model.')}"] = tensors.pop(name)
        tensors["text_model.embeddings.position_ids"] = torch.arange(77)[None]

    _tensors(folder, "text_encoder/model.safetensors", prefix)
    (folder / "text_encoder" / "model.safetensors").rename(folder / "text_encoder" / "model.fp16.safetensors")
    tensors = sorted(load_file(folder / UNET).items())
    (folder / UNET).unlink()
    for number, part in ((1, tensors[:100]), (2, tensors[100:])):
        save_file(dict(part), folder / "unet" / f"diffusion_pytorch_model-0000{number}-of-00002.safetensors")
    model, whole = load_model(folder, device="cpu"), tiny_model()
    assert torch.equal(z0_of(model), z0_of(whole))
    assert all(torch.equal(t, model.vae.state_dict()[n]) for n, t in whole.vae.state_dict().items())


def test_a_tiny_autoencoder_in_the_folder(tmp_path):
    folder = tiny_folder("sd15", into=tmp_path / "m")
    shutil.rmtree(folder / "vae")
    tiny_taesd().save_pretrained(folder / "vae")
    assert type(load_model(folder, device="cpu").vae).__name__ == "AutoencoderTiny"


@pytest.mark.parametrize(("upcast", "dtype"), [(True, torch.float32), (False, torch.float16)])
def test_the_autoencoder_of_sdxl_stays_in_float32(tmp_path, upcast, dtype):
    folder = tiny_folder("sdxl", into=tmp_path / "m")
    change(folder / "vae" / "config.json", force_upcast=upcast)
    model = load_model(folder, device="cpu", dtype="fp16")
    assert model.vae.dtype == dtype and model.unet.dtype == torch.float16
    assert any("VAE" in note for note in model.notes) == upcast


# ---- there and back with diffusers


def picture_by_diffusers(pipe):
    made = pipe("a cat", num_inference_steps=2, guidance_scale=3.0, latents=Z_BCHW.clone(), output_type="latent")
    return made.images


@pytest.mark.parametrize("kind", ["sd15", "sdxl"])
@torch.no_grad()
def test_there_and_back_with_diffusers(tmp_path, kind):
    import diffusers

    name = "StableDiffusionXLPipeline" if kind == "sdxl" else "StableDiffusionPipeline"
    pipeline = getattr(diffusers, name)
    theirs = pipeline.from_pretrained(str(tiny_folder(kind)), local_files_only=True)
    theirs.set_progress_bar_config(disable=True)
    theirs.save_pretrained(str(tmp_path / "theirs"), safe_serialization=True)
    ours = load_model(tmp_path / "theirs", device="cpu")
    text = ours.text.encode(["a cat"])
    added = {}
    if kind == "sdxl":
        added["added_cond_kwargs"] = {
            "text_embeds": text.pooled_BD,
            "time_ids": torch.tensor([[64.0, 64, 0, 0, 64, 64]]),
        }
    expected = theirs.unet(Z_BCHW, 499, encoder_hidden_states=text.text_BLD, **added).sample
    torch.testing.assert_close(predict(ours.unet, Z_BCHW, torch.tensor([499]), text), expected)
    again = pipeline.from_pretrained(str(save_model(ours, tmp_path / "ours")), local_files_only=True)
    again.set_progress_bar_config(disable=True)
    assert torch.equal(picture_by_diffusers(again), picture_by_diffusers(theirs))


@pytest.mark.parametrize("kind", KINDS)
def test_saving_and_loading_changes_nothing(tmp_path, kind):
    model = tiny_model(kind)
    again = load_model(save_model(model, tmp_path / "m"), device="cpu")
    assert (again.family, again.sampling, again.schedule) == (model.family, model.sampling, model.schedule)
    assert torch.equal(z0_of(again), z0_of(model))
    text = "".join(path.read_text() for path in (tmp_path / "m").rglob("*.json"))
    assert str(model.path) not in text and "_name_or_path" not in text


def test_a_changed_schedule_and_sampler_are_saved(tmp_path):
    from dataclasses import replace

    model = tiny_model()
    model.schedule = replace(model.schedule, alphas_cumprod=scaled_linear(0.001, 0.02))
    model.sampling = replace(model.sampling, sampler="lcm", table="linspace-lcm", steps=4, guidance=1.0)
    again = load_model(save_model(model, tmp_path / "m"), device="cpu")
    assert again.sampling == model.sampling and again.configs["scheduler"]["_class_name"] == "LCMScheduler"
    assert again.schedule.alphas_cumprod == pytest.approx(model.schedule.alphas_cumprod)


def test_saving_onto_a_file(tmp_path):
    (tmp_path / "m").write_text("")
    with pytest.raises(OutputError, match="is a file"):
        save_model(tiny_model(), tmp_path / "m")


def test_a_half_precision_folder_opens_in_one_number_format_in_diffusers(tmp_path):
    from diffusers import StableDiffusionPipeline

    save_model(tiny_model("sd15"), tmp_path / "half", dtype="fp16")
    for asked, expected in (({}, torch.float32), ({"torch_dtype": torch.float16}, torch.float16)):
        pipe = StableDiffusionPipeline.from_pretrained(tmp_path / "half", local_files_only=True, **asked)
        parts = (pipe.unet, pipe.vae, pipe.text_encoder)
        assert {parameter.dtype for part in parts for parameter in part.parameters()} == {expected}
