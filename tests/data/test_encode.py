"""Encoding a source: buckets, parts, corrupt samples by name, prompts alone, and going on after a kill."""

import os
import signal
import subprocess
import sys
import textwrap

import numpy as np
import pytest
import torch

from fewstep.data.buckets import Framing, bucket_shapes
from fewstep.data.latents import LatentCache, encode
from fewstep.data.samples import Filters
from fewstep.data.sources import open_source
from fewstep.distill.recipes import make_recipe
from fewstep.distill.run import check_fit
from fewstep.errors import RecipeError
from tests.conftest import ROOT
from tests.data.worlds import model_of, picture, quick_model, samples, tar_bytes, write_shards
from tests.tiny import tiny_model

SQUARE = Framing(((16, 16),))
BUCKETS = Framing(bucket_shapes(32, step=8))


def mixed(folder):
    """Two shards of wide, tall and square pictures, one corrupt picture, one without a caption."""
    files = [samples(0, 4), samples(4, 4, size=(16, 32)), samples(8, 2, size=(20, 20))]
    files[1]["0005.png"] = picture(5)[:200]
    del files[2]["0008.txt"]
    (folder / "s-0.tar").write_bytes(tar_bytes(files[0] | files[1]))
    (folder / "s-1.tar").write_bytes(tar_bytes(files[2] | samples(10, 3)))
    return open_source(f"{folder}/s-{{0..1}}.tar")


def encoded(folder, source, framing=SQUARE, model=None, **how):
    tallies = list(encode(folder, model or model_of(), source, framing, **({"shard_size": 5, "batch": 2} | how)))
    return tallies[-1]


def contents(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_buckets_and_losses(tmp_path):
    tally = encoded(tmp_path / "cache", mixed(tmp_path), BUCKETS)
    assert (tally.seen, tally.kept, dict(tally.dropped)) == (13, 11, {"no caption": 1})
    assert [name for name, _ in tally.faults] == ["s-0.tar/0005"]
    cache = LatentCache(tmp_path / "cache")
    assert cache.tally.faults == [tuple(fault) for fault in tally.faults]
    assert cache.buckets == {(4, 3, 5): 7, (4, 5, 3): 3, (4, 4, 4): 1}
    found = {cache.caption(row): cache.items([row]).text.time_ids_B6[0].tolist() for row in range(len(cache))}
    assert found["a cat 0"] == [16, 24, 1, 0, 24, 40]
    assert found["a cat 4"][:2] == [32, 16] and found["a cat 9"] == [20, 20, 0, 0, 32, 32]


def test_a_latent_is_that_of_its_own_picture(tmp_path):
    source, model = mixed(tmp_path), model_of()
    encoded(tmp_path / "cache", source, BUCKETS, model)
    cache = LatentCache(tmp_path / "cache")
    from fewstep.data.samples import frame_of
    from fewstep.data.sources import walk
    from fewstep.models import vae

    frames = [frame_of(record, BUCKETS, Filters()) for _, _, record in walk(source)]
    by_caption = {frame.caption: frame for frame in frames if hasattr(frame, "caption")}
    for row in range(len(cache)):
        pixels = torch.from_numpy(by_caption[cache.caption(row)].pixels_HWC.copy())
        mean, _ = vae.moments(model.vae, pixels.permute(2, 0, 1)[None].float() / 127.5 - 1)
        assert torch.allclose(cache.items([row]).z0_BCHW, mean, atol=2e-3)
        assert cache.text([cache.captions.index(cache.caption(row))]).text_BLD[0, 0, 0] == len(cache.caption(row))


@pytest.mark.parametrize("workers", [0, 3])
def test_the_files_do_not_depend_on_the_number_of_threads(tmp_path, workers):
    source = mixed(tmp_path)
    encoded(tmp_path / "one", source, BUCKETS, workers=1)
    encoded(tmp_path / "other", source, BUCKETS, workers=workers)
    assert contents(tmp_path / "one") == contents(tmp_path / "other")


@pytest.mark.parametrize("world", [2, 5])
def test_several_writers_make_one_cache(tmp_path, world):
    source = mixed(tmp_path)
    encoded(tmp_path / "one", source, BUCKETS)
    for rank in range(world):
        if rank:
            with pytest.raises(RecipeError, match="unfinished"):
                LatentCache(tmp_path / "parts")
        encoded(tmp_path / "parts", source, BUCKETS, rank=rank, world=world)
    one, parts = LatentCache(tmp_path / "one"), LatentCache(tmp_path / "parts")
    assert one.buckets == parts.buckets and sorted(one.captions) == sorted(parts.captions)
    assert sorted(one.tally.faults) == sorted(parts.tally.faults)

    def by_caption(cache):
        return {cache.caption(row): cache.items([row]) for row in range(len(cache))}

    theirs = by_caption(parts)
    for caption, item in by_caption(one).items():
        assert torch.allclose(item.z0_BCHW, theirs[caption].z0_BCHW, atol=2e-3)
        assert torch.equal(item.text.text_BLD, theirs[caption].text.text_BLD)
    with pytest.raises(RecipeError, match=f"begun by {world} writers, and now there are 1"):
        encoded(tmp_path / "parts", source, BUCKETS)


@pytest.mark.parametrize("stop", [1, 2])
def test_an_interrupted_cache_comes_out_the_same(tmp_path, stop):
    source = mixed(tmp_path)
    encoded(tmp_path / "whole", source, BUCKETS)
    writing = encode(tmp_path / "torn", model_of(), source, BUCKETS, shard_size=5, batch=2)
    for _ in range(stop):
        next(writing)
    writing.close()
    encoded(tmp_path / "torn", source, BUCKETS)
    assert contents(tmp_path / "torn") == contents(tmp_path / "whole")


def test_a_torn_shard_is_made_again(tmp_path):
    source = mixed(tmp_path)
    encoded(tmp_path / "cache", source, BUCKETS)
    whole = contents(tmp_path / "cache")
    for name in [name for name in whole if name.endswith(".safetensors") and name != "empty.safetensors"]:
        (tmp_path / "cache" / name).write_bytes(whole[name][:-9])
        with pytest.raises(RecipeError, match=name):
            LatentCache(tmp_path / "cache")
        encoded(tmp_path / "cache", source, BUCKETS)
        assert contents(tmp_path / "cache") == whole


KILLED = """
    import sys, time
    from fewstep.data import manifest
    from fewstep.data.buckets import Framing, bucket_shapes
    from fewstep.data.latents import encode
    from fewstep.data.sources import open_source
    from tests.data.worlds import quick_model

    write = manifest.save_file
    def slow(tensors, path, metadata):
        write(tensors, path, metadata)
        print(path, flush=True)
        time.sleep(0.05)
    manifest.save_file = slow
    framing = Framing(bucket_shapes(32, step=8))
    for tally in encode(sys.argv[2], quick_model(), open_source(sys.argv[1]), framing, shard_size=5, batch=2):
        pass
"""


def test_killed_at_any_file_it_comes_out_bit_for_bit(tmp_path):
    source = mixed(tmp_path)
    encoded(tmp_path / "whole", source, BUCKETS, quick_model())
    command = [sys.executable, "-c", textwrap.dedent(KILLED), f"{tmp_path}/s-{{0..1}}.tar", str(tmp_path / "killed")]
    paths = os.pathsep.join([str(ROOT / "src"), str(ROOT), os.environ.get("PYTHONPATH", "")])
    # the first process dies while a shard lies beside its place, the second between two shards
    for written in (3, 4):
        process = subprocess.Popen(command, stdout=subprocess.PIPE, env=os.environ | {"PYTHONPATH": paths})
        for _ in range(written):
            assert process.stdout.readline()
        process.send_signal(signal.SIGKILL)
        assert process.wait(30) == -signal.SIGKILL
        process.stdout.close()
    left = {path.name for path in (tmp_path / "killed").iterdir()}
    assert any(name.endswith(".part") for name in left) and "manifest.json" in left
    encoded(tmp_path / "killed", source, BUCKETS, quick_model())
    assert contents(tmp_path / "killed") == contents(tmp_path / "whole")


def test_other_settings_are_refused(tmp_path):
    source = mixed(tmp_path)
    encoded(tmp_path / "cache", source)
    for how, said in [
        ({"batch": 3}, "batch 2, not 3"),
        ({"filters": Filters(least_px=4)}, "least_px 0, not 4"),
        ({"framing": BUCKETS}, "shapes"),
        ({"moments": False}, "moments True"),
        ({"model": model_of(name="xyz")}, "model abc, not xyz"),
        ({"source": open_source(tmp_path / "s-0.tar")}, "source"),
    ]:
        with pytest.raises(RecipeError, match=said):
            encoded(tmp_path / "cache", **({"source": source} | how))


def test_nothing_let_through_is_said_loudly(tmp_path):
    pattern = write_shards(tmp_path)
    with pytest.raises(RecipeError, match="of 12 samples not one is kept: 12 a side below 99 px"):
        encoded(tmp_path / "cache", open_source(pattern), filters=Filters(least_px=99))
    with pytest.raises(RecipeError, match="unfinished|not one"):
        LatentCache(tmp_path / "cache")


def test_prompts_alone(tmp_path):
    (tmp_path / "p.txt").write_text("a cat\na dog\na cat\nthe moon\n")
    tally = encoded(tmp_path / "cache", open_source(tmp_path / "p.txt"), BUCKETS)
    cache = LatentCache(tmp_path / "cache")
    assert tally.kept == len(cache) == 4 and len(cache.captions) == 3 and not cache.pictures
    assert cache.shape == (4, 4, 4)
    batch = cache.batch(0, 1, size=3)
    assert torch.equal(batch.z0_BCHW, torch.zeros(3, 4, 4, 4)) and batch.text.text_BLD.shape == (3, 3, 2)
    recipe = {"w_min": 1.0, "w_max": 1.0}
    with pytest.raises(RecipeError, match="objective lcm needs pictures"):
        check_fit(make_recipe(recipe), tiny_model("pictogram"), cache)
    with pytest.raises(RecipeError, match="text 2 wide"):  # past the pictures, and stopped by the stand-in's text
        check_fit(make_recipe(recipe | {"objective": "tdm", "phases": 2}), tiny_model("pictogram"), cache)


def test_time_ids_reach_sdxl_heights_before_widths(tmp_path):
    """Defect 6 of the scripts in common use: (width, height), and a crop that was not the one made."""
    from fewstep.distill.students import choose, networks
    from fewstep.distill.terms import guided

    model = tiny_model("sdxl")
    rows = np.arange(64 * 192 * 3, dtype=np.uint8).reshape(64, 192, 3)
    from PIL import Image

    Image.fromarray(rows).save(tmp_path / "x.png")
    (tmp_path / "x.txt").write_text("a cat")
    encoded(tmp_path / "cache", open_source(tmp_path), Framing(((64, 128),)), model)
    batch = LatentCache(tmp_path / "cache").batch(0, 0, size=1)
    assert batch.z0_BCHW.shape == (1, 4, 8, 16) and batch.text.pooled_BD is not None
    assert batch.text.time_ids_B6.tolist() == [[64, 192, 0, 32, 64, 128]]

    seen = []

    class Student:
        heads = None
        fake = None

        def teacher(self, z_BCHW, t_B, text):
            from fewstep.models.unet import predict

            return predict(model.unet, z_BCHW, t_B, text, size=(64, 64))

    def note(module, args, kwargs):
        seen.append(kwargs["added_cond_kwargs"]["time_ids"].tolist())

    model.unet.register_forward_pre_hook(note, with_kwargs=True)
    empty = model.text.encode_negative([""])
    text = choose(torch.tensor([True]), empty, batch.text).to("cpu", torch.bfloat16).to(torch.float32)
    three = networks(Student(), text, empty, w_B=torch.tensor([2.0]))
    guided(three.teacher, 3.0)(batch.z0_BCHW, torch.tensor([500]))
    # the conditional and the unconditional half are told the same sizes
    assert seen == [[[64.0, 192.0, 0.0, 32.0, 64.0, 128.0]] * 2]


def test_a_cache_of_buckets_trains_sdxl(tmp_path):
    from fewstep.distill.run import begin
    from fewstep.distill.trainer import train
    from tests.distill.conftest import LORA

    for number, size in enumerate([(64, 64), (128, 64), (64, 128), (64, 64)]):
        (tmp_path / f"{number}.png").write_bytes(picture(number, size))
        (tmp_path / f"{number}.txt").write_text(f"a cat {number}")
    model = tiny_model("sdxl")
    encoded(tmp_path / "cache", open_source(tmp_path), Framing(((64, 64), (64, 128), (128, 64))), model)
    cache = LatentCache(tmp_path / "cache")
    assert len(cache.buckets) == 3
    run = begin(make_recipe(LORA | {"steps": 3}), model, cache, folder=tmp_path / "run")
    shapes = []
    model.unet.register_forward_pre_hook(lambda module, args: shapes.append(tuple(args[0].shape[-2:])))
    assert all(np.isfinite(report.loss) for report in train(run))
    assert len(set(shapes)) > 1
