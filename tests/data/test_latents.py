"""The latent cache: what is written is what is read, torn writes are mended, and batches depend on (seed, step)
alone.
"""

import json
from collections import Counter
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from fewstep.data.latents import LatentCache, is_cache, write_cache
from fewstep.data.pictures import pictures
from fewstep.errors import ImageError, RecipeError
from fewstep.models import vae
from fewstep.models.text import Text
from tests.tiny import tiny_vae

CAPTIONS = ("a cat", "a dog", "a cat", "", "the moon", "a dog", "a cat")


class Encoder:
    """A stand-in text encoder that counts what it is asked."""

    def __init__(self, pooled=False):
        self.asked, self.pooled = Counter(), pooled

    def encode(self, prompts):
        self.asked.update(prompts)
        rows = torch.tensor([[len(prompt), sum(map(ord, prompt)) / 1000] for prompt in prompts])
        return Text(rows[:, None].repeat(1, 3, 1), rows if self.pooled else None)

    def encode_negative(self, prompts):
        text = self.encode(prompts)
        return Text(text.text_BLD * 0 - 1, text.pooled_BD)


def model_of(pooled=False, name="abc"):
    return SimpleNamespace(vae=tiny_vae(), text=Encoder(pooled), content_hash=name)


def latents(count=7, size=2):
    return [torch.full((4, size, size), float(k)) for k in range(count)]


def written(folder, model=None, samples=None, **how):
    pairs = zip(latents(), CAPTIONS, strict=True) if samples is None else samples
    list(write_cache(folder, model or model_of(), pairs, **({"shard_size": 3} | how)))
    return LatentCache(folder)


@pytest.mark.parametrize("pooled", [False, True])
def test_round_trip(tmp_path, pooled):
    model = model_of(pooled)
    cache = written(tmp_path, model)
    assert (len(cache), cache.shape) == (7, (4, 2, 2))
    assert torch.equal(cache.z, torch.stack(latents()))
    assert tuple(cache.caption(row) for row in range(7)) == CAPTIONS
    assert torch.equal(cache.empty.text_BLD, torch.full((1, 3, 2), -1.0))
    items = cache.items([4, 0])
    assert torch.allclose(items.text.text_BLD, model.text.encode([CAPTIONS[4], CAPTIONS[0]]).text_BLD, atol=2e-3)
    assert (items.text.pooled_BD is not None) == pooled


def test_each_caption_is_encoded_once(tmp_path):
    model = model_of()
    written(tmp_path, model)
    assert model.text.asked["a cat"] == model.text.asked["a dog"] == 1


@pytest.mark.parametrize("moments", [True, False])
def test_pictures_pass_the_vae(tmp_path, moments):
    model = model_of()
    image = np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    cache = written(tmp_path, model, [(Image.fromarray(image), "a cat"), (image, "a dog")], moments=moments)
    mean, std = vae.moments(model.vae, torch.from_numpy(image).permute(2, 0, 1)[None].float() / 127.5 - 1)
    noise = torch.ones(2, 4, 2, 2)
    assert torch.allclose(cache.z[:1], mean, atol=2e-3) and torch.allclose(cache.z[1:], mean, atol=2e-3)
    drawn = cache.items([0, 1], noise_BCHW=noise).z0_BCHW
    assert torch.allclose(drawn, (mean + std if moments else mean).expand(2, -1, -1, -1), atol=4e-3)


def test_a_torn_write_is_mended(tmp_path):
    whole = written(tmp_path / "whole")
    torn, model = tmp_path / "torn", model_of()
    writing = write_cache(torn, model, zip(latents(), CAPTIONS, strict=True), shard_size=3)
    assert next(writing) == 3
    writing.close()
    (torn / "latents-00001.safetensors").write_bytes(b"half a shard")
    (torn / "text-00001.part").write_bytes(b"half")
    with pytest.raises(RecipeError, match="unfinished"):
        LatentCache(torn)
    mended = written(torn, model)
    assert torch.equal(mended.z, whole.z) and mended.captions == whole.captions
    assert model.text.asked["a cat"] == 1


def test_a_finished_cache_is_not_written_again(tmp_path):
    written(tmp_path)
    assert list(write_cache(tmp_path, model_of(), [])) == [7]


def test_batches_depend_on_seed_and_step_alone(tmp_path):
    cache, again = written(tmp_path), LatentCache(tmp_path)
    for step in range(5):
        cache.batch(0, step, size=3)
    assert cache.batch(0, 2, size=3).rows == again.batch(0, 2, size=3).rows
    assert cache.batch(1, 2, size=7).rows != again.batch(0, 2, size=7).rows


def test_an_epoch_shows_everything_once(tmp_path):
    cache = written(tmp_path)
    rows = [row for step in range(7) for row in cache.batch(0, step, size=2).rows]
    assert sorted(rows[:7]) == sorted(rows[7:]) == list(range(7))
    assert rows[:7] != rows[7:]


def test_damage_is_said(tmp_path):
    written(tmp_path)
    shard = tmp_path / "latents-00001.safetensors"
    shard.write_bytes(shard.read_bytes()[:-1])
    with pytest.raises(RecipeError, match="latents-00001"):
        LatentCache(tmp_path)
    (tmp_path / "manifest.json").write_text("{")
    with pytest.raises(RecipeError, match="damaged"):
        LatentCache(tmp_path)


def test_what_does_not_fit_is_said(tmp_path):
    written(tmp_path / "one")
    with pytest.raises(RecipeError, match="xyz"):
        list(write_cache(tmp_path / "one", model_of(name="xyz"), []))
    with pytest.raises(RecipeError, match="one size"):
        written(tmp_path / "two", samples=[(torch.zeros(4, 2, 2), "a"), (torch.zeros(4, 2, 3), "b")])
    with pytest.raises(RecipeError, match="one size"):
        written(tmp_path / "three", samples=[(torch.zeros(4, 2, k), "a") for k in (2, 3)], shard_size=1)
    with pytest.raises(RecipeError, match="not one sample"):
        written(tmp_path / "four", samples=[])
    with pytest.raises(RecipeError, match="no latent cache"):
        LatentCache(tmp_path / "five")
    assert not is_cache(tmp_path / "five")


def test_a_folder_of_pictures(tmp_path):
    Image.new("RGB", (20, 10), "red").save(tmp_path / "b.png")
    (tmp_path / "b.txt").write_text("a red apple\n")
    Image.new("RGB", (9, 9)).save(tmp_path / "no-caption.png")
    ((image, caption),) = pictures(tmp_path, size_px=16)
    assert (image.size, image.getpixel((8, 8)), caption) == ((16, 16), (255, 0, 0), "a red apple")
    (tmp_path / "metadata.jsonl").write_text(json.dumps({"file_name": "no-caption.png", "text": "night"}) + "\n")
    assert [caption for _, caption in pictures(tmp_path, size_px=16)] == ["night"]
    (tmp_path / "no-caption.png").write_bytes(b"not a picture")
    with pytest.raises(ImageError, match="no-caption"):
        list(pictures(tmp_path, size_px=16))
    (tmp_path / "metadata.jsonl").write_text("{}\n")
    with pytest.raises(RecipeError, match=r"metadata\.jsonl"):
        list(pictures(tmp_path, size_px=16))
