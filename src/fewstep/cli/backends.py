"""`fewstep info --backends [MODEL]`: every back end measured on a model, and the fastest remembered for `auto`."""

from __future__ import annotations

import dataclasses
import json
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fewstep.evaluate.speed import Speed


def measure(path: str | None, *, as_json: bool, **parts: Any) -> int:
    """Measures, remembers, says; returns the exit code."""
    from fewstep.backends.choice import SINGLE
    from fewstep.backends.measured import chip, remember
    from fewstep.checkpoints.complete import describe_model
    from fewstep.evaluate.speed import STEPS, speeds

    parts = {name: value for name, value in parts.items() if value is not None}
    found, rows = describe_model(path, **parts), []
    for number, name in enumerate(SINGLE, 1):
        print(f"fewstep: measuring {name} ({number} of {len(SINGLE)})", file=sys.stderr)
        rows += speeds(path, [name], **parts)
    measured = remember(found, {row.backend: row.ms for row in rows if row.ms is not None})
    if as_json:
        facts = {"model": found.name, "processor": chip(), "steps": STEPS, "best": measured.best}
        rows_json = [dataclasses.asdict(row) for row in rows]
        print(json.dumps(facts | {"date": measured.date, "backends": rows_json}, indent=2, ensure_ascii=False))
        return 0
    print(f"{'back end':10}{'first picture':>15}{f'{STEPS} steps, warm':>18}{'pictures':>10}")
    print("\n".join(map(_line, rows)))
    print(measured.why)
    return 0


def _line(row: Speed) -> str:
    if row.first_s is None or row.ms is None:
        return f"{row.backend:10}  {row.why_not}"
    return f"{row.backend:10}{row.first_s:13.2f} s{row.ms:15.1f} ms{row.count:10}"
