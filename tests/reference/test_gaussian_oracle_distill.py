"""Distillation where the answer is known: Gaussian data, whose guided flow and consistency function are closed forms.

With data N(mu, s^2) the noise prediction is eps(x, t) = sigma_t (x - alpha_t mu) / (alpha_t^2 s^2 + sigma_t^2).
Guidance w between two Gaussians of equal width gives exactly the field of N(mu_w, s^2), mu_w = mu_c + w (mu_c -
mu_u), and the flow from t to r is Phi(x) = alpha_r mu_w + (x - alpha_t mu_w) sqrt((alpha_r^2 s^2 + sigma_r^2) /
(alpha_t^2 s^2 + sigma_t^2)).
"""

import pytest
import torch

from fewstep.distill.adversarial import Critic
from fewstep.distill.matching import walk
from fewstep.distill.objectives import objective_named, teacher_jump
from fewstep.distill.recipes import make_recipe
from fewstep.distill.terms import Draw, Networks, pseudo_huber
from fewstep.sampling.consistency import phase_edges
from fewstep.sampling.ode import ddim_map
from fewstep.sampling.schedule import Schedule, add_noise, scaled_linear, to_z0

WIDTH, W = 0.6, 1.5
MU_COND, MU_UNCOND = torch.tensor([0.8, -0.5]).view(2, 1, 1), torch.tensor([0.1, 0.2]).view(2, 1, 1)
MU_W = MU_COND + W * (MU_COND - MU_UNCOND)


def spread(alpha, sigma):
    return alpha**2 * WIDTH**2 + sigma**2


def exact_output(schedule, mu):
    def network(z, t_B):
        alpha, sigma = schedule.alpha_sigma(t_B, z)
        eps = sigma * (z - alpha * mu) / spread(alpha, sigma)
        return eps if schedule.prediction == "epsilon" else alpha * eps - sigma * (z - sigma * eps) / alpha

    return network


def teacher_of(schedule):
    conditional, unconditional = exact_output(schedule, MU_COND), exact_output(schedule, MU_UNCOND)
    return lambda z, t_B: (conditional(z, t_B), unconditional(z, t_B))


def flow(schedule, z, t_B, r_B, mu=MU_W):
    (a_t, s_t), (a_r, s_r) = schedule.alpha_sigma(t_B, z), schedule.alpha_sigma(r_B, z)
    return a_r * mu + (z - a_t * mu) * (spread(a_r, s_r) / spread(a_t, s_t)).sqrt()


def draw_of(count, origin_steps, generator, name="lcm", phases=4):
    values = {"objective": name, "batch": count, "origin_steps": origin_steps, "phases": phases}
    recipe = make_recipe(values | {"experimental": name == "scm"})
    z0 = MU_COND + WIDTH * torch.randn(count, 2, 1, 1, generator=generator)
    times = objective_named(name).times(recipe, 1000, generator)
    noise, again = torch.randn(2, *z0.shape, generator=generator)
    return Draw(z0, noise, again, times, torch.full((count,), W), torch.rand(count, generator=generator))


class PerPoint(torch.nn.Module):
    """The smallest student that can be exact: for each grid point, an affine map of z."""

    def __init__(self, origin_steps):
        super().__init__()
        self.stride = 1000 // origin_steps
        self.slope = torch.nn.Parameter(torch.zeros(origin_steps, 1))
        self.offset = torch.nn.Parameter(torch.zeros(origin_steps, 2))

    def forward(self, z, t_B):
        index_B = ((t_B + 1) // self.stride - 1).clamp(min=0)
        return self.slope[index_B].view(-1, 1, 1, 1) * z + self.offset[index_B].view(-1, 2, 1, 1)


class Mlp(torch.nn.Module):
    """Three layers on (z, 32 Fourier features of t)."""

    def __init__(self):
        super().__init__()
        self.frequency = torch.arange(1, 17) / 2
        sizes = ((34, 128), (128, 128), (128, 2))
        layers = [torch.nn.Linear(*size) for size in sizes]
        self.net = torch.nn.Sequential(layers[0], torch.nn.SiLU(), layers[1], torch.nn.SiLU(), layers[2])

    def forward(self, z, t_B):
        angle = t_B[:, None] / 1000 * 3.1416 * self.frequency
        features = torch.cat([z.flatten(1), angle.sin(), angle.cos()], 1)
        return self.net(features).view(-1, 2, 1, 1)


class MlpHeads(torch.nn.Module):
    """One logit an item, of what the exact teacher sees: the latent and its own output."""

    def __init__(self):
        super().__init__()
        self.net = torch.nn.Sequential(torch.nn.Linear(5, 32), torch.nn.SiLU(), torch.nn.Linear(32, 1))

    def forward(self, features):
        return self.net(torch.cat(features, 1))


def critic_of(schedule, weight=0.1):
    output = exact_output(schedule, MU_W)
    return Critic(
        lambda z, t_B: [z.flatten(1), output(z, t_B).flatten(1), t_B[:, None] / 1000], MlpHeads(), weight=weight
    )


def distil(student, schedule, *, origin_steps, steps, rate, count=256, name="lcm", phases=4, critic=None):
    generator = torch.Generator().manual_seed(0)
    learning = [*student.parameters(), *(critic.heads.parameters() if critic else ())]
    optimiser = torch.optim.Adam(learning, lr=rate)
    falling = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
    networks = Networks(student, student, teacher_of(schedule), critic=critic)
    objective = objective_named(name)
    for _ in range(steps):
        optimiser.zero_grad()
        draw = draw_of(count, origin_steps, generator, name, phases)
        losses = objective.loss(networks, schedule, draw, distance=pseudo_huber(0.03))
        sum(loss_B.mean() for loss_B in losses.values()).backward()
        optimiser.step()
        falling.step()


def imitate(student, schedule, *, steps, rate, count=512, origin_steps=50):
    """Start the student as its guided teacher, as real ones do: plain regression of the output."""
    generator, output = torch.Generator().manual_seed(7), exact_output(schedule, MU_W)
    optimiser = torch.optim.Adam(student.parameters(), lr=rate)
    falling = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
    for _ in range(steps):
        optimiser.zero_grad()
        draw = draw_of(count, origin_steps, generator)
        z = add_noise(schedule, draw.z0_BCHW, draw.noise_BCHW, draw.times.t_B)
        (student(z, draw.times.t_B) - output(z, draw.times.t_B)).square().mean().backward()
        optimiser.step()
        falling.step()


@torch.no_grad()
def error_of(student, schedule, origin_steps, mu=MU_W):
    """RMS between the student's clean latent and the exact consistency function, on noised data at the whole grid."""
    draw = draw_of(4096, origin_steps, torch.Generator().manual_seed(1))
    z = add_noise(schedule, draw.z0_BCHW, draw.noise_BCHW, draw.times.t_B)
    found = to_z0(schedule, z, student(z, draw.times.t_B), draw.times.t_B)
    return float(
        (found - flow(schedule, z, draw.times.t_B, torch.zeros_like(draw.times.t_B), mu)).square().mean().sqrt()
    )


@torch.no_grad()
def jumping_error(network, schedule, steps):
    """RMS of `steps` deterministic jumps from pure noise to timestep 0, against the exact flow."""
    generator = torch.Generator().manual_seed(1)
    top_B = torch.full((4096,), 999)
    z0 = MU_COND + WIDTH * torch.randn(4096, 2, 1, 1, generator=generator)
    start = z = add_noise(schedule, z0, torch.randn(z0.shape, generator=generator), top_B)
    for t, s in zip((999, *phase_edges(steps)[:0:-1]), reversed(phase_edges(steps)), strict=True):
        t_B = torch.full_like(top_B, t)
        z = ddim_map(schedule, z, to_z0(schedule, z, network(z, t_B), t_B), t_B, torch.full_like(top_B, s))
    return float((z - flow(schedule, start, top_B, torch.zeros_like(top_B))).square().mean().sqrt())


def test_one_guided_jump_is_the_flow_within_3e_3():
    schedule = Schedule(scaled_linear())
    draw = draw_of(8192, 50, torch.Generator().manual_seed(0))
    networks = Networks(None, None, teacher_of(schedule))
    z, jumped = teacher_jump(networks, schedule, draw)
    rms = (jumped - flow(schedule, z, draw.times.t_B, draw.times.t_next_B)).square().mean().sqrt()
    assert float(rms) < 3e-3


@pytest.mark.parametrize(
    ("origin_steps", "steps", "most"),
    [(20, 1500, 0.08), pytest.param(50, 6000, 0.04, marks=pytest.mark.slow)],
)
def test_a_per_point_student_reaches_the_consistency_function(origin_steps, steps, most):
    schedule = Schedule(scaled_linear(), "v_prediction")
    torch.manual_seed(0)
    student = PerPoint(origin_steps)
    before = error_of(student, schedule, origin_steps)
    distil(student, schedule, origin_steps=origin_steps, steps=steps, rate=0.03)
    assert error_of(student, schedule, origin_steps) < most < before / 5


@pytest.mark.slow
def test_an_mlp_student_comes_near_the_consistency_function():
    """It shares its weights between timesteps, so it is an approximation: 0.44 as the teacher, 0.11 distilled."""
    schedule = Schedule(scaled_linear(), "v_prediction")
    torch.manual_seed(0)
    student = Mlp()
    imitate(student, schedule, steps=1500, rate=2e-3)
    assert error_of(student, schedule, 50) > 0.3
    distil(student, schedule, origin_steps=50, steps=4000, rate=2e-3)
    assert error_of(student, schedule, 50) < 0.15


@pytest.mark.slow
@pytest.mark.parametrize("prediction", ["epsilon", pytest.param("v_prediction", marks=pytest.mark.slow)])
def test_the_continuous_student_reaches_the_consistency_function(prediction):
    """Within the finite difference's own error: 0.44 as the teacher."""
    schedule = Schedule(scaled_linear(), prediction)
    student = PerPoint(50)
    distil(student, schedule, origin_steps=50, steps=2500, rate=0.03, name="scm")
    assert error_of(student, schedule, 50) < 0.06


def test_fine_tuning_without_a_teacher_reaches_the_consistency_function_of_the_data():
    schedule = Schedule(scaled_linear(), "v_prediction")
    student = PerPoint(20)
    distil(student, schedule, origin_steps=20, steps=1500, rate=0.03, name="lcf")
    assert error_of(student, schedule, 20, MU_COND) < 0.1 < error_of(student, schedule, 20, MU_W) / 5


@pytest.mark.parametrize(
    ("name", "phases", "most"),
    [
        ("pcm", 4, 0.05),
        pytest.param("tdd", 1, 0.03, marks=pytest.mark.slow),
        pytest.param("tscd", 4, 0.12, marks=pytest.mark.slow),
        pytest.param("tcd", 1, 0.08, marks=pytest.mark.slow),
    ],
)
def test_a_student_that_lands_on_the_way_jumps_along_the_flow(name, phases, most):
    """In four jumps, where the exact teacher is 0.22 off and needs two evaluations for each."""
    schedule = Schedule(scaled_linear(), "v_prediction")
    student = PerPoint(40)
    distil(student, schedule, origin_steps=40, steps=2000, rate=0.03, name=name, phases=phases)
    assert jumping_error(student, schedule, 4) < most < jumping_error(exact_output(schedule, MU_W), schedule, 4) / 1.5


@pytest.mark.slow
def test_a_critic_leaves_a_consistent_student_where_it_belongs():
    """Drawn and wanted are one distribution there, so that the critic has nothing to say (PCM, theorem 6)."""
    schedule = Schedule(scaled_linear(), "v_prediction")
    torch.manual_seed(0)
    student, critic = PerPoint(40), critic_of(schedule)
    distil(student, schedule, origin_steps=40, steps=1200, rate=0.03, name="pcm", critic=critic)
    assert jumping_error(student, schedule, 4) < 0.05
    assert float(critic.heads.net[2].weight.detach().abs().max()) > 0.01  # it was asked, and learnt


def match(student, fake, schedule, *, phases, steps, rate=0.02, count=512):
    generator, objective = torch.Generator().manual_seed(0), objective_named("tdm")
    for network in (student, fake):
        imitate(network, schedule, steps=600, rate=0.05, origin_steps=40)
    optimiser = torch.optim.Adam([*student.parameters(), *fake.parameters()], lr=rate, betas=(0.0, 0.99))
    falling = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
    networks = Networks(student, student, teacher_of(schedule), fake)
    for _ in range(steps):
        optimiser.zero_grad()
        losses = objective.loss(
            networks, schedule, draw_of(count, 40, generator, "tdm", phases), distance=lambda d: d.square() / 2
        )
        sum(losses.values()).mean().backward()
        optimiser.step()
        falling.step()


@pytest.mark.parametrize("phases", [pytest.param(1, marks=pytest.mark.slow), 2])
def test_a_student_that_draws_learns_the_teachers_distribution(phases):
    schedule = Schedule(scaled_linear(), "v_prediction")
    student, fake = PerPoint(40), PerPoint(40)
    match(student, fake, schedule, phases=phases, steps=2000)
    z = torch.randn(20_000, 2, 1, 1, generator=torch.Generator().manual_seed(1))
    path = (*reversed(phase_edges(phases)),)
    z = walk(Networks(student, student, teacher_of(schedule)), schedule, z, (999, *path))
    assert torch.allclose(z.mean(0), MU_W, atol=0.05) and torch.allclose(z.std(0), torch.tensor(WIDTH), atol=0.05)
