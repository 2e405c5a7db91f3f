"""A model as one file in the original layout, which every program reads: diffusers' `from_single_file` and the user
interfaces. What shapes do not tell goes into its metadata, so that `load_model` brings back exactly what was written.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fewstep.checkpoints.files import write_safetensors
from fewstep.checkpoints.keys import TRANSPOSED, original
from fewstep.checkpoints.load import Model
from fewstep.checkpoints.lora_metadata import usage_metadata
from fewstep.checkpoints.save import cast, config_of, model_index_of, modules_of, named, noise_config_of, number_format
from fewstep.checkpoints.single import CONFIGS, MERGES, PADS
from fewstep.checkpoints.vocabulary import clip_merges, merges_of
from fewstep.errors import OutputError

_ARCHITECTURES = {
    "sd15": "stable-diffusion-v1",
    "sd2": "stable-diffusion-v2",
    "sdxl": "stable-diffusion-xl-v1-base",
    "ssd1b": "segmind-ssd-1b",
    "vega": "segmind-vega",
    "pictogram": "fewstep-pictogram",
}
_STALE = ("modelspec.hash_sha256", "sshs_model_hash", "sshs_legacy_hash")


def save_single(
    model: Model, path: str | Path, *, dtype: str | None = None, metadata: Mapping[str, str] | None = None
) -> Path:
    """Writes the model as it is now, merged LoRAs included, whole or not at all, and returns the path.

    dtype ("fp16", "bf16", "fp32") is the number format on disk; default each weight's own. `metadata` is added to what
    the model's own file said, and wins. Raises OutputError when it cannot be written, DeviceError for the dtype.
    """
    path, number = Path(path).expanduser(), number_format(dtype)
    tensors: dict[str, Tensor] = {}
    for part, module in modules_of(model).items():
        weights = {name: cast(tensor, number) for name, tensor in named(module).items()}
        tensors |= _original(part, weights, model)
    write_safetensors(path, tensors, facts_of(model, path.stem) | dict(metadata or {}))
    return path


def _original(part: str, weights: Mapping[str, Tensor], model: Model) -> dict[str, Tensor]:
    """A part's weights by their original names, the three of one name together; raises OutputError."""
    xl, sd2 = model.family.text_encoders == 2, model.family.name == "sd2"
    open_clip = part == "text_encoder_2" or (part == "text_encoder" and sd2)
    found = original(part, weights.keys(), open_clip=open_clip)
    if unknown := [name for name in weights if name not in found]:
        raise OutputError(
            f"'{unknown[0]}' of the model's {part.replace('_', ' ')} has no name in the original layout, which single "
            "files have. Write a folder instead, or give an ordinary VAE (--vae)."
        )
    prefix = _prefix(part, xl=xl, open_clip=open_clip)
    groups: dict[str, list[tuple[int, Tensor]]] = {}
    for name, place in found.items():
        groups.setdefault(place.name, []).append((place.third or 0, weights[name]))
    return {f"{prefix}{name}": _shaped(part, name, group, open_clip) for name, group in groups.items()}


def _prefix(part: str, *, xl: bool, open_clip: bool) -> str:
    if not part.startswith("text"):
        return {"unet": "model.diffusion_model.", "vae": "first_stage_model."}[part]
    kind = "model." if open_clip else "transformer."
    return f"conditioner.embedders.{int(part.endswith('_2'))}.{kind}" if xl else f"cond_stage_model.{kind}"


def _shaped(part: str, name: str, group: Sequence[tuple[int, Tensor]], open_clip: bool) -> Tensor:
    """One tensor of q, k and v; OpenCLIP's projection turned; the autoencoder's attention as 1x1 convolutions."""
    tensor = (
        group[0][1] if len(group) == 1 else torch.cat([part for _, part in sorted(group, key=lambda pair: pair[0])])
    )
    if open_clip and name == TRANSPOSED:
        return tensor.t()
    if part == "vae" and ".attn_1." in name and tensor.ndim == 2:
        return tensor[:, :, None, None]
    return tensor


def facts_of(model: Model, title: str) -> dict[str, str]:
    """The metadata: what the model's own file said, ModelSpec 1.0.1 (github.com/Stability-AI/ModelSpec), and ours."""
    family, side = model.family, model.family.size_px
    noise = noise_config_of(model)
    configs: dict[str, Any] = {part: config_of(module) for part, module in modules_of(model).items()}
    configs |= {"scheduler": noise, "model_index": model_index_of(model, noise["_class_name"])}
    inpaint = "-inpainting" if model.unet.config.in_channels == 9 else ""
    spec = {
        "modelspec.sai_model_spec": "1.0.1",
        "modelspec.architecture": _ARCHITECTURES[family.name] + inpaint,
        "modelspec.implementation": "diffusers",
        "modelspec.resolution": f"{side}x{side}",
        "modelspec.prediction_type": {"v_prediction": "v"}.get(model.schedule.prediction, model.schedule.prediction),
    }
    kept = {key: value for key, value in model.metadata.items() if key not in _STALE}
    title = kept.get("modelspec.title", title)
    usage = usage_metadata(model.sampling) if _is_told(model) else {}
    return (
        kept
        | {"modelspec.title": title}
        | spec
        | usage
        | {CONFIGS: json.dumps(configs, sort_keys=True)}
        | _tokenizers(model)
    )


def _is_told(model: Model) -> bool:
    """Is it sampled otherwise than its networks alone would say?"""
    return model.sampling.sampler in ("lcm", "tcd", "pcm") or "fewstep.sampler" in model.metadata


def _tokenizers(model: Model) -> dict[str, str]:
    """Nothing for CLIP's own; raises OutputError for one that merges do not bring back."""
    found = [merges_of(tokenizer) for tokenizer in model.text.tokenizers]
    if None in found or len(set(found)) > 1:
        raise OutputError("The model's tokenizer is not CLIP's: a single file cannot hold it. Write a folder.")
    pads = {PADS: " ".join(tokenizer.pad_token for tokenizer in model.text.tokenizers)}
    merges = found[0] or ()
    return pads if merges == clip_merges() else pads | {MERGES: "\n".join(merges)}
