"""Inpainting checkpoints, whose UNet sees the mask and what is kept: 9 channels, as diffusers feeds them."""

import numpy as np
import pytest
import torch
from PIL import Image

from fewstep.conditioning import conditioned
from fewstep.errors import CheckpointError
from fewstep.pipeline import Pipeline
from fewstep.request import Request
from fewstep.sampling.schedule import to_z0
from tests.tiny import tiny_model, tiny_unet

START = Image.effect_noise((64, 64), 60).convert("RGB")
MASK = Image.new("L", (64, 64))
MASK.paste(255, (16, 24, 48, 64))


@pytest.fixture(scope="module")
def pipe():
    model = tiny_model("sd15")
    model.unet = tiny_unet("sd15", in_channels=9)
    return Pipeline(model)


def by_diffusers(pipe, image, mask):
    """The mask and the kept latents, by the library's own image processing."""
    from diffusers.image_processor import VaeImageProcessor

    pixels = VaeImageProcessor(vae_scale_factor=8)
    cover = VaeImageProcessor(vae_scale_factor=8, do_normalize=False, do_binarize=True, do_convert_grayscale=True)
    image_BCHW, mask_BCHW = pixels.preprocess(image), cover.preprocess(mask)
    with torch.no_grad():
        kept_BCHW = pipe.model.vae.encode(image_BCHW * (mask_BCHW < 0.5)).latent_dist.mode()
    cells_BCHW = torch.nn.functional.interpolate(mask_BCHW, size=(8, 8))
    return torch.cat([cells_BCHW, kept_BCHW * pipe.model.vae.config.scaling_factor], dim=1)


def test_what_it_sees_is_what_diffusers_feeds(pipe):
    found = pipe.runner.beside(START, MASK, (64, 64))
    expected = by_diffusers(pipe, START, MASK)
    assert torch.equal(found[:, :1], expected[:, :1])
    assert (found - expected).abs().max() < 0.02  # grey is 127 of 255 here and 127.5 there
    assert (found - by_diffusers(pipe, START, Image.new("L", (64, 64)))).abs().max() > 0.05


@pytest.mark.parametrize("guidance", [1.0, 2.0])
def test_its_prediction_is_the_networks(pipe, guidance):
    plan = pipe.plan(Request("a cat", image=START, mask=MASK, guidance=guidance, negative_prompt="moon", steps=1))
    z = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    found = conditioned(pipe.runner, plan, {})(z, 499)
    nine = torch.cat([z, pipe.runner.beside(START, MASK, (64, 64)).expand(2, -1, -1, -1)], dim=1)
    with torch.no_grad():
        outputs = [
            pipe.model.unet(
                nine, torch.tensor([499, 499]), encoder_hidden_states=pipe.model.text.encode([words] * 2).text_BLD
            )[0]
            for words in ("moon", "a cat")
        ]
    mixed = outputs[0] + guidance * (outputs[1] - outputs[0])
    torch.testing.assert_close(
        found, to_z0(pipe.model.schedule, z, mixed, torch.tensor([499, 499])), rtol=1e-4, atol=1e-4
    )


@pytest.mark.parametrize("steps", range(1, 9))
def test_outside_the_mask_nothing_changes(pipe, steps):
    painted = np.asarray(pipe("a cat", image=START, mask=MASK, steps=steps, seed=0))
    kept = np.asarray(MASK) == 0
    assert np.array_equal(painted[kept], np.asarray(START)[kept])
    assert not np.array_equal(painted[~kept], np.asarray(START)[~kept])


def test_without_a_mask_or_a_picture_all_is_repainted(pipe):
    assert pipe("a cat", steps=2, seed=0, width=64, height=64).size == (64, 64)
    one, other = (np.asarray(pipe("a cat", image=START, strength=s, steps=1, seed=0)) for s in (0.2, 1.0))
    assert not np.array_equal(one, other)
    assert pipe.runner.beside(None, None, (64, 64))[:, :1].min() == 1


def test_windows_have_no_picture_beside_them(pipe):
    with pytest.raises(CheckpointError, match="wants a picture and a mask"):
        pipe("a cat", image=START.resize((192, 192)), strength=0.5, steps=1, tile=64)
