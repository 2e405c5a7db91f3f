"""A real server on a free port, with a tiny random model behind it."""

import contextlib
import socket
import threading
import time

import pytest

pytest.importorskip("fastapi")


@contextlib.contextmanager
def running(studio, **door):
    """A server of this studio; its port."""
    import uvicorn

    from fewstep.serve.app import application
    from fewstep.serve.security import SOCKETS, Door

    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        server = uvicorn.Server(uvicorn.Config(Door(application(studio), **door), log_level="error", **SOCKETS))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, daemon=True)
        thread.start()
        until = time.monotonic() + 20
        while not server.started and time.monotonic() < until:
            time.sleep(0.02)
        assert server.started
        yield listening.getsockname()[1]
        server.should_exit = True
        thread.join(10)


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
    with running(studio) as port:
        yield port
