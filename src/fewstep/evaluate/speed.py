"""How fast each back end paints a model's pictures on this machine."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from fewstep.backends.choice import SINGLE
from fewstep.errors import FewstepError
from fewstep.pipeline import Pipeline, load
from fewstep.request import Request

STEPS, MOST_S, MOST = 4, 6.0, 15
"""Of the picture that is measured; and when enough of them are measured: after so many seconds, or so many pictures."""


@dataclass(frozen=True)
class Speed:
    """Of one back end: seconds until the first picture is there (loading, compiling, painting), milliseconds of a
    later one (median), and of how many; or why it cannot be measured.
    """

    backend: str
    first_s: float | None = None
    ms: float | None = None
    count: int = 0
    why_not: str = ""


def speeds(path: str | Path | None, names: Sequence[str] = SINGLE, **parts: Any) -> Iterator[Speed]:
    """Each back end's speed on the CPU, as it is measured; `parts` are `fewstep.load`'s base, vae and prediction.

    Raises CheckpointError where the model itself cannot be loaded.
    """
    for name in names:
        begun = time.perf_counter()
        try:
            pipe = load(path, backend=name, device="cpu", **parts)
        except FewstepError as error:
            if name == "eager":
                raise
            yield Speed(name, why_not=str(error))
            continue
        if (instead := ran_by(pipe)) != name:
            yield Speed(name, why_not=pipe.notes[-1] if instead == "eager" else f"{instead} runs in its place")
            continue
        yield speed_of(name, pipe, begun)


def speed_of(name: str, pipe: Pipeline, begun: float) -> Speed:
    """Of a pipeline that began to be loaded at `begun`, by the clock `time.perf_counter`."""
    request = Request("a red apple", steps=STEPS, seed=7)
    pipe(request)
    first_s, taken = time.perf_counter() - begun, []
    while len(taken) < MOST and (not taken or sum(taken) < MOST_S):
        before = time.perf_counter()
        pipe(request)
        taken.append(time.perf_counter() - before)
    return Speed(name, first_s, 1000 * median(taken), len(taken))


def ran_by(pipe: Pipeline) -> str:
    """The back end that a pipeline's model was opened for."""
    sessions = getattr(pipe.model, "sessions", None)
    return "eager" if sessions is None else sessions.runtime
