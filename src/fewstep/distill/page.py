"""One HTML page for a run, or for several side by side: curves, sample grids, recipe, origin, result. It stands alone:
styles, curves and pictures are inside, and it is made from the run's files only.
"""

import base64
import io
import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields
from functools import lru_cache
from html import escape
from pathlib import Path
from typing import Any

from PIL import Image

from fewstep.checkpoints.description import Sampling
from fewstep.checkpoints.files import write_whole
from fewstep.checkpoints.lora_metadata import usage_hint
from fewstep.distill.charts import number
from fewstep.distill.curves import curves, figures_of, judged_steps, sampled_steps
from fewstep.distill.history import History, Row, read_history, resume_command, table_of
from fewstep.distill.recipes import Recipe

REPORT = "report.html"
MOST_GRIDS = 10
WIDEST_PX = 1400
WHO = {
    "student": "student",
    "guided": "teacher, guided (two evaluations a step)",
    "plain": "teacher, without guidance",
    "teacher": "teacher",
}


def write_report(folder: str | Path) -> Path:
    """Write report.html into a run's folder, whole or not at all; returns its path.

    Raises RequestError where the folder holds no run, OutputError where it cannot be written.
    """
    path = Path(folder) / REPORT
    text = report_page([read_history(folder)])
    write_whole(path, lambda part: part.write_text(text, encoding="utf-8"))
    return path


def report_page(runs: Sequence[History]) -> str:
    """The page of one run, or of several over each other."""
    title = runs[0].name if len(runs) == 1 else " · ".join(run.name for run in runs)
    body = _one(runs[0]) if len(runs) == 1 else _many(runs)
    style = Path(__file__).with_name("page.css").read_text(encoding="utf-8")
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{style}</style></head><body><main>{body}</main></body></html>\n"
    )


def _one(run: History) -> str:
    return "".join(
        (
            f"<header><h1>{escape(run.name)} {_badge(run)}</h1><p>{_what(run)}</p>{_outcome(run)}</header>",
            _tiles(run),
            _section("What the student draws", _grids(run)),
            _section("Curves", _charts([run])),
            _section("Against its teacher", _looks(run)),
            _section("How to use it", _use(run)),
            _section("Recipe", _recipe(run)),
            _section("Where it was made", _origin(run)),
        )
    )


def _many(runs: Sequence[History]) -> str:
    heads = "".join(
        f'<li><b><i class="key c{place % 8}"></i>{escape(run.name)}</b><span>{_what(run)}</span> {_badge(run)}</li>'
        for place, run in enumerate(runs)
    )
    grids = "".join(_grid(run, _shown(run), f"{run.name}, step {_shown(run)}") for run in runs if run.samples)
    return "".join(
        (
            f'<header><h1>{len(runs)} runs side by side</h1></header><ul class="tiles">{heads}</ul>',
            _section("Curves", _charts(runs)),
            _section("Their newest look, or the one whose weights were taken", _ends(runs)),
            _section("What they draw", f'<div class="box strip">{grids}</div>' if grids else ""),
            _section("Where their recipes differ", _differences(runs)),
        )
    )


# ---------------------------------------------------------------- head


def _badge(run: History) -> str:
    if "refused" in run.result:
        return '<span class="badge bad">refused</span>'
    if "path" in run.result:
        return '<span class="badge good">finished</span>'
    total = run.recipe.get("steps", 0)
    return f'<span class="badge">step {run.step} of {total}</span>'


def _what(run: History) -> str:
    recipe = run.recipe
    teacher = run.facts.get("model", {}).get("name") or recipe.get("model") or "the embedded model"
    kind = f"LoRA of rank {recipe.get('rank')}" if recipe.get("student") == "lora" else "whole model"
    return escape(f"{recipe.get('objective', '?').upper()}, a {kind}, from {teacher}.")


def _outcome(run: History) -> str:
    """One sentence on how it ended, or how to go on."""
    result, command = run.result, run.facts.get("command", "")
    if "refused" in result:
        return f"<p>{escape(result['refused'])}</p>"
    if "path" not in result:
        going_on = command.startswith("fewstep distill")
        return f"<p>If it was stopped, go on with:</p>{_code(resume_command(command))}" if going_on else ""
    guided = "" if result.get("guided") is None else f"; with guidance {number(result['guided'])}"
    taken = _taken(run)
    return (
        f"<p>{taken} At {result['sampling_steps']} evaluations the student is {number(result['student'])} from the "
        f"teacher's many-step solution; the teacher itself, at as many, {number(result['plain'])} without "
        f"guidance{guided}.</p>"
    )


def _taken(run: History) -> str:
    taken, last = run.result["steps"], run.result.get("last_step", run.step)
    if not run.result.get("kept_by"):
        return f"The weights are those of the last step, {taken}."
    early = f"stopped early after step {last}" if last < run.recipe.get("steps", last) else f"ended after step {last}"
    return escape(f"The weights are those of step {taken}, the best by {run.result['kept_by']}; training {early}.")


def _tiles(run: History) -> str:
    tail = run.steps[-max(len(run.steps) // 20, 1) :]
    recipe = run.recipe
    found = {"steps": number(run.step), "loss, last twentieth": _mean(tail, "loss")}
    steps, shown = judged_steps(run), _look_at(run, _shown(run))
    for figure in figures_of(run.looks):
        value = table_of(shown, figure).get("student", {}).get(steps)
        if value is not None:
            found[f"{figure} at {steps} steps"] = _value(figure, value)
    batch = recipe.get("batch", 0) * recipe.get("accumulate", 1)
    seconds = sum(batch / row["samples_per_s"] for row in run.steps if row.get("samples_per_s"))
    found |= {"pictures a second": _mean(tail, "samples_per_s"), "training time, looks aside": _duration(seconds)}
    if any("data_wait" in row for row in tail):
        found["waiting for data"] = f"{float(_mean(tail, 'data_wait')) * 100:.2g} %"
    return f'<ul class="tiles">{"".join(f"<li><b>{v}</b><span>{k}</span></li>" for k, v in found.items())}</ul>'


def _mean(rows: Sequence[Row], key: str) -> str:
    values = [row[key] for row in rows if row.get(key) is not None]
    return number(sum(values) / len(values)) if values else "0"


def _duration(seconds: float) -> str:
    minutes, left = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {left:02d} s"


# ---------------------------------------------------------------- pictures


def _shown(run: History) -> int:
    """The step whose grid stands first: the one taken, else the best so far, else the newest."""
    kept = [look["step"] for look in run.looks if look.get("kept")]
    asked = run.result.get("steps", kept[-1] if kept else None)
    steps = list(run.samples) or [look["step"] for look in run.looks]
    return asked if asked in steps else (steps[-1] if steps else 0)


def _grids(run: History) -> str:
    if not run.samples:
        return ""
    shown = _shown(run)
    first = f'<div class="box">{_grid(run, shown, _caption(run, shown))}</div>'
    others = _spread([step for step in run.samples if step != shown], MOST_GRIDS - 1)
    strip = "".join(_grid(run, step, _caption(run, step)) for step in others)
    return first + (_details("Earlier and later looks", f'<div class="strip">{strip}</div>') if strip else "")


def _spread(steps: Sequence[int], most: int) -> list[int]:
    """At most `most` of them, evenly, with the first and the last."""
    if len(steps) <= most:
        return list(steps)
    return [steps[round(place * (len(steps) - 1) / (most - 1))] for place in range(most)]


def _caption(run: History, step: int) -> str:
    look, steps = _look_at(run, step), judged_steps(run)
    values = ((name, table_of(look, name).get("student", {}).get(steps)) for name in figures_of(run.looks))
    said = [f"{name} at {steps} steps {_value(name, value)}" for name, value in values if value is not None]
    return " · ".join([f"Step {step}", *said])


def _grid(run: History, step: int, caption: str) -> str:
    path = run.samples.get(step)
    if path is None:
        return ""
    source = _data_uri(path, path.stat().st_mtime_ns)
    return (
        f'<figure class="grid"><figcaption>{escape(caption)}</figcaption>'
        f'<img src="{source}" loading="lazy" alt="{escape(caption)}: columns by sampling steps, the teacher last">'
        "</figure>"
    )


@lru_cache(maxsize=256)
def _data_uri(path: Path, _changed: int) -> str:
    with Image.open(path) as picture:
        small = picture.convert("RGB")
    small.thumbnail((WIDEST_PX, 4 * WIDEST_PX))
    content = io.BytesIO()
    small.save(content, "WEBP", quality=82)
    return f"data:image/webp;base64,{base64.b64encode(content.getvalue()).decode()}"


# ---------------------------------------------------------------- tables


def _looks(run: History) -> str:
    if not run.looks:
        return ""
    steps, shown = sampled_steps(run.looks), _look_at(run, _shown(run))
    heads = [f"{k} step{'' if k == '1' else 's'}" for k in steps]
    rows = [
        (f"{figure}: {WHO.get(who, who)}", [_value(figure, values.get(k)) for k in steps])
        for figure in figures_of(run.looks)
        for who, values in table_of(shown, figure).items()
        if any(k in values for k in steps)
    ]
    main = _table(["", *heads], rows)
    pairs = [(figure, k) for figure in figures_of(run.looks) for k in steps]
    every = [
        (str(look["step"]), [_value(f, table_of(look, f).get("student", {}).get(k)) for f, k in pairs])
        for look in run.looks
    ]
    kept = {str(look["step"]) for look in run.looks if look.get("kept")}
    full = _table(["step", *(f"{figure}, {k}" for figure, k in pairs)], every, marked=kept, mark="kept")
    return (
        f'<div class="box"><p class="muted">The look at step {shown.get("step", 0)}.</p>{main}</div>'
        f"{_details('The student at every look', full)}"
    )


def _look_at(run: History, step: int) -> Row:
    return next((look for look in run.looks if look["step"] == step), run.looks[-1] if run.looks else {})


def _ends(runs: Sequence[History]) -> str:
    looks = [look for run in runs for look in run.looks]
    pairs = [(figure, k) for figure in figures_of(looks) for k in sampled_steps(looks)]
    rows = [
        (
            f"{run.name}, step {_shown(run)}",
            [_value(f, table_of(_look_at(run, _shown(run)), f).get("student", {}).get(k)) for f, k in pairs],
        )
        for run in runs
    ]
    return f'<div class="box">{_table(["", *(f"{figure}, {k}" for figure, k in pairs)], rows)}</div>' if pairs else ""


def _value(figure: str, value: float | None) -> str:
    if value is None:
        return ""
    return number(value) if figure == "distance" else f"{100 * value:.3g} %" if 0 <= value <= 1 else number(value)


def _recipe(run: History) -> str:
    """Every value; those that are not the default stand first and are marked."""
    texts = {entry.name: entry.metadata["help"] for entry in fields(Recipe)}
    plain = _plain_values()
    changed = [key for key in run.recipe if run.recipe[key] != plain.get(key)]
    rows = [(key, [_shown_value(run.recipe[key]), texts.get(key, "")]) for key in changed]
    others = [(key, [_shown_value(run.recipe[key]), texts.get(key, "")]) for key in run.recipe if key not in changed]
    return (
        f'<div class="box">{_table(["", "", ""], rows, marked=set(changed), mark="set", numbers=False)}</div>'
        f"{_details('Values left at their defaults', _table(['', '', ''], others, numbers=False))}"
    )


def _differences(runs: Sequence[History]) -> str:
    keys = dict.fromkeys(key for run in runs for key in run.recipe)
    rows = [(key, [_shown_value(run.recipe.get(key, "")) for run in runs]) for key in keys]
    differing = [(key, values) for key, values in rows if len(set(values)) > 1]
    return f'<div class="box">{_table(["", *(run.name for run in runs)], differing, numbers=False)}</div>'


def _plain_values() -> Mapping[str, Any]:
    return {entry.name: entry.default for entry in fields(Recipe)}


def _shown_value(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(map(str, value))
    return f"{value:g}" if isinstance(value, float) else str(value)


def _table(
    heads: Sequence[str],
    rows: Iterable[tuple[str, Sequence[str]]],
    *,
    marked: Iterable[str] = (),
    mark: str = "",
    numbers: bool = True,
) -> str:
    kind, wanted = ("n" if numbers else "wide"), set(marked)
    head = "".join(f'<th class="{kind if place else ""}">{escape(text)}</th>' for place, text in enumerate(heads))
    body = "".join(
        f'<tr class="{mark if name in wanted else ""}"><th>{escape(name)}</th>'
        f"{''.join(f'<td class={kind!r}>{escape(cell)}</td>' for cell in cells)}</tr>"
        for name, cells in rows
    )
    return f"<table>{f'<thead><tr>{head}</tr></thead>' if any(heads) else ''}<tbody>{body}</tbody></table>"


# ---------------------------------------------------------------- use and origin


def _use(run: History) -> str:
    if "path" not in run.result:
        return ""
    path, recipe = run.result["path"], run.recipe
    base, lora = recipe.get("model", ""), recipe.get("student") == "lora"
    where = ", ".join(([repr(base)] if base else []) + [f"lora={path!r}"]) if lora else repr(path)
    python = f'import fewstep\n\npipe = fewstep.load({where})\npipe("a cat", seed=1).save("cat.png")'
    options = (["--model", base] if base else []) + ["--lora", path] if lora else ["--model", path]
    shell = shlex.join(["fewstep", "generate", "a cat", *options, "-o", "cat.png"])
    place = "file" if lora else "folder"
    return (
        f"<p>Sampler, steps and guidance are written in the {place}, and fewstep goes by them. In other programs: "
        f"{escape(_hint(recipe))}.</p>{_code(python)}{_code(shell)}"
    )


def _hint(recipe: Mapping[str, Any]) -> str:
    known = {"sampler": "sampler", "steps": "sampling_steps", "guidance": "sampling_guidance"}
    return usage_hint(Sampling(**{name: recipe[key] for name, key in known.items() if key in recipe}))


def _origin(run: History) -> str:
    facts = run.facts
    if not facts:
        return ""
    git = facts.get("git")
    code = "not in a git repository" if not git else f"{git['commit'][:12]}{', with changes' if git['dirty'] else ''}"
    machine, model, data = (facts.get(key, {}) for key in ("machine", "model", "data"))
    device = f"{machine.get('device')}; {machine.get('cpu')}, {machine.get('threads')} threads; {machine.get('system')}"
    began, from_step = facts.get("began", ""), facts.get("from_step", 0)
    rows = {
        "began": f"{began}, from step {from_step}" if from_step else began,
        "code": code,
        "machine": device,
        "teacher": f"{model.get('name')} ({model.get('family')}, {model.get('hash')})",
        "data": f"{data.get('items') or 'uncounted'} items, {data.get('captions')} captions, {data.get('folder')}",
        "picture size": " x ".join(str(side) for side in reversed(facts.get("size_px", []))) + " px",
        "trained": f"{number(facts.get('trained', 0))} parameters",
        "predicted": ", ".join(f"{key} {value}" for key, value in (facts.get("predicted") or {}).items()),
        "versions": ", ".join(f"{name} {version}" for name, version in facts.get("versions", {}).items()),
    }
    table = _table(["", ""], [(key, [value]) for key, value in rows.items()], numbers=False)
    return f'{_code(facts.get("command", ""))}<div class="box">{table}</div>'


def _code(text: str) -> str:
    return f'<div class="box"><pre>{escape(text)}</pre></div>'


def _details(summary: str, body: str) -> str:
    return f'<details class="box"><summary>{escape(summary)}</summary>{body}</details>'


def _charts(runs: Sequence[History]) -> str:
    drawn = curves(runs)
    return f'<div class="charts">{"".join(drawn)}</div>' if drawn else ""


def _section(title: str, body: str) -> str:
    return f"<section><h2>{escape(title)}</h2>{body}</section>" if body else ""
