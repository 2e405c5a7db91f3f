"""`fewstep distill RECIPE.toml --data CACHE -o lcm-lora.safetensors`: parse, call, show progress, say where the
result is.
"""

import argparse
import gc
import json
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fewstep.cli import prediction
from fewstep.cli.data import WHERE, add_options, open_data
from fewstep.cli.options import add_model_options, model_options
from fewstep.device import keep_memory
from fewstep.errors import RecipeError

if TYPE_CHECKING:
    from fewstep.data.latents import Data
    from fewstep.distill.recipes import Recipe
    from fewstep.distill.run import Run
    from fewstep.distill.world import World

WORTH_PREDICTING = 50
"""Steps from which on a run is worth the seconds that a prediction takes."""


def register(subparsers: Any) -> None:
    """Add `distill` to the command line."""
    parser = subparsers.add_parser(
        "distill",
        help="train a few-step LoRA or model from a recipe",
        description="Train a few-step student from a recipe. Ctrl-C keeps what is learnt; --resume goes on from there.",
    )
    parser.add_argument("recipe", type=Path, metavar="RECIPE.toml", help="what to train and how")
    parser.add_argument("--data", help=f"latent cache; or what is encoded first: {WHERE}")
    parser.add_argument("--stream", action="store_true", help="encode while training, without a cache")
    add_options(parser)
    parser.add_argument("-o", "--out", type=Path, help="LoRA file (.safetensors), or folder of a full student")
    parser.add_argument("--model", help="teacher: folder, file or hub name (instead of the recipe's)")
    add_model_options(parser)
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        dest="overrides",
        help="change a recipe value; repeatable",
    )
    parser.add_argument(
        "--log", metavar="NAMES", help="logs beside metrics.jsonl: tensorboard, wandb (offline), or both with a comma"
    )
    parser.add_argument(
        "--dry-run", action="store_true", help="train nothing: say what memory and time the recipe would take"
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

    if arguments.dry_run:
        return prediction.show(arguments)
    if missing := [name for name in ("data", "out") if getattr(arguments, name) is None]:
        raise RecipeError(f"Training needs --{' and --'.join(missing)}. To see what it would cost, use --dry-run.")
    log = [] if arguments.log is None else [f"log={arguments.log}"]
    recipe = read_recipe(arguments.recipe, overrides=[*arguments.overrides, *log])
    with joined(device=own_device(world_of(), arguments.device)) as world:
        return _distil(arguments, recipe, world)


def _distil(arguments: argparse.Namespace, recipe: "Recipe", world: "World") -> int:
    from fewstep.checkpoints.load import load_model
    from fewstep.distill.finish import finish
    from fewstep.distill.run import begin
    from fewstep.distill.sharding import on_whole

    split = world.size > 1 and recipe.sharding != "none"  # then a network never stands whole on its device
    device, quiet = "cpu" if split else world.device, arguments.json or not world.first
    if device == "cpu":
        keep_memory()
    path = arguments.model or recipe.model or None
    load = partial(load_model, path, device=device, dtype="fp32", **model_options(arguments))
    if arguments.find_batch:
        recipe = _found_batch(arguments, recipe, world, load)
    model = load()
    data = _data(arguments, lambda: model, world)
    if not arguments.stream:  # the cache holds what it has to say
        for encoder in model.text.encoders:
            encoder.to("cpu")
    training = begin(recipe, model, data, folder=run_folder(arguments.out), resume=arguments.resume, world=world)
    if training.note and world.first:
        _say(training.note)
    if world.first and not quiet and recipe.steps >= WORTH_PREDICTING and not arguments.resume:
        training.kept["predicted"] = prediction.before(training)
        _say(prediction.sentence(training.kept["predicted"]))
    finished = _train(training, quiet=quiet)
    if world.first:
        _say_how_it_ended(training, finished)
    if not finished:
        return 130
    result = on_whole(training, lambda whole: finish(whole, arguments.out))
    if world.first:
        _show_result(training, vars(result), as_json=arguments.json)
    return 0


def _say_how_it_ended(training: "Run", finished: bool) -> None:
    from fewstep.distill.facts import command
    from fewstep.distill.history import resume_command

    step, recipe = training.step, training.recipe
    if not finished:
        _say(f"\nStopped after step {step} of {recipe.steps}; everything is kept in {training.folder}.")
        _say(f"To go on:\n  {resume_command(command())}")
    elif step < recipe.steps:
        _say(f"No better {recipe.keep_best} in {recipe.patience} looks: ended after step {step}.")


def _show_result(training: "Run", result: dict[str, Any], *, as_json: bool) -> None:
    from fewstep.distill.measured import facts_sentence, measured

    facts = {name: str(value) if isinstance(value, Path) else value for name, value in result.items()}
    taken = measured(training)
    print(json.dumps(facts | taken) if as_json else f"{_sentence(facts)} {facts_sentence(taken)}")


def _found_batch(arguments: argparse.Namespace, recipe: "Recipe", world: "World", load: Callable[[], Any]) -> "Recipe":
    """Before the model is loaded for good: the tries want its place."""
    from fewstep.distill.batch_size import Setting, find_batch
    from fewstep.distill.world import on_first

    if recipe.sharding != "none" and world.size > 1:
        raise RecipeError("--find-batch tries one process, which cannot tell what split networks take. Leave it out.")
    if arguments.stream:
        raise RecipeError("--find-batch tries batches of a cache, which a stream has none of. Leave one of them out.")
    folder = _data(arguments, load, world).folder
    gc.collect()
    path, parts = arguments.model or recipe.model or None, model_options(arguments)
    setting = Setting(path, folder, world.device, arguments.memory_gb, parts)
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


def _data(arguments: argparse.Namespace, load: Callable[[], Any], world: "World") -> "Data":
    from fewstep.distill.world import on_first

    folder, quiet = run_folder(arguments.out) / "cache", arguments.json or not world.first
    return open_data(arguments, load, folder=folder, quiet=quiet, once=partial(on_first, world))


def _train(training: "Run", *, quiet: bool) -> bool:
    """Whether training came to its end; False after Ctrl-C or SIGTERM, with a checkpoint written."""
    from fewstep.cli.progress import progress
    from fewstep.distill.run import save
    from fewstep.distill.trainer import train
    from fewstep.distill.world import anywhere

    with _interruptible() as pressed, progress(training, quiet=quiet) as show, closing(train(training)) as reports:
        for report in reports:
            show(report)
            if anywhere(training.world, bool(pressed)) and report.step < training.recipe.steps:
                save(training)
                return False
    return True


@contextmanager
def _interruptible() -> Iterator[list[int]]:
    """The first Ctrl-C, or a scheduler's SIGTERM, is put in a list, so that a step is never torn; a second one
    interrupts at once.
    """
    pressed: list[int] = []

    def press(number: int, _frame: Any) -> None:
        pressed.append(number)
        restore()

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    before = {number: signal.signal(number, press) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield pressed
    finally:
        restore()


def _sentence(facts: dict[str, Any]) -> str:
    guided = "" if facts["guided"] is None else f", with guidance {facts['guided']:.4g}"
    chosen = f" of {facts['last_step']}, the best by {facts['kept_by']}" if facts["kept_by"] else ""
    return (
        f"{facts['path']}: after step {facts['steps']}{chosen}, {facts['student']:.4g} from the teacher's solution at "
        f"{facts['sampling_steps']} evaluations (the teacher itself: {facts['plain']:.4g}{guided})."
    )


def _say(text: str) -> None:
    print(text, file=sys.stderr)
