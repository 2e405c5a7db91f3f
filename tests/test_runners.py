"""The same pictures from ONNX Runtime as from torch, and torch not imported on the way."""

import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image

pytest.importorskip("onnx")

import fewstep
from fewstep.checkpoints.load import load_model
from fewstep.checkpoints.lora import write_lora
from fewstep.export.onnx import export_graphs
from fewstep.pipeline import Pipeline
from fewstep.runners import OnnxRunner, TorchRunner
from tests.tiny import tiny_folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tiny_folder("pictogram", into=tmp_path_factory.mktemp("runners") / "tiny")
    export_graphs(folder)
    down, up = torch.full((4, 32, 3, 3), 0.1), torch.full((32, 4, 1, 1), 0.1)
    for name, dtype in {"ink": torch.float16, "brain": torch.bfloat16}.items():
        layers = {"mid_block.resnets.0.conv1": (down.to(dtype), up.to(dtype))}
        write_lora(folder / f"{name}.safetensors", layers, alpha=4.0)
    return folder


@pytest.fixture(scope="module")
def pair(folder):
    return Pipeline(load_model(folder, device="cpu")), fewstep.load(folder, device="cpu")


def picture(size, seed=0):
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (size, size, 3), np.uint8))


CASES = {
    "text": {"steps": 3, "sampler": "lcm"},
    "guided, two": {"steps": 2, "guidance": 3.0, "negative_prompt": "dog", "count": 2, "clip_skip": 2},
    "image": {"steps": 2, "image": picture(72), "strength": 0.5},
    "inpaint": {"steps": 2, "image": picture(64), "mask": Image.fromarray(np.eye(64, dtype=np.uint8) * 255)},
    "a walk, the GPU's noise": {"steps": 3, "sampler": "DPM++ SDE Karras", "rng": "nv"},
    "below the first timestep": {"steps": 3, "sampler": "DPM2 a", "schedule": "automatic"},
    "lora in the prompt": {"steps": 2, "prompt": "a cat <lora:ink:0.5>"},
}


@pytest.mark.parametrize("name", CASES)
def test_the_same_pictures_with_the_same_record(pair, name):
    asked = {"prompt": "a cat", "seed": 7, "width": None, **CASES[name]}
    wanted, found = (pipe(**asked) for pipe in pair)
    for one, other in zip(*(shown if isinstance(shown, list) else [shown] for shown in (wanted, found)), strict=True):
        assert np.abs(np.asarray(one, int) - np.asarray(other, int)).max() <= 1
        assert one.info["parameters"] == other.info["parameters"]


def test_a_lora_that_numpy_cannot_read_is_read_by_torch(pair):
    wanted, found = (np.asarray(pipe("a cat <lora:brain>", seed=1, steps=2), int) for pipe in pair)
    assert np.abs(wanted - found).max() <= 1


@pytest.mark.parametrize(
    ("how", "kind"),
    [({"device": "cpu"}, OnnxRunner), ({"device": "cpu", "dtype": "bf16"}, TorchRunner), ({}, TorchRunner)],
)
def test_who_is_chosen(folder, how, kind):
    assert isinstance(fewstep.load(folder, **how).runner, kind)


def test_torch_is_not_imported(folder):
    program = (
        "import sys, fewstep; pipe = fewstep.load(sys.argv[1], lora=sys.argv[1] + '/ink.safetensors', device='cpu');"
        "pipe('a cat', steps=1, seed=0); print(sorted({'torch', 'diffusers', 'transformers'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", program, str(folder)], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
