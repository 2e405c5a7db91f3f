"""The user's folders of LoRAs and embeddings, and how a name in a prompt finds its file there.

Source: AUTOMATIC1111's web interface: sub-folders count; a LoRA answers to its file's name and to the name that it was
trained under (`ss_output_name`), an embedding to its file's name.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path

from fewstep.checkpoints.embedding import read_embedding
from fewstep.checkpoints.files import read_header
from fewstep.checkpoints.search import file_hash
from fewstep.errors import CheckpointError, LoraError, RequestError
from fewstep.sampling.arrays import Array

PICKLES = (".pt", ".bin", ".ckpt", ".pth")


def find_lora(name: str | Path, model_path: Path, shelf: LoraShelf | None = None) -> Path:
    """The file of a LoRA: the path itself, else a name (".safetensors" may be left out) here, beside the model, or on
    the shelf.

    Raises:
        LoraError: there is none, or more than one; says where was looked.
    """
    path = Path(name).expanduser()
    folders = [Path()] if path.is_absolute() else [Path(), model_path if model_path.is_dir() else model_path.parent]
    for folder in folders:
        for candidate in (folder / path, folder / f"{path}.safetensors"):
            if candidate.is_file():
                return candidate
    if shelf is not None and (found := shelf.find(str(name))) is not None:
        return found
    if path.is_dir():
        raise LoraError(f"The LoRA '{name}' is a folder. Give the .safetensors file in it.")
    places = " or beside the model" if len(folders) > 1 else ""
    places += f", nor in '{shelf.folder}'" if shelf is not None else ""
    raise LoraError(f"There is no LoRA '{name}' at that path{places}. Check the name, or give the file's whole path.")


class LoraShelf:
    """A folder of LoRAs, with its sub-folders."""

    def __init__(self, folder: str | Path) -> None:
        """Raises LoraError when there is no such folder."""
        self.folder = Path(folder).expanduser()
        if not self.folder.is_dir():
            raise LoraError(
                f"The LoRA folder '{folder}' does not exist. Give the folder that holds the .safetensors files."
            )

    @cached_property
    def files(self) -> tuple[Path, ...]:
        """The LoRAs' files."""
        return tuple(sorted(path for path in self.folder.rglob("*.safetensors") if path.is_file()))

    def find(self, name: str) -> Path | None:
        """The LoRA of that name: the file's, else the trained one's; capitals count only where they must.

        Raises LoraError when several have it.
        """
        for names in (self._stems, self._trained):
            for same in (lambda known: known == name, lambda known: known.lower() == name.lower()):
                found = [path for path in self.files if same(names[path])]
                if len(found) > 1:
                    files = " and ".join(f"'{path.relative_to(self.folder)}'" for path in found)
                    raise LoraError(f"'{self.folder}' has the LoRA '{name}' more than once: {files}. Rename one.")
                if found:
                    return found[0]
        return None

    def names(self) -> dict[str, str]:
        """Every LoRA's name, and the one it was trained under."""
        return {self._stems[path]: self._trained[path] or self._stems[path] for path in self.files}

    @cached_property
    def _stems(self) -> Mapping[Path, str]:
        return {path: path.stem for path in self.files}

    @cached_property
    def _trained(self) -> Mapping[Path, str]:
        return {path: _trained_name(path) for path in self.files}


def _trained_name(path: Path) -> str:
    try:
        return read_header(path)[1].get("ss_output_name", "")
    except CheckpointError:  # a damaged file among a hundred; it is told of when it is asked for
        return ""


class EmbeddingShelf:
    """Textual inversions by the word that stands for them: files, and folders with their sub-folders."""

    def __init__(self, sources: Sequence[str | Path] = ()) -> None:
        """Raises CheckpointError when there is no such file or folder."""
        self.paths: dict[str, Path] = {}
        self._read: dict[str, dict[str, Array]] = {}
        self._hashes: dict[str, str] = {}
        for source in sources:
            self.paths |= {path.stem: path for path in _embedding_files(Path(source).expanduser())}

    def named_in(self, texts: Iterable[str]) -> dict[str, dict[str, Array]]:
        """The embeddings that these texts name, by name: text encoder -> [count, width].

        Raises CheckpointError when one of them is damaged, or no textual inversion; RequestError when it is a pickle.
        """
        texts = tuple(texts)
        names = [name for name in self.paths if any(mentions(text, name) for text in texts)]
        return {name: self._vectors(name) for name in names}

    def hash(self, name: str) -> str:
        """The first 12 digits of the file's sha256, as `TI hashes` hold it; "" for a name that has no file here."""
        if name not in self.paths:
            return ""
        if name not in self._hashes:
            self._hashes[name] = file_hash(self.paths[name])[:12]
        return self._hashes[name]

    def _vectors(self, name: str) -> dict[str, Array]:
        if name not in self._read:
            path = self.paths[name]
            if path.suffix in PICKLES:
                raise RequestError(
                    f"The embedding '{name}' is '{path.name}', a pickle, which can run code. Write it as .safetensors: "
                    f"fewstep convert --trust-pickle {path.name} {name}.safetensors"
                )
            self._read[name] = read_embedding(path).vectors
        return self._read[name]


def _embedding_files(source: Path) -> list[Path]:
    """Pickles first: where a name has both, it stands for the safe one."""
    if not source.exists():
        raise CheckpointError(f"There are no embeddings at '{source}'. Give a folder or a .safetensors file.")
    if source.is_file():
        return [source]
    files = sorted(path for path in source.rglob("*") if path.is_file())
    pickles = [path for path in files if path.suffix in PICKLES]
    return [*pickles, *(path for path in files if path.suffix == ".safetensors")]


def mentions(text: str, name: str) -> bool:
    """Whether the embedding's name stands in the text, as a word.

    >>> mentions("by (Night-Style:1.2)", "night-style"), mentions("nightly", "night")
    (True, False)
    """
    return re.search(rf"(?<!\w){re.escape(name)}(?!\w)", text, re.IGNORECASE) is not None
