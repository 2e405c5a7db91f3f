"""Networks in 8 bits after training: activations calibrated on the inputs that the model's own sampling gives them.

Jacob et al. 2018 (arXiv:1712.05877), by ONNX Runtime's own tools for its graphs; with Xiao et al. 2023 (SmoothQuant,
arXiv:2211.10438), by NNCF, for OpenVINO's.
"""

# An extra that need not be there.
# pyright: reportMissingImports=false

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import redirect_stdout
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fewstep.request import Request

if TYPE_CHECKING:
    import onnx

NETWORKS = ("unet", "vae_decoder", "tiny_vae_decoder")
PROMPTS = (
    *("a red apple", "a green tree on a hill", "a cat on a beach", "a rocket at night", "a yellow house"),
    *("a blue car in the rain", "a bird in a winter forest", "a portrait of an old woman", "a bowl of fruit"),
    *("a lighthouse at dusk", "a dog, 3d", "a flower, oil painting"),
)
"""Each painted once, so that every timestep is seen with twelve texts."""

OPERATORS = ["Conv", "MatMul", "Gemm"]
Inputs = dict[str, np.ndarray]


class _Watched:
    """The sessions of a model, which keep what the networks are given."""

    def __init__(self, sessions: Any) -> None:
        self.sessions, self.seen = sessions, {name: list[Inputs]() for name in NETWORKS}

    def run(self, graph: str, output: str, **inputs: np.ndarray) -> np.ndarray:
        """As `Sessions.run`."""
        if graph in self.seen:
            self.seen[graph].append(inputs)
        return self.sessions.run(graph, output, **inputs)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.sessions, name)


def trajectories(pipe: Any, prompts: Sequence[str] = PROMPTS) -> dict[str, list[Inputs]]:
    """What UNet and decoder are given while these prompts are painted as the model wants to be sampled, by a
    pipeline of graphs.
    """
    watched = pipe.model.sessions = _Watched(pipe.model.sessions)
    try:
        for seed, prompt in enumerate(prompts):
            pipe(Request(prompt, seed=seed, autoencoder="full"))
    finally:
        pipe.model.sessions = watched.sessions
    pipe.model.sessions.forget()  # the memory is wanted
    return watched.seen | {"tiny_vae_decoder": watched.seen["vae_decoder"]}


def quantise_file(path: Path, inputs: Sequence[Inputs]) -> None:
    """An ONNX graph with its weights (`for_int8`) in 8 bits, in its place, in a process of its own: this one's sessions
    share their threads, and the tools' sessions would not.
    """
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as alone:
        alone.submit(_quantise_file, path, list(inputs)).result()


def _quantise_file(path: Path, inputs: list[Inputs]) -> None:
    import logging

    from onnxruntime.quantization import CalibrationDataReader, QuantType, quantize_static

    class Reader(CalibrationDataReader):
        def get_next(self) -> Any:
            return inputs.pop() if inputs else None

    logging.disable(logging.WARNING)  # of a step before this one, which knows standard operators only
    with tempfile.TemporaryDirectory(dir=path.parent) as made:
        how = {"activation_type": QuantType.QUInt8, "weight_type": QuantType.QInt8, "per_channel": True}
        quantize_static(
            path, Path(made) / path.name, Reader(), op_types_to_quantize=OPERATORS, use_external_data_format=True, **how
        )
        for file in Path(made).iterdir():
            shutil.copymode(path.with_name(file.name), file)
            file.replace(path.with_name(file.name))


def for_int8(model: onnx.ModelProto, weights: dict[str, np.ndarray]) -> None:
    """Products and convolutions as the tools know them: `FusedMatMul` by a weight turns to `MatMul` and the weight is
    turned over, and what the tools cannot infer is said to be float32. In place.
    """
    import onnx

    turned = set()
    for node in model.graph.node:
        if node.op_type == "FusedMatMul" and np.ndim(weights.get(node.input[1], 0)) == 2:
            node.op_type, node.domain = "MatMul", ""
            del node.attribute[:]
            turned.add(node.input[1])
        if node.domain:
            model.graph.value_info.append(
                onnx.helper.make_tensor_value_info(node.output[0], onnx.TensorProto.FLOAT, None)
            )
    for name in turned:
        weights[name] = np.ascontiguousarray(weights[name].T)
    for tensor in model.graph.initializer:
        if tensor.name in turned:
            tensor.dims[:] = reversed(tensor.dims)


def quantised(network: Any, inputs: Sequence[Inputs]) -> Any:
    """An OpenVINO model with weights and activations in 8 bits; the progress is shown on stderr."""
    os.environ.setdefault("NNCF_CI", "1")  # or it would report its use to its makers
    import nncf

    how = {"preset": nncf.QuantizationPreset.MIXED, "model_type": nncf.ModelType.TRANSFORMER}
    with redirect_stdout(sys.stderr):
        return nncf.quantize(network, nncf.Dataset(list(inputs)), subset_size=len(inputs), **how)
