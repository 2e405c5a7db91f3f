"""Does the picture have the background that was asked for? Read from its border; no network."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

RGB = tuple[int, int, int]


def border_colour(picture_HWC: NDArray[np.uint8], *, share: float = 1 / 32) -> NDArray[np.float64]:
    """The median colour of the outermost ring, whose width is a share of the shorter side (at least one pixel)."""
    height, width = picture_HWC.shape[:2]
    ring = max(1, round(share * min(height, width)))
    inside = np.zeros((height, width), bool)
    inside[ring : height - ring, ring : width - ring] = True
    return np.median(picture_HWC[~inside], axis=0)


def nearest_colour(colour: NDArray[np.float64], colours: Mapping[str, RGB]) -> str:
    """The name of the nearest colour by Euclidean distance in RGB.

    >>> nearest_colour(np.array([250.0, 10.0, 20.0]), {"red": (214, 45, 50), "white": (255, 255, 255)})
    'red'
    """
    return min(colours, key=lambda name: float(np.sum((colour - np.array(colours[name])) ** 2)))


def obeyed(picture_HWC: NDArray[np.uint8], asked: str, colours: Mapping[str, RGB]) -> bool:
    """Whether the border is nearer to the colour asked for than to any other of the named colours."""
    return nearest_colour(border_colour(picture_HWC), colours) == asked
