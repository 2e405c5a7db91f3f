"""Over a hundred wrong inputs: each is one sentence and exit code 2, at once, and nothing is written or touched."""

import os
import signal
import stat
import time

import pytest

from fewstep.cli.main import main
from tests.cli.malformed import CASES as FILES
from tests.cli.malformed_requests import REQUESTS
from tests.tiny import tiny_folder, tiny_model

CASES = FILES | REQUESTS
CPU_SECONDS = 3.0
"""Of this process, on a slow core; reading a whole tiny model takes one."""

ALARM_SECONDS = 30


@pytest.fixture(scope="module", autouse=True)
def libraries_are_loaded():
    """So that their import is not counted."""
    tiny_model("sd15")
    tiny_folder("lcm")


@pytest.fixture
def alarm():
    """A hang is a failure of its own test."""

    def ring(*_):
        raise KeyboardInterrupt("it hangs")

    signal.signal(signal.SIGALRM, ring)
    signal.alarm(ALARM_SECONDS)
    yield
    signal.alarm(0)


def contents(folder):
    """Every file below, with its bytes; links and pipes by their kind."""
    found = {}
    for path in sorted(folder.rglob("*")):
        mode = os.lstat(path).st_mode
        found[str(path)] = path.read_bytes() if stat.S_ISREG(mode) else stat.S_IFMT(mode)
    return found


def test_there_are_enough():
    assert len(CASES) >= 60


@pytest.mark.parametrize("name", CASES)
def test_one_sentence_and_nothing_written(name, tmp_path, monkeypatch, capsys, alarm):
    folder = tmp_path / "here"
    folder.mkdir()
    monkeypatch.chdir(folder)
    arguments = CASES[name](folder)
    before, began = contents(tmp_path), time.process_time()
    code = main(arguments)
    spent, said = time.process_time() - began, capsys.readouterr()
    assert code == 2, said.err
    lines = said.err.splitlines()
    assert len(lines) == 1 and lines[0].startswith("fewstep: error: ") and len(lines[0]) < 700, said.err
    assert "Traceback" not in said.err and "\x1b" not in said.err
    assert not said.out and contents(tmp_path) == before
    assert spent < CPU_SECONDS
