"""Rules 9 and 10 of the server's security: no pickle is read, and nobody is called; heard by Python's audit hooks.

pickle itself is imported by the standard library and numpy (logging.handlers and others), so what counts is that no
module of ours holds it and that no unpickler ever looks for a class.
"""

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("fastapi")


def test_rules_9_and_10_no_pickle_is_read_and_nobody_is_called():
    run = subprocess.run(
        [sys.executable, "-m", "tests.serve.watched"],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert run.returncode == 0, run.stderr
    found = json.loads(run.stdout.splitlines()[-1])
    assert found["codes"] == [200, 200, 400, 200, 400, 200, 200, 200]
    assert found["before"] == [] and found["holders"] == []
    assert {"pickle.find_class", "socket.connect"} <= set(found["after"])  # the hook hears
