"""What runs where, with a reason; and what is refused in a sentence."""

import pytest
import torch

from fewstep.device import choose
from fewstep.errors import DeviceError


def test_a_cpu_computes_in_float32():
    choice = choose("cpu")
    assert (choice.device, choice.dtype) == ("cpu", "float32")
    assert "slower" in choice.reason


@pytest.mark.parametrize(("asked", "found"), [("fp16", "float16"), ("BF16", "bfloat16"), ("torch.float32", "float32")])
def test_a_number_format_is_taken_at_its_word(asked, found):
    assert choose("cpu", asked).dtype == found


@pytest.mark.parametrize(("cuda", "mps", "expected"), [(1, 0, "cuda"), (0, 1, "mps"), (0, 0, "cpu")])
def test_the_best_device_is_found(monkeypatch, cuda, mps, expected):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: bool(cuda))
    monkeypatch.setattr(torch.cuda, "device_count", lambda: cuda)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda index: "A GPU")
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: bool(mps))
    choice = choose("auto")
    assert choice.device == expected
    assert choice.dtype == ("float32" if expected == "cpu" else "float16")
    assert expected in choice.reason


@pytest.mark.parametrize("device", ["cuda:99", "tpu", "cuda:x", "", "cpu:1"])
def test_what_is_not_there(device):
    with pytest.raises(DeviceError, match=r"\."):
        choose(device)


def test_an_unknown_number_format():
    with pytest.raises(DeviceError, match="fp32, fp16 or bf16"):
        choose("cpu", "int4")
