"""One graph with its weights as OpenVINO runs it on a CPU.

The weights are handed over in memory: what the graph has as outside weights becomes inputs, and each of these a
constant on the array itself, so no file is written and protobuf's 2 GiB are never reached.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from importlib import import_module
from pathlib import Path
from threading import Lock
from typing import Any, NamedTuple, cast

import numpy as np

from fewstep.backends.onnx_session import thread_count
from fewstep.device import memory_bytes
from fewstep.errors import CheckpointError
from fewstep.graphs.winograd import DOMAIN, transformed, transforms

SMALL_BYTES = 500_000_000
"""Weights of a network that is compiled for every shape of its inputs. With shapes left open OpenVINO finds out those
inside at every node and fuses less: 1.5 times the time of `pictogram`'s UNet, and nothing beside SD 1.5's arithmetic.
"""

MOST_SHAPES = 6
"""Compiled networks that a small one keeps; the one whose use is longest ago leaves."""

WINOGRAD_MEMORY = 3.0
"""Times its weights that must be free for a network with Winograd's convolutions: SD 1.5's takes 2.5 times, and without
these convolutions 1.2."""

_IMPORTING = Lock()
PRECISIONS = {"float32": "f32", "bfloat16": "bf16"}


class OpenVinoSession:
    """A graph and its weights; compiled when it is first run. Any number of threads may run it at once."""

    def __init__(self, graph: Path, weights: Mapping[str, np.ndarray], dtype: str = "float32") -> None:
        """dtype is what is computed in. Raises CheckpointError when OpenVINO refuses the graph or the weights."""
        self.graph = _graph_for(graph, weights, dtype)
        try:
            self._model = read_network(self.graph, weights)
        except Exception as error:  # noqa: BLE001 - OpenVINO's exceptions have no common class
            reason = " ".join(str(error).split())[:200]
            raise CheckpointError(f"OpenVINO cannot load '{graph}' ({reason}). Export the model again.") from None
        self._fixed = sum(weight.nbytes for weight in weights.values()) < SMALL_BYTES
        self._how = {
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_NUM_THREADS": thread_count(),
            "INFERENCE_PRECISION_HINT": PRECISIONS[dtype],
        }
        self._compiled: dict[Any, _Requests] = {}
        self._lock = Lock()

    def run(self, outputs: Sequence[str], inputs: Mapping[str, np.ndarray]) -> list[np.ndarray]:
        """These outputs of the graph."""
        return self._requests(self._shapes(inputs)).run(outputs, inputs)

    def has(self, inputs: Mapping[str, np.ndarray]) -> bool:
        """Whether it is compiled for inputs of these shapes."""
        return tuple(sorted(self._shapes(inputs).items())) in self._compiled

    def _shapes(self, inputs: Mapping[str, np.ndarray]) -> dict[str, tuple[int, ...]]:
        """What it is compiled for; nothing where shapes are left open."""
        return {name: value.shape for name, value in inputs.items()} if self._fixed else {}

    def _requests(self, shapes: Mapping[str, Sequence[int]]) -> _Requests:
        key = tuple(sorted(shapes.items()))
        with self._lock:
            found = self._compiled.pop(key, None)
            if found is None:
                if shapes:
                    self._model.reshape({name: list(shape) for name, shape in shapes.items()})
                found = _Requests(core().compile_model(self._model, "CPU", self._how))
            self._compiled[key] = found
            while len(self._compiled) > MOST_SHAPES:
                del self._compiled[next(iter(self._compiled))]
        return found


class _Requests:
    """A compiled network; each thread that runs it at the same time has a request of its own."""

    def __init__(self, compiled: Any) -> None:
        self.compiled = compiled
        self.idle: list[Any] = []

    def run(self, outputs: Sequence[str], inputs: Mapping[str, np.ndarray]) -> list[np.ndarray]:
        request = self.idle.pop() if self.idle else self.compiled.create_infer_request()
        found = request.infer(dict(inputs))
        self.idle.append(request)
        return [found[name] for name in outputs]


@cache
def core() -> Any:
    """OpenVINO's entrance, once per process."""
    return silent_openvino().Core()


def silent_openvino() -> Any:
    """The library, without its telemetry.

    Where that is to be had, the first import sends word to OpenVINO's makers, from a fork of this process; and a fork
    waits for ever while another thread multiplies matrices (OpenBLAS).
    """
    with _IMPORTING:
        absent = sys.modules.setdefault("openvino_telemetry", cast(Any, None)) is None  # the import of which then fails
        try:
            return import_module("openvino")
        finally:
            if absent:
                del sys.modules["openvino_telemetry"]


def _graph_for(graph: Path, weights: Mapping[str, np.ndarray], dtype: str) -> Path:
    """The one with Winograd's convolutions where there is such a one, memory for it, and float32, which they need."""
    wide, free = graph.with_name(f"{graph.stem}.winograd.onnx"), memory_bytes()
    if dtype != "float32" or free is None or not wide.is_file():
        return graph
    return wide if free > WINOGRAD_MEMORY * sum(weight.nbytes for weight in weights.values()) else graph


def read_network(graph: Path, weights: Mapping[str, np.ndarray]) -> Any:
    """The graph as OpenVINO's model, on these arrays."""
    opset13 = silent_openvino().opset13
    opened = _open_graph(graph)
    values = {name: weights[name].reshape(tuple(shape)) for name, shape in opened.weights.items()}
    values |= {name: transformed(weights[of], tile) for name, (of, tile) in opened.winograd.items()}
    model = core().read_model(opened.text)
    for parameter in list(model.get_parameters()):
        if (name := parameter.get_friendly_name()) in values:
            value = opset13.constant(values[name], shared_memory=True, name=name)
            parameter.output(0).replace(value.output(0))
            model.remove_parameter(parameter)
    model.validate_nodes_and_infer_types()
    return model


class _Opened(NamedTuple):
    """A graph whose weights are inputs: its text, their shapes, and which are Winograd's, of which weight, by tiles of
    which side.
    """

    text: bytes
    weights: dict[str, list[int]]
    winograd: dict[str, tuple[str, int]]


def _open_graph(graph: Path) -> _Opened:
    """The graph's file with its outside weights as inputs, and group norms in one node."""
    import onnx

    from fewstep.graphs.graph import weight_shapes

    model = onnx.load(graph, load_external_data=False)
    shapes = weight_shapes(model)
    made = {node.output[0]: (node.input[0], node.attribute[0].i) for node in model.graph.node if node.domain == DOMAIN}
    plain = {name: shape for name, shape in shapes.items() if name not in {of for of, _ in made.values()}}
    wanted = plain | {name: [len(transforms(tile).pixels), *shapes[of][:2]] for name, (of, tile) in made.items()}
    model.graph.input.extend(
        onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, shape) for name, shape in wanted.items()
    )
    _keep(model.graph.initializer, lambda tensor: tensor.name not in shapes)
    _keep(model.graph.node, lambda node: node.domain != DOMAIN)
    _group_norms(model.graph)
    return _Opened(model.SerializeToString(), plain, made)


def _keep(values: Any, wanted: Callable[[Any], bool]) -> None:
    """Of a protobuf's list."""
    kept = [value for value in values if wanted(value)]
    del values[:]
    values.extend(kept)


def _group_norms(graph: Any) -> None:
    """Put GroupNormalization where the graphs have its parts (`Graph.group_norm`), which suit ONNX Runtime alone."""
    from onnx import helper, numpy_helper

    maker = {output: node for node in graph.node for output in node.output}
    constants = {tensor.name: tensor for tensor in graph.initializer}
    nodes, parts = [], set()
    for node in graph.node:
        if node.op_type == "BatchNormalization":
            back = maker[node.input[0]]
            normal = maker[back.input[0]]
            grouped = maker[normal.input[0]]
            how: dict[str, Any] = {"num_groups": int(numpy_helper.to_array(constants[grouped.input[1]])[1])}
            how["epsilon"] = next(item.f for item in normal.attribute if item.name == "epsilon")
            inputs = [grouped.input[0], *node.input[1:3]]
            parts |= {part.name for part in (back, normal, grouped)}
            node = helper.make_node("GroupNormalization", inputs, node.output, name=node.name, **how)
        nodes.append(node)
    del graph.node[:]
    graph.node.extend(node for node in nodes if node.name not in parts)
