"""Classifier-free guidance. Its two conventions meet in this file and nowhere else.

The requests, the pictures' metadata and most programs speak of `guidance` s, where 1 is off; the papers on guided
distillation speak of w = s - 1, where 0 is off.
"""

import math
from collections.abc import Sequence

from fewstep.sampling.arrays import Array, broadcast, constant, float32, is_torch, namespace

W_SCALE = 1000.0


def guide(cond: Array, uncond: Array, guidance: float | Sequence[float] | Array) -> Array:
    """The guided output uncond + s (cond - uncond), in float32 (Ho & Salimans 2022, arXiv:2207.12598, eq. 6).

    `guidance` is one number, or one for each item (B,). At exactly 1 the result is `cond`, bit for bit.

    >>> guide(constant([3.0], like=[0]), constant([1.0], like=[0]), 2.0).tolist()
    [5.0]
    """
    s_B = broadcast(_per_item(guidance, like=cond), like=cond)
    cond, uncond = float32(cond), float32(uncond)
    return namespace(cond).where(s_B == 1, cond, uncond + s_B * (cond - uncond))


def w_of(guidance: float) -> float:
    """The papers' w for the API's guidance (Luo et al. 2023, arXiv:2310.04378, section 4.2).

    >>> w_of(8.0)
    7.0
    """
    return guidance - 1


def guidance_embedding(w_B: float | Sequence[float] | Array, dim: int = 256, *, like: Array) -> Array:
    """The sinusoids a UNet with `time_cond_proj_dim` is told w by: float32 (B, dim), on the device of `like`.

    1000 w times the frequencies 10000^(-j / (dim/2 - 1)), the sines first (diffusers
    `get_guidance_scale_embedding`). The factor matters: without it w = 2 and w = 7 look alike. So does float32: in
    bfloat16, 1000 w is off by up to 16. The frequencies are computed in double, so that all back ends agree.

    Raises `ValueError` unless `dim` is even and at least 4.
    """
    if dim < 4 or dim % 2:
        raise ValueError(f"dim must be even and at least 4, not {dim}")
    half = dim // 2
    rates = constant([math.exp(-math.log(10000) * j / (half - 1)) for j in range(half)], like=like)
    phase = (_per_item(w_B, like=like) * W_SCALE)[:, None] * rates[None, :]
    xp = namespace(like)
    return xp.concatenate([xp.sin(phase), xp.cos(phase)], -1)


def _per_item(values: float | Sequence[float] | Array, *, like: Array) -> Array:
    """One number or (B,) as a float32 array (1,) or (B,) on the device of `like`."""
    if is_torch(values) and is_torch(like):
        return float32(values).to(like.device).reshape(-1)
    if isinstance(values, (int, float)):
        return constant([values], like=like)
    return constant(float32(values).reshape(-1).tolist(), like=like)
