"""Runs of a few steps on a tiny random model: resume, clipping, averages, looks, and the end of a run."""

import contextlib
import json
from itertools import islice

import pytest
import torch
from PIL import Image

import fewstep
from fewstep.checkpoints.load import load_model
from fewstep.checkpoints.lora import read_lora
from fewstep.distill import finish as ending
from fewstep.distill.finish import finish
from fewstep.distill.recipes import make_recipe
from fewstep.distill.report import look, solve, teacher_solution
from fewstep.distill.run import STATE, check_fit, save
from fewstep.distill.students import networks
from fewstep.distill.trainer import clip_gradients, draw, loss_by_quarter, train
from fewstep.errors import OutputError, QualityError, RecipeError
from fewstep.sampling.schedule import Schedule, scaled_linear, zero_terminal_snr
from tests.distill.conftest import CRITIC, FULL, LORA, MATCHING
from tests.marks import slow
from tests.tiny import tiny_folder, tiny_model


def steps_of(run, count):
    return [report.loss for report in islice(train(run), count)]


@pytest.mark.parametrize(
    "values",
    [
        pytest.param(LORA, id="lora"),
        pytest.param(FULL, id="full", marks=pytest.mark.slow),
        pytest.param(MATCHING, id="matching", marks=pytest.mark.slow),
        pytest.param(LORA | CRITIC, id="lora with critic", marks=pytest.mark.slow),
        pytest.param(FULL | CRITIC, id="full with critic", marks=pytest.mark.slow),
    ],
)
def test_a_resumed_run_continues_bit_for_bit(new_run, values):
    whole = new_run(values, folder="whole")
    losses = steps_of(whole, 6)
    first = new_run(values, folder="parts")
    begun = steps_of(first, 3)
    save(first)
    second = new_run(values, folder="parts", resume=True)
    assert begun + steps_of(second, 3) == losses
    found = second.student.tensors()
    assert all(torch.equal(value, found[name]) for name, value in whole.student.tensors().items())
    rows = [json.loads(line)["step"] for line in (second.folder / "metrics.jsonl").read_text().splitlines()]
    assert rows == [1, 2, 3, 4, 5, 6]


def test_every_weight_learns_and_the_base_does_not(new_run):
    run = new_run()
    base = {name: value.clone() for name, value in run.student.unet.state_dict().items() if ".lora_" not in name}
    steps_of(run, 3)
    now = run.student.unet.state_dict()
    assert all(torch.equal(value, now[name]) for name, value in base.items())
    # at 8x8 latents the middle block attends to one position: its queries and keys have no effect
    deaf = (
        "mid_block.attentions.0.transformer_blocks.0.attn1.to_q",
        "mid_block.attentions.0.transformer_blocks.0.attn1.to_k",
    )
    still = [name for name in run.student.parameters if ".lora_B." in name and not now[name].any()]
    assert [name for name in still if not name.startswith(deaf)] == []


def test_matching_trains_two_sets_of_layers_and_ships_one(new_run, tmp_path, monkeypatch):
    passing(monkeypatch)
    run = new_run(MATCHING)
    before = {name: value.detach().clone() for name, value in run.student.parameters.items()}
    (report,) = islice(train(run), 1)
    assert set(report.losses) == {"matching", "fake"}
    steps_of(run, 3)
    moved = {name.split(".")[-2] for name, value in run.student.parameters.items() if not value.equal(before[name])}
    assert moved == {"fewstep", "fake"} and [len(group) for group in run.student.groups] == [len(before) // 2] * 2
    result = finish(run, tmp_path / "tdm.safetensors")
    lora = read_lora(result.path, family=run.model.family)
    assert len(lora.layers) == len(before) // 4 and result.read_back_error < 2e-3


@pytest.mark.parametrize(
    "values", [LORA, FULL, pytest.param(MATCHING, marks=pytest.mark.slow)], ids=["lora", "full", "matching"]
)
def test_the_critic_learns_at_its_own_rate_and_is_not_shipped(new_run, values):
    run = new_run(values | CRITIC | {"rival_rate": 3.0})
    before = {name: value.detach().clone() for name, value in run.student.parameters.items()}
    (report,) = islice(train(run), 1)
    assert {"adversarial", "critic"} < set(report.losses)
    heads = [name for name in before if name.startswith("critic.") and name.endswith("weight")]
    assert heads and all(not torch.equal(before[name], run.student.parameters[name]) for name in heads)
    assert run.optimiser.param_groups[-1]["lr"] == pytest.approx(3 * run.optimiser.param_groups[0]["lr"])
    shipped = {name for name, _ in run.student.unet.named_parameters()}
    assert not any("critic" in name for name in shipped)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("values", "name"), [(LORA, "first.safetensors"), pytest.param(FULL, "first", marks=pytest.mark.slow)]
)
def test_a_student_starts_from_a_finished_one(new_run, tmp_path, monkeypatch, values, name):
    passing(monkeypatch)
    first = new_run(values)
    steps_of(first, 6)
    finish(first, tmp_path / name)
    second = new_run(values, folder="second", start=str(tmp_path / name), **({"rank": 6} if values is LORA else {}))
    z_BCHW, t_B = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(1)), torch.tensor([999, 400])
    text, w_B = first.cache.text([0, 1]), torch.tensor([1.5, 3.0])
    untouched = new_run(values, folder="third")
    outputs = [run.student.target(z_BCHW, t_B, text, w_B) for run in (first, second, untouched)]
    torch.testing.assert_close(outputs[1], outputs[0], rtol=0, atol=2e-3)  # the file is float16
    assert (outputs[1] - outputs[0]).norm() < 0.05 * (outputs[2] - outputs[0]).norm()


def test_a_full_student_cannot_match(new_run):
    with pytest.raises(RecipeError, match="student = 'lora'"):
        new_run(FULL | {"objective": "tdm", "phases": 2})


@pytest.mark.parametrize("name", ["lcm", "pcm", "tdm", *slow("lcf", "tcd", "tscd", "tdd")])
def test_every_method_takes_a_step(new_run, name):
    run = new_run(LORA | {"objective": name, "origin_steps": 20})
    (report,) = islice(train(run), 1)
    assert report.loss > 0 and report.gradient_norm > 0


def test_a_full_student_starts_as_its_teacher(new_run):
    run = new_run(FULL)
    drawn, text = draw(run, 0)
    three = networks(run.student, text, run.cache.empty, w_B=drawn.w_B)
    outputs = [network(drawn.z0_BCHW, drawn.times.t_B).detach() for network in (three.student, three.target)]
    teacher, _ = three.teacher(drawn.z0_BCHW, drawn.times.t_B)
    assert all(torch.allclose(output, teacher, atol=1e-5) for output in outputs)
    assert not run.student.student_unet.time_embedding.cond_proj.weight.any()


def test_the_average_follows_the_student(new_run):
    run = new_run(FULL | {"ema": 0.75, "warmup": 0})
    before = run.student.unet.conv_in.weight.clone()
    steps_of(run, 1)
    expected = 0.75 * before + 0.25 * run.student.student_unet.conv_in.weight
    assert torch.allclose(run.student.unet.conv_in.weight, expected, atol=1e-7)
    assert not torch.equal(expected, before)


@pytest.mark.parametrize("limit", [0.5, 100.0])
def test_clipping_clips(limit):
    weights = [torch.nn.Parameter(torch.zeros(3)), torch.nn.Parameter(torch.zeros(1))]
    weights[0].grad, weights[1].grad = torch.tensor([1.0, 2.0, 2.0]), torch.tensor([4.0])
    assert float(clip_gradients(weights, limit)) == pytest.approx(5.0)
    after = sum(float(weight.grad.square().sum()) for weight in weights) ** 0.5
    assert after == pytest.approx(min(limit, 5.0), rel=1e-4)


def test_the_trainer_clips(new_run):
    run = new_run(clip=1e-4)
    seen = []
    run.optimiser.register_step_pre_hook(
        lambda *_: seen.append(
            sum(float(value.grad.square().sum()) for value in run.student.parameters.values()) ** 0.5
        )
    )
    report = next(train(run))
    assert report.gradient_norm > 1e-3
    assert seen == [pytest.approx(1e-4, rel=1e-2)]


def test_draws_are_on_the_grid_and_depend_on_their_place(new_run):
    run = new_run(origin_steps=20)
    (one, _), (same, _), (other, _) = draw(run, 5), draw(run, 5), draw(run, 6)
    assert torch.equal(one.noise_BCHW, same.noise_BCHW) and not torch.equal(one.noise_BCHW, other.noise_BCHW)
    assert all((int(t) + 1) % 50 == 0 for t in one.times.t_B) and one.w_B.tolist() == [1.5, 1.5]


def test_loss_by_quarter():
    found = loss_by_quarter(torch.tensor([0, 249, 250, 999]), torch.tensor([1.0, 3.0, 5.0, 7.0]), 1000)
    assert found == (2.0, 5.0, None, 7.0)


def test_a_loss_that_is_no_number_stops(new_run):
    run = new_run()
    with torch.no_grad():
        next(iter(run.student.parameters.values())).fill_(float("nan"))
    with pytest.raises(QualityError, match="learning_rate"):
        next(train(run))


def test_a_look_is_a_picture_and_numbers(new_run):
    run = new_run()
    found = look(run)["distance"]
    assert found["student"] == pytest.approx(found["plain"], rel=1e-5)
    assert found["student"] != pytest.approx(found["guided"], rel=1e-2)
    assert set(found["student"]) == {"1", "2"}
    with Image.open(run.folder / "samples-000000.png") as image:
        assert image.width > 3 * 64 and image.height > 2 * 64  # headings and captions beside the pictures


def test_the_solution_is_the_teachers_guided_ddim(new_run):
    from diffusers import DDIMScheduler

    run = new_run()
    solver = DDIMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", prediction_type="v_prediction",
        clip_sample=False, set_alpha_to_one=False, timestep_spacing="trailing",
    )  # fmt: skip
    solver.set_timesteps(4)
    from fewstep.data.seeds import noise_at
    from fewstep.distill.report import _networks

    z, guided = noise_at((2, 4, 8, 8), 0, "look"), _networks(run)["guided"]
    for t in solver.timesteps:
        z = solver.step(guided(z, t.expand(2)), t, z).prev_sample
    assert torch.allclose(teacher_solution(run), z, atol=1e-4)


def passing(monkeypatch):
    """Let every student be nearer than its teacher: whether a real one is, is not the matter of these tests."""
    monkeypatch.setattr(ending, "distance", lambda run, who, steps: {"student": 1.0, "guided": 2.0, "plain": 3.0}[who])


@pytest.mark.parametrize("precision", [pytest.param("float32", marks=pytest.mark.slow), "bfloat16"])
def test_a_finished_lora_is_written_and_read_back(new_run, tmp_path, monkeypatch, precision):
    passing(monkeypatch)
    run = new_run(precision=precision)
    steps_of(run, 6)
    result = finish(run, tmp_path / "lcm.safetensors")
    assert result.read_back_error < 2e-3 and not (run.folder / STATE).exists()
    lora = read_lora(tmp_path / "lcm.safetensors", family=run.model.family)
    assert (lora.sampling.sampler, lora.sampling.steps, lora.sampling.guidance) == ("lcm", 2, 1.0)
    assert lora.metadata["fewstep.w"] == "1.5" and lora.is_consistency
    said = lora.metadata
    assert (said["modelspec.resolution"], said["ss_resolution"]) == ("64x64", "(64, 64)")
    assert (said["ss_steps"], said["ss_learning_rate"], said["ss_total_batch_size"]) == ("6", "0.001", "2")
    assert said["modelspec.prediction_type"] == "v" and said["modelspec.usage_hint"] == "LCM sampler, 2 steps, CFG 1"
    assert json.loads((run.folder / "result.json").read_text())["student"] == 1.0


def test_a_finished_full_student_is_a_model(new_run, tmp_path, monkeypatch):
    passing(monkeypatch)
    run = new_run(FULL)
    steps_of(run, 2)
    result = finish(run, tmp_path / "lcm")
    model = load_model(tmp_path / "lcm", device="cpu")
    assert result.read_back_error < 1e-5
    assert model.sampling.embedded_guidance and model.sampling.guidance == 1 + run.recipe.w


def test_an_untrained_student_is_refused(new_run, tmp_path):
    run = new_run()
    with pytest.raises(QualityError, match="as its teacher does"):
        finish(run, tmp_path / "lcm.safetensors")
    assert (tmp_path / "lcm.rejected.safetensors").is_file() and not (tmp_path / "lcm.safetensors").exists()


def test_a_ruined_student_is_refused(new_run, tmp_path):
    run = new_run()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for value in run.student.parameters.values():
            value.copy_(torch.randn(value.shape, generator=generator))
    with pytest.raises(QualityError, match=r"rejected\.safetensors"):
        finish(run, tmp_path / "lcm.safetensors")
    assert QualityError.exit_code == 3


@pytest.mark.parametrize(
    ("found", "accepted"),
    [
        ({"student": 1.0, "plain": 2.0, "guided": {1: 3.0, 2: 0.5}}, True),  # two guided steps are four evaluations
        ({"student": 1.0, "plain": 2.0, "guided": {1: 0.9, 2: 0.5}}, False),
        pytest.param({"student": 1.0, "plain": 0.9, "guided": {1: 3.0, 2: 3.0}}, False, marks=pytest.mark.slow),
        pytest.param(
            {"student": float("nan"), "plain": 2.0, "guided": {1: 3.0, 2: 3.0}}, False, marks=pytest.mark.slow
        ),
    ],
)
def test_teacher_and_student_are_compared_at_equal_evaluations(new_run, tmp_path, monkeypatch, found, accepted):
    def distance(run, who, steps):
        return found[who][steps] if who == "guided" else found[who]

    monkeypatch.setattr(ending, "distance", distance)
    run = new_run()
    assert run.recipe.sampling_steps == 2
    steps_of(run, 6)
    with contextlib.nullcontext() if accepted else pytest.raises(QualityError, match="as many evaluations"):
        finish(run, tmp_path / "lcm.safetensors")
    assert (tmp_path / "lcm.safetensors").exists() == accepted


def test_a_file_that_answers_otherwise_is_refused(new_run, tmp_path, monkeypatch):
    passing(monkeypatch)
    run = new_run()
    steps_of(run, 2)
    monkeypatch.setitem(
        ending._FORMS, "lora", (ending._write_lora, lambda run, path: ending._plain_copy(run.student.unet))
    )
    monkeypatch.setattr(ending, "TOLERANCE", 1e-6)
    with pytest.raises(QualityError, match="differently"):
        finish(run, tmp_path / "lcm.safetensors")


@pytest.mark.parametrize("values", [LORA, *slow(FULL)], ids=["lora", "full"])
@pytest.mark.parametrize(
    ("objective", "sampler", "table"), [("pcm", "PCM", "trailing"), ("tcd", "TCD", "linspace-lcm")]
)
def test_what_comes_out_is_sampled_as_it_was_trained_to_be(
    new_run, tmp_path, monkeypatch, values, objective, sampler, table
):
    passing(monkeypatch)
    run = new_run(values | {"objective": objective, "origin_steps": 20, "phases": 2})
    steps_of(run, 1)
    path = finish(run, tmp_path / ("x.safetensors" if values is LORA else "x")).path
    pipe = fewstep.load(tiny_folder("pictogram"), lora=path) if values is LORA else fewstep.load(path)
    plan = pipe.plan(fewstep.Request(prompt="a cat", width=64, height=64, seed=1))
    assert (plan.sampler.label, plan.table, len(plan.timesteps), plan.origin_steps) == (sampler, table, 2, 20)
    assert plan.guidance == (1 + run.recipe.w if values is FULL else 1.0) and plan.embedded == (values is FULL)


@pytest.mark.slow
def test_a_matched_lora_is_sampled_by_its_segments(new_run, tmp_path, monkeypatch):
    passing(monkeypatch)
    run = new_run(MATCHING)
    steps_of(run, 1)
    pipe = fewstep.load(tiny_folder("pictogram"), lora=finish(run, tmp_path / "x.safetensors").path)
    plan = pipe.plan(fewstep.Request(prompt="a cat", width=64, height=64, seed=1))
    assert (plan.sampler.label, plan.table, plan.timesteps) == ("PCM", "trailing", (999, 499))


@pytest.mark.parametrize(("values", "name"), [(LORA, "lcm.pt"), (FULL, "file.txt")])
def test_a_bad_place_is_refused(new_run, tmp_path, values, name):
    (tmp_path / "file.txt").write_text("mine")
    with pytest.raises(OutputError):
        finish(new_run(values), tmp_path / name)
    assert (tmp_path / "file.txt").read_text() == "mine"


def test_runs_are_not_overwritten_nor_mixed(new_run):
    with pytest.raises(RecipeError, match="no checkpoint"):
        new_run(resume=True)
    save(new_run())
    with pytest.raises(RecipeError, match="--resume"):
        new_run()
    with pytest.raises(RecipeError, match="rank"):
        new_run(rank=2, resume=True)
    (new_run(resume=True).folder / STATE).write_bytes(b"torn")
    with pytest.raises(RecipeError, match="cannot be read"):
        new_run(resume=True)


def test_what_does_not_fit_is_refused(cache):
    model = tiny_model("sd15")
    with pytest.raises(RecipeError, match="32"):
        check_fit(make_recipe({}), model, cache)
    with pytest.raises(RecipeError, match="30"):
        check_fit(make_recipe({"origin_steps": 30}), model, cache)
    model.schedule = Schedule(zero_terminal_snr(scaled_linear()), "epsilon")
    with pytest.raises(RecipeError, match="zero terminal SNR"):
        check_fit(make_recipe({}), model, cache)


def test_the_students_sampling_has_its_own_noise_each_step(new_run):
    run = new_run()
    assert torch.equal(solve(run, "student", 2), solve(run, "student", 2))
    assert not torch.equal(solve(run, "student", 1), solve(run, "student", 2))
