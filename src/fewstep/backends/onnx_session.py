"""One graph with its weights as ONNX Runtime runs it, and the threads of this process.

Shapes: none of its own; arrays go in and out as the graph names them.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np

from fewstep.device import cores
from fewstep.errors import CheckpointError

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


_SHARING = Lock()
"""Two threads that make the first two sessions would both set the pool, which is possible once."""


class OnnxSession:
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

    def run(self, outputs: Sequence[str], inputs: Mapping[str, np.ndarray]) -> list[np.ndarray]:
        """These outputs of the graph."""
        found: Any = self._session.run(list(outputs), dict(inputs))
        return found


def thread_count() -> int:
    """The cores this process may use, up to MOST_THREADS; fewer where OMP_NUM_THREADS says so."""
    asked = os.environ.get("OMP_NUM_THREADS", "")
    return max(1, min(cores(), int(asked) if asked.isdecimal() else MOST_THREADS))


def session_options(ort: Any) -> Any:
    """What every session of this process needs, as they share their threads.

    Without planning the reuse of memory, whose search is quadratic in the number of values of an unknown size: it takes
    three quarters of the time in which a UNet's session is made, and saves a picture's few megabytes.
    """
    with _SHARING:
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
