"""A server for clients of other programs; its network is a formula, all else is as ever."""

import pytest

pytest.importorskip("fastapi")

from tests.serve.null import NullPipeline
from tests.serve.running import asking, running


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
    with asking(server) as client:
        yield client
