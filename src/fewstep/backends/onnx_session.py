"""Weightless graphs and the checkpoint's own weights, brought together as ONNX Runtime sessions.

A model folder holds one set of weights (safetensors, for torch and for ONNX Runtime) and in `onnx/` the graphs that
`fewstep.export.onnx` wrote. A session is made when it is first wanted, or before that in a background thread.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from fewstep.checkpoints.lora_apply import Additions, merged
from fewstep.errors import CheckpointError

FILES = {
    "unet": "unet/diffusion_pytorch_model.safetensors",
    "vae": "vae/diffusion_pytorch_model.safetensors",
    "text_encoder": "text_encoder/model.safetensors",
    "tiny_vae": "tiny_vae/diffusion_pytorch_model.safetensors",
}
PART_OF = {
    "text_encoder": "text_encoder",
    "text_kv": "unet",
    "unet": "unet",
    "vae_decoder": "vae",
    "vae_encoder": "vae",
    "tiny_vae_decoder": "tiny_vae",
    "tiny_vae_encoder": "tiny_vae",
}
"""Graph -> the part of the model folder whose weights it takes."""

IDLE_OPTIMISERS = [
    *("AttentionFusion", "BiasDropoutFusion", "BiasGeluFusion", "BiasSkipLayerNormFusion", "BiasSoftmaxFusion"),
    *("CommonSubexpressionElimination", "ConstantSharing", "ConvActivationFusion", "ConvAddActivationFusion"),
    *("DoubleQDQPairsRemover", "DynamicQuantizeMatMulFusion", "EmbedLayerNormFusion", "EnsureUniqueDQForNodeUnit"),
    *("FastGeluFusion", "FreeDimensionOverrideTransformer", "GatherSliceToSplitFusion", "GatherToSliceFusion"),
    *("GeluFusionL1", "GeluFusionL2", "GemmActivationFusion", "GroupQueryAttentionFusion"),
    *("GroupQueryAttentionPreNormFusion", "LayerNormFusionL1", "LayerNormFusionL2", "Level2_RuleBasedTransformer"),
    *("MatMulActivationFusion", "MatMulAddFusion", "MatMulIntegerToFloatFusion", "MatMulNBitsFusion"),
    *("MatMulScaleFusion", "MatmulTransposeFusion", "NhwcTransformer", "QDQFinalCleanupTransformer"),
    *("QDQPropagationTransformer", "QDQS8ToU8Transformer", "QDQSelectorActionTransformer", "QuickGeluFusion"),
    *("ReshapeFusion", "SimplifiedLayerNormFusion", "SkipLayerNormFusion", "SliceConcatToSpaceToDepthFusion"),
    *("TransposeOptimizer", "TransposeOptimizer_CPUExecutionProvider", "WeightBiasQuantization", "WhereDummyDq"),
]
"""ONNX Runtime's passes that search our graphs in vain, as they are written in fused operators; without them a UNet's
session is made in half the time. What stays is chiefly the blocked layout of convolutions, 5 to 20 % of a step."""

MOST_THREADS = 8
"""More threads than this lose more by waiting for one another than a small picture's layers can give them."""


class Sessions:
    """The graphs of one model folder, with LoRAs merged into their weights."""

    def __init__(self, folder: Path) -> None:
        """Raises CheckpointError when the folder has no graphs."""
        self.folder = folder
        self.wanted = _wanted(folder)
        self.additions: Additions = {}
        self._made: dict[str, Future[Session]] = {}
        self._workers = ThreadPoolExecutor(max_workers=2, thread_name_prefix="fewstep-onnx")

    def shapes(self, part: str) -> dict[str, list[int]]:
        """Every weight of a part ("unet", "vae", "text_encoder") and its shape as its graph takes it."""
        graphs = [graph for graph, owner in PART_OF.items() if owner == part and graph in self.wanted]
        return {name: shape for graph in graphs for name, shape in self.wanted[graph].items()}

    def modules(self) -> dict[str, list[int]]:
        """Every weight that a LoRA may change ("unet.<module>", "text_encoder.<module>", .bias) and its shape."""
        parts = {part: self.shapes(part) for part in ("unet", "text_encoder")}
        return {module_of(part, name): shape for part, shapes in parts.items() for name, shape in shapes.items()}

    def start(self, *graphs: str) -> None:
        """Begin to make these sessions in the background, in this order."""
        for graph in graphs:
            if graph not in self._made:
                self._made[graph] = self._workers.submit(self._make, graph)

    def run(self, graph: str, output: str, **inputs: np.ndarray) -> np.ndarray:
        """One output of a graph; its session is made or waited for.

        Raises CheckpointError when the graph or its weights cannot be read.
        """
        self.start(graph)
        made = self._made[graph]
        try:
            session = made.result()
        except CheckpointError:
            self._made.pop(graph, None)
            raise
        return session.run(output, inputs)

    def set_additions(self, additions: Additions) -> None:
        """Merge these LoRA layers ("unet.<module>", "text_encoder.<module>") instead of the former ones.

        Sessions whose weights stay as they are stay too; the others are made anew when they are next wanted.
        """
        changed = {name for name in {*additions, *self.additions} if additions.get(name) != self.additions.get(name)}
        parts = {name.partition(".")[0] for name in changed}
        self.additions = additions
        self._made = {graph: made for graph, made in self._made.items() if PART_OF[graph] not in parts}

    def weights(self, graph: str) -> dict[str, np.ndarray]:
        """A graph's weights in float32, with the LoRAs merged; raises CheckpointError when they cannot be read."""
        part, additions = PART_OF[graph], self.additions
        weights = read_weights(self.folder / FILES[part], self.wanted[graph])
        for name in weights:
            if (module := module_of(part, name)) in additions:
                weights[name] = merged(weights[name], additions[module])
        return weights

    def _make(self, graph: str) -> Session:
        return Session(self.folder / "onnx" / f"{graph}.onnx", self.weights(graph))


class Session:
    """One graph with its weights. Any number of threads may run it at once."""

    def __init__(self, graph: Path, weights: Mapping[str, np.ndarray]) -> None:
        """Raises CheckpointError when ONNX Runtime refuses the graph or the weights."""
        import onnxruntime as ort

        options = session_options(ort)
        self._values = [ort.OrtValue.ortvalue_from_numpy(weight) for weight in weights.values()]
        options.add_external_initializers(list(weights), self._values)
        try:
            self._session = ort.InferenceSession(
                str(graph), options, providers=["CPUExecutionProvider"], disabled_optimizers=IDLE_OPTIMISERS
            )
        except Exception as error:  # noqa: BLE001 - ONNX Runtime's exceptions have no common class
            reason = " ".join(str(error).split())[:200]
            raise CheckpointError(f"ONNX Runtime cannot load '{graph}' ({reason}). Export the model again.") from None

    def run(self, output: str, inputs: Mapping[str, np.ndarray]) -> np.ndarray:
        """One output of the graph."""
        found: Any = self._session.run([output], dict(inputs))[0]
        return found


def module_of(part: str, name: str) -> str:
    """A weight as LoRAs name it: its module, with `.bias` behind it for a bias.

    >>> module_of("text_encoder", "text_model.encoder.layers.0.mlp.fc1.weight"), module_of("unet", "conv_in.bias")
    ('text_encoder.encoder.layers.0.mlp.fc1', 'unet.conv_in.bias')
    """
    return f"{part}.{name.removeprefix('text_model.').removesuffix('.weight')}"


def thread_count() -> int:
    """The cores this process may use, up to MOST_THREADS; fewer where OMP_NUM_THREADS says so."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    asked = os.environ.get("OMP_NUM_THREADS", "")
    return max(1, min(cores, int(asked) if asked.isdecimal() else MOST_THREADS))


def session_options(ort: Any) -> Any:
    """What every session of this process needs, as they share their threads.

    Without planning the reuse of memory, whose search is quadratic in the number of values of an unknown size: it takes
    three quarters of the time in which a UNet's session is made, and saves a picture's few megabytes.
    """
    _share_threads(ort)
    options = ort.SessionOptions()
    options.use_per_session_threads = False
    options.enable_mem_reuse = False
    options.log_severity_level = 3
    return options


@cache
def _share_threads(ort: Any) -> None:
    """One pool of threads for all sessions, once per process."""
    ort.set_global_thread_pool_sizes(thread_count(), 1)


def read_weights(path: Path, shapes: Mapping[str, Sequence[int]]) -> dict[str, np.ndarray]:
    """These weights of a safetensors file in float32, in these shapes.

    Raises CheckpointError when the file or a weight is missing, damaged, of another size or not finite.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="np") as file:
            return {name: _weight(file.get_tensor(name), shape, name) for name, shape in shapes.items()}
    except (OSError, SafetensorError, ValueError, TypeError) as error:
        raise CheckpointError(f"'{path}' does not hold the weights its graph asks for ({error}).") from None


def _weight(found: np.ndarray, shape: Sequence[int], name: str) -> np.ndarray:
    weight = np.ascontiguousarray(found.astype(np.float32).reshape(shape))
    if not np.isfinite(weight.sum()):
        raise ValueError(f"'{name}' holds values that are not numbers")
    return weight


def _wanted(folder: Path) -> dict[str, dict[str, list[int]]]:
    path = folder / "onnx" / "weights.json"
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        raise CheckpointError(f"'{path}' is missing or damaged. Write the graphs with: fewstep export") from None
