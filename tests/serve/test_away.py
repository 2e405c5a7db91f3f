"""The same clients, while other processes or a Ray cluster paint: the tests of this folder, run again."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
CLIENTS = [HERE / "test_a1111.py", HERE / "test_openai.py", HERE / "test_live.py", HERE / "test_client.py"]


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["process", "ray"])
def test_clients_see_no_difference(kind):
    if kind == "ray":
        pytest.importorskip("ray")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *map(str, CLIENTS)]
    environment = {**os.environ, "FEWSTEP_TEST_PAINTING": kind}
    run = subprocess.run(command, cwd=HERE.parents[1], env=environment, capture_output=True, text=True, timeout=280)
    assert run.returncode == 0, run.stdout[-4000:]
