"""Set distances against closed forms and slow loops."""

import numpy as np
import pytest

from fewstep.errors import RequestError
from fewstep.evaluate.frechet import Moments, frechet_distance, kernel_distance, moments, root


def test_diagonal_gaussians_have_a_closed_form():
    a = Moments(np.array([1.0, -2.0, 0.5]), np.diag([4.0, 1.0, 0.25]), 10)
    b = Moments(np.array([0.0, 1.0, 0.5]), np.diag([1.0, 9.0, 0.25]), 10)
    assert frechet_distance(a, b) == pytest.approx(1 + 9 + (2 - 1) ** 2 + (1 - 3) ** 2 + 0)


def test_same_covariance_leaves_the_shift_alone():
    rng = np.random.default_rng(0)
    half = rng.normal(size=(6, 6))
    covariance, shift = half @ half.T, rng.normal(size=6)
    a, b = Moments(np.zeros(6), covariance, 9), Moments(shift, covariance, 9)
    assert frechet_distance(a, b) == pytest.approx(float(shift @ shift), rel=1e-6)


def test_general_gaussians_match_the_eigenvalues_of_the_product():
    rng = np.random.default_rng(1)
    one, two = (x @ x.T for x in rng.normal(size=(2, 5, 5)))
    expected = np.trace(one) + np.trace(two) - 2 * np.sqrt(np.linalg.eigvals(one @ two).astype(complex)).sum().real
    assert frechet_distance(Moments(np.zeros(5), one, 9), Moments(np.zeros(5), two, 9)) == pytest.approx(expected)


def test_one_dimension_and_few_pictures():
    a, b = np.array([[0.0], [2.0]]), np.array([[3.0], [5.0]])
    assert frechet_distance(moments(a), moments(b)) == pytest.approx(9)
    few = np.random.default_rng(2).normal(size=(3, 40))
    assert frechet_distance(moments(few), moments(few)) == pytest.approx(0, abs=1e-6)


def test_moments_are_numpys():
    x = np.random.default_rng(3).normal(size=(50, 4)).astype(np.float32)
    found = moments(x)
    assert found.count == 50
    np.testing.assert_allclose(found.mean_D, x.mean(0), atol=1e-6)
    np.testing.assert_allclose(found.covariance_DD, np.cov(x.T), atol=1e-6)


def test_root_squares_back():
    x = np.random.default_rng(4).normal(size=(5, 3))
    matrix = x @ x.T
    np.testing.assert_allclose(root(matrix) @ root(matrix), matrix, atol=1e-9)


def test_kernel_distance_equals_its_definition():
    rng = np.random.default_rng(5)
    a, b = rng.normal(size=(6, 3)), rng.normal(1, 1, size=(5, 3))

    def k(x, y):
        return (float(x @ y) / 3 + 1) ** 3

    within_a = sum(k(a[i], a[j]) for i in range(6) for j in range(6) if i != j) / 30
    within_b = sum(k(b[i], b[j]) for i in range(5) for j in range(5) if i != j) / 20
    across = sum(k(x, y) for x in a for y in b) / 30
    assert kernel_distance(a, b) == pytest.approx(within_a + within_b - 2 * across)


def test_kernel_distance_is_unbiased():
    rng = np.random.default_rng(6)
    found = [kernel_distance(*rng.normal(size=(2, 12, 2))) for _ in range(300)]
    assert abs(np.mean(found)) < 4 * np.std(found) / np.sqrt(len(found))


@pytest.mark.parametrize("features", [np.zeros((1, 4)), np.zeros(4)])
def test_too_few_vectors_are_refused(features):
    with pytest.raises(RequestError, match="at least 2"):
        moments(features)


def test_sets_of_different_width_are_refused():
    a, b = np.random.default_rng(7).normal(size=(4, 3)), np.random.default_rng(7).normal(size=(4, 2))
    with pytest.raises(RequestError, match="3 and 2 features"):
        frechet_distance(moments(a), moments(b))
    with pytest.raises(RequestError, match="one size"):
        kernel_distance(a, b)
