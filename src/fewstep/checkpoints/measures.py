"""The networks that measure pictures, from the user's own local files: FID's Inception and CLIP folders.

Nothing is downloaded. The published Inception files are a pickle of tensors, which is read with PyTorch's reader that
accepts tensors and nothing else, and a TorchScript archive, which holds no Python.
"""

from __future__ import annotations

import pickle  # noqa: TID251 - for the name of its exception; weights_only loads no objects
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fewstep.checkpoints.files import check_finite, read_json, read_tensors
from fewstep.checkpoints.folder import load_tokenizer, weight_files
from fewstep.errors import CheckpointError
from fewstep.models.clip import Clip, Sight
from fewstep.models.inception import CLASSES, Inception

_WANTED = "give pt_inception-2015-12-05-6726825d.pth or inception-2015-12-05.pt, the FID Inception's published weights"


def load_inception(path: str | Path, *, device: str = "cpu") -> Callable[[Tensor], Tensor]:
    """The FID Inception of a file: (B, 3, 299, 299) scaled to [-1, 1] -> features (B, 2048), in eval mode.

    Three kinds of file: the PyTorch state dict (.pth, or the same as .safetensors), and the TorchScript archive (.pt).

    Raises:
        CheckpointError: the file is missing, is no such file, or holds another network.
    """
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"'{path}' does not exist; {_WANTED}.")
    if _is_script(path):
        return _load_script(path, device)
    tensors = read_tensors(path) if path.suffix == ".safetensors" else _tensors_of_pickle(path)
    return _network(tensors, path).to(device).eval().requires_grad_(False)


def _is_script(path: Path) -> bool:
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any("/code/" in name for name in archive.namelist())


def _tensors_of_pickle(path: Path) -> dict[str, Tensor]:
    try:
        found = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, ValueError, EOFError, KeyError, pickle.UnpicklingError) as error:
        raise CheckpointError(
            f"'{path}' cannot be read as weights ({str(error).splitlines()[0][:120]}); {_WANTED}."
        ) from None
    if not isinstance(found, dict) or not all(isinstance(value, Tensor) for value in found.values()):
        raise CheckpointError(f"'{path}' holds something else than named weights; {_WANTED}.")
    return found


def _network(tensors: dict[str, Tensor], path: Path) -> Inception:
    """The network with these weights; the counters of batch normalisation, which old files lack, are not used."""
    classes = tensors["fc.weight"].shape[0] if "fc.weight" in tensors else None
    if classes is not None and classes != CLASSES:
        raise CheckpointError(
            f"'{path}' is an Inception of {classes} classes, not the one of {CLASSES} that the FID is defined with; "
            f"{_WANTED}."
        )
    with torch.device("meta"):
        network = Inception()
    expected = network.state_dict()
    counters = {name: torch.zeros((), dtype=torch.long) for name in expected if name.endswith("num_batches_tracked")}
    tensors = counters | tensors
    wrong = [name for name, value in expected.items() if name not in tensors or tensors[name].shape != value.shape]
    wrong += [name for name in tensors if name not in expected]
    if wrong:
        raise CheckpointError(
            f"'{path}' does not have the FID Inception's layout: {len(wrong)} of {len(expected)} weights are missing, "
            f"unknown or of another shape, such as '{wrong[0]}'; {_WANTED}."
        )
    check_finite(tensors, path)
    network.load_state_dict(
        {name: value.float() if value.is_floating_point() else value for name, value in tensors.items()}, assign=True
    )
    return network


def _load_script(path: Path, device: str) -> Callable[[Tensor], Tensor]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # TorchScript is deprecated; the published file is one
            script: Any = torch.jit.load(str(path), map_location=device).eval()
        layers = script.layers
    except (RuntimeError, AttributeError, ValueError) as error:
        raise CheckpointError(
            f"'{path}' is not the TorchScript Inception ({str(error).splitlines()[0][:120]}); {_WANTED}."
        ) from None

    def features(x_BCHW: Tensor) -> Tensor:
        return layers(x_BCHW).flatten(1)

    return features


def load_clip(folder: str | Path, *, device: str = "cpu") -> Clip:
    """CLIP from a transformers folder: config.json, model.safetensors, the tokenizer, preprocessor_config.json.

    Raises:
        CheckpointError: the folder is missing, lacks a file, or does not hold a CLIP with both towers.
    """
    from transformers import CLIPConfig, CLIPModel

    folder = Path(folder)
    if not folder.is_dir():
        raise CheckpointError(f"'{folder}' is no folder; give a CLIP model's folder in the layout of transformers.")
    config = read_json(folder / "config.json")
    if config.get("model_type") != "clip":
        raise CheckpointError(
            f"'{folder}' holds a model of type '{config.get('model_type')}', not a CLIP with both towers."
        )
    sight = Sight.from_json(read_json(folder / "preprocessor_config.json"))
    tensors = {name: value for file in weight_files(folder, "model") for name, value in read_tensors(file).items()}
    tensors = {name: value.float() for name, value in tensors.items() if not name.endswith("position_ids")}
    with torch.device("meta"):
        model = CLIPModel(CLIPConfig.from_dict({k: v for k, v in config.items() if k not in ("dtype", "torch_dtype")}))
    _assign(model, tensors, folder)
    ready: Any = model.eval().requires_grad_(False)
    return Clip(ready.to(device), load_tokenizer(folder, ""), sight, name=folder.resolve().name)


def _assign(model: nn.Module, tensors: dict[str, Tensor], folder: Path) -> None:
    try:
        model.load_state_dict(tensors, assign=True)
    except RuntimeError as error:
        line = str(error).splitlines()[1].strip()[:160] if "\n" in str(error) else str(error)
        raise CheckpointError(f"The weights in '{folder}' do not fit its config.json ({line}).") from None
    for inner in model.modules():
        for name, buffer in inner.named_buffers(recurse=False):
            if buffer.is_meta:  # the positions 0, 1, 2, ..., which no file holds
                setattr(inner, name, nn.Buffer(torch.arange(buffer.shape[-1]).expand(buffer.shape), persistent=False))
