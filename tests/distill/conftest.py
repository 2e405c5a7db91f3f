"""A tiny model, a tiny cache and a tiny run."""

import pytest
import torch

from fewstep.data.latents import LatentCache, write_cache
from fewstep.distill.recipes import make_recipe
from fewstep.distill.run import begin
from tests.tiny import tiny_model

CAPTIONS = ("a cat", "a dog", "a red apple", "the moon")
LORA = {
    "rank": 4,
    "alpha": 4,
    "batch": 2,
    "steps": 6,
    "w_min": 1.5,
    "w_max": 1.5,
    "learning_rate": 1e-3,
    "warmup": 2,
    "decay": "cosine",
    "empty_captions": 0.3,
    "look_every": 0,
    "look_count": 2,
    "look_steps": [1, 2],
    "look_teacher_steps": 4,
    "sampling_steps": 2,
}
MATCHING = LORA | {"objective": "tdm", "phases": 2}
CRITIC = {"adversarial": 0.1}
FULL = LORA | {"student": "full", "w_max": 4.0}


@pytest.fixture(scope="session")
def cache(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cache")
    generator = torch.Generator().manual_seed(0)
    samples = [(torch.randn(4, 8, 8, generator=generator), caption) for caption in CAPTIONS]
    list(write_cache(folder, tiny_model("pictogram"), samples, shard_size=3))
    return LatentCache(folder)


@pytest.fixture
def new_run(cache, tmp_path):
    def make(values=LORA, *, folder="run", resume=False, **more):
        return begin(
            make_recipe(values | more), tiny_model("pictogram"), cache, folder=tmp_path / folder, resume=resume
        )

    return make
