"""A model's parts, from a diffusers folder or a single file, as modules with checked weights.

Modules are built on the "meta" device, which allots and initialises nothing, and then take the file's own tensors.
diffusers and transformers are imported when a part is built, and only the classes of networks.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from fewstep.checkpoints.arrays import vae_name, weight_files
from fewstep.checkpoints.files import check_finite, read_json, read_tensors
from fewstep.checkpoints.hub import PARTS
from fewstep.checkpoints.single import MERGES, PADS, SingleFile, part_in_file
from fewstep.checkpoints.vocabulary import MARKS, clip_merges, tokenizer_of
from fewstep.errors import CheckpointError

_NUMBER_FORMAT = ("dtype", "torch_dtype")
_HARMLESS = ("position_ids", "text_projection.weight", "logit_scale")


Source: TypeAlias = Path | SingleFile
"""Where a part is: a diffusers folder, or an opened file."""


@dataclass(frozen=True)
class Stored:
    """A weight as its file has it, mapped from disk, and the `_version` that the loaded one has until it is changed."""

    tensor: Tensor
    version: int


def load_part(
    source: Source, part: str, config: Mapping[str, Any], *, device: str, dtype: torch.dtype | None = None
) -> tuple[Any, dict[str, Stored]]:
    """One part ("unet", "vae", "text_encoder", "text_encoder_2") with its weights, in eval mode, without gradients;
    and those of them that the file holds still, exactly and in memory of its own.

    dtype None keeps every weight in the number format it is stored in. Raises CheckpointError naming the file when
    weights are missing, of the wrong shape, not finite, not floating-point numbers or unknown.
    """
    module = _build(config_path(source, part), part, config)
    file, tensors = _read(source, part)
    tensors = _renamed(tensors, part, set(module.state_dict()))
    _check_shapes(module, tensors, file)
    ready = {name: tensor.to(device, dtype) for name, tensor in tensors.items()}
    if dtype == torch.float16:
        _check_overflow(ready, file)
    module.load_state_dict(ready, assign=True, strict=True)
    _fill_position_ids(module, device)
    stored = {
        name: Stored(tensor, ready[name]._version) for name, tensor in tensors.items() if _holds(tensor, ready[name])
    }
    return module.eval().requires_grad_(False), stored


def _holds(stored: Tensor, loaded: Tensor) -> bool:
    """Is the stored tensor, in memory of its own, what the loaded one was made from without loss?"""
    wider = loaded.dtype == torch.float32 and stored.element_size() < loaded.element_size()
    return stored is not loaded and (wider or stored.dtype == loaded.dtype)


def config_path(source: Source, part: str) -> Path:
    """The file that says what a part is: its config.json, or the single file."""
    return source.path if isinstance(source, SingleFile) else source / part / "config.json"


def _read(source: Source, part: str) -> tuple[Path, dict[str, Tensor]]:
    """(a file to name in errors, the part's tensors)."""
    if isinstance(source, SingleFile):
        return source.path, source.read(part_in_file(part))
    files = weight_files(source / part, PARTS[part])
    return files[0], {name: tensor for file in files for name, tensor in read_tensors(file).items()}


def _build(path: Path, part: str, config: Mapping[str, Any]) -> nn.Module:
    try:
        with torch.device("meta"):
            return _text_module(part, config) if part.startswith("text") else _diffusers_module(path, part, config)
    except CheckpointError:
        raise
    except Exception as error:  # noqa: BLE001 - configs are checked by three libraries, each with its own exceptions
        raise CheckpointError(f"'{path}' describes a {part} that cannot be built ({_first_line(error)}).") from None


def _first_line(error: Exception) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__


def _diffusers_module(path: Path, part: str, config: Mapping[str, Any]) -> Any:
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
    from diffusers.models.autoencoders.autoencoder_tiny import AutoencoderTiny
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel

    known = {"UNet2DConditionModel": UNet2DConditionModel} if part == "unet" else {}
    if part.endswith("vae"):
        known = {"AutoencoderKL": AutoencoderKL, "AutoencoderTiny": AutoencoderTiny}
    name = config.get("_class_name", next(iter(known)))
    if name not in known:
        raise CheckpointError(f"'{path}' is of a {name}; known here: {', '.join(known)}.")
    return known[name].from_config(dict(config))


def _text_module(part: str, config: Mapping[str, Any]) -> Any:
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    kind = CLIPTextModel if part == "text_encoder" else CLIPTextModelWithProjection
    return kind(CLIPTextConfig.from_dict({key: value for key, value in config.items() if key not in _NUMBER_FORMAT}))


def _renamed(tensors: Mapping[str, Tensor], part: str, expected: set[str]) -> dict[str, Tensor]:
    """Names as these versions of the libraries have them: CLIP's with or without text_model., the VAE's attention."""
    if part.endswith("vae"):
        return {vae_name(name): _linear(name, tensor) for name, tensor in tensors.items()}
    if part == "unet":
        return dict(tensors)
    flat = {name.removeprefix("text_model."): tensor for name, tensor in tensors.items()}
    names = {name.removeprefix("text_model."): name for name in expected}
    kept = {name: tensor for name, tensor in flat.items() if name in names or not name.endswith(_HARMLESS)}
    return {names.get(name, name): tensor for name, tensor in kept.items()}


def _linear(name: str, tensor: Tensor) -> Tensor:
    """Old autoencoders keep their attention as convolutions of one pixel."""
    return tensor[:, :, 0, 0] if ".attentions." in name and tensor.ndim == 4 else tensor


def _check_shapes(module: nn.Module, tensors: Mapping[str, Tensor], file: Path) -> None:
    expected = {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}
    missing = [name for name in expected if name not in tensors]
    if missing:
        raise CheckpointError(
            f"'{file}' lacks {len(missing)} of {len(expected)} weights that its config asks for, such as "
            f"'{missing[0]}': it is of another model, or damaged."
        )
    unknown = [name for name in tensors if name not in expected]
    if unknown:
        raise CheckpointError(
            f"'{file}' holds {len(unknown)} weights that its config does not know, such as '{unknown[0]}': "
            "the config is of another model."
        )
    for name, shape in expected.items():
        if tuple(tensors[name].shape) != shape:
            raise CheckpointError(
                f"'{file}' holds '{name}' of shape {list(tensors[name].shape)} where its config asks for {list(shape)}."
            )
        if not tensors[name].is_floating_point():
            raise CheckpointError(f"'{file}' holds '{name}' as {tensors[name].dtype}, not as floating-point numbers.")


def _check_overflow(tensors: Mapping[str, Tensor], file: Path) -> None:
    try:
        check_finite(tensors, file)
    except CheckpointError:
        raise CheckpointError(f"'{file}' holds weights beyond float16's range. Use dtype bf16 or fp32.") from None


def _fill_position_ids(module: nn.Module, device: str) -> None:
    """The one buffer that no file holds: 0, 1, 2, ... for CLIP's positions."""
    for inner in module.modules():
        for name, buffer in inner.named_buffers(recurse=False):
            if buffer.is_meta:
                ids = torch.arange(buffer.shape[-1], device=device).expand(tuple(buffer.shape))
                setattr(inner, name, nn.Buffer(ids, persistent=False))


def load_tokenizer(folder: Source, part: str) -> Any:
    """A CLIP tokenizer from vocab.json and merges.txt, or tokenizer.json, or the package, without any network."""
    from transformers import CLIPTokenizer

    if isinstance(folder, SingleFile):
        return _own_tokenizer(folder, part)
    inside = folder / part
    whole = (inside / "tokenizer.json").is_file()
    missing = [name for name in ("vocab.json", "merges.txt") if not (inside / name).is_file()]
    if missing and not whole:
        raise CheckpointError(f"'{inside / missing[0]}' is missing: the model folder is incomplete. Copy it again.")
    if (inside / "tokenizer_config.json").is_file():
        read_json(inside / "tokenizer_config.json")
    try:
        return CLIPTokenizer.from_pretrained(str(inside), local_files_only=True)
    except Exception as error:  # noqa: BLE001 - the tokenizers library raises bare Exception
        raise CheckpointError(f"The tokenizer in '{inside}' cannot be read ({_first_line(error)}).") from None


def _own_tokenizer(file: SingleFile, part: str) -> Any:
    """What the file recorded of its tokenizer, else CLIP's."""
    merges, pads = file.metadata.get(MERGES), file.metadata.get(PADS, "").split(" ")
    number = int(part.endswith("_2"))
    usual = "!" if file.open_clip(part.replace("tokenizer", "text_encoder")) else MARKS[1]
    pad = pads[number] if number < len(pads) and pads[number] else usual
    return tokenizer_of(tuple(merges.split("\n")) if merges else clip_merges(), pad=pad)
