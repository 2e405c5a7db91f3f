"""Which back end is taken, and what is said of it."""

import json

import pytest

import fewstep
from fewstep.backends import choice
from fewstep.backends.choice import Asked, open_with
from fewstep.backends.measured import Measured, recall, remember
from fewstep.checkpoints.complete import describe_model
from fewstep.cli.main import main
from fewstep.errors import DeviceError, RequestError
from fewstep.evaluate import speed
from tests.tiny import tiny_folder


@pytest.fixture(autouse=True)
def cache(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "fewstep" / "backends.json"


def taken(monkeypatch, path, backend=None, **how):
    """(name, why) of what `open_with` takes, without opening it."""
    found = []
    for name in choice.BACKENDS:
        monkeypatch.setitem(choice.BACKENDS, name, lambda asked, why, name=name: found.append((name, why)))
    open_with(Asked(path, how.get("device"), how.get("dtype"), {}), backend)
    return found[0]


def test_what_was_measured_is_taken_by_auto_alone(monkeypatch, cache):
    folder = tiny_folder("pictogram")
    assert taken(monkeypatch, folder, device="cpu") == ("eager", "")
    remember(describe_model(folder), {"eager": 30.0, "onnx": 20.0, "openvino": 10.0})
    name, why = taken(monkeypatch, folder, device="cpu")
    assert name == "openvino" and why.startswith("openvino: 2 times as fast as onnx here, measured 20")
    assert taken(monkeypatch, folder, "onnx", device="cpu") == ("onnx", "asked for")
    assert taken(monkeypatch, folder, device="cuda") == ("eager", "")
    assert taken(monkeypatch, folder, device="cpu", dtype="bf16") == ("eager", "")
    assert taken(monkeypatch, tiny_folder("sdxl"), device="cpu") == ("eager", "")


@pytest.mark.parametrize("text", ["", "{", "[]", '{"x": 1}', None])
def test_a_damaged_record_is_no_record(cache, text):
    found = describe_model(tiny_folder("pictogram"))
    remember(found, {"onnx": 20.0})
    if text is None:  # the right key with nonsense behind it
        text = json.dumps({key: {"ms": {"onnx": "fast"}} for key in json.loads(cache.read_text())})
    cache.write_text(text)
    assert recall(found) is None
    assert remember(found, {"onnx": 20.0}) == recall(found)


def test_another_machine_or_version_has_to_measure_anew(monkeypatch):
    found = describe_model(tiny_folder("pictogram"))
    assert remember(found, {"onnx": 20.0}) == recall(found) == Measured({"onnx": 20.0}, recall(found).date)
    monkeypatch.setattr("fewstep.backends.measured.chip", lambda: "another")
    assert recall(found) is None


@pytest.mark.parametrize(
    ("backend", "how", "error", "match"),
    [
        ("teletype", {}, RequestError, "no back end called 'teletype'. Use auto, eager, compiled"),
        ("onnx", {"device": "cuda"}, DeviceError, "runs on the CPU, and cuda"),
        ("onnx", {"dtype": "bf16"}, DeviceError, "computes in float32, and bfloat16"),
    ],
)
def test_what_cannot_be(backend, how, error, match):
    with pytest.raises(error, match=match):
        fewstep.load(tiny_folder("pictogram"), backend=backend, **how)


def test_a_missing_runtime_is_one_sentence_with_the_pip_line(monkeypatch):
    monkeypatch.setattr("fewstep.backends.sessions.find_spec", lambda name: None)
    with pytest.raises(DeviceError, match=r"not installed: pip install 'fewstep\[openvino\]'"):
        fewstep.load(tiny_folder("pictogram"), backend="openvino")


def test_embeddings_go_to_torch(monkeypatch):
    opened = []
    monkeypatch.setattr(choice, "_eager", lambda asked, why: opened.append(why))
    open_with(Asked(None, None, None, {}), "onnx", embeddings=True)
    assert opened == ["eager and not onnx, which cannot read textual inversions"]


def test_measuring_from_the_command_line(monkeypatch, capsys, cache):
    monkeypatch.setattr(speed, "MOST", 1)
    monkeypatch.setattr(choice, "SINGLE", ("eager", "onnx"))
    folder = tiny_folder("sd15")
    assert main(["info", "--backends", "--json", str(folder)]) == 0
    said = json.loads(capsys.readouterr().out)
    assert [row["backend"] for row in said["backends"]] == ["eager", "onnx"]
    assert all(row["ms"] > 0 and row["first_s"] > 0 and row["count"] == 1 for row in said["backends"])
    assert said["best"] == recall(describe_model(folder)).best and len(json.loads(cache.read_text())) == 1
