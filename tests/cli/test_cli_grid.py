"""The command `fewstep grid`, run inside this process: equal to `generate`, stopped and gone on with, refused."""

import csv
import json

import numpy as np
import pytest
from PIL import Image

import fewstep
from fewstep.cli.main import main
from fewstep.infotext import parse, read
from tests.tiny import tiny_folder


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="module")
def model():
    return str(tiny_folder("sd15"))


KNOWN = {}


@pytest.fixture
def loads(monkeypatch):
    """Every call of `fewstep.load`; what was loaded once is given again, for speed."""
    calls, real = [], fewstep.load

    def load(path=None, **how):
        calls.append(path)
        key = repr((path, how))
        KNOWN[key] = KNOWN.get(key) or real(path, **how)
        return KNOWN[key]

    monkeypatch.setattr("fewstep.load", load)
    return calls


def grid(*arguments, model=None, prompt="a cat"):
    return main(["grid", prompt, *map(str, arguments), *(["--model", model] if model else [])])


def files(folder):
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def pixels(path):
    with Image.open(path) as image:
        return np.asarray(image)


def write_lora(path):
    import torch

    from fewstep.checkpoints.lora import write_lora

    module = "down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_v"
    write_lora(path, {module: (torch.linspace(-9, 9, 64).reshape(2, 32), torch.eye(32, 2))}, alpha=2)


def test_a_cell_equals_generate(here, model, capsys):
    write_lora(here / "ink.safetensors")
    Image.effect_noise((64, 64), 60).convert("RGB").save("in.png")
    common = ["--seed", 5, "--negative-prompt", "dog", "--image", "in.png", "--lora", "ink.safetensors"]
    axes = ["--x", "steps=1,2", "--y", "sampler=LCM,Euler a Karras", "--z", "lora:ink=0.5,2"]
    assert grid(*common, *axes, "--guidance", 2, "--strength", 0.7, "-o", "g", model=model) == 0
    own = ["--steps", 2, "--sampler", "Euler a Karras", "--lora", "ink.safetensors:2", "-o", "alone.png"]
    own += ["--guidance", 2, "--strength", 0.7, "--model", model]
    assert main(["generate", "a cat", *map(str, [*common[:-2], *own])]) == 0
    cell = "g/pictures/008-2-euler-a-karras-2.png"
    assert np.array_equal(pixels(cell), pixels("alone.png"))
    assert read(cell) == read("alone.png")
    assert not np.array_equal(pixels(cell), pixels("g/pictures/004-2-euler-a-karras-0.5.png"))
    assert capsys.readouterr().out.splitlines()[:3] == ["g/grid.png", "g/index.html", "g/cells.csv"]


def test_the_same_command_goes_on_and_json_tells_everything(here, model, loads, capsys):
    command = ["--x", "steps=1,60", "--y", "guidance=1,2", "--sampler", "lcm", "--json"]
    assert grid(*command, model=model) == 0
    first = json.loads(capsys.readouterr().out)
    assert first["folder"] == "grid-a-cat"
    assert [bool(cell["file"]) for cell in first["cells"]] == [True, False, True, False]
    assert "60 steps are more" in first["cells"][1]["refusal"]
    assert first["cells"][2]["axes"] == {"steps": "1", "guidance": "2"}
    assert len(loads) == 1
    (here / first["cells"][2]["file"]).unlink()
    kept = (here / first["cells"][0]["file"]).stat().st_mtime_ns
    assert grid(*command, model=model) == 0
    second = json.loads(capsys.readouterr().out)
    assert second["seed"] == first["seed"]
    assert [cell["parameters"] for cell in second["cells"]] == [cell["parameters"] for cell in first["cells"]]
    assert (here / first["cells"][0]["file"]).stat().st_mtime_ns == kept
    assert grid(*command, "--clip-skip", 2, model=model) == 0
    assert json.loads(capsys.readouterr().out)["folder"] == "grid-a-cat-2"
    with (here / "grid-a-cat" / "cells.csv").open(encoding="utf-8", newline="") as stream:
        assert [row["seed"] for row in csv.DictReader(stream)] == [str(first["seed"]), "", str(first["seed"]), ""]


def test_ctrl_c_writes_what_there_is(here, model, loads, capsys, monkeypatch):
    from fewstep.pipeline import Pipeline

    real, runs = Pipeline.run, []

    def run(pipe, plan):
        runs.append(plan)
        if len(runs) == 3:
            raise KeyboardInterrupt
        return real(pipe, plan)

    monkeypatch.setattr(Pipeline, "run", run)
    command = ["--x", "seed=1-4", "--steps", 1, "-o", "g"]
    assert grid(*command, model=model) == 130
    said = capsys.readouterr().err
    assert "2 of 4 pictures are in 'g'" in said
    assert files(here / "g")[:3] == ["cells.csv", "grid.json", "grid.png"]
    assert len(files(here / "g" / "pictures")) == 2
    assert grid(*command, model=model) == 0
    assert "2 of 4 pictures are there already" in capsys.readouterr().out
    assert len(files(here / "g" / "pictures")) == 4
    assert len(runs) == 5


def test_checkpoints_are_loaded_once_each(here, model, loads, capsys):
    tiny_folder("lcm", into=here / "other")
    axes = ["--x", f"model={model},other", "--y", "prompt-sr=cat,dog", "--z", "steps=1,2"]
    assert grid(*axes, "--seed", 1, "-o", "g", "--sampler", "lcm") == 0
    assert loads == [model, "other"]
    assert len(files(here / "g" / "pictures")) == 8
    info = parse(read("g/grid.png"))
    assert info.settings["X Type"] == "Checkpoint name"
    assert "Model hash" not in parse(read("g/grid.png")).settings.get("Y Values", "")
    assert "note: " not in capsys.readouterr().err


def test_settings_of_a_picture_are_a_beginning(here, model, loads):
    arguments = ["--steps", "2", "--seed", "4", "--sampler", "ddim", "-o", "a.png", "--model", model]
    assert main(["generate", "a dog", *arguments]) == 0
    assert main(["grid", "--from", "a.png", "--x", "steps=1,2", "-o", "g", "--model", model]) == 0
    assert np.array_equal(pixels("g/pictures/002-2.png"), pixels("a.png"))


BAD = [
    ([], "No axis"),
    (["--x", "steps"], "no axis"),
    (["--x", "stepz=1"], "Did you mean steps"),
    (["--x", "steps="], "no values"),
    (["--x", "steps=0-3"], "from 1 to 1000"),
    (["--x", "steps=1-5 (-1)"], "never arrives"),
    (["--x", "steps=1.5"], "not whole"),
    (["--x", "steps=1-1000"], "--most 1000"),
    (["--x", "seed=0-4294967295"], "are allowed"),
    (["--x", "steps=1-9", "--most", "8"], "9 pictures"),
    (["--x", "sampler=Eulr"], "Did you mean Euler"),
    (["--x", "schedule=karas"], "Did you mean Karras"),
    (["--x", "rng=gpu"], "cpu, nv"),
    (["--x", "guidance=nan"], "no number"),
    (["--x", "size=100x100"], "multiples of 8"),
    (["--x", 'prompt="a'], "not closed"),
    (["--x", "prompt-sr=dog,fox"], "no 'dog'"),
    (["--x", "prompt-order=cat"], "one order"),
    (["--x", "strength=0.5,1"], "without an image"),
    (["--x", "steps=1", "--y", "steps=2"], "two axes"),
    (["--x", "lora:ink=1"], "no LoRA 'ink'"),
    (["--x", "lora=none,gone.safetensors"], "no LoRA 'gone.safetensors'"),
    (["--x", "model=pictogram,gone"], "'gone'"),
    (["--x", "vae=gone.safetensors"], "gone.safetensors"),
    (["--x", "image=gone.png"], "does not exist"),
    (["--x", "steps=1", "--image", "gone.png"], "does not exist"),
    (["--x", "steps=1", "--seed", "-1"], "seed is -1"),
    (["--x", "steps=1", "--count", "3"], "Unrecognized"),
    (["--x", "steps=1", "-o", "full"], "something else"),
    (["--x", "steps=1", "-o", "gone/g"], "does not exist"),
    (["--x", "steps=1", "-o", "full/file.txt"], "not a folder"),
    (["--x", "steps=1", "--lora", "a", "--no-lora"], "both given"),
    (["--x", "steps=1", "--from", "gone.png"], "does not exist"),
    (["--x", "steps=1", "--most", "few"], "invalid int"),
    (["--x", "steps=60,70", "--sampler", "lcm"], "Not one picture"),
]


@pytest.mark.parametrize(("arguments", "said"), BAD, ids=lambda value: " ".join(value) if type(value) is list else "")
def test_what_is_refused_is_one_sentence_and_writes_nothing(here, model, loads, capsys, arguments, said):
    (here / "full").mkdir()
    (here / "full" / "file.txt").write_text("mine")
    own = None if any(word.startswith("model=") for word in arguments) else model
    assert grid(*arguments, *([] if "-o" in arguments else ["-o", "g"]), model=own) == 2
    output = capsys.readouterr()
    assert output.err.splitlines()[-1].startswith("fewstep: error: ")
    assert said in output.err
    assert output.err.count("error") == 1
    assert files(here) == ["full/file.txt"]
    assert not (here / "g").exists()


def test_no_prompt(capsys):
    assert main(["grid", "--x", "steps=1,2"]) == 2
    assert "No prompt" in capsys.readouterr().err


@pytest.mark.embedded
def test_the_embedded_model_and_the_weight_of_its_own_lora(here, capsys):
    assert grid("--x", "lora:lcm-lora=0,1", "--steps", 1, "--seed", 7, "-o", "g", "-q", prompt="a red apple, 3d") == 0
    assert main(["generate", "a red apple, 3d", "--steps", "1", "--seed", "7", "-o", "a.png", "-q"]) == 0
    assert np.array_equal(pixels("g/pictures/002-1.png"), pixels("a.png"))
    assert not np.array_equal(pixels("g/pictures/001-0.png"), pixels("a.png"))
    assert capsys.readouterr().out == ""


def test_prompts_as_an_axis_need_no_other(here, model, loads):
    arguments = ["--x", 'prompt=a cat,"a dog, asleep"', "--steps", "1", "--sampler", "lcm", "-o", "g", "-q"]
    assert main(["grid", *arguments, "--model", model]) == 0
    assert [parse(read(path) or "").prompt for path in sorted((here / "g" / "pictures").iterdir())] == [
        *("a cat", "a dog, asleep")
    ]


def test_the_help_names_the_usual_numbers(capsys):
    from fewstep.grid.cells import MOST_CELLS
    from fewstep.grid.variants import COUNT

    for command, number in (("grid", MOST_CELLS), ("variants", COUNT)):
        assert main([command, "--help"]) == 0
        assert f"[{number}]" in capsys.readouterr().out
