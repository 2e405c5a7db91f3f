import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture(autouse=True)
def scripts_can_be_imported(monkeypatch):
    """As when they are run: their own folder is on the path."""
    monkeypatch.syspath_prepend(str(HERE))
    yield
    for name in {path.stem for path in HERE.glob("*.py")} & set(sys.modules):
        if str(HERE) in str(getattr(sys.modules[name], "__file__", "")):
            del sys.modules[name]
