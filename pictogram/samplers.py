"""Draw with every sampler, every schedule and 1 to 8 steps on the embedded model: nothing may crash or be NaN.

    python -m pictogram.samplers    # -> docs/samplers.md, docs/pictures/samplers-*.webp, build/pictogram/samplers.json

One prompt and one seed, the package's own LCM-LoRA, ONNX Runtime where it is installed (about 20 ms an evaluation).
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

import fewstep
from fewstep.checkpoints.files import write_json, write_whole
from fewstep.grid import table as sheet
from fewstep.pipeline import Pipeline
from fewstep.plan import AUTOMATIC, Plan
from fewstep.sampling.sampler import SAMPLERS, Sampler, evaluations
from fewstep.sampling.timesteps import LABELS, STABLE_DIFFUSION, TABLES, timesteps
from pictogram.fetch import BUILD

PROMPT, SEED = "a red apple, 3d", 3
STEPS = range(1, 9)
SHEETS = {"steps": 80, "schedules-4": 64, "schedules-8": 64}
"""Contact sheets -> pixels of a picture in them."""

SMOOTH = 0.02
"""Mean difference of neighbouring pixels, 1 being black to white: twice that of a good picture of this prompt."""

REMARKS = {
    "lcm": "what an LCM or LCM-LoRA is trained for",
    "tcd": "for TCD students; `gamma` (in Python) is its share of noise",
    "pcm": "for PCM students: DDIM between the edges of its phases",
    "ddim": "the schedules `ddim` and `leading` begin at timestep 1 where there is 1 step: noise, in A1111 too, "
    "and with every sampler",
    "plms": "asks twice in its first step; noise at 1 and 2 steps with `ddim`, at 2 with schedules that "
    "reach timestep 0",
    "heun": "noise at 2 steps, rough at 3 and 4, with schedules that reach timestep 0 (A1111's own; `beta` to 7): half "
    "of the step onto it is a slope taken there. Good with `trailing`, `sgm_uniform` and `simple`",
    "dpm2": "A1111 leaves the last level but one out",
    "dpm_fast": "noise at 2 to 5 steps, rough to 8: one step of order 3 from k = 14.6 multiplies a difference of "
    "predictions by e^3; k-diffusion's own does so too. Use it from 10",
    "dpm_adaptive": "chooses its own steps, whatever `steps` says; each picture by itself",
    "restart": "goes up again only from 20 steps; below it is Heun, with Heun's faults",
    "dpm2_a": "A1111 leaves the last level but one out; rough to 4 steps at A1111's schedule",
    "dpmpp_3m_sde": "A1111 leaves the last level but one out; rough with `ddim` and `leading`",
}
_DIFFUSERS, _WALKS, _K = "test_diffusers_samplers.py", "test_diffusers_walks.py", "test_walks.py"
REFERENCES = {
    **dict.fromkeys(("lcm", "tcd", "pcm", "ddim", "euler", "euler_a", "dpmpp_2m", "unipc"), f"2e-4 ({_DIFFUSERS})"),
    **dict.fromkeys(("heun", "dpm2", "dpmpp_2m_sde", "dpmpp_2m_sde_heun", "plms", "lms"), f"1e-3 ({_WALKS})"),
}
"""Sampler -> how near it is to diffusers', and where that is tested."""


@dataclass(frozen=True)
class Drawn:
    """One picture: with what, how many evaluations it took, how rough it is, and what went wrong ("" if nothing)."""

    sampler: str
    table: str
    steps: int
    evaluations: int = 0
    roughness: float = 0.0
    fault: str = ""
    picture: Image.Image | None = None

    @property
    def row(self) -> dict[str, Any]:
        """All but the picture."""
        return {key: value for key, value in vars(self).items() if key != "picture"}


class Easel:
    """Draws with one pipeline; plans of the same timesteps (Normal and Uniform are one) are drawn once."""

    def __init__(self, pipe: Pipeline) -> None:
        self.pipe = pipe
        self.known: dict[tuple[str, tuple[float, ...]], Drawn] = {}

    def draw(self, sampler: str, table: str, steps: int) -> Drawn:
        """One picture, and whatever goes wrong with it."""
        try:
            plan = self.pipe.plan(fewstep.Request(PROMPT, seed=SEED, sampler=sampler, schedule=table, steps=steps))
            key = (sampler, plan.timesteps)
            if key not in self.known:
                self.known[key] = self._drawn(plan)
            return replace(self.known[key], table=table, steps=steps)
        except Exception as error:  # noqa: BLE001 - the others are still to be drawn
            return Drawn(sampler, table, steps, fault=f"{type(error).__name__}: {error}")

    def _drawn(self, plan: Plan) -> Drawn:
        steps = list(self.pipe.run(plan))
        picture = steps[-1].pictures()[0]
        finite = all(np.isfinite(step.step.z).all() for step in steps)
        fault = "" if finite else "NaN or infinity"
        return Drawn(plan.sampler.name, "", 0, len(steps), roughness(picture), fault, picture)


def roughness(picture: Image.Image) -> float:
    """The mean difference of neighbouring pixels, 1 being black to white.

    >>> roughness(Image.new("RGB", (8, 8), "red"))
    0.0
    """
    pixels = np.asarray(picture.convert("L"), np.float32) / 255
    return round(float((np.abs(np.diff(pixels, axis=0)).mean() + np.abs(np.diff(pixels, axis=1)).mean()) / 2), 4)


def product(
    samplers: Iterable[str] = SAMPLERS, tables: Iterable[str] = (AUTOMATIC, *TABLES), steps: Iterable[int] = STEPS
) -> Iterator[tuple[str, str, int]]:
    """Every sampler with every table at every number of steps."""
    tables, steps = tuple(tables), tuple(steps)
    return ((sampler, table, count) for sampler in samplers for table in tables for count in steps)


def sheets(found: Mapping[tuple[str, str, int], Drawn]) -> dict[str, Image.Image]:
    """The contact sheets, by name: samplers by steps at the automatic schedule, samplers by schedules at 4 and 8."""

    def of(name: str, columns: Sequence[tuple[str, int]], labels: Sequence[str]) -> Image.Image:
        rows = [[_small(found[sampler, *column].picture, SHEETS[name]) for column in columns] for sampler in SAMPLERS]
        return sheet(rows, row_labels=[sampler.label for sampler in SAMPLERS.values()], column_labels=labels)

    made = {"steps": of("steps", [(AUTOMATIC, count) for count in STEPS], [str(count) for count in STEPS])}
    for count in (4, 8):
        made[f"schedules-{count}"] = of(f"schedules-{count}", [(table, count) for table in TABLES], _short(TABLES))
    return made


def _short(tables: Sequence[str]) -> list[str]:
    names = {
        "align_your_steps": "AYS",
        "align_your_steps_xl": "AYS XL",
        "linspace-lcm": "lcm",
        "sgm_uniform": "sgm uni.",
        "polyexponential": "polyexp.",
        "exponential": "expon.",
    }
    return [names.get(table, table.replace("_", " ")) for table in tables]


def _small(picture: Image.Image | None, size_px: int) -> Image.Image | None:
    return picture and picture.resize((size_px, size_px), Image.Resampling.LANCZOS)


def samplers_table() -> str:
    """Markdown: what there is to know of each sampler."""
    lines = [
        "| `--sampler` | evaluations at 1 / 4 / 8 steps | fresh noise | A1111's schedule | equal to diffusers' within |"
    ]
    lines += ["| --- | --- | --- | --- | --- |"]
    for sampler in SAMPLERS.values():
        counts = " / ".join(str(_evaluations(sampler, steps)) for steps in (1, 4, 8))
        automatic = LABELS.get(sampler.automatic, f"`{sampler.automatic}`" if sampler.automatic else "")
        cells = (sampler.label, counts, "yes" if sampler.noisy else "", automatic, REFERENCES.get(sampler.name, ""))
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _evaluations(sampler: Sampler, steps: int) -> str:
    if sampler.alone:
        return "its own"
    return str(evaluations(sampler, STABLE_DIFFUSION, timesteps(sampler.table, steps, discard=sampler.discard)))


def remarks() -> str:
    """Markdown: what else."""
    return "\n".join(f"- **{SAMPLERS[name].label}**: {text}." for name, text in REMARKS.items())


def rough_ones(rows: Iterable[Mapping[str, Any]]) -> str:
    """Markdown: which pictures are noise, or nearly: samplers that fail alike share a line."""
    steps: dict[tuple[str, str], list[str]] = {}
    for row in rows:
        if row["roughness"] > SMOOTH:
            steps.setdefault((row["sampler"], row["table"]), []).append(str(row["steps"]))
    tables: dict[tuple[str, str], list[str]] = {}
    for (sampler, table), counts in steps.items():
        tables.setdefault((sampler, ", ".join(counts)), []).append(f"`{table}`")
    samplers: dict[tuple[str, str], list[str]] = {}
    for (sampler, counts), names in tables.items():
        samplers.setdefault((counts, ", ".join(names)), []).append(SAMPLERS[sampler].label)
    lines = [f"| {counts} | {names} | {', '.join(labels)} |" for (counts, names), labels in samplers.items()]
    return "\n".join(["| steps | schedules | samplers |", "| --- | --- | --- |", *lines])


def main() -> None:
    """Draw everything, then write sheets, figures and page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--page", action="store_true", help="only write the page again, from the figures that are there"
    )
    args = parser.parse_args()
    figures = BUILD / "samplers.json"
    if not args.page:
        easel, began = Easel(fewstep.load()), time.perf_counter()
        found = {key: easel.draw(*key) for key in product()}
        rows = [drawn.row for drawn in found.values()]
        write_json(figures, {"rows": rows, "minutes": round((time.perf_counter() - began) / 60, 1)})
        for name, picture in sheets(found).items():
            path = Path("docs/pictures") / f"samplers-{name}.webp"
            write_whole(path, lambda part, picture=picture: picture.save(part, "WEBP", quality=70, method=6))
    rows = json.loads(figures.read_text())["rows"]
    page = (Path(__file__).with_name("samplers.md")).read_text(encoding="utf-8")
    faults = [row for row in rows if row["fault"]]
    text = page.format(
        count=len(rows),
        faults=len(faults),
        table=samplers_table(),
        remarks=remarks(),
        rough=rough_ones(rows),
        smooth=SMOOTH,
    )
    write_whole(Path("docs/samplers.md"), lambda part: part.write_text(text, encoding="utf-8"))
    print(f"{len(rows)} pictures, {len(faults)} faults")
    for row in faults:
        print(row)


if __name__ == "__main__":
    main()
