"""Prompts that change step by step, composed prompts, weights: closed examples of the notation, and no absurd input."""

import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fewstep.errors import RequestError
from fewstep.prompt.edits import texts
from fewstep.prompt.emphasis import MODES, Span, passages
from fewstep.prompt.stages import Part, Stage, stages


def runs(prompt, steps, **how):
    """[(last step, counted from 1, text)], as the notation's own users count."""
    said = texts(prompt, steps, **how)
    ends = [step for step in range(steps) if step + 1 == steps or said[step + 1] != said[step]]
    return [(step + 1, said[step]) for step in ends]


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ("test", [(10, "test")]),
        ("a [b:3]", [(3, "a "), (10, "a b")]),
        ("a [b: 3]", [(3, "a "), (10, "a b")]),
        ("a [[[b]]:2]", [(2, "a "), (10, "a [[b]]")]),
        ("[(a:2):3]", [(3, ""), (10, "(a:2)")]),
        ("a [b:c:1] d", [(1, "a b d"), (10, "a c d")]),
        ("a [b::0.5]", [(5, "a b"), (10, "a ")]),
        ("a [b:[c:d:2]:1] e", [(1, "a b e"), (2, "a c e"), (10, "a d e")]),
        ("[a:b:.25]", [(2, "a"), (10, "b")]),
        ("[a:b:0.99]", [(9, "a"), (10, "b")]),
        ("[a:b:1.0]", [(10, "a")]),
        ("[a:b:0]", [(10, "b")]),
        ("[a:b:10]", [(10, "a")]),
        ("[a:b:99]", [(10, "a")]),
        ("[a (b:1.2) c:[d]:5]", [(5, "a (b:1.2) c"), (10, "[d]")]),
        ("((a[:b:c]d:5]", [(10, "((a[:b:c]d:5]")]),
        ("[a|b]", [(n, "ab"[(n - 1) % 2]) for n in range(1, 11)]),
        ("[a|b|]c", [(n, ["ac", "bc", "c"][(n - 1) % 3]) for n in range(1, 11)]),
        ("[a|[b:c:4]]", [(n, "a" if n % 2 else "b" if n <= 4 else "c") for n in range(1, 11)]),
        ("[a:b]", [(10, "[a:b]")]),
        ("[a:b:c]", [(10, "[a:b:c]")]),
        ("[a:b:c:0.5]", [(10, "[a:b:c:0.5]")]),
        ("[a:b:-3]", [(10, "[a:b:-3]")]),
        (r"\[a:b:3\]", [(10, r"\[a:b:3\]")]),
        (r"[a\|b|c]", [(n, r"a\|b" if n % 2 else "c") for n in range(1, 11)]),
        ("a]b[c", [(10, "a]b[c")]),
        ("[", [(10, "[")]),
        ("", [(10, "")]),
    ],
)
def test_edits(prompt, expected):
    assert runs(prompt, 10) == expected


@pytest.mark.parametrize("steps", range(1, 9))
def test_a_share_of_the_steps_is_rounded_down(steps):
    said = texts("[a:b:0.5]", steps)
    assert said == ("a",) * (steps // 2) + ("b",) * (steps - steps // 2)


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ("[a:b:0.5]", [(4, "b")]),
        ("[a:b:1.5]", [(2, "a"), (4, "b")]),
        ("[a:b:3]", [(4, "b")]),
        ("[a:b:9]", [(3, "a"), (4, "b")]),
    ],
)
def test_a_second_pass_counts_on(prompt, expected):
    assert runs(prompt, 4, done=6) == expected


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ("a cat", [("a cat", 1)]),
        ("a (cat)", [("a ", 1), ("cat", 1.1)]),
        ("((cat))", [("cat", 1.21)]),
        ("(a (cat:2) b:0.5)", [("a ", 0.5), ("cat", 1), (" b", 0.5)]),
        ("[cat]", [("cat", 1 / 1.1)]),
        ("(cat", [("cat", 1.1)]),
        ("[(cat", [("cat", 1)]),
        (r"\(cat\) \[x\] \\", [("(cat) [x] \\", 1)]),
        ("cat)", [("cat)", 1)]),
        ("a:b", [("a:b", 1)]),
        ("16:9)", [("16:9)", 1)]),
        ("(a:1.2.3)", [("a:1.2.3", 1.1)]),
        ("(cat:-1)(dog: .5 )", [("cat", -1), ("dog", 0.5)]),
        ("(cat:0)", [("cat", 0)]),
        ("", []),
        ("()", []),
    ],
)
def test_weights(prompt, expected):
    (found,) = passages(prompt)
    assert [(span.text, pytest.approx(span.weight)) for span in found] == expected


def test_break_ends_a_passage():
    found = passages("a (b BREAK c:2) BREAKER BREAK")
    assert found == ((Span("a "), Span("b ", 2.0)), (Span(" c", 2.0), Span(" BREAKER ")), ())


def test_modes():
    assert passages("a (b:2)", "ignore") == ((Span("a "), Span("b")),)
    assert passages(r"a (b:2) BREAK \(", "none") == ((Span(r"a (b:2) BREAK \("),),)
    assert passages("(a:2)", "no norm") == passages("(a:2)", "original")


def test_composed_prompts():
    found = stages("a [b|c] AND d :0.5 AND e:-1", "[n:1]", 2)
    rest = (Part(" d ", 0.5), Part(" e", -1.0))
    assert found == (Stage(0, (Part("a b "), *rest), ""), Stage(1, (Part("a c "), *rest), "n"))
    assert stages("BAND :0.5", "x AND y", 3) == (Stage(0, (Part("BAND :0.5"),), "x AND y"),)
    assert stages("16:9", "", 3)[0].parts == (Part("16:9"),)


WORDS = st.text(alphabet="ab ,.\n\u732b\U0001f431", max_size=20)
SIGNS = st.text(alphabet="ab:|()[]\\0.5 \n", max_size=200)


@given(WORDS, st.integers(1, 8))
def test_plain_words_are_left_as_they_are(words, steps):
    assert stages(words, words, steps) == (Stage(0, (Part(words),), words),)
    assert "".join(span.text for span in passages(words)[0]) == words


@settings(max_examples=300)
@given(SIGNS, st.integers(1, 8))
def test_no_signs_are_too_odd(prompt, steps):
    for stage in stages(prompt, "", steps):
        for mode in MODES:
            assert all(abs(span.weight) <= 1000 for passage in passages(stage.parts[0].words, mode) for span in passage)


@given(
    st.recursive(st.sampled_from("ab"), lambda inner: st.builds("[{}:{}:{}]".format, inner, inner, st.integers(0, 9)))
)
def test_nested_switches_say_one_letter(prompt):
    assert all(said in ("a", "b") for said in texts(prompt, 8))


ABSURD = [
    *("(" * 10_000, ")" * 10_000, "(a" * 5_000, "(" * 5_000 + "]" * 5_000, " " * 10_000, ":" * 10_000),
    *(
        "[a|" * 49 + "b" * 900,
        "\\" * 9_999,
        "a:1 " * 2_500,
        "[" + "|" * 9_000 + "]",
        "BREAK " * 1_600,
        "a AND " * 1_600,
    ),
    "(" * 60 + "a" + ":1.1)" * 60,
]


@pytest.mark.parametrize("prompt", ABSURD)
def test_absurd_prompts_end_soon(prompt):
    started = time.process_time()
    try:
        for stage in stages(prompt, "", 8):
            for part in stage.parts:
                passages(part.words)
    except RequestError as error:
        assert "weight" in str(error)
    assert time.process_time() - started < 5


@pytest.mark.parametrize("prompt", ["[" * 51, "[a:" * 60 + "b" + ":1]" * 60])
def test_brackets_too_deep(prompt):
    with pytest.raises(RequestError, match="more than 50 square brackets"):
        texts(prompt, 4)


@pytest.mark.parametrize("prompt", ["(a:1001)", "(a:-9999)", "(" * 100 + "a", "((a:999):999)", "(a:" + "9" * 400 + ")"])
def test_weights_beyond_reason(prompt):
    with pytest.raises(RequestError, match="a weight beyond 1000"):
        passages(prompt)
