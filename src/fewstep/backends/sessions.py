"""Weightless graphs and the checkpoint's own weights, brought together as the sessions of a runtime.

A model has one set of weights (safetensors, for torch and for every runtime) and graphs that name them. A session is
made when it is first wanted, or before that in a background thread.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path
from threading import RLock
from typing import NamedTuple, Protocol, TypeAlias

import numpy as np

from fewstep.checkpoints.lora_apply import Additions, merged
from fewstep.errors import CheckpointError, DeviceError

PART_OF = {
    "text_encoder": "text_encoder",
    "text_encoder_2": "text_encoder_2",
    "text_kv": "unet",
    "unet": "unet",
    "vae_decoder": "vae",
    "vae_encoder": "vae",
    "tiny_vae_decoder": "tiny_vae",
    "tiny_vae_encoder": "tiny_vae",
}
"""Graph -> the part of the model whose weights it takes."""

LORA_PARTS = ("unet", "text_encoder", "text_encoder_2")
Weights: TypeAlias = "Callable[[str, Mapping[str, Sequence[int]]], dict[str, np.ndarray]]"
"""(part, name -> shape) -> these weights in float32 and in these shapes; raises CheckpointError."""


class Session(Protocol):
    """One graph with its weights. Any number of threads may run it at once."""

    def run(self, outputs: Sequence[str], inputs: Mapping[str, np.ndarray]) -> list[np.ndarray]:
        """These outputs of the graph."""
        ...


class Runtime(NamedTuple):
    """A library that runs graphs, what it is called when imported, and how it is got."""

    label: str
    module: str
    install: str


RUNTIMES = {
    "onnx": Runtime("ONNX Runtime", "onnxruntime", "pip install onnxruntime"),
    "openvino": Runtime("OpenVINO", "openvino", "pip install 'fewstep[openvino]'"),
    "both": Runtime("ONNX Runtime, then OpenVINO", "openvino", "pip install 'fewstep[openvino]'"),
}


def check_runtime(name: str) -> None:
    """Raises DeviceError when this runtime is not installed."""
    runtime = RUNTIMES[name]
    if find_spec(runtime.module) is None:
        raise DeviceError(f"The back end {name} needs {runtime.label}, which is not installed: {runtime.install}")


def open_session(runtime: str, graph: Path, weights: Mapping[str, np.ndarray], dtype: str = "float32") -> Session:
    """A graph's session; raises CheckpointError when the runtime refuses the graph or the weights."""
    if runtime == "openvino":
        from fewstep.backends.openvino_session import OpenVinoSession

        return OpenVinoSession(graph, weights, dtype)
    if runtime == "both":
        from fewstep.backends.both_session import BothSession

        return BothSession(graph, weights, dtype)
    from fewstep.backends.onnx_session import OnnxSession

    return OnnxSession(graph, weights)


class Sessions:
    """The graphs of one model, with LoRAs merged into their weights.

    `graphs` is the folder that `fewstep.graphs` wrote; `weights` reads the checkpoint's; `shapes` are those of the
    checkpoint's parts, where they are known beside what the graphs want.
    """

    def __init__(
        self,
        graphs: Path,
        weights: Weights,
        *,
        runtime: str = "onnx",
        dtype: str = "float32",
        shapes: Mapping[str, Mapping[str, Sequence[int]]] | None = None,
    ) -> None:
        """Raises CheckpointError when the folder has no graphs."""
        self.graphs, self.runtime, self.dtype = graphs, runtime, dtype
        self.wanted = wanted_in(graphs)
        self.additions: Additions = {}
        self._weights, self._shapes = weights, shapes or {}
        self._made: dict[str, Future[Session]] = {}
        self._making = RLock()
        self._workers = ThreadPoolExecutor(max_workers=2, thread_name_prefix="fewstep-sessions")

    def shapes(self, part: str) -> dict[str, Sequence[int]]:
        """Every weight of a part ("unet", "vae", "text_encoder") and its shape, as its graphs take it."""
        wanted = [self.wanted[graph] for graph, owner in PART_OF.items() if owner == part and graph in self.wanted]
        return {name: shape for found in (self._shapes.get(part, {}), *wanted) for name, shape in found.items()}

    def modules(self) -> dict[str, Sequence[int]]:
        """Every weight that a LoRA may change ("unet.<module>", "text_encoder.<module>", .bias) and its shape."""
        return {module_of(part, name): shape for part in LORA_PARTS for name, shape in self.shapes(part).items()}

    def start(self, *graphs: str) -> None:
        """Begin to make these sessions in the background, in this order; those that the model lacks are passed by."""
        with self._making:
            for graph in graphs:
                if graph in self.wanted and graph not in self._made:
                    self._made[graph] = self._workers.submit(self._make, graph)

    def run(self, graph: str, output: str, **inputs: np.ndarray) -> np.ndarray:
        """One output of a graph, as `run_all`."""
        return self.run_all(graph, (output,), **inputs)[0]

    def draft(self, graph: str, output: str, **inputs: np.ndarray) -> np.ndarray:
        """One output of a graph, by the faster of two runtimes where there are two (`BothSession`)."""
        session = self._session(graph)
        return getattr(session, "draft", session.run)((output,), inputs)[0]

    def run_all(self, graph: str, outputs: Sequence[str], **inputs: np.ndarray) -> list[np.ndarray]:
        """Outputs of a graph; its session is made or waited for.

        Raises CheckpointError when the graph or its weights cannot be read.
        """
        return self._session(graph).run(outputs, inputs)

    def _session(self, graph: str) -> Session:
        with self._making:
            self.start(graph)
            made = self._made[graph]
        try:
            return made.result()
        except CheckpointError:
            self._made.pop(graph, None)
            raise

    def forget(self) -> None:
        """Let go of what was made; it is made anew when it is next wanted."""
        self._made = {}

    def set_additions(self, additions: Additions) -> None:
        """Merge these LoRA layers ("unet.<module>", "text_encoder.<module>") instead of the former ones.

        Sessions whose weights stay as they are stay too; the others are made anew when they are next wanted.
        """
        changed = {name for name in {*additions, *self.additions} if additions.get(name) != self.additions.get(name)}
        with self._making:
            self.additions = additions
            self._made = {graph: made for graph, made in self._made.items() if not changed & self._modules_of(graph)}

    def _modules_of(self, graph: str) -> set[str]:
        return {module_of(PART_OF[graph], name) for name in self.wanted[graph]}

    def merged_weights(self, graph: str) -> dict[str, np.ndarray]:
        """A graph's weights with the LoRAs in them, float32; raises CheckpointError when they cannot be read."""
        part, additions = PART_OF[graph], self.additions
        weights = self._weights(part, self.wanted[graph])
        for name in weights:
            if (module := module_of(part, name)) in additions:
                weights[name] = merged(weights[name], additions[module])
        return weights

    def _make(self, graph: str) -> Session:
        return open_session(self.runtime, self.graphs / f"{graph}.onnx", self.merged_weights(graph), self.dtype)


def module_of(part: str, name: str) -> str:
    """A weight as LoRAs name it: its module, with `.bias` behind it for a bias.

    >>> module_of("text_encoder", "text_model.encoder.layers.0.mlp.fc1.weight"), module_of("unet", "conv_in.bias")
    ('text_encoder.encoder.layers.0.mlp.fc1', 'unet.conv_in.bias')
    """
    return f"{part}.{name.removeprefix('text_model.').removesuffix('.weight')}"


def wanted_in(graphs: Path) -> dict[str, dict[str, list[int]]]:
    """Graph -> the weights that it wants and their shapes; raises CheckpointError where there are no graphs."""
    path = graphs / "weights.json"
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        raise CheckpointError(f"'{path}' is missing or damaged. Write the graphs with: fewstep export") from None
