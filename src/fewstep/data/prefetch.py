"""The next batches, made in a thread while this one is trained on."""

from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

from fewstep.data.latents import Batch, Data
from fewstep.models.text import Text

Key = tuple[int, int, int, int, int]
"""seed, step, size, rank, world."""


class Prefetched:
    """Another data set, a few steps ahead. Its position is that of the last batch given, not of those in waiting."""

    def __init__(self, data: Data, *, ahead: int = 2) -> None:
        """`ahead` batches are made before they are asked for."""
        self.data = data
        self._ahead, self._position = ahead, data.position()
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="prefetch")
        self._coming: dict[Key, Future[tuple[Batch, dict[str, Any]]]] = {}
        self._last: tuple[Key, Batch] | None = None

    def batch(self, seed: int, step: int, *, size: int, rank: int = 0, world: int = 1) -> Batch:
        """The items of a step, from those in waiting where they are the ones asked for."""
        key = (seed, step, size, rank, world)
        if self._last is not None and self._last[0] == key:
            return self._last[1]
        if key not in self._coming:
            self._drop()
        for place in range(step, step + self._ahead + 1):
            self._submit((seed, place, size, rank, world))
        batch, self._position = self._coming.pop(key).result()
        self._last = (key, batch)
        return batch

    def position(self) -> dict[str, Any]:
        """Where the last batch given left off."""
        return self._position

    def seek(self, position: dict[str, Any]) -> None:
        """Throw away what is waiting, and go on from there."""
        self._drop()
        self._last = None
        self.data.seek(position)
        self._position = self.data.position()

    def close(self) -> None:
        """End the thread."""
        self._drop()
        self._pool.shutdown()

    def _submit(self, key: Key) -> None:
        if key not in self._coming:
            self._coming[key] = self._pool.submit(self._make, key)

    def _make(self, key: Key) -> tuple[Batch, dict[str, Any]]:
        seed, step, size, rank, world = key
        batch = self.data.batch(seed, step, size=size, rank=rank, world=world)
        return batch, self.data.position()

    def _drop(self) -> None:
        """Forget the batches in waiting, and put a stream back to before them."""
        if not self._coming:
            return
        for future in self._coming.values():
            future.cancel()
        self._pool.submit(lambda: None).result()
        self._coming.clear()
        self.data.seek(self._position)

    @property
    def folder(self) -> Path:
        """Where the data is."""
        return self.data.folder

    @property
    def model_hash(self) -> str:
        """The model that the latents and embeddings were made by."""
        return self.data.model_hash

    @property
    def pictures(self) -> bool:
        """Are there pictures, or prompts alone?"""
        return self.data.pictures

    @property
    def count(self) -> int | None:
        """How many samples there are, where that is known."""
        return self.data.count

    @property
    def captions(self) -> tuple[str, ...]:
        """The captions that `text` knows."""
        return self.data.captions

    @property
    def empty(self) -> Text:
        """The empty prompt."""
        return self.data.empty

    @property
    def shape(self) -> tuple[int, int, int]:
        """Channels, height and width of the commonest latents."""
        return self.data.shape

    @property
    def fingerprint(self) -> str:
        """What a checkpoint must find again."""
        return self.data.fingerprint

    def text(self, captions: Sequence[int]) -> Text:
        """The embeddings of some of `captions`."""
        return self.data.text(captions)
