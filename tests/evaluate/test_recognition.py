"""Rates, intervals and backgrounds."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fewstep.errors import RequestError
from fewstep.evaluate.background import border_colour, nearest_colour, obeyed
from fewstep.evaluate.recognition import Rate, top, wilson

COLOURS = {"white": (255, 255, 255), "red": (214, 45, 50), "black": (24, 24, 28)}


@pytest.mark.parametrize(
    ("hits", "count", "low", "high"),
    [(0, 10, 0.0, 0.2775), (10, 10, 0.7225, 1.0), (50, 100, 0.4038, 0.5962), (1, 1, 0.2065, 1.0)],
)
def test_wilson_against_published_values(hits, count, low, high):
    assert wilson(hits, count) == pytest.approx((low, high), abs=1e-4)


@given(st.integers(1, 500).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_wilson_holds_the_share_and_solves_its_equation(drawn):
    hits, count = drawn
    low, high = wilson(hits, count)
    assert 0 <= low <= hits / count <= high <= 1
    for p in (low, high):  # the score test is exactly at its edge there
        if 0 < p < 1:
            assert (hits / count - p) ** 2 == pytest.approx(3.841458820694124 * p * (1 - p) / count)


@pytest.mark.parametrize(("hits", "count"), [(1, 0), (3, 2), (-1, 2)])
def test_impossible_rates_are_refused(hits, count):
    with pytest.raises(RequestError, match=f"{hits} of {count}"):
        wilson(hits, count)


def test_top_k_and_ties():
    logits = np.array([[3.0, 2.0, 1.0], [3.0, 2.0, 1.0], [1.0, 1.0, 1.0]])
    wanted = np.array([0, 1, 2])
    assert top(logits, wanted) == Rate(1, 3)
    assert top(logits, wanted, k=2) == Rate(2, 3)
    assert top(logits, wanted, k=3).share == 1


@pytest.mark.parametrize("side", [1, 2, 8, 128])
def test_the_border_and_not_the_middle_counts(side):
    picture = np.full((side, side, 3), COLOURS["red"], np.uint8)
    if side > 2:
        picture[side // 4 : -side // 4, side // 4 : -side // 4] = 255
    np.testing.assert_array_equal(border_colour(picture), COLOURS["red"])
    assert obeyed(picture, "red", COLOURS)
    assert not obeyed(picture, "white", COLOURS)


def test_a_thing_that_touches_the_border_does_not_hide_it():
    picture = np.full((64, 64, 3), 250, np.uint8)
    picture[:, 20:44] = 0
    assert obeyed(picture, "white", COLOURS)
    assert nearest_colour(np.array([30.0, 20, 20]), COLOURS) == "black"
