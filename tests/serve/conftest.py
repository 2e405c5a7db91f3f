"""A real server on a free port, with a tiny random model behind it."""

import socket
import threading
import time

import pytest

pytest.importorskip("fastapi")


@pytest.fixture(scope="session")
def studio():
    from fewstep.pipeline import Pipeline
    from fewstep.serve.jobs import Studio
    from tests.tiny import tiny_model

    made = Studio(Pipeline(tiny_model("sd15")))
    yield made
    made.close()


@pytest.fixture(scope="session")
def server(studio):
    import uvicorn

    from fewstep.serve.app import application
    from fewstep.serve.security import SOCKETS, Door

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    config = uvicorn.Config(Door(application(studio)), host="127.0.0.1", port=port, log_level="error", **SOCKETS)
    running = uvicorn.Server(config)
    thread = threading.Thread(target=running.run, daemon=True)
    thread.start()
    until = time.monotonic() + 20
    while not running.started and time.monotonic() < until:
        time.sleep(0.02)
    assert running.started
    yield port
    running.should_exit = True
    thread.join(10)
