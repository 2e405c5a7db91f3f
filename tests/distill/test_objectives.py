"""One consistency target against the formulas written out in double precision, and the grid's ends."""

import pytest
import torch

from fewstep.distill.objectives import OBJECTIVES, latent_consistency, objective_named, target_time_consistency
from fewstep.distill.terms import Draw, Networks, distance_named, pseudo_huber, squared
from fewstep.distill.times import Times, grid, grid_pair
from fewstep.errors import RecipeError
from fewstep.sampling.schedule import Schedule, scaled_linear, zero_terminal_snr

PREDICTIONS = ("epsilon", "v_prediction", "sample")


def linear_network(slope, offset):
    return lambda z, t_B: slope * z + offset + t_B.view(-1, 1, 1, 1) / 5000


STUDENT, TARGET, COND, UNCOND = (linear_network(*pair) for pair in ((0.9, 0.1), (0.8, -0.2), (0.7, 0.3), (1.1, -0.1)))
NETWORKS = Networks(student=STUDENT, target=TARGET, teacher=lambda z, t_B: (COND(z, t_B), UNCOND(z, t_B)))


def draw_at(t, t_next, w, seed=0, s=0):
    generator = torch.Generator().manual_seed(seed)
    z0, noise, again = torch.randn(3, 1, 4, 3, 3, generator=generator)
    times = Times(*(torch.tensor([at]) for at in (t, t_next, s)), path=(999, t) if t < 999 else (999,))
    return Draw(z0, noise, again, times, torch.tensor([w]))


def loss_of(*arguments, **named):
    return latent_consistency(*arguments, **named)["consistency"]


def reference_loss(abar, prediction, draw, c):
    """LCM Algorithm 1 in float64, from the paper's formulas; returns the pseudo-Huber loss."""
    t, t_next, w = int(draw.times.t_B), int(draw.times.t_next_B), float(draw.w_B)
    a, s = (torch.tensor(abar, dtype=torch.float64).sqrt(), (1 - torch.tensor(abar, dtype=torch.float64)).sqrt())

    def split(z, m, k):
        if prediction == "epsilon":
            return (z - s[k] * m) / a[k], m
        if prediction == "v_prediction":
            return a[k] * z - s[k] * m, a[k] * m + s[k] * z
        return m, (z - a[k] * m) / s[k]

    def land(z, network, k):
        skip, out = 0.25 / ((10 * k) ** 2 + 0.25), 10 * k / ((10 * k) ** 2 + 0.25) ** 0.5
        return skip * z + out * split(z, network(z, torch.tensor([k])), k)[0]

    z = a[t] * draw.z0_BCHW.double() + s[t] * draw.noise_BCHW.double()
    (xc, ec), (xu, eu) = (split(z, network(z, torch.tensor([t])), t) for network in (COND, UNCOND))
    jumped = a[t_next] * ((1 + w) * xc - w * xu) + s[t_next] * ((1 + w) * ec - w * eu)
    target = jumped if t_next == 0 else land(jumped, TARGET, t_next)
    delta = land(z, STUDENT, t) - target
    return ((delta**2 + c**2).sqrt() - c).mean()


@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize(("t", "t_next"), [(19, 0), (39, 19), (499, 479), (999, 979)])
@pytest.mark.parametrize("w", [0.0, 2.5])
def test_one_step_is_the_papers(prediction, t, t_next, w):
    schedule = Schedule(scaled_linear(), prediction)
    draw = draw_at(t, t_next, w)
    loss = loss_of(NETWORKS, schedule, draw, distance=pseudo_huber(1e-3))
    assert float(loss) == pytest.approx(
        float(reference_loss(schedule.alphas_cumprod, prediction, draw, 1e-3)), rel=2e-5
    )


def test_at_the_first_grid_point_the_target_network_is_not_heard():
    schedule, draw = Schedule(scaled_linear()), draw_at(19, 0, 2.5)
    deaf = Networks(STUDENT, lambda z, t_B: torch.full_like(z, 1e3), NETWORKS.teacher)
    losses = [loss_of(networks, schedule, draw, distance=squared) for networks in (NETWORKS, deaf)]
    assert torch.equal(*losses)


def test_w_zero_needs_no_unconditional():
    schedule, draw = Schedule(scaled_linear()), draw_at(499, 479, 0.0)
    lean = Networks(STUDENT, TARGET, lambda z, t_B: (COND(z, t_B), None))
    losses = [loss_of(networks, schedule, draw, distance=squared) for networks in (NETWORKS, lean)]
    assert torch.equal(*losses)


@pytest.mark.parametrize("prediction", ["v_prediction", "sample"])
def test_zero_terminal_snr_is_finite(prediction):
    schedule = Schedule(zero_terminal_snr(scaled_linear()), prediction)
    loss = loss_of(NETWORKS, schedule, draw_at(999, 979, 2.5), distance=squared)
    assert torch.isfinite(loss)


def test_only_the_student_learns():
    weights = {name: torch.nn.Parameter(torch.tensor(0.5)) for name in ("student", "target", "teacher")}
    networks = Networks(
        student=lambda z, t_B: weights["student"] * z,
        target=lambda z, t_B: weights["target"] * z,
        teacher=lambda z, t_B: (weights["teacher"] * z, None),
    )
    loss_of(networks, Schedule(scaled_linear()), draw_at(499, 479, 0.0), distance=squared).sum().backward()
    assert weights["student"].grad is not None
    assert weights["target"].grad is weights["teacher"].grad is None


@pytest.mark.parametrize("name", OBJECTIVES)
def test_every_objective_teaches_only_those_who_learn(name):
    starts = {"student": 0.5, "target": 0.5, "teacher": 0.7, "fake": 0.6}
    weights = {who: torch.nn.Parameter(torch.tensor(value)) for who, value in starts.items()}

    def network(who):
        return lambda z, t_B: weights[who] * z

    teacher = network("teacher")
    networks = Networks(network("student"), network("target"), lambda z, t_B: (teacher(z, t_B), None), network("fake"))
    draw = draw_at(499, 374, 0.0, s=249)
    losses = OBJECTIVES[name].loss(networks, Schedule(scaled_linear()), draw, distance=squared)
    assert all(loss_B.shape == (1,) for loss_B in losses.values())
    sum(losses.values()).sum().backward()
    learns = {"student", "fake"} if OBJECTIVES[name].fake else {"student"}
    assert {who for who, weight in weights.items() if weight.grad is not None and weight.grad != 0} == learns


def test_a_jump_that_ends_at_its_target_does_not_hear_the_target_network():
    schedule, draw = Schedule(scaled_linear()), draw_at(374, 249, 2.5, s=249)
    deaf = Networks(STUDENT, lambda z, t_B: torch.full_like(z, 10.0), NETWORKS.teacher)
    losses = [
        target_time_consistency(networks, schedule, draw, distance=squared)["consistency"]
        for networks in (NETWORKS, deaf)
    ]
    assert torch.allclose(*losses, rtol=1e-4)


def test_the_student_is_moved_from_the_fake_towards_the_teacher():
    """Matching's gradient in the clean latent is (fake - teacher) over the distance to the teacher."""
    schedule, draw = Schedule(scaled_linear(), "sample"), draw_at(999, 749, 0.0, s=499)
    z0 = torch.zeros(1, 4, 3, 3, requires_grad=True)
    networks = Networks(
        student=lambda z, t_B: z0,
        target=TARGET,
        teacher=lambda z, t_B: (torch.full_like(z, 3.0), None),
        fake=lambda z, t_B: torch.full_like(z, 1.0),
    )
    OBJECTIVES["tdm"].loss(networks, schedule, draw, distance=squared)["matching"].sum().backward()
    expected = 2 * (1.0 - 3.0) / 3.0 / z0.numel()
    assert torch.allclose(z0.grad, torch.full_like(z0, expected))


@pytest.mark.parametrize(
    ("origin_steps", "first", "last"), [(50, 19, 999), (20, 49, 999), (1, 999, 999), (1000, 0, 999)]
)
def test_grid(origin_steps, first, last):
    points = grid(origin_steps)
    assert (len(points), points[0], points[-1]) == (origin_steps, first, last)


def test_grid_pairs_end_at_zero_and_never_wrap():
    t_B, t_next_B = grid_pair(torch.tensor([0, 1, 49]), 50)
    assert (t_B.tolist(), t_next_B.tolist()) == ([19, 39, 999], [0, 19, 979])


@pytest.mark.parametrize("bad", [0, 30, 1001])
def test_a_grid_that_does_not_divide_is_refused(bad):
    with pytest.raises(RecipeError, match=str(bad)):
        grid(bad)


def test_names():
    assert objective_named("lcm").loss is latent_consistency
    for ask in (lambda: objective_named("tcm"), lambda: distance_named("l1", huber_c=1.0)):
        with pytest.raises(RecipeError, match="Use one of"):
            ask()


def test_pseudo_huber_is_squared_then_absolute():
    near, far = pseudo_huber(1e-3)(torch.tensor([1e-5, 2.0], dtype=torch.float64))
    assert float(near) == pytest.approx(1e-10 / 2e-3, rel=1e-3)
    assert float(far) == pytest.approx(2.0, rel=1e-3)
