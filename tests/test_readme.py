"""What the README says, done: its Python, its commands, its links; and every example."""

import re
import runpy
import shlex
from pathlib import Path

import pytest
from PIL import Image

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
EXAMPLES = sorted((ROOT / "examples").glob("*.py"))
FENCE = re.compile(r"(?P<note><!-- not run: [^\n]*-->\n)?```(?P<language>\w+)\n(?P<body>.*?)```", re.DOTALL)


def blocks(language):
    """(text, whether it is to be run) of every fenced block in a language."""
    return [(m["body"], m["note"] is None) for m in FENCE.finditer(README) if m["language"] == language]


def commands():
    """(arguments after `fewstep`, whether to be run) of every `fewstep` line, in the README's order."""
    found = []
    for body, run in blocks("sh"):
        for line in body.replace("\\\n", " ").splitlines():
            words = shlex.split(line, comments=True)
            if words and Path(words[0]).name == "fewstep":
                found.append((words[1:], run))
    return found


def test_every_command_is_understood():
    from fewstep.cli.main import parser

    assert {words[0] for words, _ in commands()} >= {"generate", "distill", "evaluate"}
    for words, _ in commands():
        arguments = parser().parse_args(words)
        assert not [path for path in words if path.startswith("recipes/") and not (ROOT / path).is_file()]
        assert arguments.command == words[0]


def test_make_targets_exist():
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert {"run", "test"} <= set(re.findall(r"(?:^|`)make ([a-z-]+)", README, re.MULTILINE)) <= targets


def missing_links(text):
    return [target for target in re.findall(r"\]\(([^)#:]+)\)", text) if not (ROOT / target).exists()]


def test_links_lead_somewhere():
    assert missing_links("[gone](docs/gone.md)") == ["docs/gone.md"]
    assert not [target for target in missing_links(README) if not target.startswith("docs/pictures/")]


@pytest.mark.embedded
def test_pictures_are_there():
    assert not missing_links(README)


@pytest.mark.embedded
def test_commands_run(tmp_path, monkeypatch, capsys):
    from fewstep.cli.main import main

    monkeypatch.chdir(tmp_path)
    for words, run in commands():
        if run:
            assert main(words) == 0, capsys.readouterr().err
            made = Path(words[words.index("-o") + 1] if "-o" in words else ".")
            assert all(path.stat().st_size > 1000 for path in ([made] if made.is_file() else made.rglob("*.png")))
            assert made.is_file() or list(made.rglob("*.png"))
    with Image.open("again.png") as again, Image.open("apple.png") as apple:
        assert again.tobytes() == apple.tobytes()


@pytest.mark.embedded
@pytest.mark.parametrize("program", [body for body, run in blocks("python") if run], ids=["ten lines"])
def test_python_blocks_run(program, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    values = {}
    exec(compile(program, "README.md", "exec"), values)
    assert values["image"].size == values["pear"].size
    assert len(values["cats"]) == 4
    assert sorted(path.name for path in tmp_path.iterdir()) == ["apple.png", *(f"rocket-{i}.png" for i in (1, 2, 3, 4))]


@pytest.mark.embedded
@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_examples_run(path, tmp_path, monkeypatch):
    assert path.read_text().count("\n") <= 40
    monkeypatch.chdir(tmp_path)
    runpy.run_path(str(path), run_name="__main__")
    assert list(tmp_path.iterdir())
