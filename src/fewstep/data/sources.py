"""Where samples come from: shards, folders, tables. Whatever it is, a source is a list of parts, each read in order.

| given | what it is |
|---|---|
| `shards/{00000..00099}.tar`, `s3://bucket/*.tar`, a folder of .tar files | webdataset shards |
| a folder with pictures | captions in .txt or .json beside them, or metadata.jsonl |
| a folder written by `Dataset.save_to_disk` | Hugging Face `datasets` (extra `hf`) |
| .parquet or .txt, or a folder of .parquet | prompts alone: no pictures |

A position is (place in the order of parts, record in the part): two whole numbers that a checkpoint can keep.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

from fewstep.data.pictures import METADATA, SUFFIXES, picture_files, picture_record
from fewstep.data.samples import Record
from fewstep.data.tables import column_of, hf_parts, lines, parquet_records
from fewstep.data.tars import expand_braces, shard_records
from fewstep.errors import RecipeError

Position = tuple[int, int]
SHARDS = (".tar", ".tar.gz", ".tgz")
_FILES_A_PART = 256


@dataclass(frozen=True)
class Source:
    """Samples in parts. `read(part)` gives a part's records in order, always the same; `pictures` is False where
    there are prompts alone; `names` are the parts' own, for the fingerprint.
    """

    where: str
    kind: str
    pictures: bool
    names: tuple[str, ...]
    read: Callable[[int], Iterator[Record]]

    @property
    def fingerprint(self) -> str:
        """Ten hexadecimal digits of what it is and of its parts' names."""
        return sha256("\n".join((self.kind, *self.names)).encode()).hexdigest()[:10]


def walk(
    source: Source,
    *,
    rank: int = 0,
    world: int = 1,
    start: Position = (0, 0),
    order: Sequence[int] | None = None,
) -> Iterator[tuple[Position, Position, Record]]:
    """(position after it, (part, place in it), record) of the samples that belong to `rank`, from `start` on.

    Ranks share out whole parts; where there are fewer parts than ranks, all read every part and share the samples.
    """
    order = range(len(source.names)) if order is None else order
    whole = len(order) >= world
    mine = order[rank::world] if whole else order
    for place in range(start[0], len(mine)):
        for index, record in enumerate(source.read(mine[place])):
            if place == start[0] and index < start[1]:
                continue
            if whole or (place + index) % world == rank:
                yield (place, index + 1), (mine[place], index), record


def open_source(where: str | Path, *, caption: str = "", image: str = "") -> Source:
    """The source at `where`, by what is found there; `caption` and `image` name a table's columns.

    Raises RecipeError saying what was found and what is understood.
    """
    text = str(where)
    if any(mark in text for mark in "{*") or "://" in text or text.endswith((*SHARDS, ".parquet", ".txt")):
        return _files(text, _addresses(text), caption)
    folder = Path(where)
    if not folder.exists():
        raise RecipeError(
            f"There is nothing at '{where}'. Give a folder, or a pattern such as shards/{{000..099}}.tar."
        )
    if not folder.is_dir():
        raise RecipeError(f"'{where}' is no data that is understood. Give .tar, .parquet or .txt, or a folder.")
    return _folder(folder, caption, image)


def _folder(folder: Path, caption: str, image: str) -> Source:
    if (folder / "dataset_dict.json").is_file() or (folder / "dataset_info.json").is_file():
        return _hugging_face(folder, caption, image)
    for suffix in (".tar", ".parquet"):
        found = sorted(str(path) for path in folder.glob(f"*{suffix}"))
        if found:
            return _files(str(folder), found, caption)
    files = picture_files(folder)
    if files or (folder / METADATA).is_file():
        return _pictures(folder, files)
    found = sorted({path.suffix or path.name for path in folder.iterdir()})[:8]
    raise RecipeError(
        f"'{folder}' holds {', '.join(found) or 'nothing'}. Give a folder of pictures ({', '.join(SUFFIXES)}) with "
        ".txt captions beside them, of .tar shards, of .parquet prompts, or one written by Dataset.save_to_disk."
    )


def _addresses(pattern: str) -> list[str]:
    import fsspec

    found: list[str] = []
    for address in expand_braces(pattern):
        if "*" not in address:
            found.append(address)
            continue
        try:
            found += sorted(file.full_name for file in fsspec.open_files(address, "rb"))
        except (ImportError, ValueError, OSError) as error:
            raise RecipeError(f"'{address}' cannot be listed ({error}).") from error
    missing = [address for address in found if "://" not in address and not Path(address).is_file()]
    if missing or not found:
        first = f", first '{missing[0]}'" if missing else ""
        raise RecipeError(
            f"'{pattern}' names {len(found)} files and {len(missing)} are missing{first}. Check the path."
        )
    return found


def _files(where: str, addresses: list[str], caption: str) -> Source:
    kinds = {next((kind for kind in (*SHARDS, ".parquet", ".txt") if name.endswith(kind)), "") for name in addresses}
    if kinds <= set(SHARDS):
        return Source(where, "shards", True, tuple(addresses), lambda part: shard_records(addresses[part]))
    if kinds == {".parquet"}:
        column = column_of(addresses[0], caption)
        return Source(where, "prompts", False, tuple(addresses), lambda part: parquet_records(addresses[part], column))
    if kinds == {".txt"}:
        return Source(where, "prompts", False, tuple(addresses), lambda part: lines(addresses[part]))
    raise RecipeError(
        f"'{where}' names files of other kinds than .tar, .parquet or .txt, or mixes them. Give one kind."
    )


def _pictures(folder: Path, files: list[tuple[Path, Any]]) -> Source:
    parts = [files[start : start + _FILES_A_PART] for start in range(0, len(files), _FILES_A_PART)]
    names = tuple(str(path.relative_to(folder)) if path.is_relative_to(folder) else str(path) for path, _ in files)
    digests = (
        sha256("\n".join(names[k * _FILES_A_PART : (k + 1) * _FILES_A_PART]).encode()) for k in range(len(parts))
    )

    def read(part: int) -> Iterator[Record]:
        return (picture_record(folder, path, text) for path, text in parts[part])

    return Source(str(folder), "pictures", True, tuple(digest.hexdigest() for digest in digests), read)


def _hugging_face(folder: Path, caption: str, image: str) -> Source:
    pictures, parts, read = hf_parts(folder, caption, image)
    return Source(str(folder), "datasets", pictures, parts, read)
