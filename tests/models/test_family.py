"""Families are told apart by shape; other architectures are refused by name."""

import pytest

from fewstep.errors import CheckpointError
from fewstep.models.family import family_of
from tests.tiny import tiny_unet

XL = {"cross_attention_dim": 2048, "addition_embed_type": "text_time", "use_linear_projection": True}


@pytest.mark.parametrize(
    ("kind", "name", "encoders"),
    [
        ("sd15", "sd15", 1),
        ("lcm", "sd15", 1),
        ("sd2", "sd2", 1),
        ("pictogram", "pictogram", 1),
        ("sdxl", "sdxl", 2),
        ("ssd1b", "ssd1b", 2),
    ],
)
def test_tiny_ones(kind, name, encoders):
    unet = tiny_unet(kind)
    for keys in ((), tuple(unet.state_dict())):
        family = family_of(unet.config, keys)
        assert (family.name, family.text_encoders, family.size_px) == (name, encoders, 64)


@pytest.mark.parametrize(
    ("config", "name", "size_px"),
    [
        ({"cross_attention_dim": 768}, "sd15", 512),
        ({"cross_attention_dim": 1024, "use_linear_projection": True, "sample_size": 96}, "sd2", 768),
        ({"cross_attention_dim": 1024, "use_linear_projection": True, "sample_size": 64}, "sd2", 512),
        (XL | {"sample_size": 128}, "sdxl", 1024),
        (XL | {"mid_block_type": "UNetMidBlock2D"}, "ssd1b", 1024),
        (XL | {"mid_block_type": "UNetMidBlock2D", "transformer_layers_per_block": [1, 1, 2]}, "vega", 1024),
        ({"cross_attention_dim": 768, "in_channels": 9}, "sd15", 512),
        ({"cross_attention_dim": 160, "sample_size": 16}, "pictogram", 128),
    ],
)
def test_published_shapes(config, name, size_px):
    family = family_of(config)
    assert (family.name, family.size_px) == (name, size_px)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"cross_attention_dim": 768, "in_channels": 8}, "instruction or upscaling"),
        (XL | {"cross_attention_dim": 1280}, "refiner"),
        ({"cross_attention_dim": None}, "cross-attention"),
        ({"cross_attention_dim": 4096, "encoder_hid_dim_type": "text_proj"}, "added conditions"),
    ],
)
def test_others_are_refused(config, message):
    with pytest.raises(CheckpointError, match=message):
        family_of(config)


def test_an_error_can_name_it():
    assert str(family_of({"cross_attention_dim": 768})) == "SD 1.5 (cross-attention 768)"
