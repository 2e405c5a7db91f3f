"""The fixed prompts."""

from collections import Counter

import pytest

from fewstep.errors import RequestError
from fewstep.evaluate.cases import (
    concept_in,
    held_out_background_cases,
    held_out_style_cases,
    read_cases,
    seen_cases,
    words,
)
from tests.evaluate.worlds import LABELS


def test_wording():
    assert words(LABELS, "apple", "3d", None) == "an apple, 3d"
    assert words(LABELS, "apple", "3d", "white") == "an apple, 3d"
    assert words(LABELS, "cat", "flat", "night") == "a cat, flat at night"


def test_seen_prompts_are_balanced_and_the_same_every_time():
    cases = seen_cases(LABELS, 50)
    assert cases == seen_cases(LABELS, 50)
    assert cases[:20] == seen_cases(LABELS, 20)
    counts = Counter((case.concept, case.style) for case in cases)
    assert len(counts) == 5
    assert set(counts.values()) == {10}
    assert Counter(case.background == "white" for case in cases) == {True: 25, False: 25}
    assert [case.seed for case in cases] == list(range(50))


def test_every_pair_meets_a_background_every_second_round():
    with_background = Counter((c.concept, c.style) for c in seen_cases(LABELS, 20) if c.background != "white")
    assert set(with_background.values()) == {2}


def test_seen_prompts_hold_nothing_that_is_held_out():
    for case in seen_cases(LABELS, 200):
        assert (case.concept, case.style) not in LABELS.held_out_styles
        assert (case.concept, case.background) not in LABELS.held_out_backgrounds


def test_held_out_prompts_hold_nothing_else():
    styles, backgrounds = held_out_style_cases(LABELS, 5), held_out_background_cases(LABELS, 8)
    assert {(c.concept, c.style) for c in styles} == set(LABELS.held_out_styles)
    assert {(c.concept, c.background) for c in backgrounds} == set(LABELS.held_out_backgrounds)
    assert len({c.style for c in backgrounds}) == 2
    seeds = [c.seed for c in (*seen_cases(LABELS, 50), *styles, *backgrounds)]
    assert len(set(seeds)) == len(seeds)


def test_a_foreign_style_is_asked_of_every_concept():
    cases = seen_cases(LABELS, 6, styles=("blob",))
    assert Counter(case.concept for case in cases) == dict.fromkeys(LABELS.concepts, 2)
    assert all(", blob" in case.prompt for case in cases)


@pytest.mark.parametrize(
    ("prompt", "concept"),
    [
        ("A Red Apple, oil painting", "red apple"),
        ("an apple", "apple"),
        ("pineapple pie", None),
        ("", None),
        ("cat", "cat"),
    ],
)
def test_the_longest_whole_word_names_the_concept(prompt, concept):
    assert concept_in(prompt, LABELS) == concept


def test_prompts_from_a_file(tmp_path):
    path = tmp_path / "prompts.txt"
    path.write_text("# mine\na cat, flat\n\n  something else \nthird\n", encoding="utf-8")
    cases = read_cases(path, LABELS, count=2)
    assert [(c.prompt, c.seed, c.concept, c.style) for c in cases] == [
        ("a cat, flat", 0, "cat", "flat"),
        ("something else", 1, None, None),
    ]


def test_an_empty_or_missing_file_is_refused(tmp_path):
    path = tmp_path / "prompts.txt"
    with pytest.raises(RequestError, match="cannot be read"):
        read_cases(path, LABELS)
    path.write_text("# nothing\n\n")
    with pytest.raises(RequestError, match="no prompt"):
        read_cases(path, LABELS)
