"""Guidance and its embedding."""

import math

import numpy as np
import pytest
import torch

from fewstep.sampling import guidance_embedding, guide, w_of


def test_guide_is_the_extrapolation(normal):
    cond, uncond = normal(1), normal(2)
    np.testing.assert_allclose(guide(cond, uncond, 7.5), 7.5 * cond - 6.5 * uncond, atol=1e-5)
    np.testing.assert_allclose(guide(cond, uncond, 7.5), (1 + w_of(7.5)) * cond - w_of(7.5) * uncond, atol=1e-5)
    np.testing.assert_array_equal(guide(cond, uncond, 0), uncond)


@pytest.mark.parametrize("guidance", [1, 1.0, [1.0, 1.0, 1.0]])
def test_guidance_of_exactly_1_is_the_condition_bit_for_bit(normal, guidance):
    cond, uncond = normal(1), 1e6 * normal(2)
    np.testing.assert_array_equal(guide(cond, uncond, guidance), cond)


def test_guidance_per_item_is_what_separate_runs_give(normal):
    cond, uncond = torch.from_numpy(normal(1)), torch.from_numpy(normal(2))
    together = guide(cond, uncond, torch.tensor([1.0, 4.0, 8.0]))
    apart = [guide(cond[i : i + 1], uncond[i : i + 1], s) for i, s in enumerate((1.0, 4.0, 8.0))]
    assert torch.equal(together, torch.cat(apart))


def test_float16_guidance_does_not_overflow():
    cond, uncond = np.full((1, 1), 6e4, np.float16), np.full((1, 1), -6e4, np.float16)
    result = guide(cond, uncond, 8.0)
    assert result.dtype == np.float32
    assert np.isfinite(result).all()


def test_the_embedding_has_sines_first_and_the_factor_1000():
    found = guidance_embedding([7.5, 0.0], 8, like=np.zeros(1))
    rates = [math.exp(-math.log(10000) * j / 3) for j in range(4)]
    expected = [math.sin(7500 * r) for r in rates] + [math.cos(7500 * r) for r in rates]
    np.testing.assert_allclose(found[0], expected, atol=1e-3)
    np.testing.assert_array_equal(found[1], [0, 0, 0, 0, 1, 1, 1, 1])
    assert found.dtype == np.float32


def test_the_embedding_tells_guidance_apart():
    """cos(E(2), E(7)) = -.01, as published; without the factor 1000 it would be .74."""
    two, seven = guidance_embedding([2.0, 7.0], like=np.zeros(1))
    assert two @ seven / (two @ two) ** 0.5 / (seven @ seven) ** 0.5 == pytest.approx(-0.01, abs=0.006)


@pytest.mark.parametrize("w", [7.5, [7.5], np.array([7.5]), torch.tensor([7.5], dtype=torch.bfloat16)])
def test_the_embedding_takes_numbers_and_arrays_of_either_kind(w):
    for like in (np.zeros(1, np.float16), torch.zeros(1, dtype=torch.float16)):
        found = guidance_embedding(w, like=like)
        assert tuple(found.shape) == (1, 256)
        np.testing.assert_allclose(np.asarray(found), guidance_embedding(7.5, like=np.zeros(1)), atol=2e-6)


@pytest.mark.parametrize("dim", [0, 2, 7])
def test_an_odd_or_tiny_dim_is_refused(dim):
    with pytest.raises(ValueError, match="even"):
        guidance_embedding(1.0, dim, like=np.zeros(1))
