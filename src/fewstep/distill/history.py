"""What a run's folder tells of the run, read from its files alone: while it trains, after it ended, on another machine.

No torch: `fewstep report` reads with this.
"""

import json
import shlex
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from fewstep.errors import RequestError

METRICS = "metrics.jsonl"
RECIPE = "recipe.toml"
RESULT = "result.json"
FACTS = "facts.json"
BEST = "best.safetensors"

Row = dict[str, Any]


@dataclass(frozen=True)
class History:
    """A run as its folder tells it.

    `steps` has one row for each optimiser step, `looks` one for each look, both in order; `result` is empty until the
    run is finished or refused, `facts` where nobody wrote them; `samples` are the grids by step.
    """

    folder: Path
    recipe: Mapping[str, Any]
    steps: Sequence[Row]
    looks: Sequence[Row]
    result: Mapping[str, Any]
    facts: Mapping[str, Any]
    samples: Mapping[int, Path]

    @property
    def name(self) -> str:
        """The run's name: its folder's, without `.run`."""
        return self.folder.absolute().name.removesuffix(".run")

    @property
    def step(self) -> int:
        """The last step in the metrics; 0 before the first."""
        return self.steps[-1]["step"] if self.steps else 0


def read_history(folder: str | Path) -> History:
    """Read a run's folder; a last line that is still being written is left out.

    Raises RequestError when the folder holds no run.
    """
    folder = Path(folder)
    if not (folder / METRICS).is_file():
        raise RequestError(f"'{folder}' holds no run (no {METRICS} in it). Give a folder such as lcm-lora.run.")
    rows = read_rows(folder)
    return History(
        folder,
        recipe=_recipe(folder),
        steps=[row for row in rows if "loss" in row],
        looks=[row for row in rows if "distance" in row],
        result=_json(folder / RESULT),
        facts=_json(folder / FACTS),
        samples={int(path.stem.removeprefix("samples-")): path for path in sorted(folder.glob("samples-*.png"))},
    )


def read_rows(folder: Path) -> list[Row]:
    """The rows of metrics.jsonl, in order; none where there is no file."""
    path = folder / METRICS
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    return [row for row in map(_row, lines) if row is not None]


def resume_command(command: str) -> str:
    """The command that goes on where this one stopped.

    >>> resume_command("fewstep distill r.toml --data 'my cache' -o x.safetensors")
    "fewstep distill r.toml --data 'my cache' -o x.safetensors --resume"
    """
    return shlex.join([*(word for word in shlex.split(command) if word != "--resume"), "--resume"])


def quarter_names(count: int) -> list[str]:
    """The quarters of a schedule of `count` timesteps, cleanest first.

    >>> quarter_names(1000)
    ['0-249', '250-499', '500-749', '750-999']
    """
    edges = [-(-place * count // 4) for place in range(5)]
    return [f"{start}-{end - 1}" for start, end in pairwise(edges)]


def _row(line: str) -> Row | None:
    try:
        row = json.loads(line)
    except ValueError:
        return None
    return row if isinstance(row, dict) and "step" in row else None


def _recipe(folder: Path) -> Mapping[str, Any]:
    try:
        return tomllib.loads((folder / RECIPE).read_text(encoding="utf-8"))
    except (OSError, tomllib.TOMLDecodeError):
        return {}


def _json(path: Path) -> Mapping[str, Any]:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}


def table_of(look: Row, figure: str) -> Mapping[str, Mapping[str, float | None]]:
    """{who: {steps: value}} of one figure in a look."""
    return look.get("distance", {}) if figure == "distance" else look.get("scores", {}).get(figure, {})
