"""Pictures to latents and back, for AutoencoderKL and the tiny AutoencoderTiny alike.

Shapes: B batch, C 4 latent channels or 3 colours, H and W latent or picture height and width.
Latents are scaled as the UNet wants them: z = scaling_factor x E(x) (0.18215 SD, 0.13025 SDXL, 1 for the tiny one).
Pictures are float32 in [-1, 1].
"""

from typing import Any

import torch
from torch import Tensor

from fewstep.errors import CheckpointError
from fewstep.models.layout import laid_out


def scale_factor(vae: Any) -> int:
    """How many pixels a latent spans on each side: 8 in every family known here."""
    return 2 ** (len(vae.config.block_out_channels) - 1)


def encode(vae: Any, image_BCHW: Tensor, *, noise: Tensor | None = None) -> Tensor:
    """A picture [B, 3, H, W] in [-1, 1] -> scaled latents [B, 4, H/8, W/8], float32.

    noise (unit, of the latents' shape) draws a sample of the posterior; None gives its mode. The tiny
    autoencoder has no posterior: noise is ignored there.
    """
    mean_BCHW, std_BCHW = moments(vae, image_BCHW)
    return mean_BCHW if noise is None else mean_BCHW + std_BCHW * noise.to(mean_BCHW)


def moments(vae: Any, image_BCHW: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of the scaled latents' posterior, each [B, 4, H/8, W/8], float32."""
    return _finite(vae, image_BCHW, _moments)


def decode(vae: Any, z_BCHW: Tensor) -> Tensor:
    """Scaled latents [B, 4, H, W] -> pictures [B, 3, 8H, 8W] in [-1, 1], clamped, float32.

    A half-precision autoencoder that overflows (SDXL's own does) is moved to float32, stays there, and is tried again.
    """
    (image_BCHW,) = _finite(vae, z_BCHW, _decode)
    return image_BCHW.clamp(-1, 1)


def _moments(vae: Any, image_BCHW: Tensor) -> tuple[Tensor, Tensor]:
    out = vae.encode(laid_out(image_BCHW.to(vae.dtype)))
    scale = vae.config.scaling_factor
    if hasattr(out, "latents"):
        z_BCHW = out.latents.float() * scale
        return z_BCHW, torch.zeros_like(z_BCHW)
    return out.latent_dist.mean.float() * scale, out.latent_dist.std.float() * scale


def _decode(vae: Any, z_BCHW: Tensor) -> tuple[Tensor, ...]:
    z_BCHW = z_BCHW.float() / vae.config.scaling_factor
    return (vae.decode(laid_out(z_BCHW.to(vae.dtype)), return_dict=False)[0].float(),)


def _finite(vae: Any, x_BCHW: Tensor, run: Any) -> Any:
    """`run(vae, x)`, again in float32 where half precision gave NaN or infinity."""
    out = run(vae, x_BCHW)
    if all(bool(torch.isfinite(part).all()) for part in out):
        return out
    if not bool(torch.isfinite(x_BCHW).all()):
        raise CheckpointError(
            "The denoised latents are not finite numbers: the model's weights or a LoRA's are damaged or far too "
            "strong. Lower the guidance or the LoRA's weight, or use float32."
        )
    if vae.dtype == torch.float32:
        raise CheckpointError("The VAE gave values that are not numbers, in float32 too: its weights are damaged.")
    vae.to(torch.float32)
    return _finite(vae, x_BCHW, run)
