"""Folders of pictures with captions: `name.png` beside `name.txt` or `name.json`, at any depth, or a `metadata.jsonl`
of {"file_name", "text"} lines at the top.
"""

import json
from collections.abc import Iterator
from pathlib import Path

from fewstep.data.samples import Record, caption_of, read_caption
from fewstep.errors import RecipeError

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")
METADATA = "metadata.jsonl"


def picture_files(folder: str | Path) -> list[tuple[Path, str | None]]:
    """(path, caption) of every picture in the order of its path; the caption is None where it stands in a file of its
    own, still to be read. Raises RecipeError for a metadata.jsonl that is none.
    """
    folder = Path(folder)
    listed = folder / METADATA
    if listed.is_file():
        return sorted(_listed(listed))
    return sorted((path, None) for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES)


def picture_record(folder: Path, path: Path, caption: str | None) -> Record:
    """The picture with its caption, which is read from beside it unless it is given."""
    name = path.relative_to(folder).as_posix() if path.is_relative_to(folder) else str(path)
    if not path.is_file():
        return Record(name, fault="the picture is missing")
    try:
        return Record(name, _beside(path) if caption is None else caption, path)
    except (OSError, ValueError) as error:
        return Record(name, fault=f"the caption cannot be read ({str(error).splitlines()[0][:160]})")


def _beside(path: Path) -> str | None:
    for kind in ("txt", "json"):
        file = path.with_suffix(f".{kind}")
        if file.is_file():
            return read_caption(file.read_bytes(), kind)
    return None


def _listed(path: Path) -> Iterator[tuple[Path, str]]:
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        try:
            row = json.loads(line) if line.strip() else None
            if row is not None:
                yield path.parent / row["file_name"], caption_of(row) or ""
        except (ValueError, KeyError, TypeError) as error:
            wanted = '{"file_name", "text"}'
            raise RecipeError(f"Line {number} of '{path}' is not {wanted} ({error!r}).") from error
