"""ONNX Runtime Web's files: what runs a model inside a browser, too large to be part of the package.

They come from a folder that somebody unpacked, else from the cache, else from the npm registry, with its checksum.
"""

from __future__ import annotations

import base64
import hashlib
import os
import tarfile
import tempfile
import urllib.request
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from fewstep.backends.cache import cache_folder
from fewstep.errors import OutputError

VERSION = "1.30.0"
SHA512 = "q0y+JrrtukXSzsBWEMccVfqX25LRmosXHF+CaRJmg8pZClzcV7svNc4rKY3jL02Vb7QmRMDs1SigqR4CXAfKYQ=="
"""Of that version's tarball, as the registry says it (`npm view onnxruntime-web@1.30.0 dist.integrity`)."""

ENGINES = {
    "wasm": ("ort.wasm.min.mjs", "ort-wasm-simd-threaded.mjs", "ort-wasm-simd-threaded.wasm"),
    "webgpu": ("ort.webgpu.min.mjs", "ort-wasm-simd-threaded.asyncify.mjs", "ort-wasm-simd-threaded.asyncify.wasm"),
}
"""Engine -> script, loader and WebAssembly."""

_PACKAGE = f"onnxruntime-web-{VERSION}"
_REGISTRY = "https://registry.npmjs.org"
_BLOCK, _TIMEOUT_S = 1 << 18, 60


def runtime_names() -> tuple[str, ...]:
    """All files that a page needs."""
    return tuple(name for names in ENGINES.values() for name in names)


def runtime_in(folder: Path) -> Path:
    """The folder in which the files lie: this one, or its `dist` or `package/dist`.

    Raises OutputError when one is missing.
    """
    places = [folder, folder / "dist", folder / "package" / "dist"]
    found = next((place for place in places if (place / ENGINES["wasm"][0]).is_file()), folder)
    missing = [name for name in runtime_names() if not (found / name).is_file()]
    if missing:
        raise OutputError(
            f"'{folder}' is not ONNX Runtime Web: it has no {missing[0]}. Give the folder 'dist' of npm's "
            f"onnxruntime-web {VERSION}."
        )
    return found


def runtime_folder() -> Path:
    """Where the files are kept once they were fetched."""
    return cache_folder() / _PACKAGE


def registry(environment: Mapping[str, str] = os.environ) -> str:
    """The npm registry that this user has chosen, else the public one.

    >>> registry({"npm_config_registry": "https://npm.example.org/"})
    'https://npm.example.org'
    """
    chosen = environment.get("npm_config_registry") or environment.get("NPM_CONFIG_REGISTRY")
    file = Path.home() / ".npmrc"
    if not chosen and file.is_file():
        pairs = (line.partition("=") for line in file.read_text(encoding="utf-8", errors="replace").splitlines())
        chosen = next((value.strip() for key, _, value in pairs if key.strip() == "registry"), None)
    return (chosen or _REGISTRY).rstrip("/")


def fetch_runtime(cache: Path) -> Iterator[tuple[int, int]]:
    """Fetches the files into the cache, yielding (bytes so far, all bytes); nothing is asked where they are there.

    Raises OutputError when there is no network, when the checksum differs, or when the cache cannot be written.
    """
    if all((cache / name).is_file() for name in runtime_names()):
        return
    address = f"{registry()}/onnxruntime-web/-/{_PACKAGE}.tgz"
    try:
        cache.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=cache.parent) as folder:
            archive = Path(folder) / "package.tgz"
            yield from _download(address, archive)
            _unpack(archive, Path(folder) / "files")
            cache.mkdir(exist_ok=True)
            for name in runtime_names():
                os.replace(Path(folder) / "files" / name, cache / name)
    except (OSError, tarfile.TarError) as error:
        raise OutputError(
            f"ONNX Runtime Web could not be fetched from {address} ({error}). Run 'npm pack onnxruntime-web@{VERSION}' "
            f"where there is a network, unpack it, and give the folder with --runtime."
        ) from None


def _download(address: str, target: Path) -> Iterator[tuple[int, int]]:
    """Raises OutputError unless the checksum is the one expected."""
    if not address.startswith("https://"):
        raise OutputError(f"The npm registry '{address}' is not an https address. Set npm_config_registry to one.")
    digest, done = hashlib.sha512(), 0
    with urllib.request.urlopen(address, timeout=_TIMEOUT_S) as answer, target.open("wb") as file:
        total = int(answer.headers.get("content-length") or 0)
        while block := answer.read(_BLOCK):
            file.write(block)
            digest.update(block)
            done += len(block)
            yield done, max(total, done)
    if base64.b64encode(digest.digest()).decode() != SHA512:
        raise OutputError(f"What {address} sent is not onnxruntime-web {VERSION}: its checksum differs. Try again.")


def _unpack(archive: Path, folder: Path) -> None:
    """The needed files alone, by their names alone."""
    folder.mkdir()
    with tarfile.open(archive) as tar:
        for name in runtime_names():
            member: Any = tar.extractfile(f"package/dist/{name}")
            (folder / name).write_bytes(member.read())
