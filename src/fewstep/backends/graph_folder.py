"""The folder with a model's graphs: its own, or one in the cache, where they are written when they are first wanted."""

from __future__ import annotations

import atexit
import hashlib
import json
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

from fewstep import graphs
from fewstep.backends.cache import cache_folder
from fewstep.checkpoints.arrays import part_shapes
from fewstep.checkpoints.description import Description
from fewstep.checkpoints.hub import PARTS
from fewstep.errors import DeviceError

Shapes: TypeAlias = "dict[str, dict[str, tuple[int, ...]]]"


def parts_of(found: Description) -> list[str]:
    """Those that have weights."""
    return [part for part in PARTS if part in found.configs]


def has_own_graphs(found: Description) -> bool:
    """Does the model bring its graphs, and no part from elsewhere?"""
    return not found.sources and (found.path / "onnx" / "weights.json").is_file()


def graph_folder(found: Description) -> tuple[Path, Shapes]:
    """(the folder, every part's weights and their shapes where they had to be looked at).

    Raises CheckpointError for networks that no graph knows, DeviceError without the onnx package.
    """
    if has_own_graphs(found):
        return found.path / "onnx", {}
    shapes = {part: part_shapes(found.sources.get(part, found.path), part) for part in parts_of(found)}
    configs = {part: found.configs[part] for part in shapes}
    folder = cache_folder() / "graphs" / _digest(configs, shapes)
    if not (folder / "weights.json").is_file():
        folder = _write(configs, shapes, folder)
    return folder, shapes


def _digest(configs: Mapping[str, Any], shapes: Mapping[str, Mapping[str, Sequence[int]]]) -> str:
    """Of all that graphs are made from, the code that writes them included."""
    code = [path.read_text(encoding="utf-8") for path in sorted(Path(graphs.__file__).parent.glob("*.py"))]
    text = json.dumps([configs, shapes, code], sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:24]


def _write(configs: Mapping[str, Any], shapes: Shapes, folder: Path) -> Path:
    """At once or not at all; into a temporary folder where the cache cannot be written."""
    try:
        from fewstep.graphs.write import model_graphs, write_graphs
    except ImportError:
        raise DeviceError(
            "The graphs of this model must be written first, and the onnx package is not installed: "
            "pip install 'fewstep[export]'"
        ) from None
    made = model_graphs(configs, shapes)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        part = Path(tempfile.mkdtemp(dir=folder.parent, prefix=".part-"))
    except OSError:
        part = Path(tempfile.mkdtemp(prefix="fewstep-graphs-"))
        atexit.register(shutil.rmtree, part, ignore_errors=True)
        return write_graphs(made, part)
    write_graphs(made, part)
    try:
        part.replace(folder)
    except OSError:  # somebody else was faster
        shutil.rmtree(part, ignore_errors=True)
    return folder
