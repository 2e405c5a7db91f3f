"""Latents on another grid: the resizes of PyTorch's `interpolate`, for its tensors and for numpy arrays alike.

Each is linear along each axis, so it is two small matrices. Keys 1981 for the cubic; with antialiasing a filter is as
wide as the step between the new places, and its weights are normalised; without, places beyond the edge are the edge.

Shapes: B items, C channels, H and W height and width.
"""

from collections.abc import Callable
from functools import lru_cache
from math import ceil, floor

from fewstep.sampling.arrays import Array, constant

Kernel = Callable[[float], float]


def _triangle(x: float) -> float:
    return max(0.0, 1 - abs(x))


def _cubic(a: float) -> Kernel:
    """Keys' kernel. PyTorch takes a = -0.75, and with antialiasing, as Pillow does, -0.5."""

    def kernel(x: float) -> float:
        x = abs(x)
        if x < 1:
            return ((a + 2) * x - (a + 3)) * x * x + 1
        return ((a * x - 5 * a) * x + 8 * a) * x - 4 * a if x < 2 else 0.0

    return kernel


KERNELS: dict[str, tuple[Kernel, int, bool]] = {
    "bilinear": (_triangle, 1, False),
    "bilinear-antialiased": (_triangle, 1, True),
    "bicubic": (_cubic(-0.75), 2, False),
    "bicubic-antialiased": (_cubic(-0.5), 2, True),
}
"""Name -> kernel, its radius, and whether it widens with the step."""

NEAREST = {"nearest": 0.0, "nearest-exact": 0.5}
"""Name -> which point of a new place is looked up: its edge, or its middle."""


@lru_cache(maxsize=64)
def matrix(kind: str, old: int, new: int) -> tuple[tuple[float, ...], ...]:
    """The weights (new, old) of a resize along one axis.

    >>> matrix("bilinear", 2, 4)
    ((1.0, 0.0), (0.75, 0.25), (0.25, 0.75), (0.0, 1.0))
    """
    return tuple(tuple(_row(kind, old, old / new, index)) for index in range(new))


def _row(kind: str, old: int, step: float, index: int) -> list[float]:
    row = [0.0] * old
    if kind in NEAREST:
        row[min(old - 1, floor((index + NEAREST[kind]) * step))] = 1.0
        return row
    kernel, radius, antialias = KERNELS[kind]
    wide = max(step, 1.0) if antialias else 1.0
    centre = (index + 0.5) * step - 0.5
    for place in range(ceil(centre - radius * wide), floor(centre + radius * wide) + 1):
        if not antialias or 0 <= place < old:
            row[min(old - 1, max(0, place))] += kernel((place - centre) / wide)
    total = sum(row) if antialias else 1.0
    return [weight / total for weight in row]


def resize(x_BCHW: Array, size: tuple[int, int], kind: str) -> Array:
    """`x_BCHW` at (height, width), float32."""
    down, across = (matrix(kind, old, new) for old, new in zip(x_BCHW.shape[-2:], size, strict=True))
    return constant(down, like=x_BCHW) @ x_BCHW @ constant(across, like=x_BCHW).T


def cover(x_BCHW: Array, size: tuple[int, int], kind: str) -> Array:
    """Resized to cover (height, width) with its proportions kept, the overhang cut off evenly."""
    grow = max(new / old for old, new in zip(x_BCHW.shape[-2:], size, strict=True))
    whole = [max(new, round(old * grow)) for old, new in zip(x_BCHW.shape[-2:], size, strict=True)]
    top, left = ((had - new) // 2 for had, new in zip(whole, size, strict=True))
    return resize(x_BCHW, (whole[0], whole[1]), kind)[..., top : top + size[0], left : left + size[1]]
