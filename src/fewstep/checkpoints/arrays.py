"""A part's weights as numpy arrays under diffusers' names, from a folder or a single file.

torch is imported only where numpy lacks the number format (bfloat16, fp8).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError, safe_open

from fewstep.checkpoints.files import read_header, read_tensors
from fewstep.checkpoints.hub import PARTS, weight_names
from fewstep.checkpoints.single import SingleFile, cut, part_in_file
from fewstep.errors import CheckpointError

if TYPE_CHECKING:
    import numpy as np

_OLD_VAE_ATTENTION = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}
_NO_WEIGHTS = ("position_ids", "logit_scale")


def weight_files(folder: Path, stem: str) -> list[Path]:
    """The safetensors files of a part; raises CheckpointError when there are none, or only pickles."""
    names = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
    found = [folder / name for name in weight_names(names, stem)]
    if found:
        return found
    pickles = sorted(name for name in names if name.endswith((".bin", ".ckpt", ".pt")))
    if pickles:
        raise CheckpointError(
            f"'{folder / pickles[0]}' is refused: it is a Python pickle, which can run code when opened. "
            "Get the model's safetensors version."
        )
    raise CheckpointError(f"'{folder / stem}.safetensors' is missing (or some of its shards): copy the folder again.")


def vae_name(name: str) -> str:
    """An autoencoder's weight as diffusers calls it today.

    >>> vae_name("decoder.mid_block.attentions.0.query.weight")
    'decoder.mid_block.attentions.0.to_q.weight'
    """
    parts = name.split(".")
    if "attentions" in parts and parts[-2] in _OLD_VAE_ATTENTION:
        parts[-2] = _OLD_VAE_ATTENTION[parts[-2]]
    return ".".join(parts)


def part_shapes(source: Path | SingleFile, part: str) -> dict[str, tuple[int, ...]]:
    """Every weight of a part and its shape, from headers alone; raises CheckpointError."""
    if isinstance(source, SingleFile):
        found = dict(source.part_shapes(part_in_file(part)))
    else:
        files = weight_files(source / part, PARTS[part])
        found = {_name(part, name): shape for file in files for name, shape in read_header(file)[0].items()}
    if part == "vae":  # old ones keep their attention as convolutions of one pixel
        found = {name: shape[:2] if ".attentions." in name else shape for name, shape in found.items()}
    return {name: shape for name, shape in found.items() if not name.endswith(_NO_WEIGHTS)}


def part_arrays(source: Path | SingleFile, part: str, wanted: Mapping[str, Sequence[int]]) -> dict[str, np.ndarray]:
    """These weights of a part in float32 and in these shapes.

    Raises CheckpointError when a file or a weight is missing, damaged, of another size or not finite.
    """
    single = isinstance(source, SingleFile)
    path, found = (source.path if single else source / part), {}
    try:
        if single:
            entries = {name: entry for name, entry in source.parts[part_in_file(part)].items() if name in wanted}
            stored = source.tensors or _read(path, {key for key, _ in entries.values()}.__contains__)
            found = {name: cut(stored[key], key, place) for name, (key, place) in entries.items()}
        for file in () if single else weight_files(path, PARTS[part]):
            stored = _read(file, lambda key: _name(part, key) in wanted)
            found |= {_name(part, key): value for key, value in stored.items()}
        return {name: _weight(found[name], shape, name) for name, shape in wanted.items()}
    except (OSError, SafetensorError, KeyError, ValueError) as error:
        raise CheckpointError(f"'{path}' does not hold the weights its graph asks for ({error}).") from None


def _read(path: Path, wanted: Callable[[str], bool]) -> Mapping[str, Any]:
    """The tensors of these names: as numpy's arrays, or as torch's where numpy lacks their number format."""
    with safe_open(path, framework="np") as file:
        names = [key for key in file.keys() if wanted(key)]  # noqa: SIM118
        try:
            return {name: file.get_tensor(name) for name in names}
        except (TypeError, AttributeError):
            return read_tensors(path, finite=False, only=set(names))


def _weight(found: Any, shape: Sequence[int], name: str) -> np.ndarray:
    import numpy as np

    array = found.float().numpy() if hasattr(found, "float") else found
    array = np.ascontiguousarray(array.astype(np.float32, copy=False).reshape(tuple(shape)))
    if not np.isfinite(array.sum()):
        raise ValueError(f"'{name}' holds values that are not numbers")
    return array


def _name(part: str, name: str) -> str:
    return vae_name(name) if part == "vae" else name
