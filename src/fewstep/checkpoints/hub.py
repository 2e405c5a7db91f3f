"""A model named "owner/name" on the Hugging Face Hub: its files, or their cached copy when the Hub is out of reach.

Nothing here runs for a local path; loading itself never touches the network.
"""

import re
from collections.abc import Collection
from pathlib import Path

from fewstep.checkpoints.files import PICKLES
from fewstep.errors import CheckpointError

PARTS = {
    "unet": "diffusion_pytorch_model",
    "vae": "diffusion_pytorch_model",
    "text_encoder": "model",
    "text_encoder_2": "model",
    "tiny_vae": "diffusion_pytorch_model",
}
"""Sub-folders of a diffusers folder that hold weights -> how the weight files' names begin. `tiny_vae` is ours: a tiny
autoencoder (TAESD's kind) beside the full one. diffusers does not look for it.
"""

_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_TIMEOUT_S = 10.0


def is_hub_id(name: str) -> bool:
    """Does this look like "owner/name", rather than like a path or a file?

    >>> is_hub_id("Lykon/dreamshaper-8"), is_hub_id("./models/a"), is_hub_id("a/b.safetensors")
    (True, False, False)
    """
    suffix = Path(name).suffix.lower()
    return _ID.fullmatch(name) is not None and suffix not in (*PICKLES, ".safetensors")


def weight_names(names: Collection[str], stem: str) -> list[str]:
    """The weight files to read out of a folder's file names: whole before sharded, full before half precision.

    >>> weight_names(["model.fp16.safetensors", "model.safetensors", "model.bin"], "model")
    ['model.safetensors']
    >>> weight_names(["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"], "model")
    ['model-00001-of-00002.safetensors', 'model-00002-of-00002.safetensors']
    """
    for variant in ("", ".fp16", ".bf16"):
        if f"{stem}{variant}.safetensors" in names:
            return [f"{stem}{variant}.safetensors"]
        shard = re.compile(re.escape(stem + variant) + r"-\d+-of-(\d+)\.safetensors")
        shards = sorted(name for name in names if shard.fullmatch(name))
        if shards and len(shards) == int(shard.fullmatch(shards[0])[1]):  # pyright: ignore[reportOptionalSubscript]
            return shards
    return []


def fetch(repository: str) -> Path:
    """The local folder of a Hub model, downloaded where needed: safetensors, json and txt of one precision only.

    Raises CheckpointError in one sentence when there is no such model, or no Hub to be asked and nothing cached.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    wanted, reason = _wanted_online(repository)
    try:
        if wanted:
            return Path(snapshot_download(repository, allow_patterns=wanted))
    except Exception as error:  # noqa: BLE001 - any of the Hub client's, the HTTP client's or the disk's
        reason = _reason(error)
    try:
        return Path(snapshot_download(repository, local_files_only=True))
    except (LocalEntryNotFoundError, OSError, ValueError):
        raise CheckpointError(
            f"'{repository}' is neither a path here nor in the Hub's cache, and the Hub cannot be asked ({reason}). "
            "Check the spelling, go online once, or give the path of a model folder."
        ) from None


def _wanted_online(repository: str) -> tuple[list[str], str]:
    """(file names to download, "") or ([], why the Hub cannot be asked)."""
    from huggingface_hub import HfApi, constants
    from huggingface_hub.errors import RepositoryNotFoundError

    if constants.HF_HUB_OFFLINE:
        return [], "HF_HUB_OFFLINE is set"
    try:
        found = HfApi().model_info(repository, timeout=_TIMEOUT_S).siblings or []
    except RepositoryNotFoundError:
        return [], "it answers that there is no such model, or that it needs a login"
    except Exception as error:  # noqa: BLE001 - the same
        return [], _reason(error)
    return wanted_files(repository, [file.rfilename for file in found]), ""


def wanted_files(repository: str, names: Collection[str]) -> list[str]:
    """Which of a repository's files a model is loaded from; raises CheckpointError when it is no diffusers folder."""
    if "model_index.json" not in names:
        raise CheckpointError(f"'{repository}' has no model_index.json, so it is no diffusers model folder.")
    wanted = [name for name in names if name in ("model_index.json", "fewstep.json")]
    for part, stem in PARTS.items():
        inside = {name.removeprefix(f"{part}/") for name in names if name.startswith(f"{part}/")}
        wanted += [f"{part}/{name}" for name in ["config.json", *weight_names(inside, stem)] if name in inside]
    small = re.compile(r"(scheduler|tokenizer|tokenizer_2)/[^/]+\.(json|txt)")
    return wanted + [name for name in names if small.fullmatch(name)]


def _reason(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).splitlines()[0][:120]}" if str(error) else type(error).__name__
