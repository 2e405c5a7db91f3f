"""A model's outline: plans as the model itself, without its weights."""

import subprocess
import sys

import pytest

from fewstep.errors import CheckpointError, LoraError
from fewstep.pipeline import load
from fewstep.request import Request
from tests.tiny import tiny_folder

REQUEST = Request("a [cat|dog] AND moon", negative_prompt="red", seed=3, guidance=2, hires_scale=2)


@pytest.mark.parametrize("kind", ["sd15", "sdxl", "lcm"])
def test_it_plans_what_the_model_plans(kind):
    whole, outline = load(tiny_folder(kind), device="cpu"), load(tiny_folder(kind), weights=False, device="cpu")
    assert outline.plan(REQUEST) == whole.plan(REQUEST) == whole.outline().plan(REQUEST)
    assert outline.source == whole.source and outline.model.content_hash == whole.model.content_hash


def test_its_errors_are_those_of_loading():
    with pytest.raises(CheckpointError):
        load("nowhere.safetensors", weights=False)
    with pytest.raises(LoraError):
        load(tiny_folder("sd15"), weights=False).plan(Request("a cat <lora:nobody:1>"))


@pytest.mark.embedded
def test_it_needs_no_torch():
    program = "import sys; from fewstep.pipeline import load; from fewstep.request import Request\n"
    program += "load(weights=False, device='cuda').plan(Request('a cat'))\n"
    program += "assert not {'torch', 'transformers', 'onnxruntime'} & set(sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False, timeout=120).returncode == 0
