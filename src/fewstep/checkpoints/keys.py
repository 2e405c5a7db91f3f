"""The names of weights in single files, and diffusers' names for the same: one table, read in both directions.

Two layouts: the original one (CompVis' latent-diffusion "LDM", Stability's sgm for SDXL, OpenCLIP's text towers), which
user interfaces write, and diffusers' own, with `unet.`, `vae.`, `text_encoder.` before each name, or with nothing for
a UNet alone. diffusers' names are those of its modules' `state_dict`; CLIP's begin with `text_model.`.

Compared with diffusers' `loaders/single_file_utils.py` in tests/checkpoints/test_keys.py.
"""

from collections.abc import Collection, Iterator, Mapping
from functools import lru_cache
from typing import NamedTuple

PREFIXES: tuple[tuple[str, str], ...] = (
    ("model.diffusion_model.", "unet"),
    ("diffusion_model.", "unet"),
    ("unet.", "unet"),
    ("first_stage_model.", "vae"),
    ("vae.", "vae"),
    ("cond_stage_model.transformer.", "text_encoder"),
    ("cond_stage_model.model.", "text_encoder"),
    ("text_encoder.", "text_encoder"),
    ("conditioner.embedders.0.transformer.", "text_encoder"),
    ("conditioner.embedders.1.model.", "text_encoder_2"),
    ("text_encoder_2.", "text_encoder_2"),
)
"""What stands before a part's names, in files of either layout -> the part."""

GUIDANCE = "time_embedding.cond_proj"
"""The guidance embedding of a full LCM: younger than the original layout, it has diffusers' name in both."""

TRANSPOSED = "text_projection"
"""OpenCLIP's projection is [in, out], where a linear layer's weight is [out, in]."""

_LEVELS, _LAYERS, _DEPTH, _TEXT_LAYERS = 8, 4, 12, 40  # more than any published model has

_UNET_ENDS = {
    "time_embed.0": "time_embedding.linear_1",
    "time_embed.2": "time_embedding.linear_2",
    "label_emb.0.0": "add_embedding.linear_1",
    "label_emb.0.2": "add_embedding.linear_2",
    "input_blocks.0.0": "conv_in",
    "out.0": "conv_norm_out",
    "out.2": "conv_out",
    GUIDANCE: GUIDANCE,
    "time_embed.cond_proj": GUIDANCE,
}
_RESNET = {
    "in_layers.0": "norm1",
    "in_layers.2": "conv1",
    "emb_layers.1": "time_emb_proj",
    "out_layers.0": "norm2",
    "out_layers.3": "conv2",
    "skip_connection": "conv_shortcut",
}
_IN_TRANSFORMER = (
    *("norm1", "norm2", "norm3", "ff.net.0.proj", "ff.net.2"),
    *(f"attn{number}.to_{what}" for number in (1, 2) for what in ("q", "k", "v", "out.0")),
)
_TRANSFORMER = {name: name for name in ("norm", "proj_in", "proj_out")} | {
    f"transformer_blocks.{index}.{name}": f"transformer_blocks.{index}.{name}"
    for index in range(_DEPTH)
    for name in _IN_TRANSFORMER
}
_VAE_RESNET = {name: name for name in ("norm1", "conv1", "norm2", "conv2")} | {"nin_shortcut": "conv_shortcut"}
_VAE_ATTENTION = {"norm": "group_norm", "q": "to_q", "k": "to_k", "v": "to_v", "proj_out": "to_out.0"}
_TEXT_LAYER = {
    "ln_1": ("layer_norm1",),
    "ln_2": ("layer_norm2",),
    "mlp.c_fc": ("mlp.fc1",),
    "mlp.c_proj": ("mlp.fc2",),
    "attn.out_proj": ("self_attn.out_proj",),
    "attn.in_proj": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
}

Table = Mapping[str, tuple[str, ...]]


class Place(NamedTuple):
    """Where a file's tensor belongs: a part and diffusers' name; or the `third` of its rows (OpenCLIP's q, k, v)."""

    part: str
    name: str
    third: int | None = None


@lru_cache
def table(part: str, levels: int = _LEVELS, layers: int = 2) -> Table:
    """Every name of a part that the original layout knows -> diffusers' name, or three that share the one tensor.

    layers is a UNet's number of residual blocks in a level (going down), levels an autoencoder's number of levels.

    >>> table("unet")["input_blocks.4.0.in_layers.2.weight"]
    ('down_blocks.1.resnets.0.conv1.weight',)
    """
    if part.startswith("text"):
        return dict(_text_names())
    modules = _unet_modules(layers) if part == "unet" else _vae_modules(levels)
    return {f"{old}.{end}": (f"{new}.{end}",) for old, new in modules.items() for end in ("weight", "bias")}


def _unet_modules(layers: int) -> dict[str, str]:
    """Each level has `layers` residual blocks (going up one more) and a change of size."""
    found, middle = dict(_UNET_ENDS), {}
    for level in range(_LEVELS):
        first = (layers + 1) * level
        for layer in range(layers + 1):
            down, up = f"input_blocks.{first + layer + 1}", f"output_blocks.{first + layer}"
            if layer < layers:
                found |= _inside(f"{down}.0", f"down_blocks.{level}.resnets.{layer}", _RESNET)
                found |= _inside(f"{down}.1", f"down_blocks.{level}.attentions.{layer}", _TRANSFORMER)
            else:
                found[f"{down}.0.op"] = f"down_blocks.{level}.downsamplers.0.conv"
                found |= {f"{up}.{place}.conv": f"up_blocks.{level}.upsamplers.0.conv" for place in (1, 2)}
            found |= _inside(f"{up}.0", f"up_blocks.{level}.resnets.{layer}", _RESNET)
            found |= _inside(f"{up}.1", f"up_blocks.{level}.attentions.{layer}", _TRANSFORMER)
    for index, name in enumerate(("resnets.0", "attentions.0", "resnets.1")):
        middle |= _inside(f"middle_block.{index}", f"mid_block.{name}", _TRANSFORMER if index == 1 else _RESNET)
    return found | middle


def _vae_modules(levels: int) -> dict[str, str]:
    """The original layout counts the decoder's levels from the picture, diffusers from the latents."""
    found: dict[str, str] = {}
    for side, blocks, change in (("encoder", "down", "downsample"), ("decoder", "up", "upsample")):
        found |= {f"{side}.norm_out": f"{side}.conv_norm_out"}
        found |= {f"{side}.{name}": f"{side}.{name}" for name in ("conv_in", "conv_out")}
        found |= _inside(f"{side}.mid.attn_1", f"{side}.mid_block.attentions.0", _VAE_ATTENTION)
        for number in (0, 1):
            found |= _inside(f"{side}.mid.block_{number + 1}", f"{side}.mid_block.resnets.{number}", _VAE_RESNET)
        for level in range(levels):
            old = f"{side}.{blocks}.{level if side == 'encoder' else levels - 1 - level}"
            new = f"{side}.{blocks}_blocks.{level}"
            found[f"{old}.{change}.conv"] = f"{new}.{change}rs.0.conv"
            for layer in range(_LAYERS):
                found |= _inside(f"{old}.block.{layer}", f"{new}.resnets.{layer}", _VAE_RESNET)
    return found | {name: name for name in ("quant_conv", "post_quant_conv")}


def _inside(old: str, new: str, names: Mapping[str, str]) -> dict[str, str]:
    return {f"{old}.{inner}": f"{new}.{other}" for inner, other in names.items()}


def _text_names() -> Iterator[tuple[str, tuple[str, ...]]]:
    yield "token_embedding.weight", ("text_model.embeddings.token_embedding.weight",)
    yield "positional_embedding", ("text_model.embeddings.position_embedding.weight",)
    yield TRANSPOSED, ("text_projection.weight",)
    for end in ("weight", "bias"):
        yield f"ln_final.{end}", (f"text_model.final_layer_norm.{end}",)
        for layer in range(_TEXT_LAYERS):
            for old, new in _TEXT_LAYER.items():
                name = f"transformer.resblocks.{layer}.{old}{'_' if len(new) > 1 else '.'}{end}"
                yield name, tuple(f"text_model.encoder.layers.{layer}.{inner}.{end}" for inner in new)


def places(part: str, names: Collection[str]) -> dict[str, list[Place]]:
    """A part's names in a file, of either layout and without their prefix -> where each belongs."""
    sizes = [block for block in range(1, _LAYERS + 2) if f"input_blocks.{block}.0.op.weight" in names]
    known = table(part, _count(names, "encoder.down.{}.block.0.conv1.weight"), sizes[0] - 1 if sizes else 2)
    out: dict[str, list[Place]] = {}
    for name in names:
        new = known.get(name) or (_kept(part, name),)
        out[name] = [Place(part, one, third if len(new) > 1 else None) for third, one in enumerate(new)]
    return out


def _kept(part: str, name: str) -> str:
    """A name that is diffusers' already; the same text encoder's may begin with text_model. or not."""
    plain = not part.startswith("text") or name.startswith(("text_model.", "text_projection."))
    return name if plain else f"text_model.{name}"


def original(part: str, names: Collection[str], *, open_clip: bool = False) -> dict[str, Place]:
    """diffusers' names of a part -> its place in the original layout: the same table, from right to left."""
    if part.startswith("text") and not open_clip:
        return {name: Place(part, name) for name in names}
    levels = _count(names, "encoder.down_blocks.{}.resnets.0.conv1.weight")
    known = table(part, levels, _count(names, "down_blocks.0.resnets.{}.conv1.weight"))
    found: dict[str, Place] = {}
    for old, new in known.items():
        for third, name in enumerate(new):
            if name in names and (name not in found or _behind_attention(name, names)):
                found[name] = Place(part, old, third if len(new) > 1 else None)
    return found


def _behind_attention(name: str, names: Collection[str]) -> bool:
    """Going up, what doubles the size has number 1, or 2 where the level has attention."""
    level, upsampler, _ = name.partition("upsamplers.")
    return bool(upsampler) and f"{level}attentions.0.norm.weight" in names


def _count(names: Collection[str], pattern: str) -> int:
    count = 0
    while pattern.format(count) in names:
        count += 1
    return count
