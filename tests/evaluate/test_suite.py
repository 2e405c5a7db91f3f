"""Cells, the drawing of them and their figures, on a random miniature."""

import argparse
import json

import numpy as np
import pytest
import torch

from fewstep.checkpoints.lora import read_lora, write_lora
from fewstep.cli import evaluate as command
from fewstep.errors import RequestError
from fewstep.evaluate.cases import Case, seen_cases
from fewstep.evaluate.judge import Judge
from fewstep.evaluate.score import Seen, row, score
from fewstep.evaluate.suite import Cell, Easel, equal_cells
from fewstep.evaluate.table import markdown
from tests.evaluate.worlds import LABELS
from tests.tiny import tiny_folder, tiny_model

LCM = Cell("student", "lcm", 2, 1.0, lora=True)


@pytest.fixture(scope="module")
def model():
    """A random miniature."""
    return tiny_model("pictogram")


@pytest.fixture(scope="module")
def lora_file(tmp_path_factory):
    """A small random LoRA on one attention layer."""
    generator = torch.Generator().manual_seed(0)
    name = "down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k"
    layers = {name: (torch.randn(2, 160, generator=generator), torch.randn(32, 2, generator=generator))}
    path = tmp_path_factory.mktemp("lora") / "lcm-lora.safetensors"
    write_lora(path, layers, alpha=2.0)
    return path


def test_cells_are_at_equal_evaluations():
    cells = equal_cells((1, 2, 4), LCM, guidance=3.0)
    assert all(cell.evaluations in (1, 2, 4) for cell in cells)
    names = {(cell.name, cell.steps, cell.evaluations) for cell in cells}
    assert {
        ("teacher DDIM guided", 2, 4),
        ("teacher DDIM", 4, 4),
        ("teacher LCM guided", 1, 2),
        ("student", 4, 4),
    } <= names
    assert not [cell for cell in cells if cell.evaluations == 1 and cell.guidance != 1]
    assert len(names) == len(cells)
    assert len({cell.stem for cell in cells}) == len(cells)


def test_guidance_in_the_network_costs_nothing():
    assert Cell("a", "lcm", 4, 7.5, embedded_guidance=True).evaluations == 4


def drawn(easel, cell, batch):
    return np.concatenate(list(easel.draw(cell, batch=batch)))


@pytest.mark.parametrize("cell", [Cell("ddim", "ddim", 2, 3.0), Cell("lcm", "lcm", 2)], ids=lambda cell: cell.name)
def test_pictures_depend_on_their_seed_and_not_on_their_batch(model, cell):
    easel = Easel(model, seen_cases(LABELS, 3))
    together, alone = drawn(easel, cell, 8), drawn(easel, cell, 1)
    assert together.shape == (3, 64, 64, 3)
    assert np.abs(together.astype(int) - alone).max() <= 1
    same_seed = Easel(model, [Case("a cat", 5), Case("a cat", 5), Case("a cat", 6)])
    a, b, c = drawn(same_seed, cell, 8)
    assert np.abs(a.astype(int) - b).max() <= 1
    assert np.abs(a.astype(int) - c).mean() > 1


def test_a_lora_comes_and_goes(model, lora_file):
    easel = Easel(model, seen_cases(LABELS, 2), lora=read_lora(lora_file, family=model.family), weight=20.0)
    bare = Cell("teacher", "lcm", 2)
    before, with_lora, after = drawn(easel, bare, 2), drawn(easel, LCM, 2), drawn(easel, bare, 2)
    np.testing.assert_array_equal(before, after)
    assert (before != with_lora).any()


def test_several_easels_share_a_model(lora_file):
    """What one has merged the next takes out again, or every second row of a table would be of sums of LoRAs."""
    lora, cases = read_lora(lora_file), seen_cases(LABELS, 2)

    def pictures(model, weight):
        return drawn(Easel(model, cases, lora=lora, weight=weight), LCM, 2)

    alone = [pictures(tiny_model("pictogram"), weight) for weight in (20.0, 5.0)]
    assert (alone[0] != alone[1]).any()
    shared = tiny_model("pictogram")
    np.testing.assert_array_equal([pictures(shared, weight) for weight in (20.0, 5.0)], alone)


def test_a_lora_that_is_not_there_is_said(model):
    with pytest.raises(RequestError, match="--lora"):
        next(Easel(model, seen_cases(LABELS, 1)).draw(LCM))


def test_no_prompt_is_nothing_to_draw(model):
    assert list(Easel(model, ()).draw(Cell("a", "ddim", 1))) == []


@pytest.fixture(scope="module")
def judge(judge_folder):
    """The random judge."""
    return Judge(judge_folder)


def noise_pictures(count, seed):
    return np.random.default_rng(seed).integers(0, 256, (count, 64, 64, 3)).astype(np.uint8)


def test_a_set_scored_against_itself_is_perfect(judge):
    cases, x = seen_cases(LABELS, 12), noise_pictures(12, 0)
    seen = Seen.by(judge, x)
    found = score(judge, seen, cases, real=seen, teacher=seen, training_KHWC=x)
    assert found["frechet"] == pytest.approx(0, abs=1e-4)
    assert (found["precision"], found["recall"]) == (1, 1)
    assert (found["teacher_rms"], found["teacher_features"], found["nearest_median"]) == (0, 0, 0)
    assert found["top1"]["count"] == found["style"]["count"] == 12


def test_recognition_of_what_the_judge_itself_names(judge):
    x = noise_pictures(5, 1)
    reading = judge(x)
    concepts = [LABELS.concepts[i] for i in reading.concepts_NC.argmax(1)]
    cases = [Case("x", i, concept, "no style of ours", "white") for i, concept in enumerate(concepts)]
    found = score(judge, Seen.by(judge, x), cases)
    assert found["top1"] == {"share": 1.0, "low": found["top1"]["low"], "high": 1.0, "count": 5}
    assert "style" not in found
    assert "frechet" not in found


def test_backgrounds_are_counted_apart_from_white(judge):
    x = np.full((3, 64, 64, 3), 255, np.uint8)
    x[1] = (214, 45, 50)
    cases = [Case("x", 0, background="white"), Case("x", 1, background="red"), Case("x", 2, background="blue")]
    found = score(judge, Seen.by(judge, x), cases)
    assert (found["white"]["share"], found["background"]["share"], found["background"]["count"]) == (1, 0.5, 2)


def test_prompts_without_labels_have_no_rates(judge):
    found = score(judge, Seen.by(judge, noise_pictures(1, 2)), [Case("x", 0)])
    assert found == {"count": 1}


def test_the_table_has_only_columns_with_something_in_them():
    rate = {"share": 0.5, "low": 0.4, "high": 0.6, "count": 90}
    text = markdown([row(Cell("a", "ddim", 2, 3.0), "g", {"count": 9, "top1": rate}), {"cell": "real", "frechet": 0.5}])
    assert text.splitlines()[0] == "| drawn by | evaluations | steps | N | recognised % | FD-judge ↓ |"
    assert text.splitlines()[2] == "| a | 4 | 2 | 9 | 50.0 ± 10.0 |  |"
    assert text.splitlines()[3] == "| real |  |  |  |  | 0.50 |"
    assert markdown([]) == ""


def arguments(*words):
    parser = argparse.ArgumentParser()
    command.register(parser.add_subparsers())
    return parser.parse_args(["evaluate", *map(str, words)])


@pytest.mark.slow
def test_the_command_measures_a_lora_beside_its_teacher(judge_folder, lora_file, tmp_path, capsys):
    asked = arguments(
        tiny_folder("pictogram"), "--lora", lora_file, "--steps", "2", "--count", 2, "--judge", judge_folder
    )
    asked.json, asked.out, asked.device = True, tmp_path / "out", "cpu"
    assert asked.run(asked) == 0
    document = json.loads(capsys.readouterr().out)
    assert {r["evaluations"] for r in document["rows"]} == {100, 2}
    assert document["rows"][-1]["cell"] == "lcm-lora"
    assert json.loads((tmp_path / "out" / "evaluation.json").read_text()) == document
    written = (tmp_path / "out" / "evaluation.md").read_text()
    assert written.startswith("No published protocol.")
    assert "| drawn by |" in written
    assert (tmp_path / "out" / "lcm-lora-2.png").stat().st_size > 0


@pytest.mark.parametrize("text", ["", "0", "1,a", "-1"])
def test_steps_that_are_none_are_refused(text, capsys):
    with pytest.raises(SystemExit):
        arguments("--steps=" + text)
    assert "like 1,2,4,8" in capsys.readouterr().err


def test_a_count_of_nothing_is_refused():
    asked = arguments("--count", 0)
    with pytest.raises(RequestError, match="--count"):
        asked.run(asked)
