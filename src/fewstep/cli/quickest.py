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

USE = "live frames"
"""What the measurement is remembered for."""

WORTH = 1.15
"""How many times as fast as ONNX Runtime another one must be: it is float32, and takes every size as it comes."""

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
    ms = {name: ms for name, ms in (recall(found, USE) or _measured(found)).ms.items() if name in LIGHT}
    best = min(ms, key=lambda name: ms[name], default="onnx")
    if best == "onnx" or "onnx" not in ms or ms["onnx"] < WORTH * ms[best]:
        return {}
    ratio = ms["onnx"] / ms[best]
    print(f"fewstep: {best} paints {ratio:.2g} times as fast as onnx here; --backend onnx for that", file=sys.stderr)
    return LIGHT[best] | {"backend": "both"}


def _measured(found: Any) -> Any:
    from fewstep.backends.measured import remember
    from fewstep.evaluate.speed import speed_of
    from fewstep.pipeline import load

    print("fewstep: measuring what paints fastest here, once", file=sys.stderr)
    ms: dict[str, float] = {}
    for name, how in LIGHT.items():
        begun = time.perf_counter()
        try:
            found_ms = speed_of(name, load(device="cpu", **how), begun).ms
        except Exception:  # noqa: BLE001 - OpenVINO's have no common class; what cannot run here is not taken
            continue
        ms |= {} if found_ms is None else {name: found_ms}
    return remember(found, ms, USE)
