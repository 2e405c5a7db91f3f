"""The command line around the commands: help, version, `info`."""

import json
import subprocess
import sys

import pytest
from PIL import Image

import fewstep
from fewstep.cli.main import main, parser
from fewstep.infotext import Infotext, Picture, write
from fewstep.request import SPECS
from tests.tiny import tiny_folder


@pytest.mark.parametrize("arguments", [["--help"], ["--version"], ["generate", "--help"], ["info", "--help"]])
def test_help_and_version(arguments, capsys):
    assert main(arguments) == 0
    assert "fewstep" in capsys.readouterr().out


def test_the_help_is_made_from_the_request(capsys):
    main(["generate", "--help"])
    shown = " ".join(capsys.readouterr().out.split())
    for name, spec in SPECS.items():
        assert spec.help in shown
        assert name == "prompt" or f"--{name.replace('_', '-')}" in shown


@pytest.mark.parametrize("arguments", [[], ["paint"], ["generate", "a", "--step", "4"], ["info", "a", "b"]])
def test_wrong_commands(arguments, capsys):
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert error.startswith("fewstep: error: ")
    assert error.count("\n") == 1


def test_every_command_has_a_run():
    for command in ("generate", "info"):
        assert callable(parser().parse_args([command]).run)


def test_help_needs_no_torch():
    heavy = "len({'torch', 'numpy', 'rich', 'PIL'} & set(sys.modules))"
    code = f"import sys; from fewstep.cli.main import main; main(['--version']); sys.exit({heavy})"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (found.returncode, found.stdout.strip()) == (0, f"fewstep {fewstep.__version__}")


def test_info_on_a_model(capsys):
    assert main(["info", str(tiny_folder("sdxl")), "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert (facts["kind"], facts["family"], facts["dtype"]) == ("model", "SDXL", "F32")
    assert facts["parameters"]["all"] == sum(facts["parameters"][part] for part in ("unet", "vae", "text"))
    assert facts["sampling"]["sampler"] == "dpmpp_2m"


def test_info_on_a_lora(tmp_path, capsys):
    import torch

    from fewstep.checkpoints.lora import write_lora

    module = "down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k"
    write_lora(tmp_path / "ink.safetensors", {module: (torch.ones(2, 32), torch.ones(32, 2))}, alpha=1)
    assert main(["info", str(tmp_path / "ink.safetensors"), "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert (facts["kind"], facts["unet_modules"], facts["ranks"], facts["alphas"]) == ("LoRA", 1, [2], [1.0])
    assert (facts["cross_attention"], facts["parameters"], facts["sampling"]) == (32, 128, None)
    assert main(["info", str(tmp_path / "ink.safetensors")]) == 0
    assert "unet modules" in capsys.readouterr().out


def test_info_on_pictures(tmp_path, capsys):
    text = write(Infotext("a cat", "", {"Steps": "4", "Seed": "0", "Size": "8x8"}))
    Picture.of(Image.new("RGB", (8, 8)), text).save(tmp_path / "a.png")
    Image.new("RGB", (8, 8)).save(tmp_path / "b.png")
    assert main(["info", str(tmp_path / "a.png"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["settings"]["Steps"] == "4"
    assert main(["info", str(tmp_path / "b.png")]) == 0
    assert "settings  -" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["none", "none.png", "none.safetensors", "text.txt", "text.png", "text.safetensors"])
def test_info_on_what_it_is_not(tmp_path, capsys, name):
    if name.startswith("text"):
        (tmp_path / name).write_text("this is text")
    assert main(["info", str(tmp_path / name)]) == 2
    assert capsys.readouterr().err.count("\n") == 1
