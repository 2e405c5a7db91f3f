"""Put the trained model into the package: fp16, the diffusers layout, the LCM-LoRA and its papers beside it.

python -m pictogram.ship              # -> src/fewstep/assets/pictogram
"""

import argparse
import hashlib
import json
import tomllib
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path

from fewstep.checkpoints.description import FINISHES
from fewstep.checkpoints.files import read_json, read_tensors, write_json, write_safetensors
from fewstep.checkpoints.load import assets_path, load_model
from fewstep.checkpoints.lora import read_lora, write_lora
from fewstep.checkpoints.save import save_model
from fewstep.errors import FewstepError
from fewstep.export.onnx import export_graphs
from pictogram.fetch import BUILD

LIMIT_MB = 30
SIZE_PX = 128
WEIGHTS = "diffusion_pytorch_model.safetensors"
#: Of the LCM-LoRA: at full strength its guidance adds up from step to step (docs/log.md).
STRENGTH = 0.7
#: How the teacher itself likes to be sampled; the LoRA brings its own settings.
TEACHER = dict(sampler="dpmpp_2m", table="trailing", steps=20, guidance=3.0)


def sha256(path: Path) -> str:
    """The file's digest."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def provenance(folder: Path) -> str:
    """recipe.toml: versions, the data's and the weights' digests, and the distillation's own recipe."""
    lines = [
        "# How these weights were made; every step is a target of the project's Makefile (make pictogram).",
        "[versions]",
    ]
    lines += [
        f'{name} = "{version(name)}"' for name in ("torch", "diffusers", "transformers", "numpy", "pillow", "resvg-py")
    ]
    lines += ["", "[digests]", f'cutouts = "{sha256(BUILD / "cutouts.npz")}"']
    weights = sorted(folder.rglob("*.safetensors"))
    lines += [f'"{path.relative_to(folder)}" = "{sha256(path)}"' for path in weights]
    stages = json.loads((BUILD / "stages.json").read_text()) if (BUILD / "stages.json").exists() else []
    for stage in stages:
        lines += ["", "[[stage]]", *(f"{key} = {json.dumps(value)}" for key, value in stage.items())]
    return "\n".join(lines) + "\n"


def ship_lora(source: Path, target: Path) -> None:
    """The LCM-LoRA at STRENGTH, so that weight 1 is the best one: its alpha is scaled, its matrices are as trained."""
    lora = read_lora(source)
    layers = {name: (layer.down, layer.up) for name, layer in lora.layers.items()}
    (alpha,) = {layer.alpha for layer in lora.layers.values()}
    kept = [key for key in lora.metadata if key.startswith(("fewstep.", "ss_")) and not key.startswith("ss_network_")]
    metadata = {key: lora.metadata[key] for key in kept}
    write_lora(
        target,
        layers,
        alpha=alpha * STRENGTH,
        metadata=metadata | {"fewstep.strength": str(STRENGTH)},
        sampling=lora.sampling,
        size=(SIZE_PX, SIZE_PX),
    )


def ship_tiny(source: Path, target: Path) -> None:
    """The tiny autoencoder, marked as good enough for finished pictures: docs/log.md says how that was measured."""
    tensors = {name: tensor.half() for name, tensor in read_tensors(source / WEIGHTS).items()}
    write_safetensors(target / WEIGHTS, tensors)
    config = read_json(source / "config.json")
    write_json(target / "config.json", config | {FINISHES: True})


def main() -> None:
    """Write the folder and check its size."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("-o", "--output", type=Path, default=assets_path())
    parser.add_argument("--tiny", action="store_true", help="the tiny autoencoder alone; the rest stays as it is")
    args = parser.parse_args()
    if not args.tiny:
        model = load_model(BUILD / "model")
        save_model(replace(model, sampling=replace(model.sampling, **TEACHER)), args.output, dtype="fp16")
        ship_lora(BUILD / "lcm-lora.safetensors", args.output / "lcm-lora.safetensors")
        (args.output / "evaluation.json").unlink(missing_ok=True)  # of other weights; pictogram.evaluate writes it anew
    ship_tiny(BUILD / "model" / "tiny_vae", args.output / "tiny_vae")
    export_graphs(args.output)
    (args.output / "recipe.toml").write_text(provenance(args.output))
    tomllib.loads((args.output / "recipe.toml").read_text())
    total_mb = sum(f.stat().st_size for f in args.output.rglob("*") if f.is_file()) / 1e6
    print(f"{args.output}: {total_mb:.1f} MB")
    if total_mb > LIMIT_MB:
        raise FewstepError(f"The embedded model has {total_mb:.1f} MB, but the package promises {LIMIT_MB} MB at most.")


if __name__ == "__main__":
    main()
