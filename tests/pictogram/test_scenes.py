"""The training distribution: what is held out stays out, captions say what is shown, a seed fixes everything."""

import numpy as np
import pytest
from PIL import Image

from pictogram.concepts import CONCEPTS, EVERYDAY, TRAIN_STYLES, background_held_out, style_held_out
from pictogram.loop import run
from pictogram.scenes import SIZE_PX, article, background_phrase, compose, plural, trained


@pytest.fixture(scope="module")
def cutouts():
    square = Image.new("RGBA", (32, 32), (200, 40, 40, 255)).convert("RGBa")
    return {f"{style}/{slug}": square for style in TRAIN_STYLES for slug in CONCEPTS}


def scenes(cutouts, count, seed=0, **options):
    rng = np.random.default_rng(seed)
    return [compose(cutouts, rng, trained(), **options) for _ in range(count)]


def test_what_is_held_out_is_never_shown(cutouts):
    drawn = scenes(cutouts, 1500)
    assert not [s for s in drawn if style_held_out(s.slug, s.style) or background_held_out(s.slug, s.background)]
    assert sum(style_held_out(slug, style) for slug in CONCEPTS for style in TRAIN_STYLES) == 14  # every eighth of 110
    assert 0.02 < np.mean([background_held_out(slug, b) for slug in CONCEPTS for b in ("red", "night", "sea")]) < 0.08


def test_everyday_words_are_a_part_of_all():
    assert set(CONCEPTS) > EVERYDAY
    assert set(trained(words="everyday")) < set(trained())


def test_a_seed_fixes_the_scene(cutouts):
    for one, other in zip(scenes(cutouts, 30), scenes(cutouts, 30), strict=True):
        assert one.caption == other.caption
        assert np.array_equal(np.asarray(one.image), np.asarray(other.image))


def test_captions_say_what_is_shown(cutouts):
    for scene in scenes(cutouts, 300):
        assert scene.image.size == (SIZE_PX, SIZE_PX)
        if scene.background != "white":
            assert scene.caption.endswith(background_phrase(scene.background))
        if scene.kind == "single":
            assert any(name in scene.caption for name in CONCEPTS[scene.slug])


@pytest.mark.parametrize("extras", [0.0, 0.5])
def test_extras_are_the_share_of_counts_pairs_and_colours(cutouts, extras):
    share = np.mean([s.kind != "single" for s in scenes(cutouts, 600, extras=extras)])
    assert share == pytest.approx(extras, abs=0.07)


@pytest.mark.parametrize(
    ("name", "many"), [("apple", "apples"), ("mouse", "mice"), ("strawberry", "strawberries"), ("fish", None)]
)
def test_plurals(name, many):
    assert plural(name) == many


@pytest.mark.parametrize(("name", "said"), [("owl", "an owl"), ("unicorn", "a unicorn"), ("grapes", "grapes")])
def test_articles(name, said):
    assert article(name) == said


def test_a_resumed_loop_equals_an_unbroken_one(tmp_path):
    import torch

    def trajectory(folder, *ends):
        weight = torch.nn.Parameter(torch.zeros(3))
        optimizer = torch.optim.AdamW([weight], lr=0.1)

        class State:
            state_dict = staticmethod(lambda: {"weight": weight.detach().clone()})
            load_state_dict = staticmethod(lambda saved: weight.data.copy_(saved["weight"]))

        def step(_, generator):
            optimizer.zero_grad()
            loss = (weight - torch.randn(3, generator=generator)).square().sum()
            loss.backward()
            optimizer.step()
            return float(loss.detach())

        for end in ends:
            run("toy", step, {"weight": State, "optimizer": optimizer}, steps=end, folder=folder)
        return weight.detach()

    assert torch.equal(trajectory(tmp_path / "whole", 6), trajectory(tmp_path / "broken", 3, 6))
