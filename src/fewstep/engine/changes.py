"""Has a live picture changed? By tiles, against the last picture that was painted from, so that slow fades add up.

Of every tile of 32 x 32 px the mean difference of grey levels, at an eighth of the size, is compared with three times
what quiet tiles differ by from one frame to the next. Deterministic; a cosine of the whole picture, as
StreamDiffusion's filter takes it (arXiv:2312.12491, section 3.4), misses fades and small strokes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from PIL import Image

if TYPE_CHECKING:
    import numpy as np

SHRINK = 8
TILE = 4
"""In shrunken pixels: 32 px."""

LEAST = 0.4
"""Grey levels of 255 below which a tile never counts as changed."""

NOISE_TIMES = 3.0
KEEP = 0.8


class Changes:
    """Remembers the picture that was painted from, and how noisy the source is. `exact`: every pixel counts."""

    def __init__(self, *, exact: bool = False) -> None:
        self.exact = exact
        self._painted: np.ndarray | None = None
        self._last: np.ndarray | None = None
        self._newest: Image.Image | None = None
        self._noise = 0.0

    def changed(self, picture: Image.Image) -> bool:
        """Whether this picture is another than the one that was painted from; the first one always is."""
        tiles = self._seen(picture)
        last, self._last, self._newest = self._last, tiles, picture
        if self._painted is None or self._painted.shape != tiles.shape:
            return True
        if self.exact:
            return bool((tiles != self._painted).any())
        found = bool(_by_tile(tiles, self._painted).max() > max(LEAST, NOISE_TIMES * self._noise))
        if last is not None and last.shape == tiles.shape:
            quiet = min(_median(_by_tile(tiles, last)), 2 * self._noise + LEAST)  # a cut is no noise
            self._noise = KEEP * self._noise + (1 - KEEP) * quiet
        return found

    def painted(self, picture: Image.Image) -> None:
        """This is what is painted from now."""
        self._painted = self._last if picture is self._newest else self._seen(picture)

    def forget(self) -> None:
        """The next picture counts as changed, whatever it is."""
        self._painted = None

    def _seen(self, picture: Image.Image) -> np.ndarray:
        import numpy as np

        if self.exact:
            return np.asarray(picture.convert("RGB"))
        return np.asarray(picture.convert("L").reduce(min(SHRINK, *picture.size)), np.float32)


def _by_tile(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """The mean difference of each tile; a smaller one at the edge stands for itself."""
    import numpy as np

    rows, columns = (range(0, side, TILE) for side in one.shape)
    sums = np.add.reduceat(np.add.reduceat(abs(one - other), rows, 0), columns, 1)
    counts = np.add.reduceat(np.add.reduceat(np.ones_like(one), rows, 0), columns, 1)
    return sums / counts


def _median(values: np.ndarray) -> float:
    import numpy as np

    return float(np.median(values))
