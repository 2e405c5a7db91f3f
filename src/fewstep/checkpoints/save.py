"""A model as a diffusers folder, that diffusers' own from_pretrained reads too."""

import json
import shutil
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fewstep.checkpoints.description import FINISHES, METADATA
from fewstep.checkpoints.files import write_json, write_safetensors, write_whole
from fewstep.checkpoints.hub import PARTS
from fewstep.checkpoints.load import Model, schedule_from
from fewstep.checkpoints.vocabulary import tokenizer_files
from fewstep.device import DTYPES
from fewstep.errors import DeviceError, OutputError
from fewstep.sampling.schedule import Schedule

_CLASSES = {"lcm": "LCMScheduler", "tcd": "TCDScheduler"}


def save_model(model: Model, folder: str | Path, *, dtype: str | None = None) -> Path:
    """Writes the model as it is now, merged LoRAs included, and returns the folder.

    dtype ("fp16", "bf16", "fp32") is the number format on disk; default the model's own. Each file is written whole
    or not at all. Raises OutputError when it cannot be written, DeviceError for an unknown dtype.
    """
    root, number = Path(folder).expanduser(), number_format(dtype)
    if root.exists() and not root.is_dir():
        raise OutputError(f"'{root}' is a file; give the name of a folder.")
    for part, module in modules_of(model).items():
        _save_part(root / part, part, module, number)
    if model.tiny_vae is not None:  # model_index.json does not name it: no other program looks for one
        said = {FINISHES: True} if model.tiny == "pictures" else {}
        _save_part(root / "tiny_vae", "tiny_vae", model.tiny_vae, number, **said)
    for part, tokenizer in zip(("tokenizer", "tokenizer_2"), model.text.tokenizers, strict=False):
        _save_tokenizer(model.path / part, root / part, tokenizer)
    noise_config = noise_config_of(model)
    write_json(root / "scheduler" / "scheduler_config.json", noise_config)
    record = asdict(model.sampling)
    del record["embedded_guidance"]
    write_json(root / "fewstep.json", record)
    if model.metadata:
        write_json(root / METADATA, model.metadata)
    write_json(root / "model_index.json", model_index_of(model, noise_config["_class_name"]))
    return root


def _save_part(folder: Path, part: str, module: Any, number: torch.dtype | None, **said: Any) -> None:
    tensors = {name: cast(tensor, number) for name, tensor in named(module).items()}
    write_safetensors(folder / f"{PARTS[part]}.safetensors", tensors)
    write_json(folder / "config.json", config_of(module) | said)


def number_format(dtype: str | None) -> torch.dtype | None:
    """The torch dtype of a name; None stays None. Raises DeviceError for an unknown one."""
    if dtype is None:
        return None
    if dtype.lower() not in DTYPES:
        raise DeviceError(f"There is no number format called {dtype!r}. Use fp32, fp16 or bf16.")
    return getattr(torch, DTYPES[dtype.lower()])


def modules_of(model: Model) -> dict[str, Any]:
    """The model's networks by the name of their part."""
    encoders = zip(("text_encoder", "text_encoder_2"), model.text.encoders, strict=False)
    return {"unet": model.unet, "vae": model.vae, **dict(encoders)}


def cast(tensor: Tensor, number: torch.dtype | None) -> Tensor:
    """The tensor in another number format, or (None) as it is."""
    return tensor if number is None or not tensor.is_floating_point() else tensor.to(number)


def named(module: Any) -> dict[str, Tensor]:
    """Weights by the names that every program knows: CLIP's begin with text_model."""
    state = module.state_dict()
    if "CLIP" not in type(module).__name__:
        return dict(state)
    known = ("text_model.", "text_projection.")
    return {name if name.startswith(known) else f"text_model.{name}": tensor for name, tensor in state.items()}


def config_of(module: Any) -> dict[str, Any]:
    """A module's config without the path it was loaded from.

    transformers loads weights in the format they are stored in unless the config names one, diffusers in float32: left
    unsaid, an fp16 folder would open as a pipeline that is half one and half the other.
    """
    if hasattr(module, "to_json_string"):
        config, unsaid = json.loads(module.to_json_string()), {}
    else:
        config = module.config.to_dict() | {"architectures": [type(module).__name__]}
        unsaid = {"dtype": "float32"}
    kept = {key: value for key, value in config.items() if key not in ("_name_or_path", "dtype", "torch_dtype")}
    return kept | unsaid


def _save_tokenizer(source: Path, target: Path, tokenizer: Any) -> None:
    """The files it was loaded from; transformers' own saving would write local options among them."""
    files = [path for path in sorted(source.glob("*")) if path.suffix in (".json", ".txt")] if source.is_dir() else []
    for path in files:
        write_whole(target / path.name, lambda part, path=path: shutil.copyfile(path, part))
    whole = None if files else tokenizer_files(tokenizer)
    for name, text in (whole or {}).items():
        write_whole(target / name, lambda part, text=text: part.write_text(text, encoding="utf-8"))
    if not files and whole is None:
        tokenizer.save_pretrained(target)


def noise_config_of(model: Model) -> dict[str, Any]:
    """scheduler_config.json for the model's schedule and sampler."""
    config = {key: value for key, value in model.configs["scheduler"].items() if key != "_name_or_path"}
    config["prediction_type"] = model.schedule.prediction
    usual = config.get("_class_name", "DDIMScheduler")
    if model.sampling.sampler in _CLASSES:
        config["_class_name"] = _CLASSES[model.sampling.sampler]
        config["original_inference_steps"] = model.sampling.origin_steps
    else:
        config["_class_name"] = "DDIMScheduler" if usual in _CLASSES.values() else usual
    if schedule_from(config, Path("scheduler_config.json")).alphas_cumprod != model.schedule.alphas_cumprod:
        config |= {"trained_betas": _betas(model.schedule), "rescale_betas_zero_snr": False}
    return config


def _betas(schedule: Schedule) -> list[float]:
    before = (1.0, *schedule.alphas_cumprod[:-1])
    return [1 - now / last for now, last in zip(schedule.alphas_cumprod, before, strict=True)]


def model_index_of(model: Model, noise_class: str) -> dict[str, Any]:
    """model_index.json: the model's own, where parts that were not loaded (safety checker, ...) are named as absent."""
    kept: Mapping[str, Any] = model.configs["model_index"]
    index = {key: [None, None] if isinstance(value, list) else value for key, value in kept.items()}
    index |= {part: [_library(module), type(module).__name__] for part, module in modules_of(model).items()}
    for part, tokenizer in zip(("tokenizer", "tokenizer_2"), model.text.tokenizers, strict=False):
        index[part] = ["transformers", type(tokenizer).__name__]
    index["scheduler"] = ["diffusers", noise_class]
    if "requires_safety_checker" in index:
        index["requires_safety_checker"] = False
    return {key: value for key, value in index.items() if key not in ("_name_or_path", "_fewstep")}


def _library(module: Any) -> str:
    return type(module).__module__.split(".")[0]
