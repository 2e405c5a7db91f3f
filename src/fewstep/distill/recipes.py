"""A recipe is data: one TOML table of named values, checked before anything is loaded.

The comment beside a published recipe states what it was seen to give.
"""

import difflib
import json
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from math import cos, pi
from pathlib import Path
from typing import Any

from fewstep.errors import RecipeError
from fewstep.sampling.sampler import SAMPLERS
from fewstep.sampling.timesteps import TABLES

SAMPLER_OF = {
    "lcm": "lcm",
    "lcf": "lcm",
    "scm": "lcm",
    "tcd": "tcd",
    "tdd": "tcd",
    "tscd": "tcd",
    "pcm": "pcm",
    "tdm": "pcm",
}
"""The sampler that walks the way an objective teaches; its usual table goes with it."""
PHASED = ("pcm", "tscd", "tdm")
LOGS = ("tensorboard", "wandb")
FIGURES = {"distance": "", "recognised": "look_judge", "clip": "look_clip"}
"""Figures of a look that weights can be kept by, and the recipe key without which there is none."""


def _value(
    default: Any, text: str, *, least: float | None = None, most: float | None = None, choices: Sequence[str] = ()
) -> Any:
    return field(default=default, metadata={"help": text, "least": least, "most": most, "choices": tuple(choices)})


@dataclass(frozen=True)
class Recipe:
    """Everything a training run depends on besides the model and the data."""

    model: str = _value("", "teacher: folder, file or hub name; empty means the embedded model")
    objective: str = _value("lcm", "distillation method")
    experimental: bool = _value(False, "allow methods that have not proved themselves on this kind of model: scm")
    phases: int = _value(4, "phases of PCM, segments of TSCD and TDM; divides origin_steps", least=1)
    student: str = _value("lora", "what is trained", choices=("lora", "full"))
    start: str = _value("", "what the student starts from: LoRA file, or folder of a full student; empty: the teacher")
    rank: int = _value(64, "rank of the LoRA", least=1)
    alpha: float = _value(64.0, "scale of the LoRA; its weight is alpha / rank", least=1e-6)
    guidance_embedding: int = _value(256, "width of a full student's guidance embedding; 0 means none", least=0)
    ema: float = _value(0.95, "decay of a full student's averaged target; a LoRA has none", least=0, most=1)
    origin_steps: int = _value(50, "points of the teacher's grid; divides the model's timesteps", least=1)
    w_min: float = _value(7.5, "least guidance scale w = guidance - 1", least=0)
    w_max: float = _value(7.5, "greatest w; equal to w_min means fixed", least=0)
    distance: str = _value("huber", "distance between prediction and target", choices=("huber", "l2"))
    huber_c: float = _value(1e-3, "where the pseudo-Huber distance turns from squared to absolute", least=1e-12)
    adversarial: float = _value(0.0, "weight of the adversarial loss; 0: no critic", least=0)
    rival_rate: float = _value(1.0, "learning rate of critic and fake network, over the student's", least=0)
    steps: int = _value(1000, "optimiser steps", least=1)
    batch: int = _value(12, "items in one forward pass of one process", least=1)
    accumulate: int = _value(1, "forward passes to one optimiser step", least=1)
    learning_rate: float = _value(1e-4, "greatest learning rate", least=0)
    warmup: int = _value(0, "steps over which the learning rate rises from 0", least=0)
    decay: str = _value("constant", "course of the learning rate after the warm-up", choices=("constant", "cosine"))
    optimiser: str = _value("adamw", "AdamW, or with 8-bit moments (bitsandbytes)", choices=("adamw", "adamw8bit"))
    weight_decay: float = _value(0.0, "AdamW's weight decay", least=0)
    clip: float = _value(1.0, "greatest norm of the gradient", least=1e-12)
    empty_captions: float = _value(0.0, "share of items trained with the empty prompt", least=0, most=1)
    precision: str = _value("float32", "format the networks compute in", choices=("float32", "bfloat16"))
    checkpointing: bool = _value(False, "recompute activations to save memory")
    compile: bool = _value(False, "compile the networks (torch.compile): a slow start, faster steps")
    sharding: str = _value("none", "split the networks among several processes", choices=("none", "fsdp2"))
    seed: int = _value(0, "seed of every draw", least=0)
    save_every: int = _value(500, "steps between checkpoints", least=1)
    look_every: int = _value(500, "steps between sample grids and distances; 0 means never", least=0)
    look_count: int = _value(16, "fixed items that distances are measured on", least=1)
    look_steps: tuple[int, ...] = _value((1, 2, 4, 8), "sampling steps looked at")
    look_teacher_steps: int = _value(50, "steps of the teacher's solution", least=1)
    sampler: str = _value("", "sampler the student is made for; empty: the objective's own")
    sampling_steps: int = _value(4, "steps written into the result, and judged at the end", least=1)
    sampling_origin_steps: int = _value(0, "grid written into the result; 0: the one it was trained on", least=0)
    sampling_guidance: float = _value(1.0, "guidance written into the result", least=0)
    table: str = _value("", "timestep table written into the result; empty: the sampler's own")
    look_judge: str = _value("", "judge that reads the looks' pictures: 'embedded' or its folder; empty: none")
    look_clip: str = _value("", "folder of a CLIP model that scores the looks' pictures; empty: none")
    keep_best: str = _value("", "figure of the look whose weights are the result, such as distance:4; empty: the last")
    patience: int = _value(0, "looks without a better figure after which training stops; 0: never", least=0)
    log: str = _value("", "logs beside metrics.jsonl: tensorboard, wandb, or both with a comma")

    def __post_init__(self) -> None:
        """Fill in the objective's own sampler and table."""
        sampler = self.sampler or SAMPLER_OF.get(self.objective, "lcm")
        table = self.table or (SAMPLERS[sampler].table if sampler in SAMPLERS else "")
        object.__setattr__(self, "sampler", sampler)
        object.__setattr__(self, "table", table)

    @property
    def w(self) -> float:
        """The w that distances are measured at: the fixed one, or the middle of the range."""
        return (self.w_min + self.w_max) / 2


_FIELDS = {entry.name: entry for entry in fields(Recipe)}


def read_recipe(path: str | Path, *, overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe file and apply `key=value` overrides. Raises RecipeError naming the key, what was found and what
    fits.
    """
    try:
        table = tomllib.loads(Path(path).read_text())
    except OSError as error:
        raise RecipeError(f"The recipe '{path}' cannot be read: {error.strerror}.") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise RecipeError(f"The recipe '{path}' is not valid TOML: {error}.") from error
    return make_recipe(table | dict(map(parse_override, overrides)))


def parse_override(text: str) -> tuple[str, Any]:
    """Split `key=value`; the value is read as TOML, and as plain text where it is not.

    >>> parse_override("learning_rate=2e-4"), parse_override("student=full")
    (('learning_rate', 0.0002), ('student', 'full'))
    """
    key, equals, value = text.partition("=")
    if not equals:
        raise RecipeError(f"'{text}' is not an override. Write key=value, for example steps=500.")
    try:
        return key.strip(), tomllib.loads(f"value = {value}")["value"]
    except tomllib.TOMLDecodeError:
        return key.strip(), value.strip()


def make_recipe(values: Mapping[str, Any]) -> Recipe:
    """Check every value and make the recipe. Raises RecipeError."""
    recipe = Recipe(**{key: _checked(key, value) for key, value in values.items()})
    if recipe.objective in ("pcm", "tscd", "tdm") and recipe.origin_steps % recipe.phases:
        raise RecipeError(
            f"{recipe.phases} phases do not divide the grid of {recipe.origin_steps} points, so training would miss "
            f"timesteps that sampling visits. Set origin_steps to a multiple of phases, such as {10 * recipe.phases}."
        )
    if recipe.objective == "scm" and not recipe.experimental:
        raise RecipeError(
            "objective = 'scm' is experimental: no result on a Stable Diffusion model is published. Add experimental = "
            "true, or use 'lcm' or 'pcm'."
        )
    if recipe.objective == "scm" and recipe.adversarial:
        raise RecipeError("objective = 'scm' takes no critic: nothing lands. Set adversarial = 0.")
    if recipe.adversarial and recipe.compile:
        raise RecipeError("A critic looks inside the network, which a compiled one hides. Set compile = false.")
    if recipe.start and recipe.student == "lora" and recipe.sharding != "none":
        raise RecipeError("LoRA layers that are split among processes cannot start from a file. Set sharding = 'none'.")
    if recipe.optimiser == "adamw8bit" and recipe.sharding != "none":
        raise RecipeError("AdamW with 8-bit moments cannot split them. Set optimiser = 'adamw', or sharding = 'none'.")
    if recipe.w_min > recipe.w_max:
        raise RecipeError(
            f"w_min = {recipe.w_min} is above w_max = {recipe.w_max}. Swap them, or make them equal for a fixed w."
        )
    if recipe.student == "lora" and recipe.w_min != recipe.w_max:
        raise RecipeError(
            f"A LoRA is not told w, so w from {recipe.w_min} to {recipe.w_max} would train towards their average. "
            "Set w_min = w_max, or student = 'full'."
        )
    if recipe.student == "full" and not recipe.guidance_embedding and recipe.w_min != recipe.w_max:
        raise RecipeError(
            "A full student without guidance embedding needs one fixed w. Set w_min = w_max, or guidance_embedding = "
            "256."
        )
    _check_sampling(recipe)
    _check_watching(recipe)
    return recipe


def keep_best_of(recipe: Recipe) -> tuple[str, int] | None:
    """`keep_best` as (figure, sampling steps); None where it is empty.

    >>> keep_best_of(Recipe(keep_best="distance:4"))
    ('distance', 4)
    """
    figure, _, steps = recipe.keep_best.partition(":")
    return (figure, int(steps)) if figure and steps.isdecimal() else None


def logs_of(recipe: Recipe) -> tuple[str, ...]:
    """The logs asked for, by name.

    >>> logs_of(Recipe(log="tensorboard, wandb"))
    ('tensorboard', 'wandb')
    """
    return tuple(name for name in (part.strip() for part in recipe.log.split(",")) if name)


def recipe_text(recipe: Recipe) -> str:
    """The recipe as TOML, every value written out; `read_recipe` reads it back equal."""
    return "".join(f"{key} = {json.dumps(value)}\n" for key, value in asdict(recipe).items())


def learning_rate_at(recipe: Recipe, step: int) -> float:
    """The learning rate of step `step` (from 0): linear warm-up, then constant or a half cosine down to 0.

    >>> [learning_rate_at(Recipe(learning_rate=1.0, warmup=2, steps=4, decay="cosine"), k) for k in range(4)]
    [0.5, 1.0, 1.0, 0.5]
    """
    if step < recipe.warmup:
        return recipe.learning_rate * (step + 1) / recipe.warmup
    if recipe.decay == "constant":
        return recipe.learning_rate
    done = (step - recipe.warmup) / max(recipe.steps - recipe.warmup, 1)
    return recipe.learning_rate * (1 + cos(pi * done)) / 2


def _check_sampling(recipe: Recipe) -> None:
    if recipe.sampler not in SAMPLERS:
        raise RecipeError(f"There is no sampler '{recipe.sampler}'. Use one of: {', '.join(SAMPLERS)}.")
    if recipe.table not in TABLES:
        raise RecipeError(f"There is no timestep table '{recipe.table}'. Use one of: {', '.join(TABLES)}.")
    if recipe.objective in PHASED and recipe.sampler == "lcm":
        raise RecipeError(
            f"objective = '{recipe.objective}' teaches jumps to a phase's edge, but sampler = '{recipe.sampler}' asks "
            f"for jumps to the clean picture. Leave sampler out, or use '{SAMPLER_OF[recipe.objective]}'."
        )


def _check_watching(recipe: Recipe) -> None:
    unknown = [name for name in logs_of(recipe) if name not in LOGS]
    if unknown:
        raise RecipeError(f"There is no log '{unknown[0]}'. Use {' or '.join(LOGS)}, or both with a comma.")
    kept = keep_best_of(recipe)
    if kept is None:
        if recipe.keep_best or recipe.patience:
            needs = "patience needs" if recipe.patience else "it must be"
            raise RecipeError(
                f"keep_best = '{recipe.keep_best}' is not a figure at a number of steps, which {needs}. "
                f"Use {' or '.join(f'{figure}:4' for figure in FIGURES)}."
            )
        return
    figure, steps = kept
    if figure not in FIGURES:
        raise RecipeError(f"keep_best = '{recipe.keep_best}': there is no figure '{figure}'. Use {', '.join(FIGURES)}.")
    if steps not in recipe.look_steps or not recipe.look_every:
        raise RecipeError(
            f"keep_best = '{recipe.keep_best}', but {steps} steps are never looked at. Add {steps} to look_steps "
            f"(now {list(recipe.look_steps)}), and set look_every (now {recipe.look_every})."
        )
    if FIGURES[figure] and not getattr(recipe, FIGURES[figure]):
        raise RecipeError(f"keep_best = '{recipe.keep_best}' needs a judge. Set {FIGURES[figure]}, or use distance.")


def _checked(key: str, value: Any) -> Any:
    if key not in _FIELDS:
        near = difflib.get_close_matches(key, _FIELDS, n=1)
        hint = f"Did you mean '{near[0]}'?" if near else f"Known keys: {', '.join(_FIELDS)}."
        raise RecipeError(f"A recipe has no key '{key}'. {hint}")
    value = _typed(key, value)
    _in_range(key, value)
    return value


def _typed(key: str, value: Any) -> Any:
    wanted = type(_FIELDS[key].default)
    if wanted is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if (
        wanted is tuple
        and isinstance(value, list | tuple)
        and value
        and all(type(item) is int and item > 0 for item in value)
    ):
        return tuple(value)
    if type(value) is not wanted or wanted is tuple:
        name = {
            "tuple": "a list of positive whole numbers",
            "int": "a whole number",
            "float": "a number",
            "str": "text",
            "bool": "true or false",
        }
        raise RecipeError(f"{key} = {value!r} is not {name[wanted.__name__]}. It is: {_FIELDS[key].metadata['help']}.")
    return value


def _in_range(key: str, value: Any) -> None:
    least, most, choices = (_FIELDS[key].metadata[name] for name in ("least", "most", "choices"))
    if choices and value not in choices:
        raise RecipeError(f"{key} = '{value}' is not known. Use one of: {', '.join(choices)}.")
    if least is not None and not value >= least:
        raise RecipeError(f"{key} = {value} is below {least:g}. It is: {_FIELDS[key].metadata['help']}.")
    if most is not None and not value <= most:
        raise RecipeError(f"{key} = {value} is above {most:g}. It is: {_FIELDS[key].metadata['help']}.")
