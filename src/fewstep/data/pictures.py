"""Folders of pictures with captions: `name.png` beside `name.txt`, or a `metadata.jsonl` of {"file_name", "text"}
lines.
"""

import json
from collections.abc import Iterator
from pathlib import Path

from PIL import Image, ImageOps, UnidentifiedImageError

from fewstep.errors import ImageError, RecipeError

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")


def captioned_files(folder: str | Path) -> list[tuple[Path, str]]:
    """Every captioned picture of the folder, in the order of its name. Raises RecipeError when there is none."""
    folder = Path(folder)
    listed = folder / "metadata.jsonl"
    found = sorted(_listed(listed) if listed.is_file() else _beside(folder))
    if not found:
        raise RecipeError(
            f"'{folder}' holds no captioned pictures. Put name.txt beside each name.png, or write a metadata.jsonl."
        )
    return found


def pictures(folder: str | Path, *, size_px: int) -> Iterator[tuple[Image.Image, str]]:
    """(picture, caption) pairs, scaled and cropped to the middle square of `size_px`. Raises ImageError for an
    unreadable one.
    """
    for path, caption in captioned_files(folder):
        try:
            with Image.open(path) as image:
                yield ImageOps.fit(image.convert("RGB"), (size_px, size_px), Image.Resampling.LANCZOS), caption
        except (OSError, UnidentifiedImageError) as error:
            raise ImageError(f"'{path}' cannot be read as a picture ({error}). Remove it or its caption.") from error


def _listed(path: Path) -> list[tuple[Path, str]]:
    try:
        rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
        return [(path.parent / row["file_name"], str(row["text"])) for row in rows]
    except (ValueError, KeyError, TypeError) as error:
        raise RecipeError(f'\'{path}\' is not lines of {{"file_name", "text"}} ({error!r}).') from error


def _beside(folder: Path) -> list[tuple[Path, str]]:
    files = [
        path for path in folder.glob("*") if path.suffix.lower() in SUFFIXES and path.with_suffix(".txt").is_file()
    ]
    return [(path, path.with_suffix(".txt").read_text(encoding="utf-8").strip()) for path in files]
