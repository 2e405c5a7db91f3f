"""Contestants run by turns, so that a busy machine slows all of them, what is to be said of their times, and the
document that is kept of them with the machine, the versions, the date and the commit.

A document is {"benchmark", "case", "races": [{"title", "ours", "rounds", "results": {contestant: figures}}], "skipped":
{contestant: reason}, "conditions", ...}. `keep` writes it, with a plot, into the folder `BENCHMARKS_OUT` names
(build/benchmarks unless said), prints it as one line, and is the last thing a script does.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import shlex
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import date
from pathlib import Path
from typing import Any

from fewstep.device import cores, cpu_name, memory_bytes

ROOT = Path(__file__).resolve().parents[1]
LIBRARIES = ("torch", "diffusers", "transformers", "peft", "onnxruntime", "openvino", "nncf", "numpy")
LIBRARIES += ("stable-diffusion-cpp-python", "playwright")
REST_S = 0.02
"""Between two turns, off the clock: threads of the last contestant still spin for some milliseconds."""


def by_turns(
    contestants: Mapping[str, Callable[[], Any]],
    *,
    rounds: int,
    warm_up: int = 1,
    clock: Callable[[], float] = time.perf_counter,
    afterwards: Mapping[str, Callable[[], Any]] | None = None,
    awake: bool = False,
) -> dict[str, list[float]]:
    """Seconds of every run, A B A B ...; the warm-up runs are not counted, nor what is done `afterwards`.

    On a machine with other work use the clock `time.process_time`, with one thread. `awake`: for turns of a
    millisecond or so, which would be measured at half pace on a core that comes out of a sleep.
    """
    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    for _ in range(warm_up + rounds):
        for name, run in contestants.items():
            rest(awake=awake)
            started = clock()
            run()
            seconds[name].append(clock() - started)
            if afterwards:
                afterwards[name]()
    return {name: times[warm_up:] for name, times in seconds.items()}


def rest(*, awake: bool) -> None:
    """Let REST_S pass."""
    if not awake:
        time.sleep(REST_S)
        return
    until = time.perf_counter() + REST_S
    while time.perf_counter() < until:
        pass


def summary(seconds: Sequence[float]) -> dict[str, float]:
    """Median, least and most, in milliseconds."""
    ms = [1000 * value for value in seconds]
    return {"median_ms": figure(statistics.median(ms)), "min_ms": figure(min(ms)), "max_ms": figure(max(ms))}


def figure(value: float) -> float:
    """Four digits are all that such a figure has.

    >>> figure(0.0123456), figure(12.3456), figure(123456.7)
    (0.01235, 12.35, 123500.0)
    """
    return float(f"{value:.4g}")


def ratios(slow: Sequence[float], fast: Sequence[float]) -> dict[str, float]:
    """How many times faster: of the medians, and the least and most of the paired runs."""
    paired = [a / b for a, b in zip(slow, fast, strict=True)]
    of_medians = statistics.median(slow) / statistics.median(fast)
    return {"ratio": round(of_medians, 2), "ratio_min": round(min(paired), 2), "ratio_max": round(max(paired), 2)}


def fastest(seconds: Mapping[str, Sequence[float]], prefix: str) -> str:
    """Of the contestants whose name begins so, the one with the least median."""
    return min((name for name in seconds if name.startswith(prefix)), key=lambda name: statistics.median(seconds[name]))


def race(seconds: Mapping[str, Sequence[float]], *, ours: str, title: str = "", **facts: Any) -> dict[str, Any]:
    """One race's part of a document, printed as a table; ratios are of each contestant's time over ours."""
    results: dict[str, Any] = {}
    print(f"\n{title:28} {'median ms':>10} {'min':>10} {'max':>10} {'ours is':>9}")
    for name, values in seconds.items():
        results[name] = summary(values) | ({} if name == ours else ratios(values, seconds[ours]))
        times = " ".join(f"{results[name][key]:>10.4g}" for key in ("median_ms", "min_ms", "max_ms"))
        print(f"{name:28} {times} {'' if name == ours else str(results[name]['ratio']) + 'x':>9}")
    return {"title": title, "ours": ours, "rounds": len(seconds[ours]), "results": results} | facts


def report(seconds: Mapping[str, Sequence[float]], *, ours: str, benchmark: str, **facts: Any) -> None:
    """A document of one race; `what` among the facts is its case."""
    case = str(facts.pop("what", ""))
    keep({"benchmark": benchmark, "case": case, "races": [race(seconds, ours=ours, title=case)]} | facts)


def keep(document: dict[str, Any]) -> None:
    """Add the conditions, write document and plot, print the document as the last line."""
    from bars import draw

    found = {"case": "", "races": [], "skipped": {}} | document | {"conditions": conditions()}
    folder = Path(os.environ.get("BENCHMARKS_OUT") or ROOT / "build" / "benchmarks")
    folder.mkdir(parents=True, exist_ok=True)
    name = name_of(found)
    (folder / f"{name}.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    if found["races"]:
        draw(found["races"], title=name, path=folder / f"{name}.png")
    for contestant, reason in found["skipped"].items():
        print(f"skipped {contestant}: {reason}")
    print(json.dumps(found))


def name_of(document: Mapping[str, Any]) -> str:
    """The name of a document's file.

    >>> name_of({"benchmark": "picture", "case": "sd15"}), name_of({"benchmark": "users", "case": ""})
    ('picture-sd15', 'users')
    """
    return "-".join(part for part in (document["benchmark"], document["case"]) if part)


# ---------------------------------------------------------------- conditions


def busy_s() -> float | None:
    """Seconds of work of all cores since the machine started, a host's other guests included; None off Linux."""
    try:
        fields = [int(value) for value in Path("/proc/stat").read_text().splitlines()[0].split()[1:]]
    except OSError:
        return None
    user, nice, system, _idle, _waiting, *rest = fields
    return (user + nice + system + sum(rest[:3])) / os.sysconf("SC_CLK_TCK")


def own_s() -> float:
    """Seconds of work of this process and of its children that have ended."""
    return sum(os.times()[:4])


_BEGUN = (time.perf_counter(), busy_s(), own_s())


def others_busy() -> float | None:
    """The share of the cores that other processes took since this module was imported."""
    (began, busy, own), now = _BEGUN, busy_s()
    if busy is None or now is None:
        return None
    passed = (time.perf_counter() - began) * (os.cpu_count() or 1)
    return round(max(0.0, (now - busy) - (own_s() - own)) / passed, 2)


def conditions() -> dict[str, Any]:
    """Machine, versions, date, commit, command: what a figure is worth nothing without."""
    return {
        "date": date.today().isoformat(),
        "commit": _COMMIT,
        "command": command(sys.argv),
        "processor": cpu_name(),
        "cores": cores(),
        "threads": threads(),
        "memory_gb": memory_gb("MemTotal"),
        "gpu": gpu(),
        "system": f"{platform.system()} {platform.machine()}",
        "versions": {"python": platform.python_version(), **versions()},
        "others_busy": others_busy(),
    }


def commit() -> str:
    """Of the code that was run; with a + where files were changed since."""
    ask = ["git", "-C", str(ROOT)]
    try:
        found = subprocess.run([*ask, "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=True)
        changed = subprocess.run([*ask, "diff", "--quiet", "HEAD", "--", "src", "benchmarks/*.py"], check=False)
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return found.stdout.strip() + ("+" if changed.returncode else "")


_COMMIT = commit()


def command(argv: Sequence[str]) -> str:
    """What was typed, without this machine's folders.

    >>> command(["/somewhere/benchmarks/users.py", "--model", "/models/ink", "two words"])
    "python benchmarks/users.py --model ink 'two words'"
    """
    words = [Path(word).name if Path(word).is_absolute() else word for word in argv[1:]]
    return shlex.join(["python", f"benchmarks/{Path(argv[0]).name}", *words])


def threads() -> int:
    """As many as torch takes: a core each, or fewer where OMP_NUM_THREADS says so."""
    asked = os.environ.get("OMP_NUM_THREADS", "")
    return min(cores(), int(asked)) if asked.isdecimal() else cores()


def memory_gb(kind: str = "MemAvailable") -> float | None:
    """As `fewstep.device.memory_bytes`."""
    found = memory_bytes(kind)
    return None if found is None else round(found / 2**30, 1)


def gpu() -> str | None:
    """The graphics card's name, where torch was imported and sees one."""
    torch = sys.modules.get("torch")
    return torch.cuda.get_device_name() if torch is not None and torch.cuda.is_available() else None


def versions() -> dict[str, str]:
    """Of the libraries that are installed."""
    found = {}
    for name in LIBRARIES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found
