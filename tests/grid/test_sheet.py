"""The sheet's geometry: every picture in its place, legends apart from them; and the page: closed, escaped, whole."""

import json
import re

import pytest
from PIL import Image, ImageFont

from fewstep.grid import Axis, Grid, Setting
from fewstep.grid.page import Entry, page
from fewstep.grid.sheet import HOLE, MOST_PX, PAPER, layout_of, sheet, wrapped
from fewstep.request import Request

BASE = Setting(Request("a cat", seed=7), loras=())
FONT = ImageFont.load_default(14)
SIDES = {"x": "steps=1-3", "y": "guidance=1,2", "z": "rng=cpu,nv"}


def grid_of(sides="xyz", base=BASE, **axes):
    chosen = {side: SIDES[side] for side in sides} | axes
    return Grid(base, **{side: Axis.parse(text) for side, text in chosen.items()})


def coloured(grid, size=(64, 48)):
    """Each cell in a colour of its own."""
    count = len(grid.cells())
    return {number: Image.new("RGB", size, (number * 200 // count, 255 - number, 40)) for number in range(1, count + 1)}


@pytest.mark.parametrize("sides", ["x", "y", "z", "xy", "xz", "yz", "xyz"])
def test_every_picture_is_whole_and_in_its_place(sides):
    grid = grid_of(sides)
    pictures = coloured(grid)
    image, layout = sheet(grid, pictures, footer=["a cat", "Seed: 7"]), layout_of(grid, [(64, 48)])
    places = [layout.at(cell.place) for cell in grid.cells()]
    for cell, (left, top) in zip(grid.cells(), places, strict=True):
        assert image.crop((left, top, left + 64, top + 48)).tobytes() == pictures[cell.number].tobytes()
        if cell.place[0]:
            assert left > places[cell.number - 2][0] + 64
    assert max(left + 64 for left, _ in places) <= image.width
    assert max(top + 48 for _, top in places) < image.height
    assert (layout.left > layout.gap) == ("y" in sides)


def test_legends_are_written_outside_the_pictures():
    grid = grid_of()
    white = {cell.number: Image.new("RGB", (64, 48), PAPER) for cell in grid.cells()}
    image, layout = sheet(grid, white), layout_of(grid, [(64, 48)])
    for cell in grid.cells():
        left, top = layout.at(cell.place)
        assert len(image.crop((left, top, left + 64, top + 48)).getcolors()) == 1
    left, top = layout.at((0, 0, 1))
    assert layout.at((0, 0, 0))[1] >= layout.head
    assert top - (layout.at((0, 1, 0))[1] + 48) >= layout.head
    above, beside = image.crop((left, top - layout.head, image.width, top)), image.crop((0, top, left, image.height))
    assert above.convert("L").getextrema()[0] < 90
    assert beside.convert("L").getextrema()[0] < 90


def test_a_missing_picture_leaves_its_place_and_says_why():
    grid = grid_of("xy")
    pictures = coloured(grid)
    del pictures[2]
    image, layout = sheet(grid, pictures, refusals={2: "60 steps are too many"}), layout_of(grid, [(64, 48)])
    left, top = layout.at((1, 0, 0))
    colours = {colour for _, colour in image.crop((left + 1, top + 1, left + 63, top + 47)).getcolors()}
    assert tuple(int(HOLE[i : i + 2], 16) for i in (1, 3, 5)) in colours
    assert len(colours) > 3
    with pytest.raises(ValueError, match="at least one picture"):
        sheet(grid, {})


def test_sizes_differ_and_huge_sheets_shrink():
    grid = grid_of("x")
    image = sheet(grid, {1: Image.new("RGB", (64, 48), "red"), 2: Image.new("RGB", (32, 96), "blue")})
    layout = layout_of(grid, [(64, 48), (32, 96)])
    assert layout.cell == (64, 96)
    left, top = layout.at((1, 0, 0))
    assert image.crop((left, top, left + 32, top + 96)).getextrema() == ((0, 0), (0, 0), (255, 255))
    large = layout_of(Grid(BASE, x=Axis.parse("seed=1-200")), [(2048, 2048)])
    assert large.cell[0] ** 2 * 200 <= MOST_PX


def test_fonts_grow_with_the_pictures():
    small, large = (layout_of(grid_of(), [(side, side)]).font_px for side in (64, 768))
    assert 13 <= small < large <= 30


def test_wrapping():
    lines = wrapped("a rather long label that goes on and on and on", 90, FONT)
    assert len(lines) > 2
    assert " ".join(lines) == "a rather long label that goes on and on and on"
    assert all(FONT.getlength(line) <= 90 for line in lines)
    assert "".join(wrapped("supercalifragilistic", 50, FONT)) == "supercalifragilistic"
    cut = wrapped("word " * 50, 90, FONT, most=2)
    assert len(cut) == 2
    assert cut[-1].endswith("...")
    assert FONT.getlength(cut[-1]) <= 90
    assert wrapped("ab", 1, FONT) == ["a", "b"]
    assert wrapped("", 50, FONT) == []


# ---------------------------------------------------------------- page

EVIL = '</script><script>alert(1)</script><img src="https://x.test/a.png" onerror="alert(2)">&amp;'


def made(grid, **facts):
    pictures = coloured(grid)
    del pictures[3]
    entries = [
        Entry(cell, pictures.get(cell.number), f"pictures/{cell.number} #?.png", f"{EVIL}\nSteps: 1", 12.3, "a <b>")
        for cell in grid.cells()
    ]
    return page(grid, entries, [EVIL])


@pytest.mark.parametrize("side", ["x", "y", "z"])
def test_the_page_asks_for_nothing_and_runs_only_its_own_script(side):
    text = made(grid_of("xyz".replace(side, ""), **{side: f'prompt-sr=cat,"{EVIL.replace(chr(34), chr(34) * 2)}"'}))
    markup = re.sub(r"<style>.*?</style>|<script[^>]*>.*?</script>", "", text, flags=re.DOTALL)
    assert not re.findall(r'(?:src|href|action|data)="(?!data:image/webp;base64,)', markup)
    assert len(re.findall(r"<script", text)) == 2
    assert text.count("</script>") == 2
    assert '<img src="https' not in text
    assert not re.findall(r"\son\w+=\"|\sstyle=\"|javascript:|@import|url\(", markup + text[: text.index("</style>")])
    assert "default-src 'none'" in text
    assert not re.search(r"fetch|XMLHttp|import\(|eval|innerHTML", text[text.rindex("<script>") :])


def test_the_policy_names_style_and_script():
    import base64
    import hashlib

    text = made(grid_of())
    for tag in ("style", "script"):
        body = re.findall(rf"<{tag}>(.*?)</{tag}>", text, re.DOTALL)[-1]
        digest = base64.b64encode(hashlib.sha256(body.encode()).digest()).decode()
        assert f"{tag}-src 'sha256-{digest}'" in text


def test_the_page_holds_every_cell():
    grid = grid_of()
    text = made(grid)
    data = re.search(r'<script type="application/json" id="cells">(.*?)</script>', text, re.DOTALL)
    cells = json.loads(data[1])
    assert [cell["number"] for cell in cells] == list(range(1, 13))
    assert cells[0]["text"] == f"{EVIL}\nSteps: 1"
    assert cells[4]["axes"] == [["steps", "2"], ["guidance", "2"], ["rng", "cpu"]]
    assert cells[4]["file"] == "pictures/5%20%23%3F.png"
    assert text.count("data:image/webp") == 11
    assert text.count('class="hole"') == 1
    assert "a &lt;b&gt;" in text
    assert text.count("<section") == 2
    assert [text.count(f'data-z="{z}"') for z in ("all", 0, 1)] == [1, 2, 2]
