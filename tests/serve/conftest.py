"""A real server on a free port, with a tiny random model behind it."""

import pytest

from tests.serve.running import running

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
    with running(studio) as port:
        yield port
