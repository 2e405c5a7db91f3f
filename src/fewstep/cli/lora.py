"""`fewstep lora info|merge|extract|resize|convert`: LoRA files described, joined, made, made smaller and renamed."""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fewstep.cli.output import check_folder
from fewstep.errors import OutputError, RequestError

if TYPE_CHECKING:
    from fewstep.checkpoints.load import Model
    from fewstep.checkpoints.lora_edit import Size
    from fewstep.checkpoints.lora_families import Layer
    from fewstep.checkpoints.lora_read import Lora

DTYPES = {"fp16": "float16", "bf16": "bfloat16", "fp32": "float32"}


def register(subparsers: Any) -> None:
    """Add `lora` and what it can do to the command line."""
    parser = subparsers.add_parser(
        "lora",
        help="describe, merge, extract, resize or convert LoRA files",
        description="Describe, merge, extract, resize or convert LoRA files of every family and naming.",
        allow_abbrev=False,
    )
    actions = parser.add_subparsers(title="actions", metavar="ACTION", dest="action", required=True)
    _add_info(actions)
    merge = _action(actions, "merge", "several LoRAs as one", run_merge, sized="exact, unless a size is asked for")
    merge.add_argument("loras", nargs="+", metavar="FILE[:WEIGHT]", help="LoRA, and how strongly [1]")
    merge.add_argument("--model", metavar="PATH", help="needed for families that multiply weights (IA3, OFT, DoRA ...)")
    extract = _action(actions, "extract", "the difference of two models as a LoRA", run_extract, sized="rank 64")
    extract.add_argument("base", metavar="BASE", help="model folder, or Hub name")
    extract.add_argument("tuned", metavar="TUNED", help="the model that was made of it")
    resize = _action(actions, "resize", "a LoRA of smaller rank", run_resize, sized="one of them is needed")
    resize.add_argument("lora", type=Path, metavar="FILE", help="LoRA of any family")
    resize.add_argument(
        "--model", metavar="PATH", help="needed for families that multiply weights (IA3, OFT, DoRA ...)"
    )
    convert = _action(actions, "convert", "the same LoRA in another naming or family", run_convert, sized="exact")
    convert.add_argument("lora", type=Path, metavar="FILE", help="LoRA of any naming and family")
    convert.add_argument("--to", default="kohya", choices=("kohya", "diffusers", "peft"), help="naming [kohya]")
    convert.add_argument("--plain", action="store_true", help="make other families plain LoRA; the others need it")
    convert.add_argument(
        "--model", metavar="PATH", help="needed for families that multiply weights (IA3, OFT, DoRA ...)"
    )


def _add_info(actions: Any) -> None:
    info = actions.add_parser(
        "info", help="what a LoRA file is", description="What a LoRA file is.", allow_abbrev=False
    )
    info.add_argument("lora", type=Path, metavar="FILE", help="LoRA of any naming and family")
    info.add_argument("--json", action="store_true", help="print one JSON document")
    info.set_defaults(run=run_info)


def _action(actions: Any, name: str, text: str, run: Any, *, sized: str) -> argparse.ArgumentParser:
    parser = actions.add_parser(name, help=text, description=f"{text[:1].upper()}{text[1:]}.", allow_abbrev=False)
    parser.add_argument("-o", "--out", type=Path, required=True, metavar="FILE", help="LoRA to write")
    parser.add_argument("--rank", type=_whole, metavar="N", help=f"at most so many columns in each module [{sized}]")
    parser.add_argument(
        "--energy", type=_share, metavar="X", help="fewest that keep this share (0 to 1) of the squares"
    )
    parser.add_argument("--dtype", choices=tuple(DTYPES), help="number format [that of the first file]")
    parser.add_argument("--force", action="store_true", help="write over a file that is there")
    parser.set_defaults(run=run)
    return parser


def _whole(text: str) -> int:
    if not text.isdecimal() or not 0 < int(text) <= 1 << 16:
        raise argparse.ArgumentTypeError(f"'{text}' is not a rank: a whole number from 1 to {1 << 16}")
    return int(text)


def _share(text: str) -> float:
    try:
        share = float(text)
    except ValueError:
        share = math.nan
    if not 0 < share <= 1:
        raise argparse.ArgumentTypeError(f"'{text}' is not a share above 0 and at most 1")
    return share


def run_info(arguments: argparse.Namespace) -> int:
    """As `fewstep info` does."""
    from fewstep.cli.info import describe, show

    return show(describe(str(arguments.lora)), as_json=arguments.json)


def run_merge(arguments: argparse.Namespace) -> int:
    """Several as one; returns the exit code."""
    from fewstep.checkpoints.lora import read_lora
    from fewstep.checkpoints.lora_edit import merge
    from fewstep.request import lora_choice

    _check_out(arguments)
    loras = [(read_lora(path), weight) for path, weight in map(lora_choice, arguments.loras)]
    if wild := next((lora for lora, weight in loras if not math.isfinite(weight)), None):
        raise RequestError(
            f"The weight of '{wild.path.name}' is not a finite number. Write it as {wild.path.name}:0.8."
        )
    layers = merge(loras, size=_size(arguments), model=_model(arguments.model))
    return _write(arguments, layers, [lora for lora, _ in loras], _merged_facts(loras))


def run_extract(arguments: argparse.Namespace) -> int:
    """The difference of two models; returns the exit code."""
    from fewstep.checkpoints.lora_edit import Size, extract

    _check_out(arguments)
    base, tuned = _model(arguments.base), _model(arguments.tuned)
    assert base is not None and tuned is not None
    layers = extract(base, tuned, _size(arguments) or Size(rank=64))
    return _write(arguments, layers, [], {"modelspec.description": f"{tuned.name} less {base.name}"})


def run_resize(arguments: argparse.Namespace) -> int:
    """A smaller rank; returns the exit code."""
    from fewstep.checkpoints.lora import read_lora
    from fewstep.checkpoints.lora_edit import merge

    _check_out(arguments)
    size = _size(arguments)
    if size is None:
        raise RequestError("No size was given. Write --rank 16, or --energy 0.95, or both.")
    lora = read_lora(arguments.lora)
    return _write(arguments, merge([(lora, 1.0)], size=size, model=_model(arguments.model)), [lora], lora.metadata)


def run_convert(arguments: argparse.Namespace) -> int:
    """Another naming, another family; returns the exit code."""
    from fewstep.checkpoints.lora import read_lora
    from fewstep.checkpoints.lora_edit import merge

    _check_out(arguments)
    lora, size = read_lora(arguments.lora), _size(arguments)
    layers: Mapping[str, Layer] = lora.all_layers
    if arguments.plain or size or arguments.to != "kohya":
        layers = merge([(lora, 1.0)], size=size, model=_model(arguments.model))
    return _write(arguments, layers, [lora], lora.metadata, naming=arguments.to)


def _check_out(arguments: argparse.Namespace) -> None:
    """Before anything is read: may this file be written?"""
    out = arguments.out
    if out.suffix != ".safetensors":
        raise OutputError(f"A LoRA is written as .safetensors, not as '{out.name}'. Use -o {out.stem}.safetensors.")
    check_folder(out.parent)
    if out.is_dir() or (out.exists() and not arguments.force):
        raise OutputError(f"'{out}' is already there. Choose another name, or write over it with --force.")


def _size(arguments: argparse.Namespace) -> Size | None:
    from fewstep.checkpoints.lora_edit import Size

    return Size(arguments.rank, arguments.energy) or None


def _model(path: str | None) -> Model | None:
    from fewstep.checkpoints.load import load_model

    return None if path is None else load_model(path, device="cpu", dtype="float32")


def _merged_facts(loras: list[tuple[Lora, float]]) -> dict[str, str]:
    """What all files say alike, how the last few-step one is sampled, and what it was merged from."""
    first, *others = [lora.metadata for lora, _ in loras]
    facts = {key: value for key, value in first.items() if all(other.get(key) == value for other in others)}
    quick = next((lora for lora, weight in reversed(loras) if weight and lora.sampling is not None), None)
    if quick is not None and quick.sampling is not None:
        from fewstep.checkpoints.lora_metadata import usage_metadata

        facts |= usage_metadata(quick.sampling)
    return facts | {"modelspec.merged_from": ", ".join(f"{lora.name}:{weight:g}" for lora, weight in loras)}


def _write(
    arguments: argparse.Namespace,
    layers: Mapping[str, Layer],
    sources: Iterable[Lora],
    facts: Mapping[str, str],
    naming: Any = "kohya",
) -> int:
    """Write, say what was written and what of the sources has no place in it."""
    import torch

    from fewstep.checkpoints.lora_families import tensors_of
    from fewstep.checkpoints.lora_save import save_lora

    sources = list(sources)
    first = [layer for source in sources for layer in source.all_layers.values()][:1]
    own = tensors_of(first[0])[0].dtype if first else torch.float16
    dtype = own if arguments.dtype is None else getattr(torch, DTYPES[arguments.dtype])
    lora = save_lora(arguments.out, layers, naming=naming, metadata=facts, dtype=dtype)
    ranks = sorted({layer.rank for layer in layers.values() if layer.rank is not None})
    span = f", rank {ranks[0]}" + (f" to {ranks[-1]}" if len(ranks) > 1 else "") if ranks else ""
    print(f"{arguments.out}  {len(layers)} modules, {', '.join(lora.families)}{span}")
    for note in (note for source in sources for note in source.notes):
        print(f"fewstep: note: {note}")
    return 0
