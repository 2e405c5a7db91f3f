"""The known defects of the public distillation scripts, and the traps beside them: none of them is here.

Each row of COVERED names a defect and the tests elsewhere that hold it off; those without one are tested below.
"""

import ast
from itertools import islice
from pathlib import Path

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from fewstep.data.latents import LatentCache, write_cache
from fewstep.distill.objectives import objective_named, teacher_jump
from fewstep.distill.recipes import make_recipe
from fewstep.distill.run import begin
from fewstep.distill.students import GUIDANCE_KEY, STUDENTS, networks, with_guidance_embedding
from fewstep.distill.terms import Draw, Networks, distance_named
from fewstep.distill.times import Times
from fewstep.distill.trainer import draw, train
from fewstep.models.text import Text
from fewstep.models.unet import predict
from fewstep.sampling.consistency import boundary_scalings, consistency_function
from fewstep.sampling.sampler import sample, sampler_named
from fewstep.sampling.schedule import Schedule, scaled_linear
from fewstep.sampling.timesteps import timesteps
from tests.tiny import tiny_model, tiny_unet

TESTS = Path(__file__).parents[1]
COVERED = {
    "clipping of an empty iterator": ("distill/test_training.py", "test_clipping_clips", "test_the_trainer_clips"),
    "guidance projection not zero": ("distill/test_training.py", "test_a_full_student_starts_as_its_teacher"),
    "v prediction taken for noise": (
        "distill/test_objectives.py",
        "test_one_step_is_the_papers",
    ),
    "the least noisy point lands nowhere": (
        "distill/test_objectives.py",
        "test_at_the_first_grid_point_the_target_network_is_not_heard",
        "test_grid_pairs_end_at_zero_and_never_wrap",
    ),
    "size conditions swapped": ("models/test_unet.py", "test_equals_a_direct_call"),
    "w of a LoRA drawn at random": ("distill/test_recipes.py", "test_what_is_wrong_is_said"),
    "the data's position lost on resume": (
        "distill/test_training.py",
        "test_a_resumed_run_continues_bit_for_bit",
        "test_draws_are_on_the_grid_and_depend_on_their_place",
    ),
    "batches that depend on a state": ("data/test_latents.py", "test_batches_depend_on_seed_and_step_alone"),
    "the published layers missed": ("models/test_lora_layers.py", "test_targets_are_those_of_the_published_lcm_lora"),
    "alpha and metadata missing": (
        "checkpoints/test_lora_write.py",
        "test_layers_file_merge_and_diffusers_are_one",
        "test_metadata_for_others",
    ),
    "noise added in half precision": ("sampling/test_schedule.py", "test_half_precision_is_computed_in_single"),
    "guidance embedding without 1000, or cosines first": (
        "sampling/test_guidance.py",
        "test_the_embedding_has_sines_first_and_the_factor_1000",
        "test_the_embedding_tells_guidance_apart",
    ),
    "the empty prompt of SDXL encoded": ("models/test_text.py", "test_negative_convention"),
    "text of the wrong layer": (
        "models/test_text.py",
        "test_one_encoder_equals_diffusers",
        "test_two_encoders_equal_diffusers",
    ),
    "the autoencoder overflows in half precision": (
        "models/test_vae.py",
        "test_overflow_in_half_precision_is_retried_in_float32",
        "test_encode_is_diffusers_times_the_scale",
    ),
    "zero terminal SNR is infinite": (
        "distill/test_objectives.py",
        "test_zero_terminal_snr_is_finite",
    ),
    "phases trained at other edges than sampled": (
        "sampling/test_samplers.py",
        "test_trailing_timesteps_land_on_the_phase_edges",
    ),
    "the squared distance by default, pseudo-Huber otherwise": (
        "distill/test_objectives.py",
        "test_pseudo_huber_is_squared_then_absolute",
    ),
    "layers in the wrong state after an error": (
        "models/test_lora_layers.py",
        "test_base_only_restores_after_an_error",
        "test_gradients_survive_a_teacher_pass_before_backward",
    ),
}

SMALL = {"rank": 4, "alpha": 4, "batch": 4, "w_min": 1.5, "w_max": 1.5, "look_every": 0, "steps": 3}


@pytest.mark.parametrize("defect", COVERED)
def test_what_is_said_to_be_covered_is(defect):
    file, *names = COVERED[defect]
    tree = ast.parse((TESTS / file).read_text())
    assert set(names) <= {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    folder, generator = tmp_path_factory.mktemp("cache"), torch.Generator().manual_seed(0)
    samples = [(torch.randn(4, 8, 8, generator=generator), caption) for caption in ("a cat", "a dog", "the moon")]
    list(write_cache(folder, tiny_model("pictogram"), samples))
    return LatentCache(folder)


def new_run(cache, folder, **values):
    return begin(make_recipe(SMALL | values), tiny_model("pictogram"), cache, folder=folder)


class Formats(TorchDispatchMode):
    """The number formats of everything computed inside."""

    def __init__(self):
        super().__init__()
        self.found = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        self.found |= {value.dtype for value in tree_leaves(out) if isinstance(value, torch.Tensor)}
        return out


@pytest.mark.parametrize("values", [{}, {"student": "full", "w_max": 4.0}, {"objective": "tdm"}])
def test_no_tensor_of_a_step_is_float64(cache, tmp_path, values):
    run = new_run(cache, tmp_path / "run", origin_steps=40, **values)
    with Formats() as formats:
        next(iter(train(run)))
    assert torch.float32 in formats.found
    assert torch.float64 not in formats.found


def test_the_mode_would_see_a_float64():
    with Formats() as formats:
        torch.tensor([1.0], dtype=torch.float64) * 2
    assert torch.float64 in formats.found


@pytest.mark.parametrize(("share", "least", "most"), [(0.0, 0, 0), (0.3, 30, 90), (1.0, 200, 200)])
def test_empty_captions_are_trained_in_their_share(cache, tmp_path, share, least, most):
    run = new_run(cache, tmp_path / "run", empty_captions=share)
    texts = torch.cat([draw(run, place)[1].text_BLD for place in range(50)])
    empty = int((texts == cache.empty.text_BLD).flatten(1).all(1).sum())
    assert least <= empty <= most


def test_the_optimiser_holds_every_trained_weight_once(cache, tmp_path):
    run = new_run(cache, tmp_path / "run")
    held = [value for group in run.optimiser.param_groups for value in group["params"]]
    assert all(isinstance(group, list) for group in run.student.groups)
    assert len(held) == len({id(value) for value in held})
    assert {id(value) for value in held} == {id(v) for v in run.student.unet.parameters() if v.requires_grad}


@pytest.mark.parametrize("kind", ["sdxl", "ssd1b"])
def test_the_guided_teacher_sees_height_first_and_the_same_sizes_without_text(kind):
    unet = tiny_unet(kind)
    student = STUDENTS["lora"](unet, make_recipe(SMALL), size=(96, 64))
    asked = []
    unet.register_forward_pre_hook(lambda module, args, kwargs: asked.append(kwargs), with_kwargs=True)
    width = unet.config["cross_attention_dim"]
    text = Text(torch.ones(2, 77, width), torch.ones(2, 32))
    empty = Text(torch.zeros(1, 77, width), torch.zeros(1, 32))
    three = networks(student, text, empty, w_B=torch.full((2,), 7.5))
    three.teacher(torch.zeros(2, 4, 12, 8), torch.tensor([999, 19]))
    (kwargs,) = asked  # one call for both prompts
    added = kwargs["added_cond_kwargs"]
    assert added["time_ids"].tolist() == [[96, 64, 0, 0, 96, 64]] * 4
    assert added["text_embeds"].mean(1).tolist() == [1, 1, 0, 0]
    assert kwargs["encoder_hidden_states"].mean((1, 2)).tolist() == [1, 1, 0, 0]


def test_a_config_that_says_nothing_of_guidance_still_gets_an_embedding():
    unet = tiny_unet("sd15")
    assert "time_cond_proj_dim" in unet.config["_use_default_values"]
    student = with_guidance_embedding(unet, 256)
    assert student.get_parameter(GUIDANCE_KEY).shape == (32, 256)
    z, text = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0)), Text(torch.ones(2, 77, 32))
    answers = [predict(network, z, torch.tensor([999, 19]), text).detach() for network in (student, unet)]
    assert torch.equal(*answers)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_the_boundary_is_a_switch_in_half_precision_too(dtype):
    z = torch.ones(4, 1, 1, 1, dtype=dtype)
    c_skip, c_out = boundary_scalings(torch.tensor([0, 19, 259, 999]), z)
    assert c_out.dtype == torch.float32
    assert c_out.flatten().tolist() == pytest.approx([0, 1, 1, 1], abs=1e-4)
    assert c_skip.flatten().tolist() == pytest.approx([1, 0, 0, 0], abs=1e-4)
    assert consistency_function(z, 2 * z, torch.tensor([0, 19, 259, 999])).dtype == torch.float32


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_a_jump_to_timestep_0_keeps_the_schedules_least_noise(prediction):
    """With abar = 1 there, the anchor of the whole method would be another latent."""
    schedule = Schedule(scaled_linear(), prediction)
    z0, noise = torch.randn(2, 1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    (a, s), (a_0, s_0) = (schedule.alpha_sigma(t, z0) for t in (19, 0))
    answer = noise if prediction == "epsilon" else a * noise - s * z0
    exact = Networks(student=None, target=None, teacher=lambda z, t: (answer, None))
    times = Times(*(torch.tensor([t]) for t in (19, 0, 0)))
    _, jumped = teacher_jump(exact, schedule, Draw(z0, noise, noise, times, torch.zeros(1)))
    assert torch.allclose(jumped, a_0 * z0 + s_0 * noise, atol=1e-5)
    assert not torch.allclose(jumped, z0, atol=1e-2)


def test_part_of_the_noise_leaves_none_in_the_last_step():
    """Of another library's sampler, given its own timesteps and a strength, the last step adds noise again."""
    visited = timesteps("linspace-lcm", 2, strength=0.5)
    asked = []

    def noise(index):
        asked.append(index)
        return torch.full((1, 4, 2, 2), 100.0)

    schedule, z = Schedule(scaled_linear()), torch.zeros(1, 4, 2, 2)
    steps = list(sample(lambda z, t: z * 0, z, visited, sampler=sampler_named("lcm"), schedule=schedule, noise=noise))
    assert [step.t for step in steps] == list(visited) and asked == [0]
    assert steps[-1].z.abs().max() < 1e-2


def gradients(values):
    """The first step's gradient of every trained weight, from weights that no longer add nothing."""
    recipe = make_recipe(SMALL | values)
    student = STUDENTS[recipe.student](tiny_unet("pictogram"), recipe, size=(64, 64))
    generator = torch.Generator().manual_seed(0)
    for value in student.parameters.values():
        value.data += 0.05 * torch.randn(value.shape, generator=generator)
    z, noise, again = torch.randn(3, 4, 4, 8, 8, generator=generator)
    times = objective_named(recipe.objective).times(recipe, 1000, generator)
    text, empty = (Text(torch.randn(rows, 77, 160, generator=generator)) for rows in (4, 1))
    three = networks(student, text, empty, w_B=torch.full((4,), 1.5))
    losses = objective_named(recipe.objective).loss(
        three, Schedule(scaled_linear()), Draw(z, noise, again, times, torch.full((4,), 1.5)),
        distance=distance_named("l2", huber_c=1e-3),
    )  # fmt: skip
    torch.stack([loss_B.mean() for loss_B in losses.values()]).sum().backward()
    return {name: value.grad for name, value in student.parameters.items()}


@pytest.mark.parametrize(
    "values", [{}, {"student": "full"}, pytest.param({"objective": "tdm", "origin_steps": 40}, marks=pytest.mark.slow)]
)
def test_recomputed_activations_are_those_of_the_same_layers(values):
    """Checkpointing runs a block again in the backward pass, when another set of layers may be switched on."""
    plain, again = (gradients(values | {"checkpointing": on}) for on in (False, True))
    assert all(plain[name] is not None for name in plain)
    far = [name for name in plain if not torch.allclose(plain[name], again[name], rtol=1e-3, atol=1e-6)]
    assert far == []


def test_a_run_goes_on_with_the_pictures_that_come_next(cache, tmp_path):
    run = new_run(cache, tmp_path / "run")
    seen = [run.cache.batch(0, place, size=2).rows for place in range(3)]
    list(islice(train(run), 2))
    assert [run.cache.batch(0, place, size=2).rows for place in range(3)] == seen
    assert sorted(row for rows in seen for row in rows) == [0, 0, 1, 1, 2, 2]
