"""Memory plans carried out: who is on the device when, the same picture, LoRAs, and a way down when memory is out.

A CPU stands for the device: what visits is a copy that is spoilt when it leaves (`Visit`), so that a part that is not
brought, or is used after it left, is seen.
"""

import numpy as np
import pytest
import torch

from fewstep.backends import placement
from fewstep.backends.placement import Guest, Placement, place
from fewstep.checkpoints.lora import write_lora
from fewstep.errors import DeviceError
from fewstep.memory import LADDER, PLANS
from fewstep.pipeline import Pipeline
from tests.marks import slow
from tests.tiny import tiny_model

ASKED = {"prompt": "a cat", "steps": 2, "seed": 5, "guidance": 3.0, "sampler": "lcm", "width": 64, "height": 64}


class Visit(Guest):
    """Counts what is on the device; what visits is a copy of what is at home."""

    now = most = 0

    def bring(self):
        if not self.away:
            super().bring()
            for tensor in self._tensors:
                tensor.data = tensor.data.clone()
            Visit.now += self._size
            Visit.most = max(Visit.most, Visit.now)

    def leave(self):
        if self.away:
            Visit.now -= self._size
            for tensor in self._tensors:
                if tensor.is_floating_point():
                    tensor.data.fill_(float("nan"))  # whoever kept the copy would see it
        super().leave()

    @property
    def _size(self):
        return sum(tensor.numel() for tensor in self._tensors)


@pytest.fixture(autouse=True)
def visits(monkeypatch):
    monkeypatch.setattr(placement, "Guest", Visit)
    Visit.now = Visit.most = 0


def under(plan, kind="sd15"):
    model = tiny_model(kind)
    return model, Placement(model, PLANS[plan], "asked for"), size_of(model)


def size_of(model):
    parts = {"text": model.text.encoders, "unet": [model.unet], "vae": [model.vae]}
    return {
        name: sum(t.numel() for module in modules for t in (*module.parameters(), *module.buffers()))
        for name, modules in parts.items()
    }


def alike(one, other):
    """But for rounding: a copy of weights may lie otherwise in memory, and be summed in another order."""
    return np.abs(one - other).max() <= 1


def drawn(model, **asked):
    return np.asarray(Pipeline(model)(**{**ASKED, **asked}), int)


@pytest.mark.parametrize("kind", ["sd15", *slow("sdxl")])
def test_every_plan_paints_the_same_picture(kind):
    expected = np.asarray(Pipeline(tiny_model(kind))(**ASKED), int)
    for plan in LADDER:
        model = under(plan.name, kind)[0]
        assert alike(drawn(model), expected), plan.name


def test_parts_take_turns():
    model, found, size = under("medium")
    drawn(model)
    assert Visit.most == max(size.values())
    found.home()
    assert Visit.now == 0


def test_layers_come_one_by_one():
    model, found, size = under("low")
    drawn(model)
    assert Visit.most == max(size["text"], size["vae"]) < size["unet"]
    text = model.text.encode(["a cat"])
    found.home()
    Visit.most = 0
    model.unet(torch.zeros(1, 4, 8, 8), 9, text.text_BLD)
    largest = max(sum(p.numel() for p in m.parameters(recurse=False)) for m in model.unet.modules())
    assert (Visit.most, Visit.now) == (largest, 0)


def test_eight_bits_round_a_little_and_take_half_or_less():
    model = under("fp8")[0]
    stored = {weight.dtype for weight in model.unet.parameters()}
    assert stored == {torch.float32, torch.float8_e4m3fn}
    assert model.unet.conv_in.weight.dtype == torch.float32
    z_BCHW, text = torch.ones(1, 4, 8, 8), model.text.encode(["a cat"]).text_BLD
    plain = tiny_model("sd15").unet(z_BCHW, 499, text)[0]
    rounded = model.unet(z_BCHW, 499, text)[0]
    apart = float((plain - rounded).norm() / plain.norm())
    assert 0 < apart < 0.3
    assert drawn(model).std() > 0


@pytest.fixture(scope="module")
def lora(tmp_path_factory):
    path = tmp_path_factory.mktemp("placed") / "ink.safetensors"
    generator = torch.Generator().manual_seed(0)
    down, up = (torch.randn(shape, generator=generator) for shape in ((4, 32, 3, 3), (4, 4, 1, 1)))
    write_lora(path, {"conv_out": (down, up)}, alpha=4.0)
    return path


@pytest.mark.parametrize("plan", ["full", "medium", "low"])
def test_loras_come_and_go_under_a_plan(plan, lora):
    plain = Pipeline(tiny_model("sd15"))
    without = np.asarray(plain(**ASKED), int)
    plain.set_loras(lora)
    expected = np.asarray(plain(**ASKED), int)
    assert not alike(without, expected)
    model = under(plan)[0]
    pipe = Pipeline(model)
    for loras, wanted in ((None, without), (lora, expected), (None, without), (lora, expected)):
        pipe.set_loras(loras)
        assert alike(np.asarray(pipe(**ASKED), int), wanted)


def test_a_lora_is_merged_into_eight_bits_and_taken_out(lora):
    model = under("fp8")[0]
    pipe = Pipeline(model)
    before = np.asarray(pipe(**ASKED), int)
    pipe.set_loras(lora)
    assert not alike(np.asarray(pipe(**ASKED), int), before)
    pipe.set_loras(None)
    assert np.array_equal(np.asarray(pipe(**ASKED), int), before)


class Full:
    """A module's call that runs out of memory so many times before it works."""

    def __init__(self, call, times):
        self.call, self.times, self.calls = call, times, 0

    def __call__(self, *args, **named):
        self.calls += 1
        if self.calls <= self.times:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return self.call(*args, **named)


@pytest.mark.parametrize(("part", "times"), [("unet", 1), ("vae", 2), ("text", 4)])
@pytest.mark.filterwarnings("ignore:out of memory")
def test_out_of_memory_takes_a_smaller_plan_and_the_picture_is_the_same(part, times):
    expected = np.asarray(Pipeline(tiny_model("sd15"))(**ASKED), int)
    model = tiny_model("sd15")
    if part == "vae":
        model.vae.decode = Full(model.vae.decode, times)
    else:
        module = model.unet if part == "unet" else model.text.encoders[0]
        module.forward = Full(module.forward, times)
    found = Placement(model, LADDER[0], "asked for")
    assert alike(drawn(model), expected)
    assert found.plan is LADDER[times]
    assert [note for note in model.notes if note.startswith("out of memory with the plan full: went on with high")]


@pytest.mark.filterwarnings("ignore:out of memory")
def test_below_the_smallest_plan_there_is_a_sentence():
    model = tiny_model("sd15")
    model.unet.forward = Full(model.unet.forward, 99)
    Placement(model, LADDER[0], "asked for")
    with pytest.raises(DeviceError, match="more memory than cpu has, also with the memory plan low. Paint a smaller"):
        drawn(model)


def test_who_chooses():
    notes = place(tiny_model("sd15"), "auto").plan.name, place(tiny_model("sd15"), "lowvram").plan.name
    assert notes == ("full", "low")
    model = tiny_model("sd15")
    assert place(model, "auto", limit=1).plan.name == "low"
    assert "memory plan low: the UNet's layers come one by one (about 0." in model.notes[-1]
    with pytest.raises(
        DeviceError, match="no memory plan called 'tiny'. Use auto, full, high, medium, tiled, low, fp8"
    ):
        place(model, "tiny")


def test_a_compiled_unet_forgets_its_code_when_layers_stream():
    model = tiny_model("sd15")
    for module in model.unet.modules():
        module._compiled_call_impl = print
    Placement(model, PLANS["low"], "asked for")
    assert all(module._compiled_call_impl is None for module in model.unet.modules())
