"""The samplers that are walks, against k-diffusion's formulas in float64: in t = -log sigma and h, as published.

The reference sees the same network and draws the same noises in the same order; the noise of DPM++ SDE comes from a
path of Brownian motion over sigma, as torchsde's tree would give it.
"""

import math
from itertools import pairwise

import numpy as np
import pytest

from fewstep.sampling import SAMPLERS, Schedule, evaluations, sample, scaled_linear, timesteps
from fewstep.sampling.walk import lms_weights, restart_path

SD = Schedule(scaled_linear())
LOG_SIGMAS = np.log(np.sqrt((1 - np.array(scaled_linear())) / np.array(scaled_linear())))
SHAPE = (2, 3, 4, 4)
WALKS = [name for name in SAMPLERS if SAMPLERS[name].walk]


def network(z, t):
    """The clean latent that a made-up network sees."""
    return 0.5 * z + 0.4 * np.sin(2 * z + t / 300)


class Reference:
    """k-diffusion's `model(x, sigma)` and its noise, with the number of calls."""

    def __init__(self, seed):
        self.calls, self.draws, self.seed = 0, 0, seed

    def model(self, x, sigma):
        self.calls += 1
        below = -1 + sigma / math.exp(LOG_SIGMAS[0])
        t = below if below < 0 else np.interp(math.log(sigma), LOG_SIGMAS, np.arange(1000))
        return network(x / math.hypot(1, sigma), t)

    def noise(self):
        self.draws += 1
        return drawn(self.seed, self.draws - 1)

    def eps(self, x, sigma):
        return (x - self.model(x, sigma)) / sigma


def drawn(seed, k):
    return np.random.default_rng((seed, k)).standard_normal(SHAPE)


def ancestral_step(a, b):
    up = min(b, math.sqrt(b**2 * (a**2 - b**2) / a**2)) if b else 0.0
    return math.sqrt(b**2 - up**2), up


def sample_heun(r, x, sigmas):
    for a, b in pairwise(sigmas):
        d = r.eps(x, a)
        x_2 = x + d * (b - a)
        x = x_2 if b == 0 else x + (d + r.eps(x_2, b)) / 2 * (b - a)
    return x


def sample_dpm_2(r, x, sigmas, ancestral=False):
    for a, b in pairwise(sigmas):
        down, up = ancestral_step(a, b) if ancestral else (b, 0.0)
        d = r.eps(x, a)
        if down == 0:
            x = x + d * (down - a)
        else:
            middle = math.exp((math.log(a) + math.log(down)) / 2)
            x = x + r.eps(x + d * (middle - a), middle) * (down - a)
            x = x + (r.noise() * up if ancestral else 0)
    return x


def sample_lms(r, x, sigmas):
    ds = []
    for i, (_, b) in enumerate(pairwise(sigmas)):
        ds = [*ds, r.eps(x, sigmas[i])][-4:]
        nodes = np.array(sigmas[max(0, i - 3) : i + 1])
        for j in range(len(nodes)):
            others = np.delete(nodes, j)
            integral = np.polyint(np.atleast_1d(np.poly(others)) / np.prod(nodes[j] - others))
            x = x + (np.polyval(integral, b) - np.polyval(integral, sigmas[i])) * ds[j]
    return x


def sample_plms(r, x, sigmas):
    old = []
    for i, (a, b) in enumerate(pairwise(sigmas)):
        e = r.eps(x, a)
        if len(old) == 0:
            prime = e if len(sigmas) == 2 else (e + r.eps(x + (b - a) * e, b)) / 2
        elif len(old) == 1:
            prime = (3 * e - old[-1]) / 2
        elif len(old) == 2:
            prime = (23 * e - 16 * old[-1] + 5 * old[-2]) / 12
        else:
            prime = (55 * e - 59 * old[-1] + 37 * old[-2] - 9 * old[-3]) / 24
        assert len(old) == i
        old.append(e)
        x = x + (b - a) * prime
    return x


def sample_dpmpp_2s_a(r, x, sigmas):
    for a, b in pairwise(sigmas):
        denoised = r.model(x, a)
        down, up = ancestral_step(a, b)
        if down == 0:
            x = denoised
        else:
            t, t_next = -math.log(a), -math.log(down)
            h = t_next - t
            s = t + h / 2
            x_2 = math.exp(-s) / math.exp(-t) * x - math.expm1(-h / 2) * denoised
            x = math.exp(-t_next) / math.exp(-t) * x - math.expm1(-h) * r.model(x_2, math.exp(-s))
        if b > 0:
            x = x + r.noise() * up
    return x


def sample_dpmpp_sde(r, x, sigmas):
    for a, b in pairwise(sigmas):
        denoised = r.model(x, a)
        if b == 0:
            x = denoised
            continue
        t, s = -math.log(a), -(math.log(a) + math.log(b)) / 2
        middle = math.exp(-s)
        to_middle = r.noise() * math.sqrt(a - middle)  # the path over sigma
        down, up = ancestral_step(a, middle)
        x_2 = down / a * x - math.expm1(t + math.log(down)) * denoised + to_middle / math.sqrt(a - middle) * up
        denoised_2 = r.model(x_2, middle)
        whole = to_middle + r.noise() * math.sqrt(middle - b)
        down, up = ancestral_step(a, b)
        x = down / a * x - math.expm1(t + math.log(down)) * denoised_2 + whole / math.sqrt(a - b) * up
    return x


def sample_dpmpp_2m_sde(r, x, sigmas, heun=False):
    old, h_last = None, None
    for a, b in pairwise(sigmas):
        denoised = r.model(x, a)
        if b == 0:
            return denoised
        h = math.log(a) - math.log(b)
        x = b / a * math.exp(-h) * x - math.expm1(-2 * h) * denoised
        if old is not None:
            phi = -math.expm1(-2 * h) / (-2 * h) + 1 if heun else -0.5 * math.expm1(-2 * h)
            x = x + phi / (h_last / h) * (denoised - old)
        x = x + r.noise() * b * math.sqrt(-math.expm1(-2 * h))
        old, h_last = denoised, h
    return x


def sample_dpmpp_3m_sde(r, x, sigmas):
    d_1 = d_2 = h_1 = h_2 = None
    for a, b in pairwise(sigmas):
        denoised = r.model(x, a)
        if b == 0:
            return denoised
        h = math.log(a) - math.log(b)
        x = math.exp(-2 * h) * x - math.expm1(-2 * h) * denoised
        phi_2 = math.expm1(-2 * h) / (2 * h) + 1
        phi_3 = phi_2 / (2 * h) - 0.5
        if h_2 is not None:
            r_0, r_1 = h_1 / h, h_2 / h
            d1_0, d1_1 = (denoised - d_1) / r_0, (d_1 - d_2) / r_1
            d1 = d1_0 + (d1_0 - d1_1) * r_0 / (r_0 + r_1)
            x = x + phi_2 * d1 - phi_3 * (d1_0 - d1_1) / (r_0 + r_1)
        elif h_1 is not None:
            x = x + phi_2 * (denoised - d_1) / (h_1 / h)
        x = x + r.noise() * b * math.sqrt(-math.expm1(-2 * h))
        d_1, d_2, h_1, h_2 = denoised, d_1, h, h_1
    return x


def solver_step(r, x, t, t_next, order, r1, r2=2 / 3):
    """DPM-Solver of order 1, 2 or 3 from t to t_next = t + h (Lu et al. 2022, algorithms 1 and 2)."""
    h = t_next - t
    eps = r.eps(x, math.exp(-t))
    x_1 = x - math.exp(-t_next) * math.expm1(h) * eps
    if order == 1:
        return x_1
    s1 = t + r1 * h
    eps_r1 = r.eps(x - math.exp(-s1) * math.expm1(r1 * h) * eps, math.exp(-s1))
    if order == 2:
        return x_1 - math.exp(-t_next) / (2 * r1) * math.expm1(h) * (eps_r1 - eps)
    s2 = t + r2 * h
    u2 = x - math.exp(-s2) * math.expm1(r2 * h) * eps
    u2 = u2 - math.exp(-s2) * (r2 / r1) * (math.expm1(r2 * h) / (r2 * h) - 1) * (eps_r1 - eps)
    return x_1 - math.exp(-t_next) / r2 * (math.expm1(h) / h - 1) * (r.eps(u2, math.exp(-s2)) - eps)


def sample_dpm_fast(r, x, sigmas):
    nfe, t_end = len(sigmas) - 1, -math.log(sigmas[-1])
    m = math.floor(nfe / 3) + 1
    ts = np.linspace(-math.log(sigmas[0]), t_end, m + 1)
    orders = [3] * (m - 2) + [2, 1] if nfe % 3 == 0 else [3] * (m - 1) + [nfe % 3]
    for i, order in enumerate(orders):
        down, _ = ancestral_step(math.exp(-ts[i]), math.exp(-ts[i + 1]))
        t_next = min(t_end, -math.log(down))
        up = math.sqrt(max(math.exp(-2 * ts[i + 1]) - math.exp(-2 * t_next), 0))
        x = solver_step(r, x, ts[i], t_next, order, r1=1 / 2 if order == 2 else 1 / 3)
        if i + 1 < len(orders):
            x = x + up * r.noise()
    return x


def sample_dpm_adaptive(r, x, sigmas, rtol=0.05, atol=0.0078):
    s, t_end, h, x_prev = -math.log(sigmas[0]), -math.log(sigmas[-1]), 0.05, x
    while s < t_end - 1e-5:
        t = min(t_end, s + h)
        t_next = min(t_end, -math.log(ancestral_step(math.exp(-s), math.exp(-t))[0]))
        up = math.sqrt(max(math.exp(-2 * t) - math.exp(-2 * t_next), 0))
        low = solver_step(r, x, s, t_next, 2, r1=1 / 3)
        r.calls -= 2  # the first two predictions serve both
        high = solver_step(r, x, s, t_next, 3, r1=1 / 3)
        delta = np.maximum(atol, rtol * np.maximum(np.abs(low), np.abs(x_prev)))
        error = np.linalg.norm((low - high) / delta) / x.size**0.5
        factor = 1 + math.atan((1 / (error + 1e-8)) ** (1 / 1.5) - 1)
        if factor >= 0.81:
            x_prev, x, s = low, high + (up * r.noise() if t < t_end else 0), t
        h *= factor
    return x


def sample_restart(r, x, sigmas):
    last = None
    for a, b in restart_path(sigmas):
        if last is not None and a > last * (1 + 1e-9):
            x = x + r.noise() * math.sqrt(a**2 - last**2)
        x, last = sample_heun(r, x, [a, b]), b
    return x


REFERENCES = {
    "lms": sample_lms,
    "plms": sample_plms,
    "heun": sample_heun,
    "dpm2": sample_dpm_2,
    "dpm2_a": lambda r, x, sigmas: sample_dpm_2(r, x, sigmas, ancestral=True),
    "dpmpp_2s_a": sample_dpmpp_2s_a,
    "dpmpp_sde": sample_dpmpp_sde,
    "dpmpp_2m_sde": sample_dpmpp_2m_sde,
    "dpmpp_2m_sde_heun": lambda r, x, sigmas: sample_dpmpp_2m_sde(r, x, sigmas, heun=True),
    "dpmpp_3m_sde": sample_dpmpp_3m_sde,
    "dpm_fast": sample_dpm_fast,
    "dpm_adaptive": sample_dpm_adaptive,
    "restart": sample_restart,
}


def run(name, table, steps, seed=5, strength=1.0, z=None):
    sampler = SAMPLERS[name]
    times = timesteps(table, steps, strength=strength, discard=sampler.discard)
    z = drawn(seed, -1 % 2**31).astype(np.float32) if z is None else z
    denoise = lambda z, t_B: network(z, t_B.reshape(-1, 1, 1, 1).astype(np.float32))  # noqa: E731
    return times, [*sample(denoise, z, times, sampler=sampler, schedule=SD, noise=lambda k: drawn(seed, k))], z


def compare(name, table, steps, **options):
    times, found, z = run(name, table, steps, **options)
    sigmas = [SD.level(t) for t in (*times, SAMPLERS[name].last)]
    r = Reference(5)
    expected = REFERENCES[name](r, z.astype(np.float64) * math.hypot(1, sigmas[0]), sigmas) / math.hypot(1, sigmas[-1])
    assert len(found) == r.calls
    assert found[-1].z.dtype == np.float32
    np.testing.assert_allclose(found[-1].z, expected, atol=1e-4 * max(1, np.abs(expected).max()))
    return found


def test_every_walk_has_a_reference():
    assert REFERENCES.keys() == set(WALKS)


@pytest.mark.parametrize("name", REFERENCES)
@pytest.mark.parametrize("steps", [*range(1, 9), 20, 40])
@pytest.mark.parametrize("table", ["trailing", "karras"])
def test_the_result_is_k_diffusions(name, steps, table):
    compare(name, table, steps)


@pytest.mark.parametrize("name", REFERENCES)
@pytest.mark.parametrize("strength", [0.01, 0.3])
def test_the_result_is_k_diffusions_at_little_strength(name, strength):
    compare(name, "sgm_uniform", 4, strength=strength)


# ---- progress


@pytest.mark.parametrize("name", WALKS)
@pytest.mark.parametrize("steps", [*range(1, 9), 20, 40])
def test_progress_counts_up_to_the_last_evaluation_and_knows_it(name, steps):
    times, found, _ = run(name, "trailing", steps)
    assert [step.index for step in found] == [*range(len(found))]
    assert [step.index + 1 == step.count for step in found] == [False] * (len(found) - 1) + [True]
    assert found[0].t == 999
    assert all(a.t_next == b.t for a, b in pairwise(found))
    assert found[-1].t_next == SAMPLERS[name].last
    assert evaluations(SAMPLERS[name], SD, times) <= len(found)
    if name != "dpm_adaptive":
        assert {step.count for step in found} == {len(found)} == {evaluations(SAMPLERS[name], SD, times)}


@pytest.mark.parametrize("steps", range(1, 9))
def test_how_often_the_network_is_asked(steps):
    once, twice = steps, 2 * steps - 1
    expected = {"lms": once, "dpmpp_2m_sde": once, "dpmpp_2m_sde_heun": once, "dpmpp_3m_sde": once, "dpm_fast": once}
    expected |= dict.fromkeys(("heun", "dpm2", "dpm2_a", "dpmpp_2s_a", "dpmpp_sde", "restart"), twice)
    expected |= {"plms": steps + (steps > 1)}
    times = timesteps("trailing", steps)
    assert {name: evaluations(SAMPLERS[name], SD, times) for name in expected} == expected


def test_a_walk_can_be_left_at_any_time():
    sampler = SAMPLERS["dpmpp_sde"]
    steps = sample(lambda z, t: 0.5 * z, drawn(0, 0), (999, 500), sampler=sampler, schedule=SD, noise=lambda k: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        next(steps)
    steps = sample(
        lambda z, t: 0.5 * z, drawn(0, 0), (999, 500), sampler=SAMPLERS["heun"], schedule=SD, noise=lambda k: 0
    )
    assert next(steps).count == 3
    steps.close()


def test_a_network_that_fails_does_not_hang_the_adaptive_one():
    z = np.zeros((1, 1, 2, 2), np.float32)
    sampler = SAMPLERS["dpm_adaptive"]
    with np.errstate(invalid="ignore"):
        steps = sum(
            1 for _ in sample(lambda z, t: z * np.nan, z, (999,), sampler=sampler, schedule=SD, noise=lambda k: z)
        )
    assert steps <= 3000


# ---- parts


def test_lms_weights_integrate_any_cubic_exactly():
    nodes, end = [3.1, 1.7, 0.4, 0.05], -0.2
    weights = lms_weights(nodes, end)
    for power in range(4):
        exact = (end ** (power + 1) - nodes[0] ** (power + 1)) / (power + 1)
        assert sum(w * n**power for w, n in zip(weights, nodes, strict=True)) == pytest.approx(exact)


@pytest.mark.parametrize(("steps", "rises", "again"), [(19, 0, 0), (20, 1, 9), (35, 1, 9), (36, 2, 9), (50, 2, 12)])
def test_restart_spends_its_steps_on_going_down_again(steps, rises, again):
    levels = [SD.level(t) for t in (*timesteps("karras", steps), -1)]
    path = restart_path(levels)
    assert len(path) == steps
    assert path[0][0] == pytest.approx(levels[0])
    assert path[-1] == (pytest.approx(levels[-2]), 0.0)
    assert all(a > b for a, b in path)
    up = [i for i, ((_, here), (start, _)) in enumerate(pairwise(path)) if start > here]
    assert len(up) == rises
    for i in up:
        assert path[i][1] == pytest.approx(0.1, rel=0.5)
        assert path[i + 1][0] == pytest.approx(2, rel=0.5)
        assert path[i + again][1] == path[i][1]
    assert all(b[0] == a[1] for i, (a, b) in enumerate(pairwise(path)) if i not in up)
