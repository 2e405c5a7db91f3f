"""`fewstep data` and `fewstep distill --data`, from the command line."""

import json

import pytest
from PIL import Image

from fewstep.cli import data as cli
from fewstep.cli.data import share_of
from fewstep.cli.main import main
from fewstep.data.latents import LatentCache
from fewstep.errors import RequestError
from tests.data.worlds import picture, quick_model, samples, tar_bytes, write_shards
from tests.distill.conftest import LORA
from tests.tiny import tiny_folder


@pytest.fixture
def shards(tmp_path):
    files = samples(0, 5) | samples(5, 3, size=(64, 64)) | {"bad.png": b"no", "bad.txt": b"x", "mute.png": picture()}
    (tmp_path / "s.tar").write_bytes(tar_bytes(files))
    return str(tmp_path / "s.tar")


def test_inspect_counts_and_shows(shards, tmp_path, capsys):
    asked = ["data", "inspect", shards, "--size", "64", "--buckets", "--bucket-step", "16"]
    assert main([*asked, "--json", "--sheet", str(tmp_path / "sheet.png")]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert (facts["seen"], facts["kept"], facts["dropped"]) == (10, 8, {"no caption": 1})
    assert facts["corrupt"] == [["s.tar/bad", "not a picture that can be read (no format that is known)"]]
    assert facts["width_px"] == {"least": 24, "median": 24, "most": 64} and facts["enlarged"] == 5
    assert sum(facts["buckets"].values()) == 8 and len(facts["buckets"]) == 2
    assert facts["caption_words"] == {"least": 3, "median": 3, "most": 3} and facts["distinct_captions"] == 8
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert sheet.width > 150
    assert main(asked) == 0
    said = capsys.readouterr().out
    assert "10 samples, 8 kept" in said and "dropped 1: no caption" in said and "corrupt s.tar/bad" in said


def test_inspect_is_loud_when_nothing_is_let_through(shards, capsys):
    assert main(["data", "inspect", shards, "--size", "64", "--least-px", "700"]) == 2
    error = capsys.readouterr().err
    assert "not one is kept" in error and "8 a side below 700 px" in error and "1 no caption" in error
    assert main(["data", "inspect", shards, "--json", "--share", "0.0000001"]) == 2
    assert main(["data", "inspect", "nowhere"]) == 2
    assert "Traceback" not in capsys.readouterr().err


def test_inspect_limits_and_counts_long_captions(tmp_path, capsys):
    (tmp_path / "p.txt").write_text("a cat\n" + "a photo of the moon " * 30 + "\nnever seen\n")
    model = str(tiny_folder("pictogram"))
    assert main(["data", "inspect", str(tmp_path / "p.txt"), "--limit", "2", "--model", model, "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert (facts["seen"], facts["captions_cut"], facts["pictures"], facts["buckets"]) == (2, 1, False, {})


def test_encode_writes_a_cache_and_names_what_is_lost(shards, tmp_path, capsys):
    asked = ["data", "encode", shards, "-o", str(tmp_path / "cache"), "--model", str(tiny_folder("pictogram"))]
    asked += ["--device", "cpu", "--batch", "2", "--shard-size", "4"]
    assert main(asked) == 0
    out = capsys.readouterr()
    assert "8 samples. Lost: 1 no caption, 1 corrupt (s.tar/bad:" in out.out and "corrupt: s.tar/bad" in out.err
    cache = LatentCache(tmp_path / "cache")
    assert len(cache) == 8 and cache.shape == (4, 8, 8)
    assert main([*asked, "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert (facts["kept"], facts["part"], facts["corrupt"][0][0]) == (8, "0/1", "s.tar/bad")
    assert main([*asked, "--crop", "random"]) == 2 and "crop centre, not random" in capsys.readouterr().err
    assert main(["data", "inspect", str(tmp_path / "cache")]) == 2


def test_encode_in_parts(shards, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(cli, "_model", lambda *where, **how: quick_model())
    asked = ["data", "encode", shards, "-o", str(tmp_path / "cache"), "--json"]
    for number in range(2):
        monkeypatch.setenv("RANK", str(number))
        monkeypatch.setenv("WORLD_SIZE", "2")
        assert main(asked) == 0
        assert json.loads(capsys.readouterr().out)["part"] == f"{number}/2"
    assert len(LatentCache(tmp_path / "cache")) == 8
    assert share_of("3/4") == (3, 4)
    for wrong in ("4/4", "x", "1/0", "-1/2"):
        with pytest.raises(RequestError, match="K/N"):
            share_of(wrong)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--size", "60"], "not a multiple of 8. Use 64"),
        (["--size", "72", "--buckets"], "Use 64"),
        (["--size", "64", "--buckets", "--bucket-step", "12"], "multiple of 8"),
        (["--size", "0"], "whole number above 0"),
        (["--share", "2"], "share of 2.0"),
        (["--column", "x"], "nrecognized arguments"),
    ],
)
def test_wrong_options_are_one_sentence(shards, capsys, options, said):
    assert main(["data", "inspect", shards, *options]) == 2
    error = capsys.readouterr().err
    assert said in error and error.count("\n") == 1


@pytest.mark.parametrize("stream", [False, True])
def test_distill_from_shards(tmp_path, capsys, monkeypatch, stream):
    from fewstep.distill import finish as ending

    monkeypatch.setattr(ending, "distance", lambda run, who, steps: {"student": 1.0, "guided": 2.0, "plain": 3.0}[who])
    pattern = write_shards(tmp_path, count=2, each=3)
    recipe = tmp_path / "recipe.toml"
    recipe.write_text("".join(f"{key} = {json.dumps(value)}\n" for key, value in (LORA | {"steps": 2}).items()))
    asked = ["distill", str(recipe), "--data", pattern, "-o", str(tmp_path / "lcm.safetensors"), "--device", "cpu"]
    asked += ["--model", str(tiny_folder("pictogram")), "--json", "--workers", "1", *(["--stream"] if stream else [])]
    assert main(asked) == 0
    assert json.loads(capsys.readouterr().out)["steps"] == 2
    assert (tmp_path / "lcm.run" / "cache" / "manifest.json").exists() != stream
