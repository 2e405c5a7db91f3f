"""Several processes are one: the same losses, the same weights, the same files, one end."""

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from fewstep.distill import trainer
from fewstep.distill.checkpoint import STATE, read_state
from fewstep.distill.recipes import make_recipe
from fewstep.distill.run import begin, save
from fewstep.distill.sharding import on_whole
from fewstep.distill.trainer import draw, take_step
from fewstep.distill.world import World, anywhere, average_gradients, on_first
from fewstep.errors import QualityError, RecipeError
from tests.distill.conftest import FULL, LORA, MATCHING
from tests.distill.processes import in_processes
from tests.tiny import tiny_folder, tiny_model

STEPS = 2
SPLIT = {"sharding": "fsdp2"}


def trained(values, cache, folder, *, world=None, resume=False, steps=STEPS, saved=None):
    """A run after some more steps, with the checkpoint of the last one (or of `saved`), and the losses on the way."""
    run = begin(make_recipe(values), tiny_model("pictogram"), cache, folder=folder, resume=resume, world=world)
    losses = []
    for step in range(steps):
        losses.append(take_step(run).loss)
        if step + 1 == (saved or steps):
            save(run)
    return run, losses


def in_two(values, cache, folder, **how):
    """The losses of two processes' common run."""
    answers = in_processes(2, lambda world: trained(values, cache, folder, world=world, **how)[1])
    assert answers[0] == answers[1], answers
    return answers[0]


def same(one, other, *, moments=1e-2):
    """Whether two checkpoints hold the same, up to the order in which numbers were added.

    After the first step Adam's moments are the means of the gradients, so they agree closely. Of its weights a few may
    not: it makes a whole step (here 5e-4), up or down, even of a gradient that is nothing but rounding.
    """
    one, other = load_file(one / STATE), load_file(other / STATE)
    assert one.keys() == other.keys()
    for name, value in one.items():
        delta = other[name] - value
        if name.startswith("adam."):
            assert delta.norm() <= moments * value.norm() + 1e-8 * value.numel() ** 0.5, name
        else:
            assert (delta.abs() > 1e-4).double().mean() < 0.05, name


def slow(*values, id):
    return pytest.param(*values, id=id, marks=pytest.mark.slow)


@pytest.mark.parametrize(
    "values",
    [
        slow(LORA | {"accumulate": 2}, id="accumulate"),
        slow(FULL | SPLIT, id="full-split"),
        slow(MATCHING, id="matching"),
        slow(FULL, id="full"),
        slow(LORA | SPLIT, id="lora-split"),
        slow(MATCHING | SPLIT, id="matching-split"),
        slow(LORA | SPLIT | {"checkpointing": True}, id="checkpointing-split"),
    ],
)
def test_two_processes_are_one_with_twice_the_batch(cache, tmp_path, values):
    _, losses = trained(values | {"batch": 4}, cache, tmp_path / "one", saved=1)
    assert in_two(values | {"batch": 2}, cache, tmp_path / "two", saved=1) == pytest.approx(losses, rel=1e-4)
    same(tmp_path / "one", tmp_path / "two")


@pytest.mark.slow
def test_two_processes_are_two_accumulated_halves_bit_for_bit(cache, tmp_path, monkeypatch):
    """A batch of another size is computed in another order of additions; halves are not, so nothing may differ."""

    def half(run, place):
        return draw(dataclasses.replace(run, world=World(place % 2, 2)), place // 2)

    losses = in_two(MATCHING, cache, tmp_path / "two")
    monkeypatch.setattr(trainer, "draw", half)
    assert trained(MATCHING | {"accumulate": 2}, cache, tmp_path / "one")[1] == losses
    one, other = (load_file(tmp_path / name / STATE) for name in ("one", "two"))
    assert one.keys() == other.keys() and all(value.equal(other[name]) for name, value in one.items())


@pytest.mark.slow
def test_another_number_of_processes_goes_on_with_the_same_items(cache, tmp_path):
    """Two processes with split networks, then one, then two with whole ones: as one process all along."""
    _, losses = trained(LORA | {"batch": 4}, cache, tmp_path / "one", steps=3)
    found = in_two(LORA | SPLIT, cache, tmp_path / "parts", steps=1)
    found += trained(LORA | {"batch": 4}, cache, tmp_path / "parts", resume=True, steps=1)[1]
    found += in_two(LORA, cache, tmp_path / "parts", resume=True, steps=1)
    assert found == pytest.approx(losses, rel=1e-3)
    same(tmp_path / "one", tmp_path / "parts", moments=0.1)


@pytest.mark.slow
def test_two_processes_resume_bit_for_bit(cache, tmp_path):
    whole = in_two(LORA, cache, tmp_path / "whole", steps=2)
    parts = in_two(LORA, cache, tmp_path / "parts", steps=1)
    assert parts + in_two(LORA, cache, tmp_path / "parts", resume=True, steps=1) == whole
    assert read_state(tmp_path / "parts" / STATE)[1]["batch"] == "4"
    one, other = (load_file(tmp_path / name / STATE) for name in ("whole", "parts"))
    assert all(value.equal(other[name]) for name, value in one.items())


@pytest.mark.slow
def test_another_number_of_items_is_refused(cache, tmp_path):
    save(trained(LORA, cache, tmp_path, steps=0)[0])
    with pytest.raises(RecipeError, match=r"with 2 items.*1 x batch = 4.*product is 2"):
        trained(LORA | {"batch": 4}, cache, tmp_path, resume=True, steps=0)
    answers = in_processes(2, lambda world: trained(LORA, cache, tmp_path, resume=True, steps=0, world=world))
    assert [name for name, _ in answers] == ["RecipeError"] * 2 and "2 x batch = 2" in answers[1][1]


def test_the_rows_of_all_processes_are_the_items_of_one(cache, tmp_path):
    """For a method that walks one way for all items, too."""
    values = MATCHING | {"empty_captions": 0.5, "look_every": 0}
    run = begin(make_recipe(values | {"batch": 4}), tiny_model("pictogram"), cache, folder=tmp_path)
    drawn, text = draw(run, 5)
    run.recipe = make_recipe(values | {"batch": 1})
    parts = []
    for rank in range(4):
        run.world = World(rank, 4)
        parts.append(draw(run, 5))
    assert {part.times.path for part, _ in parts} == {drawn.times.path}
    for name in ("z0_BCHW", "noise_BCHW", "again_BCHW", "w_B"):
        assert torch.equal(torch.cat([getattr(part, name) for part, _ in parts]), getattr(drawn, name))
    for name in ("t_B", "t_next_B", "s_B"):
        assert torch.equal(torch.cat([getattr(part.times, name) for part, _ in parts]), getattr(drawn.times, name))
    assert torch.equal(torch.cat([part.text_BLD for _, part in parts]), text.text_BLD)


def test_gradients_become_their_mean_across_buckets(monkeypatch):
    monkeypatch.setattr("fewstep.distill.world.BUCKET", 4)

    def work(world):
        values = [torch.nn.Parameter(torch.zeros(shape)) for shape in ((3,), (2, 2), (1,), (5,))]
        for place, value in enumerate(values[:3]):
            value.grad = torch.full(value.shape, float(place + 10 * world.rank))
        average_gradients(world, values)
        return [None if value.grad is None else value.grad.unique().tolist() for value in values]

    assert in_processes(2, work) == [[[5.0], [6.0], [7.0], None]] * 2


def failing(world, where):
    if where == "alone":
        if world.rank == 1:
            raise RecipeError("The second one has no data.")
        anywhere(world, False)

    def refuse():
        raise QualityError("The student is no good.")

    on_first(world, refuse)


@pytest.mark.parametrize(
    ("where", "said"),
    [("first", ("QualityError", "The student is no good.")), ("alone", ("RecipeError", "The second one has no data."))],
)
def test_what_ends_one_ends_all_with_its_sentence(where, said):
    assert in_processes(2, lambda world: failing(world, where)) == [said, said]


def test_what_one_knows_all_act_on():
    assert in_processes(2, lambda world: anywhere(world, world.rank == 1)) == [True, True]
    assert in_processes(2, lambda world: on_first(world, lambda: world.rank)) == [0, 0]
    assert anywhere(World(), True) and not anywhere(World(), False)


@pytest.mark.slow
def test_a_split_student_is_looked_at_and_written_whole(cache, tmp_path):
    def work(world):
        run, _ = trained(FULL | SPLIT, cache, tmp_path / "run", world=world, steps=1)
        names = on_whole(run, lambda whole: sorted(type(value).__name__ for value in whole.student.tensors().values()))
        z_BCHW, t_B, w_B = torch.ones(1, 4, 8, 8), torch.tensor([500]), torch.tensor([2.0])
        text = cache.text([0])
        there = run.student.target(z_BCHW, t_B, text, w_B)
        near = on_whole(
            run, lambda whole: torch.allclose(whole.student.target(z_BCHW, t_B, text, w_B), there, atol=1e-4)
        )
        return set(names), near

    assert in_processes(2, work) == [({"Tensor"}, True)] * 2


def metrics(folder):
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [row["loss"] for row in rows]


@pytest.mark.slow
def test_torchrun_passes_ctrl_c_on_and_all_stop_at_the_same_step(cache, tmp_path):
    """The checkpoint is that of the last step whose figures were written, and a second start goes on from it."""
    recipe = tmp_path / "recipe.toml"
    recipe.write_text("".join(f"{key} = {json.dumps(value)}\n" for key, value in (LORA | {"steps": 10_000}).items()))
    words = ["-m", "fewstep", "distill", recipe, "--data", cache.folder, "--model", tiny_folder("pictogram")]
    words += ["--device", "cpu", "--json", "-o", tmp_path / "two.safetensors"]
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", *words]
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2] / "src"), "OMP_NUM_THREADS": "1"}

    def pressed(more, last):
        """Start, press Ctrl-C once `last` steps are done, and wait."""
        folder = tmp_path / "two.run"
        process = subprocess.Popen([*map(str, launch), *more], env=environment, stderr=subprocess.PIPE, text=True)
        while not (folder / "metrics.jsonl").is_file() or len(metrics(folder)) < last:
            assert process.poll() is None, process.stderr.read()
            time.sleep(0.1)
        process.send_signal(signal.SIGINT)
        said = process.communicate(timeout=120)[1]
        assert "everything is kept" in said and said.count("--resume") >= 1, said
        _, facts = read_state(folder / STATE)
        assert int(facts["step"]) == len(metrics(folder)) >= last
        return int(facts["step"])

    first = pressed([], 3)
    assert pressed(["--resume"], first + 3) >= first + 3


@pytest.mark.parametrize(
    ("values", "more"),
    [
        slow({}, (), id="whole"),
        slow({}, ("--set", "sharding=fsdp2"), id="split"),
        slow({"precision": "bfloat16"}, ("--set", "sharding=fsdp2"), id="split-bfloat16"),
    ],
)
def test_torchrun_starts_it(cache, tmp_path, values, more):
    """`torchrun --nproc-per-node 2 -m fewstep distill` and one process with twice the batch, to the written file."""
    recipe = tmp_path / "recipe.toml"
    values = LORA | {"steps": 2} | values
    recipe.write_text("".join(f"{key} = {json.dumps(value)}\n" for key, value in values.items()))
    words = ["-m", "fewstep", "distill", recipe, "--data", cache.folder, "--model", tiny_folder("pictogram")]
    words += ["--device", "cpu", "--json", "-o"]
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2] / "src"), "OMP_NUM_THREADS": "1"}

    def ended(command):
        return subprocess.run(list(map(str, command)), env=environment, capture_output=True, text=True, timeout=280)

    two = ended([*launch, *words, tmp_path / "two.safetensors", *more])
    one = ended([sys.executable, *words, tmp_path / "one.safetensors", "--set", "batch=4"])
    # accepted, or refused with one sentence: torchrun says 1 when its children failed
    assert (one.returncode, two.returncode) in ((0, 0), (3, 1)), two.stderr
    assert two.stdout.count("{") == one.stdout.count("{") == (one.returncode == 0)  # one speaks
    if one.returncode:
        assert "so it is not finished" in one.stderr and "so it is not finished" in two.stderr
    runs = [tmp_path / "one.run", tmp_path / "two.run"]
    near = {"float32": 1e-4, "bfloat16": 1e-2}[values.get("precision", "float32")]
    assert metrics(runs[1]) == pytest.approx(metrics(runs[0]), rel=near) and len(metrics(runs[0])) == 2
    written = [
        load_file(tmp_path / f"{name}{'.rejected' if one.returncode else ''}.safetensors") for name in ("one", "two")
    ]
    assert written[0].keys() == written[1].keys()
    if (
        "precision" in values
    ):  # Adam's first steps are the signs of gradients, and bfloat16 may turn those of small ones
        return
    for name, value in written[0].items():
        assert (written[1][name] - value).float().norm() <= 2e-2 * value.float().norm() + 2e-5 * value.numel() ** 0.5
