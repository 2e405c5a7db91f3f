"""Options that several commands have in common: which model, completed by what; which LoRAs."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from fewstep.errors import OutputError

MODEL = "a .safetensors file, a diffusers folder or a Hub name"


def add_model_options(parser: Any) -> None:
    """What a single file may lack or not say."""
    parser.add_argument("--base", metavar="PATH", help="model that lends what the model's file lacks")
    parser.add_argument("--vae", metavar="PATH", help="another VAE: a file, or a model that has one")
    parser.add_argument("--prediction", metavar="eps|v", help="what the UNet predicts, where its file does not say")


def model_options(arguments: argparse.Namespace) -> dict[str, Any]:
    """What `add_model_options` got, as `load_model` takes it."""
    return {name: getattr(arguments, name) for name in ("base", "vae", "prediction")}


def add_shelf_options(parser: Any) -> None:
    """Where what a prompt names is looked up."""
    parser.add_argument("--lora-folder", metavar="FOLDER", help="where <lora:name:1> in prompts finds its files")
    parser.add_argument(
        "--embeddings", action="append", metavar="PATH", help="textual inversions: a file, or a folder; may be repeated"
    )


def shelf_options(arguments: argparse.Namespace) -> dict[str, Any]:
    """What `add_shelf_options` got, as `fewstep.load` takes it."""
    return {name: getattr(arguments, name) for name in ("lora_folder", "embeddings")}


def lora_choice(text: str) -> tuple[str, float]:
    """`ink.safetensors:0.6` as (path, weight); without a weight it is 1.

    >>> lora_choice("ink.safetensors:0.6"), lora_choice("ink.safetensors")
    (('ink.safetensors', 0.6), ('ink.safetensors', 1.0))
    """
    path, colon, weight = text.rpartition(":")
    try:
        return (path, float(weight)) if colon else (text, 1.0)
    except ValueError:
        return text, 1.0


def check_new(path: Path, *, force: bool) -> None:
    """Raises OutputError when something of the user's would be overwritten without --force."""
    if not path.absolute().parent.is_dir():
        raise OutputError(f"The folder '{path.absolute().parent}' does not exist. Create it first, or choose another.")
    taken = any(path.iterdir()) if path.is_dir() else path.exists()
    if taken and not force:
        raise OutputError(f"'{path}' is there already. Choose another name, or overwrite it with --force.")
    if path.is_dir() and path.suffix == ".safetensors":
        raise OutputError(f"'{path}' is a folder; a single file cannot have its name.")
