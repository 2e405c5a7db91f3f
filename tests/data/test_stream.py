"""A stream gives every sample of an epoch once, goes on bit for bit, and is one stream in any number of processes."""

import json
import threading
import time
from dataclasses import replace

import pytest
import torch
from PIL import Image

from fewstep.data.buckets import Framing, bucket_shapes
from fewstep.data.latents import Batch, LatentCache, encode
from fewstep.data.prefetch import Prefetched
from fewstep.data.samples import Filters
from fewstep.data.sources import open_source
from fewstep.data.stream import Stream
from fewstep.distill.recipes import make_recipe
from fewstep.distill.run import begin, save
from fewstep.distill.trainer import train
from fewstep.errors import RecipeError
from fewstep.models.text import Text
from tests.data.worlds import picture, quick_model, samples, tar_bytes, write_shards
from tests.distill.conftest import LORA
from tests.tiny import tiny_model

BUCKETS = Framing(bucket_shapes(32, step=8), "random")


def mixed(folder):
    """Three shards: two of wide pictures with one corrupt in each way, one of tall ones."""
    files = [samples(0, 7), samples(7, 7), samples(14, 7, size=(16, 32))]
    files[0]["0002.png"] = b"no picture"
    files[1]["0009.png"] = picture(9)[:-300]  # its head is good: found out when it is decoded
    for number, shard in enumerate(files):
        (folder / f"s-{number}.tar").write_bytes(tar_bytes(shard))
    return open_source(f"{folder}/s-{{0..2}}.tar")


def stream_of(source, framing=BUCKETS, **how):
    return Stream(source, quick_model(), framing, **({"buffer": 5, "workers": 1} | how))


def same(one, other):
    sizes = (one.text.time_ids_B6, other.text.time_ids_B6)
    return (
        one.names == other.names
        and torch.equal(one.z0_BCHW, other.z0_BCHW)
        and torch.equal(one.text.text_BLD, other.text.text_BLD)
        and (sizes == (None, None) or torch.equal(*sizes))
    )


def test_an_epoch_has_every_sample_once_in_a_fresh_order(tmp_path):
    source = open_source(write_shards(tmp_path))
    stream = stream_of(source, Framing(((16, 16),)))
    names = [name for step in range(12) for name in stream.batch(0, step, size=2).names]
    everything = sorted(f"s-{n // 4}.tar/{n:04d}" for n in range(12))
    assert sorted(names[:12]) == sorted(names[12:]) == everything
    assert names[:12] != names[12:] and names[:12] != everything
    other = stream_of(source, Framing(((16, 16),)))
    assert [name for step in range(6) for name in other.batch(1, step, size=2).names] != names[:12]


@pytest.mark.parametrize("stop", [0, 1, 4, 9])
def test_a_resumed_stream_gives_the_same_samples(tmp_path, stop):
    source = mixed(tmp_path)
    whole = stream_of(source)
    batches = [whole.batch(0, step, size=3) for step in range(14)]
    assert len({batch.z0_BCHW.shape for batch in batches}) == 2
    first = stream_of(source)
    for step in range(stop):
        first.batch(0, step, size=3)
    second = stream_of(source)
    second.seek(json.loads(json.dumps(first.position())))
    assert all(same(second.batch(0, step, size=3), batches[step]) for step in range(stop, 14))
    assert second.position() == whole.position()


def test_processes_together_have_the_batch_of_one(tmp_path):
    source = mixed(tmp_path)
    one, two = stream_of(source), [stream_of(source), stream_of(source)]
    for step in range(8):
        whole = one.batch(0, step, size=4)
        parts = [stream.batch(0, step, size=2, rank=rank, world=2) for rank, stream in enumerate(two)]
        assert parts[0].names + parts[1].names == whole.names
        assert torch.equal(torch.cat([part.z0_BCHW for part in parts]), whole.z0_BCHW)
        assert one.position() == two[0].position() == two[1].position()


def test_a_stream_has_what_a_cache_has(tmp_path):
    source, framing = open_source(write_shards(tmp_path)), Framing(((16, 16),))
    list(encode(tmp_path / "cache", quick_model(), source, framing))
    cache, stream = LatentCache(tmp_path / "cache"), stream_of(source, framing)
    rows = {f"s-{row // 4}.tar/{row:04d}": row for row in range(12)}
    batch = stream.batch(0, 0, size=6)
    items = cache.items([rows[name] for name in batch.names])
    assert torch.equal(batch.z0_BCHW, items.z0_BCHW)  # the stand-in's posterior has no width
    assert torch.equal(batch.text.time_ids_B6, items.text.time_ids_B6)
    assert torch.allclose(batch.text.text_BLD, items.text.text_BLD, atol=2e-3)
    assert stream.shape == cache.shape and torch.equal(stream.empty.text_BLD, cache.empty.text_BLD)
    assert stream.captions == cache.captions and torch.allclose(
        stream.text([3, 1]).text_BLD, cache.text([3, 1]).text_BLD, atol=2e-3
    )


def test_corrupt_samples_are_named_once_and_replaced(tmp_path):
    stream = stream_of(mixed(tmp_path))
    batches = [stream.batch(0, step, size=3) for step in range(20)]
    assert sorted(name for name, _ in stream.tally.faults) == ["s-0.tar/0002", "s-1.tar/0009"]
    assert all(len(batch.names) == 3 for batch in batches)
    assert not {"s-0.tar/0002", "s-1.tar/0009"} & {name for batch in batches for name in batch.names}


def test_a_stream_goes_forwards_only(tmp_path):
    stream = stream_of(mixed(tmp_path))
    first = stream.batch(0, 0, size=2)
    assert same(stream.batch(0, 0, size=2), first)
    for seed, step in [(0, 2), (1, 1), (0, 0)]:
        stream.batch(0, 1, size=2) if (seed, step) == (0, 0) else None
        with pytest.raises(RecipeError, match="forwards only"):
            stream.batch(seed, step, size=2)


def test_a_stream_that_gives_nothing_is_said(tmp_path):
    source = open_source(write_shards(tmp_path))
    with pytest.raises(RecipeError, match="12 a side below 99 px"):
        stream_of(source, filters=Filters(least_px=99))
    (tmp_path / "s-0.tar").write_bytes(tar_bytes({"1.png": picture()[:-300], "1.txt": b"a cat"}))
    with pytest.raises(RecipeError, match=r"Not one of 2 .*s-0.tar/1: the picture is damaged"):
        stream_of(open_source(tmp_path / "s-0.tar")).batch(0, 0, size=2)


def test_positions_of_other_data_are_refused(tmp_path):
    source = mixed(tmp_path)
    stream = stream_of(source)
    with pytest.raises(RecipeError, match="made from a cache"):
        stream.seek({})
    step = 0
    while not stream.position()["waiting"]:
        stream.batch(0, step, size=3)
        step += 1
    position = stream.position()
    for number in range(3):
        (tmp_path / f"s-{number}.tar").write_bytes(tar_bytes({}))
    with pytest.raises(RecipeError, match="fewer samples"):
        stream.seek(position)
    assert stream_of(mixed(tmp_path)).fingerprint == stream.fingerprint != stream_of(source, buffer=6).fingerprint


def test_prompts_stream_without_pictures(tmp_path):
    (tmp_path / "p.txt").write_text("a cat\na dog\nthe moon\n")
    stream = stream_of(open_source(tmp_path / "p.txt"))
    batch = stream.batch(0, 0, size=3)
    assert not stream.pictures and torch.equal(batch.z0_BCHW, torch.zeros(3, 4, 4, 4)) and len(batch.text) == 3


def test_a_picture_that_turns_after_its_head_is_a_fault(tmp_path):
    """A PNG may say at its very end how it is to be turned, after its bucket was chosen."""
    import zlib

    exif = Image.Exif()
    exif[0x0112] = 6
    chunk = b"eXIf" + exif.tobytes().removeprefix(b"Exif\0\0")
    late = len(chunk[4:]).to_bytes(4, "big") + chunk + zlib.crc32(chunk).to_bytes(4, "big")
    files = samples(0, 3)
    files["0001.png"] = files["0001.png"][:-12] + late + files["0001.png"][-12:]
    (tmp_path / "s.tar").write_bytes(tar_bytes(files))
    stream = stream_of(open_source(tmp_path / "s.tar"))
    batch = stream.batch(0, 0, size=3)
    assert stream.tally.faults == [("s.tar/0001", "its size is not what its head says")]
    assert set(batch.names) == {"s.tar/0000", "s.tar/0002"}


@pytest.mark.slow
def test_a_run_from_a_stream_resumes_bit_for_bit(tmp_path):
    (tmp_path / "data").mkdir()
    for number, size in enumerate([(64, 64)] * 5 + [(128, 64)] * 4):
        (tmp_path / "data" / f"{number}.png").write_bytes(picture(number, size))
        (tmp_path / "data" / f"{number}.txt").write_text(f"a cat {number}")
    source = open_source(tmp_path / "data")
    framing = Framing(((64, 64), (64, 128)), "random")

    def run(folder, resume=False):
        model = tiny_model("pictogram")
        data = Prefetched(Stream(source, model, framing, buffer=4, workers=1))
        return begin(make_recipe(LORA), model, data, folder=tmp_path / folder, resume=resume)

    losses = [report.loss for report in train(run("whole"))]
    first, begun = run("parts"), []
    for report in train(first):
        begun.append(report.loss)
        if report.step == 3:
            save(first)
            break
    second = run("parts", resume=True)
    assert begun + [report.loss for report in train(second)] == losses


class Slow:
    """Data that takes a while, and remembers in which thread it was made."""

    def __init__(self):
        self.made, self.at = [], 0

    def batch(self, seed, step, *, size, rank=0, world=1):
        time.sleep(0.02)
        assert step == self.at
        self.at += 1
        self.made.append((step, threading.current_thread().name))
        return Batch(torch.full((size,), float(step)), Text(torch.zeros(1)))

    def position(self):
        return {"at": self.at}

    def seek(self, position):
        self.at = position["at"]


def test_batches_are_made_ahead_and_the_position_is_that_of_the_last_given():
    slow = Slow()
    data = Prefetched(slow, ahead=2)
    assert data.position() == {"at": 0}
    assert data.batch(0, 0, size=2).z0_BCHW.tolist() == [0, 0] and data.position() == {"at": 1}
    time.sleep(0.2)
    assert [step for step, _ in slow.made] == [0, 1, 2] and slow.made[0][1].startswith("prefetch")
    assert data.batch(0, 1, size=2).z0_BCHW[0] == 1 and data.position() == {"at": 2}
    assert data.batch(0, 1, size=2).z0_BCHW[0] == 1
    # another size: what was made ahead is thrown away, and made again from the same place
    assert data.batch(0, 2, size=3).z0_BCHW.tolist() == [2, 2, 2] and data.position() == {"at": 3}
    data.seek({"at": 7})
    assert data.batch(0, 7, size=1).z0_BCHW[0] == 7
    data.close()


def test_time_ids_of_a_stream_say_its_own_crop(tmp_path):
    source = mixed(tmp_path)
    stream = stream_of(source, replace(BUCKETS, seed=3))
    crops = {tuple(ids) for step in range(12) for ids in stream.batch(0, step, size=2).text.time_ids_B6.tolist()}
    assert {ids[:2] for ids in crops} == {(16, 24), (32, 16)} and len({ids[2:4] for ids in crops}) > 2


def test_what_filters_drop_is_counted_and_takes_no_place(tmp_path):
    source = open_source(write_shards(tmp_path, count=3, each=5))
    stream = stream_of(source, Framing(((16, 16),)), filters=Filters(least_caption=8))  # "a cat 9" has seven letters
    names = [stream.batch(0, step, size=1).names[0] for step in range(5)]
    assert sorted(name[-4:] for name in names) == ["0010", "0011", "0012", "0013", "0014"]
    assert set(stream.tally.dropped) == {"caption shorter than 8 letters"}
