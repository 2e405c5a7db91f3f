"""`fewstep export [MODEL] --to FORMAT -o OUT`: a model in the format of another runtime."""

from __future__ import annotations

import argparse
import importlib
from pathlib import Path
from typing import Any

from fewstep.cli.options import MODEL, add_model_options
from fewstep.request import lora_choice

FORMATS = {
    "onnx": ("fewstep.cli.export_onnx", "graphs for ONNX Runtime, with the weights in files beside them"),
    "openvino": ("fewstep.cli.export_openvino", "networks for OpenVINO (.xml and .bin)"),
    "web": ("fewstep.cli.export_web", "a static page that draws in the browser"),
}
"""Format -> the module with its `add_options` and `run`, and what it is."""


def register(subparsers: Any) -> None:
    """Add `export` to the command line."""
    what = "; ".join(f"{name}: {text}" for name, (_, text) in FORMATS.items())
    parser = subparsers.add_parser(
        "export",
        help="a model in the format of another runtime, or as a page that draws in the browser",
        description=f"Write a model, with LoRAs merged, in another format. {what}.",
        allow_abbrev=False,
    )
    parser.add_argument("model", nargs="?", metavar="MODEL", help=f"{MODEL}; the embedded model if absent")
    parser.add_argument("--to", required=True, choices=list(FORMATS), help="the format")
    parser.add_argument("-o", "--out", type=Path, required=True, metavar="OUT", help="where to")
    parser.add_argument(
        "--lora", action="append", type=lora_choice, metavar="FILE[:WEIGHT]", help="LoRA to merge; may be repeated"
    )
    add_model_options(parser)
    parser.add_argument(
        "--int8",
        action="store_true",
        help="onnx, openvino: UNet and decoders in 8 bits, calibrated on the model's own pictures",
    )
    parser.add_argument("--force", action="store_true", help="replace an earlier export")
    parser.add_argument("--json", action="store_true", help="print one JSON document: what was written")
    parser.add_argument("-q", "--quiet", action="store_true", help="print nothing but errors")
    for name, (module, _) in FORMATS.items():
        importlib.import_module(module).add_options(parser.add_argument_group(f"--to {name}"))
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Hands over to the format; returns the exit code."""
    return importlib.import_module(FORMATS[arguments.to][0]).run(arguments)
