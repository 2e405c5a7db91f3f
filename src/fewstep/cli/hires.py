"""`--hires-model` and `--hires-lora`: another model, or the same with other LoRAs, for the second pass."""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fewstep.cli.options import MODEL
from fewstep.errors import CheckpointError, RequestError
from fewstep.request import lora_choice

if TYPE_CHECKING:
    from fewstep.cli.recall import Recalled
    from fewstep.pipeline import Pipeline
    from fewstep.plan import Plan


def add_hires_options(parser: Any) -> None:
    """Who paints the second pass, where it is not the first one's model as it is."""
    parser.add_argument("--hires-model", metavar="PATH", help=f"second pass: {MODEL}; sampled in its own way")
    parser.add_argument(
        "--hires-lora",
        action="append",
        type=lora_choice,
        metavar="FILE[:WEIGHT]",
        help="second pass: LoRA, in place of the first one's; may be repeated",
    )


def check_hires(arguments: argparse.Namespace, hires: bool) -> None:
    """Raises RequestError where a second model is given without a second pass."""
    if (arguments.hires_model or arguments.hires_lora) and not hires:
        raise RequestError("A model or LoRA was given for a second pass, but none is asked for. Add --hires-scale 2.")


def add_hires_pipeline(pipe: Pipeline, arguments: argparse.Namespace, recalled: Recalled | None) -> None:
    """Gives the pipeline its second one, where one is asked for; the same model is not loaded twice.

    Raises CheckpointError, LoraError: it cannot be loaded, or the picture that is repeated names one that is not given.
    """
    import fewstep
    from fewstep.pipeline import Pipeline

    model, loras = arguments.hires_model, arguments.hires_lora
    if recalled is not None and model is None and loras is None:
        model, loras = _recalled(recalled, arguments.model)
    if model is None and loras is None:
        return
    if model is None or _same(model, arguments.model):
        pipe.hires = Pipeline(pipe.model, loras)
    else:
        pipe.hires = fewstep.load(model, lora=loras or False, device=arguments.device, dtype=arguments.dtype)


def _same(one: str | Path, other: str | Path | None) -> bool:
    return other is not None and Path(one).expanduser().absolute() == Path(other).expanduser().absolute()


def _recalled(recalled: Recalled, model: str | None) -> tuple[str | Path | None, Any]:
    """What a picture of ours says of its second pass: the model's place and its LoRAs; (None, None) if nothing."""
    from fewstep.cli.recall import folder_of, recalled_model, with_loras

    checkpoint, loras = (recalled.settings.get(f"Hires {what}", "") for what in ("checkpoint", "loras"))
    if not recalled.ours or not (checkpoint or loras):
        return None, None
    name, _, digest = checkpoint.removesuffix("]").rpartition(" [")
    settings = {"Model": name, "Model hash": digest, "Loras": "" if loras == "none" else loras}
    second = replace(recalled, settings={**settings, "Version": recalled.settings["Version"]}, notes=())
    try:
        place = recalled_model(second) if checkpoint else model
    except CheckpointError:
        raise CheckpointError(
            f"The second pass of '{recalled.path}' was painted by '{checkpoint}', which is not here. "
            "Give it with --hires-model."
        ) from None
    found = list(with_loras(second, folder_of(place)).loras or ())
    if not checkpoint:
        return None, found
    return _embedded() if place is None else place, found


def _embedded() -> Path:
    from fewstep.checkpoints.description import assets_path

    return assets_path()


def hires_settings(plan: Plan) -> dict[str, Any]:
    """What `--json` says of the second pass, with every default filled in; {} where there is none."""
    later = plan.hires
    if later is None:
        return {}
    return {
        "hires_width": later.size[0],
        "hires_height": later.size[1],
        "hires_upscaler": later.upscaler,
        "hires_strength": later.strength,
        "hires_steps": len(later.timesteps),
        "hires_guidance": later.guidance,
        "hires_sampler": later.sampler.name,
        "hires_schedule": later.table,
        "hires_timesteps": list(later.timesteps),
    }
