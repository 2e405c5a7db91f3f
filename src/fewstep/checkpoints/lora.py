"""LoRA files: read from every naming, merged into a model and taken out again to the last bit, written for everybody.

LoRA, arXiv 2106.09685: W + (alpha / rank) up @ down, here times a weight of the user's. Every module has its own alpha;
a file without alphas means alpha = rank. (diffusers gives all attention one alpha: wrong for resized LoRAs.)
LoCon: the same for convolutions, with a `mid` between the two where the file has one (LyCORIS, arXiv 2309.14859).
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import torch
from safetensors.torch import save
from torch import Tensor, nn

from fewstep.checkpoints.description import Sampling
from fewstep.checkpoints.files import read_tensors, write_safetensors
from fewstep.checkpoints.load import Model
from fewstep.checkpoints.lora_keys import kohya_name, parse_key
from fewstep.checkpoints.lora_metadata import legacy_hash, required_metadata, tensor_hash, usage_metadata
from fewstep.checkpoints.lora_read import Lora, LoraLayer, cross_attention_dim, is_cross, is_sound, read_lora
from fewstep.errors import LoraError, OutputError, RequestError

__all__ = ["Lora", "LoraLayer", "LoraStack", "Merged", "delta", "read_lora", "stack_of", "write_lora"]


def delta(layer: LoraLayer, *, device: torch.device | str | None = None) -> Tensor:
    """(alpha / rank) up @ down in float32, in the shape that `down` tells: [out, in] or [out, in, height, width]."""
    down, up = layer.down.to(device, torch.float32), layer.up.to(device, torch.float32)
    up_OR = up.flatten(1) * (layer.alpha / layer.rank)
    if layer.mid is not None:
        return torch.einsum("or,rshw,si->oihw", up_OR, layer.mid.to(device, torch.float32), down.flatten(1))
    return (up_OR @ down.flatten(1)).unflatten(1, down.shape[1:])


@dataclass(frozen=True)
class Merged:
    """One entry of what a model carries: which LoRA, how strongly."""

    fingerprint: str
    weight_unet: float
    weight_text: float


_STACKS: "WeakKeyDictionary[nn.Module, LoraStack]" = WeakKeyDictionary()


def stack_of(model: Model) -> "LoraStack":
    """The one stack of a model: whoever asks for it takes out what another put in. A second stack could not know."""
    return _STACKS.get(model.unet) or _STACKS.setdefault(model.unet, LoraStack(model))


class LoraStack:
    """The LoRAs merged into one model's weights, in place. Take a model's from `stack_of`.

    `state` tells what is merged. Setting the same again does nothing; any other stack is merged anew from the untouched
    weights, which are kept on the CPU while they differ from the model's: `set([])` restores every bit of them.
    """

    def __init__(self, model: Model) -> None:
        """A stack for `model`, which carries no LoRA yet."""
        self.state: tuple[Merged, ...] = ()
        self._label = model.family.label
        self._modules = _modules(model)
        self._base: dict[str, Tensor] = {}

    @torch.no_grad()
    def set(self, loras: Sequence[tuple[Lora, float, float]]) -> None:
        """Make the model carry exactly these (LoRA, weight for the UNet, weight for the text encoders).

        Nothing is changed when one of them does not fit. Sums are in float32: the order matters only by rounding.

        Raises:
            LoraError: a LoRA has modules that the model lacks, or of another shape.
            RequestError: a weight is not a finite number.
        """
        state = tuple(Merged(lora.fingerprint, weight_unet, weight_text) for lora, weight_unet, weight_text in loras)
        if state == self.state:
            return
        additions = self._additions(loras)
        try:
            for name in [name for name in self._base if name not in additions]:
                self._restore(name)
            for name, parts in additions.items():
                self._merge(name, parts)
        except BaseException:
            self._restore_all()
            raise
        self.state = state

    def _additions(self, loras: Iterable[tuple[Lora, float, float]]) -> dict[str, list[tuple[LoraLayer, float]]]:
        additions: dict[str, list[tuple[LoraLayer, float]]] = {}
        for lora, weight_unet, weight_text in loras:
            unet = {f"unet.{name}": layer for name, layer in lora.layers.items()}
            for layers, weight in ((unet, weight_unet), (lora.text_layers, weight_text)):
                _check_weight(lora, weight)
                self._check_fit(lora, layers)
                for name, layer in layers.items() if weight else ():
                    additions.setdefault(name, []).append((layer, weight))
        return additions

    def _check_fit(self, lora: Lora, layers: Mapping[str, LoraLayer]) -> None:
        missing = [name for name in layers if name not in self._modules]
        if missing:
            raise LoraError(
                f"'{lora.path.name}' does not fit this {self._label} model: {len(missing)} of its {len(layers)} "
                f"modules are not there, first '{missing[0]}'. Use a LoRA made for {self._label}."
            )
        for name, layer in layers.items():
            wanted, found = self._modules[name].weight.shape, _shape(layer)
            if wanted.numel() != found.numel() or wanted[:2] != found[:2]:
                raise LoraError(
                    f"'{lora.path.name}' does not fit this {self._label} model: '{name}' has shape {list(wanted)}, "
                    f"the LoRA's is {list(found)}. Use a LoRA made for this model."
                )

    def _merge(self, name: str, parts: Iterable[tuple[LoraLayer, float]]) -> None:
        weight = self._modules[name].weight
        base = self._base.setdefault(name, weight.detach().to("cpu", copy=True))
        total = base.to(weight.device, torch.float32, copy=True)
        for layer, strength in parts:
            # A 1x1 convolution and a linear layer are the same numbers: either may carry the other's LoRA.
            total += strength * delta(layer, device=weight.device).reshape(total.shape)
        weight.copy_(total)

    def _restore(self, name: str) -> None:
        self._modules[name].weight.copy_(self._base[name])
        del self._base[name]

    def _restore_all(self) -> None:
        for name in list(self._base):
            self._restore(name)
        self.state = ()


def write_lora(
    path: str | Path,
    layers: Mapping[str, tuple[Tensor, Tensor]],
    *,
    alpha: float,
    title: str | None = None,
    metadata: Mapping[str, str] | None = None,
    sampling: Sampling | None = None,
    size: tuple[int, int] | None = None,
) -> Lora:
    """Write UNet layers (module name -> down, up) in kohya's naming, read the file back, compare and return it.

    The tensors are written in the number format they have; `alpha` is one for all modules, because diffusers misreads
    others. `title` is what other programs show (the file's name, unless given), `size` the height and width in pixels
    it was trained at. `metadata` is added to, and wins over, what other programs look for.

    Raises:
        LoraError: there are no layers, or one that could not be read again: a wrong shape, a NaN, an unknown name.
        OutputError: the file cannot be written, or holds something else when read back (it is removed then).
    """
    path = Path(path)
    tensors = _kohya_tensors(layers, alpha)
    facts = required_metadata(
        title=title or path.stem,
        alpha=alpha,
        ranks={down.shape[0] for down, _ in layers.values()},
        convolutions=any(down.ndim == 4 and down[0, 0].numel() > 1 for down, _ in layers.values()),
        width=cross_attention_dim(LoraLayer(*pair, alpha) for name, pair in layers.items() if is_cross(name)),
        size=size,
    )
    facts |= (usage_metadata(sampling) if sampling is not None else {}) | dict(metadata or {})
    hashes = _hashes(tensors, facts)
    write_safetensors(path, tensors, facts | hashes)
    return _read_back(path, layers, tensors, hashes["sshs_model_hash"])


def _hashes(tensors: dict[str, Tensor], facts: Mapping[str, str]) -> dict[str, str]:
    """kohya's and ModelSpec's, of a file with the training's keys only: those nobody edits later."""
    content = save(tensors, {key: value for key, value in facts.items() if key.startswith("ss_")})
    digest = tensor_hash(BytesIO(content))
    return {
        "sshs_model_hash": digest,
        "sshs_legacy_hash": legacy_hash(content),
        "modelspec.hash_sha256": f"0x{digest}",
    }


def _shape(layer: LoraLayer) -> torch.Size:
    inner = layer.down.shape[2:] if layer.mid is None else layer.mid.shape[2:]
    return torch.Size((layer.up.shape[0], layer.down.shape[1], *inner))


def _check_weight(lora: Lora, weight: float) -> None:
    if not abs(weight) < float("inf"):
        raise RequestError(f"The weight {weight} of the LoRA '{lora.name}' is not a finite number. Use one like 0.8.")


def _modules(model: Model) -> dict[str, Any]:
    """Every linear and convolution layer under the name it has in files, whatever else has been put beside it."""
    roots = {"unet": model.unet, "text_encoder": model.text.encoders[0]}
    if len(model.text.encoders) > 1:
        roots["text_encoder_2"] = model.text.encoders[1]
    return {
        f"{component}.{name.removeprefix('text_model.').replace('.base_layer', '')}": module
        for component, root in roots.items()
        for name, module in root.named_modules()
        if isinstance(module, (nn.Linear, nn.Conv2d)) and ".lora_" not in name
    }


def _kohya_tensors(layers: Mapping[str, tuple[Tensor, Tensor]], alpha: float) -> dict[str, Tensor]:
    if not layers:
        raise LoraError("There are no LoRA layers to write.")
    tensors: dict[str, Tensor] = {}
    for module, (down, up) in layers.items():
        if parse_key(kohya_name(module) + ".alpha") != ("unet", module, "alpha") or not is_sound(down, up, None):
            raise LoraError(f"The LoRA layer '{module}' cannot be written: its name or shapes would not be read again.")
        if not (torch.isfinite(down).all() and torch.isfinite(up).all()):
            raise LoraError(
                f"The LoRA layer '{module}' holds NaN or infinity: lower the learning rate and train again."
            )
        parts = {"lora_down.weight": down, "lora_up.weight": up, "alpha": torch.tensor(float(alpha))}
        tensors |= {f"{kohya_name(module)}.{part}": tensor for part, tensor in parts.items()}
    return {name: tensor.detach().to("cpu", copy=True).contiguous() for name, tensor in tensors.items()}


def _read_back(
    path: Path, layers: Mapping[str, tuple[Tensor, Tensor]], tensors: Mapping[str, Tensor], digest: str
) -> Lora:
    lora, found = read_lora(path), read_tensors(path)
    same = found.keys() == tensors.keys() and all(
        found[key].dtype == tensor.dtype and torch.equal(found[key], tensor) for key, tensor in tensors.items()
    )
    if not same or lora.layers.keys() != layers.keys() or lora.hash != digest:
        path.unlink()
        raise OutputError(f"'{path}' held something else when it was read back, so it was removed. Is the disk sound?")
    return lora
