"""What `fewstep serve` refuses before it loads anything, and what its help says."""

import pytest

from fewstep.cli.main import main


@pytest.mark.parametrize(
    ("given", "match"),
    [
        (["--port", "0"], "port 0"),
        (["--queue", "0"], "queue 0"),
        (["--patience", "0"], "--patience is 0"),
        (["--models-memory", "nan"], "--models-memory is nan"),
        (["--history-limit", "-1"], "--history-limit is -1"),
        (["--grace", "-1"], "--grace is -1"),
        (["--workers", "0"], "--workers is '0'"),
        (["--workers", "4:2"], "--workers is '4:2'"),
        (["--workers", "two"], "--workers is 'two'"),
        (["one.safetensors", "--model", "two.safetensors"], "both given"),
        (["--models", "nowhere"], "folder 'nowhere' of --models does not exist"),
    ],
)
def test_what_cannot_be_served(given, match, capsys):
    assert main(["serve", *given]) == 2
    said = capsys.readouterr().err
    assert match in said and said.count("\n") == 1


def test_the_help_names_the_defaults(capsys):
    assert main(["serve", "--help"]) == 0
    said = " ".join(capsys.readouterr().out.split())
    for words in ("nothing if absent", "[64]", "[600]", "[30]", "[7860]", "[plain]", "--log-prompts"):
        assert words in said
