"""A worker in a process of its own, spoken to by its standard input and output.

python -m fewstep.engine.process      carries errands out until its input ends; the near end starts it
"""

from __future__ import annotations

import contextlib
import os
import queue
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping
from typing import IO

from fewstep.engine import wire
from fewstep.engine.wire import Letter

END_S = 5.0


class Process:
    """The near end (`fleet.Worker`). `environment` is added to this process' own."""

    def __init__(
        self,
        heard: Callable[[Letter], None],
        lost: Callable[[], None],
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "fewstep.engine.process"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, **(environment or {})},
        )
        self._letters: queue.SimpleQueue[Letter | None] = queue.SimpleQueue()
        self._heard, self._lost = heard, lost
        for work in (self._write, self._read):
            threading.Thread(target=work, name="fewstep-worker", daemon=True).start()

    @property
    def pid(self) -> int:
        """The process' number."""
        return self._process.pid

    def send(self, letter: Letter) -> None:
        """Put into its input, by a thread: a slow worker holds up nobody."""
        self._letters.put(letter)

    def close(self) -> None:
        """End its input; it leaves by itself, or is made to."""
        self._lost = _nothing
        self._letters.put(None)
        try:
            self._process.wait(END_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def _write(self) -> None:
        stream = self._process.stdin
        assert stream is not None
        with contextlib.suppress(OSError, ValueError):
            while (letter := self._letters.get()) is not None:
                stream.write(letter.packed())
                stream.flush()
            stream.close()

    def _read(self) -> None:
        stream = self._process.stdout
        assert stream is not None
        with contextlib.suppress(OSError, ValueError):
            while (letter := wire.read(stream)) is not None:
                self._heard(letter)
        self._process.wait()
        self._lost()


def hire_process(devices: int = 0) -> Callable[[int, Callable[[Letter], None], Callable[[], None]], Process]:
    """Starts processes; with `devices` GPUs each has one of them for itself, by turns."""

    def hire(index: int, heard: Callable[[Letter], None], lost: Callable[[], None]) -> Process:
        return Process(heard, lost, {"CUDA_VISIBLE_DEVICES": str(index % devices)} if devices else None)

    return hire


def _nothing() -> None:
    """Nobody needs to know."""


def main() -> None:
    """The far end."""
    from fewstep.engine.errands import Workshop

    answers: IO[bytes] = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what is printed goes where errors go
    lock = threading.Lock()

    def say(letter: Letter) -> None:
        with lock:
            answers.write(letter.packed())
            answers.flush()

    workshop = Workshop(say)
    while (letter := wire.read(sys.stdin.buffer)) is not None:
        workshop.take(letter)
    workshop.close()


if __name__ == "__main__":
    main()
