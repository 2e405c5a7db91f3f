"""CpuNoise against torch itself."""

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import given, settings

from fewstep.noise import CpuNoise

SHAPES = [(1, 4, 16, 16), (1, 4, 9, 13), (16,), (17,), (31,), (32,), (33,), (1,), (15,), (0,), (2, 0, 3), (2, 3)]


def torch_draws(seed, shapes):
    generator = torch.Generator("cpu").manual_seed(seed)
    return [torch.randn(shape, generator=generator).numpy() for shape in shapes]


def assert_same(seed, shapes):
    noise = CpuNoise(seed)
    for shape, wanted in zip(shapes, torch_draws(seed, shapes), strict=True):
        found = noise.normal(shape)
        assert found.dtype == np.float32 and found.shape == tuple(shape)
        np.testing.assert_allclose(found, wanted, atol=2e-6, rtol=2e-6)


@pytest.mark.parametrize("seed", [0, 1, 7, 42, 2**31 - 1, 2**31, 2**32 - 1, 2**32, 2**40 + 5])
def test_the_same_numbers_as_torch_draw_after_draw(seed):
    assert_same(seed, SHAPES + SHAPES[:3])


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32 - 1), st.lists(st.integers(0, 70), min_size=1, max_size=6))
def test_any_seed_any_sizes(seed, sizes):
    assert_same(seed, [(size,) for size in sizes])


def test_a_large_draw_is_within_a_few_units_in_the_last_place():
    assert_same(123, [(3, 4, 64, 64)])


def test_streams_do_not_disturb_one_another():
    one, other = CpuNoise(5), CpuNoise(6)
    first = one.normal((40,))
    other.normal((40,))
    again = CpuNoise(5)
    np.testing.assert_array_equal(first, again.normal((40,)))
    np.testing.assert_array_equal(one.normal((40,)), again.normal((40,)))
