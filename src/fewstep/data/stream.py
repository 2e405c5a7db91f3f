"""Training without a cache: samples are read, decoded and encoded while training runs.

The parts of the source come in a fresh order each epoch; within blocks of `buffer` records the order is shuffled. Both
orders are made from the seed, so a position is a few numbers, and a stream put back there gives the same next samples
bit for bit, whatever happened before.

Every process reads every record's head (size and caption decide its bucket), and decodes and encodes only its own rows:
positions are the same in all of them, and together they have the batch that one process with size * world would have.

Shapes: B batch, C channels, H, W latent height and width.
"""

from collections import deque
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import torch

from fewstep.data.buckets import Framing, Shape
from fewstep.data.latents import Batch
from fewstep.data.samples import Filters, Frame, Lost, Record, Tally, frame_of, measure
from fewstep.data.seeds import generator_at, noise_at
from fewstep.data.sources import Position, Source, walk
from fewstep.data.write import Encoders, encode_frames, latent_shape
from fewstep.errors import RecipeError
from fewstep.models.text import Text

_LOOKED_AT = 64


@dataclass
class _Place:
    """Where a stream is: forward passes given, epoch, the block's number and where it begins, records taken from it."""

    step: int = 0
    epoch: int = 0
    block: int = 0
    start: Position = (0, 0)
    taken: int = 0


@dataclass(frozen=True)
class _Waiting:
    """A record that waits for its bucket to be full, and where it stands: (part, place in it)."""

    at: Position
    epoch: int
    record: Record


@dataclass
class _Block:
    """The records of a block in the source's order, the order they are taken in, and where the next block begins."""

    records: list[tuple[Position, Record]] = field(default_factory=list)
    order: list[int] = field(default_factory=list)
    after: Position = (0, 0)


class Stream:
    """Batches from a source, encoded on the way; given in order, and `position` says where it is."""

    def __init__(
        self,
        source: Source,
        model: Encoders,
        framing: Framing,
        *,
        filters: Filters | None = None,
        buffer: int = 512,
        workers: int = 2,
    ) -> None:
        """Look at the source's first captions. Raises RecipeError when not one sample can be used."""
        self.source, self.model, self.framing, self.filters = source, model, framing, filters or Filters()
        self.folder, self.model_hash, self.pictures = Path(source.where), model.content_hash, source.pictures
        self.tally = Tally()
        self._buffer, self._workers = buffer, workers
        self.captions = self._first_captions()
        with torch.no_grad():
            self.empty: Text = _on_cpu(model.text.encode_negative([""]))
        self._seed: int | None = None
        self._place, self._block = _Place(), _Block()
        self._waiting: dict[Shape | None, deque[_Waiting]] = {}
        self._last: tuple[tuple[int, ...], Batch] | None = None
        self._named: set[str] = set()

    @property
    def shape(self) -> tuple[int, int, int]:
        """Channels, height and width of the latents of the framing's squarest shape."""
        channels, height, width = latent_shape(self.model.vae, self.framing.squarest)
        return channels, height, width

    @property
    def fingerprint(self) -> str:
        """What a checkpoint must find again: the model, the source, and how it is read."""
        how = f"{self._buffer}:{self.framing}:{self.filters}"
        return f"{self.model_hash}:{self.source.fingerprint}:{how}"

    @property
    def count(self) -> int | None:
        """Unknown: a stream is not counted before it is read."""
        return None

    def text(self, captions: Sequence[int]) -> Text:
        """The embeddings of some of the source's first captions, float32."""
        return self._encoded([self.captions[row] for row in captions])

    def batch(self, seed: int, step: int, *, size: int, rank: int = 0, world: int = 1) -> Batch:
        """The items of `step`, all of one bucket: the bucket that is first full. The same step may be asked again.

        A picture that turns out damaged when it is decoded is counted, and the next good one of the batch stands in.
        Raises RecipeError for any other step than the next, and when the source gives nothing.
        """
        asked = (seed, step, size, rank, world)
        if self._last is not None and self._last[0] == asked:
            return self._last[1]
        if step != self._place.step or self._seed not in (None, seed):
            raise RecipeError(
                f"The stream of '{self.source.where}' is at step {self._place.step} of seed {self._seed}, and step "
                f"{step} of seed {seed} was asked. A stream goes forwards only: resume from its "
                "checkpoint, or encode a cache."
            )
        self._seed = seed
        shape, whole = self._next_rows(size * world)
        batch = self._encode(seed, step, shape, whole, slice(rank * size, (rank + 1) * size))
        self._place.step += 1
        self._last = (asked, batch)
        return batch

    def position(self) -> dict[str, Any]:
        """Where the stream is; json."""
        waiting = [[*row.at, row.epoch] for rows in self._waiting.values() for row in rows]
        return {"seed": self._seed, **vars(self._place), "waiting": waiting}

    def seek(self, position: dict[str, Any]) -> None:
        """Go on from a `position`: the block is read again, and so are the records that waited for their bucket.

        Raises RecipeError for the position of a cache, or of other data.
        """
        if not position:
            raise RecipeError("The checkpoint was made from a cache, not from a stream. Leave --stream out.")
        first, index = position["start"]
        self._place = _Place(**{name: position[name] for name in vars(_Place())})
        self._place.start = (first, index)
        self._seed, self._last, self._block, self._waiting = position["seed"], None, _Block(), {}
        if self._seed is not None:
            self._block = self._read_block()
        for row in self._again([((part, index), epoch) for part, index, epoch in position["waiting"]]):
            self._wait(row)

    def _next_rows(self, count: int) -> tuple[Shape | None, list[_Waiting]]:
        kept_before, epochs = self.tally.kept, 0
        while True:
            for shape, rows in self._waiting.items():
                if len(rows) >= count:
                    return shape, [rows.popleft() for _ in range(count)]
            if self._place.taken == len(self._block.order):
                epochs += self._next_block()
            if epochs > 1 and self.tally.kept == kept_before:
                self.tally.kept = 0
                self.tally.check(self.source.where)
            if self._block.order:
                at, record = self._block.records[self._block.order[self._place.taken]]
                self._place.taken += 1
                self._wait(_Waiting(at, self._place.epoch, record), count=True)

    def _wait(self, row: _Waiting, *, count: bool = False) -> None:
        found = measure(row.record, self.filters)
        if count and not self._count(row, found):
            return
        if not isinstance(found, Lost):
            shape = None if found is None else self.framing.shape_of(found)
            self._waiting.setdefault(shape, deque()).append(row)

    def _count(self, row: _Waiting, found: Any) -> bool:
        """Corrupt samples are named once, in whichever epoch they come first."""
        if isinstance(found, Lost) and found.fault:
            if found.name in self._named:
                return False
            self._named.add(found.name)
        return self.tally.count(found)

    def _next_block(self) -> int:
        """Go to the next block; whether that began a new epoch."""
        place, begun = self._place, 0
        if self._block.order:
            place.block, place.start, place.taken = place.block + 1, self._block.after, 0
        self._block = self._read_block()
        if not self._block.records:
            place.epoch, place.block, place.start, place.taken = place.epoch + 1, 0, (0, 0), 0
            self._block, begun = self._read_block(), 1
            if not self._block.records:
                self.tally.check(self.source.where)
        return begun

    def _read_block(self) -> _Block:
        place, seed = self._place, self._seed or 0
        parts = torch.randperm(len(self.source.names), generator=generator_at(seed, place.epoch, "parts")).tolist()
        found = list(islice(walk(self.source, start=place.start, order=parts), self._buffer))
        order = torch.randperm(len(found), generator=generator_at(seed, place.epoch, "block", place.block)).tolist()
        after = found[-1][0] if found else place.start
        return _Block([(at, record) for _, at, record in found], order, after)

    def _again(self, wanted: list[tuple[Position, int]]) -> list[_Waiting]:
        """Records by where they stand, in the order asked for; each part is read once."""
        records: dict[Position, Record] = {}
        for part in {at[0] for at, _ in wanted}:
            places = {at[1] for at, _ in wanted if at[0] == part}
            rows = enumerate(islice(self.source.read(part), max(places) + 1))
            records |= {(part, index): record for index, record in rows if index in places}
        if any(at not in records for at, _ in wanted):
            raise RecipeError(f"'{self.source.where}' has fewer samples than when the checkpoint was made. Begin anew.")
        return [_Waiting(at, epoch, records[at]) for at, epoch in wanted]

    def _encode(self, seed: int, step: int, shape: Shape | None, whole: list[_Waiting], mine: slice) -> Batch:
        with ThreadPoolExecutor(max(1, self._workers)) as pool:
            frames = list(pool.map(lambda place: self._good(shape, whole, place), range(len(whole))[mine]))
        text = self._encoded([frame.caption for frame in frames])
        names = tuple(frame.name for frame in frames)
        if not self.pictures:
            return Batch(torch.zeros(len(frames), *self.shape), text, names=names)
        found = encode_frames(frames, self.model, moments=True)
        noise_BCHW = noise_at((len(whole), *found["mean"].shape[1:]), seed, step, "posterior")[mine]
        z0_BCHW = found["mean"].float() + found["std"].float() * noise_BCHW
        return Batch(z0_BCHW, Text(text.text_BLD, text.pooled_BD, found["time_ids"]), names=names)

    def _good(self, shape: Shape | None, whole: list[_Waiting], place: int) -> Frame:
        for row in (*whole[place:], *whole[:place]):
            found = frame_of(row.record, self.framing, self.filters, epoch=row.epoch)
            if isinstance(found, Frame):
                if shape is None or found.pixels_HWC is None or found.pixels_HWC.shape[:2] == shape:
                    return found
                found = Lost(found.name, "its size is not what its head says", fault=True)
            self._count(row, found)
        raise RecipeError(f"Not one of {len(whole)} pictures in a batch can be decoded: {self.tally.sentence()}.")

    @torch.no_grad()
    def _encoded(self, captions: list[str]) -> Text:
        return _on_cpu(self.model.text.encode(captions))

    def _first_captions(self) -> tuple[str, ...]:
        tally, found = Tally(), dict[str, None]()
        for _, _, record in walk(self.source):
            if tally.count(measure(record, self.filters)):
                found.setdefault((record.caption or "").strip())
            if len(found) == _LOOKED_AT or tally.kept > 16 * _LOOKED_AT:
                break
        tally.check(self.source.where)
        return tuple(found)


def _on_cpu(text: Text) -> Text:
    return text.to("cpu", torch.float32)
