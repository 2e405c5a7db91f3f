"""A random judge, written once."""

import pytest

from tests.evaluate.worlds import write_judge


@pytest.fixture(scope="session")
def judge_folder(tmp_path_factory):
    """A folder with a random judge."""
    return write_judge(tmp_path_factory.mktemp("judge"))
