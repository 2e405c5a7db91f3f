"""`fewstep merge MODEL --lora FILE[:WEIGHT] -o fast.safetensors`: LoRAs baked into a model, as one file or a folder."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fewstep.cli.convert import add_write_options, write
from fewstep.cli.options import MODEL, check_new, model_options
from fewstep.request import lora_choice

if TYPE_CHECKING:
    from fewstep.checkpoints.load import Model


def register(subparsers: Any) -> None:
    """Add `merge` to the command line."""
    parser = subparsers.add_parser(
        "merge",
        help="bake LoRAs into a model",
        description="Write a model with LoRAs merged into its weights: a few-step LoRA makes it a few-step model.",
        allow_abbrev=False,
    )
    parser.add_argument("model", metavar="MODEL", help=MODEL)
    parser.add_argument(
        "--lora", action="append", type=lora_choice, default=[], metavar="FILE[:WEIGHT]", help="LoRA; may be repeated"
    )
    parser.add_argument("-o", "--out", type=Path, required=True, metavar="OUT", help="name.safetensors, or a folder")
    add_write_options(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Reads, merges, writes, says; returns the exit code."""
    from fewstep.checkpoints.load import load_stored

    check_new(arguments.out, force=arguments.force)
    model = load_stored(arguments.model, **model_options(arguments))
    metadata = _merge(model, arguments.lora, title=arguments.out.stem)
    print(write(model, arguments.out, dtype=arguments.dtype, metadata=metadata))
    return 0


def _merge(model: Model, choices: Sequence[tuple[str, float]], *, title: str) -> dict[str, str]:
    """Merges the LoRAs, takes over the last few-step one's sampling, and returns what the file says of it."""
    from dataclasses import replace

    from fewstep.checkpoints.lora import read_lora, stack_of

    loras = [(read_lora(path, family=model.family), weight) for path, weight in choices]
    stack_of(model).set([(lora, weight, weight) for lora, weight in loras])
    own = [lora.sampling for lora, weight in loras if weight and lora.sampling is not None]
    if own and not model.sampling.embedded_guidance:
        model.sampling = replace(own[-1], embedded_guidance=False)
    names = [model.name, *(f"{lora.name}:{weight:g}" for lora, weight in loras)]
    return {"modelspec.merged_from": ", ".join(names), "modelspec.title": title} if loras else {}
