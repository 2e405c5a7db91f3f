"""`fewstep export MODEL --to onnx -o FOLDER [--int8]`."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

from fewstep.cli.options import check_new, model_options

if TYPE_CHECKING:
    from pathlib import Path

    from fewstep.pipeline import Pipeline


def add_options(parser: Any) -> None:
    """None of its own."""


def run(arguments: argparse.Namespace) -> int:
    """Writes the folder; returns the exit code."""
    from fewstep.export.standalone import onnx_files

    return export(arguments, partial(onnx_files, int8=arguments.int8))


def export(arguments: argparse.Namespace, files: Callable[[Pipeline, Path], None]) -> int:
    """Writes what `files` makes, and what every such folder has; says what was written."""
    from fewstep.export.standalone import open_exported, write_folder

    check_new(arguments.out, force=arguments.force)
    pipe = open_exported(arguments.model, lora=arguments.lora, **model_options(arguments))
    facts = write_folder(pipe, arguments.out, arguments.to, files)
    if arguments.json:
        print(json.dumps(facts, indent=2, ensure_ascii=False))
    elif not arguments.quiet:
        print(f"{arguments.out}  {len(facts['files'])} files, {sum(facts['files'].values()) / 1e6:.1f} MB")
    return 0
