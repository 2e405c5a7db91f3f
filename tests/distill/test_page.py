"""The HTML report from a run's files alone: whole, escaped, truthful, of one run and of several."""

import base64
import io
import json
import math
import re
from html.parser import HTMLParser

import pytest
from PIL import Image

from fewstep.cli.main import main
from fewstep.distill.charts import Line, chart, smoothed, thinned
from fewstep.distill.curves import curves
from fewstep.distill.history import read_history
from fewstep.distill.page import MOST_GRIDS, report_page
from fewstep.distill.recipes import make_recipe, recipe_text
from fewstep.errors import RequestError

VOID = {"meta", "img", "br"}


class Page(HTMLParser):
    """Every tag with its attributes, its text, and whether the tags are nested as they must be."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.open, self.words = [], [], []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.words.append(data)

    def all(self, tag):
        return [attributes for name, attributes in self.tags if name == tag]

    @property
    def text(self):
        return " ".join(" ".join(self.words).split())


@pytest.fixture
def run_folder(tmp_path):
    """A folder as a run of `steps` steps with a look every 10 leaves it."""

    def make(name="lcm-<b>.run", *, steps=40, result=None, slope=1.0, **values):
        folder = tmp_path / name
        folder.mkdir()
        recipe = make_recipe({"steps": steps, "batch": 2, "look_every": 10, "look_steps": [1, 4]} | values)
        (folder / "recipe.toml").write_text(recipe_text(recipe))
        rows = []
        for step in range(steps + 1):
            if step:
                rows.append(step_row(step, slope))
            if step % 10 == 0:
                rows.append(look_row(step))
                Image.new("RGB", (40, 30), "red").save(folder / f"samples-{step:06d}.png")
        (folder / "metrics.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
        if result:
            (folder / "result.json").write_text(json.dumps(result))
        return folder

    return make


def step_row(step, slope):
    loss = slope / step
    return {"step": step, "loss": loss, "learning_rate": 1e-4, "gradient_norm": 0.5, "samples_per_s": 4.0} | {
        "loss_quarters": [loss, None, loss, loss], "losses": {"consistency": loss}, "data_wait": 0.25,
    }  # fmt: skip


def look_row(step):
    row = {"step": step, "distance": {"student": {"1": 0.5, "4": 0.4 - step / 1000}, "guided": {"1": 2.0, "4": 0.3}}}
    row["scores"] = {"recognised": {"student": {"1": 0.25, "4": 0.5}, "teacher": {"50": 0.75}}}
    return row | ({"kept": True} if step == 20 else {})


FINISHED = {"path": "out/x.safetensors", "steps": 20, "last_step": 40, "kept_by": "distance:4", "sampling_steps": 4}
FINISHED |= {"student": 0.38, "guided": 0.5, "plain": 0.61, "read_back_error": 1e-4}


def test_a_finished_run(run_folder):
    page = Page(report_page([read_history(run_folder(result=FINISHED, keep_best="distance:4"))]))
    assert "the best by distance:4" in page.text and "finished" in page.text and "lcm-<b>" in page.text
    assert "fewstep.load(lora='out/x.safetensors')" in page.text
    for said in ("50 %", "25 %", "20 s", "recognised", "guided"):
        assert said in page.text
    assert len(page.all("svg")) >= 2 * 6  # a chart is a drawing with a window in it
    assert any("Step 20" in word for word in page.words)


def test_it_stands_alone(run_folder):
    page = Page(report_page([read_history(run_folder())]))
    sources = [attributes["src"] for attributes in page.all("img")]
    assert len(sources) == 5 and all(source.startswith("data:image/webp;base64,") for source in sources)
    with Image.open(io.BytesIO(base64.b64decode(sources[0].partition(",")[2]))) as picture:
        assert picture.size == (40, 30)
    assert not page.all("script") and not page.all("link") and all(image["alt"] for image in page.all("img"))
    assert "prefers-color-scheme: dark" in page.text and {"name": "viewport"}.items() <= page.all("meta")[1].items()


def test_curves_are_inside_their_frame(run_folder):
    text = "".join(curves([read_history(run_folder())]))
    box = [float(word) for word in re.search(r'viewBox="([^"]+)"', text)[1].split()]
    for path in re.findall(r'class="curve c\d "[^>]* d="([^"]+)"', text):
        for x, y in re.findall(r"[ML]([\d.-]+) ([\d.-]+)", path):
            assert 0 <= float(x) <= box[2] and 0 <= float(y) <= box[3]
    assert "nan" not in text and "inf" not in text


def test_an_unfinished_run_tells_how_to_go_on(run_folder):
    folder = run_folder(steps=12)
    with (folder / "metrics.jsonl").open("a") as file:
        file.write('{"step": 13, "lo')  # being written
    (folder / "facts.json").write_text(json.dumps({"command": "fewstep distill 'a b.toml' -o x", "git": None}))
    page = Page(report_page([read_history(folder)]))
    assert "step 12 of 12" in page.text and "fewstep distill 'a b.toml' -o x --resume" in page.text
    assert "not in a git repository" in page.text and "How to use it" not in page.text


def test_a_refused_run_says_why(run_folder):
    page = Page(report_page([read_history(run_folder(result={"refused": "The student answers as its teacher."}))]))
    assert "refused" in page.text and "answers as its teacher" in page.text


def test_a_run_that_has_just_begun(tmp_path):
    (tmp_path / "metrics.jsonl").write_text("")
    assert "step 0" in Page(report_page([read_history(tmp_path)])).text


def test_many_looks_are_not_all_embedded(run_folder):
    page = Page(report_page([read_history(run_folder(steps=300))]))
    assert len(page.all("img")) == MOST_GRIDS


def test_runs_side_by_side(run_folder):
    runs = [read_history(run_folder(name, slope=slope)) for name, slope in (("one.run", 1.0), ("two.run", 3.0))]
    page = Page(report_page(runs))
    assert page.text.count("one") > 3 and page.text.count("two") > 3
    loss = next(each for each in page.all("svg") if each.get("aria-label", "").startswith("Loss"))
    assert loss["aria-label"] == "Loss: one, two"


def test_only_what_differs_is_compared(run_folder):
    runs = [read_history(run_folder(f"{rank}.run", rank=rank)) for rank in (4, 8)]
    table = report_page(runs).partition("Where their recipes differ")[2]
    assert re.findall(r"<th>(\w+)</th>", table) == ["rank"]


def test_the_command(run_folder, tmp_path, capsys):
    folders = [run_folder("one.run"), run_folder("two.run")]
    assert main(["report", str(folders[0])]) == 0
    assert (folders[0] / "report.html").is_file() and "report.html" in capsys.readouterr().out
    assert main(["report", *map(str, folders), "-o", str(tmp_path / "both.html")]) == 0
    assert "2 runs side by side" in (tmp_path / "both.html").read_text()


def test_a_folder_without_a_run(tmp_path, capsys):
    with pytest.raises(RequestError, match=r"no metrics\.jsonl"):
        read_history(tmp_path)
    assert main(["report", str(tmp_path)]) == 2 and "holds no run" in capsys.readouterr().err


def test_charts():
    assert chart("nothing", [Line("a", [])]) == "" == chart("a point", [Line("a", [(0, 1.0)])])
    flat = chart("flat", [Line("a", [(0, 1.0), (1, 1.0)])])
    assert "nan" not in flat and "flat" in flat
    steep = chart("steep", [Line("a", [(0, 1e-4), (1, 1.0)])])
    assert ">0.001<" in steep and ">0.1<" in steep  # decades: the axis is logarithmic
    assert chart("shares", [Line("a", [(0, 0.1), (1, 0.2)])], percent=True).count(" %<") == 5
    assert "&lt;b&gt;" in chart("<b>", [Line("<i>", [(0, 1.0), (1, 2.0)]), Line("j", [(0, 1.0), (1, 2.0)])])


def test_smoothing_follows_and_thinning_keeps_the_mean():
    wave = [(float(x), 1.0 + math.sin(x) * 0.5) for x in range(1000)]
    late = [y for _, y in smoothed(wave)[20:]]
    assert max(late) - min(late) < 0.3 and abs(sum(late) / len(late) - 1) < 0.05
    few = thinned(wave)
    assert len(few) == 200 and sum(y for _, y in few) / 200 == pytest.approx(sum(y for _, y in wave) / 1000)
