"""The Inception v3 of the Fréchet inception distance: the 2015 TensorFlow graph, in the public PyTorch layout of it.

Sources: Szegedy et al. 2015 (the network); Heusel et al. 2017 (the distance); the layout of names and shapes is that of
torchvision's `inception_v3` without its auxiliary head, in which the converted weights are published.

Departures of that graph from the paper, which the weights need: average pooling leaves the padding out of its mean, the
last block pools by maximum, there are 1008 classes, and batch normalisation has epsilon 0.001.
Legend: B pictures; C channels; H, W pixels; D = 2048 features.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

SIZE_PX, FEATURES, CLASSES = 299, 2048, 1008
Kernel = int | tuple[int, int]


class Unit(nn.Module):
    """Convolution without bias, batch normalisation, ReLU."""

    def __init__(self, width: int, wider: int, kernel: Kernel, *, stride: int = 1, padded: bool = True) -> None:
        """`padded` keeps the size of the picture (at stride 1)."""
        super().__init__()
        sides = (kernel, kernel) if isinstance(kernel, int) else kernel
        padding = (sides[0] // 2, sides[1] // 2) if padded else 0
        self.conv = nn.Conv2d(width, wider, kernel, stride, padding, bias=False)
        self.bn = nn.BatchNorm2d(wider, eps=0.001)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """(B, width, H, W) to (B, wider, H', W')."""
        return F.relu(self.bn(self.conv(x_BCHW)), inplace=True)


def average(x_BCHW: Tensor) -> Tensor:
    """Mean of each 3x3 neighbourhood, over what lies inside the picture."""
    return F.avg_pool2d(x_BCHW, 3, 1, 1, count_include_pad=False)


def largest(x_BCHW: Tensor) -> Tensor:
    """Maximum of each 3x3 neighbourhood, size kept."""
    return F.max_pool2d(x_BCHW, 3, 1, 1)


def halved(x_BCHW: Tensor) -> Tensor:
    """Maximum of 3x3 neighbourhoods at stride 2."""
    return F.max_pool2d(x_BCHW, 3, 2)


class Block(nn.Module):
    """Branches side by side, and a pooling branch; units are children by their published names.

    A branch is a chain of unit names; a tuple in its place at the end is units side by side on what the chain gave.
    """

    def __init__(
        self,
        width: int,
        units: dict[str, tuple[int, int, Kernel]],
        branches: tuple[tuple[str | tuple[str, ...], ...], ...],
        pool: Callable[[Tensor], Tensor],
        pooled: int | None,
        shrink: frozenset[str] = frozenset(),
    ) -> None:
        """`units`: name to (width in, width out, kernel); `shrink` names those of stride 2 without padding."""
        super().__init__()
        for name, (into, out, kernel) in units.items():
            unit = Unit(into, out, kernel, stride=2, padded=False) if name in shrink else Unit(into, out, kernel)
            self.add_module(name, unit)
        if pooled is not None:
            self.branch_pool = Unit(width, pooled, 1)
        self._branches, self._pool = branches, pool

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """All branches' channels, the pooling branch last."""
        parts: list[Tensor] = []
        for branch in self._branches:
            y_BCHW = x_BCHW
            for link in branch:
                names = (link,) if isinstance(link, str) else link
                y_BCHW = torch.cat([self.get_submodule(name)(y_BCHW) for name in names], 1)
            parts.append(y_BCHW)
        pooled_BCHW = self._pool(x_BCHW)
        parts.append(self.branch_pool(pooled_BCHW) if hasattr(self, "branch_pool") else pooled_BCHW)
        return torch.cat(parts, 1)


def _a(width: int, pooled: int) -> Block:
    units: dict[str, tuple[int, int, Kernel]] = {
        "branch1x1": (width, 64, 1),
        "branch5x5_1": (width, 48, 1),
        "branch5x5_2": (48, 64, 5),
        "branch3x3dbl_1": (width, 64, 1),
        "branch3x3dbl_2": (64, 96, 3),
        "branch3x3dbl_3": (96, 96, 3),
    }
    chains = (("branch1x1",), ("branch5x5_1", "branch5x5_2"), tuple(f"branch3x3dbl_{i}" for i in (1, 2, 3)))
    return Block(width, units, chains, average, pooled)


def _b(width: int) -> Block:
    units: dict[str, tuple[int, int, Kernel]] = {
        "branch3x3": (width, 384, 3),
        "branch3x3dbl_1": (width, 64, 1),
        "branch3x3dbl_2": (64, 96, 3),
        "branch3x3dbl_3": (96, 96, 3),
    }
    chains = (("branch3x3",), tuple(f"branch3x3dbl_{i}" for i in (1, 2, 3)))
    return Block(width, units, chains, halved, None, frozenset({"branch3x3", "branch3x3dbl_3"}))


def _c(width: int, seven: int) -> Block:
    row, column = (1, 7), (7, 1)
    units: dict[str, tuple[int, int, Kernel]] = {
        "branch1x1": (width, 192, 1),
        "branch7x7_1": (width, seven, 1),
        "branch7x7_2": (seven, seven, row),
        "branch7x7_3": (seven, 192, column),
        "branch7x7dbl_1": (width, seven, 1),
        "branch7x7dbl_2": (seven, seven, column),
        "branch7x7dbl_3": (seven, seven, row),
        "branch7x7dbl_4": (seven, seven, column),
        "branch7x7dbl_5": (seven, 192, row),
    }
    single, double = (f"branch7x7_{i}" for i in (1, 2, 3)), (f"branch7x7dbl_{i}" for i in (1, 2, 3, 4, 5))
    return Block(width, units, (("branch1x1",), tuple(single), tuple(double)), average, 192)


def _d(width: int) -> Block:
    units: dict[str, tuple[int, int, Kernel]] = {
        "branch3x3_1": (width, 192, 1),
        "branch3x3_2": (192, 320, 3),
        "branch7x7x3_1": (width, 192, 1),
        "branch7x7x3_2": (192, 192, (1, 7)),
        "branch7x7x3_3": (192, 192, (7, 1)),
        "branch7x7x3_4": (192, 192, 3),
    }
    chains = (("branch3x3_1", "branch3x3_2"), tuple(f"branch7x7x3_{i}" for i in (1, 2, 3, 4)))
    return Block(width, units, chains, halved, None, frozenset({"branch3x3_2", "branch7x7x3_4"}))


def _e(width: int, pool: Callable[[Tensor], Tensor]) -> Block:
    row, column = (1, 3), (3, 1)
    units: dict[str, tuple[int, int, Kernel]] = {
        "branch1x1": (width, 320, 1),
        "branch3x3_1": (width, 384, 1),
        "branch3x3_2a": (384, 384, row),
        "branch3x3_2b": (384, 384, column),
        "branch3x3dbl_1": (width, 448, 1),
        "branch3x3dbl_2": (448, 384, 3),
        "branch3x3dbl_3a": (384, 384, row),
        "branch3x3dbl_3b": (384, 384, column),
    }
    single = ("branch3x3_1", ("branch3x3_2a", "branch3x3_2b"))
    double = ("branch3x3dbl_1", "branch3x3dbl_2", ("branch3x3dbl_3a", "branch3x3dbl_3b"))
    return Block(width, units, (("branch1x1",), single, double), pool, 192)


class Inception(nn.Module):
    """Pictures of 299 px, scaled to about [-1, 1], to the 2048 features before the classes."""

    def __init__(self) -> None:
        """Build with random weights; children are in the order they are run."""
        super().__init__()
        self.Conv2d_1a_3x3 = Unit(3, 32, 3, stride=2, padded=False)
        self.Conv2d_2a_3x3 = Unit(32, 32, 3, padded=False)
        self.Conv2d_2b_3x3 = Unit(32, 64, 3)
        self.Conv2d_3b_1x1 = Unit(64, 80, 1)
        self.Conv2d_4a_3x3 = Unit(80, 192, 3, padded=False)
        self.Mixed_5b, self.Mixed_5c, self.Mixed_5d = _a(192, 32), _a(256, 64), _a(288, 64)
        self.Mixed_6a = _b(288)
        self.Mixed_6b, self.Mixed_6c = _c(768, 128), _c(768, 160)
        self.Mixed_6d, self.Mixed_6e = _c(768, 160), _c(768, 192)
        self.Mixed_7a = _d(768)
        self.Mixed_7b, self.Mixed_7c = _e(1280, average), _e(2048, largest)
        self.fc = nn.Linear(FEATURES, CLASSES)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """(B, 3, 299, 299) to features (B, 2048); the classes are not computed."""
        x_BCHW = halved(self.Conv2d_2b_3x3(self.Conv2d_2a_3x3(self.Conv2d_1a_3x3(x_BCHW))))
        x_BCHW = halved(self.Conv2d_4a_3x3(self.Conv2d_3b_1x1(x_BCHW)))
        for name, block in self.named_children():
            if name.startswith("Mixed"):
                x_BCHW = block(x_BCHW)
        return x_BCHW.mean((2, 3))
