"""Unit noise of a seed, number for number that of torch on a CPU or on an NVIDIA GPU, without torch.

A picture's noise is `torch.randn(..., generator=torch.Generator("cpu").manual_seed(seed))`; to have the same picture
from ONNX Runtime, where importing torch would cost more than the picture, the same numbers are made here with numpy.
They agree to about 1e-6: the logarithm and the cosine are rounded differently.

Source: PyTorch, aten/src/ATen/native/cpu/DistributionTemplates.h (`normal_fill`), core/DistributionsHelper.h
(`normal_distribution`) and core/MT19937RNGEngine.h.

Most pictures that people share were begun with the GPU's noise instead: `NvNoise`, which A1111 calls RNG: NV.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np

_BLOCK, _HALF = 16, 8
_PHILOX_FACTORS = (0xD2511F53, 0xCD9E8D57)
_PHILOX_STEPS = (0x9E3779B9, 0xBB67AE85)


class CpuNoise:
    """A stream of unit normal numbers; every draw continues where the last one ended.

    >>> [f"{number:.4f}" for number in CpuNoise(0).normal((4,))]
    ['1.5410', '-0.2934', '-2.1788', '0.5684']
    """

    def __init__(self, seed: int) -> None:
        """`seed` as `manual_seed` takes it; as there, only its lower 32 bits count."""
        self._engine = _mt19937(seed & 0xFFFFFFFF)
        self._spare: float | None = None

    def normal(self, shape: Sequence[int]) -> np.ndarray:
        """The next numbers of the stream, float32, in `shape`."""
        size = math.prod(shape)
        values = self._many(size) if size >= _BLOCK else self._few(size)
        return values.reshape(tuple(shape))

    def _many(self, size: int) -> np.ndarray:
        """16 numbers or more: all as uniform numbers first, then block by block; a last, short block is drawn anew."""
        import numpy as np

        values = _box_muller(self._uniform(size)[: size - size % _BLOCK])
        if len(values) == size:
            return values
        return np.concatenate([values[: size - _BLOCK], _box_muller(self._uniform(_BLOCK))])

    def _uniform(self, size: int) -> np.ndarray:
        """Numbers in [0, 1) of 24 bits, which float32 holds exactly."""
        import numpy as np

        words = np.frombuffer(self._engine.getrandbits(32 * size).to_bytes(4 * size, "little"), "<u4")
        return (words & 0xFFFFFF).astype(np.float32) * np.float32(2.0**-24)

    def _few(self, size: int) -> np.ndarray:
        """Fewer than 16: in double precision, in pairs, whose second number the next call begins with."""
        import numpy as np

        return np.array([self._single() for _ in range(size)], np.float32)

    def _single(self) -> float:
        if self._spare is not None:
            value, self._spare = self._spare, None
            return value
        angle, inner = 2 * math.pi * self._double(), self._double()
        radius = math.sqrt(-2 * math.log1p(-inner))
        self._spare = radius * math.sin(angle)
        return radius * math.cos(angle)

    def _double(self) -> float:
        """In [0, 1), of 53 bits: two words, the first one high."""
        high, low = self._engine.getrandbits(32), self._engine.getrandbits(32)
        return ((high << 32 | low) & (2**53 - 1)) * 2.0**-53


class NvNoise:
    """A stream of unit normal numbers as `torch.randn` draws them on an NVIDIA GPU.

    Number i of draw d is made of the words of Philox-4x32-10 with the seed as key and (d, 0, i, 0) as counter. So CUDA
    does it while every number has a thread of its own; A1111's NV does it, as here, at any size.

    >>> [f"{number:.4f}" for number in NvNoise(0).normal((4,))]
    ['-0.9247', '-0.4253', '-2.6438', '0.1452']
    """

    def __init__(self, seed: int) -> None:
        """`seed` as `manual_seed` takes it, of 64 bits."""
        self._seed, self._draws = seed, 0

    def normal(self, shape: Sequence[int]) -> np.ndarray:
        """The next draw, float32, in `shape`. Box & Muller 1958 as cuRAND computes it: sqrt(-2 log u) sin v."""
        import numpy as np

        size = math.prod(shape)
        counter = np.zeros((4, size), np.uint64)
        counter[0], counter[2] = self._draws, np.arange(size)
        self._draws += 1
        words = philox(counter, (self._seed & 0xFFFFFFFF, self._seed >> 32 & 0xFFFFFFFF))
        uniform, angle = (words[0] + 0.5) * 2.0**-32, (words[1] + 0.5) * float(np.float32(2 * math.pi)) * 2.0**-32
        return (np.sqrt(-2 * np.log(uniform)) * np.sin(angle)).astype(np.float32).reshape(tuple(shape))


STREAMS = {"cpu": CpuNoise, "nv": NvNoise}
"""By the name that a request gives them."""


def philox(counter: np.ndarray, key: tuple[int, int]) -> np.ndarray:
    """Philox-4x32-10 (Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3"): uint64 (4, N) of 32 bits."""
    import numpy as np

    low = np.uint64(0xFFFFFFFF)
    a, b, c, d = counter
    for turn in range(10):
        keys = ((key[i] + turn * _PHILOX_STEPS[i]) & 0xFFFFFFFF for i in range(2))
        left, right = a * np.uint64(_PHILOX_FACTORS[0]), c * np.uint64(_PHILOX_FACTORS[1])
        first, second = (np.uint64(word) for word in keys)
        a, b, c, d = right >> np.uint64(32) ^ b ^ first, right & low, left >> np.uint64(32) ^ d ^ second, left & low
    return np.stack([a, b, c, d])


def _mt19937(word: int) -> random.Random:
    """The Mersenne Twister seeded as torch does it (Matsumoto & Nishimura 2002, init_genrand), which Python's does not.

    Python's own engine, because it is there already: importing numpy.random takes 30 ms.
    """
    state = [word]
    for index in range(1, 624):
        word = (1812433253 * (word ^ word >> 30) + index) & 0xFFFFFFFF
        state.append(word)
    engine = random.Random()
    engine.setstate((3, (*state, 624), None))
    return engine


def _box_muller(uniform: np.ndarray) -> np.ndarray:
    """Box & Muller 1958, in blocks of 16: the first eight give the radii, the other eight the angles."""
    import numpy as np

    pairs = uniform.reshape(-1, 2, _HALF)
    radius = np.sqrt(np.float32(-2) * np.log(np.float32(1) - pairs[:, 0]))
    angle = np.float32(2 * math.pi) * pairs[:, 1]
    normal = np.empty_like(pairs)
    np.multiply(radius, np.cos(angle), out=normal[:, 0])
    np.multiply(radius, np.sin(angle), out=normal[:, 1])
    return normal.reshape(-1)
