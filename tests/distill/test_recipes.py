"""Recipes: typed, checked, complete; every published one can be read."""

from pathlib import Path

import pytest

from fewstep.distill.objectives import OBJECTIVES, objective_named
from fewstep.distill.recipes import (
    SAMPLER_OF,
    Recipe,
    learning_rate_at,
    make_recipe,
    parse_override,
    read_recipe,
    recipe_text,
)
from fewstep.distill.times import grid
from fewstep.errors import RecipeError

RECIPES = sorted((Path(__file__).parents[2] / "recipes").glob("*lcm*.toml"))


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_published_recipes_are_valid(path):
    recipe = read_recipe(path)
    assert objective_named(recipe.objective)
    assert grid(recipe.origin_steps)[-1] == 999


def test_the_text_reads_back_equal(tmp_path):
    recipe = Recipe(steps=7, look_steps=(1, 3), student="full", w_min=2.0, w_max=14.0)
    (tmp_path / "r.toml").write_text(recipe_text(recipe))
    assert read_recipe(tmp_path / "r.toml") == recipe


def test_overrides_win_and_are_typed(tmp_path):
    (tmp_path / "r.toml").write_text("steps = 5\n")
    found = read_recipe(
        tmp_path / "r.toml", overrides=["steps=9", "alpha=8", "distance=l2", "look_steps=[2, 4]", "checkpointing=true"]
    )
    assert (found.steps, found.alpha, found.distance, found.look_steps, found.checkpointing) == (
        9,
        8.0,
        "l2",
        (2, 4),
        True,
    )


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"learning_rat": 1.0}, "learning_rate"),
        ({"zzz": 1}, "Known keys"),
        ({"steps": 1.5}, "whole number"),
        ({"steps": True}, "whole number"),
        ({"steps": "many"}, "whole number"),
        ({"learning_rate": "fast"}, "a number"),
        ({"learning_rate": float("nan")}, "below 0"),
        ({"look_steps": []}, "list"),
        ({"look_steps": [0]}, "list"),
        ({"steps": 0}, "below 1"),
        ({"ema": 1.5}, "above 1"),
        ({"student": "lira"}, "lora, full"),
        ({"w_min": 8.0, "student": "full"}, "above w_max"),
        ({"w_min": 2.0}, "w_min = w_max"),
        ({"w_min": 2.0, "student": "full", "guidance_embedding": 0}, "fixed w"),
        ({"sampler": "lmc"}, "Use one of: lcm, tcd"),
        ({"table": "spiral"}, "timestep table 'spiral'"),
        ({"objective": "pcm", "origin_steps": 40, "sampler": "lcm"}, "Leave sampler out, or use 'pcm'"),
        ({"objective": "tscd", "origin_steps": 40, "sampler": "lcm"}, "or use 'tcd'"),
        ({"log": "tensorboard,wand"}, "no log 'wand'"),
        ({"patience": 2}, "patience needs"),
        ({"keep_best": "distance"}, "it must be"),
        ({"keep_best": "distance:x"}, "it must be"),
        ({"keep_best": "beauty:4"}, "no figure 'beauty'"),
        ({"keep_best": "distance:3"}, "Add 3 to look_steps"),
        ({"keep_best": "distance:4", "look_every": 0}, "set look_every"),
        ({"keep_best": "recognised:4"}, "Set look_judge"),
    ],
)
def test_what_is_wrong_is_said(values, said):
    with pytest.raises(RecipeError, match=said):
        make_recipe(values)


@pytest.mark.parametrize(
    ("objective", "sampler", "table"),
    [
        *(("lcm", "lcm", "linspace-lcm"), ("lcf", "lcm", "linspace-lcm"), ("tcd", "tcd", "linspace-lcm")),
        *(("tdd", "tcd", "linspace-lcm"), ("tscd", "tcd", "linspace-lcm")),
        *(("pcm", "pcm", "trailing"), ("tdm", "pcm", "trailing")),
    ],
)
def test_an_objective_brings_its_sampler(objective, sampler, table):
    recipe = make_recipe({"objective": objective, "origin_steps": 40})
    assert (recipe.sampler, recipe.table) == (sampler, table)
    other = make_recipe({"objective": objective, "origin_steps": 40, "sampler": "ddim"})
    assert (other.sampler, other.table) == ("ddim", "trailing")
    assert make_recipe({"objective": objective, "origin_steps": 40, "table": "sgm"}).table == "sgm"


def test_every_objective_has_a_sampler():
    assert set(SAMPLER_OF) == set(OBJECTIVES)


@pytest.mark.parametrize("bad", ["steps", ""])
def test_an_override_needs_a_value(bad):
    with pytest.raises(RecipeError, match="key=value"):
        parse_override(bad)


def test_unreadable_files(tmp_path):
    with pytest.raises(RecipeError, match="cannot be read"):
        read_recipe(tmp_path / "none.toml")
    (tmp_path / "bad.toml").write_text("steps = = 3")
    with pytest.raises(RecipeError, match="not valid TOML"):
        read_recipe(tmp_path / "bad.toml")


def test_learning_rate():
    recipe = Recipe(learning_rate=1.0, warmup=4, steps=104, decay="cosine")
    rates = [learning_rate_at(recipe, step) for step in range(104)]
    assert rates[:4] == [0.25, 0.5, 0.75, 1.0]
    assert rates[54] == pytest.approx(0.5)
    assert 0 < rates[-1] < 1e-3
    assert learning_rate_at(Recipe(learning_rate=1.0, warmup=10**6, steps=5), 4) < 1e-5
