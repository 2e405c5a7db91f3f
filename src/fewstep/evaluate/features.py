"""What a picture looks like as numbers, and under which name distances in those numbers may be reported.

Only the FID Inception makes a FID; every other network is a stand-in and is called by its own name in every table
("FD-judge", "FD-CLIP"). Legend: N pictures; H, W pixels; D features.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fewstep.errors import RequestError
from fewstep.evaluate.judge import Judge
from fewstep.evaluate.resize import CONVENTIONS, Pictures

if TYPE_CHECKING:
    from fewstep.models.clip import Clip

Float32 = NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class Features:
    """A network that describes pictures, with the name of its distances: uint8 (N, H, W, 3) -> float32 (N, D).

    `network` is what it is ("inception", "clip ViT-B-32", "judge"), `convention` how pictures are brought to it,
    `frechet` and `kernel` what the distances are called. `before` changes each picture first (a protocol's crop).
    """

    network: str
    convention: str
    frechet: str
    kernel: str
    read: Callable[[Pictures], NDArray[np.floating]]
    before: Callable[[Pictures], Pictures] | None = None

    def __call__(self, pictures: Sequence[Pictures] | Pictures, *, batch: int = 32) -> Float32:
        """Features of pictures, which may differ in size: those of one size that follow each other go together."""
        rows = [self.read(np.stack(part)) for part in _batches(map(self._prepared, pictures), batch)]
        if not rows:
            raise RequestError("There is no picture to describe.")
        return np.concatenate(rows).astype(np.float32)

    def _prepared(self, picture_HWC: Pictures) -> Pictures:
        return picture_HWC if self.before is None else self.before(picture_HWC)

    def through(self, before: Callable[[Pictures], Pictures], *, prefix: str = "") -> Features:
        """The same network behind a crop or resize; `prefix` goes before the names of its distances."""
        return replace(self, before=before, frechet=prefix + self.frechet, kernel=prefix + self.kernel)

    @property
    def key(self) -> str:
        """What its columns begin with in a row.

        >>> Features("inception", "clean", "FID (clean)", "KID (clean)", lambda x: x).key
        'fid_clean'
        """
        words = "".join(c if c.isalnum() else " " for c in self.frechet.lower()).split()
        return "_".join(words)

    def facts(self) -> dict[str, str]:
        """For a JSON document: the network, its convention and what its distances are called."""
        return {"network": self.network, "convention": self.convention, "frechet": self.frechet, "kernel": self.kernel}


def _batches(pictures: Iterable[Pictures], size: int) -> Iterable[list[Pictures]]:
    part: list[Pictures] = []
    for picture in pictures:
        if part and (len(part) == size or picture.shape != part[0].shape):
            yield part
            part = []
        part.append(picture)
    if part:
        yield part


def inception_features(
    network: Callable[[Tensor], Tensor], *, convention: str = "clean", device: str = "cpu"
) -> Features:
    """The official features; `network` is from `fewstep.checkpoints.measures.load_inception`.

    Raises:
        RequestError: the convention is none of `resize.CONVENTIONS`.
    """
    if convention not in CONVENTIONS:
        raise RequestError(f"'{convention}' is no resize of the FID; choose among {', '.join(CONVENTIONS)}.")

    def read(pictures_NHWC: Pictures) -> Float32:
        with torch.inference_mode():
            return network(CONVENTIONS[convention](pictures_NHWC).to(device)).float().cpu().numpy()

    return Features("inception", convention, f"FID ({convention})", f"KID ({convention})", read)


def clip_features(clip: Clip) -> Features:
    """The picture tower's projected features, of length 1: a stand-in, never called FID."""

    def read(pictures_NHWC: Pictures) -> Float32:
        return torch.nn.functional.normalize(clip.pictures(pictures_NHWC), dim=-1).numpy()

    return Features(f"clip {clip.name}", f"CLIP {clip.sight.crop_px} px, unit length", "FD-CLIP", "KD-CLIP", read)


def judge_features(judge: Judge) -> Features:
    """The package's own judge: a stand-in that needs no file."""
    size = judge.shape.size_px
    return Features("judge", f"bilinear {size} px", "FD-judge", "KD-judge", lambda x: judge(x).features_ND)
