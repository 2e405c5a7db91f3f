"""The table of names is complete and one to one for the real models, and agrees with diffusers' own converters."""

import pytest
import torch
from diffusers.loaders.single_file_utils import convert_ldm_unet_checkpoint, convert_ldm_vae_checkpoint
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from transformers import CLIPTextConfig, CLIPTextModelWithProjection

from fewstep.checkpoints.keys import original, places, table
from fewstep.checkpoints.save import named
from fewstep.checkpoints.shapes import text_config, unet_config, vae_config
from fewstep.models.published import PUBLISHED, empty_unet

SD15, SSD1B, SDXL = PUBLISHED.values()
SD21 = SD15 | {
    "sample_size": 96,
    "cross_attention_dim": 1024,
    "attention_head_dim": (5, 10, 20, 20),
    "use_linear_projection": True,
}
VEGA = SDXL | {"mid_block_type": "UNetMidBlock2D", "transformer_layers_per_block": (1, 1, 2)}
UNETS = {"sd15": SD15, "lcm": SD15 | {"time_cond_proj_dim": 256}, "sd21": SD21, "sdxl": SDXL, "ssd1b": SSD1B}
UNETS |= {"vega": VEGA, "inpainting": SD15 | {"in_channels": 9}}
GUIDANCE = "time_embedding.cond_proj.weight"


def is_one_to_one(part, names):
    found = original(part, names)
    assert found.keys() == set(names)
    back = places(part, {place.name for place in found.values()})
    assert all(back[place.name][0].name == name for name, place in found.items())
    return {place.name: name for name, place in found.items()}


@pytest.mark.parametrize("kind", UNETS)
def test_unets_of_real_size(kind):
    unet = empty_unet(UNETS[kind])
    state = unet.state_dict()
    by_old = is_one_to_one("unet", state)
    file = {f"model.diffusion_model.{old}": state[name] for old, name in by_old.items()}
    theirs = convert_ldm_unet_checkpoint(file, dict(unet.config))
    assert theirs.keys() == state.keys() - {GUIDANCE}  # which diffusers loses
    assert all(tensor is state[name] for name, tensor in theirs.items())
    told = unet_config({name: tuple(tensor.shape) for name, tensor in state.items()}, pooled=1280)
    assert told.pop("_class_name") == type(unet).__name__
    for key, value in told.items():
        assert plain(unet.config[key]) == plain(value), key


def plain(value):
    """Lists for tuples; one number for a row of equal ones."""
    value = [plain(one) for one in value] if isinstance(value, (list, tuple)) else value
    same = isinstance(value, list) and all(one == value[0] for one in value)
    return value[0] if same and value[0] in (1, 8) else value


@pytest.mark.parametrize("levels", [(128, 256, 512, 512)])
def test_an_autoencoder_of_real_size(levels):
    kinds = {"down_block_types": ("DownEncoderBlock2D",) * 4, "up_block_types": ("UpDecoderBlock2D",) * 4}
    with torch.device("meta"):
        vae = AutoencoderKL(block_out_channels=levels, layers_per_block=2, **kinds)
    state = vae.state_dict()
    by_old = is_one_to_one("vae", state)
    theirs = convert_ldm_vae_checkpoint({f"first_stage_model.{o}": state[n] for o, n in by_old.items()}, vae.config)
    assert theirs.keys() == state.keys()
    told = vae_config({name: tuple(tensor.shape) for name, tensor in state.items()}, xl=False)
    assert {key: plain(vae.config[key]) for key in told if key not in ("_class_name", "sample_size")} == {
        key: plain(value) for key, value in told.items() if key not in ("_class_name", "sample_size")
    }


def test_open_clip_in_real_size():
    config = CLIPTextConfig(vocab_size=49408, hidden_size=1280, num_hidden_layers=32, num_attention_heads=20)
    with torch.device("meta"):
        state = named(CLIPTextModelWithProjection(config))
    found = original("text_encoder_2", state.keys(), open_clip=True)
    assert found.keys() == state.keys()
    old = {place.name for place in found.values()}
    assert len(old) == len(state) - 2 * 2 * 32  # three q, k, v are one, weights and biases
    back = [place for places_ in places("text_encoder_2", old).values() for place in places_]
    assert {place.name for place in back} == state.keys() and len(back) == len(state)
    told = text_config({name: tuple(tensor.shape) for name, tensor in state.items()}, open_clip=True)
    assert (told["num_hidden_layers"], told["num_attention_heads"], told["hidden_act"]) == (32, 20, "gelu")


def test_averaged_names_are_told_apart_without_their_dots():
    names = table("unet")
    assert len({name.replace(".", "") for name in names}) == len(names)
