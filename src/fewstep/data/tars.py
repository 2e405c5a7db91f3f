"""Webdataset shards: tar files in which the files of one sample share a name up to the first dot and lie together.

    000123.jpg 000123.txt 000124.png 000124.json ...

Read from start to end with the standard library, from a local path or any address that fsspec opens; nothing is
unpacked to disk. A shard that is cut short gives the samples before the cut, and says so.
"""

import re
import tarfile
from collections.abc import Iterator
from typing import IO, Any

from fewstep.data.samples import Record, read_caption

PICTURE_KEYS = ("png", "jpg", "jpeg", "webp")
CAPTION_FILES = ("txt", "text", "caption", "json")
_BRACE = re.compile(r"\{([^{}]*)\}")
_RANGE = re.compile(r"(\d+)\.\.(\d+)")
_END = 1024


def expand_braces(pattern: str) -> list[str]:
    """Every name of a pattern with ranges and lists; leading zeros are kept.

    >>> expand_braces("s-{08..10}.tar"), expand_braces("{a,b}-{0..1}")
    (['s-08.tar', 's-09.tar', 's-10.tar'], ['a-0', 'a-1', 'b-0', 'b-1'])
    """
    found = _BRACE.search(pattern)
    if found is None:
        return [pattern]
    before, after = pattern[: found.start()], expand_braces(pattern[found.end() :])
    return [f"{before}{choice}{rest}" for choice in _choices(found[1]) for rest in after]


def _choices(inside: str) -> list[str]:
    numbers = _RANGE.fullmatch(inside)
    if numbers is None:
        return inside.split(",")
    first, last = int(numbers[1]), int(numbers[2])
    return [str(number).zfill(len(numbers[1])) for number in range(first, last + 1)]


def shard_records(address: str) -> Iterator[Record]:
    """The samples of one shard in order; a last one with a fault when it cannot be read to its end."""
    import fsspec

    shard, key = address.rsplit("/", 1)[-1], ""
    try:
        opened: Any = fsspec.open(address, "rb")
        with opened as stream:
            tail = _Tail(stream)
            with tarfile.open(fileobj=tail, mode="r|*") as tar:  # type: ignore[arg-type]
                for key, files in _groups(tar):
                    yield _record(f"{shard}/{key}", files)
            if not tail.ended():
                yield Record(address, fault=f"the shard has no end mark, so it is cut short{_after(key)}")
    except (tarfile.TarError, OSError, EOFError, ValueError, ImportError) as error:
        yield Record(address, fault=f"the shard cannot be read{_after(key)} ({_reason(error)})")


class _Tail:
    """A file that remembers its last bytes: a whole tar ends in 1,024 zeros (compressed ones end by their own mark)."""

    def __init__(self, stream: IO[bytes]) -> None:
        self._stream, self._head, self._last = stream, b"", b""

    def read(self, size: int = -1) -> bytes:
        data = self._stream.read(size)
        self._head = self._head or data[:6]
        self._last = (self._last + data)[-_END:]
        return data

    def ended(self) -> bool:
        while self.read(1 << 20):
            pass
        packed = self._head.startswith((b"\x1f\x8b", b"BZh", b"\xfd7zXZ"))
        return packed or not self._last.strip(b"\0")


def _groups(tar: tarfile.TarFile) -> Iterator[tuple[str, dict[str, bytes]]]:
    """(key, {extension: content}) of each run of files with one key; the name is split at its first dot."""
    now: str | None = None
    files: dict[str, bytes] = {}
    for member in tar:
        if not member.isfile():
            continue
        folder, _, name = member.name.removeprefix("./").rpartition("/")
        stem, _, kind = name.partition(".")
        key = f"{folder}/{stem}" if folder else stem
        if now is not None and key != now:
            yield now, files
            files = {}
        now = key
        content = tar.extractfile(member)
        files[kind.lower().rpartition(".")[2]] = content.read() if content else b""
    if now is not None:
        yield now, files


def _record(name: str, files: dict[str, bytes]) -> Record:
    picture = next((files[kind] for kind in PICTURE_KEYS if kind in files), None)
    if picture is None:
        return Record(name, fault=f"no picture among its files ({', '.join(sorted(files))})")
    try:
        captions = (read_caption(files[kind], kind) for kind in CAPTION_FILES if kind in files)
        caption = next((text for text in captions if text is not None), None)
    except ValueError as error:
        return Record(name, fault=f"the caption cannot be read ({_reason(error)})")
    return Record(name, caption, picture)


def _after(key: Any) -> str:
    return f" after sample '{key}'" if key else ""


def _reason(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:160]
