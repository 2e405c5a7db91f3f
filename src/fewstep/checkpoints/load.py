"""A model from a path, a Hub name, or the package itself; with its schedule, its sampler, and why they were chosen.

    model = load_model("path/to/diffusers-folder")     local: the network is never touched
    model = load_model("owner/name")                   the Hub, or its cached copy
    model = load_model()                               the embedded model

Beside the folder's own files, `fewstep.json` (or "_fewstep" in model_index.json) may say how to sample:
{"sampler": "lcm", "steps": 4, "guidance": 1.0, "table": "linspace-lcm", "origin_steps": 50}, each key optional.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from fewstep import device as devices
from fewstep.checkpoints import folder as folders
from fewstep.checkpoints.description import Description, Sampling, assets_path, describe, schedule_from
from fewstep.errors import CheckpointError
from fewstep.models.family import Family
from fewstep.models.text import TextEncoder
from fewstep.sampling.schedule import Schedule

__all__ = ["Model", "Sampling", "assets_path", "load_model", "schedule_from"]


@dataclass(eq=False)
class Model:
    """A loaded model. unet, vae and the text encoders are modules on `device`, in eval mode, without gradients."""

    name: str
    path: Path
    family: Family
    unet: Any
    vae: Any
    text: TextEncoder
    schedule: Schedule
    sampling: Sampling
    device: str
    dtype: torch.dtype
    notes: tuple[str, ...] = ()
    configs: Mapping[str, dict[str, Any]] = field(default_factory=dict)
    """The folder's json as it was read: "model_index", "unet", "vae", "text_encoder", "scheduler", ..."""

    @cached_property
    def content_hash(self) -> str:
        """First 10 hexadecimal digits of the SHA-256 of the UNet's files; made when asked for."""
        digest = hashlib.sha256()
        for path in folders.weight_files(self.path / "unet", folders.PARTS["unet"]):
            with path.open("rb") as file:
                while block := file.read(1 << 20):
                    digest.update(block)
        return digest.hexdigest()[:10]


def load_model(path: str | Path | None = None, *, device: str | None = None, dtype: str | None = None) -> Model:
    """Loads a diffusers folder (SD 1.5, SD 2.x, SSD-1B, SDXL, pictogram), a Hub name, or (None) the embedded model.

    Raises CheckpointError in one sentence for whatever is wrong with the files, DeviceError for device and dtype.
    """
    choice = devices.choose(device, dtype)
    return _load_folder(describe(path), choice)


def _load_folder(found: Description, choice: devices.Choice) -> Model:
    folder, configs, family = found.path, found.configs, found.family
    dtype = getattr(torch, choice.dtype)
    vae_dtype, notes = _vae_dtype(configs["vae"], family, dtype)
    text = _text(folder, configs, family, choice.device, dtype)
    vae = folders.load_part(folder, "vae", configs["vae"], device=choice.device, dtype=vae_dtype)
    unet = folders.load_part(folder, "unet", configs["unet"], device=choice.device, dtype=dtype)
    return Model(
        name=found.name,
        path=folder,
        family=family,
        unet=unet,
        vae=vae,
        text=text,
        schedule=found.schedule,
        sampling=found.sampling,
        device=choice.device,
        dtype=dtype,
        notes=(f"{family}, {family.size_px} px", choice.reason, *notes, found.why),
        configs=configs,
    )


def _vae_dtype(config: Mapping[str, Any], family: Family, dtype: torch.dtype) -> tuple[torch.dtype, tuple[str, ...]]:
    """SDXL's autoencoder overflows in float16; a mended one says so by force_upcast false."""
    if dtype == torch.float16 and family.text_encoders == 2 and config.get("force_upcast", True):
        return torch.float32, ("VAE kept in float32: SDXL's overflows in float16",)
    return dtype, ()


def _text(
    folder: Path, configs: Mapping[str, dict[str, Any]], family: Family, device: str, dtype: torch.dtype
) -> TextEncoder:
    suffixes = ("", "_2")[: family.text_encoders]
    tokenizers = [folders.load_tokenizer(folder, f"tokenizer{suffix}") for suffix in suffixes]
    parts = [f"text_encoder{suffix}" for suffix in suffixes]
    encoders = [folders.load_part(folder, part, configs[part], device=device, dtype=dtype) for part in parts]
    zeros = family.text_encoders == 2 and bool(configs["model_index"].get("force_zeros_for_empty_prompt", True))
    try:
        return TextEncoder(encoders, tokenizers, zeros_for_empty_negative=zeros)
    except CheckpointError as error:
        raise CheckpointError(f"'{folder}': {error}") from None
