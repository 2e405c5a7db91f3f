"""The target times of every method: on the way from t' to 0, where the method's paper puts them."""

from functools import partial

import pytest
import torch

from fewstep.distill.times import (
    Jump,
    grid,
    grid_pair,
    segment_times,
    to_anywhere,
    to_clean,
    to_edge,
    to_later_steps,
)

RULES = {
    "lcm": to_clean,
    "pcm": partial(to_edge, phases=4),
    "tscd": partial(to_anywhere, segments=4),
    "tcd": to_anywhere,
    "tdd": to_later_steps,
}


def jump_of(origin_steps, each=200):
    index_B = torch.arange(origin_steps).repeat(each)
    uniform_B2 = torch.rand(len(index_B), 2, generator=torch.Generator().manual_seed(0))
    uniform_B2[0], uniform_B2[1] = 0, 1 - 2**-24
    return Jump(*grid_pair(index_B, origin_steps), uniform_B2, origin_steps)


@pytest.mark.parametrize("name", RULES)
@pytest.mark.parametrize("origin_steps", [4, 8, 20, 40, 100, 1000])
def test_a_target_is_never_above_the_end_of_the_jump_nor_below_zero(name, origin_steps):
    jump = jump_of(origin_steps, 20)
    s_B = RULES[name](jump)
    assert s_B.dtype == torch.int64 and bool((s_B >= 0).all() and (s_B <= jump.t_next_B).all())


@pytest.mark.parametrize(("origin_steps", "phases"), [(40, 4), (8, 8), (8, 1), (100, 2)])
def test_phases_are_left_only_by_their_edge(origin_steps, phases):
    jump = jump_of(origin_steps)
    low_B, drawn_B = to_edge(jump, phases=phases), to_anywhere(jump, segments=phases)
    assert bool((low_B <= drawn_B).all() and (drawn_B <= jump.t_next_B).all() and (low_B < jump.t_B).all())
    assert set(low_B.tolist()) == {max(1000 * k // phases - 1, 0) for k in range(phases)}


def test_one_phase_is_a_jump_to_zero():
    assert not to_edge(jump_of(50), phases=1).any()


def test_every_point_of_the_grid_below_is_drawn_about_equally_often():
    jump = Jump(torch.full((6000,), 999), torch.full((6000,), 874), torch.rand(6000, 2), 8)
    found, counts = to_anywhere(jump).unique(return_counts=True)
    assert found.tolist() == [0, *grid(8)[:-1]] and counts.min() > 600


def test_later_steps_without_shortening_are_points_of_the_samplers_to_come():
    jump = jump_of(50)
    s_B = to_later_steps(jump, eta=0.0)
    points = {max(round(1000 * k / n) - 1, 0) for n in (4, 5, 6, 7, 8) for k in range(n)}
    assert set(s_B.tolist()) <= points and bool((jump.t_next_B - s_B <= 250).all())


def test_shortening_moves_a_target_down_by_at_most_its_share():
    jump = jump_of(50)
    whole_B, short_B = to_later_steps(jump, eta=0.0), to_later_steps(jump, eta=0.3)
    assert bool((short_B <= whole_B).all() and (short_B >= 0.7 * whole_B - 1).all() and (short_B < whole_B).any())


@pytest.mark.parametrize("phases", [1, 2, 4, 8])
def test_a_segment_is_walked_to_and_judged_inside(phases):
    generator, seen = torch.Generator().manual_seed(0), set()
    for _ in range(60):
        times = segment_times(phases, 16, 40, 1000, generator)
        (t,), (s,) = times.t_B.unique().tolist(), times.s_B.unique().tolist()
        assert times.path[0] == 999 and times.path[-1] == t and list(times.path) == sorted(times.path, reverse=True)
        assert bool((times.t_next_B > s).all() and (times.t_next_B <= t).all()) and (t + 1) % (1000 // phases) == 0
        seen.add(t)
    assert len(seen) == phases
