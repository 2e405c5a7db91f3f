"""`fewstep export --to web`: a static page in which the model draws, with no server behind it."""

from __future__ import annotations

import argparse
import json
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fewstep.cli.options import model_options
from fewstep.cli.progress import painting
from fewstep.errors import RequestError

if TYPE_CHECKING:
    from fewstep.export.web import Exported


def add_options(group: Any) -> None:
    """The options of this format."""
    group.add_argument("--title", default="", metavar="TEXT", help="of the page; the model's name if absent")
    group.add_argument("--steps", type=int, metavar="N", help="that the page begins with (1 to 8)")
    group.add_argument(
        "--runtime", type=Path, metavar="FOLDER", help="ONNX Runtime Web, unpacked; fetched once from npm if absent"
    )


def run(arguments: argparse.Namespace) -> int:
    """Checks, fetches what is missing, writes, says; returns the exit code."""
    if arguments.int8:
        raise RequestError("--int8 is not written for the page. Use --to onnx or --to openvino, or leave it out.")
    if find_spec("onnx") is None:
        raise RequestError("Exporting needs the package onnx. Install it with: pip install 'fewstep[export]'")
    from fewstep import load
    from fewstep.export.web import check_free, export_web

    check_free(arguments.out, force=arguments.force)
    pipe = load(arguments.model, lora=arguments.lora, backend="onnx", **model_options(arguments))
    how = {"title": arguments.title, "steps": arguments.steps, "force": arguments.force}
    found = export_web(pipe, arguments.out, runtime=_runtime(arguments), **how)
    if not arguments.quiet:
        print(_document(found) if arguments.json else _sentence(found))
    return 0


def _runtime(arguments: argparse.Namespace) -> Path:
    from fewstep.export.runtime import fetch_runtime, runtime_folder, runtime_in

    if arguments.runtime is not None:
        return runtime_in(arguments.runtime)
    cache = runtime_folder()
    with painting(arguments.quiet) as show:
        for done, total in fetch_runtime(cache):
            show(done, total)
    return cache


def _sentence(found: Exported) -> str:
    size = f"{found.files} files, {found.bytes / 1e6:.1f} MB"
    return (
        f"{found.folder}: {found.model} in the browser, {found.steps} steps, {size}\n"
        f"See it with: python -m http.server -d {found.folder} 8000, at http://localhost:8000"
    )


def _document(found: Exported) -> str:
    facts = {"folder": str(found.folder), "bytes": found.bytes, "files": found.files}
    return json.dumps({**facts, "model": found.model, "steps": found.steps})
