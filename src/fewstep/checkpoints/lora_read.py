"""LoRA files of every naming, read: which layers, how strong, and how the LoRA wants to be sampled.

Nothing here imports torch unless torch tensors are asked for.
"""

import hashlib
import math
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, TypeAlias

from fewstep.checkpoints.description import Sampling
from fewstep.checkpoints.embedding import Embedding, bundled, is_embedding
from fewstep.checkpoints.files import read_arrays, read_header, read_tensors
from fewstep.checkpoints.lora_families import BiasIa3, Diff, Layer, Lokr, alpha_of, build, tensors_of, with_alpha
from fewstep.checkpoints.lora_keys import Component, Key, parse_key, unsupported
from fewstep.checkpoints.lora_metadata import PeftConfigs, peft_configs, sampling_of, tensor_hash
from fewstep.errors import CheckpointError, LoraError
from fewstep.models.family import Family

Array: TypeAlias = Any
"""A torch tensor or a numpy array."""

CONSISTENCY_SAMPLERS = ("lcm", "tcd", "pcm")
LARGEST = 1 << 17
"""No weight or rank of these models is as large; a file that says so would only fill the memory."""

_DIGEST = re.compile(r"[0-9a-f]{12,64}")
_LABELS = {768: "SD 1.5", 1024: "SD 2.x", 2048: "SDXL", 160: "pictogram"}


@dataclass(frozen=True, eq=False)
class Lora:
    """A LoRA as read: `layers` by module name, `text_layers` by `text_encoder.<module>`, `text_encoder_2.<module>`.

    What is added to a bias stands under `<module>.bias`. `skipped` are the keys that a lenient reading left out.
    """

    name: str
    path: Path
    layers: dict[str, Layer]
    text_layers: dict[str, Layer]
    metadata: dict[str, str]
    sampling: Sampling | None
    hash: str
    """sha256 of the tensors."""

    embeddings: tuple[Embedding, ...] = ()
    skipped: tuple[str, ...] = ()
    lenient: bool = False

    @property
    def short_hash(self) -> str:
        """The 12 letters by which A1111 names it: of what its metadata say is its hash, else of its tensors' own."""
        said = self.metadata.get("sshs_model_hash", "")
        return (said if _DIGEST.fullmatch(said) else self.hash)[:12]

    @property
    def all_layers(self) -> dict[str, Layer]:
        """Those of the UNet, by `unet.<module>`, and of the text encoders."""
        return {f"unet.{name}": layer for name, layer in self.layers.items()} | self.text_layers

    @property
    def families(self) -> tuple[str, ...]:
        """The families of its layers, such as LoRA or DoRA."""
        return tuple(sorted({layer.label for layer in self.all_layers.values()}))

    @property
    def notes(self) -> tuple[str, ...]:
        """What in the file has no effect, by name, one sentence each."""
        return tuple(f"'{self.path.name}': not applied: {what}." for what in self.skipped)

    @property
    def is_consistency(self) -> bool:
        """Is this an LCM-LoRA or one of its kin, which makes a model sample in few steps?"""
        return self.sampling is not None and self.sampling.sampler in CONSISTENCY_SAMPLERS

    @cached_property
    def fingerprint(self) -> str:
        """What tells two LoRAs apart: the tensors, and the alphas, which PEFT keeps outside of them."""
        alphas = [alpha_of(layer) for layer in (*self.layers.values(), *self.text_layers.values())]
        return hashlib.sha256(f"{self.hash} {alphas}".encode()).hexdigest()


def read_lora(path: str | Path, *, family: Family | None = None, numpy: bool = False, lenient: bool = False) -> Lora:
    """Read a LoRA of any naming in `lora_keys` and family in `lora_families`; as torch tensors, or as numpy arrays.

    It is read whole or not at all, unless `lenient`: then keys that fit nowhere are left out, and named in `skipped`.

    Raises:
        LoraError: the file is missing, damaged or holds NaN, is not a LoRA, of a format that is not read, incomplete,
            has keys that fit nowhere, or was made for another family than `family` (not checked when None).
    """
    path = Path(path)
    try:
        shapes, metadata = read_header(path)
        _check_sizes(path.name, shapes)
        places, skipped = _places(path.name, list(shapes), lenient)
        tensors = read_arrays(path) if numpy else read_tensors(path)
    except CheckpointError as error:
        raise error if isinstance(error, LoraError) else LoraError(str(error)) from None
    layers = _layers(path.name, places, tensors, peft_configs(metadata, path))
    unet = {module: layer for (component, module), layer in layers.items() if component == "unet"}
    text = {f"{component}.{module}": layer for (component, module), layer in layers.items() if component != "unet"}
    if family is not None:
        _check_family(path.name, unet, text, family)
    sampling, digest = sampling_of(metadata, path), _hash(path)
    return Lora(
        path.stem, path, unet, text, metadata, sampling, digest, bundled(tensors, path.name), tuple(skipped), lenient
    )


def _check_sizes(name: str, shapes: Mapping[str, tuple[int, ...]]) -> None:
    for key, shape in shapes.items():
        if max(shape, default=0) > LARGEST:
            raise LoraError(f"'{name}' is damaged: '{key}' would have the shape {list(shape)}. Get it again.")


def _places(name: str, keys: list[str], lenient: bool) -> tuple[dict[str, Key], list[str]]:
    own = [key for key in keys if not key.startswith("bundle_emb.")]
    places = {key: parse_key(key) for key in own}
    unknown = [key for key, place in places.items() if place is None]
    found = unsupported(own)
    if found is not None and not (lenient and len(unknown) < len(own)):
        what, key = found
        raise LoraError(f"'{name}' is {what} (its key '{key}'), a format that is not read. Use another kind of LoRA.")
    if len(unknown) == len(own):
        what = f"{len(keys)} tensors, first '{keys[0]}'" if keys else "no tensors"
        if is_embedding(keys):
            raise LoraError(f"'{name}' is a textual inversion, not a LoRA: it holds {what}. Use it as an embedding.")
        raise LoraError(f"'{name}' is not a LoRA: it holds {what}. If it is a checkpoint, load it as the model.")
    if unknown and not lenient:
        raise LoraError(
            f"'{name}' has {len(unknown)} keys of {len(keys)} that fit no known module, first '{unknown[0]}'."
        )
    return {key: place for key, place in places.items() if place is not None}, unknown


def _layers(
    name: str, places: Mapping[str, Key], tensors: Mapping[str, Array], configs: PeftConfigs
) -> dict[tuple[Component, str], Layer]:
    groups: dict[tuple[Component, str], dict[str, Array]] = {}
    for key, (component, module, part) in places.items():
        group = groups.setdefault((component, module), {})
        if part in group:
            raise LoraError(f"'{name}' has '{part}' of the module '{module}' twice, the second time as '{key}'.")
        group[part] = tensors[key]
    layers: dict[tuple[Component, str], Layer] = {}
    for (component, module), parts in groups.items():
        for where, layer in _of_module(name, component, module, parts, configs):
            layers[component, where] = layer
    return layers


def _of_module(
    name: str, component: Component, module: str, parts: Mapping[str, Array], configs: PeftConfigs
) -> Iterator[tuple[str, Layer]]:
    """What a module's parts add to its weight, and to its bias."""
    numbers = {part: _number(name, module, part, parts[part]) for part in ("alpha", "on_input") if part in parts}
    if found := parts.keys() & {"ia3_l", "oft_R"}:
        part = found.pop()
        numbers |= configs.numbers(component, module, part, name=name)
    if "ia3_l" in parts:
        parts = {part: tensor for part, tensor in parts.items() if part != "ia3_l"} | {"weight": parts["ia3_l"] - 1}
        if not numbers["on_input"]:
            yield f"{module}.bias", BiasIa3(parts["weight"], 0.0)
    weight_parts = {part: tensor for part, tensor in parts.items() if part not in ("bias", "diff_b")} | numbers
    layer = None
    if weight_parts or not parts.keys() & {"diff_b"}:
        layer = _layer(name, module, weight_parts)
        if "alpha" not in parts and layer.rank is not None:
            layer = with_alpha(layer, configs.alpha(component, module, rank=layer.rank))
        elif isinstance(layer, Lokr) and layer.rank is None and layer.lokr_w1 is not None:
            layer = replace(layer, lokr_w1=layer.lokr_w1 * configs.whole_scale(component, module))
        yield module, layer
    if "diff_b" in parts:
        yield f"{module}.bias", Diff(parts["diff_b"])
    if "bias" in parts:
        scale = (alpha_of(layer) or 0.0) / (layer.rank or 1) if layer is not None else 1.0
        yield f"{module}.bias", Diff(parts["bias"] * scale)


def _layer(name: str, module: str, parts: Mapping[str, Any]) -> Layer:
    try:
        layer = build(parts)
    except ValueError as error:
        raise LoraError(f"'{name}' is incomplete: the module '{module}' {error}.") from None
    if layer.shape is None or any(0 in tensor.shape for tensor in tensors_of(layer)):
        shapes = ", ".join(f"{part} {list(tensor.shape)}" for part, tensor in parts.items() if hasattr(tensor, "shape"))
        raise LoraError(f"'{name}' is damaged: the shapes of the module '{module}' do not fit one another ({shapes}).")
    if max(size or 0 for size in layer.shape) > LARGEST:
        raise LoraError(f"'{name}' is damaged: '{module}' would have the shape {list(layer.shape)}. Get it again.")
    return layer


def _number(name: str, module: str, part: str, found: Array) -> float:
    if math.prod(found.shape) != 1:
        raise LoraError(f"'{name}' is damaged: the {part} of the module '{module}' is not one number.")
    return float(found.reshape(()))


def _hash(path: Path) -> str:
    with path.open("rb") as file:
        return tensor_hash(file)


def _check_family(name: str, unet: Mapping[str, Layer], text: Mapping[str, Layer], family: Family) -> None:
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


def _width_by_text(text: Mapping[str, Layer], family: Family) -> int | None:
    """For a LoRA without cross-attention: the width that its text encoders would feed, None if they do not tell."""
    queries = {name.partition(".")[0]: width_of(layer) for name, layer in text.items() if name.endswith(".q_proj")}
    widths = [width for width in queries.values() if width is not None]
    return sum(widths) if len(widths) == len(queries) and len(widths) in (family.text_encoders, 2) else None


def is_cross(module: str) -> bool:
    """Does this module read the text?"""
    return module.endswith((".attn2.to_k", ".attn2.to_v"))


def cross_attention_dim(layers: Iterable[Layer]) -> int | None:
    """The width of the text that these layers read, None where there are none that tell."""
    return next((width for layer in layers if (width := width_of(layer)) is not None), None)


def width_of(layer: Layer) -> int | None:
    """How many inputs a layer's weight has, None where its family does not tell."""
    return layer.shape[1] if layer.shape is not None and len(layer.shape) > 1 else None
