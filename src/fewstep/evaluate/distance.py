"""Distances between pictures: to a partner, to the nearest of a set, and coverage of one set by another.

Legend: N, M, K pictures; D features; HWC uint8 pixels.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fewstep.errors import RequestError

Float64 = NDArray[np.float64]
ROWS = 512


def pixel_rms(a_NHWC: NDArray[np.uint8], b_NHWC: NDArray[np.uint8]) -> Float64:
    """Root mean square difference of each pair of pictures, 0 to 255, shape (N,)."""
    if a_NHWC.shape != b_NHWC.shape:
        raise RequestError(f"Paired pictures must have one shape; found {a_NHWC.shape} and {b_NHWC.shape}.")
    pairs = zip(a_NHWC, b_NHWC, strict=True)
    return np.array([np.sqrt(np.mean((a.astype(np.float64) - b) ** 2)) for a, b in pairs])


def squared_distances(a_ND: Float64, b_MD: Float64) -> Iterator[Float64]:
    """Squared Euclidean distances (rows of a, M), a few hundred rows at a time."""
    b_sq = (b_MD**2).sum(1)
    for at in range(0, len(a_ND), ROWS):
        rows = a_ND[at : at + ROWS]
        yield np.maximum((rows**2).sum(1)[:, None] + b_sq - 2 * rows @ b_MD.T, 0)


def nearest(a_ND: ArrayLike, b_MD: ArrayLike) -> tuple[Float64, NDArray[np.int64]]:
    """For each row of a: the Euclidean distance to the nearest row of b, and which row that is."""
    a, b = np.asarray(a_ND, dtype=np.float64), np.asarray(b_MD, dtype=np.float64)
    blocks = [(block.min(1), block.argmin(1)) for block in squared_distances(a, b)]
    return np.sqrt(np.concatenate([d for d, _ in blocks])), np.concatenate([i for _, i in blocks])


def relative_distance(a_ND: ArrayLike, b_ND: ArrayLike) -> float:
    """Mean distance of partners in two sets, over the mean distance of strangers in b: 0 equal, 1 unrelated.

    Strangers are b[i] and b[i + N // 2], so that the figure depends on no seed.
    """
    a, b = np.asarray(a_ND, dtype=np.float64), np.asarray(b_ND, dtype=np.float64)
    if a.shape != b.shape or len(b) < 2:
        raise RequestError(f"Paired features need one shape and at least 2 rows; found {a.shape} and {b.shape}.")
    strangers = np.linalg.norm(b - np.roll(b, len(b) // 2, axis=0), axis=1).mean()
    partners = np.linalg.norm(a - b, axis=1).mean()
    return float(partners / strangers) if strangers > 0 else float("inf") if partners > 0 else 0.0


def radii(x_ND: Float64, neighbours: int) -> Float64:
    """Squared distance of each vector to its k-th nearest other one."""
    blocks = squared_distances(x_ND, x_ND)
    return np.concatenate([np.partition(block, neighbours, axis=1)[:, neighbours] for block in blocks])


def precision_recall(real_ND: ArrayLike, fake_MD: ArrayLike, *, neighbours: int = 3) -> tuple[float, float]:
    """Share of the fakes within a real's k-nearest-neighbour ball, and the reverse.

    Source: Kynkaanniemi et al. 2019 (improved precision and recall). Depends on N: compare only at equal N.

    Raises:
        RequestError: fewer than k + 1 pictures in a set.
    """
    real, fake = np.asarray(real_ND, dtype=np.float64), np.asarray(fake_MD, dtype=np.float64)
    if min(len(real), len(fake)) <= neighbours:
        raise RequestError(
            f"k = {neighbours} neighbours need more than {neighbours} pictures; found {len(real)} and {len(fake)}."
        )

    def covered(inner: Float64, outer: Float64) -> float:
        radius_M = radii(outer, neighbours)
        return float(np.concatenate([(block <= radius_M).any(1) for block in squared_distances(inner, outer)]).mean())

    return covered(fake, real), covered(real, fake)


def density_coverage(real_ND: ArrayLike, fake_MD: ArrayLike, *, neighbours: int = 5) -> tuple[float, float]:
    """How many reals' k-nearest-neighbour balls hold a fake, over k; and the share of the balls that hold any fake.

    Source: Naeem et al. 2020. Density may exceed 1. Unlike precision and recall, one outlier among the reals moves
    neither much. Depends on N: compare only at equal N.

    Raises:
        RequestError: no more reals than neighbours, or no fake.
    """
    real, fake = np.asarray(real_ND, dtype=np.float64), np.asarray(fake_MD, dtype=np.float64)
    if len(real) <= neighbours or len(fake) < 1:
        raise RequestError(
            f"k = {neighbours} neighbours need more than {neighbours} real pictures and at least one other; "
            f"found {len(real)} and {len(fake)}."
        )
    radius_N = radii(real, neighbours)
    inside = np.concatenate([block <= radius_N for block in squared_distances(fake, real)])
    return float(inside.sum(1).mean() / neighbours), float(inside.any(0).mean())


def thumbnails(pictures_NHWC: NDArray[np.uint8], *, size_px: int = 32) -> Float64:
    """Pictures averaged down to size_px square, in 0..255, flattened to (N, size_px * size_px * 3).

    For looking up the nearest training picture; the distance of two rows over sqrt(row length) is an RMS in 0..255.
    """
    n, height, width, channels = pictures_NHWC.shape
    if height % size_px or width % size_px:
        raise RequestError(f"Thumbnails of {size_px} px need sides that are multiples of it; found {width} x {height}.")
    blocks = pictures_NHWC.reshape(n, size_px, height // size_px, size_px, width // size_px, channels)
    return blocks.mean((2, 4), dtype=np.float64).reshape(n, -1)


def nearest_rms(pictures_NHWC: NDArray[np.uint8], training_KHWC: NDArray[np.uint8]) -> Float64:
    """RMS (0 to 255, at 32 px) of each picture to its nearest training picture: low means memorised."""
    a, b = thumbnails(pictures_NHWC), thumbnails(training_KHWC)
    return nearest(a, b)[0] / np.sqrt(a.shape[1])
