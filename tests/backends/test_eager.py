"""The eager Denoiser: guidance in one batch, per item, and z0 in float32."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from fewstep.backends.eager import EagerDenoiser
from fewstep.models.text import Text
from fewstep.models.unet import predict
from fewstep.sampling.sampler import sample, sampler_named
from fewstep.sampling.schedule import to_z0
from fewstep.sampling.timesteps import timesteps
from tests.cheap import CheapUnet
from tests.tiny import tiny_model

torch.manual_seed(0)
Z_BCHW = torch.randn(3, 4, 8, 8)
T_B = torch.tensor([999, 499, 19])


@pytest.fixture(scope="module")
def models():
    return {kind: tiny_model(kind) for kind in ("sd15", "sd2", "sdxl", "lcm")}


class Counted:
    """Stands before a UNet and notes the size of each batch."""

    def __init__(self, unet):
        self.unet, self.batches = unet, []

    def __getattr__(self, name):
        return getattr(self.unet, name)

    def __call__(self, z_BCHW, *rest, **named):
        self.batches.append(len(z_BCHW))
        return self.unet(z_BCHW, *rest, **named)


def counted(monkeypatch, model):
    unet = Counted(model.unet)
    monkeypatch.setattr(model, "unet", unet)
    return unet


@pytest.mark.parametrize("kind", ["sd15", "sd2", "sdxl"])
@torch.no_grad()
def test_guidance_is_uncond_plus_s_times_the_difference(models, kind, monkeypatch):
    model = models[kind]
    text, negative = model.text.encode(["a cat", "a dog", "moon"]), model.text.encode_negative([""])
    cond = predict(model.unet, Z_BCHW, T_B, text)
    uncond = predict(model.unet, Z_BCHW, T_B, negative)
    expected = to_z0(model.schedule, Z_BCHW, uncond + 7.5 * (cond - uncond), T_B)
    unet = counted(monkeypatch, model)
    z0_BCHW = EagerDenoiser(model, text, None, 7.5)(Z_BCHW, T_B)
    torch.testing.assert_close(z0_BCHW, expected, rtol=1e-3, atol=1e-3)
    assert unet.batches == [6]


@torch.no_grad()
def test_guidance_exactly_1_is_one_prediction(models, monkeypatch):
    model = models["sd15"]
    text = model.text.encode(["a cat"])
    expected = to_z0(model.schedule, Z_BCHW, predict(model.unet, Z_BCHW, T_B, text), T_B)
    unet = counted(monkeypatch, model)
    assert torch.equal(EagerDenoiser(model, text, text, 1.0)(Z_BCHW, T_B), expected)
    assert unet.batches == [3]


@torch.no_grad()
def test_each_item_has_its_own_guidance(models, monkeypatch):
    model = models["sd15"]
    text = model.text.encode(["a cat", "a dog", "moon"])
    negative = model.text.encode(["red", "apple", ""])
    alone = [
        EagerDenoiser(model, text.rows([i]), negative.rows([i]), s)(Z_BCHW[i : i + 1], T_B[i : i + 1])
        for i, s in enumerate([1.0, 7.5, 0.0])
    ]
    unet = counted(monkeypatch, model)
    together = EagerDenoiser(model, text, negative, [1.0, 7.5, 0.0])(Z_BCHW, T_B)
    torch.testing.assert_close(together, torch.cat(alone), rtol=1e-3, atol=1e-3)
    assert unet.batches == [5]


@torch.no_grad()
def test_an_embedded_guidance_is_told_to_the_unet(models, monkeypatch):
    model = models["lcm"]
    text = model.text.encode(["a cat"])
    out = predict(model.unet, Z_BCHW, T_B, text, w_B=torch.tensor([7.0]))
    expected = to_z0(model.schedule, Z_BCHW, out, T_B)
    unet = counted(monkeypatch, model)
    assert torch.equal(EagerDenoiser(model, text, None, 8.0)(Z_BCHW, T_B), expected)
    assert unet.batches == [3]
    assert not torch.equal(EagerDenoiser(model, text, None, 3.0)(Z_BCHW, T_B), expected)


def test_z0_is_float32_of_half_precision_weights():
    model = tiny_model("sd15", dtype="bf16")
    z0_BCHW = EagerDenoiser(model, model.text.encode(["a cat"]), None, 2.0)(Z_BCHW, 499)
    assert z0_BCHW.dtype == torch.float32 and not z0_BCHW.requires_grad


@pytest.mark.parametrize("kind", ["sd15", "lcm"])
def test_a_sampler_runs_on_it(models, kind):
    model = models[kind]
    denoiser = EagerDenoiser(model, model.text.encode(["a cat"]), None, 2.0)
    steps = list(
        sample(
            denoiser,
            Z_BCHW,
            timesteps(model.sampling.table, 2),
            sampler=sampler_named(model.sampling.sampler),
            schedule=model.schedule,
            noise=lambda k: torch.ones_like(Z_BCHW),
        )
    )
    assert len(steps) == 2 and bool(torch.isfinite(steps[-1].z).all())


def test_counts_that_do_not_fit(models):
    text = models["sd15"].text.encode(["a cat"])
    with pytest.raises(ValueError, match="2 guidances for 3 items"):
        EagerDenoiser(models["sd15"], text, None, [1.0, 2.0])(Z_BCHW, T_B)
    with pytest.raises(ValueError, match="2 prompts for 3 items"):
        EagerDenoiser(models["sd15"], Text.cat([text, text]), None, 1.0)(Z_BCHW, T_B)


class Operations(TorchDispatchMode):
    """The names of all operations."""

    def __init__(self):
        super().__init__()
        self.names = set()

    def __torch_dispatch__(self, op, types, args=(), kwargs=None):
        self.names.add(op.name().split(".")[0])
        return op(*args, **(kwargs or {}))


@pytest.mark.parametrize("sampler", ["lcm", "tcd", "ddim"])
@pytest.mark.parametrize("guidance", [1.0, 3.0])
def test_a_gpu_is_not_waited_for_inside_the_loop(models, sampler, guidance, monkeypatch):
    """Neither a number read from a tensor, nor a list of numbers made one: each would wait for the device."""
    model = models["sd15"]
    monkeypatch.setattr(model, "unet", CheapUnet(model.unet.config))
    steps = sample(
        EagerDenoiser(model, model.text.encode(["a cat"]), None, guidance),
        Z_BCHW,
        timesteps("linspace-lcm", 3),
        sampler=sampler_named(sampler),
        schedule=model.schedule,
        noise=lambda k: torch.ones_like(Z_BCHW),
    )
    next(steps)
    with Operations() as seen:
        list(steps)
    assert "aten::mul" in seen.names and not seen.names & {"aten::lift_fresh", "aten::_local_scalar_dense"}
