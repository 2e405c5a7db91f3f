"""`fewstep variants` and `fewstep refine`, run inside this process: many, then better ones of those that are liked."""

import json

import numpy as np
import pytest
from PIL import Image

from fewstep.cli.main import main
from fewstep.grid.variants import Variants
from fewstep.infotext import parse, read
from tests.cli.test_cli_grid import loads
from tests.tiny import tiny_folder

__all__ = ["loads"]


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch, loads):
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="module")
def model():
    return str(tiny_folder("sd15"))


@pytest.fixture(scope="module")
def painted(model, tmp_path_factory):
    """A folder with four variants; to be copied, not written to."""
    path = tmp_path_factory.mktemp("variants") / "v"
    arguments = ["--count", 4, "--steps", 1, "--seed", 10, "--sampler", "lcm", "-q", "-o", path, "--model", model]
    assert main(["variants", "a cat", *map(str, arguments)]) == 0
    return path


@pytest.fixture
def four(painted, here):
    import shutil

    return shutil.copytree(painted, here / "v")


def refine(*arguments):
    return main(["refine", *map(str, arguments)])


def pixels(path):
    with Image.open(path) as image:
        return np.asarray(image)


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_variants_are_numbered_and_each_is_what_generate_paints(four, model):
    assert names(four) == ["1.png", "2.png", "3.png", "4.png", "sheet.png", "variants.json"]
    how = ["--steps", "1", "--seed", "12", "--sampler", "lcm", "--model", model]
    assert main(["generate", "a cat", *how, "-o", "alone.png"]) == 0
    assert np.array_equal(pixels("alone.png"), pixels("v/3.png"))
    assert read("alone.png") == read("v/3.png")
    assert "Version" in parse(read("v/sheet.png")).settings


def test_a_refined_one_is_image_to_image_with_its_own_seed(four, model, capsys):
    assert refine("3,1", "--steps", 2, "--strength", 0.4) == 0
    assert capsys.readouterr().out.splitlines() == ["v/3-refined.png", "v/1-refined.png", "v/refined.png"]
    how = ["--steps", "2", "--strength", "0.4", "--seed", "12", "--sampler", "lcm", "--image", "v/3.png"]
    assert main(["generate", "a cat", *how, "--model", model, "-o", "alone.png"]) == 0
    assert np.array_equal(pixels("alone.png"), pixels("v/3-refined.png"))
    settings = parse(read("v/3-refined.png")).settings
    assert [settings[key] for key in ("Steps", "Seed", "Denoising strength")] == ["2", "12", "0.4"]


def test_refining_again_and_again_overwrites_nothing(four, capsys):
    assert refine("2", "--strength", 0.4, "-q") == 0
    first = pixels("v/2-refined.png")
    assert refine("2", "--strength", 0.5, "-q") == 0
    assert refine("2-refined", "--strength", 0.4, "-q") == 0
    (four / "4-refined.png").write_bytes(b"mine")
    assert refine("4", "--strength", 0.4, "-q") == 0
    made = {"2-refined.png", "2-refined-2.png", "2-refined-refined.png", "4-refined-2.png"}
    sheets = {"refined.png", "refined-2.png", "refined-3.png", "refined-4.png"}
    assert set(names(four)) >= made | sheets
    assert np.array_equal(pixels("v/2-refined.png"), first)
    assert (four / "4-refined.png").read_bytes() == b"mine"
    assert Variants.open(four).pictures["2-refined-refined"]["seed"] == 11
    assert capsys.readouterr().out == ""


def test_every_option_may_be_another(four, capsys):
    more = ["--prompt", "a dog", "--width", 96, "--height", 128, "--seed", 1, "--sampler", "ddim", "--json"]
    assert refine("2-4", "--from", four, "--steps", 1, *more) == 0
    document = json.loads(capsys.readouterr().out)
    assert [picture["name"] for picture in document["pictures"]] == ["2-refined", "3-refined", "4-refined"]
    assert document["pictures"][0]["settings"]["prompt"] == "a dog"
    info = parse(document["parameters"][0])
    assert (info.prompt, info.settings["Size"], info.settings["Sampler"]) == ("a dog", "96x128", "DDIM")
    with Image.open(document["sheet"]) as sheet:
        assert sheet.height > 3 * 128


def test_the_newest_variants_are_taken_and_names_are_found(here, model):
    import os

    how = ["--count", "1", "--steps", "1", "--sampler", "lcm", "--model", model, "-q"]
    for _ in range(2):
        assert main(["variants", "a cat", *how]) == 0
    assert names(here) == ["variants-a-cat", "variants-a-cat-2"]
    os.utime(here / "variants-a-cat" / "variants.json")
    assert refine("1", "--steps", 1, "-q") == 0
    assert "1-refined.png" in names(here / "variants-a-cat")
    os.utime(here / "variants-a-cat-2" / "variants.json")
    assert refine("1", "--steps", 1, "-q") == 0
    assert "1-refined.png" in names(here / "variants-a-cat-2")


def test_model_and_loras_are_remembered_from_another_folder(here, model, monkeypatch):
    from tests.cli.test_cli_grid import write_lora

    write_lora(here / "ink.safetensors")
    how = ["--count", "1", "--steps", "1", "--sampler", "lcm", "--model", model, "--lora", "ink.safetensors:0.5"]
    assert main(["variants", "a cat", *how, "-o", "v", "-q"]) == 0
    (here / "elsewhere").mkdir()
    monkeypatch.chdir(here / "elsewhere")
    assert refine("1", "--from", here / "v", "-q") == 0
    assert parse(read(here / "v" / "1-refined.png")).settings["Loras"] == "ink: 0.5"
    assert refine("1", "--from", here / "v", "--model", model, "-q") == 0
    assert "Loras" not in parse(read(here / "v" / "1-refined-2.png")).settings


@pytest.mark.parametrize(
    ("text", "chosen"),
    [("3", ["3"]), ("1,3", ["1", "3"]), ("2-4", ["2", "3", "4"]), ("3-2, 1,3", ["3", "2", "1"]), ("4,,1", ["4", "1"])],
)
def test_choosing(four, text, chosen):
    assert Variants.open(four).chosen(text) == chosen


BAD = [
    ([], "No picture was chosen"),
    (["9"], "no picture '9'"),
    (["0"], "no picture '0'"),
    (["1,x"], "no picture 'x'"),
    (["3-9"], "no picture '3-9'"),
    (["3-6"], "no picture '5'"),
    (["1-999999999"], "no picture '1-999999999'"),
    ([""], "no picture"),
    ([","], "no picture"),
    (["../v/1"], "no picture '../v/1'"),
    (["1", "--from", "gone"], "holds no variants"),
    (["1", "--from", "damaged"], "is damaged"),
    (["4", "--from", "halved"], "is gone"),
    (["1", "--steps", "0"], "steps is 0"),
    (["1", "--strength", "0"], "above 0"),
    (["1", "--strength", "0.01", "--steps", "9"], "9 steps at strength"),
    (["1", "--sampler", "best"], "no sampler 'best'"),
    (["1", "--mask", "gone.png"], "does not exist"),
    (["1", "--lora", "gone"], "no LoRA 'gone'"),
    (["1", "--model", "gone"], "'gone'"),
    (["1", "--image", "v/2.png"], "Unrecognized"),
    (["1", "--width", "100"], "multiples of 8"),
]


@pytest.mark.parametrize(("arguments", "said"), BAD, ids=lambda value: " ".join(value) if type(value) is list else "")
def test_what_is_refused_is_one_sentence_and_writes_nothing(here, four, capsys, arguments, said):
    import shutil

    shutil.copytree(four, here / "halved")
    (here / "halved" / "4.png").unlink()
    (here / "damaged").mkdir()
    (here / "damaged" / "variants.json").write_text('{"load": {"lora": 3}, "pictures": []}')
    before = {path: path.read_bytes() for path in here.rglob("*.*") if path.is_file()}
    assert refine(*arguments, *([] if "--from" in arguments else ["--from", "v"])) == 2
    output = capsys.readouterr()
    assert output.out == ""
    assert output.err.count("\n") == 1
    assert said in output.err
    assert {path: path.read_bytes() for path in here.rglob("*.*") if path.is_file()} == before


def test_no_variants_here(capsys):
    assert refine("1") == 2
    assert "no variants here" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["a cat", "-o", "full"], "something else"),
        (["a cat", "-o", "gone/v"], "does not exist"),
        (["a cat", "--count", "65"], "count is 65"),
        (["-o", "v"], "No prompt"),
    ],
)
def test_variants_that_are_refused(here, model, capsys, arguments, said):
    (here / "full").mkdir()
    (here / "full" / "mine.txt").write_text("mine")
    assert main(["variants", *arguments, "--model", model]) == 2
    assert said in capsys.readouterr().err
    assert names(here) == ["full"]


@pytest.mark.embedded
def test_with_the_embedded_model(here, capsys):
    assert main(["variants", "a red apple, 3d", "--count", "2", "--steps", "1", "--seed", "7"]) == 0
    assert "refine some with: fewstep refine 1,2 --from variants-a-red-apple-3d" in capsys.readouterr().out
    assert refine("1-2", "--steps", 2, "--strength", 0.4) == 0
    assert parse(read("variants-a-red-apple-3d/2-refined.png")).settings["Loras"] == "lcm-lora: 1"
