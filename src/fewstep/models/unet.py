"""One call of a UNet, with what its family wants beside latents and text.

Shapes: B batch, C latent channels, H and W latent height and width, L 77 positions, D text width.
Sources: size and crop conditioning, SDXL (arXiv:2307.01952, section 2.2); guidance embedding, LCM
(arXiv:2310.04378, section 4.2).
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from fewstep.errors import CheckpointError
from fewstep.models.layout import LARGE, laid_out
from fewstep.models.text import Text
from fewstep.sampling.guidance import guidance_embedding

LATENT_PX = 8
"""Pixels a latent spans on each side, in every family known here."""


def has_guidance_embedding(unet: Any) -> bool:
    """Does this UNet take its guidance as an input (a full LCM), instead of by two predictions?"""
    return unet.config.time_cond_proj_dim is not None


def wants_size(unet: Any) -> bool:
    """Does this UNet take picture size and pooled text (SDXL, SSD-1B)?"""
    return unet.config.addition_embed_type == "text_time"


def weight_dtype(unet: Any) -> torch.dtype:
    """The number format that the UNet computes in, also while training layers of another format sit in it."""
    return unet.conv_in.weight.dtype


def predict(
    unet: Any,
    z_BCHW: Tensor,
    timestep_B: Tensor,
    text: Text,
    *,
    w_B: Tensor | None = None,
    size: tuple[int, int] | None = None,
    beside_BCHW: Tensor | None = None,
) -> Tensor:
    """The UNet's raw output [B, C, H, W] (noise, v or sample, as it was trained), in the UNet's own number format.

    w_B is the papers' guidance w = guidance - 1, used where the UNet has a guidance embedding (default 0) and
    ignored elsewhere. size is the picture's (height, width) in px for SDXL, where the text brings no time ids;
    default 8 x the latents'. A text of one row serves the whole batch. beside_BCHW is what an inpainting UNet sees
    beside the latents: the mask and the latents of what is kept [1, 5, H, W]. Raises CheckpointError without it.
    """
    told = conditions(unet, text, z_BCHW, w_B=w_B, size=size)
    return evaluate(unet, z_BCHW, timestep_B, told, beside_BCHW=beside_BCHW)


def conditions(
    unet: Any, text: Text, z_BCHW: Tensor, *, w_B: Tensor | None = None, size: tuple[int, int] | None = None
) -> dict[str, Any]:
    """What `predict` tells a UNet beside latents and timesteps, as its keywords: the same at every step.

    Of z_BCHW only shape and device count.
    """
    dtype, text = weight_dtype(unet), text.expand(len(z_BCHW))
    told: dict[str, Any] = {"encoder_hidden_states": text.text_BLD.to(z_BCHW.device, dtype)}
    if wants_size(unet):
        told["added_cond_kwargs"] = _size_conditions(z_BCHW, text, size, dtype)
    if has_guidance_embedding(unet):
        told["timestep_cond"] = _guidance_condition(unet, z_BCHW, w_B)
    return told


def evaluate(
    unet: Any,
    z_BCHW: Tensor,
    timestep_B: Tensor,
    told: Mapping[str, Any],
    *,
    beside_BCHW: Tensor | None = None,
) -> Tensor:
    """`predict` with what `conditions` gave."""
    if unet.config.in_channels != unet.config.out_channels:
        if beside_BCHW is None or beside_BCHW.shape[-2:] != z_BCHW.shape[-2:]:
            raise CheckpointError(
                f"The UNet takes {unet.config.in_channels} channels (an inpainting model): it wants a picture and a "
                "mask of the latents' size beside them, which are not there. Use the ordinary checkpoint for this."
            )
        z_BCHW = torch.cat([z_BCHW, beside_BCHW.to(z_BCHW).expand(len(z_BCHW), -1, -1, -1)], dim=1)
    if z_BCHW.shape[-2] * z_BCHW.shape[-1] >= LARGE:
        z_BCHW = laid_out(z_BCHW)
    return unet(z_BCHW.to(weight_dtype(unet)), timestep_B, return_dict=False, **told)[0].contiguous()


def _size_conditions(z_BCHW: Tensor, text: Text, size: tuple[int, int] | None, dtype: torch.dtype) -> dict[str, Tensor]:
    """Original height and width, crop top and left (0), target height and width: in this order, and in float32, because
    bfloat16 would round 1023 to 1024.
    """
    height, width = size or (z_BCHW.shape[-2] * LATENT_PX, z_BCHW.shape[-1] * LATENT_PX)
    if text.pooled_BD is None:
        raise ValueError("this UNet needs the pooled text of a second text encoder")
    if text.time_ids_B6 is None:
        row = torch.tensor([height, width, 0, 0, height, width], device=z_BCHW.device, dtype=torch.float32)
        time_ids_B6 = row.expand(len(z_BCHW), 6)
    else:
        time_ids_B6 = text.time_ids_B6.to(z_BCHW.device, torch.float32)
    return {"text_embeds": text.pooled_BD.to(z_BCHW.device, dtype), "time_ids": time_ids_B6}


def _guidance_condition(unet: Any, z_BCHW: Tensor, w_B: Tensor | None) -> Tensor:
    """The embedding is built in float32 and cast last: bfloat16 would round w x 1000 to steps of 8."""
    if w_B is None:
        w_B = torch.zeros(len(z_BCHW), device=z_BCHW.device)
    w_B = w_B.to(z_BCHW.device, torch.float32).reshape(-1).expand(len(z_BCHW))
    like = z_BCHW.float()
    return guidance_embedding(w_B, dim=unet.config.time_cond_proj_dim, like=like).to(weight_dtype(unet))
