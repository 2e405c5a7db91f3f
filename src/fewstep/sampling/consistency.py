"""Consistency models: the boundary condition, and one sampling step of LCM, TCD and PCM.

`z0` is always the network's plain estimate of the clean latent; the boundary condition is applied here.
"""

from collections.abc import Sequence

from fewstep.sampling.arrays import Array, Timesteps, are_whole, broadcast, float32, indices, namespace, times
from fewstep.sampling.ode import Past, ddim_map
from fewstep.sampling.schedule import Schedule, fade_and_added

TIMESTEP_SCALING = 10.0
SIGMA_DATA = 0.5
TCD_GAMMA = 0.3


def boundary_scalings(t_B: Timesteps, like: Array) -> tuple[Array, Array]:
    """(c_skip, c_out) of Luo et al. 2023, arXiv:2310.04378, section 4.1; float32, shaped to multiply `like`.

    tau = 10 t, c_skip = .25 / (tau^2 + .25), c_out = tau / sqrt(tau^2 + .25), t the *integer* timestep. In effect a
    switch: (1, 0) at t = 0 (and -1), the plain prediction at every other integer. In float16, tau^2 overflows from 26.

    >>> c_skip, c_out = boundary_scalings([0, 19], namespace(None).zeros((2, 1)))
    >>> c_skip.round(7).ravel().tolist()[0], c_out.ravel().tolist()[0], bool(c_skip[1] < 1e-5)
    (1.0, 0.0, True)
    """
    tau = broadcast(float32(times(t_B, like=like)), like=like).clip(0.0) * TIMESTEP_SCALING
    total = tau * tau + SIGMA_DATA**2
    return SIGMA_DATA**2 / total, tau / total**0.5


def consistency_function(z: Array, z0: Array, t_B: Timesteps) -> Array:
    """f(z, t) = c_skip z + c_out z0: exactly z at t = 0 (Song et al. 2023, arXiv:2303.01469, eq. 5)."""
    c_skip, c_out = boundary_scalings(t_B, z)
    return c_skip * float32(z) + c_out * float32(z0)


def advance_lcm(
    schedule: Schedule,
    z: Array,
    z0: Array,
    t_B: Timesteps,
    t_next_B: Timesteps,
    noise: Array | None = None,
    past: Sequence[Past] = (),
) -> Array:
    """One step of multistep consistency sampling: f(z, t), noised afresh to t_next (Luo et al. 2023).

    At t_next = -1, the last step, f itself is returned and `noise` may be None.
    """
    alpha, sigma = schedule.alpha_sigma(t_next_B, z)
    clean = alpha * consistency_function(z, z0, t_B)
    return clean if noise is None else clean + sigma * float32(noise)


def advance_tcd(
    schedule: Schedule,
    z: Array,
    z0: Array,
    t_B: Timesteps,
    t_next_B: Timesteps,
    noise: Array | None = None,
    past: Sequence[Past] = (),
    *,
    gamma: float = TCD_GAMMA,
) -> Array:
    """One step of strategic stochastic sampling (Zheng et al. 2024, arXiv:2402.19159, algorithm 4).

    Past t_next by the DDIM map, to s' = floor((1 - gamma) t_next), which is left a fraction where t_next is one, and
    back by noising. `gamma` 0 is deterministic, 1 comes close to LCM (s' = 0). The last step goes to t_next = 0, where
    `noise` has no weight and may be None.
    """
    xp = namespace(z)
    t_next_B = times(t_next_B, like=z)
    s_B = (1 - gamma) * float32(t_next_B)
    s_B = xp.minimum(t_next_B, indices(xp.floor(s_B), like=z) if are_whole(t_next_B) else s_B)
    ahead = ddim_map(schedule, z, z0, t_B, s_B)
    if noise is None:
        return ahead
    fade, added = fade_and_added(schedule, s_B, t_next_B, z)
    return fade * ahead + added * float32(noise)


def advance_phased(
    schedule: Schedule,
    z: Array,
    z0: Array,
    t_B: Timesteps,
    t_next_B: Timesteps,
    noise: Array | None = None,
    past: Sequence[Past] = (),
) -> Array:
    """One step of a phased consistency model: the DDIM map to the edge of the phase (Wang et al. 2024,
    arXiv:2405.18407). Deterministic; with trailing timesteps t_next is the edge (see `phase_edges`).
    """
    return ddim_map(schedule, z, z0, t_B, t_next_B)


def phase_edges(phases: int, *, count: int = 1000) -> tuple[int, ...]:
    """The lower edges of the phases, rising: where trailing timesteps land, so that training meets sampling.

    >>> phase_edges(4)
    (0, 249, 499, 749)
    >>> phase_edges(1)
    (0,)
    """
    return tuple(max(round(i * count / phases) - 1, 0) for i in range(phases))
