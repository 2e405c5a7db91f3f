"""What runs where, with a reason; and what is refused in a sentence."""

import ctypes
import subprocess
import sys

import pytest
import torch

from fewstep import device
from fewstep.device import choose, keep_memory
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


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallopt"), reason="the C library is not glibc")
@pytest.mark.slow
def test_a_kept_block_is_not_cleared_again():
    """Freed and asked for again, a block of 64 MB costs no page fault any more; in a process of its own."""
    script = """
import resource, torch
from fewstep.device import keep_memory
def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(4):
        torch.empty(2**24).zero_()
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
faults()
before = faults()
assert keep_memory()
faults(), faults()
print(before, faults())
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    before, after = map(int, done.stdout.split())
    assert before > 100 and after < before / 2


def test_other_systems_are_left_alone(monkeypatch):
    monkeypatch.setattr(sys, "platform", "darwin")
    monkeypatch.setattr(device.ctypes, "CDLL", None)  # would fail if it were called
    assert not keep_memory()
