"""What paints the embedded model's live frames in a server: measured once on this machine, then remembered.

ONNX Runtime is there sooner, and gives the same picture each time. For live frames OpenVINO may be the better one, in
bfloat16 above all, where the processor can multiply that. It then stands behind ONNX Runtime (the back end `both`), so
that no change of a LoRA's weight waits for its compiler.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from importlib.util import find_spec
from typing import Any

USE, WORTH = "live frames", 1.15
"""How many times as fast another one must be to stand in for ONNX Runtime, which is float32 and takes every size."""

LIGHT: Mapping[str, dict[str, Any]] = {
    "onnx": {"backend": "onnx"},
    "openvino": {"backend": "openvino"},
    "openvino bf16": {"backend": "openvino", "dtype": "bf16"},
}


def quickest(asked: Mapping[str, Any]) -> dict[str, Any]:
    """What to add to these keywords of `fewstep.load`: nothing where model, device, dtype or back end were chosen, or
    OpenVINO is not installed. Says on stderr what it does.
    """
    chosen = any(value for name, value in asked.items() if name not in ("lora", "lora_folder") and value != "auto")
    if chosen or find_spec("openvino") is None or find_spec("onnxruntime") is None:
        return {}
    from fewstep.backends.measured import recall
    from fewstep.checkpoints.complete import describe_model

    found = describe_model(None)
    ms = (recall(found, USE) or _measured(found)).ms
    best = min(ms, key=lambda name: ms[name])
    if best == "onnx" or ms["onnx"] < WORTH * ms[best]:
        return {}
    ratio = ms["onnx"] / ms[best]
    print(f"fewstep: {best} paints {ratio:.2g} times as fast as onnx here; --backend onnx for that", file=sys.stderr)
    return LIGHT[best] | {"backend": "both"}


def _measured(found: Any) -> Any:
    from fewstep.backends.measured import remember
    from fewstep.errors import FewstepError
    from fewstep.evaluate.speed import speed_of
    from fewstep.pipeline import load

    print("fewstep: measuring what paints fastest here, once", file=sys.stderr)
    ms: dict[str, float] = {}
    for name, how in LIGHT.items():
        begun = time.perf_counter()
        try:
            speed = speed_of(name, load(device="cpu", **how), begun)
        except FewstepError:  # a runtime that cannot be used here stands for nothing
            continue
        ms[name] = speed.ms or float("inf")
    return remember(found, ms, USE)
