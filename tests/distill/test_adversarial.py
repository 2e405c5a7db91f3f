"""The adversarial plug-in: hinge losses, who learns from which, and what it does to a student that may choose."""

import numpy as np
import pytest
import torch

from fewstep.distill.adversarial import Critic, hinge, hinge_between
from fewstep.distill.objectives import objective_named
from fewstep.distill.terms import Draw, Networks, squared
from fewstep.distill.times import Times
from fewstep.sampling.schedule import Schedule, scaled_linear


class Slope(torch.nn.Module):
    """One logit an item: the mean feature times a learnt slope, plus an offset."""

    def __init__(self):
        super().__init__()
        self.slope, self.offset = torch.nn.Parameter(torch.tensor(2.0)), torch.nn.Parameter(torch.tensor(0.5))

    def forward(self, features):
        return self.slope * features[0].flatten(1) + self.offset


def mean_critic(weight=0.1):
    return Critic(lambda z_BCHW, t_B: [z_BCHW.mean((1, 2, 3), keepdim=True)], Slope(), weight)


def test_the_losses_are_the_hinge():
    drawn, real = torch.full((1, 4, 2, 2), 0.1), torch.full((1, 4, 2, 2), -0.4)
    losses = hinge(mean_critic(), drawn, real, torch.tensor([5]))
    assert losses["adversarial"].item() == pytest.approx(-0.1 * (2 * 0.1 + 0.5))
    assert losses["critic"].item() == pytest.approx((1 - (2 * -0.4 + 0.5)) + (1 + 2 * 0.1 + 0.5))


def test_a_logit_beyond_the_margin_teaches_nothing():
    losses = hinge(mean_critic(), torch.full((1, 4, 2, 2), -3.0), torch.full((1, 4, 2, 2), 3.0), torch.tensor([5]))
    assert losses["critic"].item() == 0


def test_one_backward_pass_moves_each_side_by_its_own_part():
    critic, real = mean_critic(), torch.full((1, 4, 2, 2), -0.4)
    drawn = torch.full((1, 4, 2, 2), 0.1, requires_grad=True)
    sum(part.sum() for part in hinge(critic, drawn, real, torch.tensor([5])).values()).backward()
    assert drawn.grad.sum().item() == pytest.approx(-0.1 * 2)  # up the critic's slope, and nothing of the heads' loss
    assert critic.heads.slope.grad.item() == pytest.approx(0.4 + 0.1)
    assert critic.heads.offset.grad.item() == pytest.approx(-1 + 1)


@pytest.mark.parametrize(("chance", "when"), [(0.0, 249), (0.5, 374), (0.999, 498)])
def test_it_looks_between_landing_and_start_with_one_noise_for_both(chance, when):
    schedule, seen = Schedule(scaled_linear()), []
    critic = Critic(lambda z, t_B: seen.append((z, int(t_B))) or [z.mean((1, 2, 3), keepdim=True)], Slope(), 1.0)
    drawn, real, noise = torch.randn(3, 1, 4, 2, 2, generator=torch.Generator().manual_seed(0))
    times = {"s_B": torch.tensor([249]), "t_B": torch.tensor([499]), "chance_B": torch.tensor([chance])}
    hinge_between(critic, schedule, drawn, real, noise, **times)
    (first, t_first), (second, t_second) = seen
    assert t_first == t_second == when
    abar = schedule.alphas_cumprod
    fade = (abar[when] / abar[249]) ** 0.5
    torch.testing.assert_close(first - second, fade * (drawn - real))
    torch.testing.assert_close(first, fade * drawn + (1 - abar[when] / abar[249]) ** 0.5 * noise)


@pytest.mark.parametrize("name", ["lcm", "lcf", "tcd", "pcm", "tscd", "tdd", "tdm"])
def test_every_method_takes_a_critic_and_is_itself_without(name):
    schedule, generator = Schedule(scaled_linear()), torch.Generator().manual_seed(0)
    z0, noise, again = torch.randn(3, 2, 4, 2, 2, generator=generator)
    times = Times(*(torch.tensor([at, at]) for at in (499, 479, 249)), path=(999, 499))
    draw = Draw(z0, noise, again, times, torch.full((2,), 1.5), torch.tensor([0.2, 0.8]))

    def student(z, t_B):
        return gain * z

    def networks(critic):
        return Networks(student, student, lambda z, t_B: (0.7 * z, 0.6 * z), student, critic)

    gain = torch.tensor(0.9, requires_grad=True)
    loss = objective_named(name).loss
    plain, more = (loss(networks(critic), schedule, draw, distance=squared) for critic in (None, mean_critic()))
    assert set(more) - set(plain) == {"adversarial", "critic"}
    assert all(torch.equal(plain[part], more[part]) for part in plain)
    more["adversarial"].sum().backward()
    assert gain.grad.abs() > 0


def test_where_nothing_else_is_asked_the_drawn_comes_to_look_like_the_real():
    generator = torch.Generator().manual_seed(0)
    critic, where, found = mean_critic(weight=1.0), torch.nn.Parameter(torch.tensor(2.0)), []
    optimiser = torch.optim.Adam([where, *critic.heads.parameters()], lr=0.02, betas=(0.0, 0.99))
    for _ in range(1000):
        drawn, real = torch.randn(2, 64, 1, 1, 1, generator=generator) * 0.1
        optimiser.zero_grad()
        sum(part.mean() for part in hinge(critic, drawn + where, real - 1, torch.zeros(64)).values()).backward()
        optimiser.step()
        found.append(float(where.detach()))
    assert np.mean(found[500:]) == pytest.approx(-1, abs=0.2)  # the two circle about the answer
