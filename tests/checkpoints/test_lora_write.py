"""What we write is read alike by us and by diffusers, and says what others look for."""

import hashlib
import json

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from fewstep.checkpoints import lora as module
from fewstep.checkpoints.load import Sampling
from fewstep.checkpoints.lora import LoraStack, read_lora, write_lora
from fewstep.errors import LoraError, OutputError
from fewstep.models.lora_layers import add_lora, lora_state
from tests.tiny import tiny_folder, tiny_model, tiny_unet


def trained(kind="sd15", alpha=6.0, rank=4):
    """A tiny UNet with LoRA layers whose `up` is no longer zero."""
    unet = tiny_unet(kind)
    generator = torch.Generator().manual_seed(3)
    for parameter in add_lora(unet, rank=rank, alpha=alpha)[1::2]:
        with torch.no_grad():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.1)
    return unet


def output(unet):
    generator = torch.Generator().manual_seed(5)
    z_BCHW = torch.randn(2, 4, 8, 8, generator=generator)
    text_BLD = torch.randn(2, 7, unet.config.cross_attention_dim, generator=generator)
    with torch.no_grad():
        return unet(z_BCHW, torch.tensor([3, 700]), text_BLD).sample


def header(path):
    with safe_open(path, framework="pt") as file:
        return file.metadata()


def test_layers_file_merge_and_diffusers_are_one(tmp_path):
    """Adapter on = written, read and merged = written and loaded by diffusers with every key; alpha is not rank."""
    from diffusers import StableDiffusionPipeline
    from peft.tuners.lora import LoraLayer as PeftLayer

    unet, model = trained(), tiny_model("sd15")
    state = lora_state(unet)
    write_lora(tmp_path / "x.safetensors", state, alpha=6.0)
    assert (output(unet) - output(model.unet)).abs().max() > 0.05
    LoraStack(model).set([(read_lora(tmp_path / "x.safetensors", family=model.family), 1.0, 1.0)])
    assert (output(unet) - output(model.unet)).abs().max() < 1e-4

    pipe = StableDiffusionPipeline.from_pretrained(tiny_folder("sd15"), safety_checker=None)
    pipe.load_lora_weights(tmp_path, weight_name="x.safetensors")
    assert (output(unet) - output(pipe.unet)).abs().max() < 1e-4
    loaded = {name: layer for name, layer in pipe.unet.named_modules() if isinstance(layer, PeftLayer)}
    assert loaded.keys() == state.keys()
    for name, (down, up) in state.items():
        halves = (loaded[name].lora_A["default_0"].weight, loaded[name].lora_B["default_0"].weight)
        assert torch.equal(halves[0], down) and torch.equal(halves[1], up)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_every_number_comes_back(dtype, tmp_path):
    layers = {name: (down.to(dtype), up.to(dtype)) for name, (down, up) in lora_state(trained()).items()}
    lora = write_lora(tmp_path / "x.safetensors", layers, alpha=0.5)
    assert lora.layers.keys() == layers.keys()
    for name, layer in lora.layers.items():
        assert (
            layer.alpha == 0.5 and torch.equal(layer.down, layers[name][0]) and torch.equal(layer.up, layers[name][1])
        )
    assert len(load_file(tmp_path / "x.safetensors")) == 3 * len(layers)


@pytest.mark.parametrize("kind", ["pictogram", "sdxl", "ssd1b", "sd2"])
def test_every_family_reads_back(kind, tmp_path):
    model = tiny_model(kind)
    state = lora_state(trained(kind))
    lora = write_lora(tmp_path / "x.safetensors", state, alpha=4)
    assert read_lora(lora.path, family=model.family).layers.keys() == state.keys()
    LoraStack(model).set([(lora, 1.0, 1.0)])


def test_metadata_for_others(tmp_path):
    sampling = Sampling(sampler="lcm", table="linspace-lcm", steps=4, guidance=1.5, origin_steps=20)
    cross = "mid_block.attentions.0.transformer_blocks.0.attn2.to_k"
    layers = {
        cross: (torch.ones(8, 2048), torch.ones(16, 8)),
        "conv_in": (torch.ones(8, 4, 3, 3), torch.ones(4, 8, 1, 1)),
    }
    extra = {"fewstep.w": "7.5", "modelspec.title": "Fast"}
    lora = write_lora(tmp_path / "x.safetensors", layers, alpha=2.5, metadata=extra, sampling=sampling)
    said = header(lora.path)
    body = lora.path.read_bytes()
    digest = hashlib.sha256(body[8 + int.from_bytes(body[:8], "little") :]).hexdigest()
    assert said == {
        "format": "pt",
        "ss_v2": "False",
        "ss_base_model_version": "sdxl_base_v1-0",
        "ss_network_module": "networks.lora",
        "ss_network_dim": "8",
        "ss_network_alpha": "2.5",
        "ss_network_args": json.dumps({"conv_dim": "8", "conv_alpha": "2.5"}),
        "ss_output_name": "x",
        "sshs_model_hash": digest,
        "sshs_legacy_hash": hashlib.sha256(b"").hexdigest()[:8],  # the file ends before the part that it is of
        "modelspec.sai_model_spec": "1.0.1",
        "modelspec.architecture": "stable-diffusion-xl-v1-base/lora",
        "modelspec.implementation": "https://github.com/Stability-AI/generative-models",
        "modelspec.title": "Fast",
        "modelspec.resolution": "1024x1024",
        "modelspec.usage_hint": "LCM sampler, 4 steps, CFG 1.5",
        "modelspec.hash_sha256": f"0x{digest}",
        "fewstep.sampler": "lcm",
        "fewstep.steps": "4",
        "fewstep.guidance": "1.5",
        "fewstep.table": "linspace-lcm",
        "fewstep.origin_steps": "20",
        "fewstep.w": "7.5",
    }
    assert lora.sampling == sampling and lora.is_consistency and lora.hash == digest


@pytest.mark.parametrize(
    ("width", "version", "v2", "architecture"),
    [(768, "sd_v1", "False", "stable-diffusion-v1/lora"), (1024, "sd_v2", "True", "stable-diffusion-v2-768-v/lora")],
)
def test_family_in_metadata(width, version, v2, architecture, tmp_path):
    layers = {"mid_block.attentions.0.transformer_blocks.0.attn2.to_v": (torch.ones(2, width), torch.ones(16, 2))}
    said = header(write_lora(tmp_path / "x.safetensors", layers, alpha=1).path)
    assert (said["ss_base_model_version"], said["ss_v2"], said["modelspec.architecture"]) == (version, v2, architecture)
    assert said["ss_network_args"] == "{}" and "modelspec.usage_hint" not in said


def test_the_hash_is_of_the_tensors_alone(tmp_path):
    layers = {"conv_in": (torch.ones(2, 4, 3, 3), torch.ones(8, 2, 1, 1))}
    one = write_lora(tmp_path / "one.safetensors", layers, alpha=1)
    two = write_lora(tmp_path / "two.safetensors", layers, alpha=1, metadata={"a": "b"})
    three = write_lora(tmp_path / "three.safetensors", layers, alpha=2)
    assert one.hash == two.hash != three.hash and one.fingerprint == two.fingerprint != three.fingerprint


def test_the_legacy_hash_is_of_the_64_kib_behind_the_first_mib(tmp_path):
    layers = {"conv_in": (torch.randn(256, 4, 3, 3), torch.randn(2048, 256, 1, 1))}
    hashes = [
        header(write_lora(tmp_path / f"{name}.safetensors", layers, alpha=1, metadata={"modelspec.title": name}).path)
        for name in ("a", "a-longer-title")
    ]
    body = (tmp_path / "a.safetensors").read_bytes()
    assert hashes[0]["sshs_legacy_hash"] != hashlib.sha256(b"").hexdigest()[:8] and len(body) > 0x110000
    layers["conv_in"][1][-1] += 1  # in the last bytes, far behind that part
    other = header(write_lora(tmp_path / "a.safetensors", layers, alpha=1).path)
    assert other["sshs_model_hash"] != hashes[0]["sshs_model_hash"]
    assert other["sshs_legacy_hash"] == hashes[0]["sshs_legacy_hash"]


def test_the_size_it_was_trained_at_is_written(tmp_path):
    layers = {"mid_block.attentions.0.transformer_blocks.0.attn2.to_v": (torch.ones(2, 160), torch.ones(16, 2))}
    usual = header(write_lora(tmp_path / "x.safetensors", layers, alpha=1).path)
    said = header(write_lora(tmp_path / "x.safetensors", layers, alpha=1, size=(96, 160)).path)
    assert (usual["modelspec.resolution"], said["modelspec.resolution"]) == ("128x128", "160x96")


@pytest.mark.parametrize(
    ("layers", "words"),
    [
        ({}, "no LoRA layers"),
        ({"invented": (torch.ones(2, 4), torch.ones(4, 2))}, "'invented' cannot be written"),
        ({"conv_in": (torch.ones(2, 4), torch.ones(4, 3))}, "'conv_in' cannot be written"),
        ({"conv_in": (torch.ones(2, 4) * float("nan"), torch.ones(4, 2))}, "'conv_in' holds NaN"),
    ],
)
def test_what_cannot_be_written(layers, words, tmp_path):
    with pytest.raises(LoraError, match=words):
        write_lora(tmp_path / "x.safetensors", layers, alpha=1)
    assert not list(tmp_path.iterdir())


def test_a_folder_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="cannot be written"):
        write_lora(tmp_path / "file" / "x.safetensors", {"conv_in": (torch.ones(2, 4), torch.ones(4, 2))}, alpha=1)


def test_a_disk_that_lies(tmp_path, monkeypatch):
    layers = {"conv_in": (torch.ones(2, 4), torch.ones(4, 2))}
    true = module.write_safetensors

    def wrong(path, tensors, facts):
        true(path, {name: tensor * 2 for name, tensor in tensors.items()}, facts)

    monkeypatch.setattr(module, "write_safetensors", wrong)
    with pytest.raises(OutputError, match="something else when it was read back"):
        write_lora(tmp_path / "x.safetensors", layers, alpha=1)
    assert not list(tmp_path.iterdir())
