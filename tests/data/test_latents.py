"""The latent cache: what is written is what is read, torn writes are mended, and batches depend on (seed, step)
alone.
"""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from fewstep.data.latents import LatentCache, is_cache, write_cache
from fewstep.errors import RecipeError
from fewstep.models import vae
from tests.data.worlds import model_of

ONE_BUCKET = [(2, 3, 0), (5, 1, 6), (4, 4, 6)]
CAPTIONS = ("a cat", "a dog", "a cat", "", "the moon", "a dog", "a cat")


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
    (torn / "latents-00001-2x2.safetensors").write_bytes(b"half a shard")
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
    shard = tmp_path / "latents-00001-2x2.safetensors"
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
    with pytest.raises(RecipeError, match="not one sample"):
        written(tmp_path / "four", samples=[])
    with pytest.raises(RecipeError, match="no latent cache"):
        LatentCache(tmp_path / "five")
    assert not is_cache(tmp_path / "five")


def several(count=23):
    """Finished latents of two shapes, three of four of them square, each filled with its number."""
    shapes = [(4, 2, 4) if k % 4 == 3 else (4, 2, 2) for k in range(count)]
    return [(torch.full(shape, float(k)), f"caption {k}") for k, shape in enumerate(shapes)]


def test_a_batch_comes_from_one_bucket_in_proportion(tmp_path):
    cache = written(tmp_path, samples=several(24), shard_size=5)
    assert cache.buckets == {(4, 2, 2): 18, (4, 2, 4): 6} and cache.shape == (4, 2, 2)
    batches = [cache.batch(0, step, size=2) for step in range(2048)]
    wide = [batch.z0_BCHW.shape[-1] == 4 for batch in batches]
    assert abs(sum(wide[:1024]) - 256) <= 1 and abs(sum(wide) - 512) <= 2
    for batch in batches[:50]:
        assert [cache.caption(row) for row in batch.rows] == [f"caption {int(z[0, 0, 0])}" for z in batch.z0_BCHW]


def test_each_bucket_shows_all_its_rows_before_any_again(tmp_path):
    cache = written(tmp_path, samples=several(24), shard_size=5)
    rows = {2: [], 4: []}
    for step in range(1000, 1100):
        batch = cache.batch(3, step, size=3)
        rows[batch.z0_BCHW.shape[-1]] += batch.rows
    skip = {width: (-sum(1 for step in range(1000) if cache.batch(3, step, size=3).z0_BCHW.shape[-1] == width) * 3) % n
            for width, n in ((2, 18), (4, 6))}  # fmt: skip
    for width, count in ((2, 18), (4, 6)):
        epoch = rows[width][skip[width] : skip[width] + count]
        assert len(set(epoch)) == count


def test_a_step_is_the_same_whatever_came_before(tmp_path):
    cache = written(tmp_path, samples=several(), shard_size=5)
    for step in (5000, 3, 1024, 1023):
        fresh = LatentCache(tmp_path)
        assert cache.batch(1, step, size=4).rows == fresh.batch(1, step, size=4).rows
    assert [cache.batch(1, k, size=4).rows for k in range(9)] != [cache.batch(2, k, size=4).rows for k in range(9)]


@pytest.mark.parametrize("world", [2, 3])
def test_ranks_together_have_the_batch_of_one_process(tmp_path, world):
    image = [np.random.default_rng(k).integers(0, 256, (16, 16 + 16 * (k % 2), 3), dtype=np.uint8) for k in range(9)]
    cache = written(tmp_path, samples=[(pixels, f"c {k}") for k, pixels in enumerate(image)])
    for step in range(6):
        whole = cache.batch(0, step, size=2 * world)
        parts = [cache.batch(0, step, size=2, rank=rank, world=world) for rank in range(world)]
        assert sum((part.rows for part in parts), ()) == whole.rows
        assert torch.equal(torch.cat([part.z0_BCHW for part in parts]), whole.z0_BCHW)
        assert torch.equal(torch.cat([part.text.time_ids_B6 for part in parts]), whole.text.time_ids_B6)


def test_the_first_format_still_opens(tmp_path):
    """As version 0.1 wrote it: rows of shards with one shape, no time ids."""
    cache = written(tmp_path, samples=None)
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    shards = []
    for chunk in manifest["chunks"]:
        (file,) = chunk["latents"]
        old = file["file"].replace("-2x2", "")
        (tmp_path / file["file"]).rename(tmp_path / old)
        text = chunk["text"] and chunk["text"]["file"]
        shards.append({"latents": old, "text": text, "count": file["count"], "bytes": file["bytes"]})
    first = {"format": 1, "model": "abc", "moments": True, "complete": True, "shards": shards, "shape": [4, 2, 2]}
    (tmp_path / "manifest.json").write_text(json.dumps(first))
    found = LatentCache(tmp_path)
    assert torch.equal(found.z, cache.z) and found.captions == cache.captions and found.text([0]).time_ids_B6 is None
    assert found.batch(0, 5, size=3).rows == cache.batch(0, 5, size=3).rows
    assert found.fingerprint == "abc:7:4" and list(write_cache(tmp_path, model_of(), [])) == [7]
    (tmp_path / "manifest.json").write_text(json.dumps(first | {"complete": False}))
    with pytest.raises(RecipeError, match="older version"):
        list(write_cache(tmp_path, model_of(), []))


def test_one_bucket_draws_what_it_always_drew(tmp_path):
    """Runs begun before there were buckets go on with the same rows."""
    cache = written(tmp_path)
    assert [cache.batch(0, step, size=3).rows for step in range(3)] == ONE_BUCKET
