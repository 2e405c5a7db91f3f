"""One graph with its weights as OpenVINO runs it on a CPU.

The weights are handed over in memory: what the graph has as outside weights becomes inputs, and each of these a
constant on the array itself, so no file is written and protobuf's 2 GiB are never reached.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np

from fewstep.backends.onnx_session import thread_count
from fewstep.errors import CheckpointError

SMALL_BYTES = 500_000_000
"""Weights of a network that is compiled for every shape of its inputs. With shapes left open OpenVINO finds out those
inside at every node and fuses less: 1.5 times the time of `pictogram`'s UNet, and nothing beside SD 1.5's arithmetic.
"""

MOST_SHAPES = 6
"""Compiled networks that a small one keeps; the one whose use is longest ago leaves."""

PRECISIONS = {"float32": "f32", "bfloat16": "bf16"}


class OpenVinoSession:
    """A graph and its weights; compiled when it is first run. Any number of threads may run it at once."""

    def __init__(self, graph: Path, weights: Mapping[str, np.ndarray], dtype: str = "float32") -> None:
        """dtype is what is computed in. Raises CheckpointError when OpenVINO refuses the graph or the weights."""
        try:
            self._model = read_network(graph, weights)
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
    import openvino

    return openvino.Core()


def read_network(graph: Path, weights: Mapping[str, np.ndarray]) -> Any:
    """The graph as OpenVINO's model, on these arrays."""
    from openvino import opset13

    model = core().read_model(_open_graph(graph))
    for parameter in list(model.get_parameters()):
        if (name := parameter.get_friendly_name()) in weights:
            value = opset13.constant(weights[name], shared_memory=True, name=name)
            parameter.output(0).replace(value.output(0))
            model.remove_parameter(parameter)
    model.validate_nodes_and_infer_types()
    return model


def _open_graph(graph: Path) -> bytes:
    """The graph's file with its outside weights as inputs, and group norms in one node."""
    import onnx

    model = onnx.load(graph, load_external_data=False)
    kept = []
    for tensor in model.graph.initializer:
        if tensor.data_location == onnx.TensorProto.EXTERNAL:
            model.graph.input.append(onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims))
        else:
            kept.append(tensor)
    del model.graph.initializer[:]
    model.graph.initializer.extend(kept)
    _group_norms(model.graph)
    return model.SerializeToString()


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
