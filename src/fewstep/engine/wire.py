"""Messages between an engine and its workers: a JSON header and pictures as they lie in memory. Never a pickle.

    u32 little-endian: bytes of the header | header, UTF-8 JSON | pictures, one after the other

The header's `pictures` says of each its name, mode, size and, for a painted one, its settings.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import IO, Any

from PIL import Image

from fewstep.infotext import PNG_KEY, Picture

_LENGTH = struct.Struct("<I")
_BYTES = {"L": 1, "RGB": 3}


@dataclass(frozen=True)
class Letter:
    """A message: JSON values, and pictures (grey or RGB) by name."""

    values: Mapping[str, Any]
    pictures: Mapping[str, Image.Image] = field(default_factory=dict)

    def packed(self) -> bytes:
        """The bytes to send."""
        plain = {name: one if one.mode in _BYTES else one.convert("RGB") for name, one in self.pictures.items()}
        kinds = [[name, one.mode, one.width, one.height, one.info.get(PNG_KEY)] for name, one in plain.items()]
        header = json.dumps({**self.values, "pictures": kinds}).encode()
        return b"".join([_LENGTH.pack(len(header)), header, *(one.tobytes() for one in plain.values())])


def unpacked(data: bytes | memoryview) -> Letter:
    """The message in these bytes."""
    view = memoryview(data)
    (length,) = _LENGTH.unpack_from(view)
    return _letter(json.loads(bytes(view[4 : 4 + length])), view[4 + length :])


def read(stream: IO[bytes]) -> Letter | None:
    """The next message of a stream; None at its end, also where that comes in the middle of a message."""
    start = _exactly(stream, 4)
    if start is None:
        return None
    header = _exactly(stream, _LENGTH.unpack(start)[0])
    if header is None:
        return None
    values = json.loads(header)
    body = _exactly(stream, sum(_BYTES[mode] * width * height for _, mode, width, height, _ in values["pictures"]))
    return None if body is None else _letter(values, memoryview(body))


def _letter(values: dict[str, Any], body: memoryview) -> Letter:
    pictures, place = {}, 0
    for name, mode, width, height, text in values.pop("pictures"):
        size = _BYTES[mode] * width * height
        image = Image.frombytes(mode, (width, height), bytes(body[place : place + size]))
        pictures[name] = image if text is None else Picture.of(image, text)
        place += size
    return Letter(values, pictures)


def _exactly(stream: IO[bytes], size: int) -> bytes | None:
    parts, left = [], size
    while left:
        part = stream.read(left)
        if not part:
            return None
        parts.append(part)
        left -= len(part)
    return b"".join(parts)
