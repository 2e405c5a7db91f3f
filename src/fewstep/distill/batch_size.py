"""The largest batch that trains: each size is tried by a few real steps in a process of its own.

A process that ends gives all of its memory back, one that is killed for memory says as much, and its peak is its own;
so GPU and CPU are tried in one way.
"""

import multiprocessing
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from fewstep.distill.recipes import Recipe
from fewstep.errors import RecipeError

STEPS = 2
"""Steps of one try: the second one finds the optimiser's moments in place."""


@dataclass(frozen=True)
class Setting:
    """What is tried besides the recipe: model (folder, file or name; None is the embedded one), cache, device, and the
    memory in GB (1e9 bytes) that may be used; None means all of a GPU's. `parts` are `load_model`'s base and vae.
    """

    model: str | None
    cache: Path
    device: str
    memory_gb: float | None = None
    parts: Mapping[str, Any] = field(default_factory=dict)


def find_batch(recipe: Recipe, setting: Setting, *, say: Callable[[str], None] = lambda text: None) -> Recipe:
    """The recipe with the largest batch that fits, and as many more forward passes as keep the samples of a step.

    Raises RecipeError when not even one item fits, or when a try fails for another reason than memory.
    """
    if setting.device == "cpu" and setting.memory_gb is None:
        raise RecipeError("On a CPU the machine's memory has no edge to find. Say how much to use: --memory-gb 8.")

    def fits(batch: int) -> bool:
        found = tried(replace(recipe, batch=batch), setting)
        fine = found is not None and (setting.memory_gb is None or found <= setting.memory_gb)
        took = "does not fit" if found is None else f"takes {found:.3g} GB{'' if fine else ', which is too much'}"
        say(f"a batch of {batch} {took}")
        return fine

    most = largest(fits, most=recipe.batch * recipe.accumulate)
    if most == 0:
        limit = "" if setting.memory_gb is None else f" into {setting.memory_gb:g} GB"
        raise RecipeError(f"Not even a batch of 1 fits{limit}. Set checkpointing = true, or precision = 'bfloat16'.")
    return with_batch(recipe, most)


def largest(fits: Callable[[int], bool], *, most: int) -> int:
    """The largest number from 1 to `most` that fits, 0 if none does: doubling until one does not, then bisection.

    >>> [largest(lambda batch: batch <= edge, most=48) for edge in (0, 1, 11, 48)]
    [0, 1, 11, 48]
    """
    good, asked = 0, 1
    while fits(asked):
        good, asked = asked, min(2 * asked, most)
        if good == most:
            return most
    bad = asked
    while bad - good > 1:
        middle = (good + bad) // 2
        good, bad = (middle, bad) if fits(middle) else (good, middle)
    return good


def with_batch(recipe: Recipe, most: int) -> Recipe:
    """The recipe with a batch of at most `most` and exactly as many samples to a step as before.

    >>> found = with_batch(Recipe(batch=12, accumulate=2), 9)
    >>> found.batch, found.accumulate
    (8, 3)
    """
    total = recipe.batch * recipe.accumulate
    batch = max(size for size in range(1, min(most, total) + 1) if total % size == 0)
    return replace(recipe, batch=batch, accumulate=total // batch)


def tried(recipe: Recipe, setting: Setting) -> float | None:
    """Peak memory in GB of a few steps with this recipe, None where it did not fit. Raises RecipeError otherwise."""
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe(duplex=False)
    process = context.Process(target=_try, args=(there, recipe, setting))
    process.start()
    there.close()
    try:
        found = here.recv()
    except EOFError:  # it was killed
        found = None
    process.join()
    if isinstance(found, str):
        raise RecipeError(f"A batch of {recipe.batch} could not be tried: {found}")
    return found


def _try(there: Connection, recipe: Recipe, setting: Setting) -> None:
    import torch

    try:
        there.send(_peak_gb(recipe, setting))
    except (torch.OutOfMemoryError, MemoryError):
        there.send(None)
    except Exception as error:  # noqa: BLE001 - told to the process that asked
        there.send(None if "alloc" in str(error) and "memory" in str(error) else f"{type(error).__name__}: {error}")


def _peak_gb(recipe: Recipe, setting: Setting) -> float:
    from fewstep.checkpoints.load import load_model
    from fewstep.data.latents import LatentCache
    from fewstep.distill.measured import peak_memory
    from fewstep.distill.run import begin
    from fewstep.distill.trainer import take_step

    model: Any = load_model(setting.model, device=setting.device, dtype="fp32", **setting.parts)
    short = replace(recipe, accumulate=min(recipe.accumulate, 2), steps=STEPS, look_every=0)
    with tempfile.TemporaryDirectory() as folder:
        run = begin(short, model, LatentCache(setting.cache), folder=folder)
        for _ in range(STEPS):
            take_step(run)
    return peak_memory(run.device)[0] / 1e9
