"""A server for clients of other programs; its network is a formula, all else is as ever."""

import pytest

pytest.importorskip("fastapi")

from tests.serve.null import NullPipeline
from tests.serve.running import running


@pytest.fixture(scope="session")
def studio(tmp_path_factory):
    from fewstep.serve.jobs import Studio

    folder = tmp_path_factory.mktemp("clients") / "null"  # a model's title begins with its file's name
    folder.mkdir()
    made = Studio(NullPipeline(folder))
    yield made
    made.close()


@pytest.fixture(scope="session")
def server(studio):
    with running(studio) as port:
        yield port


@pytest.fixture(scope="session")
def http(server):
    import httpx

    with httpx.Client(base_url=f"http://127.0.0.1:{server}", timeout=60) as client:
        yield client
