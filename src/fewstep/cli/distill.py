"""`fewstep distill RECIPE.toml --data CACHE -o lcm-lora.safetensors`: parse, call, show progress, say where the
result is.
"""

import argparse
import gc
import json
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fewstep.errors import RecipeError

if TYPE_CHECKING:
    from fewstep.data.latents import LatentCache
    from fewstep.distill.recipes import Recipe
    from fewstep.distill.run import Run
    from fewstep.distill.world import World


def register(subparsers: Any) -> None:
    """Add `distill` to the command line."""
    parser = subparsers.add_parser(
        "distill",
        help="train a few-step LoRA or model from a recipe",
        description="Train a few-step student from a recipe. Ctrl-C keeps what is learnt; --resume goes on from there.",
    )
    parser.add_argument("recipe", type=Path, metavar="RECIPE.toml", help="what to train and how")
    parser.add_argument(
        "--data",
        type=Path,
        required=True,
        help="latent cache, or a folder of pictures with captions (name.png, name.txt)",
    )
    parser.add_argument(
        "-o", "--out", type=Path, required=True, help="LoRA file (.safetensors), or folder of a full student"
    )
    parser.add_argument("--model", help="teacher: folder, file or hub name (instead of the recipe's)")
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        dest="overrides",
        help="change a recipe value; repeatable",
    )
    parser.add_argument("--resume", action="store_true", help="go on from the last checkpoint")
    parser.add_argument("--device", help="cpu, cuda or mps")
    parser.add_argument(
        "--find-batch",
        action="store_true",
        help="first find the largest batch that fits, and keep the samples of a step by more forward passes",
    )
    parser.add_argument("--memory-gb", type=float, metavar="GB", help="memory that --find-batch may use")
    parser.add_argument("--json", action="store_true", help="print one JSON document instead of progress")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Train, write, judge; returns the exit code (0 finished, 130 interrupted; a refused student raises QualityError,
    3).
    """
    from fewstep.distill.recipes import read_recipe
    from fewstep.distill.world import joined, own_device, world_of

    recipe = read_recipe(arguments.recipe, overrides=arguments.overrides)
    with joined(device=own_device(world_of(), arguments.device)) as world:
        return _distil(arguments, recipe, world)


def _distil(arguments: argparse.Namespace, recipe: "Recipe", world: "World") -> int:
    from fewstep.checkpoints.load import load_model
    from fewstep.distill.finish import finish
    from fewstep.distill.measured import facts_sentence, measured
    from fewstep.distill.run import begin
    from fewstep.distill.sharding import on_whole

    split = world.size > 1 and recipe.sharding != "none"  # then a network never stands whole on its device
    device, quiet = "cpu" if split else world.device, arguments.json or not world.first
    load = partial(load_model, arguments.model or recipe.model or None, device=device, dtype="fp32")
    if arguments.find_batch:
        recipe = _found_batch(arguments, recipe, world, load)
    model = load()
    cache = _cache(arguments, lambda: model, world)
    training = begin(recipe, model, cache, folder=run_folder(arguments.out), resume=arguments.resume, world=world)
    if training.note and world.first:
        _say(training.note)
    if not _train(training, quiet=quiet):
        if world.first:
            _say(f"\nStopped after step {training.step} of {recipe.steps}; everything is kept in {training.folder}.")
            _say("To go on: the same command with --resume")
        return 130
    result = on_whole(training, lambda whole: finish(whole, arguments.out))
    if world.first:
        facts = {name: str(value) if isinstance(value, Path) else value for name, value in vars(result).items()}
        taken = measured(training)
        print(json.dumps(facts | taken) if arguments.json else f"{_sentence(facts)} {facts_sentence(taken)}")
    return 0


def _found_batch(arguments: argparse.Namespace, recipe: "Recipe", world: "World", load: Callable[[], Any]) -> "Recipe":
    """Before the model is loaded for good: the tries want its place."""
    from fewstep.distill.batch_size import Setting, find_batch
    from fewstep.distill.world import on_first

    if recipe.sharding != "none" and world.size > 1:
        raise RecipeError("--find-batch tries one process, which cannot tell what split networks take. Leave it out.")
    cache = _cache(arguments, load, world)
    gc.collect()
    setting = Setting(arguments.model or recipe.model or None, cache.folder, world.device, arguments.memory_gb)
    say = (lambda text: None) if arguments.json else _say
    found = on_first(world, lambda: find_batch(recipe, setting, say=say))
    if world.first:
        say(f"batch = {found.batch}, accumulate = {found.accumulate}")
    return found


def run_folder(out: Path) -> Path:
    """Where checkpoints, metrics and sample grids of a run to `out` are.

    >>> run_folder(Path("lcm-lora.safetensors")).name
    'lcm-lora.run'
    """
    return out.with_name(f"{out.name.removesuffix('.safetensors')}.run")


def _cache(arguments: argparse.Namespace, load: Callable[[], Any], world: "World") -> "LatentCache":
    from fewstep.data.latents import LatentCache, is_cache
    from fewstep.distill.world import on_first

    if is_cache(arguments.data):
        return LatentCache(arguments.data)
    folder = run_folder(arguments.out) / "cache"
    on_first(world, lambda: _write_cache(arguments, load(), folder))
    return LatentCache(folder)


def _write_cache(arguments: argparse.Namespace, model: Any, folder: Path) -> None:
    from fewstep.data.latents import write_cache
    from fewstep.data.pictures import captioned_files, pictures

    count = len(captioned_files(arguments.data))
    for done in write_cache(folder, model, pictures(arguments.data, size_px=model.family.size_px)):
        if not arguments.json:
            _say(f"{done} of {count} pictures encoded into {folder}")


def _train(training: "Run", *, quiet: bool) -> bool:
    """Whether the recipe's last step was reached; False after Ctrl-C, with a checkpoint written."""
    from fewstep.distill.run import save
    from fewstep.distill.trainer import train
    from fewstep.distill.world import anywhere

    with _interruptible() as pressed, _progress(training, quiet) as show:
        for report in train(training):
            show(report)
            if anywhere(training.world, bool(pressed)):
                save(training)
                break
    return training.step >= training.recipe.steps


@contextmanager
def _interruptible() -> Iterator[list[int]]:
    """The first Ctrl-C is put in a list, so that a step is never torn; a second one interrupts at once."""
    pressed: list[int] = []

    def press(number: int, _frame: Any) -> None:
        pressed.append(number)
        signal.signal(signal.SIGINT, before)

    before = signal.signal(signal.SIGINT, press)
    try:
        yield pressed
    finally:
        signal.signal(signal.SIGINT, before)


@contextmanager
def _progress(training: "Run", quiet: bool) -> Iterator[Any]:
    if quiet:
        yield lambda report: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True)) as progress:
        task = progress.add_task("distill", total=training.recipe.steps, completed=training.step)

        def show(report: Any) -> None:
            text = f"loss {report.loss:.4f}  lr {report.learning_rate:.2g}  {report.samples_per_s:.1f} samples/s"
            progress.update(task, completed=report.step, description=text)

        yield show


def _sentence(facts: dict[str, Any]) -> str:
    guided = "" if facts["guided"] is None else f", with guidance {facts['guided']:.4g}"
    return (
        f"{facts['path']}: after {facts['steps']} steps, {facts['student']:.4g} from the teacher's solution at "
        f"{facts['sampling_steps']} evaluations (the teacher itself: {facts['plain']:.4g}{guided})."
    )


def _say(text: str) -> None:
    print(text, file=sys.stderr)
