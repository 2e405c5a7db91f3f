"""What people write behind an axis: closed examples, what is refused, and a few laws for anything else."""

from contextlib import suppress
from decimal import Decimal
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fewstep.errors import RequestError
from fewstep.grid.values import joined, numbers, split_values


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("a", ["a"]),
        (" a , b ", ["a", "b"]),
        ("a,,b,", ["a", "b"]),
        ("", []),
        ('"a, b",c', ["a, b", "c"]),
        ('""', [""]),
        ('apple,""', ["apple", ""]),
        ('" a ",b', [" a ", "b"]),
        ('"say ""hi""",x', ['say "hi"', "x"]),
        ('a "quoted" word,b', ['a "quoted" word', "b"]),
        ("two\nlines, one", ["two\nlines", "one"]),
        ("<lora:ink:0.5>,<lora:ink:1>", ["<lora:ink:0.5>", "<lora:ink:1>"]),
    ],
)
def test_values(text, values):
    assert split_values(text) == values


@given(st.lists(st.text(' ",ab\n-', max_size=8), max_size=6))
def test_joined_values_are_read_back(values):
    assert split_values(joined(values)) == values


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("4", [4]),
        ("1-8", [1, 2, 3, 4, 5, 6, 7, 8]),
        ("1 - 3", [1, 2, 3]),
        ("8-5", [8, 7, 6, 5]),
        ("1-5 (+2)", [1, 3, 5]),
        ("1-6(2)", [1, 3, 5]),
        ("10-1 (-3)", [10, 7, 4, 1]),
        ("1-10 [5]", [1, 3, 5, 7, 10]),
        ("10-1 [4]", [10, 7, 4, 1]),
        ("1-3 [9]", [1, 2, 3]),
        ("5-9 [1]", [5]),
        ("3-3", [3]),
        ("1, 2, 4-6, 2", [1, 2, 4, 5, 6]),
        ("-2-2", [-2, -1, 0, 1, 2]),
        ("2--2 (-2)", [2, 0, -2]),
        ("4.0", [4]),
    ],
)
def test_whole_numbers(text, values):
    found = numbers(text, whole=True)
    assert found == values
    assert all(type(value) is int for value in found)


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("1, 1.5, 2", [1, 1.5, 2]),
        ("0.1-0.5 (+0.1)", [0.1, 0.2, 0.3, 0.4, 0.5]),
        ("1-0 (-0.25)", [1, 0.75, 0.5, 0.25, 0]),
        ("0-1 [5]", [0, 0.25, 0.5, 0.75, 1]),
        ("1-2 [4]", [1, 1.3333333333, 1.6666666667, 2]),
        ("-1-1 (+0.5)", [-1, -0.5, 0, 0.5, 1]),
        (".5,1.,1e-3", [0.5, 1, 0.001]),
        ("1-3", [1, 2, 3]),
        ("1-1.9 (+.5)", [1, 1.5]),
    ],
)
def test_fractions(text, values):
    assert numbers(text, whole=False) == values


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("two", "no number"),
        ("1-", "no number"),
        ("1..3", "no number"),
        ("1-8 (+2", "no number"),
        ("nan", "no number"),
        ("inf", "no number"),
        ("1-5 (-1)", "never arrives"),
        ("5-1 (+1)", "never arrives"),
        ("1-5 (0)", "never arrives"),
        ("1-5 [0]", "0 values"),
        ("0-4294967295", "4294967296 values"),
        ("1-2 [10001]", "10001 values"),
        ("1-2 (+5)", "larger than the whole"),
        ('"1', "not closed"),
    ],
)
@pytest.mark.parametrize("whole", [True, False])
def test_what_is_refused(text, said, whole):
    with pytest.raises(RequestError, match=said) as error:
        numbers(text, whole=whole)
    assert "\n" not in str(error.value)


def test_fractions_where_only_whole_numbers_are_allowed():
    for text in ("1.5", "0.5-1", "1-2 (+0.5)", "1e-3"):
        with pytest.raises(RequestError, match="not whole"):
            numbers(text, whole=True)


@given(st.integers(-500, 500), st.integers(-500, 500), st.integers(1, 60))
def test_a_range_begins_at_its_start_and_does_not_pass_its_end(start, end, step):
    if step > abs(end - start) > 0:
        return
    found = numbers(f"{start}-{end} ({'+' if end >= start else '-'}{step})", whole=True)
    assert found[0] == start
    assert all(min(start, end) <= value <= max(start, end) for value in found)
    assert abs(end - found[-1]) < step
    assert {abs(b - a) for a, b in pairwise(found)} <= {step}


@given(st.decimals(-9, 9, places=2), st.decimals(-9, 9, places=2), st.integers(2, 40))
def test_a_counted_range_has_both_ends(start, end, count):
    found = numbers(f"{start}-{end} [{count}]", whole=False)
    assert (found[0], found[-1]) == (float(start), float(end))
    assert len(found) == (count if start != end else 1)
    assert found == sorted(found, reverse=end < start)


@given(st.text('01-+.,()[] "eE', max_size=12))
def test_any_text_is_numbers_or_one_sentence(text):
    with suppress(RequestError):
        assert all(isinstance(value, float) for value in numbers(text, whole=False))


def test_fractions_are_exact():
    assert numbers("0-1 (+0.01)", whole=False) == [float(Decimal(place) / 100) for place in range(101)]
