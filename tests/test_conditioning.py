"""Composed and changing prompts in a picture, against loops and sums made by hand."""

import numpy as np
import pytest
import torch

from fewstep.backends.eager import EagerDenoiser
from fewstep.conditioning import Composed, Known, Staged, conditioned, residual
from fewstep.errors import CheckpointError, LoraError, RequestError
from fewstep.pipeline import Pipeline
from fewstep.request import Request
from fewstep.sampling.schedule import Schedule, add_noise, scaled_linear, to_eps, to_z0
from tests.tiny import tiny_model


class Plain:
    """What a runner of an ordinary network says to the question that only an inpainting one answers."""

    def beside(self, image, mask, size):
        return None


Z = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def pipe():
    return Pipeline(tiny_model("sd15"))


@pytest.fixture(scope="module")
def lcm():
    return Pipeline(tiny_model("lcm"))


def alone(pipe, words, guidance=1.0, negative=None):
    text = pipe.model.text
    away = None if negative is None else text.encode([negative])
    return EagerDenoiser(pipe.model, text.encode([words]), away, guidance)(Z, 499)


def found(pipe, prompt, **fields):
    return conditioned(pipe.runner, pipe.plan(Request(prompt, **fields)), {})(Z, 499)


@pytest.mark.parametrize("guidance", [1.0, 1.5, 2.5])
def test_composed_prompts_are_a_sum(pipe, guidance):
    cat, dog, away = (alone(pipe, words) for words in ("a cat", "a dog", "moon"))
    expected = away + guidance * (cat - away) + guidance * 0.5 * (dog - away)
    result = found(pipe, "a cat AND a dog :0.5", guidance=guidance, negative_prompt="moon")
    torch.testing.assert_close(result, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("guidance", [1.0, 2.0])
def test_one_prompt_in_two_halves_is_that_prompt(pipe, guidance):
    whole = alone(pipe, "a cat", guidance, "moon")
    halves = found(pipe, "a cat :0.5 AND a cat :0.5", guidance=guidance, negative_prompt="moon")
    torch.testing.assert_close(halves, whole, rtol=1e-4, atol=1e-4)


def test_without_a_share_the_negative_prompt_is_not_asked(pipe):
    plan = pipe.plan(Request("a cat :0.5 AND a dog :0.5", guidance=1, negative_prompt="moon"))
    assert not plan.guided and "no effect" in plan.notes[0]
    assert pipe.plan(Request("a cat AND a dog", guidance=1, negative_prompt="moon")).guided


def test_a_guidance_embedding_takes_the_mean(lcm):
    plan = lcm.plan(Request("a cat AND a dog :3", guidance=4))
    assert not plan.guided
    cat, dog = (
        EagerDenoiser(lcm.model, lcm.model.text.encode([words]), None, 4.0)(Z, 499) for words in ("a cat", "a dog")
    )
    result = conditioned(lcm.runner, plan, {})(Z, 499)
    torch.testing.assert_close(result, (cat + 3 * dog) / 4, rtol=1e-4, atol=1e-4)
    with pytest.raises(RequestError, match="add up to 0"):
        lcm("a cat AND a dog :-1", steps=1)


@pytest.mark.parametrize("sampler", ["lcm", "dpmpp_2m", "heun", "dpm2_a", "dpmpp_sde"])
@pytest.mark.parametrize("steps", range(1, 9))
def test_a_prompt_changes_at_its_step(pipe, sampler, steps):
    plan = pipe.plan(Request("[cat:dog:0.5]", steps=steps, sampler=sampler, seed=0, guidance=1))
    change = steps // 2
    asked = []

    def spy(words):
        return lambda z, t: asked.append((float(t.reshape(-1)[0]), words)) or z

    class Runner(Plain):
        def denoiser(self, words, negative, guidance, reading):
            return spy(words)

    denoiser = conditioned(Runner(), plan, {})
    for timestep in plan.timesteps:
        denoiser(Z, torch.tensor(timestep, dtype=torch.float32).expand(2))
        denoiser(Z, torch.tensor(timestep - 1e-2).expand(2))  # a walk's evaluation just after
    expected = ["cat"] * 2 * change + ["dog"] * 2 * (steps - change)
    assert [words for _, words in asked] == expected


def test_what_stays_the_same_is_encoded_once(pipe):
    plan, made = pipe.plan(Request("[cat|dog]", steps=8)), []

    class Runner(Plain):
        def denoiser(self, words, negative, guidance, reading):
            made.append(words)
            return lambda z, t: z

    conditioned(Runner(), plan, {})
    assert made == ["cat", "dog"]


def test_items_at_different_timesteps_get_their_own_prompt():
    for array, same in ((torch.zeros(3, 1, 1, 1), torch.tensor), (np.zeros((3, 1, 1, 1)), np.array)):
        denoiser = Staged(((999.0, lambda z, t: z + 1), (500.0, lambda z, t: z + 2), (100.0, lambda z, t: z + 3)))
        assert denoiser(array, same([999, 500, 99])).reshape(-1).tolist() == [1, 2, 3]
        assert denoiser(array, same([750, 750, 750])).reshape(-1).tolist() == [1, 1, 1]
        assert denoiser(array, 0).reshape(-1).tolist() == [3, 3, 3]


def test_composed_weights():
    assert Composed(((lambda z, t: z, 2.0), (lambda z, t: z * t, -1.0)))(3.0, 5.0) == -9


def same_pictures(one, other):
    return np.array_equal(np.asarray(one), np.asarray(other))


def test_a_picture_of_a_changing_prompt_equals_two_halves(pipe):
    """Half with one prompt, half with the other, the steps taken by hand."""
    from fewstep.sampling.sampler import sample

    fields = {"steps": 4, "seed": 3, "guidance": 1.0, "sampler": "dpmpp_2m"}
    plan = pipe.plan(Request("a cat", **fields))
    halves = [EagerDenoiser(pipe.model, pipe.model.text.encode([words])) for words in ("a cat", "a dog")]
    z = pipe.runner.noise([3], plan.size)()
    count = iter(range(4))
    turns = lambda z, t: halves[next(count) // 2](z, t)  # noqa: E731
    steps = sample(turns, z, plan.timesteps, sampler=plan.sampler, schedule=pipe.model.schedule, noise=None)
    expected = pipe.runner.decode([step.z for step in steps][-1])[0]
    assert same_pictures(pipe("a [cat:dog:0.5]", **fields), expected)


def test_the_text_of_the_settings_has_the_prompt_as_it_was_written(pipe):
    from fewstep.infotext import parse

    prompt = "a [cat:(dog:1.2):0.5] AND [moon|a] :0.3"
    picture = pipe(prompt, steps=2, seed=0, emphasis="no norm")
    info = parse(picture.info["parameters"])
    assert info.prompt == prompt and info.settings["Emphasis"] == "No norm"


# ---- shelves


def embedding(path, width=32, **tensors):
    from safetensors.torch import save_file

    generator = torch.Generator().manual_seed(len(path.name))
    save_file(tensors or {"emb_params": torch.randn(2, width, generator=generator)}, path)
    return path


def test_embeddings_are_found_by_their_word(tmp_path):
    (tmp_path / "sub").mkdir()
    embedding(tmp_path / "sub" / "inky-style.safetensors")
    embedding(tmp_path / "unused-and-wide.safetensors", width=48)
    pipe = Pipeline(tiny_model("sd15"), embeddings=tmp_path)
    plain = Pipeline(tiny_model("sd15"))
    prompt = "a cat, (Inky-Style:1.2)"
    assert not same_pictures(pipe(prompt, steps=1, seed=0), plain(prompt, steps=1, seed=0))
    assert same_pictures(pipe("a cat", steps=1, seed=0), plain("a cat", steps=1, seed=0))
    assert pipe.tokens(pipe.plan(Request("a inky-style", steps=1)))["prompt"]["tokens"] == 3
    with pytest.raises(RequestError, match="has the width 48, but this model's text has 32"):
        pipe("unused-and-wide", steps=1)
    with pytest.raises(CheckpointError, match="no embeddings at"):
        Pipeline(tiny_model("sd15"), embeddings=tmp_path / "none")


def test_an_embedding_that_is_a_pickle_or_damaged(tmp_path):
    (tmp_path / "old.pt").write_bytes(b"\x80\x02")
    (tmp_path / "torn.safetensors").write_bytes(b"\xff" * 20)
    pipe = Pipeline(tiny_model("sd15"), embeddings=[tmp_path])
    pipe("a cat", steps=1)
    with pytest.raises(RequestError, match="a pickle, which can run code"):
        pipe("a cat, old", steps=1)
    with pytest.raises(CheckpointError, match=r"torn\.safetensors"):
        pipe("torn", steps=1)


@pytest.fixture
def shelf(tmp_path):
    from fewstep.checkpoints.lora import write_lora

    module = "down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_v"
    pair = torch.linspace(-9, 9, 64).reshape(2, 32), torch.linspace(9, -9, 64).reshape(32, 2)
    (tmp_path / "styles" / "twice").mkdir(parents=True)
    for name in ("styles/ink.safetensors", "styles/Twin.safetensors", "styles/twice/Twin.safetensors"):
        write_lora(tmp_path / name, {module: pair}, alpha=2)
    return tmp_path


def test_loras_are_found_by_their_name_in_the_folder(shelf, tmp_path):
    from safetensors import safe_open
    from safetensors.torch import save_file

    ink = shelf / "styles" / "ink.safetensors"
    with safe_open(ink, "pt") as file:
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        save_file(tensors, shelf / "v2-final.safetensors", {**file.metadata(), "ss_output_name": "Brush"})
    pipe = Pipeline(tiny_model("sd15"), lora_folder=shelf)
    plain, wanted = pipe("a cat", steps=1, seed=0), pipe("a cat <lora:ink:0.7>", steps=1, seed=0)
    assert not same_pictures(plain, wanted)
    for name in ("INK", "Brush", "brush", "v2-final"):
        assert same_pictures(pipe(f"a cat <lora:{name}:0.7>", steps=1, seed=0), wanted), name
    with pytest.raises(LoraError, match="'Twin' more than once: 'styles/Twin.safetensors' and 'styles/twice/"):
        pipe("a <lora:Twin:1>", steps=1)
    with pytest.raises(LoraError, match="There is no LoRA 'pen' .* nor in"):
        pipe("a <lora:pen:1>", steps=1)
    with pytest.raises(LoraError, match="is a path"):
        pipe("a <lora:styles/ink:1>", steps=1)
    with pytest.raises(LoraError, match="folder .* does not exist"):
        Pipeline(tiny_model("sd15"), lora_folder=shelf / "none")


def test_an_embedding_that_a_lora_brings(shelf):
    from safetensors import safe_open
    from safetensors.torch import save_file

    with safe_open(shelf / "styles" / "ink.safetensors", "pt") as file:
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    extra = {"bundle_emb.sigil.string_to_param.*": torch.ones(2, 32)}
    save_file(tensors | extra, shelf / "bundled.safetensors")
    pipe = Pipeline(tiny_model("sd15"), lora_folder=shelf)
    with_word, without = (pipe(f"a sigil <lora:{name}:0.1>", steps=1, seed=0) for name in ("bundled", "ink"))
    assert not same_pictures(with_word, without)
    plan = pipe.plan(Request("a sigil <lora:bundled:0.1>", steps=1))
    assert pipe.tokens(plan)["prompt"]["tokens"] == 3 and not plan.notes


# ---- guidance away from the picture that was begun from


class Claims:
    """A network whose output, of the schedule's kind, is given."""

    def __init__(self, schedule, output_BCHW):
        self.schedule, self.output_BCHW = schedule, output_BCHW

    def __call__(self, z_BCHW, timestep_B):
        return to_z0(self.schedule, z_BCHW, self.output_BCHW, timestep_B)


@pytest.mark.parametrize("library", ["torch", "numpy"])
@pytest.mark.parametrize("kind", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("guidance", [0.0, 1.0, 1.4, 3.0])
def test_residual_guidance_is_that_of_the_noise(guidance, kind, library):
    """eps_bar = (z_t - alpha z) / sigma; eps = eps_bar + s (eps_text - eps_bar); z0 of that: item by item."""
    schedule, timestep_B = Schedule(scaled_linear(), kind), torch.tensor([999, 499, 19])
    picture, noise, output = torch.randn(3, 3, 4, 8, 8, generator=torch.Generator().manual_seed(1))
    z_BCHW = add_noise(schedule, picture, noise, timestep_B)
    alpha, sigma = schedule.alpha_sigma(timestep_B, z_BCHW)
    eps_bar, eps_text = (z_BCHW - alpha * picture) / sigma, to_eps(schedule, z_BCHW, output, timestep_B)
    expected = (z_BCHW - sigma * (eps_bar + guidance * (eps_text - eps_bar))) / alpha
    given = [picture, output, z_BCHW, timestep_B]
    picture, output, z_BCHW, timestep_B = [x.numpy() for x in given] if library == "numpy" else given
    found = residual(Claims(schedule, output), picture, guidance)(z_BCHW, timestep_B)
    torch.testing.assert_close(torch.as_tensor(found), expected, rtol=1e-4, atol=1e-4)
    both = Known.joined([Known(picture[:1]), Known(picture[1:])])
    assert (both(z_BCHW, timestep_B) == picture).all()


def test_residual_guidance_of_changing_and_composed_prompts(pipe):
    picture = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(2))
    for prompt in ("a [cat|dog]", "a cat AND a dog :0.5"):
        plain = conditioned(pipe.runner, pipe.plan(Request(prompt, steps=2, guidance=1)), {})
        expected = picture + 1.5 * (plain(Z, 499) - picture)
        torch.testing.assert_close(residual(plain, picture, 1.5)(Z, 499), expected, rtol=1e-4, atol=1e-4)
