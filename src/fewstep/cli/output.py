"""Where pictures go: names, and every reason why they cannot be written, found before a model is loaded."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Sequence
from itertools import count
from pathlib import Path

from fewstep.errors import OutputError


def numbered(path: Path, count: int) -> list[Path]:
    """One name for each picture.

    >>> [path.name for path in numbered(Path("b.png"), 2)]
    ['b-1.png', 'b-2.png']
    """
    if count == 1:
        return [path]
    return [path.with_name(f"{path.stem}-{number}{path.suffix}") for number in range(1, count + 1)]


def step_name(folder: Path, path: Path, step: int) -> Path:
    """Where the preview of a picture after a step goes.

    >>> step_name(Path("steps"), Path("out/b.jpg"), 1).as_posix()
    'steps/b-step-01.png'
    """
    return folder / f"{path.stem}-step-{step:02d}.png"


def default_name(prompt: str, seed: int) -> Path:
    """A name made of the prompt and the seed, in the current folder, that no file has yet.

    >>> default_name("A red apple, 3d!", 7).name
    'a-red-apple-3d-7.png'
    """
    stem = f"{_words(prompt) or 'picture'}-{seed}"
    number, path = 1, Path(f"{stem}.png")
    while any(Path().glob(f"{path.stem}*.png")):
        number += 1
        path = Path(f"{stem}-again-{number}.png")
    return path


def _words(prompt: str) -> str:
    return "-".join(re.findall(r"[a-z0-9]+", prompt.lower()))[:40].strip("-")


def folder_names(kind: str, prompt: str) -> Iterator[Path]:
    """Names for a folder of this kind, one after the other, without end.

    >>> names = folder_names("grid", "A red apple, 3d!")
    >>> next(names).name, next(names).name
    ('grid-a-red-apple-3d', 'grid-a-red-apple-3d-2')
    """
    stem = f"{kind}-{_words(prompt)}".rstrip("-")
    yield Path(stem)
    yield from (Path(f"{stem}-{number}") for number in count(2))


def check_outputs(paths: Sequence[Path], inputs: Iterable[object]) -> None:
    """Raises OutputError unless all these picture files can be written and none of them is an input."""
    from fewstep.image import format_of

    sources = [Path(source) for source in inputs if isinstance(source, (str, os.PathLike))]
    for path in paths:
        format_of(path)
        if path.is_dir():
            raise OutputError(f"'{path}' is a folder. Give the picture a file name with -o, such as {path / 'a.png'}.")
        check_folder(path.parent)
        if any(_same(path, source) for source in sources):
            raise OutputError(f"'{path}' is an input of this picture and would be overwritten. Choose another name.")


def check_folder(folder: Path) -> None:
    """Raises OutputError unless files can be put into this folder."""
    if not folder.exists():
        raise OutputError(f"The folder '{folder}' does not exist. Create it first, or choose another.")
    if not folder.is_dir():
        raise OutputError(f"'{folder}' is not a folder. Choose another place.")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise OutputError(f"The folder '{folder}' may not be written to. Choose another, or change its permissions.")


def check_new_folder(folder: Path) -> None:
    """As `check_folder`, for a folder that is created where it does not exist."""
    check_folder(folder if folder.exists() else folder.absolute().parent)


def _same(path: Path, source: Path) -> bool:
    if path.exists() and source.exists():
        return path.samefile(source)
    return path.absolute() == source.absolute()
