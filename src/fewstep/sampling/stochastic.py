"""Samplers that put noise back after every step."""

from collections.abc import Sequence

from fewstep.sampling.arrays import Array, Timesteps, float32, where_not_zero
from fewstep.sampling.ode import Past
from fewstep.sampling.schedule import Schedule, eps_from_z0


def advance_euler_a(
    schedule: Schedule,
    z: Array,
    z0: Array,
    t_B: Timesteps,
    t_next_B: Timesteps,
    noise: Array | None = None,
    past: Sequence[Past] = (),
) -> Array:
    """One ancestral Euler step (k-diffusion's `sample_euler_ancestral` with eta = 1), for variance-preserving z.

    With the noise levels k = sigma / alpha: k_up^2 = k'^2 (1 - k'^2 / k^2), k_down = k'^2 / k. Times alpha' this is
    z' = alpha' z0 + sigma' (q eps + sqrt(1 - q^2) noise), q = k' / k, which is finite at zero signal too.
    At t_next = -1 the clean latent is returned and `noise` may be None.
    """
    alpha, sigma = schedule.alpha_sigma(t_B, z)
    alpha_next, sigma_next = schedule.alpha_sigma(t_next_B, z)
    q = sigma_next * alpha / where_not_zero(alpha_next * sigma)
    eps = eps_from_z0(schedule, z, z0, t_B)
    deterministic = alpha_next * float32(z0) + sigma_next * q * eps
    if noise is None:
        return deterministic
    return deterministic + sigma_next * (1.0 - q * q).clip(0.0) ** 0.5 * float32(noise)
