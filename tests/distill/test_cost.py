"""Predictions against facts: known figures of the published networks, and a real step of a small one."""

import json
from itertools import accumulate
from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from fewstep.cli import prediction
from fewstep.cli.main import main
from fewstep.cli.prediction import table
from fewstep.distill import cost as costs
from fewstep.distill.cost import Cost, Tally, arithmetic_speed, dry_run, predict
from fewstep.distill.objectives import objective_named
from fewstep.distill.recipes import make_recipe, read_recipe
from fewstep.distill.students import STUDENTS, networks
from fewstep.distill.terms import Draw, distance_named
from fewstep.models.lora_layers import add_lora
from fewstep.models.published import PUBLISHED, empty_unet, text_widths
from fewstep.models.text import Text
from fewstep.models.unet import predict as unet_output
from fewstep.sampling.schedule import Schedule, scaled_linear
from tests.marks import slow
from tests.tiny import tiny_unet

SD15, SSD1B, SDXL = PUBLISHED
RECIPES = sorted(
    path for path in (Path(__file__).parents[2] / "recipes").glob("*.toml") if not path.stem.startswith("pictogram")
)
SMALL = {"rank": 4, "alpha": 4, "batch": 2, "w_min": 1.5, "w_max": 1.5}
TINY = {
    "layers_per_block": 1,
    "block_out_channels": (32, 32),
    "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
}
SMALL_ONES = {
    "lora": SMALL,
    "full": SMALL | {"student": "full", "w_max": 4.0},
    "matching": SMALL | {"objective": "tdm", "phases": 2},
    "unguided": SMALL | {"w_min": 0, "w_max": 0},
}


def quick(path):
    """One method on SD 1.5 runs always; the rest, which take longer, on request."""
    wanted = path.stem == "lcm-lora-sd15"
    return pytest.param(path, id=path.stem, marks=() if wanted else pytest.mark.slow)


@pytest.mark.parametrize("path", [quick(path) for path in RECIPES])
def test_published_recipes_take_a_step_at_real_shapes(path):
    recipe = read_recipe(path)
    found = dry_run(recipe, PUBLISHED[recipe.model])
    assert found.unreached == ()
    assert set(found.losses) == ({"matching", "fake"} if recipe.objective == "tdm" else {"consistency"})
    assert set(found.losses.values()) == {(recipe.batch,)}


def test_there_is_a_recipe_for_every_method_and_family():
    methods, families = ("lcm", "lcm-lora", "pcm-lora", "dmd-lora"), ("sd15", "ssd1b", "sdxl")
    assert {path.stem for path in RECIPES} == {f"{method}-{family}" for method in methods for family in families}


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_what_is_written_into_the_result_is_what_was_trained(path):
    recipe = read_recipe(path)
    phased = recipe.objective in ("pcm", "tdm")
    assert (recipe.sampler, recipe.table) == (("pcm", "trailing") if phased else ("lcm", "linspace-lcm"))
    assert recipe.origin_steps == (40 if phased else 50)
    assert recipe.sampling_steps == recipe.phases == 4
    assert recipe.student == "full" or recipe.w_min == recipe.w_max > 0


@pytest.mark.parametrize(
    ("name", "millions", "lora", "tensors", "teraflop"),
    [
        (SD15, 859.52, 67.25, 556, 0.80),
        pytest.param(SSD1B, 1331.33, 104.90, 846, 4.21, marks=pytest.mark.slow),
        (SDXL, 2567.46, 196.75, 1576, 6.76),
    ],
)
def test_published_networks_have_their_known_sizes(name, millions, lora, tensors, teraflop):
    config = PUBLISHED[name]
    unet, (width, pooled) = empty_unet(config), text_widths(config)
    assert round(sum(value.numel() for value in unet.parameters()) / 1e6, 2) == millions
    with torch.device("meta"), torch.no_grad(), Tally() as tally:
        text = Text(torch.empty(1, 77, width), None if pooled is None else torch.empty(1, pooled))
        side = config["sample_size"]
        unet_output(unet, torch.empty(1, 4, side, side), torch.zeros(1), text)
    assert round(tally.flops / 1e12, 2) == teraflop
    with torch.device("meta"):
        layers = add_lora(unet, rank=64, alpha=64)
    assert (round(sum(value.numel() for value in layers) / 1e6, 2), len(layers)) == (lora, tensors)


def real_step(recipe):
    """(student, losses as a function of nothing): the same step with values."""
    config = tiny_unet("pictogram", **TINY).config
    student = STUDENTS[recipe.student](tiny_unet("pictogram", **TINY), recipe, size=(64, 64))
    times, _ = costs._times(recipe)
    z = torch.randn(recipe.batch, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    draw = Draw(z, z, z, times, torch.full((recipe.batch,), recipe.w))
    text, empty = (Text(torch.zeros(rows, 77, text_widths(config)[0])) for rows in (recipe.batch, 1))
    distance = distance_named(recipe.distance, huber_c=recipe.huber_c)

    def run():
        loss = objective_named(recipe.objective).loss
        losses = loss(networks(student, text, empty, w_B=draw.w_B), Schedule(scaled_linear()), draw, distance=distance)
        torch.stack([loss_B.mean() for loss_B in losses.values()]).sum().backward()

    return student, run


@pytest.mark.parametrize("name", ["unguided", *slow("full", "matching")])
def test_operations_are_those_of_a_real_step(name, monkeypatch):
    recipe = make_recipe(SMALL_ONES[name])
    monkeypatch.setattr(costs, "_DRAWS", 1)  # so that no further step of the student is averaged in
    _, run = real_step(recipe)
    with FlopCounterMode(display=False, custom_mapping=costs.FUSED_ATTENTION) as counter:
        run()
    assert predict(recipe, tiny_unet("pictogram", **TINY).config).flops == counter.get_total_flops()


@pytest.mark.parametrize(
    ("name", "checkpointing"),
    [
        ("lora", False),
        ("full", False),
        pytest.param("lora", True, marks=pytest.mark.slow),
        pytest.param("matching", False, marks=pytest.mark.slow),
    ],
)
def test_memory_is_what_the_allocator_gave_in_a_real_step(name, checkpointing):
    recipe = make_recipe(SMALL_ONES[name] | {"batch": 4, "checkpointing": checkpointing})
    student, run = real_step(recipe)
    with torch.autograd.profiler.profile(profile_memory=True) as profile:
        run()
    events = [event for event in profile.kineto_results.events() if event.name() == "[memory]"]
    changes = [event.nbytes() for event in sorted(events, key=lambda event: event.start_ns())]
    found = predict(recipe, tiny_unet("pictogram", **TINY).config)
    assert found.peak == pytest.approx(max(accumulate(changes)), rel=0.05)
    assert found.trained == sum(value.numel() for value in student.parameters.values())
    assert found.gradients == 4 * found.trained and found.moments == 8 * found.trained
    assert found.weights == sum({value.data_ptr(): value.nbytes for value in costs._tensors(student)}.values())


@pytest.mark.slow
def test_accumulation_and_precision_are_counted():
    config = tiny_unet("pictogram", **TINY).config
    one, two = (predict(make_recipe(SMALL | {"batch": 16, "accumulate": count}), config) for count in (1, 2))
    assert two.flops == 2 * one.flops and two.samples == 2 * one.samples
    assert two.peak == two.gradients + two.activations >= one.peak
    half = predict(make_recipe(SMALL | {"batch": 16, "precision": "bfloat16"}), config)
    assert half.activations < one.activations and half.flops == one.flops


@pytest.mark.slow
def test_the_average_walk_is_counted(monkeypatch):
    config, recipe = tiny_unet("pictogram", **TINY).config, make_recipe(SMALL | {"objective": "tdm", "phases": 10})
    average = predict(recipe, config).flops
    drawn, further = costs._times(recipe)
    monkeypatch.setattr(costs, "_DRAWS", 1)
    alone = predict(recipe, config).flops
    assert len(drawn.path) + further == pytest.approx(5.5, abs=0.6)  # 1 to 10 timesteps
    whole = predict(make_recipe(SMALL), config).flops  # 2 for the teacher, 1 for the target, 1 and its gradient
    assert whole / 6 < (average - alone) / further < whole / 4


@pytest.mark.slow
@pytest.mark.embedded
def test_the_command_needs_neither_data_nor_weights(tmp_path, capsys):
    recipe = tmp_path / "r.toml"
    recipe.write_text("rank = 4\nbatch = 2\n")
    assert main(["distill", str(recipe), "--dry-run", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["memory"] == found["weights"] + found["moments"] + found["peak"]
    assert set(found["gpu_hours"]) == {"H200", "H100", "A100", "4090"}
    assert main(["distill", str(recipe), "-o", "x.safetensors"]) == 2
    assert "--data" in capsys.readouterr().err


def test_the_table_says_memory_and_hours():
    cost = Cost(10**6, 10**9, 10**6, 10**7, 10**8, 2 * 10**8, 1e12, 2, 3600, "bfloat16")
    shown = table(cost)
    assert "1 TFLOP for 2 samples" in shown and "1.21 GB" in shown
    assert cost.hours("A100") == pytest.approx(1 / (312 * 0.35))


@pytest.mark.slow
def test_a_run_is_predicted_before_it_begins(new_run):
    run = new_run(steps=100)
    config = dict(run.model.unet.config)
    found = prediction.before(run)
    assert found["memory_gb"] == round(predict(run.recipe, config, size_px=run.size[0]).memory / 1e9, 3) > 0
    run.step = 50
    assert found["step_s"] > 0 and prediction.before(run)["hours"] <= found["hours"]


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_the_speed_of_arithmetic_is_a_speed(precision):
    slow, fast = (arithmetic_speed(torch.device("cpu"), precision, side=side, tries=3) for side in (8, 512))
    assert 1e4 < slow < fast < 1e15


@pytest.mark.slow
def test_eight_bit_moments_take_a_quarter():
    config, values = dict(tiny_unet("pictogram", **TINY).config), {"rank": 4, "batch": 1}
    whole, small = (predict(make_recipe(values | more), config) for more in ({}, {"optimiser": "adamw8bit"}))
    assert whole.moments == 4 * small.moments


@pytest.mark.slow
@pytest.mark.parametrize("student", ["lora", "full"])
def test_a_critic_is_counted_and_learns(student):
    config = dict(tiny_unet("pictogram", **TINY).config)
    values = {"student": student, "rank": 4, "batch": 2}
    assert dry_run(make_recipe(values | {"adversarial": 0.1}), config).unreached == ()
    plain, more = (predict(make_recipe(values | {"adversarial": weight}), config) for weight in (0.0, 0.1))
    assert more.flops > plain.flops and more.trained > plain.trained
