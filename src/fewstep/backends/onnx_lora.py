"""LoRAs merged into weights with numpy.

A layer is what `checkpoints.lora` reads: down, up, alpha and perhaps mid, as numpy arrays or torch tensors on the CPU.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Protocol, TypeAlias

import numpy as np

from fewstep.errors import LoraError, RequestError


class LoraLayer(Protocol):
    """Linear: down (rank, in), up (out, rank). Convolution: (rank, in, h, w), (out, rank, 1, 1), perhaps a mid."""

    @property
    def down(self) -> Any:
        """What comes first."""
        ...

    @property
    def up(self) -> Any:
        """What comes last."""
        ...

    @property
    def mid(self) -> Any:
        """What comes between: (rank, rank, h, w), or None."""
        ...

    @property
    def alpha(self) -> float:
        """The strength, times the rank."""
        ...


Additions: TypeAlias = Mapping[str, Sequence[tuple[LoraLayer, float]]]
"""Module ("unet.mid_block...") -> the layers to add to its weight, each with its strength."""


def delta(layer: LoraLayer) -> np.ndarray:
    """(alpha / rank) up @ down in float32, (out, in) or (out, in, h, w) (arXiv:2106.09685, section 4.1)."""
    down, up = _float32(layer.down), _float32(layer.up)
    up_OR = up.reshape(len(up), -1) * np.float32(layer.alpha / len(down))
    if layer.mid is None:
        return (up_OR @ down.reshape(len(down), -1)).reshape(len(up), *down.shape[1:])
    mid_RSHW, down_SI = _float32(layer.mid), down.reshape(len(down), -1)
    return np.einsum("or,rshw,si->oihw", up_OR, mid_RSHW, down_SI, optimize=True)


def _float32(x: Any) -> np.ndarray:
    """A numpy array, or a torch tensor of any number format (numpy has no bfloat16)."""
    return np.asarray(x if isinstance(x, np.ndarray) else x.float(), np.float32)


def merged(weight: np.ndarray, parts: Iterable[tuple[LoraLayer, float]]) -> np.ndarray:
    """The weight with all layers added; a convolution of one pixel and a linear layer are the same numbers."""
    total = weight.copy()
    for layer, strength in parts:
        total += np.float32(strength) * delta(layer).reshape(total.shape)
    return total


def additions(loras: Iterable[tuple[Any, float, float]], shapes: Mapping[str, Sequence[int]]) -> Additions:
    """What a stack of (LoRA, weight for the UNet, weight for the text encoder) adds to which module.

    `shapes` are those of the model's weights, by module.

    Raises:
        LoraError: a LoRA has modules that the model lacks, or of another shape.
        RequestError: a weight is not a finite number.
    """
    found: dict[str, list[tuple[LoraLayer, float]]] = {}
    for lora, weight_unet, weight_text in loras:
        unet = {f"unet.{module}": layer for module, layer in lora.layers.items()}
        for layers, weight in ((unet, weight_unet), (lora.text_layers, weight_text)):
            if not abs(weight) < float("inf"):
                raise RequestError(f"The weight {weight} of the LoRA '{lora.name}' is not a finite number.")
            _check_fit(lora, layers, shapes)
            for module, layer in layers.items() if weight else ():
                found.setdefault(module, []).append((layer, weight))
    return found


def _check_fit(lora: Any, layers: Mapping[str, LoraLayer], shapes: Mapping[str, Sequence[int]]) -> None:
    missing = [module for module in layers if module not in shapes]
    if missing:
        raise LoraError(
            f"'{lora.path.name}' does not fit this model: {len(missing)} of its {len(layers)} modules are not there, "
            f"first '{missing[0]}'. Use a LoRA made for this model."
        )
    for module, layer in layers.items():
        inner = layer.down.shape[2:] if layer.mid is None else layer.mid.shape[2:]
        wanted, given = list(shapes[module]), [layer.up.shape[0], layer.down.shape[1], *inner]
        if wanted[:2] != given[:2] or np.prod(wanted) != np.prod(given):
            raise LoraError(
                f"'{lora.path.name}' does not fit this model: '{module}' has shape {wanted}, the LoRA's is {given}. "
                "Use a LoRA made for this model."
            )
