"""One graph run by ONNX Runtime; drafts by OpenVINO, as soon as that has compiled it in the background.

ONNX Runtime takes new weights in a fifth of a second and every shape as it comes; OpenVINO compiles for more than a
second, and is the faster one after that, in bfloat16 above all. So no frame waits for a compiler, many cost less, and
a picture that is kept is the same every time.
"""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from fewstep.backends.onnx_session import OnnxSession
from fewstep.backends.openvino_session import OpenVinoSession

LASTING = 24
"""Drafts with the same shapes and weights, after which they are worth compiling for."""


class BothSession:
    """A graph and its weights. Any number of threads may run it at once."""

    def __init__(self, graph: Path, weights: Mapping[str, np.ndarray], dtype: str = "float32") -> None:
        """dtype is what OpenVINO computes in. Raises CheckpointError when the graph or the weights are refused."""
        self._now = OnnxSession(graph, weights)
        self._later: OpenVinoSession | None = None
        self._made_from = graph, weights, dtype
        self._asked: Counter[Any] = Counter()

    def run(self, outputs: Sequence[str], inputs: Mapping[str, np.ndarray]) -> list[np.ndarray]:
        """These outputs of the graph, in float32."""
        return self._now.run(outputs, inputs)

    def draft(self, outputs: Sequence[str], inputs: Mapping[str, np.ndarray]) -> list[np.ndarray]:
        """The same by OpenVINO, where it has compiled for inputs of these shapes."""
        if self._later is not None and self._later.has(inputs):
            return self._later.run(outputs, inputs)
        shapes = tuple(value.shape for value in inputs.values())
        self._asked[shapes] += 1
        if self._asked[shapes] % LASTING == 0:
            _compiler().submit(_compile, weakref.ref(self), outputs, dict(inputs))
        return self.run(outputs, inputs)

    def compile(self, outputs: Sequence[str], inputs: Mapping[str, np.ndarray]) -> None:
        """For the shapes of these inputs."""
        later = self._later or OpenVinoSession(*self._made_from)
        later.run(outputs, inputs)
        self._later = later


def _compile(session: weakref.ref[BothSession], outputs: Sequence[str], inputs: Mapping[str, np.ndarray]) -> None:
    """Where the session is still there: after another LoRA came nobody wants it."""
    if (wanted := session()) is not None:
        wanted.compile(outputs, inputs)


@cache
def _compiler() -> ThreadPoolExecutor:
    """One thread, so that what is compiled takes one core at the most from what is painted."""
    return ThreadPoolExecutor(1, thread_name_prefix="fewstep-compiler")
