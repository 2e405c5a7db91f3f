"""Random numbers without a state: a generator is made from where it is used, so a resumed run draws what an unbroken
one would have.
"""

import hashlib

import torch


def seed_at(seed: int, *place: int | str) -> int:
    """Mix a seed and a place (step, purpose) into one 63-bit seed; the same on every machine and version.

    >>> seed_at(0, 1, "noise") == seed_at(0, 1, "noise")
    True
    >>> seed_at(0, 1, "noise") == seed_at(0, 2, "noise")
    False
    """
    text = ":".join(str(part) for part in (seed, *place))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def generator_at(seed: int, *place: int | str) -> torch.Generator:
    """A CPU generator seeded from (seed, *place); see `seed_at`."""
    return torch.Generator().manual_seed(seed_at(seed, *place))


def noise_at(shape: tuple[int, ...], seed: int, *place: int | str) -> torch.Tensor:
    """Unit Gaussian float32 noise of `shape`, drawn on the CPU from `generator_at`."""
    return torch.randn(shape, generator=generator_at(seed, *place))
