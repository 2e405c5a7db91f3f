"""DPM-Solver and DPM-Solver++ as walks: exponential integrators in log k (see `walk.py` for the terms).

DPM-Solver holds eps over a step (Lu et al. 2022, arXiv:2206.00927), DPM-Solver++ holds z0 (arXiv:2211.01095). The
stochastic ones take the noise of k-diffusion's Brownian tree as increments of the right variance, drawn one after
another: equal in law, not in number.
"""

from collections.abc import Generator, Sequence
from functools import partial
from itertools import pairwise
from math import atan, exp, expm1, log, sqrt

from fewstep.sampling.arrays import Array, namespace
from fewstep.sampling.walk import Noise, Walk, ancestral, put_back, straight

RTOL, ATOL, FIRST_STEP, ACCEPT = 0.05, 0.0078, 0.05, 0.81
MOST_TRIES = 1000


def dpmpp_2s_a(x: Array, levels: Sequence[float], noise: Noise) -> Walk:
    """DPM-Solver++(2S), ancestral: z0 in the middle of the step, by the logarithm, serves the whole step."""
    for k, k_next in pairwise(levels):
        down, up = ancestral(k, k_next)
        z0 = yield x, k
        if down:
            middle = sqrt(k * down)
            z0 = yield straight(x, z0, k, middle), middle
        x = put_back(straight(x, z0, k, down), up, noise)
    return x


def dpmpp_sde(x: Array, levels: Sequence[float], noise: Noise) -> Walk:
    """DPM-Solver++ (SDE) with the middle point: one path of noise drives both halves of a step.

    The noise of the whole step goes on from that of its first half, whose share of it is (k - middle) / (k - k').
    """
    for k, k_next in pairwise(levels):
        z0 = yield x, k
        if k_next == 0:
            return z0
        middle = sqrt(k * k_next)
        down, up = ancestral(k, middle)
        first = noise()
        z0 = yield straight(x, z0, k, down) + up * first, middle
        down, up = ancestral(k, k_next)
        share = (k - middle) / (k - k_next)
        x = straight(x, z0, k, down) + up * (sqrt(share) * first + sqrt(1 - share) * noise())
    return x


def dpmpp_2m_sde(x: Array, levels: Sequence[float], noise: Noise, *, heun: bool = False) -> Walk:
    """DPM-Solver++(2M) SDE: the change of z0 over the last step goes on, by phi_2 (`heun`) or phi_1 / 2."""
    before, last = None, 0.0
    for k, k_next in pairwise(levels):
        z0 = yield x, k
        if k_next == 0:
            return z0
        h, change = log(k / k_next), 0.0
        if before is not None:
            weight = _phi_2(2 * h) if heun else -expm1(-2 * h) / 2
            change = weight * h / last * (z0 - before)
        down, up = ancestral(k, k_next)
        x = put_back(straight(x, z0, k, down) + change, up, noise)
        before, last = z0, h
    return x


dpmpp_2m_sde_heun = partial(dpmpp_2m_sde, heun=True)


def dpmpp_3m_sde(x: Array, levels: Sequence[float], noise: Noise) -> Walk:
    """DPM-Solver++(3M) SDE: z0 as the parabola through the last three predictions."""
    past: list[tuple[Array, float]] = []
    for k, k_next in pairwise(levels):
        z0 = yield x, k
        if k_next == 0:
            return z0
        h = log(k / k_next)
        down, up = ancestral(k, k_next)
        x = put_back(straight(x, z0, k, down) + _three_point_change(z0, past, h), up, noise)
        past = [(z0, h), *past][:2]
    return x


def _three_point_change(z0: Array, past: Sequence[tuple[Array, float]], h: float) -> Array | float:
    """What the slope and the curve of z0 over the last steps add to a step h; 0 where there is no last step."""
    if not past:
        return 0.0
    (z0_1, h_1), *older = past
    slope = (z0 - z0_1) * h / h_1
    if not older:
        return _phi_2(2 * h) * slope
    r, r_1 = h_1 / h, older[0][1] / h
    curve = (slope - (z0_1 - older[0][0]) / r_1) / (r + r_1)
    return _phi_2(2 * h) * (slope + r * curve) - (_phi_2(2 * h) / (2 * h) - 0.5) * curve


def _phi_2(h: float) -> float:
    return expm1(-h) / h + 1


def dpm_fast(x: Array, levels: Sequence[float], noise: Noise) -> Walk:
    """DPM-Solver-fast: n evaluations in steps of order 3 and a rest, equal in log k (Lu et al. 2022, section 3.4).

    Only the ends and the number of `levels` count. It ends at the least noise of the schedule, not at 0.
    """
    evaluations, low = len(levels) - 1, levels[-1]
    steps = evaluations // 3 + 1
    rest = [2, 1] if evaluations % 3 == 0 else [evaluations % 3]
    orders = [3] * (steps - len(rest)) + rest
    grid = [levels[0] * (low / levels[0]) ** (i / steps) for i in range(steps)] + [low]
    for order, (k, k_next) in zip(orders, pairwise(grid), strict=True):
        down = max(low, ancestral(k, k_next)[0])
        x = put_back((yield from _STEPS[order](x, k, down)), sqrt(k_next**2 - down**2), noise)
    return x


def _first_order(x: Array, k: float, k_next: float) -> Walk:
    return straight(x, (yield x, k), k, k_next)


def _second_order(x: Array, k: float, k_next: float) -> Walk:
    eps = (x - (yield x, k)) / k
    middle = sqrt(k * k_next)
    ahead = x + (middle - k) * eps
    return x + (k_next - k) * (ahead - (yield ahead, middle)) / middle


def _third_order(x: Array, k: float, k_next: float) -> Walk:
    return (yield from _second_and_third_order(x, k, k_next))[1]


_STEPS = {1: _first_order, 2: _second_order, 3: _third_order}


def _second_and_third_order(
    x: Array, k: float, k_next: float
) -> Generator[tuple[Array, float], Array, tuple[Array, Array]]:
    """DPM-Solver-3 with the points at 1/3 and 2/3 of log k, and DPM-Solver-2 from its first two predictions."""
    h = log(k / k_next)
    k_1, k_2 = k * exp(-h / 3), k * exp(-2 * h / 3)
    eps = (x - (yield x, k)) / k
    x_1 = x + (k_1 - k) * eps
    change = (x_1 - (yield x_1, k_1)) / k_1 - eps
    x_2 = x + (k_2 - k) * eps - 2 * k_2 * _psi_2(2 * h / 3) * change
    change_2 = (x_2 - (yield x_2, k_2)) / k_2 - eps
    flat = x + (k_next - k) * eps
    return flat + 1.5 * (k_next - k) * change, flat - 1.5 * k_next * _psi_2(h) * change_2


def _psi_2(h: float) -> float:
    return expm1(h) / h - 1 if h else 0.0


def dpm_adaptive(x: Array, levels: Sequence[float], noise: Noise) -> Walk:
    """DPM-Solver-23 with the step that keeps the two orders' difference small (Lu et al. 2022, appendix C).

    Only the ends of `levels` count. The difference is taken over all of x, so each picture wants its own walk.
    k-diffusion's controller with its usual numbers, which leave only its integral part.
    """
    k, low, h, before = levels[0], levels[-1], FIRST_STEP, x
    for _ in range(MOST_TRIES):
        k_next = max(low, k * exp(-h))
        down = max(low, ancestral(k, k_next)[0])
        second, third = yield from _second_and_third_order(x, k, down)
        factor = 1 + atan((1 / (_error(second, third, before) + 1e-8)) ** (1 / 1.5) - 1)
        h *= factor
        if factor >= ACCEPT:
            x, before, k = put_back(third, sqrt(k_next**2 - down**2), noise), second, k_next
        if log(k / low) <= 1e-5:
            break
    return x


def _error(second: Array, third: Array, before: Array) -> float:
    """The rms difference in units of what is allowed: the larger of `ATOL` and `RTOL` times x."""
    xp = namespace(third)
    allowed = (RTOL * xp.maximum(abs(second), abs(before))).clip(ATOL)
    return float((((second - third) / allowed) ** 2).mean() ** 0.5)
