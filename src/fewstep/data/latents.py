"""A cache of latents on disk: VAE and text encoder run once, never in the training loop.

A folder holds
    manifest.json               format, model hash, one row per finished shard, `complete`
    empty.safetensors           the embedding of the empty prompt, in the family's own convention
    latents-00000.safetensors   mean and (with moments) std [n, C, h, w] float16, caption [n] int64
    text-00000.safetensors      embeddings [u, L, D] float16 (and pooled [u, P]) of captions first seen in that shard

Every file is written beside its place and renamed, the manifest last: a torn write loses at most one shard, and calling
`write_cache` again continues after the last one that the manifest names.

Shapes: B batch, N all samples, C channels, H, W latent height and width, L tokens, D text width, P pooled width.
"""

import bisect
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file

from fewstep.data.seeds import generator_at, noise_at
from fewstep.errors import RecipeError
from fewstep.models import vae
from fewstep.models.text import Text

FORMAT = 1
MANIFEST = "manifest.json"


class Encoders(Protocol):
    """What the cache needs of a model: its two encoders and its hash."""

    vae: Any
    text: Any
    content_hash: str


@dataclass(frozen=True)
class Batch:
    """Training items: z0_BCHW float32 latents, their text, and each item's row in the cache."""

    z0_BCHW: torch.Tensor
    text: Text
    rows: tuple[int, ...]


def write_cache(
    folder: str | Path,
    model: Encoders,
    samples: Iterable[tuple[Any, str]],
    *,
    shard_size: int = 1024,
    batch: int = 16,
    moments: bool = True,
) -> Iterator[int]:
    """Encode (picture, caption) pairs into `folder`; yields how many are on disk after each shard.

    A picture is a PIL image, a uint8 [h, w, 3] array, or a float tensor [C, h, w] of finished (scaled) latents.
    `samples` must come in the same order each time: an interrupted cache goes on after the samples already on disk.
    With `moments` the posterior's standard deviation is kept as well, so that training draws a fresh latent each time
    a picture is seen.

    Raises RecipeError when the folder holds a cache made by another model, or when pictures differ in size.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    manifest = _manifest_to_continue(folder, model, moments)
    if manifest["complete"]:
        yield _count(manifest)
        return
    if not (folder / "empty.safetensors").exists():
        _write_tensors(folder / "empty.safetensors", _text_tensors(_empty_text(model)))
    known = {caption: row for row, caption in enumerate(_captions(folder, manifest))}
    remaining = islice(iter(samples), _count(manifest), None)
    while chunk := list(islice(remaining, shard_size)):
        manifest["shards"].append(_write_shard(folder, model, chunk, known, manifest, batch))
        _write_json(folder / MANIFEST, manifest)
        yield _count(manifest)
    if not manifest["shards"]:
        raise RecipeError(f"There is not one sample to cache in '{folder}'. Give at least one picture with a caption.")
    _write_json(folder / MANIFEST, manifest | {"complete": True})


class LatentCache:
    """A finished cache, memory-mapped. Which items belong to a step is a function of (seed, step) alone."""

    def __init__(self, folder: str | Path) -> None:
        """Open the cache in `folder`. Raises RecipeError when there is none, or it is unfinished or damaged."""
        self.folder = Path(folder)
        manifest = _read_manifest(self.folder)
        if not manifest["complete"]:
            raise RecipeError(
                f"The cache '{self.folder}' is unfinished ({_count(manifest)} samples on disk). Run the command that "
                f"writes it again."
            )
        self.model_hash: str = manifest["model"]
        self._shards = [_read_tensors(self.folder, row["latents"], row["bytes"]) for row in manifest["shards"]]
        self._texts = [_read_tensors(self.folder, row["text"]) for row in manifest["shards"] if row["text"]]
        self._starts = _starts(shard["mean"] for shard in self._shards)
        self._text_starts = _starts(shard["text"] for shard in self._texts)
        self.captions = tuple(_captions(self.folder, manifest))
        self.empty = _as_text(_read_tensors(self.folder, "empty.safetensors"))
        self._permutation: tuple[tuple[int, int], torch.Tensor] | None = None

    def __len__(self) -> int:
        """How many samples there are."""
        return self._starts[-1]

    @property
    def shape(self) -> tuple[int, int, int]:
        """Channels, height and width of one latent."""
        channels, height, width = self._shards[0]["mean"].shape[1:]
        return channels, height, width

    @property
    def z(self) -> torch.Tensor:
        """All latents (posterior means), [N, C, H, W] float32."""
        return torch.cat([shard["mean"] for shard in self._shards]).float()

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
        """The samples in `rows`; with noise the latents are drawn from the posterior, without they are its mean."""
        found = [_locate(self._starts, row) for row in rows]
        z_BCHW = torch.stack([self._shards[shard]["mean"][row] for shard, row in found]).float()
        if noise_BCHW is not None and "std" in self._shards[0]:
            std_BCHW = torch.stack([self._shards[shard]["std"][row] for shard, row in found]).float()
            z_BCHW = z_BCHW + std_BCHW * noise_BCHW
        return Batch(z_BCHW, self.text([self._caption_row(row) for row in rows]), tuple(rows))

    def batch(self, seed: int, step: int, *, size: int) -> Batch:
        """The batch of training step `step`: each epoch is a fresh permutation, and no position is kept anywhere."""
        rows = [self._row_at(seed, step * size + place) for place in range(size)]
        return self.items(rows, noise_BCHW=noise_at((size, *self.shape), seed, step, "posterior"))

    def _row_at(self, seed: int, position: int) -> int:
        epoch, place = divmod(position, len(self))
        if self._permutation is None or self._permutation[0] != (seed, epoch):
            self._permutation = ((seed, epoch), torch.randperm(len(self), generator=generator_at(seed, epoch, "epoch")))
        return int(self._permutation[1][place])

    def _caption_row(self, row: int) -> int:
        shard, place = _locate(self._starts, row)
        return int(self._shards[shard]["caption"][place])


def is_cache(folder: str | Path) -> bool:
    """Whether the folder holds a latent cache, finished or not."""
    return (Path(folder) / MANIFEST).is_file()


def _write_shard(
    folder: Path,
    model: Encoders,
    chunk: list[tuple[Any, str]],
    known: dict[str, int],
    manifest: dict[str, Any],
    batch: int,
) -> dict[str, Any]:
    number = len(manifest["shards"])
    fresh = list(dict.fromkeys(caption for _, caption in chunk if caption not in known))
    known |= {caption: len(known) + place for place, caption in enumerate(fresh)}
    tensors = _encode_pictures([picture for picture, _ in chunk], model, manifest["moments"], batch)
    shape = list(tensors["mean"].shape[1:])
    if manifest.setdefault("shape", shape) != shape:
        raise RecipeError(
            f"A cache holds latents of one size, but {shape} follows {manifest['shape']}. Resize the pictures first."
        )
    tensors["caption"] = torch.tensor([known[caption] for _, caption in chunk])
    latents, text = f"latents-{number:05d}.safetensors", f"text-{number:05d}.safetensors"
    if fresh:
        _write_tensors(folder / text, _encode_captions(fresh, model, batch), {"captions": json.dumps(fresh)})
    size = _write_tensors(folder / latents, tensors)
    return {"latents": latents, "text": text if fresh else None, "count": len(chunk), "bytes": size}


@torch.no_grad()
def _encode_pictures(pictures: list[Any], model: Encoders, moments: bool, batch: int) -> dict[str, torch.Tensor]:
    parts: list[dict[str, torch.Tensor]] = []
    for start in range(0, len(pictures), batch):
        parts.append(_encode_batch(pictures[start : start + batch], model, moments))
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}


def _encode_batch(pictures: list[Any], model: Encoders, moments: bool) -> dict[str, torch.Tensor]:
    finished = isinstance(pictures[0], torch.Tensor)
    tensors = pictures if finished else [_to_tensor(picture) for picture in pictures]
    if len(sizes := sorted({str(tuple(tensor.shape)) for tensor in tensors})) > 1:
        raise RecipeError(
            f"A cache holds pictures of one size, but these were found: {', '.join(sizes)}. Resize them first."
        )
    if finished:
        mean_BCHW = torch.stack(tensors)
        return _moments(mean_BCHW, torch.zeros_like(mean_BCHW) if moments else None)
    mean_BCHW, std_BCHW = vae.moments(model.vae, torch.stack(tensors).to(next(model.vae.parameters()).device))
    return _moments(mean_BCHW, std_BCHW if moments else None)


def _moments(mean: torch.Tensor, std: torch.Tensor | None) -> dict[str, torch.Tensor]:
    found = {"mean": mean} if std is None else {"mean": mean, "std": std}
    return {name: tensor.half().cpu().contiguous() for name, tensor in found.items()}


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


def _as_text(tensors: dict[str, torch.Tensor]) -> Text:
    pooled = tensors.get("pooled")
    return Text(tensors["text"].float(), None if pooled is None else pooled.float())


def _to_tensor(picture: Any) -> torch.Tensor:
    pixels_HWC = np.asarray(picture if isinstance(picture, np.ndarray) else picture.convert("RGB"))
    return torch.from_numpy(pixels_HWC.copy()).permute(2, 0, 1).float() / 127.5 - 1


def _manifest_to_continue(folder: Path, model: Encoders, moments: bool) -> dict[str, Any]:
    if not is_cache(folder):
        return {"format": FORMAT, "model": model.content_hash, "moments": moments, "complete": False, "shards": []}
    manifest = _read_manifest(folder)
    if manifest["model"] != model.content_hash or manifest["moments"] != moments:
        raise RecipeError(
            f"The cache '{folder}' was made by model {manifest['model']} (moments {manifest['moments']}), not by "
            f"{model.content_hash} (moments {moments}). Use another folder, or delete that one."
        )
    return manifest


def _read_manifest(folder: Path) -> dict[str, Any]:
    if not is_cache(folder):
        raise RecipeError(f"There is no latent cache in '{folder}' (no {MANIFEST}). Make one with write_cache first.")
    try:
        manifest = json.loads((folder / MANIFEST).read_text())
    except ValueError as error:
        raise RecipeError(
            f"'{folder / MANIFEST}' is damaged ({error}). Delete the folder and make the cache again."
        ) from error
    if manifest.get("format") != FORMAT:
        raise RecipeError(
            f"The cache '{folder}' has format {manifest.get('format')}, this version reads {FORMAT}. Make it again."
        )
    return manifest


def _captions(folder: Path, manifest: dict[str, Any]) -> Iterator[str]:
    for row in manifest["shards"]:
        if row["text"]:
            with safe_open(folder / row["text"], "pt") as file:
                yield from json.loads(file.metadata()["captions"])


def _count(manifest: dict[str, Any]) -> int:
    return sum(row["count"] for row in manifest["shards"])


def _starts(tensors: Iterable[torch.Tensor]) -> list[int]:
    starts = [0]
    for tensor in tensors:
        starts.append(starts[-1] + len(tensor))
    return starts


def _locate(starts: list[int], row: int) -> tuple[int, int]:
    shard = bisect.bisect_right(starts, row) - 1
    return shard, row - starts[shard]


def _read_tensors(folder: Path, name: str, size: int | None = None) -> dict[str, torch.Tensor]:
    try:
        if size is not None and (folder / name).stat().st_size != size:
            raise RecipeError(
                f"'{folder / name}' is not the size the manifest gives ({size} bytes). Make the cache again."
            )
        return load_file(folder / name)
    except (OSError, SafetensorError) as error:
        raise RecipeError(
            f"'{folder / name}' of the latent cache cannot be read ({error}). Make the cache again."
        ) from error


def _write_tensors(path: Path, tensors: dict[str, torch.Tensor], metadata: dict[str, str] | None = None) -> int:
    beside = path.with_suffix(".part")
    save_file(tensors, beside, metadata)
    beside.replace(path)
    return path.stat().st_size


def _write_json(path: Path, value: dict[str, Any]) -> None:
    beside = path.with_suffix(".part")
    beside.write_text(json.dumps(value, indent=1))
    beside.replace(path)
