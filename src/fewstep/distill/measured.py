"""What a run really took, beside what was predicted: memory at its peak and time for a step."""

import resource
import statistics
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from fewstep.distill.run import Run


def measured(run: "Run") -> dict[str, Any]:
    """{"peak_memory_gb", "memory_of", "step_s" (the median), "processes"} of this process up to now; step_s is None
    before the first step.
    """
    amount, what = peak_memory(run.device)
    return {
        "peak_memory_gb": round(amount / 1e9, 3),
        "memory_of": what,
        "step_s": statistics.median(run.seconds) if run.seconds else None,
        "processes": run.world.size,
    }


def peak_memory(device: torch.device) -> tuple[int, str]:
    """(bytes, of what): the most that tensors took on a GPU, or that the process took of the machine's memory."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device), "tensors on the GPU"
    if (status := Path("/proc/self/status")).is_file():  # Linux; its getrusage also counts the process that started it
        (line,) = (line for line in status.read_text().splitlines() if line.startswith("VmHWM:"))
        return int(line.split()[1]) * 1024, "the process"
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit, "the process"


def facts_sentence(facts: dict[str, Any]) -> str:
    """The same for a person.

    >>> facts_sentence({"peak_memory_gb": 2.5, "memory_of": "the process", "step_s": 1.25, "processes": 1})
    '1.25 s a step (median), 2.5 GB at the peak (the process).'
    """
    step = "no step" if facts["step_s"] is None else f"{facts['step_s']:.3g} s a step (median)"
    each = f", in each of {facts['processes']} processes" if facts["processes"] > 1 else ""
    return f"{step}, {facts['peak_memory_gb']:.3g} GB at the peak ({facts['memory_of']}{each})."
