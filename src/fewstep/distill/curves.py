"""Which curves a report draws: of one run in detail, of several runs one over the other."""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from fewstep.distill.charts import Line, Points, chart, smoothed, thinned
from fewstep.distill.history import History, Row, quarter_names, table_of

DEFAULT_TIMESTEPS = 1000


TITLES = {"distance": "Distance to the teacher", "recognised": "Recognised by the judge", "clip": "CLIP score"}
SHARES = ("recognised",)


def curves(runs: Sequence[History]) -> list[str]:
    """The charts of one run, or of several over each other, as SVG figures; those without data are left out."""
    drawn = _of_one(runs[0]) if len(runs) == 1 else _of_many(runs)
    return [figure for figure in drawn if figure]


def figures_of(looks: Iterable[Row]) -> list[str]:
    """What the looks measure, by name: "distance" first, then the scores."""
    names = ["distance"]
    for look in looks:
        names += [name for name in look.get("scores", {}) if name not in names]
    return names


def sampled_steps(looks: Sequence[Row]) -> list[str]:
    """The numbers of sampling steps that were looked at, fewest first."""
    found = {steps for look in looks for steps in table_of(look, "distance").get("student", {})}
    return sorted(found, key=int)


def over_steps(run: History, key: str) -> Points:
    """One number of every training step."""
    return [(row["step"], row[key]) for row in run.steps if row.get(key) is not None]


def over_looks(run: History, figure: str, steps: str, who: str = "student") -> Points:
    """One figure of every look."""
    found = ((look["step"], table_of(look, figure).get(who, {}).get(steps)) for look in run.looks)
    return [(step, value) for step, value in found if value is not None]


def judged_steps(run: History) -> str:
    """The sampling steps that the result is made for, where looks measure them; else the most that they do."""
    asked, seen = str(run.recipe.get("sampling_steps", "")), sampled_steps(run.looks)
    return asked if asked in seen else (seen[-1] if seen else "")


def _of_one(run: History) -> Iterator[str]:
    yield chart("Loss", _raw_and_smooth(run, "loss"), note="smoothed; faint: as it came")
    yield chart("Loss by timestep", list(_quarters(run)), note="smoothed; timestep 0 is the clean picture")
    yield from (_figure(run, name) for name in figures_of(run.looks))
    yield chart("Learning rate", [Line("learning rate", thinned(over_steps(run, "learning_rate")))], log=False)
    yield chart("Gradient norm", _raw_and_smooth(run, "gradient_norm"), note="before clipping")
    yield chart("Speed", _raw_and_smooth(run, "samples_per_s"), note="pictures a second")
    waits = over_steps(run, "data_wait")
    yield chart("Waiting for data", [Line("share of a step's time", smoothed(waits))], percent=True)
    parts = sorted({name for row in run.steps for name in row.get("losses", {})})
    if len(parts) > 1:
        yield chart("Parts of the loss", [Line(n, smoothed(_part(run, n)), k) for k, n in enumerate(parts)])


def _of_many(runs: Sequence[History]) -> Iterator[str]:
    yield chart("Loss", _each(runs, lambda run: smoothed(over_steps(run, "loss"))), note="smoothed")
    looks = [look for run in runs for look in run.looks]
    for figure in figures_of(looks):
        for steps in sampled_steps(looks):
            lines = _each(runs, lambda run, f=figure, k=steps: over_looks(run, f, k), style="dots")
            yield chart(
                f"{_title(figure)}, {_in_steps(steps)}", lines, percent=figure in SHARES, log=figure == "distance"
            )
    yield chart("Gradient norm", _each(runs, lambda run: smoothed(over_steps(run, "gradient_norm"))), note="smoothed")
    yield chart("Speed", _each(runs, lambda run: smoothed(over_steps(run, "samples_per_s"))), note="pictures a second")


def _each(runs: Sequence[History], points: Any, style: str = "") -> list[Line]:
    return [Line(run.name, points(run), place, style) for place, run in enumerate(runs)]


def _raw_and_smooth(run: History, key: str) -> list[Line]:
    points = over_steps(run, key)
    return [Line(key, thinned(points), 0, "faint"), Line(key.replace("_", " "), smoothed(points))]


def _quarters(run: History) -> Iterator[Line]:
    for place, name in enumerate(quarter_names(run.facts.get("timesteps", DEFAULT_TIMESTEPS))):
        found = ((row["step"], row["loss_quarters"][place]) for row in run.steps if row.get("loss_quarters"))
        yield Line(name, smoothed([(step, loss) for step, loss in found if loss is not None]), place)


def _part(run: History, name: str) -> Points:
    return [(row["step"], row["losses"][name]) for row in run.steps if name in row.get("losses", {})]


def _figure(run: History, figure: str) -> str:
    """The student by sampling steps; dashed, its teacher."""
    lines = [
        Line(_in_steps(steps), over_looks(run, figure, steps), place, "dots")
        for place, steps in enumerate(sampled_steps(run.looks))
    ]
    teacher = _teacher_line(run, figure)
    note = "of the student's pictures" if figure != "distance" else "to the teacher's many-step solution; 0 is equal"
    return chart(_title(figure), [*lines, *teacher], note=note, percent=figure in SHARES, log=figure == "distance")


def _teacher_line(run: History, figure: str) -> list[Line]:
    if not run.looks:
        return []
    if figure != "distance":
        steps = next(iter(table_of(run.looks[0], figure).get("teacher", {})), "")
        return (
            [Line(f"teacher, {steps} steps", over_looks(run, figure, steps, "teacher"), 7, "dashed")] if steps else []
        )
    steps = judged_steps(run)
    half = str(int(steps) // 2) if steps and int(steps) % 2 == 0 else ""
    pairs = (("guided", half, "teacher at {} evaluations, guided"), ("plain", steps, "teacher at {}, without guidance"))
    found = [(over_looks(run, figure, k, who), name.format(steps)) for who, k, name in pairs]
    return [Line(name, points, 7 - place, "dashed") for place, (points, name) in enumerate(found) if points]


def _title(figure: str) -> str:
    return TITLES.get(figure, figure)


def _in_steps(steps: str) -> str:
    return f"{steps} step{'' if steps == '1' else 's'}"
