"""Which timesteps a run visits. `steps` is how many, at every strength: one model evaluation each, with most samplers.

The tables differ by convention only; a distilled model wants the one it was trained for:

    linspace-lcm   the LCM training grid 19, 39 .. 999, picked evenly by index (diffusers >= 0.24)
    a1111          999 down to 19, both ends included (the LCM sampler of the A1111 and Forge web interfaces)
    sgm            999 down towards 19, last point left out (ComfyUI, Fooocus: "sgm_uniform")
    trailing       count - 1, then evenly down (Lin et al. 2023, arXiv:2305.08891, table 2)
    leading        multiples of count // steps, plus 1 (SD 1.5's own configuration); never reaches pure noise
    linspace       count - 1 down towards 0, 0 left out (diffusers' DPM++ and UniPC)
    ddim           `leading` by its name in A1111

The other names of A1111's "Schedule type" (karras, sgm_uniform ...) stand in `levels.py`: their timesteps are real.
Below strength 1 the same rule is applied to the timesteps below that strength, so none of the steps is lost.
"""

import math
import operator
from collections.abc import Sequence

from fewstep.errors import RequestError
from fewstep.sampling.levels import SCHEDULE_TYPES
from fewstep.sampling.schedule import Schedule, scaled_linear

LABELS = {name: kind.label for name, kind in SCHEDULE_TYPES.items()} | {"ddim": "DDIM"}
"""The tables that A1111 has, with the names it gives them."""

TABLES = ("linspace-lcm", "a1111", "sgm", "trailing", "leading", "linspace", *LABELS)
MOST_STEPS = 1000
STABLE_DIFFUSION = Schedule(scaled_linear())


def timesteps(
    table: str,
    steps: int,
    *,
    strength: float = 1.0,
    schedule: Schedule = STABLE_DIFFUSION,
    origin_steps: int = 50,
    discard: bool = False,
) -> tuple[float, ...]:
    """`steps` timesteps, strictly falling, the noisiest first; whole ones are ints.

    `strength` in (0, 1] is how much of the noise is put back: it only picks the first timestep. `schedule` is the
    model's, `origin_steps` the grid of the distillation (only the first three tables look at it). `discard`: the last
    timestep of one step more is left out, as A1111 does for some samplers.

    >>> timesteps("linspace-lcm", 4)
    (999, 759, 499, 259)
    >>> timesteps("linspace-lcm", 4, strength=0.5)
    (499, 379, 259, 139)
    >>> timesteps("a1111", 4), timesteps("sgm", 4)
    ((999, 672, 346, 19), (999, 754, 509, 264))
    >>> timesteps("trailing", 4), timesteps("leading", 4), timesteps("linspace", 4)
    ((999, 749, 499, 249), (751, 501, 251, 1), (999, 749, 500, 250))
    >>> timesteps("SGM Uniform", 4), [round(t) for t in timesteps("Karras", 4)]
    ((999, 749.25, 499.5, 249.75), [999, 687, 146, 0])

    Raises `RequestError` if a value is out of range, or there are fewer timesteps below the strength than steps.
    """
    table, count = table_named(table), schedule.count
    steps = _whole("steps", steps, most=MOST_STEPS)
    origin_steps = _whole("origin_steps", origin_steps, most=count)
    if not 0 < strength <= 1:
        raise RequestError(f"strength must be more than 0 and at most 1, not {strength}.")
    points = _points(table, strength, count, origin_steps)
    if steps > points:
        raise RequestError(_too_many(table, steps, strength, count, origin_steps))
    if table not in SCHEDULE_TYPES:
        return _pick(table, steps, points, count // origin_steps)
    drawn = min(steps + discard, points)
    return _tidy(SCHEDULE_TYPES[table].spread(schedule, drawn, max(points - 1, 1))[:steps])


def table_named(name: str) -> str:
    """The table's own name, for that or for its label, in any case.

    >>> table_named("SGM Uniform"), table_named("Trailing"), table_named("AYS")
    ('sgm_uniform', 'trailing', 'align_your_steps')

    Raises `RequestError` for an unknown name.
    """
    wanted = str(name).strip().lower().replace(" ", "_")
    wanted = {"ays": "align_your_steps", "sgmuniform": "sgm_uniform"}.get(wanted, wanted)
    if wanted not in TABLES:
        raise RequestError(f"There is no timestep table '{name}'. Choose one of: {', '.join(TABLES)}.")
    return wanted


def _tidy(times: Sequence[float]) -> tuple[float, ...]:
    """To a millionth, which is float32's own precision, and whole numbers as ints."""
    return tuple(int(t) if t == int(t) else t for t in (round(t, 6) for t in times))


def available(table: str, *, strength: float, schedule: Schedule = STABLE_DIFFUSION, origin_steps: int = 50) -> int:
    """The most steps that `timesteps` gives at this strength.

    >>> available("linspace-lcm", strength=0.1), available("trailing", strength=0.1)
    (5, 100)
    """
    return _points(table_named(table), strength, schedule.count, origin_steps)


def _points(table: str, strength: float, count: int, origin_steps: int) -> int:
    """How many timesteps of the table lie below `strength`: at least one, at any strength above 0.

    The LCM grid is cut with `int`, not rounded, because diffusers does so (strength .58 gives 28 points, not 29).
    """
    if table == "linspace-lcm":
        return max(1, int(origin_steps * strength))
    lowest = count // origin_steps - 1 if table in ("a1111", "sgm") else 0
    return max(1, round(strength * count) - lowest)


def _pick(table: str, steps: int, points: int, skip: int) -> tuple[int, ...]:
    """`steps` of the `points` lowest timesteps; `skip` is the spacing of the distillation grid."""
    if table == "linspace-lcm":
        return tuple((points - math.floor(i * (points / steps))) * skip - 1 for i in range(steps))
    if table == "a1111":
        return _down_from(skip + points - 2, (points - 1) / max(steps - 1, 1), steps)
    if table == "sgm":
        return tuple(t + skip - 1 for t in _up_to(points - 1, steps))
    if table == "trailing":
        return tuple(t - 1 for t in _down_from(points, points / steps, steps))
    if table in ("leading", "ddim"):
        ratio = points // steps
        offset = 1 if (steps - 1) * ratio + 2 <= points else 0
        return tuple(i * ratio + offset for i in reversed(range(steps)))
    return _up_to(points - 1, steps)


def _down_from(start: int, step: float, steps: int) -> tuple[int, ...]:
    """start, start - step .. rounded; in the order of numpy's `arange`, so that halves fall as they do there."""
    delta = (start - step) - start
    return tuple(round(start + i * delta) for i in range(steps))


def _up_to(top: int, steps: int) -> tuple[int, ...]:
    """From `top` down to 0 in equal steps, without the 0 (unless it is needed), rounded as numpy's `linspace`."""
    if steps > top:
        return tuple(range(top, -1, -1))
    return tuple(round(i * (top / steps)) for i in range(steps, 0, -1))


def _whole(name: str, value: int, *, most: int) -> int:
    try:
        number = operator.index(value)
    except TypeError:
        number = 0
    if not 1 <= number <= most:
        raise RequestError(f"{name} must be a whole number from 1 to {most}, not {value}.")
    return number


def _too_many(table: str, steps: int, strength: float, count: int, origin_steps: int) -> str:
    below = _points(table, strength, count, origin_steps)
    every = _points(table, 1.0, count, origin_steps)
    if steps > every:
        there = f"Use steps <= {below} at strength {strength:g}."
        return f"{steps} steps are more than the {every} timesteps of table '{table}'. {there}"
    enough = next(s / 100 for s in range(1, 101) if _points(table, s / 100, count, origin_steps) >= steps)
    return (
        f"{steps} steps at strength {strength:g} need {steps} of the model's timesteps, but only {below} of {every} "
        f"lie below that strength. Use steps <= {below} or strength >= {enough:g}."
    )
