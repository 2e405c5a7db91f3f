"""Diversity against closed forms."""

import numpy as np
import pytest

from fewstep.errors import RequestError
from fewstep.evaluate.cases import Case
from fewstep.evaluate.diversity import groups_by_label, groups_by_prompt, pair_diversity, vendi


def test_equal_pictures_are_no_diversity():
    x = np.tile(np.random.default_rng(0).normal(size=7), (6, 1))
    assert pair_diversity(x, [0, 0, 0, 1, 1, 1]) == 0
    assert vendi(x) == pytest.approx(1)


def test_orthogonal_pictures_count_each():
    x = 3 * np.eye(5)
    assert vendi(x) == pytest.approx(5)
    assert pair_diversity(x, ["a"] * 5) == pytest.approx(3 * np.sqrt(2))


def test_two_clusters_of_any_sizes_have_their_entropy():
    x = np.repeat(np.eye(2), (3, 1), axis=0)
    assert vendi(x) == pytest.approx(np.exp(-(0.75 * np.log(0.75) + 0.25 * np.log(0.25))))


@pytest.mark.parametrize("shape", [(4, 9), (9, 4)])
def test_vendi_equals_its_definition_whichever_matrix_is_smaller(shape):
    x = np.random.default_rng(2).normal(size=shape)
    unit = x / np.linalg.norm(x, axis=1, keepdims=True)
    values = np.linalg.eigvals(unit @ unit.T / len(x)).real
    values = values[values > 1e-12]
    assert vendi(x) == pytest.approx(float(np.exp(-np.sum(values * np.log(values)))))
    assert vendi(x) == pytest.approx(vendi(7 * x))


def test_groups_weigh_alike_and_strangers_do_not_count():
    x = np.array([[0.0], [1.0], [100.0], [101.0], [102.0], [500.0]])
    assert pair_diversity(x, "aabbbc") == pytest.approx((1 + 4 / 3) / 2)


def test_normal_pictures_are_two_sigma_over_root_pi_apart():
    x = np.random.default_rng(3).normal(scale=2.0, size=(1500, 1))
    assert pair_diversity(x, [0] * 1500) == pytest.approx(2 * 2.0 / np.sqrt(np.pi), rel=0.05)


def test_groups_of_cases():
    cases = [Case("a cat, 3d", 0, "cat", "3d"), Case("a cat, 3d on a red background", 1, "cat", "3d"), Case("a dog", 2)]
    assert groups_by_label(cases) == [("cat", "3d"), ("cat", "3d"), "a dog"]
    assert groups_by_prompt(cases) == [case.prompt for case in cases]


def test_what_has_no_diversity_is_refused():
    with pytest.raises(RequestError, match="2 pictures but 1 groups"):
        pair_diversity(np.eye(2), ["a"])
    with pytest.raises(RequestError, match="more seeds"):
        pair_diversity(np.eye(2), ["a", "b"])
    with pytest.raises(RequestError, match="direction"):
        vendi(np.zeros((2, 3)))
    with pytest.raises(RequestError, match="shape"):
        vendi(np.zeros(3))
