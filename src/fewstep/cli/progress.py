"""The lines that show progress: of a training (loss, pictures a second, time left), and of pictures."""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from time import monotonic
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fewstep.distill.run import Run
    from fewstep.distill.trainer import StepReport

REMEMBERED = 200
PATIENCE_S = 2.0


def seconds_left(marks: Sequence[tuple[float, int]], steps: int) -> float | None:
    """Seconds until `steps`, from (time, finished steps) marks of this process, oldest first; None before the second.

    Looks and checkpoints between the marks count. What a resumed run did before is not among them, so it does not
    make the run look fast.

    >>> seconds_left([(0.0, 900), (2.0, 901), (4.0, 902)], 1000)
    196.0
    """
    if len(marks) < 2 or marks[-1][1] <= marks[0][1]:
        return None
    (began, first), (now, last) = marks[0], marks[-1]
    return (now - began) / (last - first) * (steps - last)


def clock(seconds: float | None) -> str:
    """A time to read.

    >>> clock(59), clock(3661), clock(200000), clock(None)
    ('0:59', '1:01:01', '2 d 7:33:20', '-:--')
    """
    if seconds is None:
        return "-:--"
    minutes, left = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    text = f"{hours}:{minutes:02d}:{left:02d}" if hours or days else f"{minutes}:{left:02d}"
    return f"{days} d {text}" if days else text


def sentence(report: StepReport, left: float | None) -> str:
    """What stands before the bar."""
    return (
        f"loss {report.loss:.4f}  {report.samples_per_s:.1f} img/s  data wait {100 * report.data_wait:.0f} %  "
        f"{clock(left)} left"
    )


@contextmanager
def progress(training: Run, *, quiet: bool) -> Iterator[Callable[[StepReport], None]]:
    """A function that shows a step's report; it shows nothing when quiet."""
    if quiet:
        yield lambda report: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    steps = training.recipe.steps
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    marks: deque[tuple[float, int]] = deque(maxlen=REMEMBERED)
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task("first step", total=steps, completed=training.step)

        def show(report: StepReport) -> None:
            marks.append((monotonic(), report.step))
            bar.update(task, completed=report.step, description=sentence(report, seconds_left(marks, steps)))

        yield show


@contextmanager
def painting(quiet: bool) -> Iterator[Any]:
    """A function (done, total) to call as work gets done: on a terminal it shows a bar on stderr after two seconds."""
    if quiet or not sys.stderr.isatty():
        yield lambda done, total: None
        return
    started, bars = monotonic(), []

    def show(done: int, total: int) -> None:
        if not bars and monotonic() - started > PATIENCE_S:
            bars.append(_bar(total))
        for bar, task in bars:
            bar.update(task, completed=done, total=total)

    try:
        yield show
    finally:
        for bar, _ in bars:
            bar.stop()


def _bar(total: int) -> tuple[Any, Any]:
    from rich.console import Console
    from rich.progress import Progress

    bar = Progress(console=Console(stderr=True), transient=True)
    bar.start()
    return bar, bar.add_task("painting", total=total)
