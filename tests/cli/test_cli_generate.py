"""The command `fewstep generate`, run inside this process: what it writes, and everything that it refuses."""

import json
import os
import shutil

import pytest
from PIL import Image

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


def generate(*arguments, model=None):
    return main(["generate", *map(str, arguments), *(["--model", model] if model else [])])


def files(folder):
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def test_count_numbers_the_files_and_from_makes_one_again(here, model, capsys):
    assert generate("a cat", "-o", "b.png", "--count", 2, "--steps", 2, "--seed", 6, model=model) == 0
    assert files(here) == ["b-1.png", "b-2.png"]
    assert capsys.readouterr().out.splitlines() == ["b-1.png  seed 6", "b-2.png  seed 7"]
    assert generate("--from", "b-2.png", "-o", "again.png", "--json", model=model) == 0
    assert (here / "again.png").read_bytes() == (here / "b-2.png").read_bytes()
    document = json.loads(capsys.readouterr().out)
    assert document["files"] == ["again.png"]
    assert (document["seed"], document["settings"]["steps"]) == (7, 2)
    assert document["parameters"] == [read(here / "b-2.png")]
    assert set(document["timings"]) == {"load_s", "generate_s"}


def test_from_finds_model_and_loras_by_their_names(here, capsys):
    import torch

    from fewstep.checkpoints.lora import write_lora

    tiny_folder("sd15", into=here / "toy")
    module = "down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_v"
    write_lora(here / "toy" / "ink.safetensors", {module: (torch.eye(2, 32), torch.eye(32, 2))}, alpha=2)
    assert generate("a cat", "-o", "a.png", "--steps", 1, "--lora", "ink:0.5", model="toy") == 0
    assert parse(read("a.png") or "").settings["Loras"] == "ink: 0.5"
    assert generate("--from", "a.png", "-o", "b.png") == 0
    assert (here / "a.png").read_bytes() == (here / "b.png").read_bytes()
    capsys.readouterr()
    assert generate("--from", "a.png", "-o", "b.png", "--no-lora") == 0
    assert "had another set of LoRAs" in capsys.readouterr().err
    shutil.rmtree(here / "toy")
    assert generate("--from", "a.png", "-o", "c.png") == 2
    assert "made with the model 'toy'" in capsys.readouterr().err


def test_explicit_flags_win_over_the_picture(here, model, capsys):
    assert generate("a cat", "-o", "a.png", "--steps", 2, "--seed", 6, "--sampler", "lcm", model=model) == 0
    assert generate("a dog", "--from", "a.png", "-o", "b.jpg", "--seed", 0, "--sampler", "ddim", model=model) == 0
    info = parse(read(here / "b.jpg") or "")
    assert info.prompt == "a dog"
    assert info.settings["Steps"] == "2"
    assert [info.settings[key] for key in ("Seed", "Sampler", "Timestep table")] == ["0", "DDIM", "trailing"]


def test_grid_and_previews(here, model, capsys):
    arguments = ("a cat", "-o", "g.png", "--count", 3, "--grid", "--steps", 2, "--seed", 1, "--preview", "steps", "-q")
    assert generate(*arguments, model=model) == 0
    assert capsys.readouterr().out == ""
    with Image.open("g.png") as sheet:
        assert sheet.width > 128
    assert len(files(here / "steps")) == 6
    assert "g-3-step-02.png" in files(here / "steps")


def test_image_and_mask_and_their_return(here, model, capsys):
    Image.effect_noise((64, 64), 60).convert("RGB").save("in.png")
    Image.new("L", (64, 64), 255).save("mask.png")
    common = ("--image", "in.png", "--mask", "mask.png")
    assert generate("a cat", *common, "-o", "a.webp", "--steps", 1, "--strength", 0.4, model=model) == 0
    assert generate("--from", "a.webp", "-o", "b.png", model=model) == 2
    assert "Give --image again" in capsys.readouterr().err
    assert generate("--from", "a.webp", *common, "-o", "b.png", model=model) == 0
    assert read("b.png") == read("a.webp")
    Image.new("RGB", (64, 64)).save("in.png")
    assert generate("--from", "a.webp", *common, "-o", "b.png", model=model) == 0
    assert "had another start picture" in capsys.readouterr().err


def test_without_a_name_the_prompt_gives_it(here, model, capsys):
    for _ in range(2):
        assert generate("A cat: on the moon!", "--steps", 1, "--seed", 0, model=model) == 0
    assert files(here) == ["a-cat-on-the-moon-0-again-2.png", "a-cat-on-the-moon-0.png"]
    assert generate("", "--steps", 1, "--seed", 0, model=model) == 0
    assert "picture-0.png" in files(here)


def test_lengths_of_prompts_are_shown_and_idle_negatives_noted(here, model, capsys):
    arguments = ("cat " * 80, "--negative-prompt", "dog", "-o", "a.png", "--steps", 1)
    assert generate(*arguments, "--guidance", 1, model=model) == 0
    assert capsys.readouterr().err.count("fewstep: note: ") == 1
    assert generate(*arguments, "--guidance", 2, "-v", model=model) == 0
    notes = capsys.readouterr().err
    assert "note: prompt: 80 tokens of 150" in notes and "negative prompt: 1 tokens of 75" in notes
    assert generate(*arguments, "--guidance", 2, "--json", model=model) == 0
    assert json.loads(capsys.readouterr().out)["tokens"]["prompt"] == {"tokens": 80, "chunks": 2}


def test_templates_give_each_picture_its_own_prompt(here, model, capsys):
    from fewstep.wildcards import expanded

    (here / "words").mkdir()
    (here / "words" / "pet.txt").write_text("cat\ndog\nmoon\n")
    template = "a {red|apple} __pet__"
    arguments = (template, "--wildcards", here / "words", "--count", 3, "--seed", 5, "--steps", 1, "--json")
    assert generate(*arguments, "-o", "a.png", "--preview", here / "seen", model=model) == 0
    document = json.loads(capsys.readouterr().out)
    wanted = [expanded(template, seed, folder=here / "words") for seed in (5, 6, 7)]
    assert document["prompts"] == wanted and document["seeds"] == [5, 6, 7]
    assert len(set(wanted)) > 1 and len(list((here / "seen").iterdir())) == 3
    info = parse(document["parameters"][1])
    assert (info.prompt, info.settings["Template"]) == (wanted[1], template)
    assert generate(wanted[1], "--seed", 6, "--steps", 1, "-o", "b.png", model=model) == 0
    with Image.open("a-2.png") as one, Image.open("b.png") as other:
        assert one.tobytes() == other.tobytes()


# ---- what is refused


def broken(here, name):
    """Files and folders that something is wrong with, made on demand."""
    path = here / "bad" / name
    path.parent.mkdir(exist_ok=True)
    if name.startswith("model"):
        tiny_folder("sd15", into=path)
        weights = next((path / "unet").glob("*.safetensors"))
        {
            "model-cut": lambda: weights.write_bytes(weights.read_bytes()[:5000]),
            "model-noise": lambda: weights.write_bytes(os.urandom(4000)),
            "model-nan": lambda: rewrite(weights, lambda tensor: tensor * float("nan")),
            "model-without-unet": lambda: shutil.rmtree(path / "unet"),
            "model-json": lambda: (path / "model_index.json").write_text("{"),
        }[name]()
    elif name == "wrong-family.safetensors":
        write_wrong_lora(path)
    elif name == "cut.png":
        Image.effect_noise((64, 64), 50).save(path)
        path.write_bytes(path.read_bytes()[:800])
    elif name == "plain.png":
        Image.new("RGB", (64, 64)).save(path)
    elif name == "black.png":
        Image.new("L", (64, 64)).save(path)
    else:
        path.write_text("this is text")
    return path


def rewrite(path, change):
    from safetensors.torch import load_file, save_file

    save_file({name: change(tensor) for name, tensor in load_file(path).items()}, path)


def write_wrong_lora(path):
    import torch
    from safetensors.torch import save_file

    name = "lora_unet_down_blocks_1_attentions_0_transformer_blocks_0_attn2_to_k"
    save_file({f"{name}.lora_down.weight": torch.ones(2, 2048), f"{name}.lora_up.weight": torch.ones(32, 2)}, path)


BAD = [
    (["--steps", "0"], "steps is 0"),
    (["--steps", "1001"], "from 1 to 1000"),
    (["--steps", "1000", "--sampler", "lcm"], "1000 steps are more than"),
    (["--steps", "two"], "not a whole number"),
    (["--guidance", "nan"], "guidance"),
    (["--guidance", "31"], "from 0 to 30"),
    (["--seed", "-1"], "seed is -1"),
    (["--seed", "4294967296"], "seed"),
    (["--width", "100"], "multiples of 8"),
    (["--height", "4096"], "to 2048"),
    (["--count", "0"], "count"),
    (["--count", "65"], "count"),
    (["--strength", "0.5"], "without an image"),
    (["--image", "BAD/plain.png", "--strength", "0"], "above 0"),
    (["--image", "BAD/plain.png", "--strength", ".01", "--steps", "8", "--sampler", "lcm"], "8 steps at strength"),
    (["--mask", "BAD/plain.png"], "without an image"),
    (["--image", "BAD/plain.png", "--mask", "BAD/black.png"], "black everywhere"),
    (["--image", "none.png"], "does not exist"),
    (["--image", "."], "a folder"),
    (["--image", "BAD/text.png"], "not a picture"),
    (["--image", "BAD/cut.png"], "damaged"),
    (["--sampler", "best"], "no sampler 'best'"),
    (["--timesteps", "best"], "no timestep table"),
    (["--clip-skip", "12"], "clip_skip 12"),
    (["--stepz", "4"], "Unrecognized arguments"),
    (["--out", "a.gif"], "'.gif'"),
    (["--out", "a"], "no extension"),
    (["--out", "none/a.png"], "does not exist"),
    (["--out", "BAD/text.png/a.png"], "not a folder"),
    (["--out", "folder.png"], "is a folder"),
    (["--out", "BAD/plain.png", "--image", "BAD/plain.png"], "an input of this picture"),
    (["--preview", "none/none"], "does not exist"),
    (["--preview", "BAD/text.png"], "not a folder"),
    (["--from", "none.png"], "does not exist"),
    (["--from", "BAD/plain.png"], "carries no settings"),
    (["--model", "none"], "does not exist"),
    (["--model", "BAD/text.safetensors"], "safetensors"),
    (["--model", "BAD/text.ckpt"], "pickle"),
    (["--model", "BAD/wrong-family.safetensors"], "LoRA and not a model"),
    (["--model", "BAD/model-cut"], "cut short"),
    (["--model", "BAD/model-noise"], "unet"),
    (["--model", "BAD/model-nan"], "not numbers"),
    (["--model", "BAD/model-without-unet"], "unet"),
    (["--model", "BAD/model-json"], "model_index.json"),
    (["--lora", "none"], "no LoRA 'none'"),
    (["--lora", "BAD/wrong-family.safetensors"], "SDXL"),
    (["--lora", "BAD/text.safetensors:0.5"], "text.safetensors"),
    (["--lora", "BAD/wrong-family.safetensors:nan"], "finite"),
    (["--lora", "none", "--no-lora"], "both given"),
    (["--device", "toaster"], "no device called"),
    (["--dtype", "float7"], "no number format"),
]


@pytest.mark.parametrize(("arguments", "said"), BAD, ids=lambda value: " ".join(value) if type(value) is list else "")
def test_what_is_refused_is_one_sentence_and_writes_nothing(here, model, capsys, arguments, said):
    (here / "folder.png").mkdir()
    names = {part.removeprefix("BAD/").split(":")[0] for part in arguments if part.startswith("BAD/")}
    made = {name: broken(here, name.removesuffix("/a.png")) for name in names}
    arguments = [part.replace("BAD", str(here / "bad")) for part in arguments]
    before = {path: (here / path).read_bytes() for path in files(here)}
    own = [] if "--model" in arguments else ["--model", model]
    own += [] if "--out" in arguments else ["-o", "out.png"]
    assert generate("a cat", *arguments, *own) == 2, made
    output = capsys.readouterr()
    assert output.out == ""
    assert output.err.startswith("fewstep: error: ")
    assert output.err.count("\n") == 1
    assert said in output.err
    assert {path: (here / path).read_bytes() for path in files(here)} == before
    assert not (here / "none").exists()


def test_an_unwritable_folder_is_told_before_the_model_is_loaded(here, capsys, monkeypatch):
    monkeypatch.setattr(os, "access", lambda *_: False)
    assert generate("a cat", "-o", "a.png", "--model", "none") == 2
    assert "may not be written to" in capsys.readouterr().err


def test_no_prompt(capsys):
    assert generate("-o", "a.png") == 2
    assert "No prompt" in capsys.readouterr().err


def test_a_prompt_that_is_too_long(capsys):
    assert generate("x" * 10_001, "-o", "a.png") == 2
    assert "10001 characters" in capsys.readouterr().err


# ---- what goes wrong on our side


@pytest.mark.parametrize(
    ("error", "code", "said"), [(KeyboardInterrupt(), 130, "interrupted"), (KeyError("x"), 1, "KeyError: 'x'")]
)
def test_interruptions_and_surprises(capsys, monkeypatch, error, code, said):
    def fail(*_, **__):
        raise error

    monkeypatch.setattr("fewstep.load", fail)
    assert generate("a cat", "-o", "a.png") == code
    output = capsys.readouterr().err
    assert said in output
    assert output.count("\n") == 1
    assert ("-v" in output) == (code == 1)
    assert generate("a cat", "-o", "a.png", "-v") == code
    assert ("Traceback" in capsys.readouterr().err) == (code == 1)


@pytest.mark.parametrize(
    ("name", "found"), [("pictogram", None), ("Lykon/dreamshaper-8", "Lykon/dreamshaper-8"), ("here", "here")]
)
def test_a_picture_names_its_model(tmp_path, monkeypatch, name, found):
    from fewstep.cli.recall import Recalled, recalled_model

    monkeypatch.chdir(tmp_path)
    (tmp_path / "here").mkdir()
    model = recalled_model(Recalled(tmp_path / "a.png", {}, {"Model": name}))
    assert (model if model is None else str(model)) == found
