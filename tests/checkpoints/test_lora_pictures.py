"""On the embedded model: a LoRA written in every naming, and made plain, paints the same picture."""

import numpy as np
import pytest
import torch

import fewstep
from fewstep.checkpoints.load import load_model
from fewstep.checkpoints.lora import read_lora
from fewstep.checkpoints.lora_edit import merge
from fewstep.checkpoints.lora_save import NAMINGS, save_lora
from tests.checkpoints.lora_files import save
from tests.checkpoints.lora_forms import FORMS

pytestmark = pytest.mark.embedded
MODULES = (
    "down_blocks.0.resnets.0.conv1",
    "mid_block.attentions.0.transformer_blocks.0.attn2.to_k",
    "up_blocks.0.resnets.0.conv_shortcut",
)
OTHERS = ("loha", "oft", "dora of rows", "full")
MORE = ("lora mid", "lokr tucker", "glora", "ia3 on outputs", "boft", "dora of columns", "dora of peft")


@pytest.fixture(scope="module")
def pipe():
    return fewstep.load()


@pytest.fixture(scope="module")
def base():
    return load_model(device="cpu", dtype="float32")


def painted(pipe, path):
    pipe.set_loras(path)
    return np.asarray(pipe("a red apple, 3d", seed=3, steps=2, sampler="lcm", schedule="trailing", guidance=1)).astype(
        int
    )


def test_the_packages_lora_in_every_naming(pipe, tmp_path):
    (own, _) = pipe.loras[0]
    expected, layers = painted(pipe, own.path), read_lora(own.path).all_layers
    assert abs(painted(pipe, False) - expected).max() > 30
    for naming in NAMINGS:
        path = tmp_path / f"{naming}.safetensors"
        save_lora(path, layers, naming=naming, dtype=torch.float32)
        assert abs(painted(pipe, path) - expected).max() <= 1, naming
    path = tmp_path / "adapter_model.safetensors"
    save_lora(path, layers, naming="peft", dtype=torch.float32)
    assert abs(painted(pipe, path) - expected).max() <= 1


@pytest.mark.parametrize("form", [*OTHERS, *(pytest.param(form, marks=pytest.mark.slow) for form in MORE)])
def test_every_family_rewritten_and_made_plain(form, pipe, base, tmp_path):
    shapes = {name: tuple(module.weight.shape) for name, module in base.unet.named_modules() if name in MODULES}
    generator, tensors, size = torch.Generator().manual_seed(0), {}, 2.0 if form[:4] in ("loha", "lokr") else 0.5
    for name, shape in shapes.items():
        parts, _ = FORMS[form](shape, generator)
        tensors |= {f"lora_unet_{name.replace('.', '_')}.{part}": size * value for part, value in parts.items()}
    source = read_lora(save(tmp_path / "source.safetensors", tensors))
    expected = painted(pipe, source.path)
    assert len(shapes) == len(MODULES) and abs(expected - painted(pipe, False)).max() > 3
    save_lora(tmp_path / "again.safetensors", source.all_layers)
    assert abs(painted(pipe, tmp_path / "again.safetensors") - expected).max() <= 1
    plain = merge([(source, 1.0)], model=base)
    save_lora(tmp_path / "plain.safetensors", plain, dtype=torch.float32)
    assert abs(painted(pipe, tmp_path / "plain.safetensors") - expected).max() <= 1
