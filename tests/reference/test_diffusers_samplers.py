"""Every sampler gives diffusers' result: same network, same noise, same timesteps, 1 to 8 steps, several strengths.

The schedulers that work in sigma space start from x = z sqrt(1 + sigma^2) and end at sigma 0, where x = z.
"""

from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    LatentConsistencyModelPipeline,
    LCMScheduler,
    TCDScheduler,
    UniPCMultistepScheduler,
)

from fewstep.sampling import (
    SAMPLERS,
    Schedule,
    add_noise,
    guidance_embedding,
    linear,
    sample,
    sampler_named,
    scaled_linear,
    target,
    timesteps,
    to_z0,
    zero_terminal_snr,
)

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

CONFIG: dict[str, Any] = {
    "num_train_timesteps": 1000,
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
}
STEPS = range(1, 9)
STRENGTHS = (0.2, 0.58, 1.0)
SHAPE = (2, 4, 4, 4)
TOLERANCE = {"atol": 2e-4, "rtol": 2e-4}


@pytest.fixture(params=["epsilon", "v_prediction"])
def prediction(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(params=STEPS)
def steps(request: pytest.FixtureRequest) -> int:
    return request.param


@pytest.fixture(params=STRENGTHS)
def strength(request: pytest.FixtureRequest) -> float:
    return request.param


@pytest.fixture
def z() -> torch.Tensor:
    return torch.randn(SHAPE, generator=torch.Generator().manual_seed(3))


def network(z: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    return 0.9 * z + 0.3 * torch.sin(2 * z + t.reshape(-1, 1, 1, 1) / 250)


def ours(sampler, z, table, prediction):
    schedule = Schedule(scaled_linear(), prediction=prediction)
    draw = torch.Generator().manual_seed(7)

    def denoise(z, t_B):
        return to_z0(schedule, z, network(z, t_B), t_B)

    run = sample(
        denoise, z, table, sampler=sampler, schedule=schedule, noise=lambda k: torch.randn(SHAPE, generator=draw)
    )
    return [*run][-1].z


def theirs(scheduler, x, **options):
    """diffusers' own loop; `x` in the scheduler's space."""
    for t in scheduler.timesteps:
        output = network(scheduler.scale_model_input(x, t), torch.as_tensor(t).float())
        x = scheduler.step(output, t, x, **options).prev_sample
    return x


@pytest.mark.parametrize("kind", [LCMScheduler, TCDScheduler])
@pytest.mark.parametrize("origin_steps", [50, 100])
def test_lcm_timesteps(kind, origin_steps, steps):
    scheduler = kind(**CONFIG, original_inference_steps=origin_steps)
    for hundredth in range(1, 101):
        if int(origin_steps * hundredth / 100) < steps:
            continue
        options = {"strength": hundredth / 100}
        scheduler.set_timesteps(steps, **options)
        found = timesteps("linspace-lcm", steps, origin_steps=origin_steps, **options)
        assert found == tuple(scheduler.timesteps.tolist())


@pytest.mark.parametrize("spacing", ["trailing", "leading", "linspace"])
def test_spaced_timesteps(spacing):
    """At strength 1. `linspace` is the one of the multistep solvers; DDIM's and Euler's ends at t = 0."""
    kind = DPMSolverMultistepScheduler if spacing == "linspace" else DDIMScheduler
    offset = {"steps_offset": 1} if spacing == "leading" else {}
    scheduler = kind(**CONFIG, timestep_spacing=spacing, **offset)
    for steps in (*range(1, 130), 150, 200, 250, 333, 500, 998):
        scheduler.set_timesteps(steps)
        expected = tuple(scheduler.timesteps.tolist())[:steps]  # diffusers' arange can be one too long
        assert timesteps(spacing, steps) == expected


def test_lcm(z, steps, strength, prediction):
    scheduler = LCMScheduler(**CONFIG, prediction_type=prediction)
    scheduler.set_timesteps(steps, strength=strength)
    expected = theirs(scheduler, z, generator=torch.Generator().manual_seed(7))
    found = ours(SAMPLERS["lcm"], z, timesteps("linspace-lcm", steps, strength=strength), prediction)
    torch.testing.assert_close(found, expected, **TOLERANCE)


@pytest.mark.parametrize("gamma", [0.0, 0.3, 1.0])
def test_tcd(z, steps, strength, prediction, gamma):
    scheduler = TCDScheduler(**CONFIG, prediction_type=prediction)
    scheduler.set_timesteps(steps, strength=strength)
    expected = theirs(scheduler, z, eta=gamma, generator=torch.Generator().manual_seed(7))
    table = timesteps("linspace-lcm", steps, strength=strength)
    found = ours(sampler_named("tcd", gamma=gamma), z, table, prediction)
    torch.testing.assert_close(found, expected, **TOLERANCE)


@pytest.mark.parametrize("name", ["ddim", "pcm"])
def test_ddim(z, steps, strength, prediction, name):
    """diffusers computes the next timestep as t - 1000 // n; a fractional n lets it follow any table."""
    scheduler = DDIMScheduler(**CONFIG, prediction_type=prediction, clip_sample=False, set_alpha_to_one=False)
    table = timesteps("trailing", steps, strength=strength)
    x = z
    for t, t_next in zip(table, (*table[1:], SAMPLERS[name].last), strict=True):
        scheduler.num_inference_steps = Fraction(1000, t - t_next)  # pyright: ignore[reportAttributeAccessIssue]
        x = scheduler.step(network(x, torch.tensor(float(t))), t, x).prev_sample
    torch.testing.assert_close(ours(SAMPLERS[name], z, table, prediction), x, **TOLERANCE)


def sigma_space(kind, table, prediction, **options):
    """A scheduler of diffusers that visits our timesteps and ends at sigma 0, whether or not it takes a list."""
    scheduler = kind(**CONFIG, prediction_type=prediction, **options)
    scheduler.set_timesteps(len(table))
    abar = np.asarray(scheduler.alphas_cumprod, dtype=np.float64)[list(table)]
    scheduler.sigmas = torch.tensor([*np.sqrt((1 - abar) / abar), 0.0], dtype=torch.float32)
    scheduler.timesteps = torch.tensor(table, dtype=scheduler.timesteps.dtype)
    scheduler.num_inference_steps = len(table)
    return scheduler


@pytest.mark.parametrize(
    ("name", "kind"), [("euler", EulerDiscreteScheduler), ("euler_a", EulerAncestralDiscreteScheduler)]
)
def test_euler_and_euler_a(z, steps, strength, prediction, name, kind):
    table = timesteps("trailing", steps, strength=strength)
    scheduler = sigma_space(kind, table, prediction)
    x = z * (1 + scheduler.sigmas[0] ** 2) ** 0.5
    expected = theirs(scheduler, x, generator=torch.Generator().manual_seed(7))
    torch.testing.assert_close(ours(SAMPLERS[name], z, table, prediction), expected, **TOLERANCE)


@pytest.mark.parametrize(
    ("name", "kind", "options"),
    [
        ("dpmpp_2m", DPMSolverMultistepScheduler, {"algorithm_type": "dpmsolver++", "solver_type": "midpoint"}),
        ("unipc", UniPCMultistepScheduler, {"solver_type": "bh2", "solver_order": 2}),
    ],
)
@pytest.mark.parametrize("table_name", ["linspace", "linspace-lcm"])
def test_the_multistep_solvers(z, steps, strength, prediction, name, kind, options, table_name):
    table = timesteps(table_name, steps, strength=strength)
    expected = theirs(sigma_space(kind, table, prediction, **options), z)
    torch.testing.assert_close(ours(SAMPLERS[name], z, table, prediction), expected, **TOLERANCE)


@pytest.mark.parametrize(
    ("name", "kind"), [("dpmpp_2m", DPMSolverMultistepScheduler), ("unipc", UniPCMultistepScheduler)]
)
def test_twenty_steps_as_diffusers_runs_them_by_itself(z, prediction, name, kind):
    """Nothing replaced in the scheduler, so its own timesteps and sigmas are compared as well."""
    scheduler = kind(**CONFIG, prediction_type=prediction, timestep_spacing="linspace")
    scheduler.set_timesteps(20)
    found = ours(SAMPLERS[name], z, timesteps("linspace", 20), prediction)
    torch.testing.assert_close(found, theirs(scheduler, z), atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize(("beta_schedule", "make"), [("scaled_linear", scaled_linear), ("linear", linear)])
@pytest.mark.parametrize("zero", [False, True])
def test_noise_schedules(beta_schedule, make, zero):
    config = {**CONFIG, "beta_schedule": beta_schedule, "rescale_betas_zero_snr": zero}
    found = make(beta_start=CONFIG["beta_start"], beta_end=CONFIG["beta_end"])
    expected = DDIMScheduler(**config).alphas_cumprod.numpy()
    np.testing.assert_allclose(zero_terminal_snr(found) if zero else found, expected, atol=2e-6)


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
def test_noise_and_training_target(z, prediction_type):
    noise, t_B = torch.flip(z, (0,)), torch.tensor([0, 999])
    scheduler, schedule = DDIMScheduler(**CONFIG), Schedule(scaled_linear(), prediction=prediction_type)
    expected = noise if prediction_type == "epsilon" else scheduler.get_velocity(z, noise, t_B)
    torch.testing.assert_close(target(schedule, z, noise, t_B), expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(
        add_noise(schedule, z, noise, t_B), scheduler.add_noise(z, noise, t_B), atol=1e-5, rtol=1e-5
    )


def test_guidance_embedding():
    """The tolerance is float32's own, at arguments of up to 14,000."""
    w = torch.tensor([0.0, 1.5, 7.5, 14.0])
    embed = LatentConsistencyModelPipeline.get_guidance_scale_embedding
    expected = embed(None, w, embedding_dim=256)  # pyright: ignore[reportArgumentType]
    torch.testing.assert_close(guidance_embedding(w, like=w), expected, atol=2e-3, rtol=0)
