"""Ways from one array to another along an arc, which keep its size where a straight line would cut through.

Shapes: any; D is the last axis, of vectors.
"""

from math import cos, pi, sin

from fewstep.sampling.arrays import Array, float32, namespace

PARALLEL = 1e-3
"""The least sine of an angle between two vectors that is an arc; below it a straight line is as good."""


def slerp(start_D: Array, end_D: Array, share: float) -> Array:
    """Every vector part of the way from `start_D` to `end_D`, in float32: directions by spherical interpolation
    (Shoemake 1985, "Animating rotation with quaternion curves"), lengths by linear interpolation.

    Vectors that are nearly parallel, opposite, or zero go straight. Share 0 is `start_D`, 1 is `end_D`.

    >>> np = namespace(None)
    >>> [round(x, 4) for x in slerp(np.array([1.0, 0.0]), np.array([0.0, 3.0]), 0.5).tolist()]
    [1.4142, 1.4142]
    """
    xp = namespace(start_D)
    start_D, end_D = float32(start_D), float32(end_D)
    start_1, end_1 = _length(start_D), _length(end_D)
    one, other = start_D / start_1.clip(1e-12), end_D / end_1.clip(1e-12)
    angle = 2 * xp.arctan2(_length(one - other), _length(one + other))  # exact where an arc cosine is not
    sine = xp.sin(angle)
    arc = (xp.sin((1 - share) * angle) * one + xp.sin(share * angle) * other) / sine.clip(PARALLEL)
    straight = (1 - share) * start_D + share * end_D
    return xp.where((sine < PARALLEL) | (start_1 * end_1 == 0), straight, ((1 - share) * start_1 + share * end_1) * arc)


def _length(x_D: Array) -> Array:
    return (x_D**2).sum(-1)[..., None] ** 0.5


def turned(one: Array, other: Array, share: float) -> Array:
    """Part of a quarter turn from one independent unit noise to another: unit noise all the way, since
    cos^2 + sin^2 = 1.

    >>> turned(3.0, 5.0, 0.0), round(turned(3.0, 5.0, 0.5), 4), round(turned(3.0, 5.0, 1.0), 4)
    (3.0, 5.6569, 5.0)
    """
    return cos(share * pi / 2) * one + sin(share * pi / 2) * other
