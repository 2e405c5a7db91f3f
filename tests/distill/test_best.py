"""The best weights by a figure of the looks: kept, shipped, found again after an interruption; and the early stop."""

import json
from itertools import islice

import pytest
import torch
from safetensors import safe_open

from fewstep.checkpoints.lora import read_lora
from fewstep.distill import finish as ending
from fewstep.distill import trainer
from fewstep.distill.best import best_of, keep_if_best, out_of_patience, take_best
from fewstep.distill.finish import finish
from fewstep.distill.recipes import make_recipe
from fewstep.distill.run import save
from fewstep.distill.trainer import StepReport, train
from fewstep.errors import CheckpointError, RecipeError
from tests.distill.conftest import FULL, LORA

KEEP = LORA | {"look_every": 1, "keep_best": "distance:2", "patience": 2, "warmup": 0}
VALLEY = (9.0, 3.0, 2.0, 2.0, 5.0, 1.0, 1.0)


@torch.no_grad()
def take_step(run):
    """A step that costs nothing: every weight moves by a little that depends on the step."""
    run.step += 1
    for value in run.student.parameters.values():
        value += 0.01 * run.step
    run.student.stepped()
    return StepReport(run.step, 1.0, 1e-3, 1.0, 1.0, (None,) * 4, {})


@pytest.fixture
def looks(monkeypatch):
    """Let the look after each step find a distance of our choosing: `looks(d0, d1, ...)`. Steps cost nothing."""
    monkeypatch.setattr(trainer, "take_step", take_step)

    def set_looks(*distances):
        def look(run):
            return {"step": run.step, "distance": {"student": {"2": distances[run.step]}}}

        monkeypatch.setattr(trainer, "look", look)
        monkeypatch.setattr(ending, "distance", lambda run, who, steps: {"student": 1.0}.get(who, 2.0))

    return set_looks


def weights(run):
    return {name: value.clone() for name, value in run.student.tensors().items()}


def same(one, other):
    return all(torch.equal(value, other[name]) for name, value in one.items())


@pytest.mark.slow
@pytest.mark.parametrize(("values", "name"), [(KEEP, "x.safetensors"), (KEEP | FULL | {"look_every": 1}, "x")])
def test_training_stops_and_ships_the_best(new_run, looks, tmp_path, values, name):
    looks(*VALLEY)
    run = new_run(values)
    kept = {report.step: weights(run) for report in train(run)}
    assert list(kept) == [1, 2, 3, 4]  # 2.0 again at step 3 is no better, nor is step 4: that is two looks
    result = finish(run, tmp_path / name)
    assert (result.steps, result.last_step, result.kept_by) == (2, 4, "distance:2")
    assert same(weights(run), kept[2]) and not same(kept[2], kept[4])
    said = json.loads((run.folder / "result.json").read_text())
    assert (said["steps"], said["kept_by"]) == (2, "distance:2")
    assert "the best by distance:2" in (run.folder / "report.html").read_text()


def test_the_file_holds_the_best_weights(new_run, looks, tmp_path):
    looks(*VALLEY)
    run = new_run(KEEP)
    list(train(run))
    with safe_open(run.folder / "best.safetensors", "pt") as file:
        found = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    lora = read_lora(finish(run, tmp_path / "x.safetensors").path)
    assert not (run.folder / "best.safetensors").exists()
    assert (lora.metadata["fewstep.trained_steps"], lora.metadata["ss_steps"]) == ("2", "2")
    for name, layer in lora.layers.items():
        assert torch.equal(layer.down, found[f"{name}.lora_A.fewstep.weight"].half())


@pytest.mark.slow
def test_an_interrupted_run_remembers_its_best_and_its_patience(new_run, looks):
    looks(*VALLEY)
    first = new_run(KEEP, folder="parts")
    begun = [report.step for report in islice(train(first), 3)]
    save(first)
    second = new_run(KEEP, folder="parts", resume=True)
    assert begun + [report.step for report in train(second)] == [1, 2, 3, 4]
    assert best_of(second).step == 2
    third = new_run(KEEP, folder="parts", resume=True)
    assert list(train(third)) == []  # it has ended: there is nothing to go on with
    patient = new_run(KEEP, folder="parts", resume=True, patience=9)
    assert [report.step for report in train(patient)] == [5, 6] and best_of(patient).step == 5


def test_the_untrained_student_and_a_figure_that_is_no_number_are_never_the_best(new_run, looks):
    looks(0.1, float("nan"), 3.0, 4.0, 5.0)
    run = new_run(KEEP)
    assert [report.step for report in train(run)] == [1, 2, 3, 4]
    assert best_of(run).step == 2


def test_a_figure_that_the_look_lacks_is_said_at_the_first_look(new_run, looks):
    looks(*VALLEY)
    with pytest.raises(RecipeError, match="judge knows nothing"):
        next(train(new_run(KEEP | {"keep_best": "recognised:2", "look_judge": "embedded"})))


def test_a_new_run_forgets_what_lies_there(new_run, looks):
    looks(*[1.0] * 7)
    run = new_run(KEEP, steps=1)
    list(train(run))
    (run.folder / "state.safetensors").unlink()
    looks(*[5.0] * 7)
    again = new_run(KEEP, steps=1)
    list(train(again))
    assert best_of(again).value == 5.0


def test_higher_is_better_for_scores_and_another_figure_begins_anew(new_run):
    run = new_run(KEEP | {"keep_best": "recognised:2", "look_judge": "embedded"})
    for step, share in ((1, 0.5), (2, 0.75), (3, 0.7)):
        run.step = step
        kept = keep_if_best(run, {"step": step, "scores": {"recognised": {"student": {"2": share}}}})
        assert kept == (step != 3)
    assert best_of(run).step == 2
    run.recipe = make_recipe(KEEP)
    assert best_of(run) is None and not out_of_patience(run) and take_best(run) is None


def test_without_keep_best_the_last_weights_are_taken(new_run, looks, tmp_path):
    looks(*VALLEY)
    run = new_run(KEEP | {"keep_best": "", "patience": 0, "steps": 3})
    list(train(run))
    assert not (run.folder / "best.safetensors").exists()
    result = finish(run, tmp_path / "x.safetensors")
    assert (result.steps, result.last_step, result.kept_by) == (3, 3, "")


def test_weights_of_another_student_are_refused(new_run, looks):
    looks(*VALLEY)
    run = new_run(KEEP, steps=1)
    list(train(run))
    other = new_run(KEEP | {"rank": 2}, folder="other")
    other.folder = run.folder
    with pytest.raises(CheckpointError, match="does not fit"):
        take_best(other)


def test_damaged_best_weights_are_refused(new_run, looks):
    looks(*VALLEY)
    run = new_run(KEEP, steps=1)
    list(train(run))
    path = run.folder / "best.safetensors"
    content = bytearray(path.read_bytes())
    content[-5] ^= 1
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match="damaged"):
        take_best(run)
