"""Random LoRAs in the namings that are in use, made without the code under test."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

ATTENTION = ("to_q", "to_k", "to_v", "to_out.0", "proj_in", "proj_out", "ff.net.0.proj", "ff.net.2")
CONVOLUTIONS = ("conv1", "conv2", "conv_shortcut", "downsamplers.0.conv", "upsamplers.0.conv", "time_emb_proj")
TEXT = ("q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2")


@dataclass
class Piece:
    """One module's LoRA; alpha None: the file does not say it."""

    down: Tensor
    up: Tensor
    alpha: float | None
    mid: Tensor | None = None

    def delta(self) -> Tensor:
        """The closed form, in float64, by explicit sums over the rank."""
        rank = self.down.shape[0]
        down, up = self.down.double(), self.up.double().reshape(len(self.up), rank)
        if self.mid is not None:
            total = torch.einsum(
                "ikhw,kj->ijhw", torch.einsum("or,rkhw->okhw", up, self.mid.double()), down[:, :, 0, 0]
            )
        else:
            total = torch.stack([torch.tensordot(up[:, r], down[r], dims=0) for r in range(rank)]).sum(0)
        return total * ((rank if self.alpha is None else self.alpha) / rank)


def pieces(
    root: Any,
    endings: tuple[str, ...] = ATTENTION,
    *,
    rank: Callable[[int], int] = lambda index: 4,
    alpha: Callable[[int], float | None] = lambda index: 2.0,
    seed: int = 0,
) -> dict[str, Piece]:
    """Random pieces for the layers of `root` whose names end so; rank and alpha by the layer's number."""
    generator = torch.Generator().manual_seed(seed)
    chosen = [
        (name, module)
        for name, module in root.named_modules()
        if isinstance(module, (nn.Linear, nn.Conv2d)) and name.endswith(endings)
    ]
    return {
        name: Piece(
            torch.randn(rank(index), *module.weight.shape[1:], generator=generator) * 0.2,
            torch.randn(len(module.weight), rank(index), *(1,) * (module.weight.ndim - 2), generator=generator) * 0.2,
            alpha(index),
        )
        for index, (name, module) in enumerate(chosen)
    }


def kohya(found: Mapping[str, Piece], prefix: str = "lora_unet_") -> dict[str, Tensor]:
    return _tensors(found, lambda name: prefix + name.replace(".", "_"), "lora_down.weight", "lora_up.weight")


def peft(found: Mapping[str, Piece], prefix: str = "unet.") -> dict[str, Tensor]:
    return _tensors(found, lambda name: prefix + name, "lora_A.weight", "lora_B.weight")


def old_diffusers(found: Mapping[str, Piece], prefix: str = "unet.") -> dict[str, Tensor]:
    """attn1.processor.to_q_lora.down.weight for attention, .lora.down.weight for everything else."""
    tensors = {}
    for name, piece in found.items():
        block, _, last = name.removesuffix(".0").rpartition(".") if ".to_" in name else ("", "", "")
        stem = f"{prefix}{block}.processor.{last}_lora" if block else f"{prefix}{name}.lora"
        tensors |= {f"{stem}.down.weight": piece.down, f"{stem}.up.weight": piece.up}
    return tensors


def save(path: Path, tensors: Mapping[str, Tensor], **metadata: str) -> Path:
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path, metadata=metadata or None)
    return path


def _tensors(found: Mapping[str, Piece], name_of: Callable[[str], str], down: str, up: str) -> dict[str, Tensor]:
    tensors = {}
    for name, piece in found.items():
        key = name_of(name)
        tensors |= {f"{key}.{down}": piece.down, f"{key}.{up}": piece.up}
        if piece.alpha is not None:
            tensors[f"{key}.alpha"] = torch.tensor(piece.alpha)
        if piece.mid is not None:
            tensors[f"{key}.lora_mid.weight"] = piece.mid
    return tensors
