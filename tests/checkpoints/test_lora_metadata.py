"""What a LoRA says of itself."""

import pytest
import torch

from fewstep.checkpoints.load import Sampling
from fewstep.checkpoints.lora import read_lora
from fewstep.checkpoints.lora_metadata import sampling_of
from fewstep.errors import LoraError
from tests.checkpoints.lora_files import Piece, kohya, save

LCM = Sampling(sampler="lcm", table="linspace-lcm", steps=4, guidance=1.0)
HUB = "models--latent-consistency--lcm-lora-sdv1-5/snapshots/0123"


@pytest.fixture
def tensors():
    return kohya({"mid_block.resnets.0.time_emb_proj": Piece(torch.ones(2, 8), torch.ones(8, 2), 2.0)})


@pytest.mark.parametrize(
    ("name", "metadata", "is_lcm"),
    [
        ("x", {"modelspec.usage_hint": "LCM sampler, 4-8 steps, CFG 1-2"}, True),
        ("x", {"modelspec.title": "Fast LCM for everyone"}, True),
        ("x", {"ss_output_name": "sdxl_lcm_r64"}, True),
        ("x", {"ss_training_comment": "latent consistency distilled"}, True),
        ("lcm-lora-sdv1-5", {}, True),
        ("LCM_LoRA_Weights_SD15", {}, True),
        (f"{HUB}/pytorch_lora_weights", {}, True),
        ("lcm-lora-sdxl/pytorch_lora_weights", {}, True),
        ("lcm-lora-sdxl/ink", {}, False),
        ("x", {}, False),
        ("x", {"ss_output_name": "calcmatic", "modelspec.title": "Ink"}, False),
        ("x", {"modelspec.description": "looks best without lcm"}, False),
    ],
)
def test_lcm_is_recognised(name, metadata, is_lcm, tensors, tmp_path):
    path = tmp_path / f"{name}.safetensors"
    path.parent.mkdir(parents=True, exist_ok=True)
    lora = read_lora(save(path, tensors, **metadata))
    assert lora.sampling == (LCM if is_lcm else None) and lora.is_consistency == is_lcm
    assert lora.metadata == metadata


def test_our_own_keys_win(tensors, tmp_path):
    ours = {
        "fewstep.sampler": "tcd",
        "fewstep.steps": "8",
        "fewstep.guidance": "1.5",
        "fewstep.table": "trailing",
        "fewstep.origin_steps": "40",
        "fewstep.w": "7.5",
    }
    lora = read_lora(save(tmp_path / "lcm-lora.safetensors", tensors, **ours))
    assert lora.sampling == Sampling(sampler="tcd", table="trailing", steps=8, guidance=1.5, origin_steps=40)
    assert lora.is_consistency and lora.metadata["fewstep.w"] == "7.5"


def test_a_solver_of_ours_is_no_consistency_lora(tensors, tmp_path):
    lora = read_lora(save(tmp_path / "x.safetensors", tensors, **{"fewstep.sampler": "euler"}))
    assert lora.sampling is not None and not lora.is_consistency


@pytest.mark.parametrize(
    ("key", "value"), [("steps", "four"), ("steps", "4.5"), ("guidance", ""), ("origin_steps", "x")]
)
def test_our_own_keys_must_be_numbers(key, value, tmp_path):
    with pytest.raises(LoraError, match=rf"'x\.safetensors' says fewstep\.{key} = '{value}', which is not a number"):
        sampling_of({"fewstep.sampler": "lcm", f"fewstep.{key}": value}, tmp_path / "x.safetensors")
