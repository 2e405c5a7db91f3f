"""Writing a cache: VAE and text encoder run once over a source, chunk by chunk, and never again in training.

Killed at any moment, the same command goes on after the last chunk that the manifest names, and the files come out bit
for bit as if it had never stopped: a chunk depends on the source's records alone, not on when or how it was made.

Shapes: B batch, C channels, h, w latent height and width, H, W picture height and width.
"""

import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch

from fewstep.data import manifest as manifests
from fewstep.data.buckets import Framing
from fewstep.data.manifest import FORMAT, MANIFEST
from fewstep.data.samples import Filters, Frame, Lost, Tally, ahead, frame_of
from fewstep.data.sources import Position, Source, walk
from fewstep.errors import RecipeError
from fewstep.models import vae
from fewstep.models.text import Text

Found = tuple[Any, Frame | Lost]
"""(position after it, what became of a record)."""


class Encoders(Protocol):
    """What the cache needs of a model: its two encoders and its hash."""

    vae: Any
    text: Any
    content_hash: str


def write_cache(
    folder: str | Path,
    model: Encoders,
    samples: Iterable[tuple[Any, str]],
    *,
    shard_size: int = 1024,
    batch: int = 16,
    moments: bool = True,
) -> Iterator[int]:
    """Encode (picture, caption) pairs into `folder`; yields how many are on disk after each chunk.

    A picture is a PIL image, a uint8 [H, W, 3] array, or a float tensor [C, h, w] of finished (scaled) latents;
    each size makes a bucket. `samples` must come in the same order each time: an interrupted cache goes on after the
    samples already on disk. With `moments` the posterior's standard deviation is kept as well, so that training draws
    a fresh latent each time a picture is seen.

    Raises RecipeError when the folder holds a cache made by another model, or when there is no sample.
    """

    def found(after: Any) -> Iterator[Found]:
        start = after or 0
        for place, (picture, caption) in enumerate(islice(iter(samples), start, None), start):
            yield place + 1, _frame(place, picture, caption)

    for tally in _write(Path(folder), model, found, _How({}, shard_size, batch, moments)):
        yield tally.kept


def encode(
    folder: str | Path,
    model: Encoders,
    source: Source,
    framing: Framing,
    *,
    filters: Filters | None = None,
    shard_size: int = 1024,
    batch: int = 16,
    moments: bool = True,
    workers: int = 2,
    rank: int = 0,
    world: int = 1,
) -> Iterator[Tally]:
    """Encode a source into `folder`; yields what was kept and lost after each chunk of `shard_size` records.

    `workers` threads decode pictures ahead of the encoder. Writer `rank` of `world` encodes its share of the source
    into a part of its own. A source of prompts alone gives a cache without pictures, of the framing's squarest shape.

    Raises RecipeError when the folder was begun with other settings or by another model, and, with every reason, when
    not one sample is kept.
    """
    filters = filters or Filters()
    settings = {"source": source.fingerprint, "shapes": [list(shape) for shape in framing.shapes]}
    settings |= {"crop": framing.crop, "seed": framing.seed, "filters": asdict(filters)}
    settings |= {"shard_size": shard_size, "batch": batch}

    def found(after: Position | None) -> Iterator[Found]:
        records = walk(source, rank=rank, world=world, start=(0, 0) if after is None else (after[0], after[1]))
        return ahead(lambda step: (step[0], frame_of(step[2], framing, filters)), records, workers=workers)

    how = _How(settings, shard_size, batch, moments, source.pictures, framing.squarest, may_be_empty=world > 1)
    tally = Tally()
    for tally in _write(manifests.part_folder(Path(folder), rank, world), model, found, how):
        yield tally
    if world == 1:
        tally.check(source.where)


@dataclass(frozen=True)
class _How:
    """`settings` must be the same to go on with a cache; prompts without pictures are drawn at `shape_px`."""

    settings: dict[str, Any]
    shard_size: int
    batch: int
    moments: bool
    pictures: bool = True
    shape_px: tuple[int, int] = (0, 0)
    may_be_empty: bool = False


def _write(folder: Path, model: Encoders, found: Callable[[Any], Iterator[Found]], how: _How) -> Iterator[Tally]:
    folder.mkdir(parents=True, exist_ok=True)
    begun: dict[str, Any] = {"model": model.content_hash, "moments": how.moments}
    begun |= {"pictures": how.pictures, "settings": how.settings}
    manifest = _to_continue(folder, begun)
    if manifest["complete"]:
        yield manifests.tally(manifest)
        return
    if not (folder / "empty.safetensors").exists():
        manifests.write_tensors(folder / "empty.safetensors", _text_tensors(_empty_text(model)))
    known = {caption: row for row, caption in enumerate(manifests.captions(folder, manifest))}
    results = found(manifest["chunks"][-1]["next"] if manifest["chunks"] else None)
    while True:
        chunk = _Chunk(model, how)
        for after, outcome in islice(results, how.shard_size):
            chunk.add(after, outcome)
        if chunk.tally.seen == 0:
            break
        manifest["chunks"].append(chunk.write(folder, len(manifest["chunks"]), known))
        manifests.write_manifest(folder, manifest)
        yield manifests.tally(manifest)
    if not manifests.count(manifest) and not how.may_be_empty:
        manifests.tally(manifest).check(str(folder))
    manifests.write_manifest(folder, manifest | {"complete": True})


@dataclass
class _Chunk:
    """The records of one chunk while they are encoded; pictures wait only until a batch of their shape is full."""

    model: Encoders
    how: _How
    tally: Tally = field(default_factory=Tally)
    after: Any = None
    waiting: dict[tuple[int, ...], list[Frame]] = field(default_factory=dict)
    captions: dict[tuple[int, ...], list[str]] = field(default_factory=dict)
    encoded: dict[tuple[int, ...], list[dict[str, torch.Tensor]]] = field(default_factory=dict)
    order: dict[str, None] = field(default_factory=dict)

    def add(self, after: Any, outcome: Frame | Lost) -> None:
        """Take one record's outcome."""
        self.after = after
        if not self.tally.count(outcome) or isinstance(outcome, Lost):
            return
        shape = _shape(outcome, self.how.shape_px)
        self.order.setdefault(outcome.caption)
        self.captions.setdefault(shape, []).append(outcome.caption)
        self.waiting.setdefault(shape, []).append(outcome)
        if len(self.waiting[shape]) == self.how.batch:
            self._encode(shape)

    def write(self, folder: Path, number: int, known: dict[str, int]) -> dict[str, Any]:
        """Encode what is left, write the files, and return the manifest's row; `known` gains the new captions."""
        for shape in list(self.waiting):
            self._encode(shape)
        fresh = [caption for caption in self.order if caption not in known]
        known |= {caption: len(known) + place for place, caption in enumerate(fresh)}
        return {
            "next": self.after,
            "text": self._write_text(folder, number, fresh) if fresh else None,
            "latents": [self._write_latents(folder, number, shape, known) for shape in self.captions],
            "faults": self.tally.faults,
            "dropped": dict(self.tally.dropped),
        }

    def _encode(self, shape: tuple[int, ...]) -> None:
        frames = self.waiting.pop(shape)
        if self.how.pictures:
            self.encoded.setdefault(shape, []).append(encode_frames(frames, self.model, moments=self.how.moments))

    def _write_text(self, folder: Path, number: int, fresh: list[str]) -> dict[str, Any]:
        name = f"text-{number:05d}.safetensors"
        tensors = _encode_captions(fresh, self.model, self.how.batch)
        size = manifests.write_tensors(folder / name, tensors, {"captions": json.dumps(fresh)})
        return {"file": name, "bytes": size}

    def _write_latents(
        self, folder: Path, number: int, shape: tuple[int, ...], known: dict[str, int]
    ) -> dict[str, Any]:
        parts = self.encoded.get(shape, [])
        tensors = {name: torch.cat([part[name] for part in parts]) for name in (parts[0] if parts else ())}
        tensors["caption"] = torch.tensor([known[caption] for caption in self.captions[shape]])
        latent = list(tensors["mean"].shape[1:]) if parts else latent_shape(self.model.vae, shape)
        name = f"latents-{number:05d}-{latent[1]}x{latent[2]}.safetensors"
        size = manifests.write_tensors(folder / name, tensors)
        return {"file": name, "bytes": size, "count": len(tensors["caption"]), "shape": latent}


def latent_shape(autoencoder: Any, shape_px: tuple[int, ...]) -> list[int]:
    """Channels, height and width of the latents of a picture of (height, width) px."""
    factor = vae.scale_factor(autoencoder)
    return [autoencoder.config.latent_channels, shape_px[-2] // factor, shape_px[-1] // factor]


@torch.no_grad()
def encode_frames(frames: list[Frame], model: Encoders, *, moments: bool) -> dict[str, torch.Tensor]:
    """Mean, with moments std, [B, C, h, w] float16, and time_ids [B, 6] int32 where known, of frames of one shape."""
    if frames[0].finished is not None:
        mean_BCHW = torch.stack([frame.finished for frame in frames])
        std_BCHW = torch.zeros_like(mean_BCHW)
    else:
        pixels_BHWC = torch.from_numpy(np.stack([frame.pixels_HWC for frame in frames if frame.pixels_HWC is not None]))
        image_BCHW = pixels_BHWC.permute(0, 3, 1, 2).float() / 127.5 - 1
        mean_BCHW, std_BCHW = vae.moments(model.vae, image_BCHW.to(next(model.vae.parameters()).device))
    found = {"mean": mean_BCHW} | ({"std": std_BCHW} if moments else {})
    found = {name: tensor.half().cpu().contiguous() for name, tensor in found.items()}
    if frames[0].time_ids is not None:
        found["time_ids"] = torch.tensor([frame.time_ids for frame in frames], dtype=torch.int32)
    return found


def _frame(place: int, picture: Any, caption: str) -> Frame:
    if isinstance(picture, torch.Tensor):
        return Frame(str(place), caption, finished=picture)
    pixels_HWC = np.asarray(picture if isinstance(picture, np.ndarray) else picture.convert("RGB"))
    height, width = pixels_HWC.shape[:2]
    return Frame(str(place), caption, pixels_HWC, (height, width, 0, 0, height, width))


def _shape(frame: Frame, shape_px: tuple[int, int]) -> tuple[int, ...]:
    if frame.finished is not None:
        return tuple(frame.finished.shape)
    return shape_px if frame.pixels_HWC is None else frame.pixels_HWC.shape[:2]


@torch.no_grad()
def _encode_captions(captions: list[str], model: Encoders, batch: int) -> dict[str, torch.Tensor]:
    parts = [_text_tensors(model.text.encode(captions[k : k + batch])) for k in range(0, len(captions), batch)]
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}


@torch.no_grad()
def _empty_text(model: Encoders) -> Text:
    return model.text.encode_negative([""])


def _text_tensors(text: Text) -> dict[str, torch.Tensor]:
    found = {"text": text.text_BLD, "pooled": text.pooled_BD}
    return {name: tensor.half().cpu().contiguous() for name, tensor in found.items() if tensor is not None}


def _to_continue(folder: Path, begun: dict[str, Any]) -> dict[str, Any]:
    """The manifest to go on with: up to the first chunk whose files are torn. Raises RecipeError."""
    if not (folder / MANIFEST).is_file():
        return {"format": FORMAT, **begun, "complete": False, "chunks": []}
    manifest = manifests.read_manifest(folder)
    for name, value in begun.items():
        if manifest[name] != value and (manifest["format"] == FORMAT or name in ("model", "moments")):
            raise RecipeError(
                f"The cache '{folder}' was made with {_difference(name, manifest[name], value)}. Use another folder, "
                "or delete that one."
            )
    whole = [manifests.is_whole(folder, chunk) for chunk in manifest["chunks"]]
    if not all(whole):
        manifest["chunks"], manifest["complete"] = manifest["chunks"][: whole.index(False)], False
    if manifest["format"] != FORMAT and not manifest["complete"]:
        raise RecipeError(f"The cache '{folder}' was begun by an older version. Delete it and make it again.")
    return manifest


def _difference(name: str, before: Any, now: Any) -> str:
    if not isinstance(now, dict):
        return f"{name} {before}, not {now}"
    key = next(key for key in {**before, **now} if before.get(key) != now.get(key))
    return _difference(key, before.get(key, {}), now.get(key))
