"""What must hold for every sampler: both array kinds, items apart or together, and the edges."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from fewstep.errors import RequestError
from fewstep.sampling import (
    SAMPLERS,
    Past,
    Schedule,
    boundary_scalings,
    consistency_function,
    phase_edges,
    sample,
    sampler_named,
    scaled_linear,
    timesteps,
    to_z0,
    zero_terminal_snr,
)
from fewstep.sampling.arrays import namespace
from fewstep.sampling.consistency import advance_lcm, advance_tcd
from fewstep.sampling.ode import ddim_map

ALL = sorted(SAMPLERS)
STEPPED = [name for name in ALL if SAMPLERS[name].advance]
COUNTED = [name for name in ALL if name != "dpm_adaptive"]
SD = Schedule(scaled_linear())


def denoiser_for(schedule):
    """A smooth network of either array kind; the timestep enters per item."""

    def denoise(z, t_B):
        xp = namespace(z)
        t = (t_B / 1000.0).reshape((-1, 1, 1, 1))
        return to_z0(schedule, z, 0.8 * z + 0.3 * xp.sin(2.0 * z + 3.0 * t), t_B)

    return denoise


def run(name, z, steps, *, schedule=SD, seed=5, torch_noise=False, **options):
    """All latents of a run with the sampler's own table, with noise from numpy whatever the array kind."""
    sampler = sampler_named(name)

    def noise(k):
        drawn = np.random.default_rng((seed, k)).standard_normal(tuple(z.shape)).astype(np.float32)
        return torch.from_numpy(drawn) if torch_noise else drawn

    table = timesteps(sampler.table, steps, **options)
    return [*sample(denoiser_for(schedule), z, table, sampler=sampler, schedule=schedule, noise=noise)]


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("steps", [1, 2, 4])
def test_numpy_and_torch_agree(name, steps, normal):
    z = normal(0)
    for a, b in zip(run(name, z, steps), run(name, torch.from_numpy(z), steps, torch_noise=True), strict=True):
        assert isinstance(a.z, np.ndarray)
        assert isinstance(b.z, torch.Tensor)
        assert a.z.dtype == np.float32
        assert b.z.dtype == torch.float32
        np.testing.assert_allclose(a.z, b.z.numpy(), atol=2e-5 * max(1, np.abs(a.z).max()), rtol=1e-5)


@pytest.mark.parametrize("name", STEPPED)
@pytest.mark.parametrize("kind", ["numpy", "torch"])
def test_items_at_their_own_timesteps_give_what_separate_runs_give(name, kind, normal):
    """A batch as an engine forms it: three items at different places, with 0, 1 and 2 steps behind them."""
    sampler = SAMPLERS[name]
    as_kind = torch.from_numpy if kind == "torch" else np.asarray
    z, z0, noise = (as_kind(normal(s)) for s in (1, 2, 3))
    t, t_next = [999, 499, 259], [759, 259, sampler.last]
    past = [
        Past(as_kind(np.array([-1, -1, 759])), as_kind(normal(4)), as_kind(normal(5))),
        Past(as_kind(np.array([-1, 759, 499])), as_kind(normal(6)), as_kind(normal(7))),
    ]
    together = sampler.advance(SD, z, z0, t, t_next, noise, past)
    for i in range(3):
        one = slice(i, i + 1)
        mine = [Past(p.t_B[one], p.z[one], p.z0[one]) for p in past if int(p.t_B[i]) >= 0]
        apart = sampler.advance(SD, z[one], z0[one], [t[i]], [t_next[i]], noise[one], mine)
        np.testing.assert_array_equal(np.asarray(together[one]), np.asarray(apart))


@pytest.mark.parametrize("name", STEPPED)
def test_advance_is_pure(name, normal):
    arrays = [normal(s) for s in (1, 2, 3, 4, 5)]
    copies = [a.copy() for a in arrays]
    z, z0, noise, old_z, old_z0 = arrays
    past = (Past(np.array([999] * 3), old_z, old_z0),)
    once, twice = (SAMPLERS[name].advance(SD, z, z0, [499] * 3, [259] * 3, noise, past) for _ in range(2))
    np.testing.assert_array_equal(once, twice)
    for array, copy in zip(arrays, copies, strict=True):
        np.testing.assert_array_equal(array, copy)


@pytest.mark.parametrize("name", COUNTED)
@pytest.mark.parametrize("strength", [0.01, 0.5, 1.0])
def test_one_step_gives_the_prediction(name, strength, normal):
    """Where a sampler ends clean, one step is the network's z0 itself; else z0 with the least noise of the schedule."""
    z = normal(0)
    (step,) = run(name, z, 1, strength=strength)
    assert (step.index, step.count, step.t_next) == (0, 1, SAMPLERS[name].last)
    tolerance = 3e-4 if SAMPLERS[name].last < 0 else 0.15 + 1e-3 * np.abs(step.z0).max()
    np.testing.assert_allclose(step.z, step.z0, atol=tolerance)


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("prediction", ["v_prediction", "epsilon", "sample"])
@pytest.mark.parametrize("steps", [1, 2, 8])
def test_zero_terminal_snr_stays_finite(name, prediction, steps, normal):
    schedule = Schedule(zero_terminal_snr(scaled_linear()), prediction=prediction)
    with np.errstate(all="raise", under="ignore"):
        assert all(np.isfinite(step.z).all() for step in run(name, normal(0), steps, schedule=schedule))


@pytest.mark.parametrize("name", STEPPED)
def test_float16_input_neither_overflows_nor_stays_float16(name):
    z = np.full((1, 1, 2, 2), 300.0, np.float16)
    after = SAMPLERS[name].advance(SD, z, -z, [999], [759], z, ())
    assert after.dtype == np.float32
    assert np.isfinite(after).all()


@pytest.mark.parametrize("name", ALL)
def test_fifty_steps_and_every_table_run(name, normal):
    z = normal(0, (1, 4, 2, 2))
    assert np.isfinite(run(name, z, 50)[-1].z).all()


@pytest.mark.parametrize("name", STEPPED)
def test_the_loop_asks_for_noise_only_where_it_counts(name, normal):
    asked = []
    z = normal(0)
    sampler = SAMPLERS[name]

    def noise(k):
        asked.append(k)
        return normal(k)

    steps = sample(denoiser_for(SD), z, (999, 499, 259), sampler=sampler, schedule=SD, noise=noise)
    assert asked == []
    assert [(s.index, s.count, s.t, s.t_next) for s in steps] == [
        (0, 3, 999, 499),
        (1, 3, 499, 259),
        (2, 3, 259, sampler.last),
    ]
    assert asked == ([0, 1] if sampler.noisy else [])


def test_the_loop_remembers_no_more_than_the_sampler_reads(normal):
    seen = []
    unipc = SAMPLERS["unipc"]

    def advance(schedule, z, z0, t_B, t_next_B, noise=None, past=()):
        seen.append([int(p.t_B[0]) for p in past])
        return unipc.advance(schedule, z, z0, t_B, t_next_B, noise, past)

    watched = replace(unipc, advance=advance)
    assert len([*sample(denoiser_for(SD), normal(0), (9, 7, 5, 3), sampler=watched, schedule=SD, noise=normal)]) == 4
    assert seen == [[], [9], [9, 7], [7, 5]]


# ---- the consistency function ----------------------------------------------------------------------------------------


def test_boundary_scalings_have_the_published_values(normal):
    c_skip, c_out = (x.ravel() for x in boundary_scalings([0, 19, 999], normal(0)))
    assert (c_skip[0], c_out[0]) == (1, 0)
    assert c_skip[1:] == pytest.approx([0.25 / (190**2 + 0.25), 2.5e-9], rel=1e-2)
    assert c_out[1:] == pytest.approx([0.9999965, 1.0], abs=1e-6)


@pytest.mark.parametrize("kind", [np.float16, np.float32])
def test_the_consistency_function_is_the_identity_at_0_and_the_prediction_elsewhere(kind, normal):
    z, z0 = normal(1).astype(kind), normal(2).astype(kind)
    f = consistency_function(z, z0, [0, 26, 999])
    assert f.dtype == np.float32
    np.testing.assert_array_equal(f[0], z[0])
    np.testing.assert_array_equal(consistency_function(z, z0, -1), z)
    np.testing.assert_allclose(f[1:], z0[1:], atol=2e-5)


def test_lcm_returns_to_the_noise_level_of_the_next_timestep(normal):
    z, z0, noise = normal(1), normal(2), normal(3)
    abar = scaled_linear()[499]
    after = advance_lcm(SD, z, z0, 999, 499, noise)
    np.testing.assert_allclose(after, math.sqrt(abar) * z0 + math.sqrt(1 - abar) * noise, atol=1e-5)
    np.testing.assert_array_equal(advance_lcm(SD, z, z0, 0, -1), z)


@pytest.mark.parametrize("gamma", [0.0, 0.3, 1.0])
def test_tcd_goes_past_the_next_timestep_and_comes_back(gamma, normal):
    z, z0, noise = normal(1), normal(2), normal(3)
    s = math.floor((1 - gamma) * 499)
    ratio = scaled_linear()[499] / scaled_linear()[s]
    ahead = ddim_map(SD, z, z0, 999, s)
    expected = math.sqrt(ratio) * ahead + math.sqrt(1 - ratio) * noise
    np.testing.assert_allclose(advance_tcd(SD, z, z0, 999, 499, noise, gamma=gamma), expected, atol=1e-5)


@pytest.mark.parametrize("gamma", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("last", [0, -1])
def test_the_last_tcd_step_has_no_room_for_noise(gamma, last, normal):
    z, z0 = normal(1), normal(2)
    expected = ddim_map(SD, z, z0, 259, last)
    for noise in (None, normal(3)):
        np.testing.assert_allclose(advance_tcd(SD, z, z0, 259, last, noise, gamma=gamma), expected, atol=1e-6)


@pytest.mark.parametrize("t", [0, 19, 499, 999])
def test_the_ddim_map_is_the_identity_at_its_own_timestep(t, normal):
    z, z0 = normal(1), normal(2)
    np.testing.assert_allclose(ddim_map(SD, z, z0, t, t), z, atol=2e-6)
    np.testing.assert_array_equal(ddim_map(SD, z, z0, t, -1), z0)


def test_ddim_map_composes_along_its_own_line(normal):
    """With (z0, eps) frozen, two jumps are one: what makes the target times of TCD and PCM consistent."""
    z, z0 = normal(1), normal(2)
    twice = ddim_map(SD, ddim_map(SD, z, z0, 999, 499), z0, 499, 99)
    np.testing.assert_allclose(twice, ddim_map(SD, z, z0, 999, 99), atol=1e-5)


@pytest.mark.parametrize("phases", [1, 2, 4, 8])
def test_trailing_timesteps_land_on_the_phase_edges(phases):
    landed = {*timesteps("trailing", phases)[1:], SAMPLERS["pcm"].last}
    assert landed == set(phase_edges(phases))


def test_a_schedule_used_for_pictures_can_be_trained_with_afterwards():
    """Tables made under inference_mode must not poison a later gradient."""
    schedule = Schedule(scaled_linear(), prediction="v_prediction")
    z = torch.ones(1, 4, 2, 2)
    with torch.inference_mode():
        ddim_map(schedule, z, z, 999, 499)
    output = torch.ones_like(z, requires_grad=True)
    ddim_map(schedule, z, to_z0(schedule, z, output, 999), 999, 499).sum().backward()
    assert output.grad is not None
    assert torch.isfinite(output.grad).all()


# ---- names -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ALL)
def test_a_sampler_answers_to_its_name_and_its_label(name):
    sampler = SAMPLERS[name]
    for spelling in (sampler.name, sampler.label, sampler.label.upper(), f" {sampler.label.lower()} "):
        assert sampler_named(spelling) is sampler
    assert timesteps(sampler.table, 4)


def test_labels_are_those_of_a1111():
    """The list of its version 1.10, `sd_samplers_kdiffusion.py`, and our TCD and PCM."""
    labels = "LCM, DDIM, PLMS, UniPC, Euler, Euler a, LMS, Heun, DPM2, DPM2 a, DPM++ 2S a, DPM++ 2M, DPM++ SDE, "
    labels += "DPM++ 2M SDE, DPM++ 2M SDE Heun, DPM++ 3M SDE, DPM fast, DPM adaptive, Restart"
    assert {s.label for s in SAMPLERS.values()} == {*labels.split(", "), "TCD", "PCM"}


@pytest.mark.parametrize(
    ("name", "sampler", "table"),
    [
        ("LMS Karras", "lms", "karras"),
        ("dpm2 a karras", "dpm2_a", "karras"),
        ("DPM++ 2M SDE Heun Karras", "dpmpp_2m_sde_heun", "karras"),
        ("DPM++ 3M SDE Exponential", "dpmpp_3m_sde", "exponential"),
        ("Euler SGM Uniform", "euler", "sgm_uniform"),
        ("DPM++ 2M SDE Heun", "dpmpp_2m_sde_heun", "trailing"),
    ],
)
def test_a_name_may_end_in_a_schedule_type(name, sampler, table):
    assert sampler_named(name) == replace(SAMPLERS[sampler], table=table)


def test_what_automatic_means_is_that_of_a1111():
    """`sd_samplers_kdiffusion.py`, version 1.10; there "" is Uniform."""
    karras = {"DPM2", "DPM2 a", "DPM++ 2S a", "DPM++ 2M", "DPM++ SDE", "Restart"}
    exponential = {"DPM++ 2M SDE", "DPM++ 2M SDE Heun", "DPM++ 3M SDE"}
    others = {"LCM": "a1111", "DDIM": "ddim", "PLMS": "ddim", "UniPC": "sgm_uniform", "TCD": "", "PCM": ""}
    for sampler in SAMPLERS.values():
        kind = "karras" if sampler.label in karras else "exponential" if sampler.label in exponential else "uniform"
        assert sampler.automatic == others.get(sampler.label, kind)
    assert {s.label for s in SAMPLERS.values() if s.discard} == {"DPM2", "DPM2 a", "DPM++ 3M SDE"}


def test_gamma_is_tcds_own(normal):
    z, z0, noise = normal(1), normal(2), normal(3)
    sampler = sampler_named("TCD", gamma=0.0)
    np.testing.assert_array_equal(
        sampler.advance(SD, z, z0, 999, 499, noise), advance_tcd(SD, z, z0, 999, 499, noise, gamma=0.0)
    )
    with pytest.raises(RequestError, match="LCM was asked for"):
        sampler_named("lcm", gamma=0.3)
    with pytest.raises(RequestError, match="from 0"):
        sampler_named("tcd", gamma=1.1)
    with pytest.raises(RequestError, match=r"no sampler 'best karras'.*DPM\+\+ 2M"):
        sampler_named("best karras")
