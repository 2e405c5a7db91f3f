"""Logs: what TensorBoard and W&B hold after a run is what metrics.jsonl says, and time spent waiting is seen."""

import builtins
import json
import time
from itertools import islice

import numpy as np
import pytest

from fewstep.distill.best import best_of
from fewstep.distill.run import save
from fewstep.distill.trainer import train
from fewstep.errors import RecipeError
from tests.distill.conftest import LORA
from tests.evaluate.networks import write_clip

LOOKS = LORA | {"look_every": 2, "steps": 4}


def rows_of(run):
    return [json.loads(line) for line in (run.folder / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.slow
def test_tensorboard_holds_every_number_and_the_grids(new_run):
    accumulators = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    run = new_run(LOOKS, log="tensorboard")
    for report in islice(train(run), 3):
        if report.step == 2:
            save(run)  # the third step is lost with the process, and done again
    run = new_run(LOOKS, log="tensorboard", resume=True)
    list(train(run))
    events = accumulators.EventAccumulator(str(run.folder / "tensorboard"), size_guidance={"images": 0})
    events.Reload()
    steps = [row for row in rows_of(run) if "loss" in row]
    for name in ("loss", "learning_rate", "gradient_norm", "samples_per_s", "data_wait"):
        found = [(event.step, event.value) for event in events.Scalars(f"train/{name}")]
        assert found == [(row["step"], pytest.approx(row[name])) for row in steps]
    quarter = {row["step"]: row["loss_quarters"][3] for row in steps if row["loss_quarters"][3] is not None}
    found = {event.step: event.value for event in events.Scalars("loss_by_timestep/750-999")}
    assert found == pytest.approx(quarter) and quarter
    looks = {row["step"]: row["distance"]["student"]["2"] for row in rows_of(run) if "distance" in row}
    assert {event.step: event.value for event in events.Scalars("distance/student/2")} == pytest.approx(looks)
    assert [event.step for event in events.Images("samples")] == [0, 2, 4]


@pytest.mark.slow
def test_wandb_writes_an_offline_run(new_run, monkeypatch):
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "online")  # whatever the environment says, nothing is sent
    run = new_run(LORA, steps=1, log="wandb")
    list(train(run))
    (path,) = run.folder.glob("wandb/offline-run-*/*.wandb")
    (row,) = rows_of(run)
    wanted = b"train/loss", repr(row["loss"]).encode()[:8]
    until = time.monotonic() + 60  # the file is written by a process of W&B's own
    while not all(word in path.read_bytes() for word in wanted) and time.monotonic() < until:
        time.sleep(0.1)
    assert all(word in path.read_bytes() for word in wanted)


@pytest.mark.parametrize(("name", "package"), [("tensorboard", "torch.utils.tensorboard"), ("wandb", "wandb")])
def test_a_log_whose_package_is_missing_is_one_sentence(new_run, monkeypatch, name, package):
    real = builtins.__import__

    def without(asked, *rest, **more):
        if asked == package:
            raise ImportError(asked)
        return real(asked, *rest, **more)

    run = new_run(LORA, log=name)
    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(RecipeError, match=f"pip install {name}"):
        next(train(run))


@pytest.mark.slow
def test_waiting_for_data_is_a_share_of_the_step(new_run, monkeypatch):
    run = new_run(LORA, steps=2)
    batch = run.cache.batch

    def slow(*place, **size):
        time.sleep(0.5)
        return batch(*place, **size)

    monkeypatch.setattr(run.cache, "batch", slow)
    reports = list(train(run))
    monkeypatch.undo()
    quick = new_run(LORA, steps=1, folder="quick")
    (report,) = train(quick)
    assert all(0.05 < each.data_wait < 1 for each in reports)
    assert 0 <= report.data_wait < min(each.data_wait for each in reports)


@pytest.mark.slow
def test_the_judge_reads_the_looks(new_run, monkeypatch):
    from fewstep.distill import report as looking

    asked = []

    def score(pictures_NHWC, captions):
        asked.append((pictures_NHWC.shape, tuple(captions)))
        return 0.25

    monkeypatch.setattr(looking, "scores_of", lambda recipe: {"recognised": score})
    run = new_run(LOOKS, steps=2, look_count=10)
    list(train(run))
    looks = [row for row in rows_of(run) if "scores" in row]
    assert looks[0]["scores"] == {"recognised": {"student": {"1": 0.25, "2": 0.25}, "teacher": {"4": 0.25}}}
    assert {shape for shape, _ in asked} == {(10, 64, 64, 3)} and len({captions for _, captions in asked}) == 1


@pytest.mark.embedded
def test_the_shipped_judge_recognises_what_captions_name():
    from PIL import Image

    from fewstep.distill.scores import recognised

    score = recognised("embedded")
    blank = np.asarray(Image.new("RGB", (64, 64), "white"))[None]
    assert score(blank, ["nothing that it knows, xyzzy"]) is None
    assert score(np.repeat(blank, 2, 0), ["a cat", "a dog"]) in (0.0, 0.5)


@pytest.mark.slow
def test_a_clip_model_scores_the_looks_and_keeps_the_best(new_run, tmp_path):
    folder = write_clip(tmp_path / "clip")
    run = new_run(LOOKS, steps=1, look_clip=str(folder), keep_best="clip:2")
    list(train(run))
    (look,) = [row for row in rows_of(run) if "scores" in row][1:]
    value = look["scores"]["clip"]["student"]["2"]
    assert -100 <= value <= 100 and best_of(run).value == value
    assert "CLIP score" in (run.folder / "report.html").read_text()
