"""Winograd's convolutions F(4x4, 3x3) and F(2x2, 3x3): 36 products where 144 would be multiplied, 16 where 36 would
(Lavin and Gray 2016, arXiv:1509.09308, section 4.1).

A tile of T x T results comes from (T + 2) x (T + 2) pixels: Y = A^T [(G g G^T) * (B^T d B)] A, so that the sums over
the channels are as many products of matrices. The points of the larger are 0, 1, -1, 1/2, -2 and infinity, which lose
less to rounding than Lavin's (Barabasz et al. 2020, arXiv:1803.10986).
"""

from __future__ import annotations

from functools import cache
from typing import NamedTuple

import numpy as np

DOMAIN = "fewstep"
"""Of the graphs' operator `Winograd`, which is `transformed` of a weight: whoever opens the graph puts that there."""

TAPS = 3
POINTS = {2: (0.0, 1.0, -1.0), 4: (0.0, 1.0, -1.0, 0.5, -2.0)}
"""Side of the tile -> where the polynomials are evaluated; the last point is infinity."""


class Transforms(NamedTuple):
    """For tiles as rows of pixels: pixels to factors, taps to factors, products to results; all float32."""

    pixels: np.ndarray
    taps: np.ndarray
    results: np.ndarray


@cache
def transforms(tile: int) -> Transforms:
    """By Toom and Cook's construction: a convolution's transpose, evaluated at points and put together again."""
    points, reach = np.array(POINTS[tile]), tile + TAPS - 1
    others = np.array([np.prod([p - q for q in points if q != p]) for p in points])
    whole = np.vstack([points[:, None] ** np.arange(reach), np.eye(reach)[-1]])
    taps = np.vstack([points[:, None] ** np.arange(TAPS) / others[:, None], np.eye(TAPS)[-1]])
    results = np.vstack([points[:, None] ** np.arange(tile), np.eye(tile)[-1]]).T
    pixels = np.linalg.inv(whole.T) * np.append(others, 1.0)[:, None]
    return Transforms(*(np.kron(one, one).astype(np.float32) for one in (pixels, taps, results)))


def transformed(weight_OC33: np.ndarray, tile: int) -> np.ndarray:
    """The weight of a convolution as a matrix for each factor, ((tile + 2) ** 2, O, C) in float32."""
    outs, ins = weight_OC33.shape[:2]
    return (transforms(tile).taps @ weight_OC33.reshape(outs * ins, TAPS**2).T).reshape(-1, outs, ins)
