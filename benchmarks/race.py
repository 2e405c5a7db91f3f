"""Two contestants, run by turns so that a busy machine slows both, and what is to be said of their times."""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any


def by_turns(
    contestants: Mapping[str, Callable[[], Any]],
    *,
    rounds: int,
    warm_up: int = 1,
    clock: Callable[[], float] = time.perf_counter,
    afterwards: Mapping[str, Callable[[], Any]] | None = None,
) -> dict[str, list[float]]:
    """Seconds of every run, A B A B ...; the warm-up runs are not counted, nor what is done `afterwards`.

    On a machine with other work use the clock `time.process_time`, with one thread.
    """
    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    for _ in range(warm_up + rounds):
        for name, run in contestants.items():
            started = clock()
            run()
            seconds[name].append(clock() - started)
            if afterwards:
                afterwards[name]()
    return {name: times[warm_up:] for name, times in seconds.items()}


def summary(seconds: Sequence[float]) -> dict[str, float]:
    """Median, least and most, in milliseconds."""
    ms = [1000 * value for value in seconds]
    return {"median_ms": round(statistics.median(ms), 2), "min_ms": round(min(ms), 2), "max_ms": round(max(ms), 2)}


def ratios(slow: Sequence[float], fast: Sequence[float]) -> dict[str, float]:
    """How many times faster: of the medians, and the least and most of the paired runs."""
    paired = [a / b for a, b in zip(slow, fast, strict=True)]
    of_medians = statistics.median(slow) / statistics.median(fast)
    return {"ratio": round(of_medians, 2), "ratio_min": round(min(paired), 2), "ratio_max": round(max(paired), 2)}


def report(seconds: Mapping[str, Sequence[float]], *, ours: str, **facts: Any) -> None:
    """Print a table and, as the last line, one JSON document; ratios are of each contestant's time over ours."""
    results: dict[str, Any] = {}
    print(f"{'':24} {'median ms':>10} {'min':>10} {'max':>10} {'ours is':>9}")
    for name, values in seconds.items():
        results[name] = summary(values) | ({} if name == ours else ratios(values, seconds[ours]))
        times = " ".join(f"{results[name][key]:>10.1f}" for key in ("median_ms", "min_ms", "max_ms"))
        print(f"{name:24} {times} {'' if name == ours else str(results[name]['ratio']) + 'x':>9}")
    print(json.dumps({"results": results, "rounds": len(seconds[ours])} | facts))
