"""The command from a recipe and a folder of pictures to a LoRA, its interruption, and its refusals."""

import argparse
import json
import os
import signal
import sys

import pytest
from PIL import Image

from fewstep.cli import distill
from fewstep.cli.distill import run_folder
from fewstep.distill import finish as ending
from fewstep.distill import trainer
from fewstep.errors import RecipeError
from tests.distill.conftest import LORA
from tests.marks import slow
from tests.tiny import tiny_folder


@pytest.fixture
def command(tmp_path):
    for number, colour in enumerate(("red", "green", "blue")):
        Image.new("RGB", (64, 64), colour).save(tmp_path / f"{number}.png")
        (tmp_path / f"{number}.txt").write_text("a cat")
    recipe = tmp_path / "recipe.toml"
    recipe.write_text("".join(f"{key} = {json.dumps(value)}\n" for key, value in LORA.items()))

    def run(*more):
        parser = argparse.ArgumentParser()
        distill.register(parser.add_subparsers())
        words = [
            recipe,
            "--data",
            tmp_path,
            "-o",
            tmp_path / "lcm.safetensors",
            "--model",
            tiny_folder("pictogram"),
            "--device",
            "cpu",
        ]
        arguments = parser.parse_args(["distill", *map(str, words), *more])
        return arguments.run(arguments)

    return run


def test_from_pictures_to_a_lora(command, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(ending, "distance", lambda run, who, steps: {"student": 1.0, "guided": 2.0, "plain": 3.0}[who])
    assert command("--set", "steps=2", "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert found["steps"] == 2 and (tmp_path / "lcm.safetensors").is_file()


@pytest.mark.parametrize("number", [signal.SIGTERM, *slow(signal.SIGINT)])
def test_a_signal_keeps_what_is_learnt_and_resume_goes_on(command, tmp_path, capsys, monkeypatch, number):
    take_step = trainer.take_step

    def interrupted(run):
        report = take_step(run)
        if run.step == 2:
            os.kill(os.getpid(), number)
        return report

    monkeypatch.setattr(trainer, "take_step", interrupted)
    monkeypatch.setattr(sys, "argv", ["/opt/bin/fewstep", "distill", "my recipe.toml", "--set", "steps=3"])
    assert command("--set", "steps=3") == 130
    assert "fewstep distill 'my recipe.toml' --set steps=3 --resume\n" in capsys.readouterr().err
    monkeypatch.setattr(trainer, "take_step", take_step)
    monkeypatch.setattr(ending, "distance", lambda run, who, steps: {"student": 1.0, "guided": 2.0, "plain": 3.0}[who])
    assert command("--set", "steps=3", "--resume") == 0
    rows = (run_folder(tmp_path / "lcm.safetensors") / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(row)["step"] for row in rows] == [1, 2, 3]


def test_an_early_stop_is_said_and_the_best_is_shipped(command, tmp_path, capsys, monkeypatch):
    def look(run):
        return {"step": run.step, "distance": {"student": {"2": 1.0 + run.step}}}

    monkeypatch.setattr(trainer, "look", look)
    monkeypatch.setattr(ending, "distance", lambda run, who, steps: {"student": 1.0, "guided": 2.0, "plain": 3.0}[who])
    keep = ["--set", "look_every=1", "--set", "keep_best=distance:2", "--set", "patience=1"]
    assert command(*keep) == 0
    said = capsys.readouterr()
    assert "No better distance:2 in 1 looks: ended after step 2" in said.err
    assert "after step 1 of 2, the best by distance:2" in said.out


def test_a_wrong_override_is_said_before_anything_is_loaded(command):
    with pytest.raises(RecipeError, match="Did you mean 'steps'"):
        command("--set", "step=2")
