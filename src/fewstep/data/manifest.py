"""What lies in a cache's folder, and how it is read and written: every file beside its place and then renamed.

    manifest.json                     format, model hash, settings, one row per finished chunk, `complete`
    empty.safetensors                 the embedding of the empty prompt, in the family's own convention
    latents-00000-64x96.safetensors   one chunk's samples of one latent shape: mean and (with moments) std
                                      [n, C, h, w] float16, time_ids [n, 6] int32, caption [n] int64;
                                      a cache of prompts alone has `caption` only
    text-00000.safetensors            embeddings [u, L, D] float16 (and pooled [u, P]) of captions first seen there

A chunk is a fixed number of the source's records, so that its files depend on nothing but the source. Several writers
each make a cache of their own, `part-00000-of-00004`, and the folder of them is read as one.
Format 1 (one shape, no time ids, `shards` in place of `chunks`) is still read.
"""

import json
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file

from fewstep.data.samples import Tally
from fewstep.errors import OutputError, RecipeError

FORMAT = 2
MANIFEST = "manifest.json"
_PART = re.compile(r"part-(\d{5})-of-(\d{5})")


def is_cache(folder: str | Path) -> bool:
    """Whether the folder holds a latent cache, finished or not."""
    return bool(cache_parts(folder))


def cache_parts(folder: str | Path) -> list[Path]:
    """The folders of a cache: itself, or its parts; none where there is no cache."""
    folder = Path(folder)
    if (folder / MANIFEST).is_file():
        return [folder]
    found = sorted(folder.iterdir()) if folder.is_dir() else []
    return [path for path in found if _PART.fullmatch(path.name) and (path / MANIFEST).is_file()]


def part_folder(folder: Path, rank: int, world: int) -> Path:
    """Where writer `rank` of `world` works. Raises RecipeError when the folder was begun by another number of them."""
    mine = folder / f"part-{rank:05d}-of-{world:05d}" if world > 1 else folder
    begun = {path.name[-5:] if path != folder else "00001" for path in cache_parts(folder)}
    if begun - {f"{world:05d}"}:
        raise RecipeError(
            f"The cache '{folder}' was begun by {int(min(begun))} writers, and now there are {world}. Use another "
            "folder, or delete that one."
        )
    return mine


def read_manifests(folder: Path) -> list[tuple[Path, dict[str, Any]]]:
    """Every part's folder and manifest. Raises RecipeError when there is none, or one is missing or unfinished."""
    parts = cache_parts(folder)
    if not parts:
        raise RecipeError(f"There is no latent cache in '{folder}' (no {MANIFEST}). Make one: fewstep data encode.")
    world = int(parts[0].name[-5:]) if parts != [folder] else 1
    found = [(part, read_manifest(part)) for part in parts]
    unfinished = [part for part, manifest in found if not manifest["complete"]]
    if unfinished or len(parts) != world:
        raise RecipeError(
            f"The cache '{folder}' is unfinished ({sum(count(manifest) for _, manifest in found)} samples on disk, "
            f"{len(parts) - len(unfinished)} of {world} parts done). Run the command that writes it again."
        )
    if len({(manifest["model"], manifest["moments"], manifest["pictures"]) for _, manifest in found}) > 1:
        raise RecipeError(f"The parts of the cache '{folder}' were made by different models. Make it again.")
    return found


def read_manifest(folder: Path) -> dict[str, Any]:
    """One part's manifest in the newest format. Raises RecipeError when it is damaged or of an unknown format."""
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    except ValueError as error:
        raise RecipeError(
            f"'{folder / MANIFEST}' is damaged ({error}). Delete the folder and make the cache again."
        ) from error
    if manifest.get("format") == 1:
        return _from_first(manifest)
    if manifest.get("format") != FORMAT:
        raise RecipeError(
            f"The cache '{folder}' has format {manifest.get('format')}, this version reads 1 and {FORMAT}. Make it "
            "again."
        )
    return manifest


def _from_first(manifest: dict[str, Any]) -> dict[str, Any]:
    chunks = [
        {
            "next": None,
            "text": {"file": row["text"], "bytes": None} if row["text"] else None,
            "latents": [
                {"file": row["latents"], "bytes": row["bytes"], "count": row["count"], "shape": manifest["shape"]}
            ],
            "faults": [],
            "dropped": {},
        }
        for row in manifest["shards"]
    ]
    kept = {key: manifest[key] for key in ("format", "model", "moments", "complete")}
    return kept | {"settings": {}, "pictures": True, "chunks": chunks}


def count(manifest: dict[str, Any]) -> int:
    """How many samples are on disk."""
    return sum(file["count"] for chunk in manifest["chunks"] for file in chunk["latents"])


def tally(manifest: dict[str, Any]) -> Tally:
    """What was kept and lost up to now."""
    faults = [(name, reason) for chunk in manifest["chunks"] for name, reason in chunk["faults"]]
    dropped = Counter[str]()
    for chunk in manifest["chunks"]:
        dropped.update(chunk["dropped"])
    return Tally(count(manifest), faults, dropped)


def captions(folder: Path, manifest: dict[str, Any]) -> Iterator[str]:
    """Every caption of a part, in the order of its rows."""
    for chunk in manifest["chunks"]:
        if chunk["text"]:
            with safe_open(folder / chunk["text"]["file"], "pt") as file:
                yield from json.loads(file.metadata()["captions"])


def is_whole(folder: Path, chunk: dict[str, Any]) -> bool:
    """Whether all files of a chunk are there in their full length."""
    files = [*chunk["latents"], *([chunk["text"]] if chunk["text"] else [])]
    return all(
        (folder / file["file"]).is_file() and file["bytes"] in (None, (folder / file["file"]).stat().st_size)
        for file in files
    )


def read_tensors(folder: Path, name: str, size: int | None = None) -> dict[str, torch.Tensor]:
    """The tensors of a file, mapped from disk. Raises RecipeError when it is missing, damaged or not `size` bytes."""
    try:
        if size is not None and (folder / name).stat().st_size != size:
            raise RecipeError(
                f"'{folder / name}' is not the size the manifest gives ({size} bytes). Run the command that wrote the "
                "cache again: it makes the torn shard anew."
            )
        return load_file(folder / name)
    except (OSError, SafetensorError) as error:
        raise RecipeError(
            f"'{folder / name}' of the latent cache cannot be read ({error}). Make the cache again."
        ) from error


def write_tensors(path: Path, tensors: dict[str, torch.Tensor], metadata: dict[str, str] | None = None) -> int:
    """Write a file at once or not at all; returns its bytes. Raises OutputError."""
    return _replaced(path, lambda beside: save_file(tensors, beside, metadata))


def write_manifest(folder: Path, manifest: dict[str, Any]) -> None:
    """Write the manifest at once or not at all. Raises OutputError."""
    text = json.dumps(manifest, indent=1, ensure_ascii=False) + "\n"
    _replaced(folder / MANIFEST, lambda beside: beside.write_text(text, encoding="utf-8"))


def _replaced(path: Path, write: Any) -> int:
    beside = path.with_suffix(".part")
    try:
        write(beside)
        beside.replace(path)
        return path.stat().st_size
    except (OSError, SafetensorError) as error:
        raise OutputError(f"'{path}' cannot be written ({str(error).splitlines()[0][:160]}).") from error
