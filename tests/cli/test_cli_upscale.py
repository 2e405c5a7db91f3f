"""The command `fewstep upscale`, and the second pass of `generate`: what they write, and everything they refuse."""

import json

import numpy as np
import pytest
from PIL import Image

from fewstep.cli.main import main
from fewstep.infotext import Infotext, Picture, parse, read, write
from tests.tiny import tiny_folder


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    settings = {"Steps": "4", "Sampler": "LCM", "Seed": "7", "Size": "64x72"}
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (72, 64, 3), np.uint8))
    Picture.of(noise, write(Infotext("a cat", "dog", settings))).save("in.png")
    return tmp_path


@pytest.fixture(scope="module")
def model():
    return str(tiny_folder("sd15"))


def fewstep(*arguments):
    return main([str(argument) for argument in arguments])


def test_a_picture_is_enlarged_and_keeps_its_settings(here, capsys):
    assert fewstep("upscale", "in.png", "-o", "out.png", "--scale", 1.5) == 0
    assert capsys.readouterr().out.startswith("out.png  96x108  ")
    with Image.open("out.png") as large, Image.open("in.png") as small:
        assert large.tobytes() == small.resize((96, 108), Image.Resampling.LANCZOS).tobytes()
    info = parse(read("out.png"))
    assert (info.prompt, info.negative_prompt, info.settings["Seed"]) == ("a cat", "dog", "7")
    assert info.settings.items() >= {"Postprocess upscale by": "1.5", "Postprocess upscaler": "Lanczos"}.items()
    Image.new("L", (9, 5)).save("grey.png")
    assert fewstep("upscale", "grey.png", "-o", "grey.webp", "--upscaler", "nearest", "-q") == 0
    assert capsys.readouterr().out == ""
    with Image.open("grey.webp") as large:
        assert large.size == (18, 10)


def test_a_picture_is_painted_anew_by_its_own_prompt(here, model, capsys):
    how = ("--strength", 0.3, "--steps", 1, "--seed", 3, "--model", model, "--tile", 96, "--guidance", 1)
    assert fewstep("upscale", "in.png", "-o", "out.png", *how) == 0
    info = parse(read("out.png"))
    assert info.prompt == "a cat"
    found = {key: info.settings[key] for key in ("Size", "Denoising strength", "Seed", "Tile")}
    assert found == {"Size": "128x144", "Denoising strength": "0.3", "Seed": "3", "Tile": "96"}
    assert "no effect at guidance 1" in capsys.readouterr().err
    assert fewstep("upscale", "in.png", "-o", "two.png", *how, "--prompt", "a dog", "--scale", 1) == 0
    assert parse(read("two.png")).prompt == "a dog"


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["in.png", "-o", "out.png", "--scale", "0"], "--scale is 0, but it must be from 1 to 16"),
        (["in.png", "-o", "out.png", "--scale", "nan"], "--scale is nan"),
        (["in.png", "-o", "in.png"], "is an input of this picture"),
        (["in.png", "-o", "taken.png"], "is there already"),
        (["in.png", "-o", "out.gif"], "ends in '.gif'"),
        (["absent.png", "-o", "out.png"], "does not exist"),
        (["in.png", "-o", "out.png", "--upscaler", "best"], "no upscaler 'best'"),
        (["in.png", "-o", "out.png", "--upscaler", "Latent"], "works among latents"),
        (["in.png", "-o", "out.png", "--upscaler", "x4.pth"], "'x4.pth' does not exist"),
        (["in.png", "-o", "out.png", "--steps", "4"], "--steps was given, but nothing is painted. Add --strength"),
        (["in.png", "-o", "out.png", "--strength", "2"], "strength is 2.0"),
        (["wide.png", "-o", "out.png", "--scale", "16"], "more than 8192 on a side"),
    ],
)
def test_mistakes(here, arguments, reason, capsys):
    Image.new("RGB", (600, 8)).save("wide.png")
    Image.new("RGB", (8, 8)).save("taken.png")
    before = (here / "taken.png").read_bytes(), (here / "in.png").read_bytes()
    assert fewstep("upscale", *arguments) == 2
    error = capsys.readouterr().err
    assert reason in error
    assert error.count("\n") == 1
    assert ((here / "taken.png").read_bytes(), (here / "in.png").read_bytes()) == before
    assert not (here / "out.png").exists()


# ---- generate


HOW = ("--steps", 1, "--seed", 3, "--sampler", "lcm", "--guidance", 1, "--hires-scale", 1.5, "--hires-strength", 0.5)


def test_a_second_model_and_its_return(here, model, capsys):
    tiny_folder("pictogram", into=here / "toy")
    arguments = ("generate", "a cat", "-o", "a.png", *HOW, "--hires-steps", 1, "--model", model, "--json")
    assert fewstep(*arguments, "--hires-model", "toy") == 0
    document = json.loads(capsys.readouterr().out)["settings"]
    assert (document["hires_width"], document["hires_steps"], document["hires_upscaler"]) == (96, 1, "Lanczos")
    assert parse(read("a.png")).settings["Hires checkpoint"].startswith("toy [")
    assert fewstep("generate", "--from", "a.png", "-o", "b.png", "--model", model) == 0
    assert (here / "a.png").read_bytes() == (here / "b.png").read_bytes()
    (here / "toy").rename(here / "gone")
    assert fewstep("generate", "--from", "a.png", "-o", "c.png", "--model", model) == 2
    assert "was painted by 'toy [" in capsys.readouterr().err


def test_the_same_model_without_the_lora(here, model, capsys):
    import torch

    from fewstep.checkpoints.lora import write_lora

    module = "down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_v"
    write_lora(here / "ink.safetensors", {module: (9 * torch.eye(2, 32), 9 * torch.eye(32, 2))}, alpha=2)
    arguments = ("generate", "a cat", *HOW, "--hires-steps", 1, "--model", model, "--lora", "ink.safetensors")
    assert fewstep(*arguments, "-o", "a.png", "--hires-model", model) == 0
    settings = parse(read("a.png")).settings
    assert (settings["Loras"], settings["Hires loras"]) == ("ink: 1", "none")
    assert "Hires checkpoint" not in settings
    assert fewstep(*arguments, "-o", "b.png") == 0
    assert "Hires loras" not in parse(read("b.png")).settings
    assert fewstep("generate", "--from", "a.png", "-o", "c.png", "--model", model) == 0
    assert (here / "a.png").read_bytes() == (here / "c.png").read_bytes()
    with Image.open("a.png") as without, Image.open("b.png") as with_lora:
        assert without.tobytes() != with_lora.tobytes()
    assert fewstep("generate", "a", "--hires-model", model, "-o", "d.png", "--model", model) == 2
    assert "none is asked for. Add --hires-scale 2" in capsys.readouterr().err
