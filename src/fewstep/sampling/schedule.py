"""The noise schedule, and what a network's output means under it.

z_t = alpha_t z0 + sigma_t eps with alpha_t = sqrt(abar_t), sigma_t = sqrt(1 - abar_t): variance preserving, so
alpha^2 + sigma^2 = 1 (Ho et al. 2020, arXiv:2006.11239, eq. 4). Timestep 0 is the least noise the model was trained
on, count - 1 the most; -1 stands for the clean image itself. Between two timesteps the logarithm of the noise level
k = sigma / alpha is a straight line (k-diffusion, `DiscreteSchedule`), and below timestep 0 k itself, down to 0.

Everything is computed and returned in float32, whatever comes in. At t = 999 of Stable Diffusion an error in eps
returns 14.6 times larger in z0, and in bfloat16 sigma at t = 0 is simply 0.
"""

import math
from bisect import bisect_left
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cached_property
from itertools import accumulate, pairwise
from operator import mul
from typing import Literal, get_args

from fewstep.errors import CheckpointError
from fewstep.sampling.arrays import (
    Array,
    Timesteps,
    are_whole,
    broadcast,
    constant,
    float32,
    indices,
    is_torch,
    namespace,
    times,
    where_not_zero,
)

Prediction = Literal["epsilon", "v_prediction", "sample"]

SMALLEST_ALPHA = 2.0**-12
"""The alpha an eps-prediction is divided by where the schedule says 0 (diffusers' floor of 2^-24 for abar)."""


@dataclass(frozen=True)
class Schedule:
    """How much image and how much noise a latent holds at each timestep, and what the network predicts.

    >>> schedule = Schedule(scaled_linear())
    >>> schedule.count
    1000
    >>> round(schedule.alphas_cumprod[999], 5)
    0.00466

    Raises `CheckpointError` for a prediction type that is not known or values that are no schedule.
    """

    alphas_cumprod: tuple[float, ...]
    prediction: Prediction = "epsilon"
    _tables: dict[object, tuple[Array, ...]] = field(default_factory=dict, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if self.prediction not in get_args(Prediction):
            known = ", ".join(get_args(Prediction))
            raise CheckpointError(f"The model predicts '{self.prediction}', which is not known. Known are: {known}.")
        object.__setattr__(self, "alphas_cumprod", tuple(float(a) for a in self.alphas_cumprod))
        falling = all(a > b for a, b in pairwise(self.alphas_cumprod))
        if not (self.alphas_cumprod and falling and self.alphas_cumprod[0] <= 1 and self.alphas_cumprod[-1] >= 0):
            raise CheckpointError("The model's noise schedule must fall from at most 1 to at least 0, and does not.")

    @property
    def count(self) -> int:
        """How many timesteps the model was trained on."""
        return len(self.alphas_cumprod)

    @cached_property
    def levels(self) -> tuple[float, ...]:
        """The noise level k = sigma / alpha at each timestep, rising; finite and not 0 even at zero noise or signal."""
        least = SMALLEST_ALPHA**2
        return tuple(math.sqrt(max(1 - a, least) / max(a, least)) for a in self.alphas_cumprod)

    def level(self, t: float) -> float:
        """The noise level k at a timestep, also between two.

        >>> schedule = Schedule(scaled_linear())
        >>> [round(schedule.level(t), 4) for t in (999, 0, -0.5, -1)]
        [14.6146, 0.0292, 0.0146, 0.0]
        """
        if t <= 0:
            return (1 + t) * self.levels[0]
        low = int(t)
        if t == low:
            return self.levels[low]
        return self.levels[low] * (self.levels[low + 1] / self.levels[low]) ** (t - low)

    def timestep(self, level: float) -> float:
        """The timestep of a noise level: the inverse of `level`, and the highest for every level above it.

        >>> schedule = Schedule(scaled_linear())
        >>> schedule.timestep(schedule.level(0)), schedule.timestep(100.0), round(schedule.timestep(1.0), 2)
        (0.0, 999, 353.89)
        """
        high = bisect_left(self.levels, level)
        if high == self.count:
            return self.count - 1
        if high == 0:
            return level / self.levels[0] - 1
        below = self.levels[high - 1]
        return high - 1 + math.log(level / below) / math.log(self.levels[high] / below)

    def alpha_sigma(self, t_B: Timesteps, like: Array) -> tuple[Array, Array]:
        """(alpha, sigma) at `t_B`, float32, shaped (B, 1, 1, ...) to multiply `like`; t = -1 gives exactly (1, 0).

        Raises `ValueError` for a timestep outside -1 .. count - 1 (where it can be seen without waiting for a GPU).
        """
        t_B = times(t_B, like=like)
        if not is_torch(t_B) or t_B.device.type == "cpu":
            self._check(t_B)
        alphas, sigmas, logs = self._table(like)
        if are_whole(t_B):
            alpha_B, sigma_B = alphas[t_B], sigmas[t_B]
        else:
            alpha_B, sigma_B = self._between(t_B, alphas, sigmas, logs)
        return broadcast(alpha_B, like=like), broadcast(sigma_B, like=like)

    def _between(self, t_B: Array, alphas: Array, sigmas: Array, logs: Array) -> tuple[Array, Array]:
        """At timesteps that may be fractions; at whole ones what the tables say."""
        xp = namespace(t_B)
        low_B = indices(xp.floor(t_B), like=t_B)
        part_B = t_B - float32(low_B)
        log_B = (1 - part_B) * logs[low_B] + part_B * logs[(low_B + 1).clip(0, self.count - 1)]
        level_B = xp.where(t_B < 0, part_B * self.levels[0], xp.exp(log_B))
        alpha_B = 1 / (1 + level_B * level_B) ** 0.5
        exact_B = part_B == 0
        return xp.where(exact_B, alphas[low_B], alpha_B), xp.where(exact_B, sigmas[low_B], alpha_B * level_B)

    def _check(self, t_B: Array) -> None:
        asked = t_B.tolist()
        if asked and (min(asked) < -1 or max(asked) > self.count - 1):
            raise ValueError(f"timestep {asked} is outside -1..{self.count - 1}")

    def _table(self, like: Array) -> tuple[Array, ...]:
        """All alphas, sigmas and log k on the device of `like`; the entry after the last timestep, [-1], is clean."""
        key = str(like.device) if is_torch(like) else "numpy"
        if key not in self._tables:
            alphas = [math.sqrt(a) for a in self.alphas_cumprod] + [1.0]
            sigmas = [math.sqrt(1 - a) for a in self.alphas_cumprod] + [0.0]
            logs = [math.log(level) for level in self.levels] + [0.0]
            self._tables[key] = tuple(constant(values, like=like) for values in (alphas, sigmas, logs))
        return self._tables[key]


def scaled_linear(beta_start: float = 0.00085, beta_end: float = 0.012, count: int = 1000) -> tuple[float, ...]:
    """The abar of Stable Diffusion 1.x, 2.x and XL: sqrt(beta) rises linearly (Rombach et al., arXiv:2112.10752).

    >>> [round(scaled_linear()[t], 5) for t in (0, 19, 499, 999)]
    [0.99915, 0.98224, 0.27767, 0.00466]
    """
    return _cumulative(beta**2 for beta in _line(math.sqrt(beta_start), math.sqrt(beta_end), count))


def linear(beta_start: float = 0.0001, beta_end: float = 0.02, count: int = 1000) -> tuple[float, ...]:
    """The abar of a beta that rises linearly (Ho et al. 2020, section 4).

    >>> [round(linear()[t], 5) for t in (0, 999)]
    [0.9999, 4e-05]
    """
    return _cumulative(_line(beta_start, beta_end, count))


def zero_terminal_snr(alphas_cumprod: Iterable[float]) -> tuple[float, ...]:
    """The same abar, rescaled so that the last timestep is pure noise (Lin et al. 2023, arXiv:2305.08891, algorithm 1).

    >>> rescaled = zero_terminal_snr(scaled_linear())
    >>> rescaled[0] == scaled_linear()[0], rescaled[-1]
    (True, 0.0)
    """
    abar = tuple(alphas_cumprod)
    first, last = math.sqrt(abar[0]), math.sqrt(abar[-1])
    inner = (((math.sqrt(a) - last) * first / (first - last)) ** 2 for a in abar[1:-1])
    return (abar[0], *inner, 0.0)


def _line(start: float, stop: float, count: int) -> list[float]:
    return [start + (stop - start) * i / max(count - 1, 1) for i in range(count)]


def _cumulative(betas: Iterable[float]) -> tuple[float, ...]:
    return tuple(accumulate((1 - beta for beta in betas), mul))


def add_noise(schedule: Schedule, z0: Array, noise: Array, t_B: Timesteps) -> Array:
    """z_t = alpha_t z0 + sigma_t noise (Ho et al. 2020, eq. 4); (B, C, H, W) in float32."""
    alpha, sigma = schedule.alpha_sigma(t_B, z0)
    return alpha * float32(z0) + sigma * float32(noise)


def fade_and_added(schedule: Schedule, t_B: Timesteps, to_B: Timesteps, like: Array) -> tuple[Array, Array]:
    """The way z_t becomes z at a later (noisier) timestep: fade * z_t + added * unit noise; (B, 1, 1, 1) each.

    fade = alpha_to / alpha_t and added^2 = sigma_to^2 - (fade sigma_t)^2, the forward process between two timesteps
    (Kingma et al. 2021, arXiv:2107.00630, section 3.1).
    """
    (alpha, sigma), (alpha_t, sigma_t) = schedule.alpha_sigma(to_B, like), schedule.alpha_sigma(t_B, like)
    fade = alpha / alpha_t
    return fade, (sigma**2 - (fade * sigma_t) ** 2).clip(0.0) ** 0.5


def to_z0(schedule: Schedule, z: Array, output: Array, t_B: Timesteps) -> Array:
    """The clean latent that a network's output claims, by the schedule's prediction type.

    eps: (z - sigma m) / alpha; v: alpha z - sigma m (Salimans & Ho 2022, arXiv:2202.00512, appendix D); sample: m.
    Where alpha is 0 an eps-prediction says nothing of z0; it is divided by `SMALLEST_ALPHA` to stay finite.
    """
    output = float32(output)
    if schedule.prediction == "sample":
        return output
    alpha, sigma = schedule.alpha_sigma(t_B, z)
    if schedule.prediction == "v_prediction":
        return alpha * float32(z) - sigma * output
    return (float32(z) - sigma * output) / alpha.clip(SMALLEST_ALPHA)


def to_eps(schedule: Schedule, z: Array, output: Array, t_B: Timesteps) -> Array:
    """The noise that a network's output claims. eps: m; v: alpha m + sigma z; sample: (z - alpha m) / sigma."""
    output = float32(output)
    if schedule.prediction == "epsilon":
        return output
    if schedule.prediction == "sample":
        return eps_from_z0(schedule, z, output, t_B)
    alpha, sigma = schedule.alpha_sigma(t_B, z)
    return alpha * output + sigma * float32(z)


def eps_from_z0(schedule: Schedule, z: Array, z0: Array, t_B: Timesteps) -> Array:
    """The noise in z if its clean latent is z0: (z - alpha z0) / sigma; z - z0 where sigma is 0 (t = -1)."""
    alpha, sigma = schedule.alpha_sigma(t_B, z)
    return (float32(z) - alpha * float32(z0)) / where_not_zero(sigma)


def target(schedule: Schedule, z0: Array, noise: Array, t_B: Timesteps) -> Array:
    """The output of a perfect network for z_t = alpha z0 + sigma noise; the inverse of `to_z0` and `to_eps`.

    eps: noise; v: alpha noise - sigma z0 (Salimans & Ho 2022, appendix D); sample: z0.
    """
    if schedule.prediction == "epsilon":
        return float32(noise)
    if schedule.prediction == "sample":
        return float32(z0)
    alpha, sigma = schedule.alpha_sigma(t_B, z0)
    return alpha * float32(noise) - sigma * float32(z0)
