"""`fewstep distill RECIPE.toml --data CACHE -o lcm-lora.safetensors`: parse, call, show progress, say where the
result is.
"""

import argparse
import json
import signal
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fewstep.cli.data import WHERE, add_options, open_data

if TYPE_CHECKING:
    from fewstep.distill.run import Run


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
        required=True,
        help=f"latent cache; or what is encoded first: {WHERE}",
    )
    parser.add_argument("--stream", action="store_true", help="encode while training, without a cache")
    add_options(parser)
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
    parser.add_argument(
        "--log", metavar="NAMES", help="logs beside metrics.jsonl: tensorboard, wandb (offline), or both with a comma"
    )
    parser.add_argument("--resume", action="store_true", help="go on from the last checkpoint")
    parser.add_argument("--device", help="cpu, cuda or mps")
    parser.add_argument("--json", action="store_true", help="print one JSON document instead of progress")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Train, write, judge; returns the exit code (0 finished, 130 interrupted; a refused student raises QualityError,
    3).
    """
    from fewstep.checkpoints.load import load_model
    from fewstep.distill.facts import command
    from fewstep.distill.finish import finish
    from fewstep.distill.history import resume_command
    from fewstep.distill.recipes import read_recipe
    from fewstep.distill.run import begin

    log = [] if arguments.log is None else [f"log={arguments.log}"]
    recipe = read_recipe(arguments.recipe, overrides=[*arguments.overrides, *log])
    model = load_model(arguments.model or recipe.model or None, device=arguments.device, dtype="fp32")
    cache = open_data(arguments, model, folder=run_folder(arguments.out) / "cache", quiet=arguments.json)
    training = begin(recipe, model, cache, folder=run_folder(arguments.out), resume=arguments.resume)
    if not _train(training, quiet=arguments.json):
        _say(f"\nStopped after step {training.step} of {recipe.steps}; everything is kept in {training.folder}.")
        _say(f"To go on:\n  {resume_command(command())}")
        return 130
    if training.step < recipe.steps:
        _say(f"No better {recipe.keep_best} in {recipe.patience} looks: ended after step {training.step}.")
    result = finish(training, arguments.out)
    facts = {name: str(value) if isinstance(value, Path) else value for name, value in vars(result).items()}
    print(json.dumps(facts) if arguments.json else _sentence(facts))
    return 0


def run_folder(out: Path) -> Path:
    """Where checkpoints, metrics and sample grids of a run to `out` are.

    >>> run_folder(Path("lcm-lora.safetensors")).name
    'lcm-lora.run'
    """
    return out.with_name(f"{out.name.removesuffix('.safetensors')}.run")


def _train(training: "Run", *, quiet: bool) -> bool:
    """Whether training came to its end; False after Ctrl-C, with a checkpoint written."""
    from fewstep.cli.progress import progress
    from fewstep.distill.run import save
    from fewstep.distill.trainer import train

    with _interruptible() as pressed, progress(training, quiet=quiet) as show, closing(train(training)) as reports:
        for report in reports:
            show(report)
            if pressed and report.step < training.recipe.steps:
                save(training)
                return False
    return True


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


def _sentence(facts: dict[str, Any]) -> str:
    guided = "" if facts["guided"] is None else f", with guidance {facts['guided']:.4g}"
    chosen = f" of {facts['last_step']}, the best by {facts['kept_by']}" if facts["kept_by"] else ""
    return (
        f"{facts['path']}: after step {facts['steps']}{chosen}, {facts['student']:.4g} from the teacher's solution at "
        f"{facts['sampling_steps']} evaluations (the teacher itself: {facts['plain']:.4g}{guided})."
    )


def _say(text: str) -> None:
    print(text, file=sys.stderr)
