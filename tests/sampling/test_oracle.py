"""The solvers against the exact flow of a Gaussian, where every quantity has a closed form.

Data N(mu, s^2): E[z0 | z] = mu + a s^2 (z - a mu) / (a^2 s^2 + sigma^2), and the probability-flow ODE carries z from t
to r by scaling its distance from a_t mu: a_r mu + (z - a_t mu) sqrt((a_r^2 s^2 + sigma_r^2) / (a_t^2 s^2 + sigma_t^2)).
"""

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest

from fewstep.sampling import SAMPLERS, Schedule, guide, sample, scaled_linear, timesteps, to_z0
from fewstep.sampling.ode import ddim_map

SD = Schedule(scaled_linear())
COND, UNCOND, SPREAD, GUIDANCE = 0.3, -0.2, 0.5, 3.0
MU = COND + (GUIDANCE - 1) * (COND - UNCOND)


def variance(a, sigma):
    return a * a * SPREAD**2 + sigma * sigma


def eps_of(z, t_B, mu):
    a, sigma = SD.alpha_sigma(t_B, z)
    return sigma * (z - a * mu) / variance(a, sigma)


def denoise(z, t_B):
    """A perfect network under guidance: the guided field is again that of a Gaussian, around MU."""
    return to_z0(SD, z, guide(eps_of(z, t_B, COND), eps_of(z, t_B, UNCOND), GUIDANCE), t_B)


def exact(z, t_B, r_B):
    (a, sigma), (a_r, sigma_r) = SD.alpha_sigma(t_B, z), SD.alpha_sigma(r_B, z)
    return a_r * MU + (z - a * MU) * np.sqrt(variance(a_r, sigma_r) / variance(a, sigma))


def draw(t_B, count=1):
    """Latents that the process itself has at `t_B`, (B, count)."""
    noise = np.random.default_rng(0).standard_normal((len(t_B), count)).astype(np.float32)
    a, sigma = SD.alpha_sigma(t_B, noise)
    return a * MU + np.sqrt(variance(a, sigma)) * noise


def rms(x):
    return float(np.sqrt(np.mean(np.square(x))))


def test_ddim_over_20_timesteps_is_nearly_exact():
    grid = np.arange(50) * 20 + 19
    lower = np.maximum(grid - 20, 0)
    z = draw(grid, 512)
    assert rms(ddim_map(SD, z, denoise(z, grid), grid, lower) - exact(z, grid, lower)) < 3e-3


def error(name, steps, last=199):
    """rms error of a whole run from 999 to `last`, in steps of equal length in t."""
    z = draw([999], 256)
    grid = np.linspace(999, last, steps + 1).round().astype(int)
    sampler = replace(SAMPLERS[name], last=last)
    final = [*sample(denoise, z, grid[:-1].tolist(), sampler=sampler, schedule=SD, noise=lambda k: z)][-1]
    return rms(final.z - exact(z, [999], [last]))


@pytest.mark.parametrize(("name", "order"), [("ddim", 1), ("euler", 1), ("pcm", 1), ("dpmpp_2m", 2), ("unipc", 2)])
def test_order_of_convergence(name, order):
    errors = [error(name, steps) for steps in (10, 20, 40, 80)]
    assert all(a > b for a, b in pairwise(errors))
    slope = np.log2(errors[1] / errors[3]) / 2
    assert slope == pytest.approx(order, abs=0.35) if order == 1 else slope > 1.6
    assert errors[-1] < (2e-2 if order == 1 else 2e-3)


def test_second_order_beats_first_and_the_corrector_helps():
    for steps in (10, 20, 40):
        assert error("unipc", steps) < error("dpmpp_2m", steps) < error("ddim", steps)


@pytest.mark.parametrize("name", ["ddim", "euler", "dpmpp_2m", "unipc"])
def test_a_whole_run_arrives_at_the_exact_image(name):
    sampler = SAMPLERS[name]
    z = draw([999], 256)
    final = [*sample(denoise, z, timesteps(sampler.table, 50), sampler=sampler, schedule=SD, noise=lambda k: z)][-1]
    assert rms(final.z - exact(z, [999], [sampler.last])) < 4e-2


@pytest.mark.parametrize(("name", "count"), [("lcm", 8), ("tcd", 200), ("euler_a", 200)])
def test_the_noisy_samplers_draw_from_the_target(name, count):
    """With the posterior mean they all find the mean; Euler a with small steps finds the spread as well."""
    sampler = SAMPLERS[name]
    rng = np.random.default_rng(1)
    z = draw([999], 8192)
    run = timesteps("trailing", count)
    steps = [*sample(denoise, z, run, sampler=sampler, schedule=SD, noise=lambda k: rng.standard_normal(z.shape))]
    assert steps[-1].z.mean() == pytest.approx(MU, abs=0.05)
    if name == "euler_a":
        assert steps[-1].z.std() == pytest.approx(SPREAD, rel=0.08)


def test_lcm_with_the_exact_consistency_function_samples_exactly():
    rng = np.random.default_rng(2)
    z = draw([999], 8192)
    run = timesteps("linspace-lcm", 4)
    consistency = lambda z, t_B: exact(z, t_B, [-1])  # noqa: E731
    for step in sample(
        consistency, z, run, sampler=SAMPLERS["lcm"], schedule=SD, noise=lambda k: rng.standard_normal(z.shape)
    ):
        a, sigma = SD.alpha_sigma(step.t_next, z)
        assert step.z.mean() == pytest.approx(float(a[0, 0]) * MU, abs=0.04)
        assert step.z.std() == pytest.approx(float(np.sqrt(variance(a, sigma))[0, 0]), rel=0.04)


# ---- the walks


@pytest.mark.parametrize(("name", "order"), [("heun", 2), ("dpm2", 2), ("lms", 3)])
def test_order_of_convergence_of_the_walks(name, order):
    """LMS begins with steps of lower order and so falls short of its 4."""
    errors = [error(name, steps) for steps in (10, 20, 40)]
    assert np.log2(errors[0] / errors[2]) / 2 > order - 0.4
    assert errors[-1] < 2e-3


@pytest.mark.parametrize("name", ["heun", "dpm2", "lms", "plms"])
def test_a_whole_run_of_a_walk_arrives_at_the_exact_image(name):
    sampler = SAMPLERS[name]
    z = draw([999], 256)
    final = [*sample(denoise, z, timesteps("karras", 50), sampler=sampler, schedule=SD, noise=lambda k: z)][-1]
    assert rms(final.z - exact(z, [999], [sampler.last])) < 2e-2


NOISY = ["dpm2_a", "dpmpp_2s_a", "dpmpp_sde", "dpmpp_2m_sde", "dpmpp_2m_sde_heun", "dpmpp_3m_sde", "restart"]


@pytest.mark.parametrize("name", [*NOISY, "dpm_fast", "dpm_adaptive"])
def test_the_noisy_walks_draw_from_the_target(name):
    """Mean and spread of the data: noise that is a little too much or too little would show in the spread."""
    sampler, rng = SAMPLERS[name], np.random.default_rng(1)
    z = draw([999], 8192)
    run = timesteps("karras", 60)
    steps = [*sample(denoise, z, run, sampler=sampler, schedule=SD, noise=lambda k: rng.standard_normal(z.shape))]
    assert steps[-1].z.mean() == pytest.approx(MU, abs=0.03)
    assert steps[-1].z.std() == pytest.approx(SPREAD, rel=0.05)
