"""The configs of networks, from the shapes of their weights.

What shapes do not tell is the same in every published model: heads of 64 channels (SD 1.x: 8 heads), norms of 32
groups, CLIP-L's quick_gelu where OpenCLIP has gelu, the autoencoder's scale (SD 0.18215; SDXL 0.13025, arXiv
2307.01952). A file that this package wrote says these in its metadata, so that miniatures come back too.
"""

from collections.abc import Mapping
from typing import Any

Shapes = Mapping[str, tuple[int, ...]]
"""diffusers' name of a weight -> its shape."""


def unet_config(shapes: Shapes, *, pooled: int | None = None) -> dict[str, Any]:
    """A UNet's config; `pooled` is the width of the pooled text, where a second encoder tells it.

    Raises KeyError or IndexError where a weight that every UNet has is missing or has too few axes.
    """
    levels = _count(shapes, "down_blocks.{}.resnets.0.conv1.weight")
    channels = [shapes[f"down_blocks.{level}.resnets.0.conv1.weight"][0] for level in range(levels)]
    down = [_depths(shapes, f"down_blocks.{level}") for level in range(levels)]
    up = [_depths(shapes, f"up_blocks.{level}") for level in range(levels)]
    middle = _depths(shapes, "mid_block")
    attention = next(name for name in shapes if name.endswith("attn2.to_k.weight"))
    linear = len(next(shape for name, shape in shapes.items() if name.endswith(".proj_in.weight"))) == 2
    width = shapes[attention][1]
    return {
        "_class_name": "UNet2DConditionModel",
        "in_channels": shapes["conv_in.weight"][1],
        "out_channels": shapes["conv_out.weight"][0],
        "block_out_channels": channels,
        "layers_per_block": _count(shapes, "down_blocks.0.resnets.{}.conv1.weight"),
        "down_block_types": ["CrossAttnDownBlock2D" if any(depths) else "DownBlock2D" for depths in down],
        "up_block_types": ["CrossAttnUpBlock2D" if any(depths) else "UpBlock2D" for depths in up],
        "mid_block_type": _middle_type(shapes, middle),
        "cross_attention_dim": width,
        "use_linear_projection": linear,
        "attention_head_dim": [max(1, channel // 64) for channel in channels] if linear else 8,
        "time_cond_proj_dim": shapes.get("time_embedding.cond_proj.weight", (0, None))[1],
        "reverse_transformer_layers_per_block": None,
        **_transformer_layers(down, up),
        **_size_conditions(shapes, pooled),
    }


def _middle_type(shapes: Shapes, middle: list[int]) -> str | None:
    if "mid_block.resnets.0.conv1.weight" not in shapes:
        return None
    return "UNetMidBlock2DCrossAttn" if any(middle) else "UNetMidBlock2D"


def _depths(shapes: Shapes, block: str) -> list[int]:
    """The number of transformer blocks in each attention of a level."""
    pattern = f"{block}.attentions.{{}}.norm.weight"
    return [
        _count(shapes, f"{block}.attentions.{index}.transformer_blocks.{{}}.norm1.weight")
        for index in range(_count(shapes, pattern))
    ]


def _transformer_layers(down: list[list[int]], up: list[list[int]]) -> dict[str, Any]:
    """One number for each level (1 where there is none), or SSD-1B's: one for each attention, and others going up."""
    going_down, going_up = [_short(depths) for depths in down], [_short(depths) for depths in up]
    if all(isinstance(depth, int) for depth in going_up) and going_up == going_down[::-1]:
        return {"transformer_layers_per_block": 1 if set(going_down) == {1} else going_down}
    nested = [depths if any(depths) else 1 for depths in down], [depths if any(depths) else 1 for depths in up]
    return {"transformer_layers_per_block": nested[0], "reverse_transformer_layers_per_block": nested[1]}


def _short(depths: list[int]) -> Any:
    return depths if len(set(depths)) > 1 else (depths or [1])[0]


def _size_conditions(shapes: Shapes, pooled: int | None) -> dict[str, Any]:
    """SDXL is told six sizes, each as an embedding of one width, and the pooled text beside them."""
    if "add_embedding.linear_1.weight" not in shapes:
        return {"addition_embed_type": None}
    width = shapes["add_embedding.linear_1.weight"][1]
    return {
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 256 if pooled is None else (width - pooled) // 6,
        "projection_class_embeddings_input_dim": width,
    }


def vae_config(shapes: Shapes, *, xl: bool) -> dict[str, Any]:
    """An autoencoder's config, AutoencoderKL's or (names `encoder.layers.`) AutoencoderTiny's."""
    if "encoder.layers.0.weight" in shapes:
        return _tiny_config(shapes)
    levels = _count(shapes, "encoder.down_blocks.{}.resnets.0.conv1.weight")
    return {
        "_class_name": "AutoencoderKL",
        "block_out_channels": [
            shapes[f"encoder.down_blocks.{level}.resnets.0.conv1.weight"][0] for level in range(levels)
        ],
        "down_block_types": ["DownEncoderBlock2D"] * levels,
        "up_block_types": ["UpDecoderBlock2D"] * levels,
        "layers_per_block": _count(shapes, "encoder.down_blocks.0.resnets.{}.conv1.weight"),
        "latent_channels": shapes["decoder.conv_in.weight"][1],
        "sample_size": 1024 if xl else 512,
        "scaling_factor": 0.13025 if xl else 0.18215,
    }


def _tiny_config(shapes: Shapes) -> dict[str, Any]:
    """A row of layers: a convolution before each group of blocks; the decoder's are read from its end."""
    groups: dict[str, list[int]] = {}
    for side in ("encoder", "decoder"):
        numbers = sorted({int(name.split(".")[2]) for name in shapes if name.startswith(f"{side}.layers.")})
        blocks = [f"{side}.layers.{number}.conv.0.weight" in shapes for number in numbers]
        counts = [0]
        for block in blocks[1:-1]:
            counts = [*counts[:-1], counts[-1] + 1] if block else [*counts, 0]
        groups[side] = counts
    width = shapes["encoder.layers.0.weight"][0]
    return {
        "_class_name": "AutoencoderTiny",
        "latent_channels": shapes["decoder.layers.0.weight"][1],
        "num_encoder_blocks": groups["encoder"],
        "num_decoder_blocks": groups["decoder"],
        "encoder_block_out_channels": [width] * len(groups["encoder"]),
        "decoder_block_out_channels": [width] * len(groups["decoder"]),
        "block_out_channels": [width] * len(groups["encoder"]),
    }


def text_config(shapes: Shapes, *, open_clip: bool) -> dict[str, Any]:
    """A CLIP text encoder's config. An end mark numbered 2 is what every published config says: "the highest"."""
    rows, width = shapes["text_model.embeddings.token_embedding.weight"]
    return {
        "model_type": "clip_text_model",
        "vocab_size": rows,
        "hidden_size": width,
        "num_hidden_layers": _count(shapes, "text_model.encoder.layers.{}.layer_norm1.weight"),
        "intermediate_size": shapes["text_model.encoder.layers.0.mlp.fc1.weight"][0],
        "num_attention_heads": max(1, width // 64),
        "max_position_embeddings": shapes["text_model.embeddings.position_embedding.weight"][0],
        "projection_dim": shapes.get("text_projection.weight", (width,))[0],
        "hidden_act": "gelu" if open_clip else "quick_gelu",
        "bos_token_id": 0,
        "eos_token_id": 2,
        "pad_token_id": 1,
    }


def _count(shapes: Shapes, pattern: str) -> int:
    count = 0
    while pattern.format(count) in shapes:
        count += 1
    return count
