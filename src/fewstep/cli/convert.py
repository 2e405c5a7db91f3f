"""`fewstep convert IN OUT`: a single file into a folder, a folder into a single file, or another number format."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fewstep.cli.options import MODEL, add_model_options, check_new, model_options
from fewstep.errors import OutputError

if TYPE_CHECKING:
    from fewstep.checkpoints.load import Model


def register(subparsers: Any) -> None:
    """Add `convert` to the command line."""
    parser = subparsers.add_parser(
        "convert",
        help="a model, ControlNet or motion module: file into folder, or back, or another number format",
        description="Write a model as a single file (OUT ends in .safetensors: the original layout, which every "
        "program reads) or as a diffusers folder. Every weight keeps its number format unless --dtype is given.",
        allow_abbrev=False,
    )
    parser.add_argument("model", metavar="IN", help=MODEL)
    parser.add_argument("out", type=Path, metavar="OUT", help="name.safetensors for a single file, else a folder")
    add_write_options(parser)
    parser.add_argument(
        "--bake-w",
        type=float,
        metavar="W",
        help="make a guidance-embedded LCM an ordinary model of one guidance: W = guidance - 1, such as 7",
    )
    parser.add_argument(
        "--trust-pickle",
        action="store_true",
        help="read a .ckpt, .pt or .bin file too, a model or a textual inversion: its weights, no code in it",
    )
    parser.set_defaults(run=run)


def add_write_options(parser: Any) -> None:
    """Those of every command that writes a model."""
    parser.add_argument("--dtype", help="fp32, fp16 or bf16; as stored if absent")
    add_model_options(parser)
    parser.add_argument("--force", action="store_true", help="overwrite OUT")


def run(arguments: argparse.Namespace) -> int:
    """Reads, checks, writes, says; returns the exit code."""
    from fewstep.checkpoints.files import PICKLES
    from fewstep.checkpoints.load import load_stored

    check_new(arguments.out, force=arguments.force)
    if arguments.trust_pickle and Path(arguments.model).suffix.lower() in PICKLES and _embedding(arguments):
        return 0
    if found := _beside(arguments):
        print(found)
        return 0
    model = load_stored(arguments.model, trust_pickle=arguments.trust_pickle, **model_options(arguments))
    if arguments.bake_w is not None:
        from fewstep.checkpoints.bake import bake_guidance

        bake_guidance(model, arguments.bake_w)
    print(write(model, arguments.out, dtype=arguments.dtype))
    return 0


def _embedding(arguments: argparse.Namespace) -> bool:
    """A pickled textual inversion, written again; says so, and whether it was one."""
    from fewstep.checkpoints.embedding import pickled_embedding
    from fewstep.checkpoints.files import check_finite, write_safetensors

    source, out = Path(arguments.model), arguments.out
    tensors = pickled_embedding(source)
    if tensors is None:
        return False
    if out.suffix != ".safetensors":
        raise OutputError(f"A textual inversion is written as .safetensors, not as '{out}'. Use {out}.safetensors.")
    check_finite(tensors, source)
    write_safetensors(out, {name: tensor.detach().contiguous() for name, tensor in tensors.items()})
    print(f"{out}: textual inversion, {', '.join(map(str, (list(tensor.shape) for tensor in tensors.values())))}")
    return True


def _beside(arguments: argparse.Namespace) -> str:
    """What was written of a ControlNet or a motion module; "" for anything else."""
    from fewstep.checkpoints.beside import is_beside, read_beside, write_beside

    if not is_beside(Path(arguments.model)):
        return ""
    network = read_beside(arguments.model)
    channels = ", ".join(map(str, network.config["block_out_channels"]))
    return f"{write_beside(network, arguments.out, dtype=arguments.dtype)}: {network.kind}, channels {channels}"


def write(model: Model, out: Path, *, dtype: str | None, metadata: dict[str, str] | None = None) -> str:
    """Writes the model as what the name says, and what is there now in a sentence."""
    if out.suffix == ".safetensors":
        from fewstep.checkpoints.save_single import save_single

        save_single(model, out, dtype=dtype, metadata=metadata)
    elif out.is_file():
        raise OutputError(f"'{out}' is a file; a single file's name ends in .safetensors, a folder's does not.")
    else:
        from fewstep.checkpoints.save import save_model

        save_model(model, out, dtype=dtype)
    sampling = model.sampling
    how = f"sampler {sampling.sampler}, {sampling.steps} steps, guidance {sampling.guidance:g}"
    return f"{out}: {model.family}, {model.schedule.prediction}, {how}"
