"""What the file still holds is not copied; what changed since it was loaded is not taken from there."""

import pytest
import torch

from fewstep.checkpoints.load import load_model
from fewstep.checkpoints.lora import LoraStack, read_lora
from fewstep.checkpoints.save import save_model
from tests.checkpoints.test_lora_families import FORMS, same, snapshot, write
from tests.tiny import tiny_model

FORM_NAMES = ("lora", "dora of rows", "oft")


@pytest.fixture
def model(tmp_path):
    save_model(tiny_model("sd15"), tmp_path / "model", dtype="fp16")
    return load_model(tmp_path / "model", device="cpu", dtype="float32")


@pytest.mark.parametrize("form", FORM_NAMES)
def test_the_file_is_the_copy(form, model, tmp_path):
    path, _ = write(model, FORMS[form], tmp_path / "x.safetensors")
    plain = tiny_model("sd15")
    for mine, other in zip((plain.unet, *plain.text.encoders), (model.unet, *model.text.encoders), strict=True):
        mine.load_state_dict(other.state_dict())  # the same numbers, of no file: those are copied
    lora, before, stacks = read_lora(path), snapshot(model), (LoraStack(model), LoraStack(plain))
    for strength in (1.0, 0.3, 0.8):
        for stack in stacks:
            stack.set([(lora, strength, strength)])
        assert same(model, snapshot(plain))
    assert not stacks[0]._spare
    assert {base.dtype for base in stacks[0]._base.values()} == {torch.float16}
    assert {base.dtype for base in stacks[1]._base.values()} == {torch.float32}
    for _ in range(2):
        stacks[0].set([])
        assert same(model, before)
        stacks[0].set([(lora, 0.5, 0.5)])


def test_what_was_changed_since_is_kept_as_it_is(model, tmp_path):
    path, written = write(model, FORMS["lora"], tmp_path / "x.safetensors")
    stack, lora = LoraStack(model), read_lora(path)
    with torch.no_grad():
        written[0][0].mul_(1.5)
    before = snapshot(model)
    stack.set([(lora, 1.0, 1.0)])
    stack.set([])
    assert same(model, before)
