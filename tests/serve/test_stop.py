"""The whole program, told to stop by the operating system."""

import json
import re
import signal
import socket
import subprocess
import sys

import httpx
import pytest

from tests.serve.running import wait_until
from tests.tiny import tiny_folder

ORDER = {
    "prompt": "a cat",
    "steps": 50,
    "width": 256,
    "height": 256,
    "override_settings": {"fewstep_policy": "respect"},
}


@pytest.fixture
def unused_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def answers(port):
    try:
        return httpx.get(f"http://127.0.0.1:{port}/readyz", timeout=5)
    except httpx.TransportError:
        return None


@pytest.mark.slow
def test_sigterm_lets_the_begun_end_and_exits_0(tmp_path, unused_port):
    place = [
        str(tiny_folder("sd15")),
        "--port",
        str(unused_port),
        "--history",
        str(tmp_path / "history"),
        "--log",
        "json",
    ]
    command = [sys.executable, "-m", "fewstep", "serve", *place]
    said = tmp_path / "said.txt"  # a pipe that nobody reads would fill, and hold the server up
    with said.open("w") as errors, subprocess.Popen(command, stderr=errors) as server:
        assert wait_until(lambda: answers(unused_port), within_s=60).status_code == 200
        script = f"import httpx, json; r = httpx.post('http://127.0.0.1:{unused_port}/sdapi/v1/txt2img', "
        script += f"json=json.loads({json.dumps(ORDER)!r}), timeout=60); print(r.status_code)"
        client = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
        tasks = f"http://127.0.0.1:{unused_port}/internal/pending-tasks"
        wait_until(lambda: httpx.get(tasks).json()["size"] == 1, within_s=30)
        server.send_signal(signal.SIGTERM)
        wait_until(lambda: answers(unused_port).status_code == 503)
        assert client.communicate(timeout=60)[0] == "200\n"
        assert server.wait(30) == 0, said.read_text()
    assert re.search(r'"event": "job".*"outcome": "done".*"evaluations": 50', said.read_text())
    assert len([*(tmp_path / "history" / "pictures").iterdir()]) == 1
