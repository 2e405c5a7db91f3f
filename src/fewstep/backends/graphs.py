"""CUDA graphs: the UNet's kernels for one shape of its inputs, recorded once and then started by a single call.

A graph always reads and writes the same memory. So its inputs are copied into buffers, one set for each shape (batch,
height, width, length of the text), and its output is copied out. LoRAs on a GPU are merged into the same storage
(`checkpoints/lora`), so a recorded graph follows them. All graphs share one pool of memory, since they run in turn.

What records is given (`Capture`): the buffers can be tested where there is no GPU. Unmeasured: none was at hand.
"""

from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from fewstep.backends.compiled import channels_last, noted
from fewstep.checkpoints.load import Model

Run: TypeAlias = Callable[[], None]
Capture: TypeAlias = Callable[[Run], Run]
"""Records what a function without arguments does to its buffers; the result does the same once more."""

WARM_UP = 3
"""Runs before the recording, in which libraries choose their kernels and take their memory."""

MOST = 24
"""How many shapes are recorded; whatever comes later runs as it did without graphs."""


class CudaCapture:
    """Records on a stream of its own, as torch.cuda.graph asks for."""

    def __init__(self) -> None:
        self._pool: Any = None

    def __call__(self, run: Run) -> Run:
        """The replay of one graph."""
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(WARM_UP):
                run()
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool):
            run()
        self._pool = self._pool or graph.pool()
        return graph.replay


@dataclass(eq=False)
class _Recorded:
    """One shape: the buffers that are read, the one that is written, and the replay."""

    inputs: list[Tensor]
    output: Tensor
    replay: Run


class Graphed:
    """In place of a UNet's `forward`: replays what was recorded for inputs of this shape. `plain` is that forward."""

    def __init__(self, unet: Any, capture: Capture, most: int = MOST) -> None:
        self._unet, self.plain, self._capture, self._most = unet, unet.forward, capture, most
        self._recorded: dict[Hashable, _Recorded] = {}

    @property
    def shapes(self) -> int:
        """How many shapes are recorded."""
        return len(self._recorded)

    def __call__(self, *args: Any, **named: Any) -> Any:
        """As `forward`: a tuple of one tensor, which is the caller's own."""
        leaves, form = pytree.tree_flatten((args, named))
        tensors = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
        key = self._key(leaves, form)
        if torch.is_grad_enabled() or key is None:
            return self.plain(*args, **named)
        found = self._recorded.get(key)
        if found is None:
            if len(self._recorded) >= self._most:
                return self.plain(*args, **named)
            found = self._recorded[key] = self._record(leaves, form)
        for buffer, tensor in zip(found.inputs, tensors, strict=True):
            buffer.copy_(tensor)
        found.replay()
        return (found.output.clone(),)

    def _key(self, leaves: list[Any], form: Any) -> Hashable:
        """Shapes, number formats and plain values; None for what no graph can stand for. Weights that moved (another
        device, another memory) are another key.
        """
        parts: list[Hashable] = [str(form), self._unet.conv_in.weight.data_ptr()]
        for leaf in leaves:
            if isinstance(leaf, Tensor):
                parts.append((tuple(leaf.shape), leaf.dtype, str(leaf.device)))
            elif leaf is None or isinstance(leaf, (bool, int, float, str)):
                parts.append(leaf)
            else:
                return None
        return tuple(parts)

    def _record(self, leaves: list[Any], form: Any) -> _Recorded:
        static = [torch.clone(leaf) if isinstance(leaf, Tensor) else leaf for leaf in leaves]
        args, named = pytree.tree_unflatten(static, form)
        output = torch.empty_like(self.plain(*args, **named)[0])

        def run() -> None:
            output.copy_(self.plain(*args, **named)[0])

        inputs = [leaf for leaf in static if isinstance(leaf, Tensor)]
        return _Recorded(inputs, output, self._capture(run))


def graphed(model: Model, capture: Capture | None = None) -> Model:
    """The same model, whose UNet is replayed from graphs; `capture` is CUDA's own where it is not given.

    On another device the model is as it was, and a note says so.
    """
    if capture is None and not model.device.startswith("cuda"):
        note = f"CUDA graphs need a CUDA device, but the model is on {model.device}: it runs as eager"
        return noted(model, note)
    if model.device.startswith("cuda"):
        channels_last(model)
    model.unet.forward = Graphed(model.unet, capture or CudaCapture())
    return noted(model, "the UNet is replayed from CUDA graphs, one for each shape")
