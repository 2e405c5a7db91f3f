"""Binary messages of the live socket, `fewstep.live.v1`: a header of 24 bytes, little endian, then the payload.

| bytes | field       |                                                                                        |
|-------|-------------|----------------------------------------------------------------------------------------|
| 1     | version     | 1                                                                                      |
| 1     | kind        | 1 input, 2 output, 3 preview, 4 mask, 5 control, 6 init layer                            |
| 1     | codec       | 1 JPEG, 2 WebP, 3 PNG                                                                    |
| 1     | flags       | 2 final, 4 refined, 8 unchanged                                                          |
| 4     | seq         | the message's number                                                                     |
| 4     | revision    | of the parameters that the sender had, or painted with                                   |
| 4     | sender_ms   | the sender's clock; of an output, that of the frame it was painted from                   |
| 4     | source_seq  | of an output, the frame it was painted from                                              |
| 2     | server_ms10 | of an output, tenths of a millisecond in the making                                      |
| 2     | queue_ms10  | of an output, tenths of a millisecond in the queue                                       |
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from enum import IntEnum, IntFlag

from fewstep.errors import RequestError

VERSION = 1
LIMIT = 4 * 2**20
"""Bytes of a message."""

_HEADER = struct.Struct("<BBBBIIIIHH")
SIZE = _HEADER.size


class Kind(IntEnum):
    """What a message brings."""

    INPUT, OUTPUT, PREVIEW, MASK, CONTROL, LAYER = 1, 2, 3, 4, 5, 6


class Codec(IntEnum):
    """How its picture is written."""

    JPEG, WEBP, PNG = 1, 2, 3


class Flag(IntFlag):
    """What else is true of an output."""

    NONE, FINAL, REFINED, UNCHANGED = 0, 2, 4, 8


@dataclass(frozen=True)
class Message:
    """One binary message. Times that do not fit into their field are written as its largest number."""

    kind: Kind
    codec: Codec
    seq: int
    payload: bytes
    flags: Flag = Flag.NONE
    revision: int = 0
    sender_ms: int = 0
    source_seq: int = 0
    server_ms: float = 0.0
    queue_ms: float = 0.0

    def packed(self) -> bytes:
        """The bytes to send."""
        numbers = (number % 2**32 for number in (self.seq, self.revision, self.sender_ms, self.source_seq))
        times = (min(65535, max(0, round(ms * 10))) for ms in (self.server_ms, self.queue_ms))
        return _HEADER.pack(VERSION, self.kind, self.codec, self.flags, *numbers, *times) + self.payload


def unpacked(data: bytes) -> Message:
    """The message in these bytes.

    Raises:
        RequestError: too short, too long, another version, an unknown kind or codec, or no payload.
    """
    if len(data) <= SIZE:
        raise RequestError(
            f"A live message has {len(data)} bytes, but its header alone has {SIZE}, and a picture follows."
        )
    if len(data) > LIMIT:
        raise RequestError(
            f"A live message has {len(data)} bytes, but at most {LIMIT} are allowed. Send a smaller picture."
        )
    version, kind, codec, flags, seq, revision, sender_ms, source_seq, server_ms10, queue_ms10 = _HEADER.unpack_from(
        data
    )
    if version != VERSION:
        raise RequestError(f"A live message is of version {version}; this server speaks version {VERSION}.")
    try:
        what, how = Kind(kind), Codec(codec)
    except ValueError:
        raise RequestError(
            f"A live message has the kind {kind} and the codec {codec}, of which one is not known."
        ) from None
    known = Flag.FINAL | Flag.REFINED | Flag.UNCHANGED
    times = {"server_ms": server_ms10 / 10, "queue_ms": queue_ms10 / 10}
    return Message(what, how, seq, data[SIZE:], Flag(flags) & known, revision, sender_ms, source_seq, **times)
