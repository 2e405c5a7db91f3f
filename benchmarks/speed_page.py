"""Makes docs/speed.md, its plots and the README's table of speed from the documents in benchmarks/results.

    python benchmarks/speed_page.py [--check]

Nothing on that page is written by hand. --check: say whether page and README are what the documents make.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bars import draw
from goals import GOALS
from race import ROOT
from run import BENCHMARKS

RESULTS, PAGE, PICTURES = ROOT / "benchmarks" / "results", ROOT / "docs" / "speed.md", ROOT / "docs" / "pictures"
README, BLOCK = ROOT / "README.md", re.compile(r"(<!-- TABLE:speed -->\n).*?(<!-- /TABLE:speed -->)", re.DOTALL)
OTHERS_LIMIT = 0.1
"""A larger share of the cores in other hands makes a measurement provisional."""

INTRODUCTION = """# Speed

Made by `python benchmarks/speed_page.py` from the documents in [benchmarks/results](../benchmarks/results); how to run
them is in [benchmarks/README.md](../benchmarks/README.md). In each race all contestants run by turns in one process,
from the same weights, seeds and prompts; a ratio above 1 means that ours is that many times faster, one below 1 that it
lost. Medians; what stands behind them is the range. *Provisional*: other programs took more than a tenth of the cores
meanwhile.
"""
HEADINGS = {
    "picture-pictogram": "A warm picture: the embedded model",
    "picture-batches": "Several pictures at once: the embedded model",
    "picture-sd15-tiny": "A warm picture: Stable Diffusion 1.5's size, tiny autoencoder",
    "picture-sd15-tiny-by-hand": "The same beside OpenVINO by hand",
    "picture-sd15-tiny-bf16": "The same in bfloat16",
    "cold_start": "From nothing to a picture on disk",
    "overhead": "Beside the network",
    "live_page": "Live, in the page",
    "live_page-backend-onnx": "Live, in the page, without OpenVINO",
    "distill_step": "A training step",
    "users": "Eight people at once",
    "gpu": "On a GPU",
}


def documents() -> dict[str, dict[str, Any]]:
    """What was kept, by name, in the benchmarks' order."""
    names = [name for benchmark in BENCHMARKS for name in benchmark.leaves()]
    paths = {name: RESULTS / f"{name}.json" for name in names}
    read = {name: json.loads(path.read_text(encoding="utf-8")) for name, path in paths.items() if path.is_file()}
    return {name: found for name, found in read.items() if "races" in found and "conditions" in found}


def page(found: Mapping[str, dict[str, Any]]) -> str:
    """The whole page."""
    parts = [INTRODUCTION, "## Goals\n", goals_table(found)]
    for name, document in found.items():
        if document["races"] or document.get("unmeasured"):
            parts += [f"## {HEADINGS.get(name, name.replace('_', ' ').replace('-', ', ').capitalize())}\n"]
            parts += [section(name, document)]
    return "\n".join(parts)


def goals_table(found: Mapping[str, dict[str, Any]]) -> str:
    """What was wanted and what was reached."""
    rows = ["| | | wanted | measured | |", "| --- | --- | --- | --- | --- |"]
    for goal in GOALS:
        words, enough = goal.measured(found)
        mark = {True: "reached", False: "missed", None: ""}[enough]
        if enough is not None and any(is_provisional(found[name]) for name in goal.documents):
            mark += ", provisional"
        rows.append(f"| {goal.name} | {goal.race} | {goal.wanted} | {words} | {mark} |")
    return "\n".join(rows) + "\n"


def section(name: str, document: Mapping[str, Any]) -> str:
    """One document's tables, plot and conditions."""
    parts = [conditions_text(document), ""]
    if document.get("unmeasured"):
        parts += [f"Not measured: {document['unmeasured']}.", ""]
    for one in document["races"]:
        parts += [f"### {one['title']}" if one["title"] else "", "", race_table(one), ""]
    if document["skipped"]:
        parts += ["Not there:", ""] + [f"- {who}: {why}" for who, why in document["skipped"].items()] + [""]
    if document["races"]:
        parts += [f"![{name}, as bars](pictures/speed-{name}.png)", ""]
    return "\n".join(parts)


def race_table(one: Mapping[str, Any]) -> str:
    """Contestants in rows."""
    extra = {"pictures_s": "pictures/s", "peak_mb": "peak MB", "floor_share": "of the floor"}
    columns = [key for key in extra if any(key in figures for figures in one["results"].values())]
    rows = ["| | median ms | range | ours is |" + "".join(f" {extra[key]} |" for key in columns)]
    rows.append("| --- | ---: | ---: | ---: |" + " ---: |" * len(columns))
    for who, figures in one["results"].items():
        ours = (
            f"{figures['ratio']:g}x ({figures['ratio_min']:g} to {figures['ratio_max']:g})"
            if "ratio" in figures
            else ""
        )
        cells = [f"{figures['median_ms']:g}", f"{figures['min_ms']:g} to {figures['max_ms']:g}", ours]
        cells += [f"{figures.get(key, '')}" for key in columns]
        rows.append(f"| {'**' + who + '**' if who == one['ours'] else who} | {' | '.join(cells)} |")
    apart = one.get("apart") or {}
    if apart:
        whose = "diffusers'" if "diffusers" in one["results"] else "OpenVINO's"
        words = ", ".join(f"{who} {found['mean']:g} ({found['largest']:g})" for who, found in apart.items())
        rows += [
            "",
            f"Mean (largest) difference from {whose} picture, of 255, allowed {one['tolerance']:g}: {words}.",
        ]
    return "\n".join(rows)


def conditions_text(document: Mapping[str, Any]) -> str:
    """Where, when and how."""
    met = document["conditions"]
    libraries = ", ".join(f"{name} {version}" for name, version in met["versions"].items())
    machine = (
        f"{met['gpu'] or met['processor']}, {met['cores']} cores, {met['threads']} threads, {met['memory_gb']:g} GB"
    )
    facts = [f"`{met['command']}`", machine, libraries, f"commit {met['commit']}", met["date"]]
    if "autoencoder" in document:
        facts.append(f"everybody's autoencoder: {document['autoencoder']}")
    if "peak_mb" in document:
        facts.append("peak memory: " + ", ".join(f"{who} {mb} MB" for who, mb in document["peak_mb"].items()))
    if is_provisional(document):
        facts.append(f"*provisional: others had {100 * met['others_busy']:.0f} % of the cores*")
    return "; ".join(facts) + "."


def is_provisional(document: Mapping[str, Any]) -> bool:
    """Whether others had too much of the machine."""
    return (document["conditions"]["others_busy"] or 0) > OTHERS_LIMIT


def readme_block(found: Mapping[str, dict[str, Any]]) -> str | None:
    """The README's table: warm and cold; None while one of them is not kept."""
    if not {"picture-pictogram", "cold_start"} <= set(found):
        return None
    warm, cold = found["picture-pictogram"], found["cold_start"]
    four = next(one for one in warm["races"] if one["steps"] == 4 and one["batch"] == 1)
    rows = ["|  | fewstep | diffusers | ratio |", "| --- | ---: | ---: | ---: |"]
    for words, name, one in (
        ("a warm picture, text to pixels", "picture-pictogram", four),
        ("from the command line to the PNG, cold", "cold_start", cold["races"][0]),
    ):
        ours, theirs = one["results"][one["ours"]], one["results"]["diffusers"]
        link = f"[{words}](benchmarks/results/{name}.json)"
        rows.append(f"| {link} | {ours['median_ms']:g} ms | {theirs['median_ms']:g} ms | {theirs['ratio']:g} |")
    memory = [cold["races"][0]["results"][who]["peak_mb"] for who in (cold["races"][0]["ours"], "diffusers")]
    rows.append(f"| peak memory of that | {memory[0]} MB | {memory[1]} MB | {memory[1] / memory[0]:.1f} |")
    met = warm["conditions"]
    words = f"{met['cores']} cores of an {met['processor']}, four steps, 128 px, float32, by turns in one run"
    note = " Provisional: other programs ran meanwhile." if is_provisional(warm) or is_provisional(cold) else ""
    return (
        f"Medians on {words}.{note} More, the losses too: [docs/speed.md](docs/speed.md).\n\n" + "\n".join(rows) + "\n"
    )


def readme(found: Mapping[str, dict[str, Any]]) -> str:
    """The README with its table anew."""
    text, block = README.read_text(encoding="utf-8"), readme_block(found)
    return text if block is None else BLOCK.sub(lambda marks: f"{marks[1]}{block}{marks[2]}", text)


def write_page() -> None:
    """Page, plots and README."""
    found = documents()
    for name, document in found.items():
        if document["races"]:
            draw(document["races"], title=HEADINGS.get(name, name), path=PICTURES / f"speed-{name}.png")
    PAGE.write_text(page(found), encoding="utf-8")
    README.write_text(readme(found), encoding="utf-8")


def main() -> int:
    """1 where --check finds something written by hand."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true")
    if not parser.parse_args().check:
        write_page()
        return 0
    found = documents()
    made = {PAGE: page(found), README: readme(found)}
    stale = [str(Path(path).name) for path, text in made.items() if path.read_text(encoding="utf-8") != text]
    print(f"not what the documents make: {', '.join(stale)}" if stale else "as the documents make it")
    return 1 if stale else 0


if __name__ == "__main__":
    sys.exit(main())
