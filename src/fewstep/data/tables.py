"""Tables: prompts alone (parquet, or text files of one prompt a line), and Hugging Face `datasets` directories.

pyarrow and datasets are imported where such data is opened, and not before.
"""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from fewstep.data.samples import CAPTION_KEYS, Record
from fewstep.errors import RecipeError

_ROWS_A_PART = 1024


def lines(address: str) -> Iterator[Record]:
    """One prompt a line; empty lines are passed over."""
    import fsspec

    name = address.rsplit("/", 1)[-1]
    try:
        with fsspec.open(address, "rb") as stream:
            for number, line in enumerate(stream, 1):
                if line.strip():
                    yield _prompt(f"{name}:{number}", line)
    except (OSError, ImportError) as error:
        yield Record(address, fault=f"the file cannot be read ({error})")


def parquet_records(address: str, column: str) -> Iterator[Record]:
    """The prompts of one parquet file's column, row by row."""
    import fsspec
    from pyarrow.lib import ArrowException
    from pyarrow.parquet import ParquetFile

    name, row = address.rsplit("/", 1)[-1], 0
    try:
        with fsspec.open(address, "rb") as stream:
            for batch in ParquetFile(stream).iter_batches(columns=[column]):
                for value in batch.column(0).to_pylist():
                    yield Record(f"{name}:{row}", None if value is None else str(value))
                    row += 1
    except (OSError, ImportError, ArrowException) as error:
        yield Record(address, fault=f"the table cannot be read after {row} rows ({str(error).splitlines()[0][:160]})")


def column_of(address: str, asked: str) -> str:
    """The column of captions in a parquet file: the one asked for, or the first with a usual name.

    Raises RecipeError naming the columns that are there, or the package that is missing.
    """
    import fsspec

    try:
        from pyarrow.lib import ArrowException
        from pyarrow.parquet import read_schema
    except ImportError:
        raise RecipeError(f"Reading '{address}' needs pyarrow. Run: pip install 'fewstep[data]'") from None
    try:
        with fsspec.open(address, "rb") as stream:
            return _chosen(read_schema(stream).names, asked, CAPTION_KEYS, address)
    except (OSError, ImportError, ArrowException) as error:
        raise RecipeError(f"'{address}' is no parquet file that can be read ({error}).") from error


def hf_parts(folder: Path, caption: str, image: str) -> tuple[bool, tuple[str, ...], Callable[[int], Iterator[Record]]]:
    """(has pictures, names of parts, reader) of a directory written by `save_to_disk`; pictures stay undecoded.

    Raises RecipeError when it cannot be opened, has several splits and none called train, or no column of captions.
    """
    try:
        import datasets
    except ImportError:
        raise RecipeError(f"Reading '{folder}' needs datasets. Run: pip install 'fewstep[hf]'") from None
    try:
        table: Any = datasets.load_from_disk(str(folder))
    except Exception as error:
        raise RecipeError(f"'{folder}' is no data set that `datasets` opens ({str(error)[:200]}).") from error
    if isinstance(table, datasets.DatasetDict):
        splits = [str(name) for name in table]
        table = table[_chosen(splits, "", ("train", *splits[: len(splits) == 1]), str(folder))]
    usual = [name for name, kind in table.features.items() if isinstance(kind, datasets.Image)]
    if image and image not in table.features:
        raise RecipeError(f"'{folder}' has no '{image}' among {', '.join(table.features)}. Name one of these.")
    image = image or next(iter(usual), "")
    if image:
        table = table.cast_column(image, datasets.Image(decode=False))
    column = _chosen(list(table.features), caption, CAPTION_KEYS, str(folder))
    names = tuple(f"{table._fingerprint}:{start}" for start in range(0, len(table), _ROWS_A_PART))

    def read(part: int) -> Iterator[Record]:
        for row in range(part * _ROWS_A_PART, min((part + 1) * _ROWS_A_PART, len(table))):
            yield _row(f"{folder.name}:{row}", table[row], column, image)

    return bool(image), names, read


def _row(name: str, row: dict[str, Any], column: str, image: str) -> Record:
    caption = row[column] if isinstance(row[column], str) else None
    if not image:
        return Record(name, caption)
    found = row[image] or {}
    picture = found.get("bytes") or (Path(found["path"]) if found.get("path") else None)
    return Record(name, caption, picture) if picture else Record(name, fault="the row has no picture")


def _prompt(name: str, line: bytes) -> Record:
    try:
        return Record(name, line.decode("utf-8").strip())
    except UnicodeDecodeError as error:
        return Record(name, fault=f"the prompt is not UTF-8 ({error.reason})")


def _chosen(found: list[str], asked: str, usual: tuple[str, ...], where: str) -> str:
    wanted = (asked,) if asked else usual
    name = next((name for name in wanted if name in found), None)
    if name is None:
        raise RecipeError(f"'{where}' has no '{' or '.join(wanted)}' among {', '.join(found)}. Name the right one.")
    return name
