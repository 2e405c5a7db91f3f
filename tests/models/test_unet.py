"""One call of the UNet equals diffusers' own call with everything spelt out."""

import math

import pytest
import torch

from fewstep.models.text import Text
from fewstep.models.unet import has_guidance_embedding, predict
from tests.tiny import is_xl, tiny_unet

KINDS = ("sd15", "sd2", "ssd1b", "sdxl", "pictogram", "lcm")


def inputs(unet, kind, batch=2):
    torch.manual_seed(0)
    text_BLD = torch.randn(batch, 77, unet.config.cross_attention_dim)
    return (
        torch.randn(batch, 4, 8, 8),
        torch.tensor([999, 19]),
        Text(text_BLD, torch.randn(batch, 32) if is_xl(kind) else None),
    )


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_equals_a_direct_call(kind):
    unet = tiny_unet(kind)
    z_BCHW, timestep_B, text = inputs(unet, kind)
    extra = {}
    if is_xl(kind):
        time_ids = torch.tensor([[48.0, 64.0, 0.0, 0.0, 48.0, 64.0]] * 2)
        extra["added_cond_kwargs"] = {"text_embeds": text.pooled_BD, "time_ids": time_ids}
    if kind == "lcm":
        rates = torch.tensor([math.exp(-math.log(10000) * j / 127) for j in range(128)])
        phase = torch.tensor([[7000.0], [0.0]]) * rates
        extra["timestep_cond"] = torch.cat([phase.sin(), phase.cos()], 1)
    expected = unet(z_BCHW, timestep_B, encoder_hidden_states=text.text_BLD, **extra).sample
    out = predict(unet, z_BCHW, timestep_B, text, w_B=torch.tensor([7.0, 0.0]), size=(48, 64))
    torch.testing.assert_close(out, expected, rtol=1e-4, atol=1e-4)
    assert has_guidance_embedding(unet) == (kind == "lcm")


@pytest.mark.parametrize("kind", ["sd15", "sdxl", "lcm"])
@torch.no_grad()
def test_each_item_has_its_own_timestep_and_the_size_follows_the_latents(kind):
    unet = tiny_unet(kind)
    z_BCHW, timestep_B, text = inputs(unet, kind)
    both = predict(unet, z_BCHW, timestep_B, text)
    alone = predict(unet, z_BCHW[1:], timestep_B[1:], text.rows([1]), size=(64, 64))
    torch.testing.assert_close(both[1:], alone, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(both[1:], predict(unet, z_BCHW[1:], timestep_B[:1], text.rows([1])))


@torch.no_grad()
def test_half_precision_weights_take_float32_latents():
    unet = tiny_unet("lcm").to(torch.bfloat16)
    z_BCHW, timestep_B, text = inputs(unet, "lcm")
    out = predict(unet, z_BCHW, timestep_B, text.rows([0]), w_B=torch.tensor([7.0]))
    assert out.dtype == torch.bfloat16 and out.shape == z_BCHW.shape


def test_gradients_reach_the_latents():
    unet = tiny_unet("sd15")
    z_BCHW, timestep_B, text = inputs(unet, "sd15")
    predict(unet, z_BCHW.requires_grad_(True), timestep_B, text).sum().backward()
    assert z_BCHW.grad is not None and bool(z_BCHW.grad.abs().sum() > 0)


def test_pooled_text_is_asked_for():
    unet = tiny_unet("sdxl")
    z_BCHW, timestep_B, text = inputs(unet, "sdxl")
    with pytest.raises(ValueError, match="pooled"):
        predict(unet, z_BCHW, timestep_B, Text(text.text_BLD))
