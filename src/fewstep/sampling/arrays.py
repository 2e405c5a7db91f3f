"""What torch and numpy spell differently, in one place.

Everything in `fewstep.sampling` runs on both: training and the GPU back ends bring torch tensors, OpenVINO and ONNX
Runtime bring numpy arrays. Neither library is imported here before somebody has brought one of its arrays.

Suffixes: B batch, C channels, H height, W width, D features.
"""

import importlib
import sys
from collections.abc import Sequence
from numbers import Integral
from typing import Any, TypeAlias

Array: TypeAlias = Any
"""A torch tensor or a numpy array; both answer to the same arithmetic."""

Timesteps: TypeAlias = Any
"""A number, a list or an array: one timestep for all items, or one for each; between two trained ones it is a float."""


def is_torch(x: object) -> bool:
    """Whether `x` is a torch tensor, asked without importing torch.

    >>> is_torch([1.0])
    False
    """
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(x, torch.Tensor)


def namespace(x: object) -> Any:
    """The module whose functions work on `x`: torch for its tensors, numpy for anything else.

    >>> namespace([1.0]).__name__
    'numpy'
    """
    return sys.modules["torch"] if is_torch(x) else sys.modules.get("numpy") or importlib.import_module("numpy")


def float32(x: Array) -> Array:
    """`x` in single precision, where a half-precision sigma at t = 0 would be wrong by 100 %.

    >>> float32([0.5]).dtype.name
    'float32'
    """
    xp = namespace(x)
    if is_torch(x):
        return x if x.dtype == xp.float32 else x.to(xp.float32)
    return xp.asarray(x, dtype=xp.float32)


def constant(values: Sequence[float] | Sequence[Sequence[float]], *, like: Array) -> Array:
    """`values` as a float32 array on the device of `like`.

    >>> constant([1.0, 2.0], like=[0.0]).tolist()
    [1.0, 2.0]
    """
    xp = namespace(like)
    if is_torch(like):
        return xp.tensor(values, dtype=xp.float32, device=like.device)
    return xp.asarray(values, dtype=xp.float32)


def indices(t_B: Timesteps, *, like: Array) -> Array:
    """`t_B` as an int64 array of shape (B,) on the device of `like`; a single number gives shape (1,).

    >>> indices(19.5, like=[0.0]).tolist()
    [19]
    """
    xp = namespace(like)
    if is_torch(like):
        return xp.as_tensor(t_B, device=like.device).to(xp.int64).reshape(-1)
    return xp.asarray(t_B).astype(xp.int64).reshape(-1)


def times(t_B: Timesteps, *, like: Array) -> Array:
    """`t_B` as an array of shape (B,) on the device of `like`: int64 if it came as integers, else float32.

    >>> times(19, like=[0.0]).dtype.name, times([19.5, 20], like=[0.0]).tolist()
    ('int64', [19.5, 20.0])
    """
    xp = namespace(like)
    if is_torch(like):
        if is_torch(t_B) and t_B.ndim == 1 and t_B.dtype in (xp.int64, xp.float32) and t_B.device == like.device:
            return t_B
        t_B = xp.as_tensor(t_B, device=like.device)
    else:
        if isinstance(t_B, xp.ndarray) and t_B.ndim == 1 and t_B.dtype in (xp.int64, xp.float32):
            return t_B
        t_B = xp.asarray(t_B)
    return indices(t_B, like=like) if are_whole(t_B) else float32(t_B).reshape(-1)


def are_whole(x: Array) -> bool:
    """Whether an array holds integers, by its type.

    >>> are_whole(times(19, like=[0.0])), are_whole(times(19.0, like=[0.0]))
    (True, False)
    """
    return not x.dtype.is_floating_point if is_torch(x) else x.dtype.kind in "iu"


def same_timestep(t: float, *, like: Array) -> Array:
    """`t` once for each item of `like`: shape (B,), int64 if it is an int, else float32. A GPU is not waited for.

    >>> same_timestep(19, like=namespace(None).zeros((2, 4, 8, 8))).tolist()
    [19, 19]
    """
    xp = namespace(like)
    number = xp.int64 if isinstance(t, Integral) else xp.float32
    if is_torch(like):  # written by the device itself: a list would be copied to it, and the copy waited for
        return xp.full((like.shape[0],), t, dtype=number, device=like.device)
    return xp.full(like.shape[0], t, dtype=number)


def broadcast(x_B: Array, *, like: Array) -> Array:
    """(B,) seen as (B, 1, 1, ...), so that it multiplies `like` item by item.

    >>> broadcast(constant([1.0, 2.0], like=[0.0]), like=namespace(None).zeros((2, 4, 8, 8))).shape
    (2, 1, 1, 1)
    """
    return x_B.reshape((-1,) + (1,) * (like.ndim - 1))


def where_not_zero(x: Array) -> Array:
    """`x` with every 0 replaced by 1, to divide by or to take the logarithm of.

    >>> where_not_zero(constant([0.0, 2.0], like=[0.0])).tolist()
    [1.0, 2.0]
    """
    xp = namespace(x)
    return xp.where(x == 0, xp.ones_like(x), x)
