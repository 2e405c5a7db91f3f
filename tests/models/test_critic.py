"""The critic's heads, and the features that they look at."""

import pytest
import torch

from fewstep.models.critic import Heads, block_features, block_widths
from fewstep.models.lora_layers import add_lora, base_only
from fewstep.models.text import Text
from tests.tiny import tiny_model, tiny_unet


@pytest.mark.parametrize("kind", ["sd15", "pictogram", "ssd1b", "sdxl"])
def test_every_block_is_seen_in_the_width_that_is_told(kind):
    model = tiny_model(kind)
    text = model.text.encode(["a cat", "a dog"])
    features = block_features(model.unet, torch.zeros(2, 4, 8, 8), torch.tensor([3, 700]), text)
    assert [f.shape[1] for f in features] == block_widths(model.unet)
    logits_BP = Heads(block_widths(model.unet))(features)
    assert logits_BP.shape == (2, sum(f.shape[2] * f.shape[3] for f in features))


def test_the_last_block_is_what_the_output_layers_read():
    unet = tiny_unet()
    text = Text(torch.randn(1, 7, 32, generator=torch.Generator().manual_seed(0)))
    z_BCHW, t_B = torch.ones(1, 4, 8, 8), torch.tensor([500])
    last = block_features(unet, z_BCHW, t_B, text)[-1]
    out = unet.conv_out(unet.conv_act(unet.conv_norm_out(last)))
    torch.testing.assert_close(out, unet(z_BCHW, t_B, text.text_BLD).sample)
    assert not any(block._forward_hooks for block in unet.up_blocks)


def test_hooks_go_when_the_unet_fails():
    unet = tiny_unet()
    with pytest.raises(RuntimeError):
        block_features(unet, torch.ones(1, 3, 8, 8), torch.tensor([500]), Text(torch.zeros(1, 7, 32)))
    assert not any(block._forward_hooks for block in unet.down_blocks)


def test_the_seed_makes_the_heads():
    one, same, other = (Heads([16, 32], seed=seed).state_dict() for seed in (3, 3, 4))
    assert all(torch.equal(one[name], same[name]) for name in one)
    assert any(not torch.equal(one[name], other[name]) for name in one)


def test_gradient_goes_through_the_base_to_the_latents_and_not_into_the_lora():
    unet = tiny_unet()
    add_lora(unet, rank=2, alpha=2)
    z_BCHW = torch.ones(1, 4, 8, 8, requires_grad=True)
    with base_only(unet):
        features = block_features(unet, z_BCHW, torch.tensor([500]), Text(torch.ones(1, 7, 32)))
    sum(f.square().mean() for f in features).backward()
    assert z_BCHW.grad.abs().sum() > 0
    assert all(value.grad is None for value in unet.parameters())
