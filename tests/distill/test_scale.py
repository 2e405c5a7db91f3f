"""What saves memory or time changes no result: accumulation, recomputation, bfloat16, compilation, the batch finder."""

import dataclasses
import json
from functools import partialmethod
from itertools import islice
from types import SimpleNamespace

import pytest
import torch

from fewstep.cli import distill as cli
from fewstep.distill import batch_size, objectives, students, terms, trainer
from fewstep.distill.batch_size import Setting, find_batch, largest, with_batch
from fewstep.distill.measured import measured
from fewstep.distill.recipes import Recipe, make_recipe
from fewstep.distill.run import begin
from fewstep.distill.terms import Draw
from fewstep.distill.times import Times
from fewstep.distill.trainer import train
from fewstep.distill.world import world_of
from fewstep.errors import RecipeError
from fewstep.models.text import Text
from tests.distill.conftest import FULL, LORA, MATCHING
from tests.tiny import tiny_folder, tiny_model, tiny_unet


def gradients(run):
    """Of the first step, unclipped, by name; the LoRA's other half is put away from zero, so that both have some."""
    generator = torch.Generator().manual_seed(9)
    with torch.no_grad():
        for name, value in run.student.parameters.items():
            if ".lora_B." in name:
                value.copy_(torch.randn(value.shape, generator=generator) * 0.05)
    found = {}

    def look(*_):
        found.update({name: value.grad.clone() for name, value in run.student.parameters.items()})

    run.optimiser.register_step_pre_hook(look)
    trainer.take_step(run)
    return found


@pytest.mark.parametrize(
    "values", [LORA, pytest.param(MATCHING, marks=pytest.mark.slow), FULL], ids=["lora", "matching", "full"]
)
def test_recomputed_gradients_are_the_same(new_run, values):
    """The second set of LoRA layers, too, is heard again in the backward pass, when the first is the chosen one."""
    plain = gradients(new_run(values, folder="a", clip=1e9))
    again = gradients(new_run(values, folder="b", clip=1e9, checkpointing=True))
    assert all(torch.equal(value, again[name]) for name, value in plain.items())


def test_accumulated_gradients_are_those_of_the_joint_batch(new_run, monkeypatch):
    several = new_run(folder="a", clip=1e9, accumulate=2)
    parts = [trainer.draw(several, place) for place in range(2)]
    first, second = (drawn for drawn, _ in parts)
    pairs = {
        field.name: torch.cat([getattr(first, field.name), getattr(second, field.name)])
        for field in dataclasses.fields(Draw)
        if field.name != "times"
    }
    times = (torch.cat([getattr(part.times, name) for part, _ in parts]) for name in ("t_B", "t_next_B", "s_B"))
    joint = Draw(times=Times(*times), **pairs), Text.cat([text for _, text in parts])
    split = gradients(several)
    monkeypatch.setattr(trainer, "draw", lambda run, place: joint)
    whole = gradients(new_run(folder="b", clip=1e9, batch=4))
    for name, value in whole.items():
        assert (split[name] - value).norm() <= 1e-4 * value.norm() + 1e-7, name


def test_bfloat16_computes_networks_and_nothing_else(new_run, monkeypatch):
    seen, inside = set(), set()

    def watched(function):
        def instead(*arguments, **named):
            found = function(*arguments, **named)
            every = [*arguments, *(found if isinstance(found, tuple) else [found])]
            seen.update(
                (function.__name__, item.dtype) for item in every if torch.is_tensor(item) and item.is_floating_point()
            )
            return found

        return instead

    for module, name in ((objectives, "add_noise"), (objectives, "ddim_map"), (objectives, "consistency_function")):
        monkeypatch.setattr(module, name, watched(getattr(module, name)))
    for name in ("to_z0", "guide", "per_item"):
        monkeypatch.setattr(terms, name, watched(getattr(terms, name)))
    run = new_run(precision="bfloat16")
    run.student.unet.conv_in.register_forward_hook(lambda module, given, found: inside.add(found.dtype))
    (report,) = islice(train(run), 1)
    assert inside == {torch.bfloat16} and report.loss > 0
    assert {name for name, _ in seen} >= {"add_noise", "ddim_map", "consistency_function", "to_z0", "guide"}
    assert {dtype for _, dtype in seen} == {torch.float32}
    assert {value.dtype for value in run.student.parameters.values()} == {torch.float32}


@pytest.mark.parametrize(
    "values", [LORA, pytest.param(MATCHING, marks=pytest.mark.slow), FULL], ids=["lora", "matching", "full"]
)
def test_a_frozen_base_kept_in_bfloat16_is_what_autocast_makes_of_one_in_float32(new_run, values, monkeypatch):
    """Bit for bit; and the norms, whose weights autocast leaves alone, stay in float32."""
    kept = new_run(values, folder="a", clip=1e9, precision="bfloat16")
    monkeypatch.setattr(students, "_frozen", lambda unet, recipe: unet.requires_grad_(False))
    cast = new_run(values, folder="b", clip=1e9, precision="bfloat16")
    for run, dtype in ((kept, torch.bfloat16), (cast, torch.float32)):
        frozen = run.student.teacher_unet
        assert {frozen.conv_in.weight.dtype, frozen.down_blocks[0].resnets[0].conv1.weight.dtype} == {dtype}
        assert frozen.down_blocks[0].resnets[0].norm1.weight.dtype == torch.float32
        assert {value.dtype for value in run.student.parameters.values()} == {torch.float32}
    one, other = gradients(kept), gradients(cast)
    assert all(torch.equal(value, other[name]) for name, value in one.items())


@pytest.mark.slow
@pytest.mark.parametrize(
    ("values", "backend"),
    [
        (LORA, "aot_eager"),
        (MATCHING, "aot_eager"),
        (LORA | {"checkpointing": True}, "aot_eager"),
        (FULL, "aot_eager"),
        (LORA, "inductor"),
    ],
    ids=["lora", "matching", "checkpointing", "full", "real"],
)
def test_compiled_networks_are_the_eager_ones(cache, tmp_path, monkeypatch, values, backend):
    """Which LoRA layers are heard is part of what a compiled graph is kept under; that does not need machine code."""

    def small_run(more):
        model = tiny_model("pictogram")
        model.unet = tiny_unet(
            "pictogram",
            layers_per_block=1,
            block_out_channels=(32,),
            down_block_types=("CrossAttnDownBlock2D",),
            up_block_types=("CrossAttnUpBlock2D",),
            time_cond_proj_dim=None,  # said, or diffusers would take its default for what a copy asks
        )
        return begin(make_recipe(values | more), model, cache, folder=tmp_path / str(len(more)))

    monkeypatch.setattr(torch.nn.Module, "compile", partialmethod(torch.nn.Module.compile, backend=backend))
    eager, quick = small_run({}), small_run({"compile": True})
    losses = [[report.losses for report in islice(train(run), 2)] for run in (eager, quick)]
    for one, other in zip(*losses, strict=True):
        assert other == pytest.approx(one, rel=1e-3)
    for name, value in quick.student.parameters.items():
        moment, wanted = (
            run.optimiser.state[weights]["exp_avg"]
            for run, weights in ((quick, value), (eager, eager.student.parameters[name]))
        )
        assert (moment - wanted).norm() <= 1e-2 * wanted.norm() + 1e-8 * wanted.numel() ** 0.5, name


def test_what_was_measured(new_run):
    run = new_run()
    assert measured(run)["step_s"] is None
    list(islice(train(run), 3))
    facts = measured(run)
    assert facts["step_s"] == sorted(run.seconds)[1] and 0.05 < facts["peak_memory_gb"] < 100
    assert json.loads(json.dumps(facts))["processes"] == 1


# ---------------------------------------------------------------- the batch finder


@pytest.mark.parametrize("edge", [0, 1, 2, 3, 7, 8, 31, 47, 48])
def test_the_search_finds_the_edge_in_few_tries(edge):
    asked = []
    assert largest(lambda batch: asked.append(batch) or batch <= edge, most=48) == edge
    assert len(asked) == len(set(asked)) <= 12 and max(asked) <= 48


@pytest.mark.parametrize(
    ("most", "batch", "accumulate"), [(100, 24, 1), (24, 24, 1), (23, 12, 2), (5, 4, 6), (1, 1, 24)]
)
def test_a_step_keeps_its_samples(most, batch, accumulate):
    found = with_batch(Recipe(batch=12, accumulate=2), most)
    assert (found.batch, found.accumulate) == (batch, accumulate)


def test_too_much_is_what_the_limit_or_the_machine_says(monkeypatch, tmp_path):
    monkeypatch.setattr(batch_size, "tried", lambda recipe, setting: recipe.batch / 2 if recipe.batch < 8 else None)
    said = []
    found = find_batch(Recipe(batch=16), Setting(None, tmp_path, "cuda"), say=said.append)
    assert (found.batch, found.accumulate) == (4, 4) and any("does not fit" in text for text in said)
    found = find_batch(Recipe(batch=16), Setting(None, tmp_path, "cpu", memory_gb=1.0), say=said.append)
    assert (found.batch, found.accumulate) == (2, 8) and "too much" in said[-1]
    with pytest.raises(RecipeError, match=r"batch of 1 fits into 0\.1 GB"):
        find_batch(Recipe(batch=16), Setting(None, tmp_path, "cpu", memory_gb=0.1))
    with pytest.raises(RecipeError, match="--memory-gb"):
        find_batch(Recipe(), Setting(None, tmp_path, "cpu"))


def test_the_search_for_a_batch_takes_base_and_vae_along(monkeypatch, tmp_path):
    """A UNet alone is completed in the tries as it is for the training."""
    asked = []
    monkeypatch.setattr(batch_size, "find_batch", lambda recipe, setting, say: asked.append(setting) or recipe)
    monkeypatch.setattr(cli, "_data", lambda arguments, load, world: SimpleNamespace(folder=tmp_path))
    options = {"stream": False, "model": "unet.safetensors", "base": "whole", "vae": None, "prediction": "v"}
    arguments = SimpleNamespace(memory_gb=8.0, json=True, **options)
    cli._found_batch(arguments, Recipe(batch=4), world_of(), lambda: None)
    assert asked[0].parts == {"base": "whole", "vae": None, "prediction": "v"}


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_real_tries(cache):
    """Every try is a process of its own; more items take more memory, and what fails for another reason is said."""
    setting = Setting(str(tiny_folder("pictogram")), cache.folder, "cpu", memory_gb=64.0)
    small, large = (batch_size.tried(make_recipe(LORA | {"batch": batch}), setting) for batch in (1, 64))
    assert 0.1 < small < large < 64
    found = find_batch(make_recipe(LORA | {"batch": 1, "accumulate": 2}), setting)
    assert (found.batch, found.accumulate) == (2, 1)
    nothing = dataclasses.replace(setting, memory_gb=0.01)
    with pytest.raises(RecipeError, match="Not even a batch of 1"):
        find_batch(make_recipe(LORA), nothing)
    with pytest.raises(RecipeError, match="could not be tried: .*does not divide"):
        batch_size.tried(make_recipe(LORA | {"origin_steps": 30}), setting)
