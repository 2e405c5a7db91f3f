"""Sizes to train at: a list of shapes of about one area, and each picture cut to the shape nearest to its own.

The list is SDXL's (2307.01952, appendix I): all pairs of multiples of 64 px whose area is more than 0.9 and at most 1
times size_px^2, and whose sides differ by a factor of at most 4. At 1024 px that is the published table.

Shapes are (height, width) in pixels, heights first everywhere; H, W picture height and width.
"""

from dataclasses import dataclass
from math import log

import numpy as np
from PIL import Image

from fewstep.data.seeds import seed_at
from fewstep.errors import RecipeError

STEP_PX = 64
LEAST_AREA, MOST_ASPECT = 0.9, 4.0
CROPS = ("centre", "random")

Shape = tuple[int, int]
TimeIds = tuple[int, int, int, int, int, int]
"""SDXL's size conditioning: original height and width, crop top and left, target height and width."""


def bucket_shapes(size_px: int, *, step: int = STEP_PX, most_aspect: float = MOST_ASPECT) -> tuple[Shape, ...]:
    """All (height, width) of about size_px^2 pixels, tallest first.

    >>> shapes = bucket_shapes(1024)
    >>> len(shapes), shapes[0], (832, 1216) in shapes, (1024, 1024) in shapes
    (41, (2048, 512), True, True)
    >>> bucket_shapes(256)
    ((512, 128), (320, 192), (256, 256), (192, 320), (128, 512))

    Raises RecipeError when size_px is no multiple of the step.
    """
    if size_px < step or size_px % step:
        raise RecipeError(
            f"{size_px} px is not a multiple of {step} px. Use {max(step, round(size_px / step) * step)}."
        )
    sides = range(step, int(size_px * most_aspect**0.5) + 1, step)
    return tuple(
        (height, width)
        for height in reversed(sides)
        for width in sides
        if LEAST_AREA * size_px**2 < height * width <= size_px**2 and max(height / width, width / height) <= most_aspect
    )


def nearest(shapes: tuple[Shape, ...], size: Shape) -> Shape:
    """The shape whose height to width ratio is nearest to that of `size` on a log scale; of equals the largest.

    >>> nearest(bucket_shapes(1024), (600, 800))
    (896, 1152)
    """
    ratio = log(size[0] / size[1])
    return min(shapes, key=lambda shape: (round(abs(log(shape[0] / shape[1]) - ratio), 9), -shape[0] * shape[1], shape))


@dataclass(frozen=True)
class Framing:
    """How pictures are cut: the shapes to choose from, and where the overhang goes (half on each side, or by chance
    made from `seed` and the picture's name).
    """

    shapes: tuple[Shape, ...]
    crop: str = "centre"
    seed: int = 0

    def __post_init__(self) -> None:
        """Raises RecipeError for an unknown crop."""
        if self.crop not in CROPS:
            raise RecipeError(f"There is no crop '{self.crop}'. Use one of: {', '.join(CROPS)}.")

    @property
    def squarest(self) -> Shape:
        """The shape whose sides differ least: what prompts without pictures are drawn at."""
        return min(self.shapes, key=lambda shape: max(shape) / min(shape))

    def shape_of(self, size: Shape) -> Shape:
        """The shape that a picture of (height, width) is cut to."""
        return nearest(self.shapes, size)


def framed(image: Image.Image, framing: Framing, *, name: str, epoch: int = 0) -> tuple[np.ndarray, TimeIds]:
    """(uint8 [H, W, 3], time ids): the picture scaled to cover its bucket's shape, and the overhang cut off.

    The time ids say the crop that was made, in pixels of the scaled picture, and the size before scaling.
    """
    height, width = framing.shape_of((image.height, image.width))
    scale = max(height / image.height, width / image.width)
    scaled = (max(width, round(image.width * scale)), max(height, round(image.height * scale)))
    over = (scaled[1] - height, scaled[0] - width)
    if framing.crop == "centre":
        top, left = over[0] // 2, over[1] // 2
    else:
        top, left = (seed_at(framing.seed, name, epoch, side) % (over[k] + 1) for k, side in enumerate(("top", "left")))
    rgb = image.convert("RGB")
    if rgb.size != scaled:
        rgb = rgb.resize(scaled, Image.Resampling.LANCZOS)
    pixels_HWC = np.asarray(rgb.crop((left, top, left + width, top + height)))
    return pixels_HWC, (image.height, image.width, top, left, height, width)
