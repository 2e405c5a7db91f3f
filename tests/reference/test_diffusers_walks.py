"""The walks against diffusers where it has the same sampler: same network, same noise levels, 2 to 8 steps.

`sigma_space` as in `test_diffusers_samplers.py`, with the levels of a schedule type. LMS and DPM++ SDE need scipy and
torchsde there, which this project does not install.
"""

from typing import Any

import numpy as np
import pytest
import torch
from diffusers import (
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    HeunDiscreteScheduler,
    KDPM2DiscreteScheduler,
    LMSDiscreteScheduler,
    PNDMScheduler,
)

from fewstep.sampling import SAMPLERS, Schedule, sample, scaled_linear, timesteps

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

CONFIG: dict[str, Any] = {
    "num_train_timesteps": 1000,
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "prediction_type": "sample",
}
SD = Schedule(scaled_linear(), prediction="sample")
SHAPE = (2, 4, 4, 4)
TOLERANCE = {"atol": 1e-3, "rtol": 1e-3}


def network(z, t):
    return 0.5 * z + 0.4 * torch.sin(2 * z + torch.as_tensor(t).float().reshape(-1, 1, 1, 1) / 300)


def ours(name, table, steps):
    draw = torch.Generator().manual_seed(7)
    run = sample(
        network,
        start(),
        timesteps(table, steps),
        sampler=SAMPLERS[name],
        schedule=SD,
        noise=lambda k: torch.randn(SHAPE, generator=draw),
    )
    return [*run][-1].z


def start():
    return torch.randn(SHAPE, generator=torch.Generator().manual_seed(3))


def theirs(scheduler, x, **options):
    for t in scheduler.timesteps:
        z = scheduler.scale_model_input(x, t)
        output = network(z, t)
        if scheduler.config.prediction_type == "epsilon":
            alpha, sigma = SD.alpha_sigma([float(t)], z)
            output = (z - alpha * output) / sigma
        x = scheduler.step(output, t, x, **options).prev_sample
    return x


@pytest.mark.parametrize("steps", range(2, 9))
@pytest.mark.parametrize(("name", "kind"), [("heun", HeunDiscreteScheduler), ("dpm2", KDPM2DiscreteScheduler)])
def test_the_second_order_solvers(name, kind, steps):
    scheduler = kind(**{**CONFIG, "prediction_type": "epsilon"}, timestep_spacing="linspace")
    scheduler.set_timesteps(steps)
    expected = theirs(scheduler, start() * (1 + scheduler.sigmas[0] ** 2) ** 0.5)
    torch.testing.assert_close(ours(name, "uniform", steps), expected, **TOLERANCE)


@pytest.mark.parametrize("steps", range(1, 9))
@pytest.mark.parametrize(("name", "solver"), [("dpmpp_2m_sde", "midpoint"), ("dpmpp_2m_sde_heun", "heun")])
def test_the_multistep_sde_solver(name, solver, steps):
    scheduler = DPMSolverMultistepScheduler(
        **CONFIG, algorithm_type="sde-dpmsolver++", solver_type=solver, use_karras_sigmas=True, final_sigmas_type="zero"
    )
    scheduler.set_timesteps(steps)
    times = timesteps("karras", steps)
    scheduler.sigmas = torch.tensor([*(SD.level(t) for t in times), 0.0])
    scheduler.timesteps = torch.tensor(times, dtype=torch.float64)
    expected = theirs(scheduler, start(), generator=torch.Generator().manual_seed(7))
    torch.testing.assert_close(ours(name, "karras", steps), expected, **TOLERANCE)


@pytest.mark.parametrize("steps", [2, 4, 5, 8])
def test_plms(steps):
    """Its own timesteps, 1000 // steps apart, the second of them twice; ours begin at the same."""
    scheduler = PNDMScheduler(**{**CONFIG, "prediction_type": "epsilon"}, skip_prk_steps=True, steps_offset=1)
    scheduler.set_timesteps(steps)
    torch.testing.assert_close(ours("plms", "ddim", steps), theirs(scheduler, start()), **TOLERANCE)


@pytest.mark.parametrize("steps", range(2, 9))
def test_lms(steps):
    """diffusers' only step, of one, begins at timestep 0, so one step is compared with nobody's here."""
    pytest.importorskip("scipy")
    scheduler = LMSDiscreteScheduler(**CONFIG, timestep_spacing="linspace")
    scheduler.set_timesteps(steps)
    expected = theirs(scheduler, start() * (1 + scheduler.sigmas[0] ** 2) ** 0.5)
    torch.testing.assert_close(ours("lms", "uniform", steps), expected, **TOLERANCE)


@pytest.mark.parametrize(
    ("table", "option"), [("karras", "use_karras_sigmas"), ("exponential", "use_exponential_sigmas")]
)
@pytest.mark.parametrize("steps", [2, 3, 4, 8, 20])
def test_schedule_types(table, option, steps):
    scheduler = EulerDiscreteScheduler(**CONFIG, timestep_spacing="linspace", **{option: True})
    scheduler.set_timesteps(steps)
    found = [SD.level(t) for t in timesteps(table, steps)]
    np.testing.assert_allclose(found, scheduler.sigmas[:-1].numpy(), rtol=2e-4)
