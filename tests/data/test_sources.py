"""Every kind of source gives the same samples, shares them among ranks, and names what is corrupt."""

import io
import json
import tarfile

import fsspec
import pytest
from PIL import Image

from fewstep.data.samples import Filters, Lost, Tally, ahead, measure
from fewstep.data.sources import open_source, walk
from fewstep.data.tars import expand_braces
from fewstep.errors import RecipeError
from tests.data.worlds import picture, samples, tar_bytes, write_shards


def records(where, **how):
    return [record for _, _, record in walk(open_source(where), **how)]


def good(found):
    return [(record.name, record.caption) for record in found if not record.fault]


def faults(found):
    return [(record.name, record.fault) for record in found if record.fault]


def test_shards_of_a_pattern(tmp_path):
    pattern = write_shards(tmp_path)
    source = open_source(pattern)
    assert (source.kind, source.pictures, len(source.names)) == ("shards", True, 3)
    found = [record for _, _, record in walk(source)]
    assert good(found) == [(f"s-{n // 4}.tar/{n:04d}", f"a cat {n}") for n in range(12)]
    assert found[5].picture == picture(5)
    assert good(records(tmp_path)) == good(records(f"{tmp_path}/*.tar")) == good(found)


def test_shards_at_an_address():
    files = fsspec.filesystem("memory")
    for number in range(2):
        files.pipe(f"/bucket/s-{number}.tar", tar_bytes(samples(number, 1)))
    for pattern in ("memory://bucket/s-{0..1}.tar", "memory://bucket/*.tar"):
        assert good(records(pattern)) == [("s-0.tar/0000", "a cat 0"), ("s-1.tar/0001", "a cat 1")]
    found = records("memory://bucket/s-{0..2}.tar")
    assert len(good(found)) == 2 and [name for name, _ in faults(found)] == ["memory://bucket/s-2.tar"]


def test_webdataset_reads_the_same_samples(tmp_path):
    webdataset = pytest.importorskip("webdataset")
    with webdataset.TarWriter(str(tmp_path / "w.tar")) as writer:
        for number in range(3):
            writer.write({"__key__": f"a/b{number}", "jpg": picture(number, kind="JPEG"), "json": {"caption": "hé"}})
    theirs = [(f"w.tar/{sample['__key__']}", sample["jpg"]) for sample in webdataset.WebDataset(
        str(tmp_path / "w.tar"), shardshuffle=False
    )]  # fmt: skip
    found = records(tmp_path / "w.tar")
    assert [(record.name, record.picture) for record in found] == theirs
    assert {record.caption for record in found} == {"hé"}


@pytest.mark.parametrize(
    ("files", "caption"),
    [
        ({"x.webp": picture(kind="WEBP"), "x.caption": b"one"}, "one"),
        ({"x.text": b"two\n", "x.JPEG": picture(kind="JPEG")}, "two"),
        ({"x.png": picture(), "x.json": b'{"text": "three"}'}, "three"),
        ({"x.png": picture(), "x.json": b'{"width": 3}', "x.txt": b"four"}, "four"),
        ({"x.y.png": picture(), "x.txt": b"five"}, "five"),
        ({"x.png": picture()}, None),
    ],
)
def test_keys_of_a_sample(tmp_path, files, caption):
    (tmp_path / "s.tar").write_bytes(tar_bytes(files))
    (record,) = records(tmp_path / "s.tar")
    assert (record.caption, record.fault, bool(record.picture)) == (caption, "", True)


def test_what_is_corrupt_in_a_shard_is_named(tmp_path):
    files = samples(0, 2) | {"8.txt": b"no picture"} | {"9.png": picture(), "9.json": b"{"}
    files |= {"10.png": picture(), "10.txt": b"\xff\xfe"} | samples(3, 1)
    (tmp_path / "s.tar").write_bytes(tar_bytes(files))
    found = records(tmp_path / "s.tar")
    assert [name for name, _ in good(found)] == ["s.tar/0000", "s.tar/0001", "s.tar/0003"]
    assert [(name, why.split(" (")[0]) for name, why in faults(found)] == [
        ("s.tar/8", "no picture among its files"),
        ("s.tar/9", "the caption cannot be read"),
        ("s.tar/10", "the caption cannot be read"),
    ]


def test_a_shard_cut_anywhere_gives_what_is_before_the_cut_and_says_so(tmp_path):
    whole = tar_bytes(samples(0, 3))
    end = len(whole.rstrip(b"\0"))
    cuts = [0, 100, 512, 513, 1024, 5000, *range(0, end, 512)]
    for cut in cuts:
        (tmp_path / "s.tar").write_bytes(whole[:cut])
        found = records(tmp_path / "s.tar")
        assert len(faults(found)) >= 1, cut
        assert good(found) == good(found)[: len(good(found))]
        # a picture whose caption was cut off is there without one, never with another's
        assert all(caption in (None, f"a cat {int(name[-4:])}") for name, caption in good(found))
    (tmp_path / "s.tar").write_bytes(whole)
    assert not faults(records(tmp_path / "s.tar"))
    (tmp_path / "s.tar.gz").write_bytes(tar_bytes(samples(0, 3), "w:gz"))
    assert len(good(records(tmp_path / "s.tar.gz"))) == 3 and not faults(records(tmp_path / "s.tar.gz"))
    (tmp_path / "s.tar.gz").write_bytes(tar_bytes(samples(0, 3), "w:gz")[:-700])
    assert faults(records(tmp_path / "s.tar.gz"))


def test_other_shards_go_on_after_a_bad_one(tmp_path):
    pattern = write_shards(tmp_path)
    (tmp_path / "s-1.tar").write_bytes(b"not a tar at all")
    found = records(pattern)
    assert len(good(found)) == 8 and [name for name, _ in faults(found)] == [str(tmp_path / "s-1.tar")]


@pytest.mark.parametrize("world", [1, 2, 3, 5])
def test_ranks_share_every_sample_once(tmp_path, world):
    source = open_source(write_shards(tmp_path))
    shares = [[r.name for _, _, r in walk(source, rank=rank, world=world)] for rank in range(world)]
    assert sorted(name for share in shares for name in share) == [f"s-{n // 4}.tar/{n:04d}" for n in range(12)]
    assert all(shares)


@pytest.mark.parametrize("world", [1, 5])
def test_a_walk_goes_on_from_any_position(tmp_path, world):
    source = open_source(write_shards(tmp_path))
    for rank in range(world):
        steps = list(walk(source, rank=rank, world=world, order=(2, 0, 1)))
        for place, (after, _, _) in enumerate(steps):
            rest = list(walk(source, rank=rank, world=world, order=(2, 0, 1), start=after))
            assert [at for _, at, _ in rest] == [at for _, at, _ in steps[place + 1 :]]


def test_a_folder_of_pictures(tmp_path):
    (tmp_path / "deep").mkdir()
    for name, content in samples(0, 2).items():
        (tmp_path / "deep" / name).write_bytes(content)
    (tmp_path / "b.jpg").write_bytes(picture(kind="JPEG"))
    (tmp_path / "b.json").write_text('{"prompt": "a dog"}')
    (tmp_path / "lonely.png").write_bytes(picture())
    (tmp_path / "bad.png").write_bytes(picture())
    (tmp_path / "bad.txt").write_bytes(b"\xff\xff")
    found = records(tmp_path)
    captions = [("b.jpg", "a dog"), ("deep/0000.png", "a cat 0"), ("deep/0001.png", "a cat 1"), ("lonely.png", None)]
    assert good(found) == captions and [name for name, _ in faults(found)] == ["bad.png"]
    (tmp_path / "metadata.jsonl").write_text(
        '{"file_name": "lonely.png", "text": "night"}\n\n{"file_name": "gone.png", "text": "day"}\n'
    )
    found = records(tmp_path)
    assert good(found) == [("lonely.png", "night")] and faults(found) == [("gone.png", "the picture is missing")]
    (tmp_path / "metadata.jsonl").write_text("{}\n")
    with pytest.raises(RecipeError, match=r"Line 1 of .*metadata\.jsonl"):
        open_source(tmp_path)


def test_prompts_of_parquet_and_text(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    table = pyarrow.table({"url": ["u", "v", "w"], "text": ["a cat", None, "a dog"]})
    parquet.write_table(table, tmp_path / "p.parquet", row_group_size=2)
    source = open_source(tmp_path)
    assert (source.kind, source.pictures) == ("prompts", False)
    assert [record.caption for _, _, record in walk(source)] == ["a cat", None, "a dog"]
    assert [record.caption for _, _, record in walk(open_source(tmp_path, caption="url"))] == ["u", "v", "w"]
    with pytest.raises(RecipeError, match="no 'words' among url, text"):
        open_source(tmp_path, caption="words")
    (tmp_path / "q.parquet").write_bytes((tmp_path / "p.parquet").read_bytes()[:-20])
    found = records(tmp_path)
    assert [name for name, _ in faults(found)] == [str(tmp_path / "q.parquet")] and len(good(found)) == 3
    (tmp_path / "prompts.txt").write_bytes(b"a cat\n\n a dog \n\xff\n")
    found = records(tmp_path / "prompts.txt")
    assert good(found) == [("prompts.txt:1", "a cat"), ("prompts.txt:3", "a dog")]
    assert [name for name, _ in faults(found)] == ["prompts.txt:4"]


def test_a_hugging_face_directory(tmp_path):
    datasets = pytest.importorskip("datasets")
    rows = {"image": [Image.new("RGB", (8, 6), colour) for colour in ("red", "blue")] + [None], "text": ["a", "b", "c"]}
    features = datasets.Features({"image": datasets.Image(), "text": datasets.Value("string")})
    table = datasets.Dataset.from_dict(rows, features=features)
    table.save_to_disk(tmp_path / "one")
    found = records(tmp_path / "one")
    assert good(found) == [("one:0", "a"), ("one:1", "b")] and faults(found) == [("one:2", "the row has no picture")]
    assert measure(found[0], Filters()) == (6, 8)
    datasets.DatasetDict({"test": table, "train": table.select([1])}).save_to_disk(tmp_path / "splits")
    assert good(records(tmp_path / "splits")) == [("splits:0", "b")]
    source = open_source(tmp_path / "one", caption="text")
    assert source.fingerprint == open_source(tmp_path / "one").fingerprint
    datasets.DatasetDict({"test": table, "more": table}).save_to_disk(tmp_path / "no-train")
    with pytest.raises(RecipeError, match="'train' among"):
        open_source(tmp_path / "no-train")
    assert not open_source(_without_pictures(datasets, tmp_path)).pictures


def _without_pictures(datasets, tmp_path):
    datasets.Dataset.from_dict({"prompt": ["a"]}).save_to_disk(tmp_path / "prompts")
    return tmp_path / "prompts"


def test_what_is_not_understood_is_said(tmp_path):
    (tmp_path / "file.bin").write_bytes(b"")
    for where, said in [
        (tmp_path / "gone", "nothing at"),
        (tmp_path / "file.bin", "no data that is understood"),
        (tmp_path, r"holds \.bin"),
        (tmp_path / "s-{0..2}.tar", "3 are missing, first"),
        (tmp_path / "*.tar", "0 files"),
        (f"{tmp_path}/*.bin", "other kinds than"),
        ("nothere://bucket/*.tar", "cannot be listed"),
    ]:
        with pytest.raises(RecipeError, match=said):
            open_source(where)


def test_braces():
    assert expand_braces("{000..002}") == ["000", "001", "002"] and expand_braces("{9..11}") == ["9", "10", "11"]
    assert expand_braces("plain.tar") == ["plain.tar"]


@pytest.mark.parametrize(
    ("filters", "size", "caption", "said"),
    [
        (Filters(), (16, 24), None, "no caption"),
        (Filters(), (16, 24), "  ", "no caption"),
        (Filters(least_caption=0), (16, 24), None, ""),
        (Filters(least_caption=6), (16, 24), "a cat", "shorter"),
        (Filters(most_caption=4), (16, 24), "a cat", "longer"),
        (Filters(least_px=16), (16, 24), "a cat", ""),
        (Filters(least_px=17), (16, 24), "a cat", "below 17 px"),
        (Filters(most_aspect=1.5), (16, 24), "a cat", ""),
        (Filters(most_aspect=1.4), (16, 24), "a cat", "more than 1.4"),
    ],
)
def test_filters(tmp_path, filters, size, caption, said):
    files = {"x.png": picture(size=size[::-1])} | ({} if caption is None else {"x.txt": caption.encode()})
    (tmp_path / "s.tar").write_bytes(tar_bytes(files))
    found = measure(records(tmp_path / "s.tar")[0], filters)
    assert found == size if not said else isinstance(found, Lost) and said in found.reason and not found.fault


def test_a_share_depends_on_the_name(tmp_path):
    prompts = tmp_path / "p.txt"
    prompts.write_text("".join(f"prompt {n}\n" for n in range(400)))
    found = records(prompts)
    kept = {record.name for record in found if measure(record, Filters(share=0.25)) is None}
    assert 60 < len(kept) < 140 and kept == {r.name for r in found[::-1] if measure(r, Filters(share=0.25)) is None}
    assert kept < {record.name for record in found if measure(record, Filters(share=0.5)) is None}


@pytest.mark.parametrize("values", [{"share": 0.0}, {"most_aspect": 0.5}, {"least_caption": 5, "most_caption": 4}])
def test_filters_that_let_nothing_through_are_refused(values):
    with pytest.raises(RecipeError):
        Filters(**values)


def test_upright_size_from_the_head(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    (tmp_path / "x.jpg").write_bytes(picture(size=(24, 16), kind="JPEG", exif=exif))
    (tmp_path / "x.txt").write_text("a cat")
    assert measure(records(tmp_path)[0], Filters()) == (24, 16)


@pytest.mark.parametrize("workers", [0, 1, 3])
def test_ahead_keeps_the_order_and_stops_early(workers):
    assert list(ahead(lambda n: n * n, range(50), workers=workers)) == [n * n for n in range(50)]
    taken = []
    results = ahead(lambda n: n, (taken.append(n) or n for n in range(10_000)), workers=workers)
    assert next(results) == 0
    results.close()
    assert len(taken) < 20


def test_a_tally_says_why():
    tally = Tally()
    for name in "abcdefg":
        tally.count(Lost(name, "torn", fault=True))
    tally.count(Lost("x", "no caption"))
    with pytest.raises(RecipeError, match=r"of 8 samples not one is kept: 1 no caption, 7 corrupt \(a: torn; .*2 more"):
        tally.check("here")
    with pytest.raises(RecipeError, match="there is not one sample"):
        Tally().check("here")


def test_tar_members_that_are_no_files_are_passed_over(tmp_path):
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as tar:
        folder = tarfile.TarInfo("deep")
        folder.type = tarfile.DIRTYPE
        tar.addfile(folder)
        for name, content in samples(0, 1).items():
            member = tarfile.TarInfo(f"deep/{name}")
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    (tmp_path / "s.tar").write_bytes(stream.getvalue())
    assert good(records(tmp_path / "s.tar")) == [("s.tar/deep/0000", "a cat 0")]
    assert json.dumps(open_source(tmp_path).fingerprint)
