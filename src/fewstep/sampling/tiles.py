"""Large pictures in overlapping windows: whatever maps an array to an array, place by place, window by window.

A window counts fully in its middle and not at all in the outer quarter of an overlap, where a network sees the padding
of its convolutions instead of the picture; between, its share falls as half a cosine wave. All shares of a place add up
to 1, so what the windows agree on comes out unchanged, and one window that covers everything is the plain call.

Source: MultiDiffusion (Bar-Tal et al. 2023, arXiv:2302.08113, eq. 5). Departures: the mean is taken of predicted clean
latents, not of the sampler's next ones (the same for every sampler that is linear in z0, and it leaves samplers alone),
and it is weighted, where the paper's windows count alike up to their hard edges.

Shapes: B items, C channels, H and W height and width; y and x are places, in cells.
"""

from collections.abc import Callable
from functools import lru_cache
from math import ceil, cos, pi

from fewstep.sampling.arrays import Array, constant, float32, namespace
from fewstep.sampling.sampler import Denoiser


def windows(length: int, size: int, overlap: int) -> list[int]:
    """Where windows of `size` start that cover `length` evenly; neighbours share at least `overlap`.

    >>> windows(10, 4, 1), windows(11, 4, 1), windows(3, 4, 1)
    ([0, 3, 6], [0, 2, 5, 7], [0])

    Raises ValueError unless 0 <= overlap < size.
    """
    if not 0 <= overlap < size:
        raise ValueError(f"windows of {size} cannot overlap by {overlap}")
    if length <= size:
        return [0]
    count = ceil((length - overlap) / (size - overlap))
    return [round(i * (length - size) / (count - 1)) for i in range(count)]


@lru_cache(maxsize=64)
def shares(length: int, size: int, overlap: int, scale: int = 1) -> tuple[tuple[int, tuple[float, ...]], ...]:
    """Every window's start and its share of each place along an axis, `scale` places a cell; they add up to 1.

    >>> [(start, [round(share, 2) for share in row]) for start, row in shares(8, 6, 4)]
    [(0, [1.0, 1.0, 1.0, 0.85, 0.15, 0.0]), (2, [0.0, 0.15, 0.85, 1.0, 1.0, 1.0])]
    """
    starts, side = windows(length, size, overlap), min(length, size) * scale
    rows = [_fading(side, overlap * scale, start > 0, start + size < length) for start in starts]
    total = [0.0] * (length * scale)
    for start, row in zip(starts, rows, strict=True):
        for place, share in enumerate(row):
            total[start * scale + place] += share
    return tuple(
        (start, tuple(share / total[start * scale + place] for place, share in enumerate(row)))
        for start, row in zip(starts, rows, strict=True)
    )


def _fading(side: int, overlap: int, before: bool, after: bool) -> list[float]:
    """One window's weights before they are shared out: 1, falling towards a neighbour before or after it."""

    def rise(place: int) -> float:
        if not overlap:
            return 1.0
        way = min(1.0, max(0.0, 2 * (place + 0.5) / overlap - 0.5))
        return 0.5 - 0.5 * cos(pi * way)

    return [(rise(p) if before else 1.0) * (rise(side - 1 - p) if after else 1.0) for p in range(side)]


def blended(
    run: Callable[[Array], Array],
    x_BCHW: Array,
    *,
    size: int,
    overlap: int,
    cell: int = 1,
    scale: int = 1,
    batch: int = 1,
) -> Array:
    """`run(x_BCHW)` from windows of `size` x `size` cells, float32.

    A cell is `cell` x `cell` places of x and `scale` x `scale` of the result. Of a single item `batch` windows are
    computed at once. The memory is that of one window beside the result. Where one window covers x it is `run(x_BCHW)`.
    """
    height, width = x_BCHW.shape[-2] // cell, x_BCHW.shape[-1] // cell
    if height <= size and width <= size:
        return run(x_BCHW)
    rows, columns = shares(height, size, overlap, scale), shares(width, size, overlap, scale)
    places = [(row, column) for row in rows for column in columns]
    many = batch if len(x_BCHW) == 1 else 1
    xp, out_BCHW = namespace(x_BCHW), None
    for first in range(0, len(places), many):
        chosen = places[first : first + many]
        corners = [(y * cell, x * cell, min(size, height) * cell, min(size, width) * cell) for (y, _), (x, _) in chosen]
        cut = [x_BCHW[..., y : y + high, x : x + wide] for y, x, high, wide in corners]
        parts = float32(run(cut[0] if len(cut) == 1 else xp.concatenate(cut)))
        if out_BCHW is None:
            out_BCHW = _zeros((len(x_BCHW), parts.shape[1], height * scale, width * scale), like=parts)
        for index, ((y, down), (x, across)) in enumerate(chosen):
            part = parts if len(chosen) == 1 else parts[index : index + 1]
            weight_HW = constant(down, like=parts)[:, None] * constant(across, like=parts)
            place = (..., slice(y * scale, y * scale + len(down)), slice(x * scale, x * scale + len(across)))
            out_BCHW[place] += part * weight_HW
    return out_BCHW


def _zeros(shape: tuple[int, ...], *, like: Array) -> Array:
    zero = constant([0.0], like=like).reshape((1,) * len(shape))
    return namespace(like).broadcast_to(zero, shape) + zero


def tiled(denoiser: Denoiser, *, size: int, overlap: int, batch: int = 1) -> Denoiser:
    """A denoiser that looks at overlapping windows of `size` x `size` latents; elsewhere it is `denoiser` itself."""

    def predict(z_BCHW: Array, timestep_B: Array) -> Array:
        def run(part_BCHW: Array) -> Array:
            many = len(part_BCHW) > len(z_BCHW)
            return denoiser(part_BCHW, timestep_B[[0] * len(part_BCHW)] if many else timestep_B)

        return blended(run, z_BCHW, size=size, overlap=overlap, batch=batch)

    return predict
