"""Distances between two sets of feature vectors: Fréchet distance and kernel distance.

Legend: N, M pictures; D features. NumPy in, plain numbers out; all arithmetic in float64.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fewstep.errors import RequestError

Float64 = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Moments:
    """Mean (D,), unbiased covariance (D, D) and number of the vectors they were taken from."""

    mean_D: Float64
    covariance_DD: Float64
    count: int


def moments(features_ND: ArrayLike) -> Moments:
    """Mean and covariance of N >= 2 vectors.

    Raises:
        RequestError: fewer than two vectors, or an array that is not two-dimensional.
    """
    x_ND = np.asarray(features_ND, dtype=np.float64)
    if x_ND.ndim != 2 or len(x_ND) < 2:
        raise RequestError(
            f"A covariance needs at least 2 feature vectors as an (N, D) array; found shape {x_ND.shape}."
        )
    return Moments(x_ND.mean(0), np.atleast_2d(np.cov(x_ND, rowvar=False)), len(x_ND))


def root(matrix_DD: Float64) -> Float64:
    """The square root of a symmetric positive semi-definite matrix, by its eigenvalues (negative ones count as 0)."""
    values_D, vectors_DD = np.linalg.eigh(matrix_DD)
    return (vectors_DD * np.sqrt(values_D.clip(0))) @ vectors_DD.T


def frechet_distance(a: Moments, b: Moments) -> float:
    """Squared Fréchet distance of two Gaussians: |m1 - m2|^2 + Tr(S1 + S2 - 2 (S1 S2)^(1/2)).

    Source: Dowson and Landau 1982; Heusel et al. 2017 (FID). The trace of the root of the product is the sum of the
    square roots of the eigenvalues of S1^(1/2) S2 S1^(1/2), which is symmetric: no complex numbers arise, also where
    a covariance has no full rank. With few pictures the estimate is too large: compare only at equal N.
    """
    if a.mean_D.shape != b.mean_D.shape:
        raise RequestError(
            f"The two sets have {a.mean_D.size} and {b.mean_D.size} features; read both with one network."
        )
    half_DD = root(a.covariance_DD)
    middle_DD = half_DD @ b.covariance_DD @ half_DD
    cross = np.sqrt(np.linalg.eigvalsh((middle_DD + middle_DD.T) / 2).clip(0)).sum()
    shift = float(np.sum((a.mean_D - b.mean_D) ** 2))
    return max(0.0, shift + float(np.trace(a.covariance_DD) + np.trace(b.covariance_DD) - 2 * cross))


def kernel_distance(a_ND: ArrayLike, b_MD: ArrayLike, *, degree: int = 3) -> float:
    """Unbiased squared maximum mean discrepancy with the kernel (x.y / D + 1)^degree; may be below 0.

    Source: Binkowski et al. 2018 (KID), over all pictures instead of the mean over random subsets, so that it
    depends on no seed.
    """
    a, b = np.asarray(a_ND, dtype=np.float64), np.asarray(b_MD, dtype=np.float64)
    n, m, d = len(a), len(b), a.shape[-1]
    if min(n, m) < 2 or d != b.shape[-1]:
        raise RequestError(
            f"A kernel distance needs two sets of at least 2 vectors of one size; found {a.shape}, {b.shape}."
        )

    def kernel(x: Float64, y: Float64) -> Float64:
        return (x @ y.T / d + 1) ** degree

    aa, bb = kernel(a, a), kernel(b, b)
    within = (aa.sum() - np.trace(aa)) / (n * (n - 1)) + (bb.sum() - np.trace(bb)) / (m * (m - 1))
    return float(within - 2 * kernel(a, b).mean())


def kernel_distance_subsets(
    a_ND: ArrayLike, b_MD: ArrayLike, *, subsets: int = 100, size: int = 1000, seed: int = 0
) -> tuple[float, float]:
    """Mean and standard deviation of the kernel distance over random subsets: the KID as papers report it.

    Source: Binkowski et al. 2018 and its reference code: 100 subsets of 1000 pictures of each set without replacement,
    cubic kernel with gamma 1/D and constant 1. Sets of fewer pictures than `size` take subsets of the smaller set.

    Raises:
        RequestError: fewer than two pictures, or vectors of two sizes.
    """
    a, b = np.asarray(a_ND, dtype=np.float64), np.asarray(b_MD, dtype=np.float64)
    size, rng = min(size, len(a), len(b)), np.random.default_rng(seed)
    if size == len(a) == len(b):  # every subset is the whole
        return kernel_distance(a, b), 0.0
    found = [
        kernel_distance(a[rng.choice(len(a), size, replace=False)], b[rng.choice(len(b), size, replace=False)])
        for _ in range(subsets)
    ]
    return float(np.mean(found)), float(np.std(found))
