"""`fewstep export MODEL --to openvino -o FOLDER [--int8]`."""

from __future__ import annotations

import argparse
from functools import partial
from typing import Any

from fewstep.cli.export_onnx import export


def add_options(parser: Any) -> None:
    """None of its own."""


def run(arguments: argparse.Namespace) -> int:
    """Writes the folder; returns the exit code."""
    from fewstep.export.standalone import openvino_files

    return export(arguments, partial(openvino_files, int8=arguments.int8))
