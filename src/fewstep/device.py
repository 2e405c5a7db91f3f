"""Which device and number format to use, and why: a choice is a value with its reason in words.

torch is imported inside the functions only: `fewstep --help` never waits for it.
Never enters: a model, a tensor of a picture.
"""

import ctypes
import os
import platform
import sys
from dataclasses import dataclass
from pathlib import Path

from fewstep.errors import DeviceError

DTYPES = {
    "fp32": "float32",
    "float32": "float32",
    "fp16": "float16",
    "float16": "float16",
    "half": "float16",
    "bf16": "bfloat16",
    "bfloat16": "bfloat16",
}
"""Every accepted spelling of a number format -> torch's own name of it."""

_HALF = "float16 rounds a prediction at the noisiest timestep eight times finer than bfloat16"
_REASONS = {
    "cpu": ("float32", "a CPU is slower in half precision"),
    "cuda": ("float16", _HALF),
    "mps": ("float16", _HALF),
}


@dataclass(frozen=True)
class Choice:
    """A device ("cpu", "cuda", "cuda:1", "mps"), a number format ("float32", ...) and why they were taken."""

    device: str
    dtype: str
    reason: str


def choose(device: str | None = None, dtype: str | None = None) -> Choice:
    """Chooses where and in which number format a model runs; None (or "auto") leaves the choice to us.

    Raises DeviceError when the device is unknown or not there, or the number format is unknown.
    """
    where, why_device = _device(device)
    number, why_dtype = _dtype(dtype, where.split(":")[0])
    return Choice(where, number, f"{where}: {why_device}; {number}: {why_dtype}")


def _device(asked: str | None) -> tuple[str, str]:
    name = "auto" if asked is None else str(asked).strip().lower()
    if name != "auto":
        _check_present(name)
        return name, "asked for"
    for kind in ("cuda", "mps"):
        if _count(kind) > 0:
            return kind, f"{_describe(kind)} was found"
    return "cpu", "no GPU was found"


def _check_present(name: str) -> None:
    kind, _, index = name.partition(":")
    if kind not in _REASONS or not (index == "" or index.isdecimal()):
        raise DeviceError(f"There is no device called {name!r}. Use cpu, cuda, cuda:0, mps or auto.")
    found = _count(kind)
    if int(index or 0) >= found:
        raise DeviceError(f"{name} was asked for, but {_missing(kind, found)}. Use --device cpu, or auto.")


def _missing(kind: str, found: int) -> str:
    import torch

    if kind == "cuda" and torch.version.cuda is None and torch.version.hip is None:
        return f"this torch ({torch.__version__}) was built without CUDA"
    return f"torch {torch.__version__} sees {found} {kind} device{'' if found == 1 else 's'} here"


def _count(kind: str) -> int:
    import torch

    if kind == "cuda":
        return torch.cuda.device_count() if torch.cuda.is_available() else 0
    return int(kind == "cpu" or torch.backends.mps.is_available())


def _describe(kind: str) -> str:
    import torch

    return torch.cuda.get_device_name(0) if kind == "cuda" else "Apple's GPU"


def _dtype(asked: str | None, kind: str) -> tuple[str, str]:
    if asked is None or str(asked).lower() == "auto":
        return _REASONS[kind]
    name = DTYPES.get(str(asked).lower().removeprefix("torch."))
    if name is None:
        raise DeviceError(f"There is no number format called {str(asked)!r}. Use fp32, fp16 or bf16.")
    slow = kind == "cpu" and name != "float32"
    return name, "asked for, though float32 is faster on a CPU" if slow else "asked for"


def cores() -> int:
    """Those that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def memory_bytes(kind: str = "MemAvailable") -> int | None:
    """Of the machine ("MemTotal"), or what is free of it ("MemAvailable"); None where the system does not tell."""
    try:
        lines = Path("/proc/meminfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{kind}:")), None)


def cpu_name() -> str:
    """Its name, where the system tells."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(named, platform.machine())


def keep_memory() -> bool:
    """Let this process keep what it frees, where the C library is glibc; says whether it is.

    glibc hands every large block back to the system when it is freed, and the system clears it before it is used
    again: a training step on a CPU makes and frees the same blocks each time. Source: mallopt(3).
    """
    if not sys.platform.startswith("linux"):
        return False
    library = ctypes.CDLL(None)
    if not hasattr(library, "gnu_get_libc_version"):
        return False
    mmap_threshold, trim_threshold, top_pad = -3, -1, -2
    sizes = {mmap_threshold: 2**30, trim_threshold: 2**31 - 1, top_pad: 2**28}
    return min(library.mallopt(name, size) for name, size in sizes.items()) == 1
