"""Autoencoders against diffusers' own calls, and what happens when half precision overflows."""

import pytest
import torch

from fewstep.errors import CheckpointError
from fewstep.models.vae import decode, encode, moments, scale_factor
from tests.tiny import tiny_taesd, tiny_vae

torch.manual_seed(0)
IMAGE_BCHW = torch.rand(2, 3, 64, 64) * 2 - 1


@torch.no_grad()
def test_encode_is_diffusers_times_the_scale():
    vae = tiny_vae(scaling_factor=0.13025)
    posterior = vae.encode(IMAGE_BCHW).latent_dist
    torch.testing.assert_close(encode(vae, IMAGE_BCHW), posterior.mode() * 0.13025)
    noise = torch.randn(2, 4, 8, 8)
    expected = (posterior.mean + posterior.std * noise) * 0.13025
    torch.testing.assert_close(encode(vae, IMAGE_BCHW, noise=noise), expected)
    mean, std = moments(vae, IMAGE_BCHW)
    assert bool((std > 0).all()) and mean.shape == std.shape == (2, 4, 8, 8)


@pytest.mark.parametrize("make", [tiny_vae, tiny_taesd])
@torch.no_grad()
def test_decode_is_diffusers_clamped(make):
    vae, z_BCHW = make(), torch.randn(2, 4, 8, 8)
    expected = vae.decode(z_BCHW / vae.config.scaling_factor).sample.clamp(-1, 1)
    torch.testing.assert_close(decode(vae, z_BCHW), expected)
    assert scale_factor(vae) == 8


@torch.no_grad()
def test_tiny_encode_has_no_noise():
    vae = tiny_taesd()
    assert torch.equal(encode(vae, IMAGE_BCHW), encode(vae, IMAGE_BCHW, noise=torch.ones(2, 4, 8, 8)))
    torch.testing.assert_close(encode(vae, IMAGE_BCHW), vae.encode(IMAGE_BCHW).latents)


@torch.no_grad()
def test_overflow_in_half_precision_is_retried_in_float32():
    vae = tiny_vae()
    vae.post_quant_conv.weight.mul_(3e4)
    expected, z_BCHW = decode(vae, torch.ones(1, 4, 8, 8)), torch.ones(1, 4, 8, 8)
    half = vae.to(torch.float16)
    half.post_quant_conv.bias.fill_(6e4)
    assert bool(torch.isfinite(decode(half, z_BCHW * 4)).all()) and half.dtype == torch.float32
    assert bool(torch.isfinite(expected).all())


def test_damaged_weights_and_damaged_latents_are_told_apart():
    vae = tiny_vae()
    with pytest.raises(CheckpointError, match="latents are not finite"):
        decode(vae, torch.full((1, 4, 8, 8), float("nan")))
    vae.post_quant_conv.bias.fill_(float("nan"))
    with pytest.raises(CheckpointError, match="its weights are damaged"):
        decode(vae, torch.zeros(1, 4, 8, 8))
