"""LoRA files of every naming, read: which layers, how strong, and how the LoRA wants to be sampled.

Nothing here imports torch unless torch tensors are asked for.
"""

import hashlib
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

from fewstep.checkpoints.description import Sampling
from fewstep.checkpoints.files import read_arrays, read_header, read_tensors
from fewstep.checkpoints.lora_keys import Component, Key, Part, parse_key, unsupported
from fewstep.checkpoints.lora_metadata import PeftConfigs, peft_configs, sampling_of, tensor_hash
from fewstep.errors import LoraError
from fewstep.models.family import Family

Array: TypeAlias = Any
"""A torch tensor or a numpy array."""

CONSISTENCY_SAMPLERS = ("lcm", "tcd", "pcm")
_LABELS = {768: "SD 1.5", 1024: "SD 2.x", 2048: "SDXL", 160: "pictogram"}


@dataclass(frozen=True, eq=False)
class LoraLayer:
    """What a LoRA adds to one module.

    Linear: down [rank, in], up [out, rank]. Convolution: down [rank, in, height, width], up [out, rank, 1, 1]; or with
    mid [rank, rank, height, width] and down [rank, in, 1, 1].
    """

    down: Array
    up: Array
    alpha: float
    mid: Array | None = None

    @property
    def rank(self) -> int:
        """The inner width, by which alpha is divided."""
        return self.down.shape[0]


@dataclass(frozen=True, eq=False)
class Lora:
    """A LoRA as read: `layers` by module name, `text_layers` by `text_encoder.<module>`, `text_encoder_2.<module>`."""

    name: str
    path: Path
    layers: dict[str, LoraLayer]
    text_layers: dict[str, LoraLayer]
    metadata: dict[str, str]
    sampling: Sampling | None
    hash: str
    """sha256 of the tensors, by which user interfaces name a LoRA (they show the first 12 letters)."""

    @property
    def is_consistency(self) -> bool:
        """Is this an LCM-LoRA or one of its kin, which makes a model sample in few steps?"""
        return self.sampling is not None and self.sampling.sampler in CONSISTENCY_SAMPLERS

    @property
    def fingerprint(self) -> str:
        """What tells two LoRAs apart: the tensors, and the alphas, which PEFT keeps outside of them."""
        alphas = [layer.alpha for layer in (*self.layers.values(), *self.text_layers.values())]
        return hashlib.sha256(f"{self.hash} {alphas}".encode()).hexdigest()


def read_lora(path: str | Path, *, family: Family | None = None, numpy: bool = False) -> Lora:
    """Read a LoRA of any naming in `lora_keys`, whole or not at all; as torch tensors, or as numpy arrays.

    Raises:
        LoraError: the file is not a LoRA, of a format not read yet, incomplete, has keys that fit nowhere, or was made
            for another family than `family` (not checked when None).
        CheckpointError: the file is missing, cut short, no safetensors file, or holds NaN or infinity.
    """
    path = Path(path)
    shapes, metadata = read_header(path)
    keys = _places(path.name, list(shapes))
    layers = _layers(path.name, keys, read_arrays(path) if numpy else read_tensors(path), peft_configs(metadata, path))
    unet = {module: layer for (component, module), layer in layers.items() if component == "unet"}
    text = {f"{component}.{module}": layer for (component, module), layer in layers.items() if component != "unet"}
    if family is not None:
        _check_family(path.name, unet, text, family)
    return Lora(path.stem, path, unet, text, metadata, sampling_of(metadata, path), _hash(path))


def _places(name: str, keys: list[str]) -> dict[str, Key]:
    found = unsupported(keys)
    if found is not None:
        what, key = found
        raise LoraError(
            f"'{name}' is {what} (its key '{key}'), a format that is not read yet. Use a LoRA or LoCon file."
        )
    places = {key: parse_key(key) for key in keys}
    unknown = [key for key, place in places.items() if place is None]
    if len(unknown) == len(keys):
        what = f"{len(keys)} tensors, first '{keys[0]}'" if keys else "no tensors"
        raise LoraError(f"'{name}' is not a LoRA: it holds {what}. If it is a checkpoint, load it as the model.")
    if unknown:
        raise LoraError(
            f"'{name}' has {len(unknown)} keys of {len(keys)} that fit no known module, first '{unknown[0]}'."
        )
    return {key: place for key, place in places.items() if place is not None}


def _layers(
    name: str, places: Mapping[str, Key], tensors: Mapping[str, Array], configs: PeftConfigs
) -> dict[tuple[Component, str], LoraLayer]:
    groups: dict[tuple[Component, str], dict[Part, Array]] = {}
    for key, (component, module, part) in places.items():
        group = groups.setdefault((component, module), {})
        if part in group:
            raise LoraError(f"'{name}' has '{part}' of the module '{module}' twice, the second time as '{key}'.")
        group[part] = tensors[key]
    return {place: _layer(name, place, group, configs) for place, group in groups.items()}


def _layer(name: str, place: tuple[Component, str], parts: Mapping[Part, Array], configs: PeftConfigs) -> LoraLayer:
    component, module = place
    for part in ("down", "up"):
        if part not in parts:
            raise LoraError(f"'{name}' is incomplete: the module '{module}' has {' and '.join(parts)} but no '{part}'.")
    down, up, mid = parts["down"], parts["up"], parts.get("mid")
    if not is_sound(down, up, mid):
        shapes = ", ".join(f"{part} {list(tensor.shape)}" for part, tensor in parts.items() if part != "alpha")
        raise LoraError(f"'{name}' is damaged: the shapes of the module '{module}' do not fit one another ({shapes}).")
    if "alpha" not in parts:
        return LoraLayer(down, up, configs.alpha(component, module, rank=down.shape[0]), mid)
    if math.prod(parts["alpha"].shape) != 1:
        raise LoraError(f"'{name}' is damaged: the alpha of the module '{module}' is not one number.")
    return LoraLayer(down, up, float(parts["alpha"]), mid)


def is_sound(down: Array, up: Array, mid: Array | None) -> bool:
    """Do the shapes of these parts fit one another?"""
    if down.ndim not in (2, 4) or up.ndim not in (2, 4) or 0 in down.shape or up.shape[1] != down.shape[0]:
        return False
    if math.prod(up.shape[2:]) != 1:
        return False
    return mid is None or (mid.shape[:2] == (down.shape[0],) * 2 and mid.ndim == 4 and math.prod(down.shape[2:]) == 1)


def _hash(path: Path) -> str:
    with path.open("rb") as file:
        return tensor_hash(file)


def _check_family(name: str, unet: Mapping[str, LoraLayer], text: Mapping[str, LoraLayer], family: Family) -> None:
    width = cross_attention_dim(layer for module, layer in unet.items() if is_cross(module))
    if width is None:
        width = _width_by_text(text, family)
    if width is None or width == family.cross_attention_dim:
        return
    label = _LABELS.get(width)
    load = f"an {label} checkpoint" if label else "the checkpoint it was made for"
    raise LoraError(
        f"'{name}' is a LoRA for {label or 'another family'} (cross-attention {width}) but the model is {family.label} "
        f"({family.cross_attention_dim}). Load {load}, or a LoRA made for {family.label}."
    )


def _width_by_text(text: Mapping[str, LoraLayer], family: Family) -> int | None:
    """For a LoRA without cross-attention: the width that its text encoders would feed, None if they do not tell."""
    widths = {name.partition(".")[0]: layer.down.shape[1] for name, layer in text.items() if name.endswith(".q_proj")}
    return sum(widths.values()) if len(widths) in (family.text_encoders, 2) else None


def is_cross(module: str) -> bool:
    """Does this module read the text?"""
    return module.endswith((".attn2.to_k", ".attn2.to_v"))


def cross_attention_dim(layers: Iterable[LoraLayer]) -> int | None:
    """The width of the text that these layers read, None where there are none."""
    return next((layer.down.shape[1] for layer in layers), None)
