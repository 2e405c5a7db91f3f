"""What pictures are measured against: a folder of pictures, or a file of their mean and covariance.

Legend: N pictures; H, W pixels; D features.
"""

from __future__ import annotations

import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from PIL import Image

from fewstep.checkpoints.files import write_whole
from fewstep.errors import ImageError, RequestError
from fewstep.evaluate.distance import density_coverage, precision_recall
from fewstep.evaluate.features import Features, Float32
from fewstep.evaluate.frechet import Moments, frechet_distance, kernel_distance, kernel_distance_subsets, moments
from fewstep.evaluate.resize import Pictures
from fewstep.models.inception import FEATURES

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")
#: Below this many pictures no set distance is taken.
FEWEST = 8
#: Neighbour balls are compared pair by pair; above this many pictures that takes hours and is left out.
MOST_FOR_NEIGHBOURS = 20_000


@dataclass(frozen=True, eq=False)
class Reference:
    """A set of pictures as its moments, and as its features (N, D) where these were read and not only the moments."""

    name: str
    moments: Moments
    features_ND: Float32 | None = None

    @classmethod
    def of(cls, name: str, features_ND: ArrayLike) -> Reference:
        """From features."""
        x_ND = np.asarray(features_ND, dtype=np.float32)
        return cls(name, moments(x_ND), x_ND)


def picture_files(folder: Path) -> list[Path]:
    """The pictures of a folder and of the folders in it, by name.

    Raises:
        ImageError: the folder is missing or holds none.
    """
    if not folder.is_dir():
        raise ImageError(f"'{folder}' is no folder; give one with pictures ({', '.join(SUFFIXES)}).")
    found = sorted(path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES and path.is_file())
    if not found:
        raise ImageError(f"'{folder}' holds no picture ({', '.join(SUFFIXES)}).")
    return found


def open_picture(path: Path) -> Pictures:
    """uint8 (H, W, 3); transparent pictures lie on white.

    Raises:
        ImageError: the file is no readable picture.
    """
    try:
        with Image.open(path) as image:
            if image.has_transparency_data:
                layers = image.convert("RGBA")
                return np.asarray(Image.alpha_composite(Image.new("RGBA", layers.size, "white"), layers).convert("RGB"))
            return np.asarray(image.convert("RGB"))
    except (OSError, ValueError, Image.DecompressionBombError) as error:
        raise ImageError(f"'{path}' cannot be read as a picture ({error}). Remove it, or copy it again.") from None


def batches_of(files: Sequence[Path], *, batch: int = 32) -> Iterator[Pictures]:
    """Pictures of one size, uint8 (up to `batch`, H, W, 3), in the order of the files.

    Raises:
        ImageError: two pictures differ in size, or one cannot be read.
    """
    size: tuple[int, ...] | None = None
    for at in range(0, len(files), batch):
        part = [open_picture(path) for path in files[at : at + batch]]
        for path, picture in zip(files[at : at + batch], part, strict=True):
            size = size or picture.shape
            if picture.shape != size:
                raise ImageError(
                    f"The pictures must have one size, but '{files[0].name}' has {size[1]} x {size[0]} and "
                    f"'{path.name}' {picture.shape[1]} x {picture.shape[0]}."
                )
        yield np.stack(part)


def read_reference(path: Path, features: Features, *, count: int | None = None, protocol: str = "none") -> Reference:
    """A reference from a folder of pictures or an .npz file of `mu` and `sigma` (pytorch-fid's layout).

    The file says neither which network nor which resize it was made with, nor (mostly) of how many pictures: that it
    fits is its maker's word, and only its width is checked; a file of `write_moments` says it all, and is checked.
    `count`: how many pictures the reference must be of.

    Raises:
        RequestError: the file is missing or has another layout, or the folder another number of pictures.
        ImageError: the folder holds no picture, or one that cannot be read.
    """
    if path.suffix.lower() == ".npz":
        return _read_moments(path, features, count, protocol)
    files = picture_files(path)
    if count is not None and len(files) != count:
        raise RequestError(f"The reference must be {count} pictures, but '{path}' holds {len(files)}.")
    if len(files) < FEWEST:
        raise RequestError(f"A reference needs at least {FEWEST} pictures; '{path}' holds {len(files)}.")
    parts = [features([open_picture(file) for file in files[at : at + 128]]) for at in range(0, len(files), 128)]
    return Reference.of(path.name, np.concatenate(parts))


def _read_moments(path: Path, features: Features, wanted: int | None, protocol: str) -> Reference:
    try:
        with np.load(path, allow_pickle=False) as file:
            found = {name: file[name] for name in file.files}
    except FileNotFoundError:
        raise RequestError(f"The reference '{path}' does not exist.") from None
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise RequestError(f"'{path}' cannot be read as .npz ({error}).") from None
    mean, covariance = found.get("mu"), found.get("sigma")
    if mean is None or covariance is None or mean.ndim != 1 or covariance.shape != (len(mean), len(mean)):
        raise RequestError(
            f"'{path}' must hold 'mu' of shape (D,) and 'sigma' of shape (D, D); "
            f"found {', '.join(f'{k} {list(v.shape)}' for k, v in found.items()) or 'nothing'}."
        )
    if features.network == "inception" and len(mean) != FEATURES:
        raise RequestError(f"'{path}' has {len(mean)} features where the FID's Inception has {FEATURES}.")
    for name, asked in (("features", features.frechet), ("protocol", protocol)):
        if name in found and str(found[name]) != asked:
            raise RequestError(
                f"'{path}' was made with the {name} '{found[name]}', not '{asked}'; the two must not be mixed."
            )
    count = int(found["count"]) if "count" in found else 0
    if count and wanted and count != wanted:
        raise RequestError(f"The reference must be of {wanted} pictures, but '{path}' is of {count}.")
    return Reference(path.name, Moments(mean.astype(np.float64), covariance.astype(np.float64), count))


def write_moments(path: Path, reference: Reference, features: Features, *, protocol: str = "none") -> None:
    """Write `mu` and `sigma` as other tools read them, and beside them what was measured how, and of how many.

    Raises:
        OutputError: the file cannot be written.
    """
    found = reference.moments
    arrays: dict[str, Any] = {"mu": found.mean_D, "sigma": found.covariance_DD}
    arrays |= {"features": np.array(features.frechet), "count": np.array(found.count)}
    arrays["protocol"] = np.array(protocol)

    def write(part: Path) -> None:
        with part.open("wb") as file:
            np.savez(file, **arrays)

    write_whole(path, write)


def digits(value: float) -> float:
    """Six significant digits: features of length 1 are thousandths apart.

    >>> digits(0.00123456789), digits(12.3456789)
    (0.00123457, 12.3457)
    """
    return float(f"{value:.6g}")


def set_distances(features_ND: Float32, reference: Reference, *, prefix: str = "", seed: int = 0) -> dict[str, Any]:
    """Fréchet distance, kernel distance (over all pictures, and mean and deviation over 100 subsets), precision,
    recall, density and coverage; only what the reference allows. Nothing for fewer than 8 pictures.
    """
    if len(features_ND) < FEWEST:
        return {}
    found: dict[str, Any] = {"frechet": digits(frechet_distance(moments(features_ND), reference.moments))}
    real_ND = reference.features_ND
    if real_ND is not None and max(len(features_ND), len(real_ND)) <= MOST_FOR_NEIGHBOURS:
        precision, recall = precision_recall(real_ND, features_ND)
        density, coverage = density_coverage(real_ND, features_ND)
        found |= {"precision": round(precision, 4), "recall": round(recall, 4)}
        found |= {"density": round(density, 4), "coverage": round(coverage, 4)}
        found["kernel"] = digits(kernel_distance(features_ND, real_ND))
    if real_ND is not None:
        mean, deviation = kernel_distance_subsets(features_ND, real_ND, seed=seed)
        found["kernel_subsets"] = {"mean": digits(mean), "std": digits(deviation)}
    return {prefix + key: value for key, value in found.items()}
