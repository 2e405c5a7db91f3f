"""A cache of latents and text on disk, made by `write.py`; training reads it by (seed, step).

Shapes: B batch, N all samples, C channels, H, W latent height and width, L tokens, D text width, P pooled width.
"""

import bisect
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch

from fewstep.data import manifest as manifests
from fewstep.data.manifest import is_cache
from fewstep.data.seeds import generator_at, noise_at
from fewstep.data.write import Encoders, encode, write_cache
from fewstep.errors import RecipeError
from fewstep.models.text import Text

__all__ = ["Batch", "Data", "Encoders", "LatentCache", "encode", "is_cache", "write_cache"]

_TURNS = 1024


@dataclass(frozen=True)
class Batch:
    """Training items of one latent shape: z0_BCHW float32 latents (zeros where there are prompts alone), their text
    with SDXL's time ids, and each item's row in the cache, or name in the stream.
    """

    z0_BCHW: torch.Tensor
    text: Text
    rows: tuple[int, ...] = ()
    names: tuple[str, ...] = ()


class Data(Protocol):
    """What training reads: a cache, or a stream without one."""

    @property
    def folder(self) -> Path:
        """Where it comes from."""
        ...

    @property
    def model_hash(self) -> str:
        """The model whose encoders made it."""
        ...

    @property
    def pictures(self) -> bool:
        """Are there pictures, or prompts alone?"""
        ...

    @property
    def count(self) -> int | None:
        """How many samples there are; None where nobody has counted, as in a stream."""
        ...

    @property
    def captions(self) -> tuple[str, ...]:
        """Captions that `text` knows by their place here: all of a cache, the first ones of a stream."""
        ...

    @property
    def empty(self) -> Text:
        """The empty prompt, one row."""
        ...

    @property
    def shape(self) -> tuple[int, int, int]:
        """Channels, height and width of the commonest latents."""
        ...

    @property
    def fingerprint(self) -> str:
        """What a checkpoint must find again."""
        ...

    def text(self, captions: Sequence[int]) -> Text:
        """The embeddings of some of `captions`."""
        ...

    def batch(self, seed: int, step: int, *, size: int, rank: int = 0, world: int = 1) -> Batch:
        """The items of a step for one of `world` processes; together they have those of one with size * world."""
        ...

    def position(self) -> dict[str, Any]:
        """Where reading is, for the checkpoint; json."""
        ...

    def seek(self, position: dict[str, Any]) -> None:
        """Go on from a `position`."""
        ...


@dataclass(frozen=True)
class _Shard:
    """One file's samples, all of one shape; `first_caption` is the row of its part's first caption."""

    tensors: dict[str, torch.Tensor]
    shape: tuple[int, int, int]
    first_caption: int


@dataclass
class _Bucket:
    """The rows of one latent shape, and the last permutation of them that was asked for."""

    shape: tuple[int, int, int]
    rows: torch.Tensor
    key: tuple[int | str, ...]
    permuted: tuple[tuple[int, int], torch.Tensor] | None = None

    def row_at(self, seed: int, position: int) -> int:
        """The row at a position in an endless line of epochs, each a fresh permutation."""
        epoch, place = divmod(position, len(self.rows))
        if self.permuted is None or self.permuted[0] != (seed, epoch):
            order = torch.randperm(len(self.rows), generator=generator_at(seed, epoch, "epoch", *self.key))
            self.permuted = ((seed, epoch), order)
        return int(self.rows[self.permuted[1][place]])


class LatentCache:
    """A finished cache, memory-mapped. Which items belong to a step is a function of (seed, step) alone."""

    def __init__(self, folder: str | Path) -> None:
        """Open the cache in `folder`, or the parts in it. Raises RecipeError when there is none, or it is unfinished or
        damaged.
        """
        self.folder = Path(folder)
        parts = manifests.read_manifests(self.folder)
        self.model_hash: str = parts[0][1]["model"]
        self.pictures: bool = parts[0][1]["pictures"]
        self.tally = manifests.tally({"chunks": [chunk for _, found in parts for chunk in found["chunks"]]})
        self.tally.check(str(folder))
        self._shards: list[_Shard] = []
        self._texts: list[dict[str, torch.Tensor]] = []
        captions: list[str] = []
        for part, manifest in parts:
            self._open(part, manifest, len(captions))
            captions += manifests.captions(part, manifest)
        self.captions = tuple(captions)
        self._starts = _starts(len(shard.tensors["caption"]) for shard in self._shards)
        self._text_starts = _starts(len(tensors["text"]) for tensors in self._texts)
        self.empty = _as_text(manifests.read_tensors(parts[0][0], "empty.safetensors"))
        self._buckets = self._sorted_into_buckets()
        self._turns: tuple[int, list[torch.Tensor]] = (-1, [])

    def _open(self, part: Path, manifest: dict[str, Any], first_caption: int) -> None:
        for chunk in manifest["chunks"]:
            if chunk["text"]:
                self._texts.append(manifests.read_tensors(part, chunk["text"]["file"], chunk["text"]["bytes"]))
            for file in chunk["latents"]:
                tensors = manifests.read_tensors(part, file["file"], file["bytes"])
                channels, height, width = file["shape"]
                self._shards.append(_Shard(tensors, (channels, height, width), first_caption))

    def _sorted_into_buckets(self) -> list[_Bucket]:
        rows: dict[tuple[int, int, int], list[torch.Tensor]] = {}
        for shard, start, end in zip(self._shards, self._starts, self._starts[1:], strict=False):
            rows.setdefault(shard.shape, []).append(torch.arange(start, end))
        alone = len(rows) == 1  # what one bucket draws is what it drew before there were several
        found = [_Bucket(shape, torch.cat(parts), () if alone else shape) for shape, parts in rows.items()]
        return sorted(found, key=lambda bucket: -len(bucket.rows))

    def __len__(self) -> int:
        """How many samples there are."""
        return self._starts[-1]

    @property
    def count(self) -> int:
        """The same, as every kind of data says it."""
        return len(self)

    @property
    def shape(self) -> tuple[int, int, int]:
        """Channels, height and width of one latent; of the commonest shape where there are several."""
        return self._buckets[0].shape

    @property
    def buckets(self) -> dict[tuple[int, int, int], int]:
        """How many samples there are of each latent shape, the commonest first."""
        return {bucket.shape: len(bucket.rows) for bucket in self._buckets}

    @property
    def fingerprint(self) -> str:
        """What a checkpoint must find again: the model and how many samples and captions."""
        return f"{self.model_hash}:{len(self)}:{len(self.captions)}"

    @property
    def z(self) -> torch.Tensor:
        """All latents (posterior means) of the commonest shape, [N, C, H, W] float32."""
        return torch.cat([shard.tensors["mean"] for shard in self._shards if shard.shape == self.shape]).float()

    def caption(self, row: int) -> str:
        """The caption of one sample."""
        return self.captions[self._caption_row(row)]

    def text(self, captions: Sequence[int]) -> Text:
        """The embeddings of caption rows, float32."""
        found = [_locate(self._text_starts, row) for row in captions]
        tensors = {
            name: torch.stack([self._texts[shard][name][row] for shard, row in found]) for name in self._texts[0]
        }
        return _as_text(tensors)

    def items(self, rows: Sequence[int], *, noise_BCHW: torch.Tensor | None = None) -> Batch:
        """The samples in `rows`, of one shape; with noise the latents are drawn from the posterior, without they are
        its mean. Without pictures they are zeros.
        """
        found = [_locate(self._starts, row) for row in rows]
        text = self.text([self._caption_row(row) for row in rows])
        if not self.pictures:
            return Batch(torch.zeros(len(found), *self._shards[found[0][0]].shape), text, tuple(rows))
        z_BCHW = self._stacked("mean", found).float()
        if noise_BCHW is not None and "std" in self._shards[0].tensors:
            z_BCHW = z_BCHW + self._stacked("std", found).float() * noise_BCHW
        if all("time_ids" in self._shards[shard].tensors for shard, _ in found):
            text = Text(text.text_BLD, text.pooled_BD, self._stacked("time_ids", found))
        return Batch(z_BCHW, text, tuple(rows))

    def batch(self, seed: int, step: int, *, size: int, rank: int = 0, world: int = 1) -> Batch:
        """The batch of training step `step`, all of one bucket; no position is kept anywhere.

        Buckets come in proportion to their sizes, and a bucket shows all its rows before any comes again. Process
        `rank` of `world` has rows [rank * size, (rank + 1) * size) of the batch of one process with size * world.
        """
        bucket, turn = self._bucket_at(seed, step)
        whole = size * world
        mine = slice(rank * size, (rank + 1) * size)
        rows = [bucket.row_at(seed, turn * whole + place) for place in range(whole)[mine]]
        return self.items(rows, noise_BCHW=noise_at((whole, *bucket.shape), seed, step, "posterior")[mine])

    def position(self) -> dict[str, Any]:
        """Nothing: the step says it all."""
        return {}

    def seek(self, position: dict[str, Any]) -> None:
        """Nothing to do. Raises RecipeError for the position of a stream."""
        if position:
            raise RecipeError(
                "The checkpoint was made from a stream, not from a cache. Give the same data and --stream."
            )

    def _bucket_at(self, seed: int, step: int) -> tuple[_Bucket, int]:
        """The bucket of a step, and how many earlier steps had the same one."""
        if len(self._buckets) == 1:
            return self._buckets[0], step
        block, place = divmod(step, _TURNS)
        if self._turns[0] != seed:
            self._turns = (seed, [torch.zeros(len(self._buckets), dtype=torch.int64)])
        before = self._turns[1]
        while len(before) <= block:
            choice = self._choices(seed, len(before) - 1)
            before.append(before[-1] + torch.bincount(choice, minlength=len(self._buckets)))
        choice = self._choices(seed, block)
        number = int(choice[place])
        return self._buckets[number], int(before[block][number]) + int((choice[:place] == number).sum())

    def _choices(self, seed: int, block: int) -> torch.Tensor:
        """The bucket of each step in a block of steps: evenly spaced over the shares, so each count is within one of
        its share, and then shuffled.
        """
        generator = generator_at(seed, block, "buckets")
        share = torch.tensor([len(bucket.rows) for bucket in self._buckets], dtype=torch.float64) / len(self)
        first = torch.rand((), generator=generator, dtype=torch.float64)
        even = (torch.arange(_TURNS, dtype=torch.float64) + first) / _TURNS
        choice = torch.searchsorted(share.cumsum(0), even, right=True).clamp(max=len(share) - 1)
        return choice[torch.randperm(_TURNS, generator=generator)]

    def _stacked(self, name: str, found: Sequence[tuple[int, int]]) -> torch.Tensor:
        return torch.stack([self._shards[shard].tensors[name][row] for shard, row in found])

    def _caption_row(self, row: int) -> int:
        shard, place = _locate(self._starts, row)
        return self._shards[shard].first_caption + int(self._shards[shard].tensors["caption"][place])


def _as_text(tensors: dict[str, torch.Tensor]) -> Text:
    pooled = tensors.get("pooled")
    return Text(tensors["text"].float(), None if pooled is None else pooled.float())


def _starts(counts: Iterable[int]) -> list[int]:
    starts = [0]
    for count in counts:
        starts.append(starts[-1] + count)
    return starts


def _locate(starts: list[int], row: int) -> tuple[int, int]:
    shard = bisect.bisect_right(starts, row) - 1
    return shard, row - starts[shard]
