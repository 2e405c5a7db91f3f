"""LoRAs made of LoRAs and of models: several as one, a smaller rank, the difference of two models, another family.

Sums are exact: products are laid side by side (merging k LoRAs of rank r gives rank k r), a LoHa is a product of rank
r² (2108.06098, prop. 1), and what is no product stays a full difference, until a rank or an energy is asked for. Then
the best such approximation is taken (Eckart and Young, by singular values).
Suffixes: O out, I in (of a convolution with its pixels), R rank.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fewstep.checkpoints.load import Model
from fewstep.checkpoints.lora import weights_of
from fewstep.checkpoints.lora_apply import part_of
from fewstep.checkpoints.lora_families import Diff, Layer, Loha, Lokr, LoraLayer
from fewstep.checkpoints.lora_products import scale_of
from fewstep.checkpoints.lora_read import Lora
from fewstep.errors import LoraError

_KERNEL_3 = (".conv1", ".conv2", ".conv", ".conv_in", ".conv_out")
"""How the names of the 3x3 convolutions of these models end."""


@dataclass(frozen=True)
class Size:
    """How much of a change is kept: at most `rank` singular values, and only so many that their squares make up
    `energy` of all; None: no limit.
    """

    rank: int | None = None
    energy: float | None = None

    def __bool__(self) -> bool:
        """Is there a limit?"""
        return self.rank is not None or self.energy is not None

    def count(self, values: Tensor) -> int:
        """How many of these singular values, the largest first; at least one.

        >>> Size(energy=0.9).count(torch.tensor([3.0, 1.0, 0.0])), Size(rank=1).count(torch.tensor([3.0, 3.0]))
        (1, 1)
        """
        kept = len(values)
        if self.energy is not None:
            squares = values.double() ** 2
            lost = squares.sum() - squares.cumsum(0)
            kept = int((lost > (1 - self.energy + 1e-12) * squares.sum()).sum()) + 1
        return max(1, min(kept, len(values), self.rank or kept))


@torch.no_grad()
def merge(
    loras: Iterable[tuple[Lora, float]], *, size: Size | None = None, model: Model | None = None
) -> dict[str, Layer]:
    """Several LoRAs, each with its weight, as one: `unet.<module>`, `text_encoder.<module>` -> layer.

    Raises:
        LoraError: one multiplies the model's weights, and `model` is None or does not fit.
    """
    parts: dict[str, list[tuple[Lora, Layer, float]]] = {}
    bases = {} if model is None else weights_of(model)
    for lora, weight in loras:
        for name, layer in lora.all_layers.items():
            if bases and name not in bases and getattr(layer, "optional", False):
                continue
            parts.setdefault(name, []).append((lora, layer, weight))
    merged = {name: _sum(name, found, bases.get(name)) for name, found in parts.items()}
    return {name: shrunk(name, layer, size) for name, layer in merged.items()} if size else merged


@torch.no_grad()
def extract(model: Model, tuned: Model, size: Size) -> dict[str, Layer]:
    """What `tuned` has and `model` has not: products of matrices, and differences of norms and biases.

    Raises:
        LoraError: the models are of different layouts, or equal.
    """
    before, after = weights_of(model), weights_of(tuned)
    other = [name for name in before if name not in after or before[name].shape != after[name].shape]
    if other or before.keys() != after.keys():
        name = (other or sorted(after.keys() - before.keys()))[0]
        raise LoraError(f"The two models are of different layouts, first at '{name}'. Give two of one family.")
    found = {name: Diff((after[name].float() - before[name].float()).detach()) for name in before}
    layers = {name: shrunk(name, layer, size) for name, layer in found.items() if layer.diff.any()}
    if not layers:
        raise LoraError("The two models have equal weights: there is nothing to extract.")
    return layers


def shrunk(name: str, layer: Layer, size: Size) -> Layer:
    """The nearest plain layer of this size; differences of norms and biases stay."""
    if isinstance(layer, LoraLayer):
        up_OR, down_RI = layer.up.float().flatten(1) * layer.scale, layer.down.float().flatten(1)
        left, right = torch.linalg.qr(up_OR), torch.linalg.qr(down_RI.T)
        u, s, vh = torch.linalg.svd(left.R @ right.R.T, full_matrices=False)
        u, vh, inner = left.Q @ u, vh @ right.Q.T, layer.down.shape[1:]
    elif isinstance(layer, Diff) and layer.diff.ndim > 1:
        u, s, vh = torch.linalg.svd(layer.diff.float().flatten(1), full_matrices=False)
        inner = layer.diff.shape[1:]
    else:
        return layer
    rank = size.count(s)
    root = s[:rank].sqrt()
    return _product(name, u[:, :rank] * root, (root[:, None] * vh[:rank]).unflatten(1, inner))


def low_rank(layer: Layer) -> LoraLayer | None:
    """The same change as one product, exactly; None where it is none, or depends on the weight."""
    if isinstance(layer, LoraLayer):
        if layer.mid is None:
            return layer
        inner = torch.einsum("rshw,si->rihw", layer.mid.float(), layer.down.float().flatten(1))
        return LoraLayer(inner, layer.up, layer.scale * layer.mid.shape[0])
    if isinstance(layer, Loha) and layer.hada_t1 is None and layer.hada_t2 is None:
        (a1, b1, _), (a2, b2, _) = layer.halves
        a1, b1, a2, b2 = (part.float().flatten(1) for part in (a1, b1, a2, b2))
        up, down = torch.einsum("or,os->ors", a1, a2).flatten(1), torch.einsum("ri,si->rsi", b1, b2).flatten(0, 1)
        return LoraLayer(down, up, scale_of(layer.alpha, layer.rank) * len(down))
    return None


def _sum(name: str, parts: list[tuple[Lora, Layer, float]], base: Any) -> Layer:
    products = [low_rank(layer) for _, layer, _ in parts]
    exact = [(product, weight) for product, (_, _, weight) in zip(products, parts, strict=True) if product is not None]
    if len(exact) == len(parts):
        if len(parts) == 1 and parts[0][2] == 1.0 and exact[0][0] is parts[0][1]:
            return exact[0][0]
        widest = max((product.down.shape[1:] for product, _ in exact), key=len)
        down = torch.cat([product.down.float().reshape(-1, *widest) for product, _ in exact])
        up = torch.cat([product.up.float().flatten(1) * (product.scale * weight) for product, weight in exact], dim=1)
        return _product(name, up, down)
    return Diff(torch.stack([weight * _change(name, lora, layer, base) for lora, layer, weight in parts]).sum(0))


def _product(name: str, up_OR: Tensor, down: Tensor) -> LoraLayer:
    """alpha is the rank; a convolution's `down` has its pixels again."""
    if down.ndim == 2 and name.endswith(_KERNEL_3) and name.startswith("unet."):
        down = down.reshape(len(down), -1, 3, 3)
    up = up_OR.reshape(*up_OR.shape, *(1,) * (down.ndim - 2))
    return LoraLayer(down.contiguous(), up.contiguous(), float(len(down)))


def _change(name: str, lora: Lora, layer: Layer, base: Any) -> Tensor:
    """What a layer adds; the families that are products or differences need no base."""
    if isinstance(layer, (LoraLayer, Loha, Lokr, Diff)):
        sizes = tuple(size or 0 for size in layer.shape or ())
        if len(sizes) == 2 and name.endswith(_KERNEL_3):
            sizes = (sizes[0], sizes[1] // 9, 3, 3)
        return layer.delta(torch.zeros(1)).reshape(sizes)
    if base is None:
        raise LoraError(
            f"'{lora.path.name}' is {layer.label} at '{name}', which multiplies the model's weights: what it adds "
            "depends on them. Name the model it is for with --model."
        )
    part = part_of(layer, base.float())
    return layer.delta(part).reshape(part.shape)
