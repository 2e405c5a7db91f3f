"""The benchmarks' own pieces, and that every script is known; the scripts themselves are run by the slow tests."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

ROOT = Path(__file__).parents[2]
SCRIPTS = sorted(path.name for path in (ROOT / "benchmarks").glob("*.py"))


def document(ratio=4.5, **facts):
    results = {
        "fewstep onnx": {"median_ms": 80.0, "min_ms": 75.0, "max_ms": 90.0},
        "diffusers": {"median_ms": 80 * ratio, "min_ms": 300.0, "max_ms": 400.0, "ratio": ratio}
        | {"ratio_min": ratio - 0.5, "ratio_max": ratio + 0.5},
    }
    race = {
        "title": "4 steps, batch 1",
        "ours": "fewstep onnx",
        "rounds": 3,
        "results": results,
        "steps": 4,
        "batch": 1,
    }
    met = {
        "processor": "a processor",
        "gpu": None,
        "cores": 2,
        "threads": 2,
        "memory_gb": 8.0,
        "versions": {"torch": "2"},
    }
    met |= {"command": "python benchmarks/picture.py", "commit": "abc", "date": "2026-01-01", "others_busy": 0.0}
    return {"benchmark": "picture", "case": "pictogram", "races": [race], "skipped": {}, "conditions": met} | facts


def test_turns_are_taken_and_the_warm_up_is_not_counted():
    from race import by_turns

    order, now = [], iter(range(100))
    runs = {name: lambda name=name: order.append(name) for name in "ab"}
    found = by_turns(runs, rounds=2, warm_up=1, clock=lambda: float(next(now)))
    assert order == ["a", "b"] * 3
    assert found == {"a": [1.0, 1.0], "b": [1.0, 1.0]}


def test_a_document_has_its_conditions_and_a_plot(tmp_path, monkeypatch, capsys):
    from race import keep, race

    monkeypatch.setenv("BENCHMARKS_OUT", str(tmp_path))
    one = race({"fewstep": [0.1, 0.1], "other": [0.3, 0.2]}, ours="fewstep", title="a race")
    keep({"benchmark": "trial", "case": "x", "races": [one], "skipped": {"third": "not installed"}})
    last = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert last == json.loads((tmp_path / "trial-x.json").read_text())
    assert last["races"][0]["results"]["other"]["ratio"] == 2.5
    assert last["conditions"]["versions"]["python"] == sys.version.split()[0]
    assert last["conditions"]["cores"] >= 1
    with Image.open(tmp_path / "trial-x.png") as plot:
        blue = [colour for _, colour in plot.convert("RGB").getcolors() if colour[2] > 150 > colour[0]]
        assert blue and plot.width == 960


def test_a_ratio_below_the_wanted_is_a_missed_goal():
    from goals import GOALS

    p1 = next(goal for goal in GOALS if goal.name == "P1")
    for ratio, equal_ms, met in ((4.5, 120.0, True), (4.5, 180.0, False), (3.9, 104.0, False)):
        one = document(ratio)
        one["races"][0]["results"]["fewstep full"] = {"median_ms": equal_ms}
        words = f"diffusers {ratio}x; with the same autoencoder, float32, {80 * ratio / equal_ms:.3g}x"
        assert p1.measured({"picture-pictogram": one}) == (words, met)
    assert p1.measured({}) == ("not measured yet", None)
    p8 = next(goal for goal in GOALS if goal.name == "P8")
    assert p8.measured({"gpu": document(races=[], unmeasured="no GPU")}) == ("not measured: no GPU", None)


def test_the_page_says_who_lost_and_what_is_provisional():
    from speed_page import page

    lost = document(0.5)
    lost["conditions"]["others_busy"] = 0.4
    text = page({"picture-pictogram": lost})
    assert "| diffusers | 40 | 300 to 400 | 0.5x (0 to 1) |" in text
    assert "missed, provisional" in text and "others had 40 % of the cores" in text
    assert "provisional: others" not in page({"picture-pictogram": document(5)})


def test_page_and_readme_are_what_the_documents_make():
    import speed_page

    found = speed_page.documents()
    assert speed_page.PAGE.read_text(encoding="utf-8") == speed_page.page(found)
    assert speed_page.README.read_text(encoding="utf-8") == speed_page.readme(found)


def test_every_script_is_listed_and_every_link_leads_somewhere():
    from run import BENCHMARKS

    listed = (ROOT / "benchmarks" / "README.md").read_text(encoding="utf-8")
    assert not [name for name in SCRIPTS if f"`{name}`" not in listed]
    mains = [name for name in SCRIPTS if 'if __name__ == "__main__"' in (ROOT / "benchmarks" / name).read_text()]
    pieces = {"weights.py", "run.py", "speed_page.py"}
    assert {name for name in mains if name not in pieces} <= {benchmark.script for benchmark in BENCHMARKS}
    links = re.findall(r"\]\(([^)#:]+)\)", (ROOT / "docs" / "speed.md").read_text(encoding="utf-8"))
    assert not [link for link in links if not (ROOT / "docs" / link).exists()]


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    ["overhead", "users", "gpu", "picture-pictogram", "picture-sd15-tiny", "picture-sd15-tiny-by-hand", "cold_start"],
)
def test_a_quick_run_ends_with_a_document(name, tmp_path):
    command = [sys.executable, str(ROOT / "benchmarks" / "run.py"), name, "--quick", "--out", str(tmp_path)]
    settings = os.environ | {"XDG_CACHE_HOME": str(tmp_path / "cache")}
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=280, env=settings)
    assert done.returncode == 0, done.stdout + done.stderr
    found = [json.loads(path.read_text()) for path in tmp_path.glob("*.json")]
    assert found and all(one["results"] for document in found for one in document["races"])
