"""The writer of graphs whose inner values are tokens (B, L, C), and whose wide convolutions are Winograd's.

OpenVINO multiplies at nearly the pace of the processor, so beyond it only fewer products help; and with the channels
last nothing has to be turned over between convolutions, attention and norms.
Shapes: B batch, H and W height and width of a level, L = H * W tokens, C and O channels in and out, h and w tiles of
T x T pixels, F = (T + 2)^2 factors, N = B * h * w tiles of a batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import NamedTuple

import numpy as np

from fewstep.graphs.graph import Graph, Shapes
from fewstep.graphs.winograd import DOMAIN, TAPS, transforms

WIDE = 320
"""Channels from which fewer products are worth more passes over them."""

LARGE = {4: 32, 2: 16}
"""Side of the tiles -> pixels on a side from which the larger weights are worth it."""


class Level(NamedTuple):
    """The names of a level's vectors [H] and [W]: the latents, halved as often as its number says."""

    height: str
    width: str


class ChannelsLast(Graph):
    """As `Graph`, with x_BLC where that has x_BCHW. `z` is the graph's input of latents, `side` how wide they mostly
    are.
    """

    channels = -1

    def __init__(self, what: str, shapes: Shapes, *, z: str, side: int) -> None:
        super().__init__(what, shapes)
        self.side = side
        shape = self.add("Shape", z)
        self.batch, _, self.height, self.width = (
            self.add("Slice", shape, self.integers(axis), self.integers(axis + 1)) for axis in range(4)
        )
        self.level, self.tiles, self.results = cache(self._level), cache(self._tiles), cache(self._results)

    def enter(self, x_BCHW: str, /) -> str:
        """From the layout of the graph's inputs."""
        return self.add("Transpose", self.reshape(x_BCHW, 0, 0, -1), perm=[0, 2, 1])

    def leave(self, x_BLC: str, level: int = 0, /) -> str:
        """To the layout of the graph's outputs."""
        shape = self.add("Concat", self.batch, *self.level(level), self.integers(-1), axis=0)
        return self.add("Transpose", self.add("Reshape", x_BLC, shape), perm=[0, 3, 1, 2])

    def tokens(self, x_BLC: str, /) -> str:
        """They are."""
        return x_BLC

    def pixels(self, x_BLC: str, like: str, /) -> str:
        """They stay tokens."""
        return x_BLC

    def shifted(self, x_BLC: str, shift_BC: str, /) -> str:
        """x with a number added to each channel."""
        return self.add("Add", x_BLC, self.add("Unsqueeze", shift_BC, self.integers(1)))

    def halves(self, x_BLC: str, name: str, /) -> tuple[str, str]:
        """A linear layer's first and last half, each a product of its own: nothing is cut afterwards."""
        middle = self.shapes[self.weight(f"{name}.weight")][0] // 2

        def half(begin: int) -> str:
            ends = self.integers(begin), self.integers(begin + middle)
            weight = self.add("Slice", f"{name}.weight", *ends)
            product = self.add("FusedMatMul", x_BLC, weight, domain="com.microsoft", transB=1)
            return self.add("Add", product, self.add("Slice", self.weight(f"{name}.bias"), *ends))

        return half(0), half(middle)

    def conv(
        self, x_BLC: str, name: str, /, *, level: int = 0, stride: int = 1, pads: Sequence[int] | None = None
    ) -> str:
        """A convolution: of single pixels a product of matrices; a wide one at a large level Winograd's."""
        outs, ins, kernel, _ = self.shapes[f"{name}.weight"]
        if kernel == 1:
            self.weight(f"{name}.weight", shape=(outs, ins))
            return self.linear(x_BLC, name)
        tile = next((tile for tile, side in LARGE.items() if self.side >> level >= side), None)
        if tile and min(outs, ins) >= WIDE and (kernel, stride, pads) == (TAPS, 1, None):
            return self.add("Add", self.winograd(x_BLC, f"{name}.weight", level, tile), self.weight(f"{name}.bias"))
        return self.enter(super().conv(self.leave(x_BLC, level), name, stride=stride, pads=pads))

    def winograd(self, x_BLC: str, weight: str, level: int, tile: int) -> str:
        """F(T x T, 3 x 3), padded to keep the size."""
        outs, ins = self.shapes[self.weight(weight)][:2]
        pixels, _, results = transforms(tile)
        count = len(pixels)
        outside = self.constant(np.zeros((1, ins), np.float32))
        rows = self.add("Concat", self.reshape(x_BLC, -1, ins), outside, axis=0)
        cut = self.reshape(self.add("Gather", rows, self.tiles(level, tile), axis=0), count, -1)
        factors_FNC = self.reshape(self.add("MatMul", self.constant(pixels), cut), count, -1, ins)
        weight_FOC = self.add("Winograd", weight, domain=DOMAIN, tile=tile)
        products = self.add("FusedMatMul", factors_FNC, weight_FOC, domain="com.microsoft", transB=1)
        found = self.add("MatMul", self.constant(results), self.reshape(products, count, -1))
        return self.add("Gather", self.reshape(found, -1, outs), self.results(level, tile), axis=0)

    def group_norm(self, x_BLC: str, name: str, /, *, groups: int, eps: float) -> str:
        """Mean and variance of each channel over the pixels, then of each group over its channels; the rest is one
        multiplication and one addition.
        """
        channels = self.shapes[self.weight(f"{name}.weight")][0]
        across = self.constant(np.ones((1, groups, channels // groups), np.float32))

        def mean(of_BLC: str) -> str:
            each = self.reshape(self.add("ReduceMean", of_BLC, self.integers(1)), 0, groups, channels // groups)
            group = self.add("ReduceMean", each, self.integers(2))
            return self.reshape(self.add("Mul", group, across), 0, 1, channels)

        middle = mean(x_BLC)
        variance = mean(self.add("Pow", self.add("Sub", x_BLC, middle), self.full(1, 2)))
        spread = self.add("Sqrt", self.add("Add", variance, self.full(1, eps)))
        scale = self.add("Div", self.weight(f"{name}.weight"), spread)
        shift = self.add("Sub", self.weight(f"{name}.bias"), self.add("Mul", middle, scale))
        return self.add("Add", self.add("Mul", x_BLC, scale), shift)

    def resize_like(self, x_BLC: str, like: str, level: int, /) -> str:
        """Nearest neighbour, from the level below to this one."""
        (row, column), two = self.places(level), self.integers(2)
        rows = self.add("Mul", self.add("Div", row, two), self.level(level + 1).width)
        which = self.add("Add", rows, self.add("Div", column, two))
        return self.add("Gather", x_BLC, self.reshape(which, -1), axis=1)

    # ------------------------------------------------------------ sizes and places, all int64

    def places(self, level: int) -> tuple[str, str]:
        """A level's rows (H, 1) and columns (1, W)."""
        height, width = self.level(level)
        return self.count(height, -1, 1), self.count(width, 1, -1)

    def count(self, end: str, *shape: int) -> str:
        """0, 1, 2 ... before [end], in this shape."""
        first, step = (self.constant(np.array(number, np.int64)) for number in (0, 1))
        return self.reshape(self.add("Range", first, self.add("Squeeze", end), step), *shape)

    def over(self, numbers: str, divisor: int) -> str:
        """Divided and rounded up."""
        return self.add("Div", self.add("Add", numbers, self.integers(divisor - 1)), self.integers(divisor))

    def _level(self, level: int) -> Level:
        if level == 0:
            return Level(self.height, self.width)
        above = self.level(level - 1)
        return Level(self.over(above.height, 2), self.over(above.width, 2))

    def _tiles(self, level: int, tile: int) -> str:
        """(F, N): which of B * L rows stands at each place of each tile; the row after the last is what lies
        outside.
        """
        height, width = self.level(level)
        inside, at = [], []
        for axis, side in enumerate((height, width)):  # of (T + 2, T + 2, B, h, w)
            tiles = self.count(self.over(side, tile), *(-1 if place == axis + 3 else 1 for place in range(5)))
            reach = np.arange(-1, tile + 1).reshape([-1 if place == axis else 1 for place in range(5)])
            here = self.add("Add", self.add("Mul", tiles, self.integers(tile)), self.constant(reach))
            not_before = self.add("GreaterOrEqual", here, self.integers(0))
            inside.append(self.add("And", not_before, self.add("Less", here, side)))
            at.append(here)
        area = self.add("Mul", height, width)
        pictures = self.add("Mul", self.count(self.batch, 1, 1, -1, 1, 1), area)
        pixels = self.add("Add", self.add("Mul", at[0], width), at[1])
        outside = self.add("Mul", self.batch, area)
        which = self.add("Where", self.add("And", *inside), self.add("Add", pictures, pixels), outside)
        return self.reshape(which, (tile + TAPS - 1) ** 2, -1)

    def _results(self, level: int, tile: int) -> str:
        """(B, L): which of T * T * N rows belongs to each pixel."""
        (row, column), size = self.places(level), self.integers(tile)
        high, wide = (self.over(side, tile) for side in self.level(level))
        area = self.add("Mul", high, wide)
        within = self.add("Add", self.add("Mul", self.add("Mod", row, size), size), self.add("Mod", column, size))
        tiles = self.add("Add", self.add("Mul", self.add("Div", row, size), wide), self.add("Div", column, size))
        first = self.add("Add", self.add("Mul", within, self.add("Mul", self.batch, area)), tiles)
        return self.add("Add", self.reshape(first, 1, -1), self.add("Mul", self.count(self.batch, -1, 1), area))
