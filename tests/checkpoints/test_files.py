"""Every damaged file is one sentence with its name; writing is whole or not at all."""

import json
import os
import pickle
import stat

import pytest
import torch
from safetensors.torch import load_file, save_file

from fewstep.checkpoints.files import read_header, read_json, read_tensors, write_json, write_safetensors, write_whole
from fewstep.errors import CheckpointError, OutputError


def good(path):
    save_file({"a": torch.arange(6.0).reshape(2, 3), "n": torch.arange(3)}, path, metadata={"k": "v"})
    return path


BYTES = {
    "empty": lambda good: b"",
    "cut": lambda good: good[:-5],
    "cut in the header": lambda good: good[:20],
    "garbage": lambda good: b"\x10\0\0\0\0\0\0\0" + b"not json at all!" * 4,
    "old pickle": lambda good: pickle.dumps({"a": 1}, protocol=2),
    "zip pickle": lambda good: b"PK\x03\x04" + b"archive/data.pkl",
    "lfs": lambda good: b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n",
}
TENSORS = {
    "nan": {"ok": torch.ones(2), "bad": torch.tensor([1.0, float("nan")])},
    "inf in half": {"bad": torch.tensor([1.0, float("-inf")]).half()},
}


def damaged(kind, folder):
    path = good(folder / "x.safetensors")
    if kind in BYTES:
        path.write_bytes(BYTES[kind](path.read_bytes()))
    elif kind in TENSORS:
        save_file(TENSORS[kind], path)
    elif kind in ("missing", "folder"):
        path.unlink()
        if kind == "folder":
            path.mkdir()
    else:
        path = path.rename(path.with_suffix(f".{kind}"))
    return path


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("missing", "does not exist"),
        ("empty", "cut short"),
        ("cut", "cut short"),
        ("cut in the header", "cut short"),
        ("garbage", "not a readable safetensors file"),
        ("old pickle", "pickle"),
        ("zip pickle", "pickle"),
        ("lfs", "git lfs pull"),
        ("folder", "is a folder and not a file"),
        ("nan", "NaN or infinity.*'bad'"),
        ("inf in half", "NaN or infinity"),
        ("ckpt", "pickle"),
        ("bin", "pickle"),
        ("pt", "pickle"),
        ("txt", "not a .safetensors file"),
    ],
)
def test_damaged_weights_are_one_sentence(tmp_path, kind, message):
    path = damaged(kind, tmp_path)
    with pytest.raises(CheckpointError, match=message) as caught:
        read_tensors(path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


def test_good_weights(tmp_path):
    path = good(tmp_path / "x.safetensors")
    assert torch.equal(read_tensors(path)["a"], torch.arange(6.0).reshape(2, 3))
    assert read_header(path) == ({"a": (2, 3), "n": (3,)}, {"k": "v"})


def test_nan_may_be_asked_for(tmp_path):
    assert read_tensors(damaged("nan", tmp_path), finite=False)["bad"].isnan().any()


@pytest.mark.parametrize(
    ("content", "message"),
    [(None, "missing"), ("{", "json"), ("[1]", "list"), ("\0\1", "json"), (b"\xff\xfe{", "json")],
)
def test_damaged_json(tmp_path, content, message):
    path = tmp_path / "config.json"
    if content is not None:
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(CheckpointError, match=message) as caught:
        read_json(path)
    assert str(path) in str(caught.value)


def test_writing_makes_folders_keeps_metadata_and_takes_any_tensor(tmp_path):
    path = tmp_path / "new" / "x.safetensors"
    whole = torch.arange(12.0, requires_grad=True).reshape(3, 4)
    write_safetensors(path, {"turned": whole.t(), "shared": whole, "again": whole}, {"k": "v"})
    assert torch.equal(load_file(path)["turned"], whole.t())
    assert read_header(path)[1] == {"format": "pt", "k": "v"}
    assert stat.S_IMODE(path.stat().st_mode) & 0o044 == (0o044 & ~_umask())
    write_json(tmp_path / "x.json", {"b": 1, "a": "é"})
    assert json.loads((tmp_path / "x.json").read_text(encoding="utf-8")) == {"a": "é", "b": 1}


def _umask():
    mask = os.umask(0)
    os.umask(mask)
    return mask


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path):
    path = good(tmp_path / "x.safetensors")
    before = path.read_bytes()

    def fail(part):
        part.write_bytes(b"half")
        raise OSError("No space left on device")

    with pytest.raises(OutputError, match="No space left"):
        write_whole(path, fail)
    assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]


def test_a_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="cannot be written"):
        write_json(tmp_path / "file" / "x.json", {})


@pytest.mark.parametrize("length", [640, 0x4B50, 0x3C20, 0x10280])
def test_a_header_whose_length_looks_like_another_format(length, tmp_path):
    """The length's bytes are a pickle's, a zip's or a web page's beginning."""
    entry = b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}'
    path = tmp_path / "x.safetensors"
    path.write_bytes(length.to_bytes(8, "little") + entry.ljust(length) + bytes(4))
    assert read_header(path)[0] == {"a": (1,)}
