"""Templates of prompts: the library's notation, our errors."""

import pytest

from fewstep.errors import RequestError
from fewstep.wildcards import expanded

pytest.importorskip("dynamicprompts")


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "sub").mkdir()
    (tmp_path / "colour.txt").write_text("red\ngreen\n\nblue\n")
    (tmp_path / "sub" / "pet.txt").write_text("cat\n{big|small} dog\n")
    return tmp_path


def test_every_seed_has_its_prompt(folder):
    template = "a __colour__ __sub/pet__, (x:1.2) [a:b:0.5] [c|d] AND score_9 :0.5 <lora:my__own__style:0.5>"
    found = [expanded(template, seed, folder=folder) for seed in range(12)]
    assert found == [expanded(template, seed, folder=folder) for seed in range(12)]
    colours = {text.split()[1] for text in found}
    assert colours == {"red", "green", "blue"}
    assert any(
        "a red small dog," in text or "a blue small dog," in text or "a green small dog," in text for text in found
    )
    rest = ", (x:1.2) [a:b:0.5] [c|d] AND score_9 :0.5 <lora:my__own__style:0.5>"
    assert all(text.endswith(rest) and "__colour" not in text for text in found)


def test_choices_without_a_folder():
    found = {expanded("{a|b}{0::c|d}", seed) for seed in range(12)}
    assert found == {"ad", "bd"}
    assert {len(set(expanded("{2$$, $$a|b|c}", seed).split(", "))) for seed in range(9)} == {2}


@pytest.mark.parametrize("prompt", ["a cat", "100% (sure:1.2) $5 \\(x\\)", ""])
def test_a_plain_prompt_is_left_alone(prompt):
    assert expanded(prompt, 0) == prompt


@pytest.mark.parametrize(
    ("template", "match"),
    [
        ("{a|b", "cannot be read"),
        ("100% {a|b}", "cannot be read"),
        ("{" * 60 + "a" + "}" * 60, "inside one another"),
        ("__color__", "no wildcard 'color'. Did you mean __colour__"),
        ("__none__", "no wildcard 'none'"),
        ("__../../etc/passwd__", "is a path"),
        ("__/etc/passwd__", "is a path"),
    ],
)
def test_what_cannot_be_read(folder, template, match, capfd):
    with pytest.raises(RequestError, match=match):
        expanded(template, 0, folder=folder)
    assert capfd.readouterr().err == ""


def test_without_the_folder(tmp_path):
    with pytest.raises(RequestError, match="does not exist"):
        expanded("__x__", 0, folder=tmp_path / "none")
