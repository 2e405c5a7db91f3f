"""A real server on a free port, with a tiny random model behind it; and one whose network is a formula."""

import os

import pytest

from tests.serve.running import asking, running

pytest.importorskip("fastapi")

from tests.serve.null import NullPipeline


@pytest.fixture(scope="session")
def studio():
    from fewstep.pipeline import Pipeline, load
    from fewstep.serve.jobs import Studio
    from fewstep.serve.limits import Limits
    from tests.serve.running import painting_away
    from tests.tiny import tiny_folder, tiny_model

    away = os.environ.get("FEWSTEP_TEST_PAINTING")
    pipe = Pipeline(tiny_model("sd15")) if not away else load(tiny_folder("sd15"), device="cpu")
    made = Studio(pipe, painting=painting_away(away) if away else None, limits=Limits(steps=400))
    yield made
    made.close()


@pytest.fixture(scope="session")
def server(studio):
    with running(studio) as port:
        yield port


@pytest.fixture(scope="session")
def null(tmp_path_factory):
    """The studio of a model that is a formula."""
    from fewstep.serve.jobs import Studio

    made = Studio(NullPipeline(tmp_path_factory.mktemp("null")))
    yield made
    made.close()


@pytest.fixture(scope="session")
def null_server(null):
    with running(null) as port:
        yield port


@pytest.fixture(scope="session")
def http(null_server):
    with asking(null_server) as client:
        yield client


@pytest.fixture
def other(tmp_path):
    """A studio of a test's own, whose server may end."""
    from fewstep.serve.jobs import Studio

    made = Studio(NullPipeline(tmp_path))
    yield made
    made.close()
