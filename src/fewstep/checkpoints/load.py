"""A model from a path, a Hub name, or the package itself; with its schedule, its sampler, and why they were chosen.

    model = load_model("path/to/diffusers-folder")     local: the network is never touched
    model = load_model("path/to/model.safetensors")    one file, likewise
    model = load_model("owner/name")                   the Hub, or its cached copy
    model = load_model()                               the embedded model

Beside the folder's own files, `fewstep.json` (or "_fewstep" in model_index.json) may say how to sample:
{"sampler": "lcm", "steps": 4, "guidance": 1.0, "table": "linspace-lcm", "origin_steps": 50}, each key optional.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from fewstep import device as devices
from fewstep.checkpoints import folder as folders
from fewstep.checkpoints.complete import describe_model
from fewstep.checkpoints.description import Description, Sampling, assets_path, schedule_from, tiny_use
from fewstep.checkpoints.search import model_hash
from fewstep.errors import CheckpointError
from fewstep.models.family import Family
from fewstep.models.text import TextEncoder
from fewstep.sampling.schedule import Schedule

__all__ = ["Model", "Sampling", "assets_path", "load_model", "load_stored", "schedule_from"]


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

    metadata: Mapping[str, str] = field(default_factory=dict)
    """What a single file said of itself, to be kept when it is written again."""

    vae_path: Path | None = None
    """Where the VAE is from, if not from `path`."""

    tiny_vae: Any = None
    """A tiny autoencoder of the same latents, if there is one."""

    stored: Mapping[str, folders.Stored] = field(default_factory=dict)
    """Weights ("unet.conv_in.weight") that can be read again from their files, so nobody need keep a copy of them."""

    placement: Any = None
    """The memory plan that it is under, if any (`backends.placement`)."""

    @property
    def tiny(self) -> str:
        """What the tiny autoencoder is good for: "" where there is none, else "previews" or "pictures"."""
        return tiny_use(self.configs) if self.tiny_vae is not None else ""

    @cached_property
    def content_hash(self) -> str:
        """First 10 hexadecimal digits of the SHA-256 of the UNet's files, or the single file; made when asked for."""
        return model_hash(self.path)


def load_model(
    path: str | Path | None = None,
    *,
    device: str | None = None,
    dtype: str | None = None,
    base: str | Path | None = None,
    vae: str | Path | None = None,
    tiny_vae: str | Path | None = None,
    prediction: str | None = None,
    home: str | None = None,
) -> Model:
    """Loads a .safetensors file or a diffusers folder (SD 1.5, SD 2.x, SSD-1B, Vega, SDXL, pictogram), a Hub name, or
    (None) the embedded model.

    base lends the parts that a file lacks, vae replaces the autoencoder, tiny_vae is a tiny one beside it, prediction
    ("eps", "v") says what the UNet predicts where the file does not. `home` is where the weights are put at first, if
    not on the device: somebody else brings them there (`backends.placement`). Raises CheckpointError in one sentence
    for whatever is wrong with the files, DeviceError for device and dtype, RequestError for the others.
    """
    choice = devices.choose(device, dtype)
    found = describe_model(path, base=base, vae=vae, tiny_vae=tiny_vae, prediction=prediction)
    return _load(found, choice.device, getattr(torch, choice.dtype), choice.reason, home)


def load_stored(
    path: str | Path | None,
    *,
    base: str | Path | None = None,
    vae: str | Path | None = None,
    prediction: str | None = None,
    trust_pickle: bool = False,
) -> Model:
    """As `load_model`, on the CPU with every weight in the number format it is stored in: to be written again.

    With trust_pickle .ckpt and .pt files are read too, weights only.
    """
    found = describe_model(path, base=base, vae=vae, prediction=prediction, trust_pickle=trust_pickle)
    return _load(found, "cpu", None, "as stored")


def _load(found: Description, device: str, dtype: torch.dtype | None, reason: str, home: str | None = None) -> Model:
    configs, family = found.configs, found.family
    vae_dtype, notes = (dtype, ()) if dtype is None else _vae_dtype(configs["vae"], family, dtype)

    stored: dict[str, folders.Stored] = {}

    def part(name: str, dtype: torch.dtype | None) -> Any:
        source = found.sources.get(name, found.path)
        at = device if name == "tiny_vae" else home or device
        module, kept = folders.load_part(source, name, configs[name], device=at, dtype=dtype)
        stored.update({f"{name}.{key}": weight for key, weight in kept.items()})
        return module

    text = _text(found, part, dtype)
    vae, unet = part("vae", vae_dtype), part("unet", dtype)
    tiny_vae = part("tiny_vae", dtype) if found.tiny else None
    return Model(
        name=found.name,
        path=found.path,
        family=family,
        unet=unet,
        vae=vae,
        text=text,
        schedule=found.schedule,
        sampling=found.sampling,
        device=device,
        dtype=dtype or unet.conv_in.weight.dtype,
        notes=(f"{family}, {family.size_px} px", reason, *notes, *found.notes, found.why),
        configs=configs,
        metadata=found.metadata,
        vae_path=_lent_vae(found),
        tiny_vae=tiny_vae,
        stored=stored,
    )


def _lent_vae(found: Description) -> Path | None:
    source = found.sources.get("vae", found.path)
    path = source if isinstance(source, Path) else source.path
    return None if path == found.path else path


def _vae_dtype(config: Mapping[str, Any], family: Family, dtype: torch.dtype) -> tuple[torch.dtype, tuple[str, ...]]:
    """SDXL's autoencoder overflows in float16; a mended one says so by force_upcast false."""
    if dtype == torch.float16 and family.text_encoders == 2 and config.get("force_upcast", True):
        return torch.float32, ("VAE kept in float32: SDXL's overflows in float16",)
    return dtype, ()


def _text(found: Description, part: Callable[[str, Any], Any], dtype: torch.dtype | None) -> TextEncoder:
    suffixes = ("", "_2")[: found.family.text_encoders]
    source = found.sources.get("tokenizer", found.sources.get("text_encoder", found.path))
    tokenizers = [folders.load_tokenizer(source, f"tokenizer{suffix}") for suffix in suffixes]
    encoders = [part(f"text_encoder{suffix}", dtype) for suffix in suffixes]
    zeros = len(suffixes) == 2 and bool(found.configs["model_index"].get("force_zeros_for_empty_prompt", True))
    try:
        return TextEncoder(encoders, tokenizers, zeros_for_empty_negative=zeros)
    except CheckpointError as error:
        raise CheckpointError(f"'{found.path}': {error}") from None
