"""Noise levels between the trained timesteps, and A1111's schedule types, against the formulas in float64 numpy."""

import math
from itertools import pairwise

import mpmath
import numpy as np
import pytest
import torch

from fewstep.sampling import Schedule, scaled_linear, timesteps, zero_terminal_snr
from fewstep.sampling.levels import AYS_SD15, AYS_SDXL, SCHEDULE_TYPES, beta_quantile

SD = Schedule(scaled_linear())
ABAR = np.array(scaled_linear())
SIGMAS = np.sqrt((1 - ABAR) / ABAR)
LOW, HIGH = SIGMAS[0], SIGMAS[-1]
STEPS = [*range(1, 9), 10, 11, 20, 50]


def levels_of(table, steps, **options):
    return np.array([SD.level(t) for t in timesteps(table, steps, **options)])


# ---- between two timesteps


def test_between_two_timesteps_log_k_is_a_straight_line():
    t = np.linspace(0, 999, 1234)
    expected = np.exp(np.interp(t, np.arange(1000), np.log(SIGMAS)))
    np.testing.assert_allclose([SD.level(at) for at in t], expected, rtol=1e-12)
    np.testing.assert_allclose([SD.timestep(k) for k in expected], t, atol=1e-9)


@pytest.mark.parametrize("like", [np.zeros((1, 1), np.float16), torch.zeros(1, 1)])
def test_alpha_and_sigma_at_fractions(like):
    t = [-1.0, -0.25, 0.0, 0.5, 19.0, 258.75, 998.999, 999.0]
    k = np.where(np.array(t) < 0, (np.array(t) + 1) * LOW, np.exp(np.interp(t, np.arange(1000), np.log(SIGMAS))))
    alpha, sigma = (np.asarray(x).ravel() for x in SD.alpha_sigma(t, like))
    np.testing.assert_allclose(alpha, 1 / np.hypot(1, k), rtol=3e-6)
    np.testing.assert_allclose(sigma, k / np.hypot(1, k), rtol=3e-6)
    assert alpha.dtype == sigma.dtype == np.float32
    for at in (-1, 0, 19, 999):
        whole = [float(x.ravel()[0]) for x in SD.alpha_sigma(at, like)]
        assert whole == [float(alpha[t.index(at)]), float(sigma[t.index(at)])]


@pytest.mark.parametrize("like", [np.zeros((1, 1)), torch.zeros(1, 1)])
@pytest.mark.parametrize("t", [-1.01, 999.01])
def test_a_fraction_outside_is_refused(t, like):
    with pytest.raises(ValueError, match=r"outside -1\.\.999"):
        SD.alpha_sigma([t], like)


def test_below_the_first_timestep_k_falls_to_0():
    assert [SD.level(t) for t in (0, -0.5, -1)] == pytest.approx([LOW, LOW / 2, 0], abs=1e-12)
    assert [SD.timestep(k) for k in (LOW / 4, 0)] == pytest.approx([-0.75, -1])


@pytest.mark.parametrize("abar", [zero_terminal_snr(scaled_linear()), (1.0, 0.5, 0.0), (0.5,)])
def test_levels_are_finite_at_zero_signal_and_at_zero_noise(abar):
    schedule = Schedule(abar)
    assert all(0 < a < b < 5000 for a, b in pairwise(schedule.levels))
    for t in np.linspace(-1, schedule.count - 1, 57):
        assert schedule.timestep(schedule.level(float(t))) == pytest.approx(t, abs=1e-6)


# ---- the schedule types


def reference(table, n):
    """k-diffusion's and A1111's formulas as they are published, without the last 0."""
    ramp = np.linspace(0, 1, n)
    at = lambda t: np.exp(np.interp(t, np.arange(1000), np.log(SIGMAS)))  # noqa: E731
    return {
        "uniform": lambda: at(np.linspace(999, 0, n)),
        "normal": lambda: at(np.linspace(999, 0, n)),
        "sgm_uniform": lambda: at(np.linspace(999, 0, n + 1)[:-1]),
        "simple": lambda: np.array([SIGMAS[-(1 + int(x * (1000 / n)))] for x in range(n)]),
        "karras": lambda: (HIGH ** (1 / 7) + ramp * (LOW ** (1 / 7) - HIGH ** (1 / 7))) ** 7,
        "exponential": lambda: np.exp(np.linspace(math.log(HIGH), math.log(LOW), n)),
        "polyexponential": lambda: np.exp(np.linspace(1, 0, n) * math.log(HIGH / LOW) + math.log(LOW)),
        "kl_optimal": lambda: np.tan(
            np.linspace(0, 1, n + 1)[:-1] * math.atan(LOW) + (1 - np.linspace(0, 1, n + 1)[:-1]) * math.atan(HIGH)
        ),
        "beta": lambda: LOW + np.array([quantile(1 - r) for r in ramp]) * (HIGH - LOW),
        "align_your_steps": lambda: interpolated(AYS_SD15, n),
        "align_your_steps_xl": lambda: interpolated(AYS_SDXL, n),
    }[table]()


def interpolated(table, n):
    """NVIDIA's `loglinear_interp`, clipped to what the model knows; one step begins at the most noise."""
    places = np.linspace(0, len(table) - 1, n)
    return np.clip(np.exp(np.interp(places, np.arange(len(table)), np.log(table))), LOW, HIGH)


def quantile(p):
    if p in (0, 1):
        return p
    off = lambda x: mpmath.betainc(0.6, 0.6, 0, x, regularized=True) - p  # noqa: E731
    return float(mpmath.findroot(off, (0.0, 1.0), solver="anderson", tol=1e-20))


@pytest.mark.parametrize("table", SCHEDULE_TYPES)
@pytest.mark.parametrize("steps", STEPS)
def test_schedule_types_are_the_published_formulas(table, steps):
    tolerance = 5e-5 if "align" in table else 3e-6  # its table begins at 14.615, Stable Diffusion at 14.6146
    np.testing.assert_allclose(levels_of(table, steps), reference(table, steps), rtol=tolerance)


@pytest.mark.parametrize("p", [0.001, 0.03, 0.3, 0.5, 0.7, 0.999])
def test_the_quantiles_of_the_beta_distribution(p):
    assert mpmath.betainc(0.6, 0.6, 0, beta_quantile(p), regularized=True) == pytest.approx(p, abs=1e-9)


@pytest.mark.parametrize("table", [t for t in SCHEDULE_TYPES if t not in ("simple",)])
@pytest.mark.parametrize("strength", [0.05, 0.3, 0.58])
@pytest.mark.parametrize("steps", [1, 4, 8])
def test_strength_lowers_the_top_and_keeps_the_steps(table, strength, steps):
    found = timesteps(table, steps, strength=strength)
    assert len(found) == steps
    assert found[0] == pytest.approx(round(strength * 1000) - 1, abs=1e-3)
    if steps > 1 and table not in ("sgm_uniform", "kl_optimal"):
        assert found[-1] == pytest.approx(0, abs=1e-3)


def test_the_last_level_but_one_can_be_left_out():
    """A1111's option of DPM2, DPM2 a and DPM++ 3M SDE: a table of one step more, without its last."""
    for steps in STEPS:
        assert timesteps("karras", steps, discard=True) == timesteps("karras", steps + 1)[:-1]
    assert timesteps("trailing", 4, discard=True) == timesteps("trailing", 4)
    assert timesteps("simple", 10, strength=0.01, discard=True) == tuple(range(9, -1, -1))


@pytest.mark.parametrize("steps", [2, 4, 8, 20])
def test_labels_and_short_names(steps):
    for label, table in {
        "SGM Uniform": "sgm_uniform",
        "KL Optimal": "kl_optimal",
        "AYS": "align_your_steps",
        "Karras": "karras",
        "DDIM": "leading",
        "SGMUniform": "sgm_uniform",
    }.items():
        assert timesteps(label, steps) == timesteps(table, steps)
