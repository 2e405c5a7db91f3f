"""Paired, nearest and covering distances against loops and plain cases."""

import numpy as np
import pytest

from fewstep.errors import RequestError
from fewstep.evaluate import distance
from fewstep.evaluate.distance import (
    nearest,
    nearest_rms,
    pixel_rms,
    precision_recall,
    relative_distance,
    thumbnails,
)


def test_pixel_rms_is_in_units_of_255():
    a = np.zeros((3, 8, 8, 3), np.uint8)
    b = a.copy()
    b[1], b[2, :4] = 255, 10
    np.testing.assert_allclose(pixel_rms(a, b), [0, 255, 10 / np.sqrt(2)])
    np.testing.assert_allclose(pixel_rms(a, b), pixel_rms(b, a))


def test_pairs_of_different_size_are_refused():
    with pytest.raises(RequestError, match="one shape"):
        pixel_rms(np.zeros((1, 8, 8, 3), np.uint8), np.zeros((1, 4, 4, 3), np.uint8))


def test_nearest_equals_a_loop_over_several_blocks(monkeypatch):
    monkeypatch.setattr(distance, "ROWS", 3)
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(8, 4)), rng.normal(size=(5, 4))
    found, which = nearest(a, b)
    every = np.linalg.norm(a[:, None] - b, axis=-1)
    np.testing.assert_allclose(found, every.min(1), atol=1e-9)
    np.testing.assert_array_equal(which, every.argmin(1))


def test_relative_distance_is_zero_for_equals_and_one_for_strangers():
    x = np.random.default_rng(1).normal(size=(400, 16))
    other = np.random.default_rng(2).normal(size=(400, 16))
    assert relative_distance(x, x) == 0
    assert relative_distance(other, x) == pytest.approx(1, abs=0.05)


def test_relative_distance_where_all_strangers_are_equal():
    same = np.ones((4, 2))
    assert relative_distance(same, same) == 0
    assert relative_distance(same + 1, same) == float("inf")


def brute(real, fake, k):
    def covered(inner, outer):
        radius = [np.sort(np.linalg.norm(outer - x, axis=1))[k] for x in outer]
        return np.mean([any(np.linalg.norm(y - x) <= r for x, r in zip(outer, radius, strict=True)) for y in inner])

    return covered(fake, real), covered(real, fake)


@pytest.mark.parametrize("k", [1, 3])
def test_precision_and_recall_equal_the_definition(k, monkeypatch):
    monkeypatch.setattr(distance, "ROWS", 7)
    rng = np.random.default_rng(3)
    real, fake = rng.normal(size=(20, 2)), rng.normal(0.8, 0.5, size=(16, 2))
    assert precision_recall(real, fake, neighbours=k) == pytest.approx(brute(real, fake, k))


def test_precision_and_recall_at_the_extremes():
    x = np.random.default_rng(4).normal(size=(12, 3))
    assert precision_recall(x, x) == (1, 1)
    assert precision_recall(x, x + 100) == (0, 0)
    one_mode = np.concatenate([x, x + 100])
    precision, recall = precision_recall(one_mode, x)
    assert (precision, recall) == (1, 0.5)
    with pytest.raises(RequestError, match="more than 3"):
        precision_recall(x[:3], x)


def test_thumbnails_average_blocks():
    pictures = np.random.default_rng(5).integers(0, 256, (2, 64, 96, 3)).astype(np.uint8)
    found = thumbnails(pictures, size_px=32).reshape(2, 32, 32, 3)
    np.testing.assert_allclose(found[1, 3, 5], pictures[1, 6:8, 15:18].mean((0, 1)))
    with pytest.raises(RequestError, match="multiples"):
        thumbnails(pictures, size_px=30)


def test_a_copy_is_nearest_to_its_original():
    rng = np.random.default_rng(6)
    training = rng.integers(0, 256, (5, 32, 32, 3)).astype(np.uint8)
    shifted = np.clip(training[3:4].astype(int) + 2, 0, 255).astype(np.uint8)
    found = nearest_rms(np.concatenate([training[2:3], shifted]), training)
    assert found[0] == pytest.approx(0, abs=1e-3)
    assert 1.5 < found[1] <= 2.01
