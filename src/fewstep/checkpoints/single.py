"""One file with a whole model, or a part of one: what it holds, where its weights belong, and lazily the weights.

Both layouts of `keys`, fp32, fp16, bf16 or fp8; the networks are known by shapes, never by a name. A file is mapped
into memory: a weight is read when it is used, and takes no second place while it keeps its number format.
"""

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fewstep.checkpoints import files
from fewstep.checkpoints.keys import PREFIXES, TRANSPOSED, Place, places, table
from fewstep.checkpoints.shapes import Shapes
from fewstep.errors import CheckpointError

CONFIGS, MERGES, PADS = "fewstep.configs", "fewstep.merges", "fewstep.pads"
"""Metadata of files that this package wrote: configs as json; a tokenizer's merges, and what each pads with."""

AVERAGE = "model_ema."
_SD2_TOWER = "cond_stage_model.model."
_SD2_LAYERS = 24
_IGNORED = re.compile(r"position_ids$|logit_scale$|^first_stage_model\.loss\.")
_KINDS: tuple[tuple[str, str], ...] = (
    (
        r"lora_(up|down|[AB])\b|\.lora\.|hada_w|lokr_w|oft_blocks|\.diff_b$|\.dora_scale$",
        "a LoRA and not a model: load a model, and pass this file as lora= (--lora)",
    ),
    (r"^edm_mean$", "a Playground v2.5 model, whose noise schedule (EDM) is not known here"),
    (
        r"^conditioner\.embedders\.0\.model\.",
        "the SDXL refiner: load the SDXL base model, few steps need no refiner",
    ),
    (
        r"^control_model\.|controlnet_|input_hint_block|^lllite_",
        "a ControlNet and not a model: it steers a model, which is loaded by itself",
    ),
    (r"motion_modules\.|temporal_transformer", "a motion module for video and not a model: it moves an SD model"),
    (r"^(image_proj|ip_adapter)\.", "an IP-Adapter and not a model"),
    (r"^(string_to_param|emb_params|clip_[lg])$", "a textual inversion embedding and not a model"),
    (r"joint_blocks\.|double_blocks\.|transformer_blocks\.0\.norm1\.linear", "a transformer model (SD 3, Flux, ...)"),
)
"""Marks of other files among the names -> what to say. Only SD 1.5, SD 2.x, SSD-1B, Vega and SDXL can be loaded."""

_HALF_TINY = re.compile(r"\d+\.(conv\.\d+\.)?(weight|bias)")


@dataclass(frozen=True, eq=False)
class SingleFile:
    """An opened file. `parts`: part -> diffusers' name of each weight -> (the file's name for it, where it belongs)."""

    path: Path
    shapes: Mapping[str, tuple[int, ...]]
    metadata: Mapping[str, str]
    parts: Mapping[str, Mapping[str, tuple[str, Place]]]
    notes: tuple[str, ...] = ()
    tensors: Mapping[str, Any] | None = field(default=None, repr=False)
    """Where they are in memory already (a pickle that was trusted)."""

    def open_clip(self, part: str) -> bool:
        """Is this text encoder OpenCLIP's (SD 2.x, SDXL's second) and not CLIP-L?"""
        unet = self.parts.get("unet", {})
        linear = any(name.endswith(".proj_in.weight") and len(self.shapes[key]) == 2 for name, (key, _) in unet.items())
        return part == "text_encoder_2" or (linear and "add_embedding.linear_1.weight" not in unet)

    def part_shapes(self, part: str) -> Shapes:
        """diffusers' names of a part's weights -> their shapes."""
        return {name: self._shape(*entry) for name, entry in self.parts[part].items()}

    def _shape(self, key: str, place: Place) -> tuple[int, ...]:
        shape = self.shapes[key]
        if place.third is not None and shape:
            return (shape[0] // 3, *shape[1:])
        return shape[::-1] if _is_transposed(key, place) else shape

    def read(self, part: str) -> dict[str, Any]:
        """A part's tensors by diffusers' names, as stored; raises CheckpointError as `files.read_tensors` does."""
        wanted = {key for key, _ in self.parts[part].values()}
        if self.tensors is None:
            found = files.read_tensors(self.path, only=wanted)
        else:
            found = {key: self.tensors[key] for key in wanted}
            files.check_finite(found, self.path)
        return {name: cut(found[key], key, place) for name, (key, place) in self.parts[part].items()}

    def read_one(self, part: str, name: str) -> Any:
        """One tensor that is whole in the file."""
        key = self.parts[part][name][0]
        return self.tensors[key] if self.tensors is not None else files.read_tensors(self.path, only={key})[key]


def _is_transposed(key: str, place: Place) -> bool:
    return place.name == "text_projection.weight" and key.endswith(TRANSPOSED)


def part_in_file(part: str) -> str:
    """What a file of its own calls a part: a tiny autoencoder's holds a VAE.

    >>> part_in_file("tiny_vae"), part_in_file("unet")
    ('vae', 'unet')
    """
    return "vae" if part == "tiny_vae" else part


def cut(tensor: Any, key: str, place: Place) -> Any:
    """What of the file's tensor (or array) `key` is the weight that belongs to `place`."""
    if place.third is not None:
        third = tensor.shape[0] // 3
        return tensor[place.third * third : (place.third + 1) * third]
    if not _is_transposed(key, place):
        return tensor
    return tensor.t().contiguous() if hasattr(tensor, "t") else tensor.T


def open_single(path: Path, *, trust_pickle: bool = False) -> SingleFile:
    """What a file holds, from its header alone.

    Raises CheckpointError when it is missing, damaged, a pickle (unless trusted), or neither a model nor a part of one.
    """
    tensors = None
    if trust_pickle and path.suffix.lower() in files.PICKLES:
        tensors = files.read_pickle(path)
        shapes, metadata = {key: tuple(tensor.shape) for key, tensor in tensors.items()}, {}
    else:
        shapes, metadata = files.read_header(path)
    _refuse_others(path, shapes, metadata)
    keys = _prefixed(shapes)
    if not keys:
        raise CheckpointError(_unknown(path, shapes))
    return SingleFile(path, shapes, metadata, _parts(keys), _notes(shapes, keys), tensors)


def _refuse_others(path: Path, shapes: Collection[str], metadata: Mapping[str, str]) -> None:
    if "ss_network_module" in metadata:
        raise CheckpointError(f"'{path}' is {_KINDS[0][1]}.")
    for mark, what in _KINDS:
        if any(re.search(mark, key) for key in shapes):
            raise CheckpointError(f"'{path}' is {what}.")


def _unknown(path: Path, shapes: Collection[str]) -> str:
    if shapes and all(_HALF_TINY.fullmatch(key) for key in shapes):
        return (
            f"'{path}' is one half of a tiny autoencoder: get the file that holds encoder and decoder (diffusers' "
            "diffusion_pytorch_model.safetensors)."
        )
    first = f"{len(shapes)} tensors, first '{next(iter(shapes))}'" if shapes else "no tensors"
    return f"'{path}' holds {first}, in no layout that is known here: give an SD 1.x, SD 2.x or SDXL checkpoint."


def _prefixed(shapes: Collection[str]) -> dict[str, tuple[str, str]]:
    """The file's names -> (what stands before, the part), for those that belong to a model."""
    found = {key: entry for key in shapes for entry in PREFIXES if key.startswith(entry[0])}
    if not any(part == "unet" for _, part in found.values()) and any(key.startswith(AVERAGE) for key in shapes):
        found |= {key: (AVERAGE, "unet") for key in shapes if key.startswith(AVERAGE)}
    if found:
        return {key: entry for key, entry in found.items() if not _IGNORED.search(key)}
    if "input_blocks.0.0.weight" in shapes or "down_blocks.0.resnets.0.conv1.weight" in shapes:
        return dict.fromkeys(shapes, ("", "unet"))
    if "decoder.conv_in.weight" in shapes or "decoder.layers.0.weight" in shapes:
        return dict.fromkeys(shapes, ("", "vae"))
    return {}


def _parts(keys: Mapping[str, tuple[str, str]]) -> dict[str, dict[str, tuple[str, Place]]]:
    """The weights of every part."""
    parts: dict[str, dict[str, tuple[str, Place]]] = {}
    for prefix, part in dict.fromkeys(keys.values()):
        inside = {key.removeprefix(prefix): key for key, entry in keys.items() if entry == (prefix, part)}
        if prefix == AVERAGE:
            inside = _named_average(inside)
        if prefix == _SD2_TOWER:
            inside = _used_layers(inside)
        for name, found in places(part, inside).items():
            if part != "text_encoder" or not name.endswith("text_projection.weight"):
                parts.setdefault(part, {}).update({place.name: (inside[name], place) for place in found})
    return parts


def _named_average(inside: Mapping[str, str]) -> dict[str, str]:
    """An average's names have lost their dots: `model_ema.diffusion_modelinput_blocks00weight`."""
    flat = {f"diffusion_model{name.replace('.', '')}": name for name in table("unet")}
    return {flat.get(name, name): key for name, key in inside.items() if name not in ("decay", "num_updates")}


def _used_layers(inside: dict[str, str]) -> dict[str, str]:
    """SD 2.x reads the last layer but one of its OpenCLIP tower: a whole tower's last layer and projection go."""
    layers = 0
    while f"transformer.resblocks.{layers}.ln_1.weight" in inside:
        layers += 1
    if TRANSPOSED not in inside and layers != _SD2_LAYERS:
        return inside
    last = f"transformer.resblocks.{layers - 1}."
    return {name: key for name, key in inside.items() if name != TRANSPOSED and not name.startswith(last)}


def _notes(shapes: Collection[str], keys: Collection[str]) -> tuple[str, ...]:
    """What is left unread, in words."""
    rest = [key for key in shapes if key not in keys and not _IGNORED.search(key)]
    average = [key for key in rest if key.startswith(AVERAGE)]
    other = len(rest) - len(average)
    notes = [f"{len(average)} averaged weights (model_ema.) left unread, as other programs do"] if average else []
    first = next((key for key in rest if not key.startswith(AVERAGE)), None)
    return (*notes, *([f"{other} tensors of no part of a model left unread, first '{first}'"] if first else []))
