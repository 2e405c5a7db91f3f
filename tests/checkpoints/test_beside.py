"""ControlNets and motion modules as files: both layouts, there and back, and against diffusers' own readers."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from fewstep.checkpoints.beside import is_beside, module_of, read_beside, write_beside
from fewstep.cli.main import main
from fewstep.errors import CheckpointError
from tests.tiny import tiny_unet

SD = {"block_out_channels": (32, 64), "layers_per_block": 2, "cross_attention_dim": 32, "attention_head_dim": 8}
SD |= {"down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"), "conditioning_embedding_out_channels": (16, 32, 96)}
XL = {"block_out_channels": (64, 128), "layers_per_block": 2, "cross_attention_dim": 64, "attention_head_dim": (1, 2)}
XL |= {"down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"), "transformer_layers_per_block": (1, 2)}
XL |= {"use_linear_projection": True, "addition_embed_type": "text_time", "addition_time_embed_dim": 256}
XL |= {"projection_class_embeddings_input_dim": 6 * 256 + 32, "conditioning_embedding_out_channels": (16, 32, 96, 256)}


def seeded(build):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        made = build().eval().requires_grad_(False)
        for parameter in made.parameters():  # also those that begin at zero
            parameter.copy_(torch.randn_like(parameter) * 0.02)
        return made


def control(kind):
    from diffusers.models.controlnets.controlnet import ControlNetModel

    return seeded(lambda: ControlNetModel(**(XL if kind == "xl" else SD)))


def motion():
    from diffusers.models.unets.unet_motion_model import MotionAdapter

    return seeded(
        lambda: MotionAdapter(block_out_channels=(32, 64), motion_num_attention_heads=8, motion_max_seq_length=24)
    )


def trained(module):
    return {name: tensor for name, tensor in module.state_dict().items() if not name.endswith("pos_embed.pe")}


@pytest.mark.parametrize("kind", ["sd", "xl"])
def test_a_controlnet_there_and_back(tmp_path, kind):
    from diffusers.loaders.single_file_utils import convert_controlnet_checkpoint
    from diffusers.models.controlnets.controlnet import ControlNetModel

    module = control(kind)
    module.save_pretrained(tmp_path / "folder")
    network = read_beside(tmp_path / "folder")
    single = write_beside(network, tmp_path / "control.safetensors")
    names = set(load_file(single))
    assert {
        "control_model.input_hint_block.0.weight",
        "control_model.zero_convs.0.0.bias",
        "control_model.middle_block_out.0.weight",
    } <= names
    plain = tmp_path / "foreign.safetensors"
    save_file(load_file(single), plain)  # as others write it: without our metadata
    for path in (single, plain):
        again = read_beside(path)
        assert again.tensors.keys() == module.state_dict().keys()
        assert all(torch.equal(again.tensors[name], tensor) for name, tensor in module.state_dict().items())
        built = module_of(again)
        assert {name: tensor.shape for name, tensor in built.state_dict().items()} == {
            n: t.shape for n, t in module.state_dict().items()
        }
    if kind == "sd":
        theirs = ControlNetModel.from_single_file(str(plain), config=str(tmp_path / "folder"), local_files_only=True)
        assert all(torch.equal(theirs.state_dict()[name], tensor) for name, tensor in module.state_dict().items())
    theirs = convert_controlnet_checkpoint(load_file(plain), dict(module.config))  # it loses SDXL's label_emb
    assert {name.split(".")[0] for name in set(again.tensors) - set(theirs)} <= {"add_embedding"}
    assert all(torch.equal(again.tensors[name], tensor) for name, tensor in theirs.items())


@pytest.mark.parametrize("kind", ["sd", "xl"])
def test_a_controlnet_of_others_steers_the_same(tmp_path, kind):
    module = control(kind)
    save_file({f"x.{n}"[2:]: t for n, t in module.state_dict().items()}, tmp_path / "diffusers-names.safetensors")
    built = module_of(read_beside(tmp_path / "diffusers-names.safetensors"))
    generator = torch.Generator().manual_seed(1)
    width = 64 if kind == "xl" else 32
    inputs = {
        "sample": (1, 4, 8, 8),
        "encoder_hidden_states": (1, 77, width),
        "controlnet_cond": (1, 3, 64 if kind == "xl" else 32, 64 if kind == "xl" else 32),
    }
    fed = {name: torch.randn(shape, generator=generator) for name, shape in inputs.items()}
    more = (
        {"added_cond_kwargs": {"text_embeds": torch.ones(1, 32), "time_ids": torch.ones(1, 6)}} if kind == "xl" else {}
    )
    one, other = (net(timestep=499, return_dict=False, **fed, **more) for net in (module, built))
    torch.testing.assert_close(one[1], other[1])
    assert float(one[1].abs().max()) > 0


def test_a_motion_module_there_and_back(tmp_path):
    from diffusers.loaders.single_file_utils import convert_animatediff_checkpoint_to_diffusers

    module = motion()
    module.save_pretrained(tmp_path / "folder")
    network = read_beside(tmp_path / "folder")
    single = write_beside(network, tmp_path / "motion.safetensors")
    assert any(
        ".temporal_transformer.transformer_blocks.0.attention_blocks.1.to_out.0.weight" in name
        for name in load_file(single)
    )
    block = "down_blocks.0.motion_modules.0.temporal_transformer.transformer_blocks.0"
    foreign = load_file(single) | {f"{block}.attention_blocks.0.pos_encoder.pe": torch.zeros(1, 24, 32)}
    save_file(foreign, tmp_path / "foreign.safetensors")
    for path in (single, tmp_path / "foreign.safetensors"):
        again = read_beside(path)
        assert all(torch.equal(again.tensors[name], tensor) for name, tensor in trained(module).items())
        assert again.tensors.keys() == trained(module).keys() and again.config["motion_max_seq_length"] == 24
        built = module_of(again)
        assert all(torch.equal(built.state_dict()[name], tensor) for name, tensor in module.state_dict().items())
    theirs = convert_animatediff_checkpoint_to_diffusers(foreign)
    assert theirs.keys() == again.tensors.keys()
    assert all(torch.equal(theirs[name], tensor) for name, tensor in again.tensors.items())


def test_the_command_converts_them(tmp_path, capsys):
    control("sd").save_pretrained(tmp_path / "folder")
    assert main(["convert", str(tmp_path / "folder"), str(tmp_path / "c.safetensors"), "--dtype", "fp16"]) == 0
    assert "ControlNetModel, channels 32, 64" in capsys.readouterr().out
    assert main(["convert", str(tmp_path / "c.safetensors"), str(tmp_path / "back")]) == 0
    assert {
        tensor.dtype for tensor in load_file(tmp_path / "back" / "diffusion_pytorch_model.safetensors").values()
    } == {torch.float16}
    assert json.loads((tmp_path / "back" / "config.json").read_text())["_class_name"] == "ControlNetModel"
    assert main(["convert", str(tmp_path / "folder"), str(tmp_path / "c.safetensors")]) == 2
    assert "--force" in capsys.readouterr().err


def test_what_is_neither(tmp_path):
    save_file(
        {f"model.diffusion_model.{n}": t for n, t in tiny_unet().state_dict().items()}, tmp_path / "unet.safetensors"
    )
    assert not is_beside(tmp_path / "unet.safetensors") and not is_beside(tmp_path / "none.safetensors")
    with pytest.raises(CheckpointError, match="neither a ControlNet nor a motion module"):
        read_beside(tmp_path / "unet.safetensors")
    save_file({"control_model.input_hint_block.0.weight": torch.zeros(16, 3, 3, 3)}, tmp_path / "half.safetensors")
    with pytest.raises(CheckpointError, match="incomplete ControlNet"):
        read_beside(tmp_path / "half.safetensors")
    save_file(
        {"down_blocks.0.motion_modules.0.temporal_transformer.norm.weight": torch.zeros(8)}, tmp_path / "m.safetensors"
    )
    with pytest.raises(CheckpointError, match="incomplete motion module"):
        read_beside(tmp_path / "m.safetensors")
