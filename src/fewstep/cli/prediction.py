"""`fewstep distill RECIPE.toml --dry-run`: what a recipe would cost, without data and without weights."""

import argparse
import json
from dataclasses import asdict
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fewstep.distill.cost import Cost


def show(arguments: argparse.Namespace) -> int:
    """Predict, print a table or (--json) one document; returns the exit code 0."""
    from fewstep.checkpoints.description import describe
    from fewstep.distill.cost import TFLOPS, predict
    from fewstep.distill.recipes import read_recipe
    from fewstep.models.published import PUBLISHED

    recipe = read_recipe(arguments.recipe, overrides=arguments.overrides)
    name = arguments.model or recipe.model
    config = PUBLISHED[name] if name in PUBLISHED else describe(name or None).configs["unet"]
    cost = predict(recipe, config)
    hours = {gpu: round(cost.hours(gpu), 2) for gpu in TFLOPS}
    facts = asdict(cost) | {"memory": cost.memory, "gpu_hours": hours}
    print(json.dumps(facts) if arguments.json else table(cost))
    return 0


def table(cost: "Cost") -> str:
    """The prediction for a reader."""
    from fewstep.distill.cost import TFLOPS, UTILISATION

    rows = [
        ("trained", f"{cost.trained / 1e6:.2f} million numbers"),
        ("memory", f"{_gb(cost.memory)}, beside what the device needs for itself:"),
        ("  weights", _gb(cost.weights)),
        ("  optimiser", _gb(cost.moments)),
        ("  gradients", _gb(cost.gradients)),
        ("  activations", _gb(cost.peak - cost.gradients)),
        ("a step", f"{cost.flops / 1e12:.4g} TFLOP for {cost.samples} samples"),
    ]
    for gpu, speed in TFLOPS.items():
        if cost.precision in speed:
            seconds = cost.seconds(speed[cost.precision] * 1e12 * UTILISATION)
            rows.append((gpu, f"{seconds:.3g} s a step, {cost.hours(gpu):.3g} h for {cost.steps} steps"))
    assumed = f"(at {UTILISATION:.0%} of a GPU's {cost.precision} arithmetic, which is an assumption)"
    return "\n".join([f"{name:14} {text}" for name, text in rows] + [assumed])


def _gb(count: int) -> str:
    return f"{count / 1e9:.3g} GB"
