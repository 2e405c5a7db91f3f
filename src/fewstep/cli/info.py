"""`fewstep info [PATH]`: what a model folder, a LoRA file or a picture is; `--backends`: what runs a model fastest."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fewstep.cli.options import add_model_options, model_options

if TYPE_CHECKING:
    from fewstep.checkpoints.load import Sampling


def register(subparsers: Any) -> None:
    """Add `info` to the command line."""
    parser = subparsers.add_parser(
        "info",
        help="describe a model, a LoRA or a picture",
        description="Describe a model (file, folder or Hub name), a LoRA or a picture; the embedded model by default.",
        allow_abbrev=False,
    )
    parser.add_argument("path", nargs="?", metavar="PATH", help="what to describe")
    add_model_options(parser)
    parser.add_argument(
        "--backends", action="store_true", help="measure each back end on this model and remember the fastest"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    parser.add_argument("-v", "--verbose", action="store_true", default=argparse.SUPPRESS, help="show errors in full")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Describes; returns the exit code."""
    if arguments.backends:
        from fewstep.cli.backends import measure

        return measure(arguments.path, as_json=arguments.json, **model_options(arguments))
    return show(describe(arguments.path, **model_options(arguments)), as_json=arguments.json)


def show(facts: dict[str, Any], *, as_json: bool) -> int:
    """Prints what `describe` found; returns the exit code."""
    print(json.dumps(facts, ensure_ascii=False, indent=2) if as_json else "\n".join(_lines(facts)))
    return 0


def describe(path: str | None, **parts: Any) -> dict[str, Any]:
    """The facts, by what the path is; `parts` are `load_model`'s base, vae and prediction.

    Raises:
        CheckpointError, LoraError, ImageError: it is missing, damaged, or none of these.
    """
    from fewstep.image import EXTENSIONS

    suffix = Path(path).suffix.lower() if path is not None else ""
    if path is not None and suffix in EXTENSIONS:
        return _picture(Path(path))
    if path is not None and Path(path).is_file() and _is_lora(Path(path)):
        return _lora(Path(path))
    return _model(path, **parts)


def _is_lora(path: Path) -> bool:
    from fewstep.checkpoints.files import read_header
    from fewstep.checkpoints.lora_keys import parse_key, unsupported

    shapes, metadata = read_header(path)
    return "ss_network_module" in metadata or bool(unsupported(shapes)) or any(map(parse_key, shapes))


def _picture(path: Path) -> dict[str, Any]:
    from fewstep.foreign import settings_in
    from fewstep.image import open_any
    from fewstep.infotext import read_texts, unrestored

    image = open_any(path, "picture")
    facts: dict[str, Any] = {"kind": "picture", "path": str(path), "size": f"{image.width}x{image.height}"}
    info = settings_in(read_texts(image))
    if info is None:
        return facts | {"settings": None}
    facts |= {"prompt": info.prompt, "negative_prompt": info.negative_prompt, "settings": dict(info.settings)}
    return facts | {"not_restored": list(unrestored(info))}


def _lora(path: Path) -> dict[str, Any]:
    from fewstep.checkpoints.files import read_header
    from fewstep.checkpoints.lora import read_lora
    from fewstep.checkpoints.lora_families import alpha_of, tensors_of
    from fewstep.checkpoints.lora_keys import naming_of
    from fewstep.checkpoints.lora_read import cross_attention_dim, is_cross

    lora = read_lora(path, lenient=True)
    layers = list(lora.all_layers.values())
    tensors = [tensor for layer in layers for tensor in tensors_of(layer)]
    return {
        "kind": "LoRA",
        "path": str(path),
        "name": lora.name,
        "hash": lora.short_hash,
        "unet_modules": len(lora.layers),
        "text_modules": len(lora.text_layers),
        "families": {name: sum(layer.label == name for layer in layers) for name in lora.families},
        "namings": sorted({naming_of(key) for key in read_header(path)[0] if not key.startswith("bundle_emb.")}),
        "ranks": sorted({layer.rank for layer in layers if layer.rank is not None}),
        "alphas": sorted({alpha for layer in layers if (alpha := alpha_of(layer)) is not None}),
        "parameters": sum(tensor.numel() for tensor in tensors),
        "dtype": ", ".join(sorted({str(tensor.dtype).removeprefix("torch.") for tensor in tensors})),
        "cross_attention": cross_attention_dim(layer for name, layer in lora.layers.items() if is_cross(name)),
        "embeddings": [embedding.name for embedding in lora.embeddings],
        "not_read": list(lora.skipped),
        "sampling": _sampling(lora.sampling),
        "metadata": lora.metadata,
    }


def _model(path: str | None, **parts: Any) -> dict[str, Any]:
    """Loaded in half precision on the CPU: that checks every weight and takes the least memory."""
    from fewstep.checkpoints.load import load_model

    model = load_model(path, device="cpu", dtype="bfloat16", **parts)
    networks = {"unet": [model.unet], "vae": [model.vae], "text": list(model.text.encoders)}
    counts = {name: sum(p.numel() for part in found for p in part.parameters()) for name, found in networks.items()}
    return {
        "kind": "model",
        "path": str(model.path),
        "name": model.name,
        "hash": model.content_hash,
        "family": model.family.label,
        "cross_attention": model.family.cross_attention_dim,
        "size_px": model.family.size_px,
        "prediction": model.schedule.prediction,
        "parameters": counts | {"all": sum(counts.values())},
        "dtype": _stored_dtype(model.path),
        "sampling": _sampling(model.sampling),
        "loras": sorted(file.name for file in model.path.glob("*lora*.safetensors")),
        "notes": list(model.notes),
    }


def _stored_dtype(path: Path) -> str:
    """The number formats of the UNet's weights on disk, of a single file of all its weights."""
    from safetensors import safe_open

    found: set[str] = set()
    for part in [path] if path.is_file() else (path / "unet").glob("*.safetensors"):
        with safe_open(part, framework="np") as file:
            found |= {file.get_slice(name).get_dtype() for name in file.keys()}  # noqa: SIM118
    return ", ".join(sorted(found))


def _sampling(sampling: Sampling | None) -> dict[str, Any] | None:
    if sampling is None:
        return None
    names = ("sampler", "table", "steps", "guidance", "origin_steps", "embedded_guidance")
    return {name: getattr(sampling, name) for name in names}


def _lines(facts: Mapping[str, Any], indent: str = "") -> list[str]:
    lines: list[str] = []
    width = max((len(key) for key in facts), default=0) + 2
    for key, value in facts.items():
        label = indent + key.replace("_", " ").ljust(width)
        if isinstance(value, Mapping) and value:
            lines += [label.rstrip(), *_lines(value, indent + "  ")]
        else:
            text = "".join(letter if letter.isprintable() or letter == "\n" else "?" for letter in _text(value))
            lines.append(label + text.replace("\n", "\n" + " " * len(label)))
    return lines


def _text(value: Any) -> str:
    if value is None or value == "" or value == {} or value == []:
        return "-"
    if isinstance(value, list):
        return ", ".join(map(_text, value))
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) and value > 9999 else f"{value}"
