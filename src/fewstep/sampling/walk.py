"""Samplers as walks: generators that ask the network at one noise level after another.

A walk goes down `levels` of k = sigma / alpha, from the noise to the sampler's end, in the variables of k-diffusion:
x = z / alpha, so that x = z0 + k eps. It yields (x, k), is sent the z0 predicted there, and returns the last x; how
often it asks is its own business. `noise()` draws the next unit noise. Levels are plain numbers: pictures at different
places have walks of their own, whose questions one batch may answer.

Source: crowsonkb/k-diffusion, `sampling.py` (MIT): the formulas, with its defaults (eta = 1, no churn).
"""

from collections.abc import Callable, Generator, Sequence
from itertools import pairwise
from math import sqrt
from typing import TypeAlias

from fewstep.sampling.arrays import Array
from fewstep.sampling.levels import karras_levels

Walk: TypeAlias = Generator[tuple[Array, float], Array, Array]
Noise: TypeAlias = Callable[[], Array]

LMS_ORDER = 4
ADAMS_BASHFORTH = ((1.0,), (3 / 2, -1 / 2), (23 / 12, -16 / 12, 5 / 12), (55 / 24, -59 / 24, 37 / 24, -9 / 24))


def straight(x: Array, z0: Array, k: float, k_next: float) -> Array:
    """x at k_next on the line through x at k and z0 at 0: Euler's step, and the exponential integrator's first one."""
    return z0 + k_next / k * (x - z0)


def ancestral(k: float, k_next: float) -> tuple[float, float]:
    """(down, up): the level to step down to and the noise to put back, such that down^2 + up^2 = k_next^2.

    >>> [round(level, 4) for level in ancestral(2.0, 1.0)]
    [0.5, 0.866]
    """
    down = k_next**2 / k
    return down, sqrt(k_next**2 - down**2)


def put_back(x: Array, up: float, noise: Noise) -> Array:
    """x with `up` times unit noise; none is drawn where there is none to add."""
    return x + up * noise() if up else x


def lms(x: Array, levels: Sequence[float], noise: Noise) -> Walk:
    """Linear multistep of order 4: the slope dx/dk as the polynomial through the last four, integrated exactly."""
    slopes: list[Array] = []
    for i, (k, k_next) in enumerate(pairwise(levels)):
        slopes = [(x - (yield x, k)) / k, *slopes][:LMS_ORDER]
        nodes = levels[max(i + 1 - LMS_ORDER, 0) : i + 1][::-1]
        x = x + sum(weight * slope for weight, slope in zip(lms_weights(nodes, k_next), slopes, strict=True))
    return x


def lms_weights(nodes: Sequence[float], end: float) -> list[float]:
    """The integrals, from the first node to `end`, of the polynomials that are 1 at one node and 0 at the others.

    By Gauss' rule of two points, which is exact for a cubic. With equal steps they are Adams-Bashforth's:

    >>> [round(weight * 12, 6) for weight in lms_weights([3.0, 2.0, 1.0], 4.0)]
    [23.0, -16.0, 5.0]
    """
    middle, half = (end + nodes[0]) / 2, (end - nodes[0]) / 2
    points = (middle - half / sqrt(3), middle + half / sqrt(3))
    return [half * sum(_lagrange(nodes, j, point) for point in points) for j in range(len(nodes))]


def _lagrange(nodes: Sequence[float], j: int, point: float) -> float:
    value = 1.0
    for i, node in enumerate(nodes):
        if i != j:
            value *= (point - node) / (nodes[j] - node)
    return value


def plms(x: Array, levels: Sequence[float], noise: Noise) -> Walk:
    """PNDM without its Runge-Kutta start (Liu et al. 2022, arXiv:2202.09778; latent-diffusion's `plms.py`).

    Adams-Bashforth as if the steps were equal. The first of several steps is an improved Euler step, and asks twice.
    """
    slopes: list[Array] = []
    for k, k_next in pairwise(levels):
        slopes = [(x - (yield x, k)) / k, *slopes][: len(ADAMS_BASHFORTH)]
        slope = sum(weight * s for weight, s in zip(ADAMS_BASHFORTH[len(slopes) - 1], slopes, strict=True))
        if len(slopes) == 1 and len(levels) > 2:
            ahead = x + (k_next - k) * slope
            slope = (slope + (ahead - (yield ahead, k_next)) / k_next) / 2
        x = x + (k_next - k) * slope
    return x


def heun(x: Array, levels: Sequence[float], noise: Noise) -> Walk:
    """Karras et al. 2022, arXiv:2206.00364, algorithm 1: Euler's step mended by the slope at its end."""
    for k, k_next in pairwise(levels):
        x = yield from _heun_step(x, k, k_next)
    return x


def _heun_step(x: Array, k: float, k_next: float) -> Walk:
    slope = (x - (yield x, k)) / k
    ahead = x + (k_next - k) * slope
    if k_next == 0:
        return ahead
    slope_next = (ahead - (yield ahead, k_next)) / k_next
    return x + (k_next - k) * (slope + slope_next) / 2


def dpm_2(x: Array, levels: Sequence[float], noise: Noise) -> Walk:
    """The slope in the middle, by the logarithm, of every step but the last to 0."""
    for k, k_next in pairwise(levels):
        x = yield from _midpoint_step(x, k, k_next)
    return x


def dpm_2_a(x: Array, levels: Sequence[float], noise: Noise) -> Walk:
    """The same to the ancestral level, and noise back."""
    for k, k_next in pairwise(levels):
        down, up = ancestral(k, k_next)
        x = put_back((yield from _midpoint_step(x, k, down)), up, noise)
    return x


def _midpoint_step(x: Array, k: float, k_next: float) -> Walk:
    z0 = yield x, k
    if k_next == 0:
        return z0
    middle = sqrt(k * k_next)
    ahead = straight(x, z0, k, middle)
    return x + (k_next - k) * (ahead - (yield ahead, middle)) / middle


def restart(x: Array, levels: Sequence[float], noise: Noise) -> Walk:
    """Heun's steps, with noise put back where the path rises (Xu et al. 2023, arXiv:2306.14878)."""
    path = restart_path(levels)
    here = path[0][0]
    for k, k_next in path:
        x = put_back(x, sqrt(k**2 - here**2), noise)
        x = yield from _heun_step(x, k, k_next)
        here = k_next
    return x


def restart_path(levels: Sequence[float]) -> list[tuple[float, float]]:
    """The steps of a restart sampler, (from, to) each; as many as there are in `levels`.

    As A1111 does it: from 20 steps on, some of them are taken from the one descent and spent on going from about 2
    down to about 0.1 once more (9 steps), or twice more (from 36 steps on, a quarter of them each).

    >>> len(restart_path([*karras_levels(20, 14.6, 0.03), 0.0]))
    20
    """
    steps = len(levels) - 1
    if steps < 20:
        return [*pairwise(levels)]
    again, times = (9, 1) if steps < 36 else (steps // 4, 2)
    once = [*karras_levels(steps - again * times, levels[0], levels[-2]), 0.0]
    low, high = (min(range(len(once)), key=lambda i, k=k: abs(once[i] - k)) for k in (0.1, 2.0))
    path = [*pairwise(once)]
    if high >= low:
        return path
    inner = [*pairwise([once[high], *karras_levels(again + 1, once[high], once[low])[1:-1], once[low]])]
    return [*path[:low], *inner * times, *path[low:]]
