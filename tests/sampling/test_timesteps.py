"""The tables of timesteps: published values, and what must hold for all of them."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fewstep.errors import RequestError
from fewstep.sampling import TABLES, Schedule, scaled_linear, timesteps

PUBLISHED = {
    ("linspace-lcm", 1): (999,),
    ("linspace-lcm", 2): (999, 499),
    ("linspace-lcm", 3): (999, 679, 339),
    ("linspace-lcm", 4): (999, 759, 499, 259),
    ("linspace-lcm", 5): (999, 799, 599, 399, 199),
    ("linspace-lcm", 6): (999, 839, 679, 499, 339, 179),
    ("linspace-lcm", 7): (999, 859, 719, 579, 439, 299, 159),
    ("linspace-lcm", 8): (999, 879, 759, 639, 499, 379, 259, 139),
    ("a1111", 1): (999,),
    ("a1111", 4): (999, 672, 346, 19),
    ("sgm", 1): (999,),
    ("sgm", 4): (999, 754, 509, 264),
    ("trailing", 1): (999,),
    ("trailing", 4): (999, 749, 499, 249),
    ("leading", 4): (751, 501, 251, 1),
    ("linspace", 1): (999,),
    ("linspace", 4): (999, 749, 500, 250),
    ("ddim", 4): (751, 501, 251, 1),
}
SCHEDULES = {count: Schedule(scaled_linear(count=count)) for count in (10, 50, 500, 999, 1000)}


@pytest.mark.parametrize(("table", "steps"), PUBLISHED)
def test_published_tables(table, steps):
    assert timesteps(table, steps) == PUBLISHED[table, steps]


def test_the_distillation_grid_is_a_parameter():
    assert timesteps("linspace-lcm", 4, origin_steps=100) == (999, 749, 499, 249)
    assert timesteps("linspace-lcm", 50) == tuple(range(999, 18, -20))


def test_strength_keeps_the_number_of_evaluations():
    assert timesteps("linspace-lcm", 4, strength=0.5) == (499, 379, 259, 139)
    assert timesteps("trailing", 4, strength=0.5) == (499, 374, 249, 124)
    assert timesteps("sgm", 1, strength=0.5) == (499,)


@pytest.mark.parametrize("table", TABLES)
def test_one_step_at_the_lowest_strength(table):
    expected = {"linspace-lcm": 19, "a1111": 19, "sgm": 19, "leading": 1, "ddim": 1}.get(table, 9)
    assert timesteps(table, 1, strength=0.01) == (expected,)
    assert len(timesteps(table, 1, strength=1e-9)) == 1


@settings(max_examples=300, deadline=None)
@given(
    table=st.sampled_from(TABLES),
    steps=st.integers(1, 1000),
    strength=st.floats(0, 1, exclude_min=True),
    count=st.sampled_from([10, 50, 999, 1000]),
    origin_steps=st.sampled_from([1, 4, 7, 10, 50]),
)
def test_every_table_falls_within_range_or_says_why_not(table, steps, strength, count, origin_steps):
    if origin_steps > count:
        return
    try:
        found = timesteps(table, steps, strength=strength, schedule=SCHEDULES[count], origin_steps=origin_steps)
    except RequestError as error:
        assert "Use steps <= " in str(error)
        return
    assert len(found) == steps
    assert all(a > b for a, b in pairwise(found))
    assert 0 <= found[-1] <= found[0] < count
    skip = count // origin_steps
    assert found[0] <= max(round(strength * count) - 1, skip - 1, 1)


@pytest.mark.parametrize("table", TABLES)
@pytest.mark.parametrize("strength", [0.02, 0.1, 0.3, 0.58, 1.0])
def test_the_advice_of_the_error_works(table, strength):
    """Both ways out that the message offers are open, and one step more is not."""
    with pytest.raises(RequestError) as caught:
        timesteps(table, 999, strength=strength, schedule=SCHEDULES[500])
    most = int(str(caught.value).split("Use steps <= ")[1].split(" ")[0].rstrip("."))
    assert len(timesteps(table, most, strength=strength, schedule=SCHEDULES[500])) == most
    with pytest.raises(RequestError) as caught:
        timesteps(table, most + 1, strength=strength, schedule=SCHEDULES[500])
    if "or strength >= " in str(caught.value):
        enough = float(str(caught.value).split("or strength >= ")[1].rstrip("."))
        assert len(timesteps(table, most + 1, strength=enough, schedule=SCHEDULES[500])) == most + 1


def test_the_error_is_the_one_in_the_house_rules():
    with pytest.raises(RequestError) as caught:
        timesteps("linspace-lcm", 8, strength=0.1)
    assert str(caught.value) == (
        "8 steps at strength 0.1 need 8 of the model's timesteps, but only 5 of 50 lie below that strength. "
        "Use steps <= 5 or strength >= 0.16."
    )
    with pytest.raises(RequestError, match=r"more than the 50 timesteps .* Use steps <= 50 at strength 1"):
        timesteps("linspace-lcm", 51)


@pytest.mark.parametrize("steps", [0, -1, 1001, 2.5, "4", None])
def test_steps_are_from_1_to_1000(steps):
    with pytest.raises(RequestError, match="steps must be a whole number from 1 to 1000"):
        timesteps("trailing", steps)


@pytest.mark.parametrize("strength", [0.0, -0.5, 1.01, float("nan")])
def test_strength_is_above_0_and_at_most_1(strength):
    with pytest.raises(RequestError, match="strength must be"):
        timesteps("trailing", 4, strength=strength)


def test_other_values_out_of_range():
    with pytest.raises(RequestError, match=r"best.*Choose one of: linspace-lcm, a1111"):
        timesteps("best", 4)
    with pytest.raises(RequestError, match="origin_steps"):
        timesteps("linspace-lcm", 4, origin_steps=0)
    with pytest.raises(RequestError, match="origin_steps"):
        timesteps("linspace-lcm", 4, origin_steps=1001)


def test_numpy_integers_and_capitals_are_welcome():
    assert timesteps("Trailing", np.int64(2)) == (999, 499)  # pyright: ignore[reportArgumentType]
    assert len(timesteps("trailing", 1000)) == len(timesteps("linspace", 1000)) == 1000
