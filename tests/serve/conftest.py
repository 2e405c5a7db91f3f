"""A real server on a free port, with a tiny random model behind it."""

import os

import pytest

from tests.serve.running import running

pytest.importorskip("fastapi")


@pytest.fixture(scope="session")
def studio():
    from fewstep.pipeline import Pipeline, load
    from fewstep.serve.jobs import Studio
    from tests.serve.running import painting_away
    from tests.tiny import tiny_folder, tiny_model

    away = os.environ.get("FEWSTEP_TEST_PAINTING")
    pipe = Pipeline(tiny_model("sd15")) if not away else load(tiny_folder("sd15"), device="cpu")
    made = Studio(pipe, painting=painting_away(away) if away else None)
    yield made
    made.close()


@pytest.fixture(scope="session")
def server(studio):
    with running(studio) as port:
        yield port
