"""The best weights so far, by one figure of the looks: students get better and then worse again.

`keep_best = "distance:4"` names the figure and the sampling steps it is taken at. The weights stand in
best.safetensors with what was measured of them, so they outlive the process; how long nothing better has come is
counted from metrics.jsonl. The untrained student (step 0) is never the best: it is the teacher.
"""

from dataclasses import dataclass
from math import isfinite
from typing import Any

from fewstep.checkpoints.files import read_header, read_tensors
from fewstep.distill.checkpoint import damage_of, write_summed
from fewstep.distill.history import BEST, read_rows, table_of
from fewstep.distill.recipes import keep_best_of
from fewstep.distill.run import Run
from fewstep.distill.sharding import gathered
from fewstep.distill.world import on_first
from fewstep.errors import CheckpointError, RecipeError

HIGHER_IS_BETTER = ("recognised", "clip")


@dataclass(frozen=True)
class Best:
    """The step whose weights are kept, and the figure measured of them."""

    step: int
    value: float
    by: str


def figure_of(row: dict[str, Any], keep_best: tuple[str, int]) -> float:
    """The student's figure in a look's row. Raises RecipeError where the look could not measure it.

    >>> figure_of({"distance": {"student": {"4": 0.3}}}, ("distance", 4))
    0.3
    """
    figure, steps = keep_best
    value = table_of(row, figure).get("student", {}).get(str(steps))
    if value is None:
        raise RecipeError(
            f"keep_best = '{figure}:{steps}', but the looks cannot measure it: the judge knows nothing that these "
            "captions name. Use distance, or another judge."
        )
    return float(value)


def is_better(new: float, old: float, figure: str) -> bool:
    """Whether `new` is a number and better than `old`; equal is not better.

    >>> is_better(0.9, 0.8, "recognised"), is_better(0.9, 0.8, "distance"), is_better(float("nan"), 9, "distance")
    (True, False, False)
    """
    return isfinite(new) and (new > old if figure in HIGHER_IS_BETTER else new < old)


def best_of(run: Run) -> Best | None:
    """What best.safetensors holds; None where there is none, or it was kept by another figure than the recipe's."""
    path = run.folder / BEST
    if not path.is_file():
        return None
    said = read_header(path)[1]
    if said.get("by") != run.recipe.keep_best:
        return None
    return Best(int(said["step"]), float(said["value"]), said["by"])


def forget_best(run: Run) -> None:
    """Remove what an earlier run left in this folder."""
    (run.folder / BEST).unlink(missing_ok=True)


def keep_if_best(run: Run, row: dict[str, Any]) -> bool:
    """Keep the weights as they are now if this look's figure is the best so far; returns whether it was. All processes
    call it together.
    """
    kept = keep_best_of(run.recipe)
    if kept is None or not on_first(run.world, lambda: _improves(run, row, kept)):
        return False
    said = {"step": str(run.step), "value": repr(figure_of(row, kept)), "by": run.recipe.keep_best}
    tensors = gathered(run.student.tensors(), keep=run.world.first)
    on_first(run.world, lambda: write_summed(run.folder / BEST, tensors, said))
    return True


def _improves(run: Run, row: dict[str, Any], kept: tuple[str, int]) -> bool:
    new, old = figure_of(row, kept), best_of(run)
    return run.step > 0 and (isfinite(new) if old is None else is_better(new, old.value, kept[0]))


def out_of_patience(run: Run) -> bool:
    """Whether the last `patience` looks were no better than the best; always False where patience is 0."""
    best = best_of(run) if run.recipe.patience else None
    if best is None:
        return False
    since = [row for row in read_rows(run.folder) if "distance" in row and best.step < row["step"] <= run.step]
    return len(since) >= run.recipe.patience


def take_best(run: Run) -> Best | None:
    """Put the best weights into the student; None, and nothing changed, where none are kept.

    Raises CheckpointError when the file does not fit the student.
    """
    best = best_of(run) if run.recipe.keep_best else None
    if best is None:
        return None
    if fault := damage_of(run.folder / BEST):
        raise CheckpointError(f"The best weights '{run.folder / BEST}' are damaged ({fault}). Delete the file.")
    try:
        run.student.load(read_tensors(run.folder / BEST))
    except (KeyError, RuntimeError) as error:
        raise CheckpointError(f"'{run.folder / BEST}' does not fit this student ({error}). Delete it.") from None
    return best
