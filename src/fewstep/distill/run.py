"""A training run and its checkpoint: student, optimiser, averages and step number, in one safetensors file.

There is nothing else to keep: every random number of a step, and the place in the data, is made from (seed, step) and
the number of items that all processes together take in one forward pass.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any

import torch

from fewstep.checkpoints.load import Model, load_model
from fewstep.checkpoints.lora import LoraLayer, read_lora
from fewstep.data.latents import Data
from fewstep.distill.checkpoint import STATE, is_state, read_state, settle, write_state
from fewstep.distill.history import METRICS
from fewstep.distill.objectives import objective_named
from fewstep.distill.recipes import Recipe, recipe_text
from fewstep.distill.sharding import gathered, put, spread_over
from fewstep.distill.students import STUDENTS, Student
from fewstep.distill.times import grid
from fewstep.distill.world import World, on_first, same_start
from fewstep.errors import RecipeError
from fewstep.models.lora_layers import start_lora
from fewstep.models.vae import scale_factor

_FREE_TO_CHANGE = {
    *(
        "model",
        "batch",
        "checkpointing",
        "compile",
        "sharding",
        "steps",
        "save_every",
        "look_every",
        "look_count",
        "look_steps",
        "look_teacher_steps",
    ),
    *("sampler", "table", "sampling_steps", "sampling_origin_steps", "sampling_guidance"),
    *("look_judge", "look_clip", "keep_best", "patience", "log"),
}


@dataclass
class Run:
    """One training run in progress. `step` counts finished optimiser steps; `folder` holds its checkpoint, metrics
    and looks; `size` is the pictures' height and width in pixels; `world` is the processes that train it together;
    `note` is what a person should hear about how it began; `seconds` is what each step took.
    """

    recipe: Recipe
    model: Model
    cache: Data
    folder: Path
    student: Student
    optimiser: torch.optim.Optimizer
    size: tuple[int, int]
    step: int = 0
    world: World = field(default_factory=World)
    note: str | None = None
    seconds: list[float] = field(default_factory=list)
    kept: dict[str, Any] = field(default_factory=dict)

    @property
    def device(self) -> torch.device:
        """Where the networks are."""
        return next(iter(self.student.parameters.values())).device

    @property
    def batch(self) -> int:
        """Items of one forward pass, in all processes together."""
        return self.recipe.batch * self.world.size


def begin(
    recipe: Recipe,
    model: Model,
    cache: Data,
    *,
    folder: str | Path,
    resume: bool = False,
    world: World | None = None,
) -> Run:
    """Set a run up, or with `resume` put it back where its newest whole checkpoint left it. The model's UNet is changed
    in place.

    Raises RecipeError when cache, model and recipe do not fit, when there is nothing to resume, or when an unfinished
    run is in the way.
    """
    folder, world = Path(folder), world or World()
    check_fit(recipe, model, cache)
    note = on_first(world, lambda: _check_place(folder, resume))
    factor = scale_factor(model.vae)
    size = (cache.shape[1] * factor, cache.shape[2] * factor)
    spread = spread_over(world) if recipe.sharding == "fsdp2" and world.size > 1 else None
    student = STUDENTS[recipe.student](model.unet, recipe, size=size, spread=spread)
    optimiser = make_optimiser(recipe, student)
    run = Run(recipe, model, cache, folder, student, optimiser, size, world=world, note=note)
    if resume:
        _load(run, folder / STATE)
    elif recipe.start:
        _start(run)
    if spread is None:
        same_start(world, student.parameters.values())
    on_first(world, lambda: _prepare_folder(run))
    return run


def save(run: Run) -> Path:
    """Write the checkpoint, replacing the last one only when the new one is whole; all processes call it together."""
    contents = _contents(run)
    return on_first(run.world, lambda: write_state(run.folder, *contents))


def make_optimiser(recipe: Recipe, student: Student) -> torch.optim.Optimizer:
    """AdamW over the student's groups. Raises RecipeError where 8-bit moments are asked for and cannot be had."""
    groups = [{"params": group} for group in student.groups]
    rate, decay = recipe.learning_rate, recipe.weight_decay
    if recipe.optimiser == "adamw":
        return torch.optim.AdamW(groups, lr=rate, weight_decay=decay, fused=True)
    device = student.groups[0][0].device.type
    try:
        found = import_module("bitsandbytes.optim.adamw")
    except ImportError:
        raise RecipeError(
            "optimiser = 'adamw8bit' wants the package bitsandbytes, which is not installed. Run: pip install "
            "'fewstep[adam8bit]', or set optimiser = 'adamw'."
        ) from None
    if device not in ("cuda", "cpu"):
        raise RecipeError(f"optimiser = 'adamw8bit' runs on CUDA and CPUs, not on {device}. Set optimiser = 'adamw'.")
    for value in student.parameters.values():  # it makes them so at its first step, and numbers would depend on when
        value.data = value.data.contiguous()
    return found.AdamW8bit(groups, lr=rate, weight_decay=decay)


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


def _check_place(folder: Path, resume: bool) -> str | None:
    if resume:
        return settle(folder)
    if is_state(folder):
        raise RecipeError(f"'{folder}' holds an unfinished run. Add --resume to go on with it, or delete the folder.")
    return None


def _prepare_folder(run: Run) -> None:
    run.folder.mkdir(parents=True, exist_ok=True)
    (run.folder / "recipe.toml").write_text(recipe_text(run.recipe))
    _cut_metrics(run)


def _contents(run: Run) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    tensors = {f"student.{name}": value for name, value in run.student.tensors().items()}
    for name, value in run.student.parameters.items():
        for moment, found in run.optimiser.state.get(value, {}).items():
            tensors[f"adam.{moment}.{name}"] = torch.as_tensor(found)
    metadata = {
        "step": str(run.step),
        "forward": str(run.step * run.recipe.accumulate),
        "batch": str(run.batch),
        "recipe": json.dumps(asdict(run.recipe)),
        "data": run.cache.fingerprint,
        "position": json.dumps(run.cache.position()),
    }
    return gathered(tensors, keep=run.world.first), metadata


def _start(run: Run) -> None:
    """Put a finished LoRA, with its own alpha, or a finished full model where the student begins."""
    if run.recipe.student == "full":
        run.student.start(load_model(run.recipe.start, dtype="fp32").unet)
        return
    found = read_lora(run.recipe.start, family=run.model.family)
    plain = {name: layer for name, layer in found.layers.items() if isinstance(layer, LoraLayer) and layer.mid is None}
    bent = [name for name in found.layers if name not in plain]
    if bent or found.text_layers:
        raise RecipeError(
            f"'{found.path.name}' also changes {'the text encoder' if found.text_layers else bent[0]} in a way that is "
            "not trained here. Start from a LoRA of the UNet with two matrices a layer."
        )
    start_lora(
        run.student.unet,
        {name: (layer.down, layer.up * layer.scale) for name, layer in plain.items()},
    )


def _load(run: Run, path: Path) -> None:
    tensors, metadata = read_state(path)
    _check_same(run, metadata)
    run.step = int(metadata["step"])
    run.cache.seek(json.loads(metadata.get("position", "{}")))
    run.student.load(
        {name.removeprefix("student."): value for name, value in tensors.items() if name.startswith("student.")}
    )
    _load_moments(run, tensors)


def _load_moments(run: Run, tensors: Mapping[str, torch.Tensor]) -> None:
    of: dict[str, dict[str, torch.Tensor]] = {name: {} for name in run.student.parameters}
    for key, tensor in tensors.items():
        kind, _, rest = key.partition(".")
        if kind == "adam":
            moment, _, name = rest.partition(".")
            of[name][moment] = tensor
    for name, value in run.student.parameters.items():
        run.optimiser.state[value] = {moment: _as_moment(tensor, value) for moment, tensor in of[name].items()}


def _as_moment(tensor: torch.Tensor, value: torch.nn.Parameter) -> torch.Tensor | int:
    if tensor.dtype is torch.int64:  # a step that the optimiser counts as a number of Python's
        return int(tensor)
    if tensor.shape != value.shape:
        return tensor.to(value.device)
    # the same memory layout as the weight, so that the fused update adds in the same order
    found = torch.empty_like(value, dtype=tensor.dtype)
    put(found, tensor)
    return found


def _check_same(run: Run, metadata: Mapping[str, str]) -> None:
    before = asdict(Recipe()) | json.loads(metadata["recipe"])  # an older one lacks the newer keys
    now = json.loads(json.dumps(asdict(run.recipe)))
    changed = [key for key in now if key not in _FREE_TO_CHANGE and before[key] != now[key]]
    if changed:
        key = changed[0]
        raise RecipeError(
            f"The checkpoint was made with {key} = {before[key]}, the recipe now says {now[key]}. Put it back, "
            f"or begin anew."
        )
    batch = int(metadata.get("batch", before["batch"]))
    if batch != run.batch:
        raise RecipeError(
            f"The checkpoint was made with {batch} items in a forward pass of all processes together; now it would be "
            f"{run.world.size} x batch = {run.recipe.batch}. Set batch so that the product is {batch}, or begin anew."
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
