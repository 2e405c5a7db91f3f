"""Arcs between vectors and between noises, against closed forms."""

import math

import numpy as np
import pytest

from fewstep.sampling.rotation import slerp, turned


@pytest.mark.parametrize("share", [0.0, 0.25, 0.5, 1.0])
@pytest.mark.parametrize("degrees", [1, 30, 90, 179])
def test_a_plane_arc(degrees, share):
    end = math.radians(degrees)
    start_D, end_D = np.array([2.0, 0.0]), 5 * np.array([math.cos(end), math.sin(end)])
    found = slerp(start_D, end_D, share)
    length, angle = 2 + 3 * share, share * end
    assert found == pytest.approx([length * math.cos(angle), length * math.sin(angle)], abs=1e-4)


@pytest.mark.parametrize("factor", [3.0, 1.0, -1.0, 0.0])
def test_parallel_opposite_and_zero_vectors_go_straight(factor):
    start_D = np.random.default_rng(0).standard_normal((7, 16))
    assert slerp(start_D, factor * start_D, 0.3) == pytest.approx((0.7 + 0.3 * factor) * start_D, abs=1e-5)


def test_every_vector_for_itself_and_on_both_back_ends():
    import torch

    random = np.random.default_rng(1)
    start_BLD, end_BLD = random.standard_normal((2, 2, 5, 16)).astype(np.float32)
    found = slerp(start_BLD, end_BLD, 0.4)
    for place in np.ndindex(2, 5):
        assert found[place] == pytest.approx(slerp(start_BLD[place], end_BLD[place], 0.4), abs=1e-6)
    by_torch = slerp(torch.from_numpy(start_BLD), torch.from_numpy(end_BLD), 0.4)
    assert by_torch.numpy() == pytest.approx(found, abs=1e-6)


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.9, 1.0])
def test_noises_turned_into_one_another_stay_unit_noise(share):
    one, other = np.random.default_rng(2).standard_normal((2, 200_000))
    found = turned(one, other, share)
    assert found.std() == pytest.approx(1, abs=0.01) and abs(found.mean()) < 0.01
    assert np.corrcoef(found, one)[0, 1] == pytest.approx(math.cos(share * math.pi / 2), abs=0.01)
