"""Memory plans by arithmetic: counted on the published shapes, against what torch counts while it works."""

import pytest
import torch

from fewstep.backends.placement import needs_of
from fewstep.memory import FP8, LADDER, PLANS, RESERVE, choose_plan

GB = 1_000_000_000
SD_LEVELS = {
    "block_out_channels": (320, 640, 1280, 1280),
    "down_block_types": ("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
    "attention_head_dim": 8,
    "cross_attention_dim": 768,
}
XL_LEVELS = {
    "block_out_channels": (320, 640, 1280),
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "attention_head_dim": (5, 10, 20),
    "cross_attention_dim": 2048,
    "transformer_layers_per_block": (1, 2, 10),
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 2816,
}
UNETS = {"sd15": (SD_LEVELS, 859_520_964, 512), "sdxl": (XL_LEVELS, 2_567_463_684, 1024)}
TEXTS = {"sd15": (("l", 123_060_480),), "sdxl": (("l", 123_060_480), ("g", 694_659_840))}
VAE = 83_653_863


def unet_of(kind):
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel

    return UNet2DConditionModel(sample_size=64, **UNETS[kind][0])


def vae():
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL

    return AutoencoderKL(
        block_out_channels=(128, 256, 512, 512),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        layers_per_block=2,
        latent_channels=4,
    )


def text_of(which):
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    sizes = {"l": (768, 3072, 12, 12), "g": (1280, 5120, 32, 20)}[which]
    names = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
    config = CLIPTextConfig(**dict(zip(names, sizes, strict=True)), projection_dim=sizes[0])
    return (CLIPTextModel if which == "l" else CLIPTextModelWithProjection)(config)


def needs(kind, vae_dtype=torch.float16):
    """Of the real shapes, which take no memory on the device "meta"."""
    from types import SimpleNamespace

    with torch.device("meta"):
        encoders = [text_of(which).half() for which, _ in TEXTS[kind]]
        unet, decoder = unet_of(kind).half(), vae().to(vae_dtype)
    for module, count in (
        (unet, UNETS[kind][1]),
        (decoder, VAE),
        *zip(encoders, [n for _, n in TEXTS[kind]], strict=True),
    ):
        assert sum(parameter.numel() for parameter in module.parameters()) == count
    model = SimpleNamespace(unet=unet, vae=decoder, text=SimpleNamespace(encoders=encoders), dtype=torch.float16)
    side = UNETS[kind][2]
    return needs_of(model, (side, side))


@pytest.fixture(scope="module")
def xl():
    return needs("sdxl", torch.float32)


@pytest.fixture(scope="module")
def sd():
    return needs("sd15")


def test_the_parts_are_counted(xl, sd):
    assert xl.unet == 2 * 2_567_463_684 and 0 <= xl.text - 2 * (123_060_480 + 694_659_840) < 5000
    assert xl.vae == 4 * VAE and sd.vae == 2 * VAE
    assert 0.5 < xl.unet_eight / xl.unet < 0.52


def test_sdxl_fits_into_8_gb_and_sd15_into_4(xl, sd):
    """Free are some hundred megabytes less than a card has."""
    assert choose_plan(xl, int(7.4 * GB)).name in ("medium", "tiled")
    assert choose_plan(sd, int(3.6 * GB)).name in ("full", "high", "medium")
    for plan, free in ((choose_plan(xl, int(7.4 * GB)), 7.4 * GB), (choose_plan(sd, int(3.6 * GB)), 3.6 * GB)):
        assert plan.peak(sd if free < 4 * GB else xl) + RESERVE <= free
    assert choose_plan(xl, 24 * GB).name == choose_plan(sd, 8 * GB).name == "full"
    assert FP8.peak(xl) + RESERVE < 5.5 * GB


def test_each_plan_takes_no_more_than_the_one_before(xl, sd):
    for found in (xl, sd):
        peaks = [plan.peak(found) for plan in LADDER]
        assert peaks == sorted(peaks, reverse=True) and peaks[-1] < peaks[0] / 2
        for peak in peaks:
            assert choose_plan(found, peak + RESERVE).peak(found) <= peak
        assert choose_plan(found, 0) is LADDER[-1]
        assert PLANS["full"].peak(found) > found.text + found.unet + found.vae


def peak_of(run):
    """Bytes that live at once while `run` works, weights not counted; on fake tensors, which take none."""
    from torch.distributed._tools.mem_tracker import MemTracker

    tracker = MemTracker()
    with torch.no_grad(), tracker:
        run()
    return max(device["Total"] for device in tracker.get_tracker_snapshot("peak").values())


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["sd15", "sdxl"])
def test_working_memory_is_what_torch_counts(kind, xl, sd):
    from torch._subclasses.fake_tensor import FakeTensorMode

    found, side = (xl if kind == "sdxl" else sd), UNETS[kind][2] // 8
    with FakeTensorMode():
        unet, decoder = unet_of(kind).half(), vae().float()
        z_BCHW, text = torch.zeros(2, 4, side, side).half(), torch.zeros(2, 77, 2048 if kind == "sdxl" else 768).half()
        extra = {"text_embeds": torch.zeros(2, 1280).half(), "time_ids": torch.zeros(2, 6)}
        how = {"added_cond_kwargs": extra} if kind == "sdxl" else {}
        asked = peak_of(lambda: unet(z_BCHW, torch.tensor([9, 9]), text, return_dict=False, **how))
        decoded = peak_of(lambda: decoder.decode(z_BCHW[:1].float(), return_dict=False))
    assert 0.4 * found.unet_work < asked <= found.unet_work
    per_item = found.vae_work * (1 if kind == "sdxl" else 2)  # SD 1.5's needs are of a decoder in half precision
    assert 0.4 * per_item < decoded <= per_item
