"""A memory plan carried out: weights that live on the CPU and visit the device, and a smaller plan when memory is out.

What visits is a copy, so nothing is copied back, and whatever changes weights (a LoRA) does so at home: `home` first.
Every call that can run out of memory goes through `working`, which takes one plan less and asks again. A call is a pure
function of its arguments, so the picture is the same as if it had been begun anew with its seed.
"""

import warnings
from collections.abc import Callable, Iterable
from itertools import chain
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from fewstep.backends.compiled import noted
from fewstep.checkpoints.load import Model
from fewstep.errors import DeviceError
from fewstep.memory import (
    PLANS,
    RESERVE,
    UNET_WIDTHS,
    VAE_WIDTHS,
    MemoryPlan,
    Needs,
    choose_plan,
    gigabytes,
    plan_named,
    step_down,
)

T = TypeVar("T")
TILE, OVERLAP = 64, 16
"""Latents of a decoder's tile on each side, where a plan asks for tiles, and of what neighbours share."""

ROOMY = 20_000_000_000
"""Free bytes from which every family known here is held whole, with eight pictures at once."""

_KEPT_WHOLE = ("conv_in", "conv_out", "time_embedding", "add_embedding", "class_embedding")


class Guest:
    """Tensors that live at home and come to a device, in a number format, to work there."""

    def __init__(self, tensors: Iterable[Tensor], device: str, dtype: torch.dtype | None = None) -> None:
        self._tensors, self._device, self._dtype = list(tensors), device, dtype
        self._home: list[Tensor] = []

    @property
    def away(self) -> bool:
        """Whether they are on the device."""
        return bool(self._home)

    def bring(self) -> None:
        """Copies take the tensors' places; nothing where they are there already."""
        if self._home:
            return
        self._home = [tensor.data for tensor in self._tensors]
        try:
            for tensor in self._tensors:
                dtype = self._dtype if tensor.is_floating_point() else None
                tensor.data = tensor.data.to(self._device, dtype, non_blocking=True)
        except BaseException:
            self.leave()
            raise

    def leave(self) -> None:
        """The tensors are what they are at home."""
        for tensor, home in zip(self._tensors, self._home, strict=False):
            tensor.data = home
        self._home = []


class Placement:
    """A model under a plan: `model.placement`. The model's notes say what was chosen, and every step down."""

    def __init__(self, model: Model, plan: MemoryPlan, why: str) -> None:
        self._model, self.plan = model, plan
        self._guests: dict[str, Guest] = {}
        self._hooks: list[Any] = []
        self._modules = {"text": list(model.text.encoders), "unet": [model.unet], "vae": [model.vae]}
        self._apply()
        model.placement, self._forward = self, model.unet.forward
        model.unet.forward = lambda *args, **named: self.working("unet", lambda: self._evaluate(*args, **named))
        noted(model, f"memory plan {plan.name}: {plan.does} ({why})")

    def working(self, part: str, run: Callable[[], T]) -> T:
        """`run`, with "text", "unet" or "vae" on the device; again with a smaller plan where memory is out.

        Raises DeviceError below the smallest plan.
        """
        while True:
            try:
                self._use(part)
                return run()
            except torch.OutOfMemoryError:
                pass  # its traceback holds the memory until here
            self._step_down()

    def home(self) -> None:
        """Nobody visits: the weights may be changed."""
        for guest in self._guests.values():
            guest.leave()

    def _evaluate(self, *args: Any, **named: Any) -> Any:
        """What was recorded of weights is of no use once they come and go."""
        forward = getattr(self._forward, "plain", self._forward) if self.plan.turns else self._forward
        return forward(*args, **named)

    def _use(self, part: str) -> None:
        for name, guest in self._guests.items():
            if name != part and (self.plan.turns or name == "text"):
                guest.leave()
        if part in self._guests:
            self._guests[part].bring()

    def _step_down(self) -> None:
        smaller = step_down(self.plan)
        if smaller is None:
            raise DeviceError(
                f"The picture needs more memory than {self._model.device} has, also with the memory plan "
                f"{self.plan.name}. Paint a smaller one, or use --device cpu."
            )
        note = f"out of memory with the plan {self.plan.name}: went on with {smaller.name} ({smaller.does})"
        noted(self._model, note)
        warnings.warn(note, UserWarning, stacklevel=2)
        self.plan = smaller
        self._apply()

    def _apply(self) -> None:
        self.home()
        for hook in self._hooks:
            hook.remove()
        self._hooks, self._guests = [], {}
        plan, device = self.plan, self._model.device
        for part, modules in self._modules.items():
            visits = plan.turns or (plan.text_leaves and part == "text")
            lives = "cpu" if visits and not (plan.eight and part == "unet") else device
            for module in modules:
                module.to(lives)
            if visits and not (part == "unet" and (plan.streams or plan.eight)):
                self._guests[part] = Guest(_tensors(modules), device)
        if plan.eight:
            _store_in_eight(self._model.unet)
        if plan.streams or plan.eight:
            self._visit_by_layer()
        if device.startswith("cuda"):
            torch.cuda.empty_cache()

    def _visit_by_layer(self) -> None:
        """Each layer's weights come before it works and go after it; compiled code would not see that, so it goes."""
        for layer in self._model.unet.modules():
            layer._compiled_call_impl = None  # what `Module.compile` sets
            own = [*layer.parameters(recurse=False), *layer.buffers(recurse=False)]
            if own:
                guest = Guest(own, self._model.device, self._model.dtype)
                self._hooks.append(layer.register_forward_pre_hook(lambda *_, guest=guest: guest.bring()))
                self._hooks.append(layer.register_forward_hook(lambda *_, guest=guest: guest.leave(), always_call=True))


def _tensors(modules: Iterable[nn.Module]) -> list[Tensor]:
    return [tensor for module in modules for tensor in chain(module.parameters(), module.buffers())]


def _in_eight(unet: nn.Module) -> list[Tensor]:
    """The weights that are kept in 8 bits: those of matrices and convolutions, without the first and last ones, which
    are small and whose errors are seen.
    """
    kept = ((name, module) for name, module in unet.named_modules() if not name.startswith(_KEPT_WHOLE))
    return [module.weight for _, module in kept if isinstance(module, (nn.Linear, nn.Conv2d))]


def _store_in_eight(unet: nn.Module) -> None:
    """float8 with 4 bits of exponent and 3 of mantissa, without a scale: SD's weights lie well inside its range."""
    for weight in _in_eight(unet):
        weight.data = weight.data.to(torch.float8_e4m3fn)


def needs_of(model: Model, size: tuple[int, int]) -> Needs:
    """What a model and a picture of (width, height) take."""
    pixels, wide = size[0] * size[1], model.unet.config.block_out_channels[0]
    unet = _bytes(_tensors([model.unet]))
    vae_item, vae_wide = model.vae.dtype.itemsize, model.vae.config.block_out_channels[1]
    decoding = VAE_WIDTHS * vae_wide * vae_item
    eight = _in_eight(model.unet)
    return Needs(
        text=_bytes(_tensors(model.text.encoders)),
        unet=unet,
        vae=_bytes(_tensors([model.vae])),
        unet_eight=unet - _bytes(eight) + sum(weight.numel() for weight in eight),
        layer=max(_bytes(layer.parameters(recurse=False)) for layer in model.unet.modules()),
        unet_work=2 * UNET_WIDTHS * wide * pixels // 64 * model.dtype.itemsize,
        vae_work=decoding * pixels,
        tile_work=decoding * min(pixels, (8 * TILE) ** 2),
    )


def _bytes(tensors: Iterable[Tensor]) -> int:
    return sum(tensor.nbytes for tensor in tensors)


def place(model: Model, memory: str = "auto", limit: int | None = None) -> Placement:
    """Put a model under the plan that is named, or under one by what is free, `limit` bytes at the most.

    The weights may be on the CPU until now. Raises DeviceError for an unknown plan.
    """
    side = model.family.size_px
    asked, needs, free = plan_named(memory), needs_of(model, (side, side)), _free(model.device, limit)
    chosen = asked or (PLANS["full"] if free is None else choose_plan(needs, free))
    sizes = f"about {gigabytes(chosen.peak(needs) + RESERVE)} for {side} x {side} px"
    why = "asked for" if asked or free is None else f"{gigabytes(free)} free"
    return Placement(model, chosen, f"{sizes}, {why}")


def first_home(device: str, memory: str, limit: int | None) -> str:
    """Where weights are loaded to before a plan is chosen: the device itself, if it has room for every family."""
    free = _free(device, limit)
    roomy = free is None or free >= ROOMY or plan_named(memory) == PLANS["full"]
    return device if roomy else "cpu"


def _free(device: str, limit: int | None) -> int | None:
    """None where nobody counts: a CPU's memory, unless there is a limit."""
    if not device.startswith("cuda"):
        return limit
    free, whole = torch.cuda.mem_get_info(device)
    if limit is None:
        return free
    torch.cuda.set_per_process_memory_fraction(min(1.0, limit / whole), device)
    return min(free, limit)
