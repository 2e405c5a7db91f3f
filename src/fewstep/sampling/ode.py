"""Solvers of the probability-flow ODE, written for the latents z themselves.

k-diffusion and diffusers run Euler and its kin on x = z / alpha over the noise level sigma / alpha. The same steps in
terms of z are shorter, need no rescaling of the network's input, and stay finite where alpha is 0. Each function
takes one step from t to t_next, per item, and is pure; at t_next = -1 it arrives at the clean latent.

An item of a batch that has no earlier step yet is told by t = -1 in `Past` (with any finite z and z0 there); the
solver lowers its order for it.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from fewstep.sampling.arrays import Array, Timesteps, float32, namespace, where_not_zero
from fewstep.sampling.schedule import Schedule, eps_from_z0


@dataclass(frozen=True)
class Past:
    """One earlier step: its timesteps (-1 for an item that has none), the latent it began with, the z0 predicted."""

    t_B: Array
    z: Array
    z0: Array


def ddim_map(schedule: Schedule, z: Array, z0: Array, t_B: Timesteps, s_B: Timesteps) -> Array:
    """From t to s along the straight line of frozen (z0, eps): alpha_s z0 + sigma_s eps. At s = t it returns z.

    Song et al. 2020, arXiv:2010.02502, eq. 12 with no noise. The one map under every distilled sampler here.
    """
    alpha, sigma = schedule.alpha_sigma(s_B, z)
    return alpha * float32(z0) + sigma * eps_from_z0(schedule, z, z0, t_B)


def advance_ddim(
    schedule: Schedule,
    z: Array,
    z0: Array,
    t_B: Timesteps,
    t_next_B: Timesteps,
    noise: Array | None = None,
    past: Sequence[Past] = (),
) -> Array:
    """One DDIM step with eta = 0: `ddim_map` from t to t_next."""
    return ddim_map(schedule, z, z0, t_B, t_next_B)


def advance_euler(
    schedule: Schedule,
    z: Array,
    z0: Array,
    t_B: Timesteps,
    t_next_B: Timesteps,
    noise: Array | None = None,
    past: Sequence[Past] = (),
) -> Array:
    """One Euler step of dx/dk = (x - z0) / k over the noise level k = sigma / alpha, x = z / alpha.

    Karras et al. 2022, arXiv:2206.00364, algorithm 1 without its second-order correction. x' = z0 + k' (x - z0) / k,
    and (x - z0) / k is eps: for a variance-preserving latent this is DDIM. The two differ in where they end.
    """
    return ddim_map(schedule, z, z0, t_B, t_next_B)


def advance_dpmpp_2m(
    schedule: Schedule,
    z: Array,
    z0: Array,
    t_B: Timesteps,
    t_next_B: Timesteps,
    noise: Array | None = None,
    past: Sequence[Past] = (),
) -> Array:
    """One step of DPM-Solver++(2M), midpoint form (Lu et al. 2022, arXiv:2211.01095, algorithm 2).

    The first step (no past) and the step to t_next = -1 are of first order, which is `ddim_map`; so is a step whose
    past lay at zero signal-to-noise ratio, where log(alpha / sigma) has no value.
    """
    if past:
        z0 = float32(z0) + 0.5 * _slope(schedule, z0, t_B, t_next_B, past[-1])[0]
    return _exponential_step(schedule, z, z0, t_B, t_next_B)


def advance_unipc(
    schedule: Schedule,
    z: Array,
    z0: Array,
    t_B: Timesteps,
    t_next_B: Timesteps,
    noise: Array | None = None,
    past: Sequence[Past] = (),
) -> Array:
    """One step of UniPC-2 with B(h) = e^h - 1 ("bh2"), predicting z0 (Zhao et al. 2023, arXiv:2302.04867).

    First the corrector: z0, which has just been predicted at z, mends the step that led to z. Then the predictor goes
    on from the mended latent. Both start from the same first-order step, so the corrector is an increment to z and
    no mended latent has to be remembered. First order is used where `advance_dpmpp_2m` does so.
    """
    if past:
        z = _corrected(schedule, z, z0, t_B, past)
    return advance_dpmpp_2m(schedule, z, z0, t_B, t_next_B, None, past)


def _exponential_step(schedule: Schedule, z: Array, z0: Array, t_B: Timesteps, s_B: Timesteps) -> Array:
    """(sigma_s / sigma_t) z + (alpha_s - alpha_t sigma_s / sigma_t) z0: `ddim_map` in the order of its terms that
    also holds for a z0 that was extrapolated and is no longer what the network saw in z.
    """
    alpha_t, sigma_t = schedule.alpha_sigma(t_B, z)
    alpha_s, sigma_s = schedule.alpha_sigma(s_B, z)
    ratio = sigma_s / where_not_zero(sigma_t)
    return ratio * float32(z) + (alpha_s - ratio * alpha_t) * float32(z0)


def _half_log_snr(schedule: Schedule, t_B: Timesteps, like: Array) -> tuple[Array, Array]:
    """Half the log-SNR, lambda = log(alpha / sigma), and where it has a value (at zero noise or signal it has none)."""
    alpha, sigma = schedule.alpha_sigma(t_B, like)
    xp = namespace(like)
    return xp.log(where_not_zero(alpha)) - xp.log(where_not_zero(sigma)), (alpha > 0) & (sigma > 0)


def _slope(schedule: Schedule, z0: Array, t_B: Timesteps, s_B: Timesteps, earlier: Past) -> tuple[Array, Array]:
    """How much z0 will change over the coming step h if it goes on as over the last one, h_0; and h / h_0.

    Both are 0 for an item whose steps have no length in lambda: no past, or one end at zero noise or zero signal.
    """
    now, ok_now = _half_log_snr(schedule, t_B, z0)
    then, ok_then = _half_log_snr(schedule, s_B, z0)
    before, ok_before = _half_log_snr(schedule, earlier.t_B, z0)
    ok = ok_now & ok_then & ok_before & (now != before)
    ratio = namespace(z0).where(ok, (then - now) / where_not_zero(now - before), 0.0 * now)
    return ratio * (float32(z0) - float32(earlier.z0)), ratio


def _corrected(schedule: Schedule, z: Array, z0: Array, t_B: Timesteps, past: Sequence[Past]) -> Array:
    """The latent after UniC: the change of z0 that the last step assumed gives way to the change then found.

    Items without a last step, or whose last step began at zero signal-to-noise ratio, are returned as they are.
    """
    xp = namespace(z)
    last = past[-1]
    now, ok_now = _half_log_snr(schedule, t_B, z)
    before, ok_before = _half_log_snr(schedule, last.t_B, z)
    ok = ok_now & ok_before & (now != before)
    h = xp.where(ok, now - before, 1.0 + 0.0 * now)
    found = float32(z0) - float32(last.z0)
    slope, ratio = _slope(schedule, last.z0, last.t_B, t_B, past[-2]) if len(past) > 1 else (0.0 * found, 0.0 * h)
    on_slope, on_found = _unic_weights(h, ratio)
    alpha, _ = schedule.alpha_sigma(t_B, z)
    change = (on_slope - 0.5) * slope + on_found * found
    return xp.where(ok, float32(z) - alpha * xp.expm1(-h) * change, float32(z))


def _unic_weights(h: Array, ratio: Array) -> tuple[Array, Array]:
    """UniC's weights of the slope assumed and of the change found, for a step h in lambda (Zhao et al. 2023).

    The solution of R rho = b for one and two earlier points. `ratio` is h / h_0, or 0 for an item that had only one:
    there the weight is 1/2, as in the authors' code, which keeps the order.
    """
    xp = namespace(h)
    b_h = xp.expm1(-h)
    phi_2 = -b_h / h - 1.0
    phi_3 = -phi_2 / h - 0.5
    on_slope = (phi_2 - 2.0 * phi_3) / b_h * ratio / (1.0 + ratio)
    on_found = xp.where(ratio == 0, 0.5 + 0.0 * h, phi_2 / b_h - on_slope)
    return on_slope, on_found
