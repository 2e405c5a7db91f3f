"""Options that several commands have in common, and what they ask for: a request, a model, its LoRAs."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fewstep.backends.choice import NAMES
from fewstep.errors import OutputError, RequestError
from fewstep.memory import PLANS
from fewstep.request import DEFAULTS, SPECS, Request, Spec, lora_choice, request_of
from fewstep.sampling.sampler import SAMPLERS
from fewstep.sampling.timesteps import TABLES

if TYPE_CHECKING:
    from fewstep.cli.recall import Recalled

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


def check_new(path: Path, *, force: bool) -> None:
    """Raises OutputError when something of the user's would be overwritten without --force."""
    if not path.absolute().parent.is_dir():
        raise OutputError(f"The folder '{path.absolute().parent}' does not exist. Create it first, or choose another.")
    taken = any(path.iterdir()) if path.is_dir() else path.exists()
    if taken and not force:
        raise OutputError(f"'{path}' is there already. Choose another name, or overwrite it with --force.")
    if path.is_dir() and path.suffix == ".safetensors":
        raise OutputError(f"'{path}' is a folder; a single file cannot have its name.")


def add_loading_options(parser: argparse.ArgumentParser) -> None:
    """Which model, with which LoRAs, where."""
    parser.add_argument("--model", metavar="PATH", help=f"{MODEL}; the embedded model if absent")
    add_model_options(parser)
    parser.add_argument("--tiny-vae", metavar="PATH", help="a tiny VAE (TAESD) for previews and live pictures")
    parser.add_argument(
        "--lora", action="append", type=lora_choice, metavar="FILE[:WEIGHT]", help="LoRA; may be repeated"
    )
    add_shelf_options(parser)
    parser.add_argument("--no-lora", action="store_true", help="without the embedded model's own few-step LoRA")
    parser.add_argument("--device", help="cpu, cuda, cuda:1, mps; chosen if absent")
    parser.add_argument("--dtype", help="float32, float16, bfloat16; chosen if absent")
    parser.add_argument("--backend", metavar="NAME", help=f"{', '.join(NAMES)} [auto]")
    add_memory_options(parser)


def add_memory_options(parser: argparse.ArgumentParser) -> None:
    """What a GPU's memory may hold, in the words that A1111's users know."""
    parser.add_argument("--memory", metavar="PLAN", help=f"for a GPU: auto, {', '.join(PLANS)} (fp8 rounds weights)")
    for flag, plan in (("--medvram", "medium"), ("--lowvram", "low")):
        parser.add_argument(flag, dest="memory", action="store_const", const=plan, help=f"--memory {plan}")
    parser.add_argument("--memory-limit", type=float, metavar="GB", help="use no more of a GPU's memory than this")


def add_source_option(parser: argparse.ArgumentParser) -> None:
    """`--from PICTURE`, and where to look for what it names."""
    parser.add_argument("--from", dest="source", type=Path, metavar="PICTURE", help="take its settings from this one")
    parser.add_argument(
        *("--look-in",), action="append", type=Path, metavar="FOLDER", help="where models and LoRAs of --from may be"
    )


def add_saying_options(parser: argparse.ArgumentParser, *, document: str) -> None:
    """How much is printed; `document` is what the JSON holds."""
    parser.add_argument("--json", action="store_true", help=f"print one JSON document: {document}")
    parser.add_argument("-q", "--quiet", action="store_true", help="print nothing but errors")
    parser.add_argument("-v", "--verbose", action="store_true", default=argparse.SUPPRESS, help="say what is chosen")


def add_request_options(parser: argparse.ArgumentParser, *, without: Collection[str] = ()) -> None:
    """The prompt by its place, and an option for every other field of `Request`, but those that are named."""
    for name, spec in SPECS.items():
        if name == "prompt" and name not in without:
            parser.add_argument("prompt", nargs="?", help=spec.help)
        elif name not in without:
            add_field(parser, name, spec)


def add_field(parser: argparse.ArgumentParser, name: str, spec: Spec, *, usual: Any = None) -> None:
    """One field of `Request` as an option; `usual` is what the command takes where the request has no such default."""
    names = {"sampler": ", ".join(SAMPLERS), "schedule": ", ".join(("automatic", *TABLES))}
    limits = f" ({names.get(name, spec.limits())})" if spec.kind in ("whole", "number", "name") else ""
    usual = DEFAULTS.get(name) if usual is None else usual
    default = "" if usual in (None, "") else f" [{usual}]"
    flags = dict.fromkeys([f"--{name.replace('_', '-')}", *spec.flags])
    metavar = {"whole": "N", "number": "X", "picture": "FILE", "text": "TEXT", "name": "NAME"}[spec.kind]
    kind, text = _type_of(spec), f"{spec.help}{limits}{default}".replace("%", "%%")
    parser.add_argument(*flags, dest=name, type=kind, metavar=metavar, help=text)


def _type_of(spec: Spec) -> Any:
    def number(text: str) -> int | float:
        try:
            return int(text) if spec.kind == "whole" else float(text)
        except ValueError:
            what = "a whole number" if spec.kind == "whole" else "a number"
            raise argparse.ArgumentTypeError(f"'{text}' is not {what} {spec.limits()}") from None

    return number if spec.kind in ("whole", "number") else str


def request_asked(arguments: argparse.Namespace, *, example: str) -> tuple[Recalled | None, Request]:
    """The request, its seed as it was given, and what `--from` said; `example` is the command in an error."""
    from fewstep.cli.recall import merged, recall

    fields = fields_asked(arguments)
    recalled = None
    if arguments.source is not None:
        shelves = [Path(arguments.lora_folder)] if arguments.lora_folder else []
        look_in = [*(arguments.look_in or ()), *shelves]
        own = arguments.lora is None and not arguments.no_lora
        recalled = recall(arguments.source, look_in=look_in, model=arguments.model, own_loras=own)
        fields = merged(recalled, fields)
    if "prompt" not in fields:
        raise RequestError(f"No prompt was given. Write: {example}")
    check_loras(arguments)
    return recalled, request_of(fields)


def fields_asked(arguments: argparse.Namespace) -> dict[str, Any]:
    """The fields of `Request` that were given."""
    found = {name: getattr(arguments, name, None) for name in SPECS}
    return {name: value for name, value in found.items() if value is not None}


def check_loras(arguments: argparse.Namespace) -> None:
    """Raises RequestError where LoRAs are asked for and refused at once."""
    if arguments.no_lora and arguments.lora:
        raise RequestError("--no-lora and --lora were both given. --lora alone already replaces the model's own LoRA.")


def opened(request: Request) -> Request:
    """The same with its pictures read, so that a bad one is found before the model is loaded."""
    from fewstep.image import open_image, open_mask

    image = None if request.image is None else open_image(request.image)
    return request.replaced(image=image, mask=None if request.mask is None else open_mask(request.mask))


def loading_asked(arguments: argparse.Namespace, recalled: Recalled | None) -> dict[str, Any]:
    """The keywords of `fewstep.load` that were asked for, or that `--from` recalls."""
    model, lora, dtype = arguments.model, False if arguments.no_lora else arguments.lora, arguments.dtype
    options = {**model_options(arguments), **shelf_options(arguments)}
    if recalled is not None:
        from fewstep.cli.recall import recalled_dtype, recalled_loras, recalled_model, recalled_vae
        from fewstep.device import choose

        model = recalled_model(recalled) if model is None else model
        lora = recalled_loras(recalled, lora)
        options["vae"] = options["vae"] or recalled_vae(recalled)
        dtype = recalled_dtype(recalled, choose(arguments.device).device) if dtype is None else dtype
    how = {name: getattr(arguments, name) for name in ("tiny_vae", "backend", "memory", "memory_limit")}
    options |= {name: value for name, value in how.items() if value is not None}
    return {"path": model, "lora": lora, "device": arguments.device, "dtype": dtype, **options}


def say_notes(notes: Sequence[str], choices: Sequence[str] = ()) -> None:
    """Sentences for the user, on stderr."""
    for sentence in (*choices, *notes):
        print(f"fewstep: note: {sentence}", file=sys.stderr)
