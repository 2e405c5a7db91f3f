"""The noise schedule and the meaning of a network's output, against closed forms."""

import numpy as np
import pytest
import torch

from fewstep.errors import CheckpointError
from fewstep.sampling import (
    Schedule,
    add_noise,
    eps_from_z0,
    linear,
    scaled_linear,
    target,
    to_eps,
    to_z0,
    zero_terminal_snr,
)
from fewstep.sampling.schedule import fade_and_added

T_B = [0, 19, 999]


def test_scaled_linear_has_the_published_values():
    """Measured values of Stable Diffusion's schedule."""
    abar = scaled_linear()
    expected = {0: 0.99915, 19: 0.98224, 39: 0.96290, 259: 0.65898, 499: 0.27767, 759: 0.05221, 999: 0.00466}
    assert {t: round(abar[t], 5) for t in expected} == expected
    assert len(scaled_linear(count=5)) == len(linear(count=5)) == 5
    assert scaled_linear(count=1) == pytest.approx((1 - 0.00085,))


def test_alpha_sigma_keeps_the_variance(sd, normal):
    z = normal(0, (1000, 1))
    alpha, sigma = sd.alpha_sigma(np.arange(1000), z)
    np.testing.assert_allclose(alpha**2 + sigma**2, 1, atol=2e-7)
    np.testing.assert_allclose(alpha[:, 0] ** 2, scaled_linear(), atol=2e-7)
    assert (sigma[1:] > sigma[:-1]).all()
    assert alpha.dtype == sigma.dtype == np.float32


@pytest.mark.parametrize("like", [np.zeros((3, 4, 2, 2), np.float16), torch.zeros(3, 4, 2, 2, dtype=torch.bfloat16)])
def test_clean_is_exact_and_shapes_follow_the_latent(sd, like):
    alpha, sigma = sd.alpha_sigma([-1, 0, 999], like)
    assert tuple(alpha.shape) == tuple(sigma.shape) == (3, 1, 1, 1)
    assert (alpha.reshape(-1)[0], sigma.reshape(-1)[0]) == (1.0, 0.0)
    assert float(sigma.reshape(-1)[1]) == pytest.approx(0.02915, abs=1e-5)
    assert float((sigma / alpha).reshape(-1)[2]) == pytest.approx(14.6, abs=0.05)
    assert "float32" in str(alpha.dtype)
    assert tuple(sd.alpha_sigma(7, like)[0].shape) == (1, 1, 1, 1)


@pytest.mark.parametrize("t", [-2, 1000])
@pytest.mark.parametrize("like", [np.zeros((1, 1)), torch.zeros(1, 1)])
def test_a_timestep_never_wraps_around(sd, t, like):
    with pytest.raises(ValueError, match=r"outside -1\.\.999"):
        sd.alpha_sigma([t], like)


def test_output_round_trips_in_every_prediction_type(schedule, normal):
    z0, noise = normal(1), normal(2)
    z = add_noise(schedule, z0, noise, T_B)
    output = target(schedule, z0, noise, T_B)
    np.testing.assert_allclose(to_z0(schedule, z, output, T_B), z0, atol=2e-5)
    np.testing.assert_allclose(to_eps(schedule, z, output, T_B), noise, atol=2e-5)
    np.testing.assert_allclose(eps_from_z0(schedule, z, z0, T_B), noise, atol=2e-5)


def test_v_is_the_rotated_pair(normal):
    """v = alpha eps - sigma z0 at the one timestep where both weights can be read off by hand."""
    schedule = Schedule((0.64, 0.36), prediction="v_prediction")
    z0, noise = normal(1), normal(2)
    np.testing.assert_allclose(target(schedule, z0, noise, 0), 0.8 * noise - 0.6 * z0, atol=1e-6)
    np.testing.assert_allclose(add_noise(schedule, z0, noise, 0), 0.8 * z0 + 0.6 * noise, atol=1e-6)


def test_half_precision_is_computed_in_single(schedule, normal):
    z0, noise = (torch.from_numpy(normal(s)).bfloat16() for s in (1, 2))
    z = add_noise(schedule, z0, noise, T_B)
    assert z.dtype == torch.float32
    torch.testing.assert_close(z, add_noise(schedule, z0.float(), noise.float(), T_B), rtol=0, atol=0)
    for convert in (to_z0, to_eps, eps_from_z0):
        assert convert(schedule, z0, noise, T_B).dtype == torch.float32


def test_float16_does_not_overflow_at_the_last_timestep(schedule):
    z = np.full((1, 1, 2, 2), 6e4, np.float16)
    assert np.isfinite(to_z0(schedule, z, -z, [999])).all()


def test_add_noise_at_minus_one_and_zero(sd, normal):
    z0, noise = normal(1), normal(2)
    np.testing.assert_array_equal(add_noise(sd, z0, noise, -1), z0)
    np.testing.assert_allclose(add_noise(sd, z0, noise, 0) - z0, 0.02915 * noise, atol=2e-3)


def test_zero_terminal_snr_keeps_the_first_and_empties_the_last():
    """Lin et al., algorithm 1: sqrt(abar) is shifted and scaled, so its differences keep their proportions."""
    before, after = np.sqrt(scaled_linear()), np.sqrt(zero_terminal_snr(scaled_linear()))
    assert after[0] == before[0]
    assert after[-1] == 0.0
    ratio = np.diff(after) / np.diff(before)
    np.testing.assert_allclose(ratio, ratio[0], rtol=1e-9)


def test_zero_terminal_snr_is_finite_in_every_prediction_type(schedule, normal):
    rescaled = Schedule(zero_terminal_snr(scaled_linear()), prediction=schedule.prediction)
    z, output = normal(1), normal(2)
    for convert in (to_z0, to_eps, eps_from_z0):
        assert np.isfinite(convert(rescaled, z, output, 999)).all()
    if schedule.prediction == "v_prediction":
        np.testing.assert_allclose(to_z0(rescaled, z, output, 999), -output, atol=1e-6)
        np.testing.assert_allclose(to_eps(rescaled, z, output, 999), z, atol=1e-6)


@pytest.mark.parametrize("values", [(), (0.5, 0.5), (0.5, 0.6), (1.1, 0.5), (0.5, -0.1), (float("nan"), 0.5)])
def test_what_is_no_schedule_is_refused(values):
    with pytest.raises(CheckpointError, match="schedule"):
        Schedule(values)


def test_an_unknown_prediction_is_refused_by_name():
    with pytest.raises(CheckpointError, match="'flow'"):
        Schedule(scaled_linear(), prediction="flow")  # pyright: ignore[reportArgumentType]


def test_schedules_are_values():
    one, two = Schedule(list(scaled_linear())), Schedule(scaled_linear())  # pyright: ignore[reportArgumentType]
    one.alpha_sigma(0, np.zeros((1, 1)))
    assert one == two
    assert hash(one) == hash(two)
    assert one != Schedule(scaled_linear(), prediction="sample")


@pytest.mark.parametrize(("t", "to"), [(0, 999), (249, 250), (499, 499)])
def test_noise_added_on_the_way_ends_at_the_schedules_own_signal_and_noise(t, to):
    schedule, like = Schedule(scaled_linear()), np.zeros((1, 1, 1, 1), np.float32)
    (alpha, sigma), (alpha_to, sigma_to) = (map(np.squeeze, schedule.alpha_sigma([at], like)) for at in (t, to))
    fade, added = map(np.squeeze, fade_and_added(schedule, [t], [to], like))
    assert float(fade * alpha) == pytest.approx(float(alpha_to), rel=1e-5)
    assert float((fade * sigma) ** 2 + added**2) == pytest.approx(float(sigma_to) ** 2, rel=1e-4)
