"""Pictures in and out: opening, turning to RGB, fitting to a size, masks. Pillow only; no torch.

Arrays are numpy, uint8, shaped (B, H, W, C) or (H, W); sizes are (width, height) in pixels as Pillow has them.
"""

from __future__ import annotations

import hashlib
import math
import os
import tempfile
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import IO, TYPE_CHECKING

from PIL import Image, ImageOps, UnidentifiedImageError

from fewstep.errors import ImageError, OutputError

if TYPE_CHECKING:
    import numpy as np

Source = str | os.PathLike[str] | Image.Image
EXTENSIONS = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".webp": "WEBP"}
if find_spec("PIL._avif") is not None:  # Pillow before 11.3, and builds of it without libavif, lack it
    EXTENSIONS[".avif"] = "AVIF"
CELL_PX = 8


def open_image(source: Source, *, what: str = "image") -> Image.Image:
    """The picture as upright RGB; transparency is laid on white.

    Raises:
        ImageError: the file is missing, a folder, not a picture, or cut short.
    """
    image = open_any(source, what)
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba)
    return image.convert("RGB")


def open_mask(source: Source) -> Image.Image:
    """The mask as greys, white (255) where to repaint; transparent parts count as black.

    Raises:
        ImageError: as `open_image`, and for a mask with nothing white in it.
    """
    image = open_any(source, "mask")
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", rgba.size, "black"), rgba)
    mask = image.convert("L")
    if mask.getextrema()[1] == 0:
        raise ImageError("The mask is black everywhere, so nothing would be repainted. Paint white what is to change.")
    return mask


def open_any(source: Source, what: str) -> Image.Image:
    """The picture as it is in the file, upright, with its metadata in `info`; raises ImageError as `open_image`."""
    if isinstance(source, Image.Image):
        return source
    if not isinstance(source, (str, os.PathLike)):
        raise ImageError(f"The {what} is a {type(source).__name__}. Give a path or a PIL image.")
    path = Path(source)
    if not path.exists():
        raise ImageError(f"The {what} '{path}' does not exist. Check the path.")
    if path.is_dir():
        raise ImageError(f"The {what} '{path}' is a folder. Give a picture file.")
    if not path.is_file():
        raise ImageError(f"The {what} '{path}' is a pipe or a device. Give a picture file.")
    try:
        with Image.open(path) as image:
            image.load()
            return ImageOps.exif_transpose(image)
    except UnidentifiedImageError:
        raise ImageError(f"The {what} '{path}' is not a picture that can be read. Give a PNG, JPEG or WebP.") from None
    except Image.DecompressionBombError:
        raise ImageError(f"The {what} '{path}' is far too large. Make it smaller first.") from None
    except (OSError, SyntaxError, ValueError) as error:
        raise ImageError(f"The {what} '{path}' is damaged ({error}). Save it again from its source.") from None


def default_size(image: Image.Image, *, low: int = 64, high: int = 2048) -> tuple[int, int]:
    """The (width, height) nearest to the picture's own, in multiples of 8, scaled to lie within the limits.

    >>> default_size(Image.new("RGB", (517, 300)))
    (520, 304)
    >>> default_size(Image.new("RGB", (8, 8)))
    (64, 64)
    """
    shrink = min(1.0, high / max(image.size))
    scale = max(shrink, low / min(image.size)) if shrink == 1.0 else shrink
    width, height = (min(high, max(low, round_to_cell(side * scale))) for side in image.size)
    return width, height


def round_to_cell(side: float) -> int:
    """The nearest multiple of the latents' cell of 8 pixels, halves upwards."""
    return math.floor(side / CELL_PX + 0.5) * CELL_PX


def fit(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    """The picture scaled to cover (width, height), the overhang cut off evenly; unchanged if it has that size."""
    if image.size == size:
        return image.copy()
    return ImageOps.fit(image, size, Image.Resampling.LANCZOS)


def fit_mask(mask: Image.Image, image_size: tuple[int, int], size: tuple[int, int]) -> Image.Image:
    """The mask taken the way `fit` takes a picture of `image_size` to `size`, without losing even one white pixel.

    A mask of another size than its picture is stretched over it. Where pixels merge, the whitest wins.
    """
    import numpy as np

    scale = min(image_size[0] / size[0], image_size[1] / size[1])
    pixels = np.asarray(mask)
    for axis, side in ((1, 0), (0, 1)):
        stretch = mask.size[side] / image_size[side]
        start = (image_size[side] - size[side] * scale) / 2 * stretch
        pixels = _whitest(pixels, axis, start, scale * stretch, size[side])
    return Image.fromarray(pixels)


def _whitest(pixels: np.ndarray, axis: int, start: float, step: float, count: int) -> np.ndarray:
    """`count` cells of `step` pixels along an axis from `start` on: each one's maximum, or nearest pixel if smaller."""
    import numpy as np

    last = pixels.shape[axis] - 1
    if step <= 1:
        return np.take(pixels, np.clip((start + step * (np.arange(count) + 0.5)).astype(int), 0, last), axis)
    edges = np.clip((start + step * np.arange(count) + 1e-9).astype(int), 0, last)
    end = min(last + 1, max(int(np.ceil(start + step * count - 1e-9)), int(edges[-1]) + 1))
    return np.maximum.reduceat(np.take(pixels, range(end), axis), edges, axis)


def mask_cells(mask: Image.Image) -> np.ndarray:
    """Which latent cells to repaint: bool (height / 8, width / 8), true where any pixel of the cell is not black."""
    import numpy as np

    pixels = np.asarray(mask)
    cells = pixels.reshape(pixels.shape[0] // CELL_PX, CELL_PX, pixels.shape[1] // CELL_PX, CELL_PX)
    return cells.max(axis=(1, 3)) > 0


def paste_back(painted: Image.Image, original: Image.Image, mask: Image.Image) -> Image.Image:
    """Painted where the mask is white, the original, pixel for pixel, where it is black, blended where it is grey."""
    return Image.composite(painted, original, mask)


def content_hash(image: Image.Image) -> str:
    """Ten hexadecimal digits that stand for the picture's size, mode and pixels, whatever file it came from."""
    head = f"{image.mode} {image.size[0]} {image.size[1]} ".encode()
    return hashlib.sha256(head + image.tobytes()).hexdigest()[:10]


def write_atomically(path: Path, write: Callable[[IO[bytes]], None]) -> None:
    """Calls `write` with a new file beside `path` and renames it when whole: a reader sees the old file or the new one.

    Raises:
        OutputError: the file cannot be written.
    """
    temporary: str | None = None
    try:
        handle, temporary = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".part", dir=path.parent)
        with os.fdopen(handle, "wb") as stream:
            write(stream)
        umask = os.umask(0)
        os.umask(umask)
        os.chmod(temporary, 0o666 & ~umask)
        os.replace(temporary, path)
    except OSError as error:
        raise OutputError(f"'{path}' cannot be written ({error.strerror or error}). Choose another place.") from None
    finally:
        if temporary is not None and os.path.exists(temporary):
            os.unlink(temporary)


def save_image(image: Image.Image, path: Path) -> None:
    """Writes the picture whole or not at all, in the format that its name asks for; a generated one with its settings.

    Raises:
        OutputError: an unknown extension, or the file cannot be written.
    """
    kind = format_of(path)
    options = {"quality": 95} if kind != "PNG" else {}
    write_atomically(path, lambda stream: image.save(stream, format=kind, **options))


def format_of(path: Path) -> str:
    """Pillow's name of the format that the file's extension asks for.

    Raises:
        OutputError: the extension is missing or unknown.
    """
    kind = EXTENSIONS.get(path.suffix.lower())
    if kind is None:
        found = f"ends in '{path.suffix}'" if path.suffix else "has no extension"
        raise OutputError(f"'{path}' {found}, but a picture is written as {', '.join(EXTENSIONS)}. Change the name.")
    return kind
