"""Which family a UNet is of, found from the shapes of its layers and not from a name in a file.

| family    | text encoders | how it is told apart                                          | trained at |
|-----------|---------------|---------------------------------------------------------------|------------|
| sd15      | 1             | convolutions into the transformer blocks (cross-attention 768) | 512 px    |
| sd2       | 1             | linear layers into the transformer blocks (1024)               | 768 px    |
| pictogram | 1             | cross-attention 160                                            | 256 px    |
| sdxl      | 2             | size and crop embedding, attention in the middle (2048)        | 1024 px   |
| ssd1b     | 2             | the same without attention in the middle                       | 1024 px   |
| vega      | 2             | that, with transformers of one and two layers (Segmind-Vega)   | 1024 px   |

Widths other than the published ones are accepted, so that miniatures of a family work like the family. The size is the
config's own where it says one (latents x 8): SD 2.x was trained at 512 and at 768 px.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from fewstep.errors import CheckpointError

Name = Literal["pictogram", "sd15", "sd2", "ssd1b", "vega", "sdxl"]

_LABELS: dict[Name, tuple[str, int]] = {
    "pictogram": ("pictogram", 256),
    "sd15": ("SD 1.5", 512),
    "sd2": ("SD 2.x", 768),
    "ssd1b": ("SSD-1B", 1024),
    "vega": ("Segmind-Vega", 1024),
    "sdxl": ("SDXL", 1024),
}


INPAINTING = 9
"""Channels of an inpainting UNet: latents, mask, latents of the masked picture."""


@dataclass(frozen=True)
class Family:
    """A family of models: what LoRAs, text and sizes must agree with."""

    name: Name
    label: str
    cross_attention_dim: int
    size_px: int
    text_encoders: int

    def __str__(self) -> str:
        """As an error message names it: `SD 1.5 (cross-attention 768)`."""
        return f"{self.label} (cross-attention {self.cross_attention_dim})"


def family_of(unet_config: Mapping[str, Any], keys: Collection[str] = ()) -> Family:
    """The family of a UNet from its config and, where given, the names of its weights (they win over the config).

    Raises CheckpointError for a UNet of another architecture: SDXL refiner, upscaling, pixel-space and others.
    """
    width = unet_config.get("cross_attention_dim")
    if not isinstance(width, int):
        raise CheckpointError(f"The UNet has a cross-attention of {width!r}; only one width for all layers is known.")
    _check_channels(unet_config)
    name = _name(unet_config, keys, width)
    label, published_px = _LABELS[name]
    latent = unet_config.get("sample_size")
    size_px = latent * 8 if isinstance(latent, int) else published_px
    return Family(name, label, width, size_px, 2 if name in ("sdxl", "ssd1b", "vega") else 1)


def _check_channels(unet_config: Mapping[str, Any]) -> None:
    channels = unet_config.get("in_channels", 4)
    if channels in (4, INPAINTING) and unet_config.get("out_channels", 4) == 4:
        return
    kind = {8: "an instruction or upscaling model"}.get(channels, "of another kind")
    raise CheckpointError(f"The UNet takes {channels} channels, so it is {kind}; only 4 and 9 (inpainting) are known.")


def _name(unet_config: Mapping[str, Any], keys: Collection[str], width: int) -> Name:
    if unet_config.get("addition_embed_type") == "text_time":
        return _xl_name(unet_config, keys, width)
    if unet_config.get("addition_embed_type") is not None or unet_config.get("encoder_hid_dim_type") is not None:
        raise CheckpointError("The UNet has added conditions that neither SD 1.5, SD 2.x nor SDXL have.")
    if width == 160:
        return "pictogram"
    return "sd2" if unet_config.get("use_linear_projection") else "sd15"


def _xl_name(unet_config: Mapping[str, Any], keys: Collection[str], width: int) -> Name:
    if width == 1280:
        raise CheckpointError("This is the SDXL refiner; load the SDXL base model, few steps need no refiner.")
    if keys:
        middle = any(key.startswith("mid_block.attentions.") for key in keys)
    else:
        middle = unet_config.get("mid_block_type", "UNetMidBlock2DCrossAttn") == "UNetMidBlock2DCrossAttn"
    if middle:
        return "sdxl"
    layers = unet_config.get("transformer_layers_per_block")
    shallow = isinstance(layers, (list, tuple)) and all(isinstance(depth, int) and depth <= 2 for depth in layers)
    return "vega" if shallow else "ssd1b"
