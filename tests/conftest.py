"""For every test: no network, one thread a process, and the embedded model where it is there."""

import atexit
import os
import shutil
import tempfile
from pathlib import Path

# Before torch or transformers are imported by anything.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ["XDG_CACHE_HOME"] = tempfile.mkdtemp(prefix="fewstep-cache-")  # nothing of the user's is read or written

import pytest

ROOT = Path(__file__).parents[1]
atexit.register(shutil.rmtree, os.environ["XDG_CACHE_HOME"], ignore_errors=True)
EMBEDDED = ROOT / "src" / "fewstep" / "assets" / "pictogram"


def pytest_collection_modifyitems(items):
    """Tests marked `embedded` are skipped, with the reason, while the weights are absent."""
    if (EMBEDDED / "unet").is_dir():
        return
    skip = pytest.mark.skip(reason="the embedded model is not in this checkout (make pictogram trains it)")
    for item in items:
        if "embedded" in item.keywords:
            item.add_marker(skip)
