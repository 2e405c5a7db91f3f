"""What a training costs: `fewstep distill RECIPE.toml --dry-run`, without data and weights, and before each run."""

import argparse
import json
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fewstep.distill.cost import Cost
    from fewstep.distill.run import Run


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


def before(training: "Run") -> dict[str, Any]:
    """What a run is going to take: {"memory_gb", "step_s", "hours"}; the times are the least possible ones, at the
    speed of this device's matrix products, and for one process.
    """
    from fewstep.distill.cost import arithmetic_speed, predict

    recipe, (height, width) = training.recipe, training.size
    config = dict(training.student.teacher_unet.config)
    cost = predict(recipe, config, size_px=round((height * width) ** 0.5 / 64) * 64)
    step_s = cost.seconds(arithmetic_speed(training.device, recipe.precision))
    hours = step_s * (recipe.steps - training.step) / 3600
    return {"memory_gb": round(cost.memory / 1e9, 3), "step_s": round(step_s, 4), "hours": round(hours, 2)}


def sentence(predicted: dict[str, Any]) -> str:
    """The same for a person.

    >>> sentence({"memory_gb": 8.6, "step_s": 1.25, "hours": 0.35})
    'Predicted: 8.6 GB, and at the very least 1.25 s a step and 0.35 h in all.'
    """
    return (
        f"Predicted: {predicted['memory_gb']:.3g} GB, and at the very least {predicted['step_s']:.3g} s a step and "
        f"{predicted['hours']:.2g} h in all."
    )


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
