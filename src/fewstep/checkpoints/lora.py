"""LoRA files: read from every naming, merged into a model and taken out again to the last bit, written for everybody.

LoRA, arXiv 2106.09685: W + (alpha / rank) up @ down, here times a weight of the user's. Every module has its own alpha;
a file without alphas means alpha = rank. (diffusers gives all attention one alpha: wrong for resized LoRAs.)
The other families stand in `lora_families`. Each is a difference from the untouched weight W0, also those that multiply
(IA3, OFT, DoRA): a stack is W0 + the sum of weight x difference, so its order does not matter.
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
from fewstep.checkpoints.folder import Stored
from fewstep.checkpoints.load import Model
from fewstep.checkpoints.lora_apply import Merge, Strength, add, additions, part_of, strength_of
from fewstep.checkpoints.lora_families import Layer, LoraLayer
from fewstep.checkpoints.lora_keys import kohya_name, parse_key
from fewstep.checkpoints.lora_metadata import legacy_hash, required_metadata, tensor_hash, usage_metadata
from fewstep.checkpoints.lora_read import Lora, cross_attention_dim, is_cross, read_lora
from fewstep.errors import LoraError, OutputError

__all__ = ["Lora", "LoraLayer", "LoraStack", "Merged", "Strength", "read_lora", "stack_of", "write_lora"]

CACHE_BYTES = 1 << 30
"""The memory that a stack may take for merged weights that are not in use, on the model's device: 1 GiB."""


@dataclass(frozen=True)
class Merged:
    """One entry of what a model carries: which LoRA, how strongly."""

    fingerprint: str
    strength: Strength


State = tuple[Merged, ...]


def state_of(loras: Iterable[Merge]) -> State:
    """What a stack's `state` is after `set(loras)`."""
    return tuple(Merged(lora.fingerprint, strength) for lora, strength in map(strength_of, loras))


_STACKS: "WeakKeyDictionary[nn.Module, LoraStack]" = WeakKeyDictionary()


def stack_of(model: Model) -> "LoraStack":
    """The one stack of a model: whoever asks for it takes out what another put in. A second stack could not know."""
    return _STACKS.get(model.unet) or _STACKS.setdefault(model.unet, LoraStack(model))


class LoraStack:
    """The LoRAs merged into one model's weights, in place. Take a model's from `stack_of`.

    `state` tells what is merged. Setting the same again does nothing; any other stack is merged anew from the untouched
    weights: `set([])` restores every bit of them. They are those of the file, where it has them exactly (half precision
    on disk, float32 here; or the same format, on a GPU); else they are kept on the CPU while they differ from the
    model's. Then, on a CPU, they are not copied, but put aside, and the merged ones' memory stays for the next LoRA:
    new memory costs more than a merge. What was merged before and is worth keeping is kept, up to `CACHE_BYTES`.
    """

    def __init__(self, model: Model) -> None:
        """A stack for `model`, which carries no LoRA yet."""
        self.state: State = ()
        self.notes: tuple[str, ...] = ()
        self._family = model.family
        self._weights = weights_of(model)
        self._stored = _stored_weights(model, self._weights)
        self._base: dict[str, Tensor] = {}
        self._spare: dict[str, Tensor] = {}
        self._worth_keeping = False
        self._cache = _Cache(CACHE_BYTES)

    @torch.no_grad()
    def set(self, loras: Sequence[Merge]) -> None:
        """Make the model carry exactly these (LoRA, weight for the UNet, weight for the text encoders), or (LoRA,
        `Strength`).

        Nothing is changed when one of them does not fit; what lenient ones have that does not fit is left out and named
        in `notes`. Sums are in float32: the order matters only by rounding.

        Raises:
            LoraError: a LoRA has modules that the model lacks, or of another shape.
            RequestError: a weight is not a finite number.
        """
        state = state_of(loras)
        if state == self.state:
            return
        shapes = {name: tuple(weight.shape) for name, weight in self._weights.items()}
        found, notes = additions(loras, shapes, label=self._family.label, text_encoders=self._family.text_encoders)
        if self._worth_keeping:
            self._cache.put(self.state, {name: self._weights[name] for name in self._base})
        held = self._cache.get(state)
        try:
            for name in [name for name in self._base if name not in found]:
                self._restore(name)
            for name, parts in found.items():
                self._merge(name, parts, held.get(name))
        except BaseException:
            self._restore_all()
            raise
        self.state, self.notes, self._worth_keeping = state, tuple(notes), self._is_costly(found)

    def _merge(self, name: str, parts: Iterable[tuple[Layer, float]], held: Tensor | None) -> None:
        weight, base = self._weights[name], self._base.get(name)
        if base is None:
            base = self._base[name] = self._put_aside(name)
        elif held is None and weight.dtype == torch.float32:
            weight.copy_(base)
        if held is not None:
            weight.copy_(held)
            return
        total = weight if weight.dtype == torch.float32 else base.to(weight.device, torch.float32)
        for layer, strength in parts:
            _add(total, base, layer, strength)
        if total is not weight:
            weight.copy_(total)

    def _put_aside(self, name: str) -> Tensor:
        """The untouched weight, on the CPU; the model's has memory of its own then."""
        weight, stored = self._weights[name], self._stored.get(name)
        if stored is not None and stored.version == weight._version:
            return stored.tensor
        self._stored.pop(name, None)  # changed since it was loaded
        base = weight.detach().to("cpu")
        if base.device == weight.device:
            spare = self._spare.pop(name, None)
            weight.data = base.clone() if spare is None else spare.copy_(base)
        return base

    def _is_costly(self, found: Mapping[str, Sequence[tuple[Layer, float]]]) -> bool:
        """Is a copy quicker than merging again? A plain LoRA on the CPU is merged as quickly as it is copied."""
        layers = (layer for parts in found.values() for layer, _ in parts)
        on_cpu = all(self._weights[name].device.type == "cpu" for name in found)
        return bool(found) and not (on_cpu and all(isinstance(layer, LoraLayer) for layer in layers))

    def _restore(self, name: str) -> None:
        weight, base = self._weights[name], self._base.pop(name)
        if name in self._stored:
            weight.copy_(base)
            self._stored[name] = Stored(base, weight._version)
        elif base.device == weight.device:
            self._spare[name], weight.data = weight.data, base
        else:
            weight.copy_(base)

    def _restore_all(self) -> None:
        for name in list(self._base):
            self._restore(name)
        self.state, self.notes, self._worth_keeping = (), (), False


class _Cache:
    """Merged weights by state, the least recently used leaving first when they take more than `limit` bytes."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._held: dict[State, dict[str, Tensor]] = {}

    def put(self, state: State, weights: Mapping[str, Tensor]) -> None:
        if _bytes(weights) > self.limit:
            return
        self._held.pop(state, None)
        while self._held and _bytes(weights) + sum(map(_bytes, self._held.values())) > self.limit:
            del self._held[next(iter(self._held))]
        self._held[state] = {name: weight.detach().clone() for name, weight in weights.items()}

    def get(self, state: State) -> dict[str, Tensor]:
        found = self._held.pop(state, {})
        if found:
            self._held[state] = found
        return found


def _bytes(weights: Mapping[str, Tensor]) -> int:
    return sum(weight.nbytes for weight in weights.values())


def _add(total: Tensor, base: Tensor, layer: Layer, strength: float) -> None:
    """`lora_apply.add` for torch; a plain LoRA's product goes straight into the sum, in one pass over it."""
    flat = total.is_contiguous()  # where the channels lie last, a flat one would be a copy
    if flat and isinstance(layer, LoraLayer) and layer.mid is None and part_of(layer, total) is total:
        up, down = (part.to(total.device, torch.float32).flatten(1) for part in (layer.up, layer.down))
        total.flatten(1).addmm_(up, down, alpha=strength * layer.scale)
    else:
        add(total, base.to(total.device, torch.float32), layer, strength)


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
        width=cross_attention_dim(LoraLayer(*pair) for name, pair in layers.items() if is_cross(name)),
        size=size,
    )
    facts |= (usage_metadata(sampling) if sampling is not None else {}) | dict(metadata or {})
    hashes = hashes_of(tensors, facts)
    write_safetensors(path, tensors, facts | hashes)
    return _read_back(path, layers, tensors, hashes["sshs_model_hash"])


def hashes_of(tensors: dict[str, Tensor], facts: Mapping[str, str]) -> dict[str, str]:
    """kohya's and ModelSpec's, of a file with the training's keys only: those nobody edits later."""
    content = save(tensors, {key: value for key, value in facts.items() if key.startswith("ss_")})
    digest = tensor_hash(BytesIO(content))
    return {
        "sshs_model_hash": digest,
        "sshs_legacy_hash": legacy_hash(content),
        "modelspec.hash_sha256": f"0x{digest}",
    }


def weights_of(model: Model) -> dict[str, Any]:
    """Every weight and bias of a linear, convolution or norm layer under the name its module has in files, biases with
    `.bias` behind it; whatever else has been put beside it.
    """
    roots = {"unet": model.unet, "text_encoder": model.text.encoders[0]}
    if len(model.text.encoders) > 1:
        roots["text_encoder_2"] = model.text.encoders[1]
    found: dict[str, Any] = {}
    for component, root in roots.items():
        for path, module in root.named_modules():
            if not isinstance(module, (nn.Linear, nn.Conv2d, nn.GroupNorm, nn.LayerNorm)) or ".lora_" in path:
                continue
            name = f"{component}.{path.removeprefix('text_model.').replace('.base_layer', '')}"
            found |= {name: module.weight} if module.weight is not None else {}
            found |= {f"{name}.bias": module.bias} if module.bias is not None else {}
    return found


def _stored_weights(model: Model, weights: Mapping[str, Any]) -> dict[str, Stored]:
    """Those of the weights that a file still holds, under the same names."""
    roots = {"unet": model.unet, "text_encoder": model.text.encoders[0], "text_encoder_2": model.text.encoders[-1]}
    ids = {
        id(weight): model.stored[f"{part}.{name}"]
        for part, root in roots.items()
        for name, weight in root.named_parameters()
        if f"{part}.{name}" in model.stored
    }
    return {name: ids[id(weight)] for name, weight in weights.items() if id(weight) in ids}


def _kohya_tensors(layers: Mapping[str, tuple[Tensor, Tensor]], alpha: float) -> dict[str, Tensor]:
    if not layers:
        raise LoraError("There are no LoRA layers to write.")
    tensors: dict[str, Tensor] = {}
    for module, (down, up) in layers.items():
        if parse_key(kohya_name(module) + ".alpha") != ("unet", module, "alpha") or not _is_sound(down, up):
            raise LoraError(f"The LoRA layer '{module}' cannot be written: its name or shapes would not be read again.")
        if not (torch.isfinite(down).all() and torch.isfinite(up).all()):
            raise LoraError(
                f"The LoRA layer '{module}' holds NaN or infinity: lower the learning rate and train again."
            )
        parts = {"lora_down.weight": down, "lora_up.weight": up, "alpha": torch.tensor(float(alpha))}
        tensors |= {f"{kohya_name(module)}.{part}": tensor for part, tensor in parts.items()}
    return {name: tensor.detach().to("cpu", copy=True).contiguous() for name, tensor in tensors.items()}


def _is_sound(down: Tensor, up: Tensor) -> bool:
    return LoraLayer(down, up).shape is not None and 0 not in (*down.shape, *up.shape)


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
