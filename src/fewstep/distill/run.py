"""A training run and its checkpoint: student, optimiser, averages and step number, in one safetensors file.

There is nothing else to keep: every random number of a step is made from (seed, step).
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from fewstep.checkpoints.files import write_safetensors
from fewstep.checkpoints.load import Model, load_model
from fewstep.checkpoints.lora import read_lora
from fewstep.data.latents import Data
from fewstep.distill.history import METRICS
from fewstep.distill.objectives import objective_named
from fewstep.distill.recipes import Recipe, recipe_text
from fewstep.distill.students import STUDENTS, Student
from fewstep.distill.times import grid
from fewstep.errors import RecipeError
from fewstep.models.lora_layers import start_lora
from fewstep.models.vae import scale_factor

STATE = "state.safetensors"
_FREE_TO_CHANGE = {
    *("model", "steps", "save_every", "look_every", "look_count", "look_steps", "look_teacher_steps"),
    *("sampler", "table", "sampling_steps", "sampling_origin_steps", "sampling_guidance"),
    *("look_judge", "keep_best", "patience", "log"),
}
_MOMENTS = ("step", "exp_avg", "exp_avg_sq")


@dataclass
class Run:
    """One training run in progress. `step` counts finished optimiser steps; `folder` holds its checkpoint, metrics
    and looks; `size` is the pictures' height and width in pixels.
    """

    recipe: Recipe
    model: Model
    cache: Data
    folder: Path
    student: Student
    optimiser: torch.optim.Optimizer
    size: tuple[int, int]
    step: int = 0
    kept: dict[str, Any] = field(default_factory=dict)

    @property
    def device(self) -> torch.device:
        """Where the networks are."""
        return next(iter(self.student.parameters.values())).device


def begin(recipe: Recipe, model: Model, cache: Data, *, folder: str | Path, resume: bool = False) -> Run:
    """Set a run up, or with `resume` put it back where its checkpoint left it. The model's UNet is changed in place.

    Raises RecipeError when cache, model and recipe do not fit, when there is nothing to resume, or when an unfinished
    run is in the way.
    """
    folder = Path(folder)
    check_fit(recipe, model, cache)
    _check_place(folder, resume)
    factor = scale_factor(model.vae)
    size = (cache.shape[1] * factor, cache.shape[2] * factor)
    student = STUDENTS[recipe.student](model.unet, recipe, size=size)
    optimiser = torch.optim.AdamW(
        [{"params": group} for group in student.groups],
        lr=recipe.learning_rate,
        weight_decay=recipe.weight_decay,
        fused=True,
    )
    run = Run(recipe, model, cache, folder, student, optimiser, size)
    folder.mkdir(parents=True, exist_ok=True)
    if resume:
        _load(run)
    elif recipe.start:
        _start(run)
    (folder / "recipe.toml").write_text(recipe_text(recipe))
    _cut_metrics(run)
    return run


def save(run: Run) -> Path:
    """Write the checkpoint, replacing the last one only when the new one is whole."""
    tensors = {f"student.{name}": value for name, value in run.student.tensors().items()}
    for name, value in run.student.parameters.items():
        state = run.optimiser.state.get(value, {})
        tensors |= {f"adam.{moment}.{name}": state[moment] for moment in _MOMENTS if moment in state}
    metadata = {"step": str(run.step), "recipe": json.dumps(asdict(run.recipe)), "data": run.cache.fingerprint}
    metadata["position"] = json.dumps(run.cache.position())
    write_safetensors(
        run.folder / STATE, {name: value.detach().cpu().contiguous() for name, value in tensors.items()}, metadata
    )
    return run.folder / STATE


def check_fit(recipe: Recipe, model: Model, cache: Data) -> None:
    """Raises RecipeError when the recipe's grid, the schedule, the cache and the UNet do not belong together."""
    grid(recipe.origin_steps, model.schedule.count)
    if model.schedule.prediction == "epsilon" and model.schedule.alphas_cumprod[-1] < 1e-7:
        raise RecipeError(
            "The teacher predicts noise with zero terminal SNR: at its last timestep the noise says nothing of the "
            "picture. "
            "Use a teacher with v prediction, or a schedule that keeps some signal."
        )
    if not cache.pictures and (objective_named(recipe.objective).pictures or recipe.adversarial):
        method = "a critic" if recipe.adversarial else f"objective {recipe.objective}"
        raise RecipeError(
            f"{method} needs pictures, but '{cache.folder}' holds prompts alone. Give captioned pictures, or set "
            "objective = 'tdm' and adversarial = 0."
        )
    config = model.unet.config
    if cache.shape[0] != config["in_channels"] or config["in_channels"] != config["out_channels"]:
        raise RecipeError(
            f"The UNet takes {config['in_channels']} channels and gives {config['out_channels']}, but the cache "
            f"holds latents of "
            f"{cache.shape[0]}. Use a text-to-image model and a cache made with it."
        )
    width = cache.empty.text_BLD.shape[-1]
    if width != config["cross_attention_dim"]:
        raise RecipeError(
            f"The cache holds text {width} wide, but the UNet reads {config['cross_attention_dim']}. Make the cache "
            f"with this model."
        )


def _check_place(folder: Path, resume: bool) -> None:
    found = (folder / STATE).is_file()
    if resume and not found:
        raise RecipeError(f"There is no checkpoint in '{folder}' to resume. Leave --resume out to begin.")
    if found and not resume:
        raise RecipeError(f"'{folder}' holds an unfinished run. Add --resume to go on with it, or delete the folder.")


def _start(run: Run) -> None:
    """Put a finished LoRA, with its own alpha, or a finished full model where the student begins."""
    if run.recipe.student == "full":
        run.student.start(load_model(run.recipe.start, dtype="fp32").unet)
        return
    found = read_lora(run.recipe.start, family=run.model.family)
    bent = [name for name, layer in found.layers.items() if layer.mid is not None]
    if bent or found.text_layers:
        raise RecipeError(
            f"'{found.path.name}' also changes {'the text encoder' if found.text_layers else bent[0]} in a way that is "
            "not trained here. Start from a LoRA of the UNet with two matrices a layer."
        )
    start_lora(
        run.student.unet,
        {name: (layer.down, layer.up * (layer.alpha / layer.rank)) for name, layer in found.layers.items()},
    )


def _load(run: Run) -> None:
    path = run.folder / STATE
    try:
        with safe_open(path, "pt") as file:
            metadata = file.metadata()
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
    except (OSError, SafetensorError) as error:
        raise RecipeError(f"The checkpoint '{path}' cannot be read ({error}). Delete it and begin again.") from error
    _check_same(run, metadata)
    run.step = int(metadata["step"])
    run.cache.seek(json.loads(metadata.get("position", "{}")))
    run.student.load(
        {name.removeprefix("student."): value for name, value in tensors.items() if name.startswith("student.")}
    )
    _load_moments(run, tensors)


def _load_moments(run: Run, tensors: Mapping[str, torch.Tensor]) -> None:
    for name, value in run.student.parameters.items():
        state = {moment: tensors.get(f"adam.{moment}.{name}") for moment in _MOMENTS}
        # the same memory layout as the weight, so that the fused update adds in the same order
        run.optimiser.state[value] |= {
            moment: tensor.to(value.device) if moment == "step" else torch.empty_like(value).copy_(tensor)
            for moment, tensor in state.items()
            if tensor is not None
        }


def _check_same(run: Run, metadata: Mapping[str, str]) -> None:
    before, now = json.loads(metadata["recipe"]), json.loads(json.dumps(asdict(run.recipe)))
    changed = [key for key in now if key not in _FREE_TO_CHANGE and before.get(key) != now[key]]
    if changed:
        key = changed[0]
        raise RecipeError(
            f"The checkpoint was made with {key} = {before.get(key)}, the recipe now says {now[key]}. Put it back, "
            f"or begin anew."
        )
    if metadata["data"] != run.cache.fingerprint:
        raise RecipeError(
            f"The checkpoint was made with other data than '{run.cache.folder}'. Give the same cache, or begin anew."
        )


def _cut_metrics(run: Run) -> None:
    path = run.folder / METRICS
    lines = path.read_text().splitlines() if path.is_file() else []
    kept = [line for line in lines if line.endswith("}") and json.loads(line)["step"] <= run.step]
    path.write_text("".join(f"{line}\n" for line in kept if run.step))
