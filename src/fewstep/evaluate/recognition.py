"""Recognition rates with their intervals."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fewstep.errors import RequestError


@dataclass(frozen=True)
class Rate:
    """Hits out of a count, with the 95 % interval of the underlying share."""

    hits: int
    count: int

    @property
    def share(self) -> float:
        """Hits over count."""
        return self.hits / self.count

    @property
    def interval(self) -> tuple[float, float]:
        """Wilson's 95 % interval."""
        return wilson(self.hits, self.count)


def wilson(hits: int, count: int, *, z: float = 1.959963984540054) -> tuple[float, float]:
    """The score interval of a binomial share. Source: Wilson 1927; it stays sensible at 0 and at 1.

    >>> [round(x, 4) for x in wilson(50, 100)]
    [0.4038, 0.5962]
    """
    if not 0 <= hits <= count or count < 1:
        raise RequestError(f"A rate needs 0 <= hits <= count and count >= 1; found {hits} of {count}.")
    share, squared = hits / count, z * z
    middle = (share + squared / (2 * count)) / (1 + squared / count)
    half = z / (1 + squared / count) * math.sqrt(share * (1 - share) / count + squared / (4 * count * count))
    return min(share, max(0.0, middle - half)), max(
        share, min(1.0, middle + half)
    )  # rounding must not shut the share out


def top(logits_NC: NDArray[np.floating], wanted_N: NDArray[np.integer], *, k: int = 1) -> Rate:
    """How often the wanted class is among the k likeliest; ties count against it."""
    own_N1 = np.take_along_axis(logits_NC, np.asarray(wanted_N)[:, None], axis=1)
    rank_N = (logits_NC >= own_N1).sum(1)
    return Rate(int((rank_N <= k).sum()), len(rank_N))
