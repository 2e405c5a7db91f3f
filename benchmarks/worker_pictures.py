"""Pictures to a worker process and back: through pipes, as they go, and through shared memory.

    python benchmarks/worker_pictures.py [--sizes 512 1024] [--rounds 100] [--cpu]

The far end sends every picture back. Through shared memory a message carries only the header; either way the pixels are
copied out into a picture of the receiver's own, because a block serves the next message. With `--cpu` processor
seconds of both ends, which a busy machine disturbs least.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from multiprocessing import resource_tracker
from multiprocessing.shared_memory import SharedMemory
from typing import IO, Any

import numpy as np
from PIL import Image
from race import by_turns, report

from fewstep.engine import wire
from fewstep.engine.wire import Letter


def far(name: str) -> None:
    """The far end: answers until its input ends. After each answer it says how long its processor worked so far."""
    block = SharedMemory(name)
    resource_tracker.unregister(block._name, "shared_memory")  # pyright: ignore - the near end removes it
    while (letter := wire.read(sys.stdin.buffer)) is not None:
        size, busy_s = letter.values.get("size"), {"busy_s": time.process_time()}
        if size is None:
            answer = Letter(busy_s, letter.pictures)
        else:
            put(block, taken(block, tuple(size)))
            answer = Letter(busy_s | {"size": size})
        sys.stdout.buffer.write(answer.packed())
        sys.stdout.buffer.flush()
    block.close()


def put(block: SharedMemory, picture: Image.Image) -> None:
    """A picture's pixels into the block."""
    data = picture.tobytes()
    block.buf[: len(data)] = data


def taken(block: SharedMemory, size: tuple[int, int]) -> Image.Image:
    """The picture in the block, as one of our own."""
    return Image.frombytes("RGB", size, bytes(block.buf[: 3 * size[0] * size[1]]))


class Near:
    """The near end, with both ways of sending; `clock` counts the far end's processor, too."""

    def __init__(self, largest: int) -> None:
        self.block = SharedMemory(create=True, size=3 * largest**2)
        command = [sys.executable, __file__, "--far", self.block.name]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env={**os.environ})
        self.far_s = 0.0

    def clock(self) -> float:
        """Processor seconds of both ends."""
        return time.process_time() + self.far_s

    def ask(self, letter: Letter) -> Letter:
        """Send, and wait for the answer."""
        into: IO[bytes] = self.process.stdin  # type: ignore[assignment]
        into.write(letter.packed())
        into.flush()
        answer = wire.read(self.process.stdout)  # type: ignore[arg-type]
        assert answer is not None
        self.far_s = answer.values["busy_s"]
        return answer

    def by_pipe(self, picture: Image.Image) -> Image.Image:
        """There and back as a letter has it."""
        return self.ask(Letter({}, {"picture": picture})).pictures["picture"]

    def by_memory(self, picture: Image.Image) -> Image.Image:
        """There and back through the block."""
        put(self.block, picture)
        self.ask(Letter({"size": picture.size}))
        return taken(self.block, picture.size)

    def close(self) -> None:
        """End the far end."""
        self.process.communicate()
        self.block.close()
        with suppress(FileNotFoundError):
            self.block.unlink()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sizes", type=int, nargs="+", default=[512, 1024])
    parser.add_argument("--rounds", type=int, default=100)
    parser.add_argument("--cpu", action="store_true")
    parser.add_argument("--far", metavar="BLOCK", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.far:
        return far(args.far)
    near = Near(max(args.sizes))
    clock: Any = near.clock if args.cpu else time.perf_counter
    for size in args.sizes:
        picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (size, size, 3), np.uint8))
        assert near.by_memory(picture).tobytes() == near.by_pipe(picture).tobytes() == picture.tobytes()
        contestants: dict[str, Callable[[], Any]] = {
            "memory": lambda picture=picture: near.by_memory(picture),
            "pipe": lambda picture=picture: near.by_pipe(picture),
        }
        seconds = by_turns(contestants, rounds=args.rounds, warm_up=3, clock=clock)
        report(seconds, ours="memory", benchmark="worker_pictures", what=f"{size}px", size_px=size, cpu=args.cpu)
    near.close()
    return None


if __name__ == "__main__":
    main()
