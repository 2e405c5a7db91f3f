"""Textual inversions (arXiv 2208.01618): vectors that stand for a word, alone in a file or bundled with a LoRA.

| file                    | tensors                                                       |
|-------------------------|---------------------------------------------------------------|
| SD 1.x, 2.x             | emb_params                                                    |
| SDXL                    | clip_l, clip_g                                                |
| diffusers               | the word itself                                               |
| bundled (`bundle_emb.`) | <name>.string_to_param.*, or <name>.clip_l and <name>.clip_g  |

Nothing here imports torch unless torch tensors are brought.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

from fewstep.checkpoints.files import read_header, read_pickle, read_tensors
from fewstep.errors import CheckpointError, LoraError
from fewstep.sampling.arrays import Array

BUNDLE = "bundle_emb."
_ENCODERS = {
    "emb_params": "text_encoder",
    "string_to_param.*": "text_encoder",
    "clip_l": "text_encoder",
    "clip_g": "text_encoder_2",
}
"""How a tensor's name ends -> the encoder it is for."""

_LARGEST = 1 << 26
"""Bytes: vectors of a few words take some thousands."""


@dataclass(frozen=True, eq=False)
class Embedding:
    """`vectors`: text encoder -> [count, width], for each encoder the same count."""

    name: str
    vectors: dict[str, Array]


def is_embedding(keys: Collection[str]) -> bool:
    """Are these the tensors of a textual inversion? (diffusers', under its own word, is told by its brackets.)"""
    named = all(key in _ENCODERS for key in keys)
    return bool(keys) and (named or (len(keys) == 1 and next(iter(keys)).startswith("<")))


def read_embedding(path: str | Path) -> Embedding:
    """A textual inversion as torch tensors; its name is the word that diffusers' form has, else the file's.

    Raises:
        CheckpointError: the file is missing, damaged, or not a textual inversion.
    """
    path = Path(path)
    keys = list(read_header(path)[0])
    word = keys[0] if len(keys) == 1 and keys[0] not in _ENCODERS else None
    if not keys or (word is None and not is_embedding(keys)):
        raise CheckpointError(f"'{path.name}' is not a textual inversion: it holds {len(keys)} tensors of other names.")
    tensors = read_tensors(path)
    found = {"text_encoder": tensors[word]} if word else {_ENCODERS[key]: tensors[key] for key in keys}
    return _embedding(word or path.stem, found, path.name)


def pickled_embedding(path: Path) -> dict[str, Array] | None:
    """The tensors of a textual inversion in a pickle, by their names in a .safetensors file; None for other pickles.

    Raises CheckpointError as `read_pickle` does.
    """
    if path.is_file() and path.stat().st_size > _LARGEST:
        return None
    tensors = read_pickle(path)
    alone = len(tensors) == 1 and all(tensor.ndim < 3 for tensor in tensors.values())
    return tensors if alone or is_embedding(tensors) else None


def bundled(tensors: Mapping[str, Array], file: str) -> tuple[Embedding, ...]:
    """The embeddings that a LoRA brings; raises LoraError for names and shapes that are none."""
    found: dict[str, dict[str, Array]] = {}
    for key, tensor in tensors.items():
        if not key.startswith(BUNDLE):
            continue
        ending = next((end for end in _ENCODERS if key.endswith(f".{end}")), None)
        name = key.removeprefix(BUNDLE).removesuffix(f".{ending}")
        if ending is None or not name or any(mark in name for mark in "/\\\0"):
            raise LoraError(f"'{file}' is damaged: '{key}' is not the name of an embedding.")
        found.setdefault(name, {})[_ENCODERS[ending]] = tensor
    return tuple(_embedding(name, vectors, file) for name, vectors in found.items())


def _embedding(name: str, vectors: dict[str, Array], file: str) -> Embedding:
    vectors = {encoder: found[None] if found.ndim == 1 else found for encoder, found in vectors.items()}
    counts = {len(found) for found in vectors.values()}
    if len(counts) != 1 or any(found.ndim != 2 or 0 in found.shape for found in vectors.values()):
        shapes = ", ".join(str(list(found.shape)) for found in vectors.values())
        raise LoraError(f"'{file}' is damaged: the embedding '{name}' has the shapes {shapes}.")
    return Embedding(name, vectors)
