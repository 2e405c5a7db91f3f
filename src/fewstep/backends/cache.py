"""Where what was found out once is kept: graphs that were written, back ends that were measured."""

import os
from pathlib import Path


def cache_folder() -> Path:
    """`fewstep` in the user's folder for such things (XDG Base Directory Specification); it may not be there yet."""
    base = os.environ.get("XDG_CACHE_HOME", "")
    return (Path(base) if base.startswith("/") else Path.home() / ".cache") / "fewstep"
