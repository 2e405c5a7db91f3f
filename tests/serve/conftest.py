"""A real server on a free port, with a tiny random model behind it; and one whose network is a formula."""

import pytest

pytest.importorskip("fastapi")

from tests.null import NullPipeline, serving


@pytest.fixture(scope="session")
def studio():
    from fewstep.pipeline import Pipeline
    from fewstep.serve.jobs import Studio
    from fewstep.serve.limits import Limits
    from tests.tiny import tiny_model

    made = Studio(Pipeline(tiny_model("sd15")), limits=Limits(steps=400))
    yield made
    made.close()


@pytest.fixture(scope="session")
def server(studio):
    with serving(studio) as port:
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
    with serving(null) as port:
        yield port


@pytest.fixture(scope="session")
def http(null_server):
    import httpx

    with httpx.Client(base_url=f"http://127.0.0.1:{null_server}", timeout=30) as client:
        yield client


@pytest.fixture
def other(tmp_path):
    """A studio of a test's own, whose server may end."""
    from fewstep.serve.jobs import Studio

    made = Studio(NullPipeline(tmp_path))
    yield made
    made.close()
