"""Compiled code equals eager, and is made once: not again for another size, batch or LoRA."""

import pytest
import torch

from fewstep.backends import compiled as room
from fewstep.backends.compiled import compiled, tensorrt
from fewstep.backends.eager import EagerDenoiser
from fewstep.checkpoints.lora import LoraLayer, stack_of
from fewstep.models.vae import decode
from fewstep.pipeline import Pipeline
from tests.backends.test_graphs import fake_lora, noise
from tests.tiny import tiny_model


@pytest.fixture
def fresh():
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    yield
    torch._dynamo.reset()


def code_made():
    return torch._dynamo.utils.counters["stats"]["unique_graphs"]


def ink():
    return fake_lora(
        {
            "mid_block.attentions.0.transformer_blocks.0.attn1.to_q": LoraLayer(noise(1, 4, 32), noise(2, 32, 4), 4.0),
            "mid_block.resnets.0.conv1": LoraLayer(noise(1, 4, 32, 3, 3), noise(2, 32, 4, 1, 1), 4.0),
        }
    )


def answer(model, batch, height, width):
    text = model.text.encode(["a cat"])
    return EagerDenoiser(model, text)(noise(batch, batch, 4, height, width), 499)


@pytest.mark.slow
def test_nothing_is_compiled_again(fresh):
    """By dynamo alone, which decides that; inductor makes the same regions' code in the slow test."""
    eager, model = tiny_model("sd15"), compiled(tiny_model("sd15"), backend="eager")
    for batch in (1, 2):  # one is a case of its own
        answer(model, batch, 16, 16)
        with torch.no_grad():
            decode(model.vae, noise(0, 1, 4, 8, 8))
    made = code_made()
    assert made > 1
    for batch, height, width in ((3, 16, 16), (4, 16, 16), (1, 16, 24), (2, 32, 24)):
        torch.testing.assert_close(answer(model, batch, height, width), answer(eager, batch, height, width))
    for weight in (1.0, 0.5, None, 1.0):
        for one in (model, eager):
            stack_of(one).set([] if weight is None else [(ink(), weight, weight)])
        torch.testing.assert_close(answer(model, 2, 16, 16), answer(eager, 2, 16, 16), rtol=1e-4, atol=1e-4)
    with torch.no_grad():
        decode(model.vae, noise(0, 1, 4, 16, 8))
    assert code_made() == made


def test_without_a_compiler_it_is_the_eager_model_with_a_note(monkeypatch):
    def fail(*_args, **_how):
        raise RuntimeError("No working C++ compiler\nfound")

    monkeypatch.setattr(room.torch, "compile", fail)
    model = compiled(tiny_model("sd15"))
    assert model.notes[-1].startswith("not compiled, so it runs as eager: torch.compile failed here (No working C++")
    assert all(module._compiled_call_impl is None for module in model.unet.modules())


def test_tensorrt_that_is_not_installed_is_noted():
    assert "torch-tensorrt is not installed" in tensorrt(tiny_model("sd15")).notes[-1]


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_inductor_paints_what_eager_paints(fresh):
    eager, fast = Pipeline(tiny_model("sd15")), Pipeline(compiled(tiny_model("sd15")))
    if any("not compiled" in note for note in fast.notes):
        pytest.skip(fast.notes[-1])
    first = eager("a cat", seed=1, steps=1)
    for asked in (
        {"steps": 1},
        {"steps": 2, "guidance": 3.0},
        {"steps": 8, "width": 128},
        {"steps": 4, "image": first, "strength": 0.5},
    ):
        asked = {"prompt": "a cat", "seed": 3, "sampler": "lcm", **asked}
        apart = abs(torch.tensor(list(eager(**asked).getdata())) - torch.tensor(list(fast(**asked).getdata())))
        assert int(apart.max()) <= 2, asked
