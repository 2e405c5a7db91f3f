"""The UNets of the published checkpoints as configs, so that a run can be planned before anything is downloaded.

Facts of their config.json; checked by their numbers of weights (SD 1.5 859.5 M, SSD-1B 1331 M, SDXL 2567 M).
"""

from collections.abc import Mapping
from typing import Any

import torch

_SD15: dict[str, Any] = {
    "sample_size": 64,
    "cross_attention_dim": 768,
    "attention_head_dim": 8,
    "block_out_channels": (320, 640, 1280, 1280),
}
_SDXL: dict[str, Any] = {
    "sample_size": 128,
    "cross_attention_dim": 2048,
    "attention_head_dim": (5, 10, 20),
    "block_out_channels": (320, 640, 1280),
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "transformer_layers_per_block": (1, 2, 10),
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 2816,
}
_SSD1B = _SDXL | {
    "mid_block_type": "UNetMidBlock2D",
    "transformer_layers_per_block": [1, [2, 2], [4, 4]],
    "reverse_transformer_layers_per_block": [[4, 4, 10], [2, 1, 1], 1],
}

PUBLISHED: dict[str, Mapping[str, Any]] = {
    "stable-diffusion-v1-5/stable-diffusion-v1-5": _SD15,
    "segmind/SSD-1B": _SSD1B,
    "stabilityai/stable-diffusion-xl-base-1.0": _SDXL,
}
"""Config of the UNet by the checkpoint's Hub name; what is not named has the class's default."""


def empty_unet(config: Mapping[str, Any]) -> Any:
    """A UNet of shapes alone: on torch's "meta" device, it takes no memory."""
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel

    with torch.device("meta"):
        return UNet2DConditionModel.from_config(dict(config))


def text_widths(config: Mapping[str, Any]) -> tuple[int, int | None]:
    """Width of the text a UNet reads, and of its pooled text (None where it has none)."""
    if config.get("addition_embed_type") != "text_time":
        return config["cross_attention_dim"], None
    sizes = 6 * config["addition_time_embed_dim"]
    return config["cross_attention_dim"], config["projection_class_embeddings_input_dim"] - sizes
