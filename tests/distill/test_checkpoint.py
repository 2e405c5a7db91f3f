"""A checkpoint survives: a process killed at any moment, a damaged file; and it holds all that a run goes on from."""

import os
import random
import signal
import sys
import time
from functools import partial
from itertools import count, islice
from multiprocessing import Pipe
from pathlib import Path
from types import SimpleNamespace

import pytest
import safetensors.torch
import torch
from safetensors.torch import load_file

from fewstep.distill.checkpoint import NEXT, PREVIOUS, STATE, damage_of, is_state, read_state, settle, write_state
from fewstep.distill.recipes import make_recipe
from fewstep.distill.run import begin, make_optimiser, save
from fewstep.distill.trainer import train
from fewstep.errors import RecipeError
from tests.distill.conftest import FULL, LORA
from tests.distill.processes import forked
from tests.tiny import tiny_model

OFTEN = LORA | {"save_every": 1, "steps": 1000, "batch": 1}


def tensors_at(step):
    return {"a": torch.full((7, 3), float(step)), "b": torch.tensor(step), "c": torch.zeros(0)}


def write(folder, step):
    return write_state(folder, tensors_at(step), {"step": str(step)})


def step_of(folder):
    return int(read_state(folder / STATE)[1]["step"])


# ---------------------------------------------------------------- killed


def killed_at(place, work):
    """`work()` in a process that ends, as by kill -9, instead of its `place`-th act upon a file; whether it did."""
    acts = count()

    def deadly(act):
        def instead(*arguments, **named):
            if next(acts) == place:
                os._exit(9)
            return act(*arguments, **named)

        return instead

    def child():
        for owner, name in ((Path, "replace"), (Path, "unlink"), (Path, "chmod"), (os, "fsync"), (os, "close")):
            setattr(owner, name, deadly(getattr(owner, name)))
        whole = safetensors.torch.save_file
        safetensors.torch.save_file = lambda tensors, path, **more: (whole(tensors, path, **more), half(path))

    def half(path):
        if next(acts) == place:
            os.truncate(path, Path(path).stat().st_size // 2)
            os._exit(9)

    def run():
        child()
        work()
        os._exit(0)

    process = forked(run)
    process.join(60)
    return process.exitcode == 9


def test_killed_at_any_act_of_a_save_the_last_finished_one_is_there(tmp_path):
    for place in count():
        folder = tmp_path / str(place)
        folder.mkdir()
        write(folder, 1)
        write(folder, 2)
        died = killed_at(place, partial(write, folder, 3))
        assert settle(folder) is None
        assert step_of(folder) in ((2, 3) if died else (3,))
        assert load_file(folder / STATE)["a"].unique() == step_of(folder)
        assert not list(folder.glob(".*")) and not (folder / NEXT).exists()
        write(folder, 4)
        assert step_of(folder) == 4
        if not died:
            break
    assert place > 5


def killed(kills, cache, folder, seed=0):
    """Train in processes that are killed at random moments; the step that is left."""
    chance = random.Random(seed)

    def child(there):
        run = begin(make_recipe(OFTEN), tiny_model("pictogram"), cache, folder=folder, resume=is_state(folder))
        there.send(run.step)
        for report in train(run):
            there.send(report.step)

    for _ in range(kills):
        here, there = Pipe(duplex=False)
        process = forked(partial(child, there))
        there.close()
        began, known = here.recv(), time.perf_counter()
        step = here.recv()
        assert step == began + 1
        time.sleep(chance.uniform(0, 2 * (time.perf_counter() - known)))
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        while here.poll():
            try:
                step = here.recv()
            except EOFError:
                break
        assert settle(folder) is None
        assert step_of(folder) >= step  # what was finished was said
    return step_of(folder)


@pytest.mark.parametrize("kills", [3, pytest.param(20, marks=pytest.mark.slow)])
def test_kill_minus_nine_loses_no_finished_checkpoint(cache, tmp_path, kills):
    last = killed(kills, cache, tmp_path / "killed")
    whole = begin(make_recipe(OFTEN), tiny_model("pictogram"), cache, folder=tmp_path / "whole")
    list(islice(train(whole), last))
    one, other = (load_file(tmp_path / name / STATE) for name in ("killed", "whole"))
    assert one.keys() == other.keys() and all(value.equal(other[name]) for name, value in one.items())


# ---------------------------------------------------------------- damaged


def flip(path, place):
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)


def in_header(path):
    return path.read_bytes().index(b'"step":"2"') + 8


@pytest.mark.parametrize(
    "damage",
    [
        lambda path: flip(path, -5),
        lambda path: flip(path, in_header(path)),
        lambda path: os.truncate(path, 30),
        lambda path: path.write_bytes(b""),
    ],
    ids=["a number", "the step", "cut", "empty"],
)
def test_a_damaged_newest_checkpoint_gives_way_to_the_one_before(tmp_path, damage):
    for step in (1, 2):
        write(tmp_path, step)
    assert damage_of(tmp_path / STATE) is None
    damage(tmp_path / STATE)
    assert "is damaged" in settle(tmp_path) and step_of(tmp_path) == 1
    assert settle(tmp_path) is None
    damage_again = tmp_path / STATE
    flip(damage_again, -1)
    with pytest.raises(RecipeError, match="cannot be read.*Delete"):
        settle(tmp_path)


@pytest.mark.slow
def test_a_run_goes_on_from_the_checkpoint_before_and_says_so(new_run):
    whole = new_run(OFTEN, folder="whole")
    list(islice(train(whole), 4))
    list(islice(train(new_run(OFTEN)), 3))
    flip(whole.folder.parent / "run" / STATE, -5)
    again = new_run(OFTEN, resume=True)
    assert again.step == 2 and "checksum" in again.note
    list(islice(train(again), 2))
    assert all(value.equal(again.student.tensors()[name]) for name, value in whole.student.tensors().items())
    assert len((again.folder / "metrics.jsonl").read_text().splitlines()) == 4


def test_two_are_kept_and_no_more(tmp_path):
    for step in range(5):
        write(tmp_path, step)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([STATE, PREVIOUS])
    assert read_state(tmp_path / PREVIOUS)[1]["step"] == "3"


def test_an_older_checkpoint_without_a_checksum_is_believed(tmp_path):
    safetensors.torch.save_file({"a": torch.zeros(1)}, tmp_path / STATE, {"step": "7"})
    assert settle(tmp_path) is None and step_of(tmp_path) == 7


# ---------------------------------------------------------------- what is in it


def test_the_optimiser_and_the_place_in_the_data_are_in_it(new_run):
    run = new_run(accumulate=3)
    list(islice(train(run), 2))
    save(run)
    tensors, metadata = read_state(run.folder / STATE)
    assert (metadata["step"], metadata["forward"], metadata["batch"]) == ("2", "6", "2")
    for name, value in run.student.parameters.items():
        assert tensors[f"adam.step.{name}"] == 2
        for moment in ("exp_avg", "exp_avg_sq"):
            assert tensors[f"adam.{moment}.{name}"].equal(run.optimiser.state[value][moment])
    again = new_run(accumulate=3, resume=True)
    assert again.step == 2 and len(again.optimiser.state) == len(run.optimiser.state)


def test_moments_of_eight_bits_resume_bit_for_bit(new_run):
    pytest.importorskip("bitsandbytes")
    values = FULL | {"optimiser": "adamw8bit", "batch": 1}
    whole = new_run(values, folder="whole")
    losses = [report.loss for report in islice(train(whole), 3)]
    moments = [moment for state in whole.optimiser.state.values() for moment in state.values()]
    kinds = {moment.dtype for moment in moments if torch.is_tensor(moment)}
    assert kinds == {torch.uint8, torch.float32}  # small tensors keep 32 bits
    first = new_run(values)
    begun = [report.loss for report in islice(train(first), 2)]
    save(first)
    again = new_run(values, resume=True)
    assert {type(state["step"]) for state in again.optimiser.state.values()} == {int}
    assert begun + [report.loss for report in islice(train(again), 1)] == losses
    assert all(value.equal(again.student.tensors()[name]) for name, value in whole.student.tensors().items())


def test_eight_bits_that_cannot_be_had_are_refused(new_run, monkeypatch):
    run = new_run()
    recipe = make_recipe(LORA | {"optimiser": "adamw8bit"})
    monkeypatch.setitem(sys.modules, "bitsandbytes.optim.adamw", None)
    with pytest.raises(RecipeError, match=r"pip install .fewstep\[adam8bit\]"):
        make_optimiser(recipe, run.student)
    monkeypatch.setitem(sys.modules, "bitsandbytes.optim.adamw", SimpleNamespace(AdamW8bit=None))
    apple = SimpleNamespace(groups=[[torch.nn.Parameter(torch.zeros(1, device="meta"))]])
    with pytest.raises(RecipeError, match="not on meta"):
        make_optimiser(recipe, apple)
    with pytest.raises(RecipeError, match="cannot split"):
        make_recipe({"optimiser": "adamw8bit", "sharding": "fsdp2"})
