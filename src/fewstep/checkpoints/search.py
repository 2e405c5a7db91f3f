"""Models, VAEs and LoRAs by the name and the hash that a picture records.

Hashes are those of A1111 and its kin: of a model or a VAE the first 10 digits of its file's sha256 (before 2023: 8 of
the 64 KiB that begin 1 MiB into it), of a LoRA the first 12 of its tensors' (`Lora.short_hash`).
"""

import hashlib
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from fewstep.checkpoints.files import read_header
from fewstep.checkpoints.hub import PARTS, weight_names
from fewstep.checkpoints.lora_metadata import legacy_hash, tensor_hash
from fewstep.errors import CheckpointError

_DIGEST = re.compile(r"[0-9a-f]{8,64}")
_LEGACY, _WHOLE = 8, 10
_ENDING = ".safetensors"


def file_hash(path: Path) -> str:
    """sha256 of a whole file: its first 10 digits are a `Model hash`, its first 12 what `TI hashes` hold."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def model_hash(path: Path) -> str:
    """Of a single file A1111's `Model hash`; of a diffusers folder the same of its UNet's files, one after another."""
    if path.is_file():
        return file_hash(path)[:_WHOLE]
    digest = hashlib.sha256()
    for name in weight_names({part.name for part in (path / "unet").iterdir()}, PARTS["unet"]):
        with (path / "unet" / name).open("rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()[:_WHOLE]


@dataclass(frozen=True)
class Places:
    """Where to look: in the folders `near`, then in and below those of `within`."""

    near: tuple[Path, ...] = (Path(),)
    within: tuple[Path, ...] = ()

    def model(self, name: str, digest: str = "") -> Path | None:
        """The folder or file of a model: by its name, else by its hash; None where there is none."""
        return self._named(name, folders=True) or self._hashed(digest, _is_model)

    def file(self, name: str) -> Path | None:
        """The file of a VAE: by its name, with or without the extension."""
        return self._named(name.removesuffix(_ENDING), folders=False)

    def lora(self, name: str, digest: str = "") -> Path | None:
        """The file of a LoRA: by its name, else by its hash."""
        return self._named(name, folders=False) or self._hashed(digest, _is_lora)

    def _named(self, name: str, *, folders: bool) -> Path | None:
        """A picture may come from anybody, so what it names is a name and no path."""
        if not name or name.startswith(".") or set(name) & set("/\\\0") or len(name) > 200:
            return None
        for folder in self._folders():
            for path in (folder / name, folder / f"{name}{_ENDING}"):
                if (folders and path.is_dir()) or (path.is_file() and path.suffix == _ENDING):
                    return path
        return None

    def _hashed(self, digest: str, is_it: Callable[[Path, str], bool]) -> Path | None:
        if not _DIGEST.fullmatch(digest):
            return None
        for folder in self._folders():
            for path in sorted(folder.glob(f"*{_ENDING}")):
                try:
                    if is_it(path, digest):
                        return path
                except (OSError, CheckpointError):  # not this one, then
                    continue
        return None

    def _folders(self) -> Iterator[Path]:
        for folder in dict.fromkeys((*self.near, *self.within)):
            yield folder
        for folder in self.within:
            yield from sorted(path for path in folder.rglob("*") if path.is_dir())


def _is_model(path: Path, digest: str) -> bool:
    if len(digest) > _LEGACY:
        return file_hash(path).startswith(digest)
    with path.open("rb") as file:
        return legacy_hash(file.read(0x110000)) == digest


def _is_lora(path: Path, digest: str) -> bool:
    """By what its metadata say, its tensors' hash, or the whole file's (Fooocus)."""
    if read_header(path)[1].get("sshs_model_hash", "").startswith(digest):
        return True
    with path.open("rb") as file:
        return tensor_hash(file).startswith(digest) or (len(digest) == _WHOLE and file_hash(path).startswith(digest))
