"""CpuNoise against torch itself; NvNoise against the published vectors of Philox and what CUDA is known to draw."""

import math

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import given, settings

from fewstep.noise import STREAMS, CpuNoise, NvNoise, philox

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


# ---- the GPU's noise

KNOWN_ANSWERS = [
    ("00000000 00000000 00000000 00000000", "00000000 00000000", "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
    ("ffffffff ffffffff ffffffff ffffffff", "ffffffff ffffffff", "408f276d 41c83b0e a20bc7c6 6d5451fd"),
    ("243f6a88 85a308d3 13198a2e 03707344", "a4093822 299f31d0", "d16cfe09 94fdcceb 5001e420 24126ea1"),
]


@pytest.mark.parametrize(("counter", "key", "answer"), KNOWN_ANSWERS)
def test_philox_gives_the_known_answers(counter, key, answer):
    """Random123's `kat_vectors`, philox4x32 of 10 rounds; twice side by side."""
    counter, key, answer = ([int(word, 16) for word in words.split()] for words in (counter, key, answer))
    found = philox(np.array([counter, counter], np.uint64).T, (key[0], key[1]))
    assert found.T.tolist() == [answer, answer]


def test_nv_draws_what_cuda_draws():
    """`torch.manual_seed(0); torch.randn(3, 4, device="cuda")`, as published with A1111's generator."""
    expected = [
        [-0.92466259, -0.42534415, -2.6438457, 0.14518388],
        [-0.12086647, -0.57972564, -0.62285122, -0.32838709],
        [-1.07454231, -0.36314407, -1.67105067, 2.26550497],
    ]
    found = NvNoise(0).normal((3, 4))
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, atol=2e-7)


def by_hand(seed, draw, place):
    """One number in Python's own integers: the round function as in the paper's figure, the key bumped before."""
    c, k = [draw, 0, place, 0], [seed & 0xFFFFFFFF, seed >> 32]
    for turn in range(10):
        if turn:
            k = [(k[0] + 0x9E3779B9) & 0xFFFFFFFF, (k[1] + 0xBB67AE85) & 0xFFFFFFFF]
        (h0, l0), (h1, l1) = divmod(c[0] * 0xD2511F53, 1 << 32), divmod(c[2] * 0xCD9E8D57, 1 << 32)
        c = [h1 ^ c[1] ^ k[0], l1, h0 ^ c[3] ^ k[1], l0]
    u, v = (c[0] + 0.5) / 2**32, (c[1] + 0.5) / 2**32
    return math.sqrt(-2 * math.log(u)) * math.sin(2 * math.pi * v)


@pytest.mark.parametrize("seed", [0, 1, 2**31, 2**32 - 1, 2**40 + 5])
def test_nv_by_hand_seed_by_seed_draw_by_draw(seed):
    noise = NvNoise(seed)
    for draw in range(3):
        expected = [by_hand(seed, draw, place) for place in range(24)]
        np.testing.assert_allclose(noise.normal((2, 3, 4)).ravel(), expected, atol=1e-6)


@pytest.mark.parametrize("rng", STREAMS)
def test_every_stream_is_normal_and_has_its_seeds_own_numbers(rng):
    draws = STREAMS[rng](3).normal((1, 4, 64, 64))
    assert abs(draws.mean()) < 0.03
    assert draws.std() == pytest.approx(1, abs=0.03)
    assert (draws != STREAMS[rng](4).normal((1, 4, 64, 64))).all()
