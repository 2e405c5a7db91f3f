"""Which timesteps a run visits, by the names of the A1111 web interface's "Schedule type".

Each rule spreads n noise levels k = sigma / alpha, or n timesteps, from the highest timestep allowed, `top`, down to 0
of the schedule; where the sampler ends after them is the sampler's business. Timesteps are fractions here: a network
takes them, and `Schedule` says how much noise they are. At one step each rule gives `top`.

Departures from A1111, which has some of these wrong at few steps: "Align Your Steps" at one step begins at the most
noise, not at the least; "KL Optimal" ends clean rather than at timestep 0; "Polyexponential" with its usual rho = 1 is
"Exponential", and "Normal" is "Uniform".
"""

import math
from bisect import bisect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from fewstep.sampling.schedule import Schedule

Spread: TypeAlias = Callable[[Schedule, int, int], Sequence[float]]
"""(schedule, steps, top) -> that many timesteps, falling."""

KARRAS_RHO = 7.0
BETA = 0.6
AYS_SD15 = (14.615, 6.475, 3.861, 2.697, 1.886, 1.396, 0.963, 0.652, 0.399, 0.152, 0.029)
AYS_SDXL = (14.615, 6.315, 3.771, 2.181, 1.342, 0.862, 0.555, 0.380, 0.234, 0.113, 0.029)


@dataclass(frozen=True)
class ScheduleType:
    """`label` is its name in A1111's metadata."""

    label: str
    spread: Spread


def uniform(schedule: Schedule, steps: int, top: int) -> Sequence[float]:
    """Equal steps in t with both ends (k-diffusion `get_sigmas`)."""
    return [top * (1 - r) for r in _ramp(steps)]


def sgm_uniform(schedule: Schedule, steps: int, top: int) -> Sequence[float]:
    """Equal steps in t, the lower end left out (Stability's generative-models)."""
    return [top * (1 - i / steps) for i in range(steps)]


def simple(schedule: Schedule, steps: int, top: int) -> Sequence[float]:
    """Trained timesteps only, evenly by index, from the top."""
    return [top - i * (top + 1) // steps for i in range(steps)]


def karras(schedule: Schedule, steps: int, top: int) -> Sequence[float]:
    """Equal steps in k^(1/7) (Karras et al. 2022, arXiv:2206.00364, eq. 5)."""
    return _timesteps(schedule, karras_levels(steps, schedule.levels[top], schedule.levels[0]))


def karras_levels(count: int, high: float, low: float) -> list[float]:
    """`count` noise levels from `high` to `low` by Karras et al. 2022, eq. 5.

    >>> [round(level, 3) for level in karras_levels(3, 10.0, 0.1)]
    [10.0, 1.451, 0.1]
    """
    root, last = high ** (1 / KARRAS_RHO), low ** (1 / KARRAS_RHO)
    return [(root + r * (last - root)) ** KARRAS_RHO for r in _ramp(count)]


def exponential(schedule: Schedule, steps: int, top: int) -> Sequence[float]:
    """Equal steps in log k."""
    high, low = schedule.levels[top], schedule.levels[0]
    return _timesteps(schedule, [high * (low / high) ** r for r in _ramp(steps)])


def kl_optimal(schedule: Schedule, steps: int, top: int) -> Sequence[float]:
    """Equal steps in arctan k, the lower end left out (Sabour et al. 2024, arXiv:2404.14507, theorem 3.1)."""
    high, low = math.atan(schedule.levels[top]), math.atan(schedule.levels[0])
    return _timesteps(schedule, [math.tan(high + i / steps * (low - high)) for i in range(steps)])


def beta(schedule: Schedule, steps: int, top: int) -> Sequence[float]:
    """k at the quantiles of Beta(0.6, 0.6), which crowd at both ends (Lee et al. 2024, arXiv:2407.12173).

    As in A1111 and diffusers the quantiles are of k; the paper takes them of t.
    """
    high, low = schedule.levels[top], schedule.levels[0]
    return _timesteps(schedule, [low + beta_quantile(1 - r) * (high - low) for r in _ramp(steps)])


def beta_quantile(p: float) -> float:
    """The x below which Beta(0.6, 0.6) has the share p, by halving.

    >>> [round(beta_quantile(p), 4) for p in (0.0, 0.1, 0.5, 1.0)]
    [0.0, 0.0396, 0.5, 1.0]
    """
    if p > 0.5:
        return 1 - beta_quantile(1 - p)
    low, high = 0.0, 0.5
    share = 2 * p * _incomplete_beta(0.5)
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (low, middle) if _incomplete_beta(middle) > share else (middle, high)
    return low


def _incomplete_beta(x: float) -> float:
    """The integral of (u (1 - u))^(0.6 - 1) from 0 to x <= 1/2, by its power series."""
    term, total = 1.0, 0.0
    for n in range(50):
        total += term / (BETA + n)
        term *= x * (n + 1 - BETA) / (n + 1)
    return x**BETA * total


def align_your_steps(table: Sequence[float]) -> Spread:
    """The levels that Sabour et al. 2024 (arXiv:2404.14507) found for ten steps, log-linear between them."""

    def spread(schedule: Schedule, steps: int, top: int) -> Sequence[float]:
        first = _place(table, schedule.levels[top])
        places = [first + r * (len(table) - 1 - first) for r in _ramp(steps)]
        return [max(t, 0.0) for t in _timesteps(schedule, [_at(table, place) for place in places])]

    return spread


def _at(table: Sequence[float], place: float) -> float:
    """The level at a place of the table: 0 its first entry, 0.5 half way in the logarithm to the second."""
    low = min(int(place), len(table) - 2)
    return table[low] * (table[low + 1] / table[low]) ** (place - low)


def _place(table: Sequence[float], level: float) -> float:
    """Where in the falling table a level stands: the inverse of `_at`, 0 above the table."""
    low = bisect([-entry for entry in table], -level) - 1
    if low < 0:
        return 0.0
    low = min(low, len(table) - 2)
    return low + math.log(level / table[low]) / math.log(table[low + 1] / table[low])


def _ramp(count: int) -> list[float]:
    """From 0 to 1 in equal steps; only 0 where one is asked for."""
    return [i / max(count - 1, 1) for i in range(count)]


def _timesteps(schedule: Schedule, levels: Sequence[float]) -> list[float]:
    return [schedule.timestep(level) for level in levels]


SCHEDULE_TYPES: dict[str, ScheduleType] = {
    kind.label.lower().replace(" ", "_"): kind
    for kind in (
        ScheduleType("Uniform", uniform),
        ScheduleType("Karras", karras),
        ScheduleType("Exponential", exponential),
        ScheduleType("Polyexponential", exponential),
        ScheduleType("SGM Uniform", sgm_uniform),
        ScheduleType("KL Optimal", kl_optimal),
        ScheduleType("Align Your Steps", align_your_steps(AYS_SD15)),
        ScheduleType("Simple", simple),
        ScheduleType("Normal", uniform),
        ScheduleType("Beta", beta),
    )
} | {"align_your_steps_xl": ScheduleType("Align Your Steps", align_your_steps(AYS_SDXL))}
"""By name. SDXL has a table of its own of "Align Your Steps"."""
