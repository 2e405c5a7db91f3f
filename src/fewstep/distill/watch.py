"""Watching a run: every row goes to metrics.jsonl and, where the recipe asks, to TensorBoard and offline W&B.

Both are optional packages, imported when asked for. Nothing is ever sent anywhere: W&B writes a run folder that
`wandb sync` uploads when its owner wants that.
"""

# An extra that need not be there.
# pyright: reportMissingImports=false

import json
import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from PIL import Image

from fewstep.distill.history import METRICS, Row, quarter_names
from fewstep.distill.recipes import logs_of
from fewstep.distill.run import Run
from fewstep.errors import RecipeError

WAITED = "waited_s"


class Log(Protocol):
    """Where numbers and pictures by step go."""

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Numbers by name."""
        ...

    def picture(self, step: int, picture: Image.Image) -> None:
        """The look's sample grid."""
        ...


@contextmanager
def watched(run: Run) -> Iterator[Callable[[Row], None]]:
    """A function that records one row, in metrics.jsonl and in every log of the recipe; closes them at the end. In all
    processes but the first it records nothing.

    A row of a look takes its sample grid along. Raises RecipeError when a log's package is not installed.
    """
    if not run.world.first:
        yield lambda row: None
        return
    with ExitStack() as stack:
        logs = [stack.enter_context(LOG_OF[name](run)) for name in logs_of(run.recipe)]

        def record(row: Row) -> None:
            with (run.folder / METRICS).open("a") as file:
                file.write(json.dumps(row) + "\n")
            values = scalars_of(row, run.model.schedule.count) if logs else {}
            for log in logs:
                log.scalars(row["step"], values)
                if "distance" in row:
                    with Image.open(sample_path(run.folder, row["step"])) as picture:
                        log.picture(row["step"], picture.convert("RGB"))

        yield record


def sample_path(folder: Path, step: int) -> Path:
    """Where the sample grid of a step is.

    >>> sample_path(Path("a.run"), 50).name
    'samples-000050.png'
    """
    return folder / f"samples-{step:06d}.png"


def scalars_of(row: Row, count: int) -> dict[str, float]:
    """A row as numbers by name, for logs that know nothing else; `count` is the length of the schedule.

    >>> scalars_of({"step": 1, "loss": 0.5, "loss_quarters": [0.25, None, None, None]}, 1000)
    {'train/loss': 0.5, 'loss_by_timestep/0-249': 0.25}
    """
    found: dict[str, float] = {}
    for key, value in row.items():
        if key == "loss_quarters":
            pairs = zip(quarter_names(count), value, strict=True)
            found |= {f"loss_by_timestep/{name}": loss for name, loss in pairs if loss is not None}
        elif isinstance(value, Mapping):
            found |= {"/".join(path): number for path, number in _leaves(key, value)}
        elif key != "step" and isinstance(value, int | float):
            found[f"train/{key}"] = float(value)
    return found


@contextmanager
def waiting(run: Run) -> Iterator[None]:
    """Time inside counts as waiting for data."""
    began = time.perf_counter()
    try:
        yield
    finally:
        run.kept[WAITED] = run.kept.get(WAITED, 0.0) + time.perf_counter() - began


def waited(run: Run) -> float:
    """Seconds spent waiting for data since this was last asked."""
    return run.kept.pop(WAITED, 0.0)


class _TensorBoard:
    def __init__(self, writer: Any) -> None:
        self._writer = writer

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def picture(self, step: int, picture: Image.Image) -> None:
        self._writer.add_image("samples", np.asarray(picture), step, dataformats="HWC")
        self._writer.flush()


@contextmanager
def tensorboard(run: Run) -> Iterator[Log]:
    """Event files in the run's folder; what an earlier process wrote beyond the checkpoint is hidden."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise _missing("tensorboard") from None
    with SummaryWriter(str(run.folder / "tensorboard"), purge_step=run.step + 1 if run.step else 0) as writer:
        yield _TensorBoard(writer)


class _Wandb:
    def __init__(self, session: Any, image: Any) -> None:
        self._session, self._image = session, image

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        self._session.log({"step": step, **values})

    def picture(self, step: int, picture: Image.Image) -> None:
        self._session.log({"step": step, "samples": self._image(picture)})


@contextmanager
def wandb_offline(run: Run) -> Iterator[Log]:
    """An offline W&B run in the run's folder; one for each process, grouped by the folder's name."""
    os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
    try:
        import wandb
    except ImportError:
        raise _missing("wandb") from None
    settings = wandb.Settings(mode="offline", console="off", silent=True, disable_git=True, x_disable_stats=True)
    name = run.folder.absolute().name
    session = wandb.init(
        project="fewstep", dir=str(run.folder), name=name, group=name, config=asdict(run.recipe), settings=settings
    )
    session.define_metric("*", step_metric="step")
    try:
        yield _Wandb(session, wandb.Image)
    finally:
        session.finish()


LOG_OF: dict[str, Callable[[Run], Any]] = {"tensorboard": tensorboard, "wandb": wandb_offline}


def _missing(package: str) -> RecipeError:
    return RecipeError(f"The log '{package}' needs the package {package}. Run: pip install {package}, or leave it out.")


def _leaves(name: str, table: Mapping[str, Any]) -> Iterator[tuple[tuple[str, ...], float]]:
    for key, value in table.items():
        if isinstance(value, Mapping):
            yield from (((name, *path), number) for path, number in _leaves(key, value))
        elif value is not None:
            yield (name, key), float(value)
