"""LoRA layers for training: put beside a UNet's own layers, switched off for the teacher, read out as plain tensors.

LoRA: Hu et al., arXiv 2106.09685, section 4.1: W x + (alpha / rank) B A x, with B = 0 at the start.
LCM-LoRA: Luo et al., arXiv 2311.05556; the targets below are those of its published weights.

The student is the UNet with the layers on, the teacher the same UNet inside `base_only`: no second copy of the weights.
"""

import math
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, cast

import torch
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.lora import LoraLayer as PeftLoraLayer
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from fewstep.errors import LoraError

ADAPTER, FAKE = "fewstep", "fake"
"""The student's layers, and those of the network that learns what the student draws (distribution matching)."""

TARGETS: tuple[str, ...] = (
    "to_q", "to_k", "to_v", "to_out.0", "proj_in", "proj_out", "ff.net.0.proj", "ff.net.2",
    "conv1", "conv2", "conv_shortcut", "downsamplers.0.conv", "upsamplers.0.conv", "time_emb_proj",
)  # fmt: skip
"""The layers of LCM-LoRA: attention, feed-forward, convolutions and the time projections of the residual blocks."""


def targeted(unet: nn.Module, targets: Sequence[str] = TARGETS) -> list[str]:
    """The linear and convolution layers whose dotted names end with one of `targets`, in the UNet's order."""
    return [
        name
        for name, module in unet.named_modules()
        if isinstance(module, (nn.Linear, nn.Conv2d)) and any(_ends_with(name, target) for target in targets)
    ]


def add_lora(
    unet: nn.Module,
    *,
    rank: int,
    alpha: float,
    targets: Sequence[str] | None = None,
    seed: int = 0,
    adapters: Sequence[str] = (ADAPTER,),
) -> list[nn.Parameter]:
    """Put LoRA layers of strength alpha / rank beside the targeted layers, freeze everything else, return what trains.

    Several `adapters` are sets of layers of which one is heard at a time: the first, or the one chosen by `only`.

    The layers are float32 whatever the UNet's number format is, on the UNet's device. `down` starts as Kaiming-uniform
    noise drawn on the CPU from `seed`, so it is the same on every device; `up` starts at zero, so nothing changes yet.

    Raises:
        LoraError: the rank is below 1, a target matches no layer, or the UNet carries LoRA layers already.
    """
    _check(unet, rank, targets)
    chosen = targeted(unet, TARGETS if targets is None else targets)
    unet.requires_grad_(False)
    # peft declares its alpha a whole number, and divides whatever it is given.
    config = LoraConfig(r=rank, lora_alpha=cast(int, alpha), target_modules=chosen, lora_dropout=0.0, bias="none")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*multiple adapters.*")  # they are meant
        for adapter in adapters:
            inject_adapter_in_model(config, unet, adapter_name=adapter)
    for _, layer in _layers(unet):
        layer.set_adapter(adapters[0])
    return [parameter for adapter in adapters for parameter in _initialise(unet, seed, adapter)]


@contextmanager
def only(unet: nn.Module, adapter: str) -> Iterator[nn.Module]:
    """Inside this context the UNet answers with this set of LoRA layers alone."""
    layers = [layer for _, layer in _layers(unet)]
    before, trains = [layer.active_adapters for layer in layers], _what_trains(layers)
    try:
        for layer in layers:
            layer.set_adapter(adapter)
        yield unet
    finally:
        for layer, active in zip(layers, before, strict=True):
            layer.set_adapter(active)
        _restore(trains)


def recomputed(module: nn.Module, *inputs: Any) -> Any:
    """Run a part of the UNet, and once more in the backward pass instead of keeping what it computed on the way.

    The second time the LoRA layers are heard that are heard now, or none, whatever has been chosen by then. Give it to
    diffusers' `enable_gradient_checkpointing`.
    """
    if torch.compiler.is_compiling():  # what is heard becomes part of the compiled graph
        return checkpoint(module, *inputs, use_reentrant=False)
    layer = next((layer for _, layer in _layers(module)), None)
    silent = layer is not None and layer.disable_adapters
    heard = None if layer is None else layer.active_adapters[0]

    def contexts() -> tuple[AbstractContextManager[Any], AbstractContextManager[Any]]:
        again = base_only(module) if silent else nullcontext() if heard is None else only(module, heard)
        return nullcontext(), again

    return checkpoint(module, *inputs, use_reentrant=False, context_fn=contexts)


@contextmanager
def base_only(unet: nn.Module) -> Iterator[nn.Module]:
    """Inside this context the UNet answers as if it had no LoRA layers; leaving it, even by an error, restores them.

    Contexts may be nested. A UNet without LoRA layers passes through unchanged.
    """
    on = [layer for _, layer in _layers(unet) if not layer.disable_adapters]
    # Switching a layer off also freezes it, and switching it on thaws it: what was frozen before must be so afterwards.
    trains = _what_trains(on)
    try:
        for layer in on:
            layer.enable_adapters(False)
        yield unet
    finally:
        for layer in on:
            layer.enable_adapters(True)
        _restore(trains)


def lora_state(unet: nn.Module) -> dict[str, tuple[Tensor, Tensor]]:
    """Copies of the LoRA weights on the CPU: module name -> (down, up).

    The names are those of the UNet without LoRA layers. Linear: down [rank, in], up [out, rank]; convolution: down
    [rank, in, height, width], up [out, rank, 1, 1].

    Raises:
        LoraError: the UNet carries no LoRA layers.
    """
    state = {name: (_copy(layer.lora_A), _copy(layer.lora_B)) for name, layer in _layers(unet)}
    if not state:
        raise LoraError("The UNet carries no LoRA layers to read. Call add_lora first.")
    return state


@torch.no_grad()
def start_lora(unet: nn.Module, deltas: Mapping[str, tuple[Tensor, Tensor]], *, adapter: str = ADAPTER) -> None:
    """Set the layers' first rows to finished ones: module name -> (down, up) whose product is the whole change.

    Smaller ranks leave the other rows as `add_lora` made them, so that they add nothing and still learn.

    Raises:
        LoraError: a module has no LoRA layer, or one of another shape or a smaller rank.
    """
    layers = dict(_layers(unet))
    for name, (down, up) in deltas.items():
        if name not in layers:
            raise LoraError(f"The LoRA to start from changes '{name}', which is not trained here. Use another file.")
        halves = layers[name].lora_A[adapter].weight, layers[name].lora_B[adapter].weight
        if down.shape[0] > halves[0].shape[0] or down.shape[1:] != halves[0].shape[1:] or len(up) != len(halves[1]):
            raise LoraError(
                f"The LoRA to start from has shape {list(down.shape)} at '{name}', the student {list(halves[0].shape)}."
                " Train with at least its rank, on the model that it was made for."
            )
        halves[0][: len(down)] = down.to(halves[0])
        halves[1][:, : len(down)] = (up / layers[name].scaling[adapter]).to(halves[1])


def _check(unet: nn.Module, rank: int, targets: Sequence[str] | None) -> None:
    if rank < 1:
        raise LoraError(f"A LoRA of rank {rank} was asked for. The rank must be 1 or more.")
    if any(True for _ in _layers(unet)):
        raise LoraError("The UNet carries LoRA layers already. Load the model anew before adding others.")
    # The standard list names layers that a small UNet may lack (a shortcut, a downsampler); an explicit one must fit.
    for target in targets or ():
        if not targeted(unet, [target]):
            raise LoraError(f"LoRA target '{target}' matches no linear or convolution layer of the UNet. Correct it.")
    if not targeted(unet, TARGETS if targets is None else targets):
        raise LoraError("The LoRA targets match no linear or convolution layer of the UNet.")


def _what_trains(layers: Sequence[Any]) -> list[tuple[nn.Parameter, bool]]:
    return [(parameter, parameter.requires_grad) for layer in layers for parameter in layer.parameters()]


def _restore(trains: Sequence[tuple[nn.Parameter, bool]]) -> None:
    for parameter, requires_grad in trains:
        parameter.requires_grad_(requires_grad)


def _initialise(unet: nn.Module, seed: int, adapter: str) -> list[nn.Parameter]:
    generator = torch.Generator().manual_seed(seed)
    trainable: list[nn.Parameter] = []
    for _, layer in _layers(unet):
        down, up = (half[adapter].to(torch.float32).weight for half in (layer.lora_A, layer.lora_B))
        noise = torch.empty(down.shape)
        nn.init.kaiming_uniform_(noise, a=math.sqrt(5), generator=generator)
        with torch.no_grad():
            down.copy_(noise)
            up.zero_()
        trainable += [down, up]
    for parameter in trainable:
        parameter.requires_grad_(True)
    return trainable


def _layers(unet: nn.Module) -> Iterator[tuple[str, Any]]:
    return ((name, module) for name, module in unet.named_modules() if isinstance(module, PeftLoraLayer))


def _ends_with(name: str, target: str) -> bool:
    return name == target or name.endswith("." + target)


def _copy(half: Any) -> Tensor:
    return half[ADAPTER].weight.detach().to("cpu", copy=True).contiguous()
