"""Scores of pictures and prompts on a random CLIP, and what is said when their files are not there."""

import json
import sys
import types

import numpy as np
import pytest
import torch

from fewstep.checkpoints.measures import load_clip
from fewstep.errors import CheckpointError, RequestError
from fewstep.evaluate.preference import clip_score, hps_score, image_reward, pick_score
from fewstep.models.clip import Sight
from tests.evaluate.networks import write_clip

PROMPTS = ["a cat", "a photo of a dog"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_clip(tmp_path_factory.mktemp("clip") / "tiny-clip", scale=1.5)


@pytest.fixture(scope="module")
def clip(folder):
    return load_clip(folder)


def pictures():
    return np.random.default_rng(0).integers(0, 256, (2, 40, 40, 3), dtype=np.uint8)


def cosines(clip, prompts):
    a, b = clip.pictures(pictures()).numpy(), clip.prompts(prompts).numpy()
    return (a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)


def test_three_scales_of_one_cosine(clip):
    expected = cosines(clip, PROMPTS)
    np.testing.assert_allclose(clip_score(clip).rate(pictures(), PROMPTS), 100 * expected, rtol=1e-4)
    np.testing.assert_allclose(hps_score(clip).rate(pictures(), PROMPTS), expected, rtol=1e-4)
    np.testing.assert_allclose(pick_score(clip).rate(pictures(), PROMPTS), np.exp(1.5) * expected, rtol=1e-4)
    assert {s.model for s in (clip_score(clip), hps_score(clip), pick_score(clip))} == {"tiny-clip"}


def test_a_prefix_is_part_of_the_prompt(clip):
    found = clip_score(clip, prefix="a photo of ").rate(pictures(), ["a cat", "a dog"])
    np.testing.assert_allclose(found, 100 * cosines(clip, ["a photo of a cat", "a photo of a dog"]), rtol=1e-4)


def test_prompts_are_cut_where_the_tower_ends(clip):
    fits, long = "cat " * 75, "cat " * 76
    assert (clip.is_cut(fits), clip.is_cut(long)) == (False, True)
    one = clip_score(clip, prefix="a ")
    assert one.is_cut is not None
    assert one.is_cut(fits)
    torch.testing.assert_close(clip.prompts([long]), clip.prompts([long + "dog"]))
    assert not torch.equal(clip.prompts(["cat"]), clip.prompts(["dog"]))


def test_as_many_prompts_as_pictures(clip):
    with pytest.raises(RequestError, match="2 pictures need as many prompts; found 1"):
        clip_score(clip).rate(pictures(), ["a cat"])


def test_the_way_of_seeing_is_the_folders():
    assert Sight.from_json({"size": {"shortest_edge": 40}, "crop_size": 32, "image_mean": [0, 0, 0]}).mean == (0, 0, 0)
    for other in ({"resample": 2}, {"do_center_crop": False}, {"size": {"height": 9, "width": 9}}, {"crop_size": 300}):
        with pytest.raises(CheckpointError, match=r"preprocessor_config.json"):
            Sight.from_json(other)


@pytest.mark.parametrize(
    ("name", "content", "sentence"),
    [
        ("config.json", {"model_type": "siglip"}, "a model of type 'siglip', not a CLIP"),
        ("config.json", None, "config.json' is missing"),
        ("preprocessor_config.json", None, "preprocessor_config.json' is missing"),
        ("model.safetensors", None, "model.safetensors' is missing"),
        ("vocab.json", None, "vocab.json' is missing"),
    ],
)
def test_folders_that_are_no_clip(name, content, sentence, tmp_path):
    folder = write_clip(tmp_path / "clip")
    (folder / name).unlink()
    if content is not None:
        (folder / name).write_text(json.dumps(content))
    with pytest.raises(CheckpointError, match=sentence):
        load_clip(folder)


def test_weights_of_another_size(tmp_path):
    folder = write_clip(tmp_path / "clip")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"projection_dim": 8}))
    with pytest.raises(CheckpointError, match="do not fit its config"):
        load_clip(folder)


@pytest.fixture
def reward_files(tmp_path):
    for name in ("ImageReward.pt", "med_config.json"):
        (tmp_path / name).write_text("{}")
    return tmp_path / "ImageReward.pt", tmp_path / "med_config.json"


def test_image_reward_without_its_package(reward_files, monkeypatch):
    monkeypatch.setitem(sys.modules, "ImageReward", None)
    with pytest.raises(RequestError, match="pip install image-reward"):
        image_reward(*reward_files)
    with pytest.raises(CheckpointError, match="does not exist"):
        image_reward(reward_files[0].with_name("absent.pt"), reward_files[1])


def test_image_reward_by_its_package(reward_files, monkeypatch):
    class Model:
        def score(self, prompt, image):
            return len(prompt) + image.size[0] / 100

    package = types.ModuleType("ImageReward")
    asked = {}
    package.load = lambda name, **how: asked.update(how, name=name) or Model()
    monkeypatch.setitem(sys.modules, "ImageReward", package)
    found = image_reward(*reward_files).rate(pictures(), PROMPTS)
    np.testing.assert_allclose(found, [5.4, 16.4], rtol=1e-5)
    assert asked == {"name": str(reward_files[0]), "device": "cpu", "med_config": str(reward_files[1])}
    package.load = lambda *_, **__: 1 / 0
    with pytest.raises(CheckpointError, match="ImageReward cannot load"):
        image_reward(*reward_files)
