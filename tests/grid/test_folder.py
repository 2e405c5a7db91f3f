"""A grid's folder: what lies in it, going on where it stopped, and what it refuses to mix with."""

import csv
from pathlib import Path

import pytest
from PIL import Image

from fewstep.errors import OutputError
from fewstep.grid import Axis, Grid, Painted, Setting
from fewstep.grid.folder import Folder, file_name
from fewstep.infotext import Infotext, Picture, parse, read, write
from fewstep.request import Request


def grid_of(seed=7, prompt="a cat, sleeping", **axes):
    axes = axes or {"x": "steps=1,2", "y": "prompt-sr=cat,dog"}
    return Grid(Setting(Request(prompt, seed=seed), loras=()), **{k: Axis.parse(v) for k, v in axes.items()})


def painted(cell):
    """As the easel would hand it over, without a model."""
    request = cell.setting.request
    settings = {"Steps": str(request.steps), "Seed": str(request.seed), "Size": "64x64", "Model": "toy"}
    picture = Picture.of(Image.new("RGB", (64, 64), (cell.number, 0, 0)), write(Infotext(request.prompt, "", settings)))
    return Painted(cell, picture, 12.34, notes=("a note",))


def filled(path, grid, *, most=99):
    folder = Folder(path, grid)
    for cell in folder.missing()[:most]:
        folder.save(painted(cell))
    folder.finish()
    return folder


def test_what_lies_in_it(tmp_path):
    folder = filled(tmp_path / "g", grid_of())
    names = sorted(path.relative_to(tmp_path / "g").as_posix() for path in (tmp_path / "g").rglob("*.*"))
    assert names == [
        *("cells.csv", "grid.json", "grid.png", "index.html"),
        *(f"pictures/00{name}.png" for name in ("1-1-cat", "2-2-cat", "3-1-dog", "4-2-dog")),
    ]
    sheet = parse(read(tmp_path / "g" / "grid.png"))
    assert [sheet.settings[key] for key in ("Script", "X Type", "X Values", "Y Type", "Y Values")] == [
        *("X/Y/Z plot", "Steps", "1,2", "Prompt S/R", "cat,dog")
    ]
    assert sheet.prompt == "a cat, sleeping"
    assert folder.common().settings == {"Seed": "7", "Size": "64x64", "Model": "toy"}
    assert folder.common().prompt == ""


def test_the_table_is_read_back(tmp_path):
    grid = grid_of(prompt='=a "cat",\nsleeping')
    folder = Folder(tmp_path, grid)
    cells = folder.missing()
    folder.save(painted(cells[0]))
    folder.save(Painted(cells[1], None, 0, "60 steps, too many"))
    folder.finish()
    with (tmp_path / "cells.csv").open(encoding="utf-8", newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert [row["number"] for row in rows] == ["1", "2", "3", "4"]
    assert (rows[0]["x: steps"], rows[0]["y: prompt-sr"], rows[0]["ms"]) == ("1", "cat", "12")
    assert rows[0]["prompt"] == '=a "cat",\nsleeping'
    assert (rows[0]["file"], rows[0]["seed"], rows[0]["Steps"]) == ("pictures/001-1-cat.png", "7", "1")
    assert rows[1]["refusal"] + rows[2]["refusal"] == "60 steps, too many"
    assert rows[3]["file"] == ""


def test_going_on_where_it_stopped(tmp_path):
    first = filled(tmp_path / "g", grid_of(seed=None), most=3)
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "g" / "pictures").iterdir()}
    again = Folder(tmp_path / "g", grid_of(seed=None))
    assert again.seed == first.seed
    assert [cell.number for cell in again.missing()] == [4]
    again.save(painted(again.missing()[0]))
    again.finish()
    assert not again.missing()
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert again.table().count("12,,a note") == 4


def test_a_damaged_picture_is_painted_again(tmp_path):
    filled(tmp_path / "g", grid_of())
    victim = tmp_path / "g" / "pictures" / "002-2-cat.png"
    victim.write_bytes(victim.read_bytes()[:40])
    assert [cell.number for cell in Folder(tmp_path / "g", grid_of()).missing()] == [2]


@pytest.mark.parametrize("other", [grid_of(seed=8), grid_of(prompt="a cat"), grid_of(x="steps=1,3")])
def test_another_grid_does_not_mix_in(tmp_path, other):
    filled(tmp_path / "g", grid_of())
    with pytest.raises(OutputError, match="other settings"):
        Folder(tmp_path / "g", other)
    with pytest.raises(OutputError, match="other settings"):
        Folder(tmp_path / "g", grid_of(), {"dtype": "float16"})


def test_other_contents_of_a_model_file_are_another_grid(tmp_path):
    def grid():
        axis = {"x": Axis.parse(f"lora=none,{tmp_path / 'ink.safetensors'}")}
        return Grid(Setting(Request("a", seed=1), loras=()), **axis)

    (tmp_path / "ink.safetensors").write_bytes(b"1")
    filled(tmp_path / "g", grid())
    assert not Folder(tmp_path / "g", grid()).missing()
    (tmp_path / "ink.safetensors").write_bytes(b"22")
    with pytest.raises(OutputError, match="other settings"):
        Folder(tmp_path / "g", grid())


def test_what_belongs_to_somebody_else_is_left_alone(tmp_path):
    (tmp_path / "file").write_text("mine")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("mine")
    (tmp_path / "damaged").mkdir()
    (tmp_path / "damaged" / "grid.json").write_text("{")
    for name, said in (("file", "something else"), ("full", "something else"), ("damaged", "other settings")):
        with pytest.raises(OutputError, match=said):
            Folder(tmp_path / name, grid_of())
    (tmp_path / "empty").mkdir()
    Folder(tmp_path / "empty", grid_of()).finish()
    assert not list((tmp_path / "empty").iterdir())


def test_names_of_files():
    grid = grid_of(x='prompt="../../etc/passwd","", a very long prompt about everything that there is under the sun')
    names = [file_name(cell) for cell in grid.cells()]
    assert names[:2] == ["pictures/001-etc-passwd.png", "pictures/002-nothing.png"]
    assert all(len(Path(name).name) < 80 for name in names)
