"""ONNX Runtime at once, OpenVINO when it is compiled: which of the two answers, and that a picture never waits."""

import time
import weakref
from functools import partial

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("onnx")
pytest.importorskip("openvino")

import fewstep
import fewstep.backends.measured
import fewstep.evaluate.speed
from fewstep.backends import both_session
from fewstep.backends.both_session import LASTING, BothSession
from fewstep.backends.openvino_session import OpenVinoSession
from fewstep.cli import quickest as cli_quickest
from fewstep.cli.quickest import quickest
from fewstep.engine.live import Frame, Order
from fewstep.engine.live_request import LiveRequest
from fewstep.engine.local import LocalEngine, wait_for
from fewstep.engine.painter import LivePainter
from fewstep.engine.pictures import PictureNetwork
from fewstep.request import Request


@pytest.fixture
def answered(monkeypatch):
    """How often OpenVINO was asked."""
    found, run = [], OpenVinoSession.run

    def counted(self, outputs, inputs):
        found.append(outputs)
        return run(self, outputs, inputs)

    monkeypatch.setattr(OpenVinoSession, "run", counted)
    return found


@pytest.fixture
def session():
    """A small graph of the embedded model, which OpenVINO compiles in a twentieth of a second."""
    sessions = fewstep.load(backend="onnx").model.sessions
    return BothSession(sessions.graphs / "text_kv.onnx", sessions.merged_weights("text_kv"))


def asked(session, length=77, *, draft=True):
    text_BLD = np.random.default_rng(0).standard_normal((1, length, 160), np.float32)
    return (session.draft if draft else session.run)(("text_kv_BLK",), {"text_BLD": text_BLD})[0]


def compiled(session):
    until = time.monotonic() + 60
    while session._later is None and time.monotonic() < until:
        time.sleep(0.01)
    assert session._later is not None


def test_what_lasts_is_compiled_and_all_else_answered_at_once(session, answered):
    wanted = asked(session)
    for _ in range(LASTING - 2):
        assert (asked(session) == wanted).all() and not answered
    asked(session)
    compiled(session)
    answered.clear()
    np.testing.assert_allclose(asked(session), wanted, atol=1e-4)
    assert len(answered) == 1
    assert asked(session, 154).shape[1] == 154 and len(answered) == 1
    assert (asked(session, draft=False) == wanted).all() and len(answered) == 1


def test_what_nobody_wants_any_more_is_not_compiled(session, answered):
    other = BothSession(*session._made_from)
    gone = weakref.ref(other)
    del other
    both_session._compile(gone, ("text_kv_BLK",), {})
    assert gone() is None and not answered


@pytest.mark.slow
def test_live_frames_are_drafts_and_what_is_kept_is_onnx_runtimes(monkeypatch, answered):
    """All by ONNX Runtime at first, then drafts by OpenVINO, a refined picture never; and again with another LoRA."""
    monkeypatch.setattr(both_session, "LASTING", 6)
    pipe, plain = fewstep.load(backend="both", dtype="bf16"), fewstep.load(backend="onnx")
    painters = [LivePainter(one, seed=5) for one in (pipe, plain)]
    engine, fields = LocalEngine(PictureNetwork()), LiveRequest(Request("a red apple, 3d", steps=2))

    def shown(*, refined):
        order = Order(Frame(1, Image.new("RGB", (128, 128), "gray")), 1, fields, refined)
        return [np.asarray(wait_for(engine, partial(one.paint, order)), int) for one in painters]

    first = shown(refined=False)
    assert (first[0] == first[1]).all()
    for _ in range(4):
        shown(refined=False)
    compiled(pipe.model.sessions._made["unet"].result())
    answered.clear()
    draft = shown(refined=False)
    assert len(answered) == 2 and 0 < abs(draft[0] - draft[1]).mean() < 2
    kept = shown(refined=True)
    assert (kept[0] == kept[1]).all() and len(answered) == 2
    for one in (pipe, plain):
        one.set_loras((pipe.loras[0][0].path if one.loras else None, 0.7))
    other = shown(refined=False)
    assert (other[0] == other[1]).all() and len(answered) == 2
    engine.close()
    assert "Precision: float32" in pipe("a cat", steps=1, seed=1).info["parameters"]


def test_a_server_measures_once_and_says_what_it_takes(monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    ms, asked = {"onnx": 80.0, "openvino": 75.0, "openvino bf16": 50.0}, {"path": None, "lora": None, "dtype": None}
    calls = []

    def speed_of(name, pipe, begun):
        calls.append(name)
        return fewstep.evaluate.speed.Speed(name, 1.0, ms[name], 3)

    monkeypatch.setattr("fewstep.evaluate.speed.speed_of", speed_of)
    monkeypatch.setattr("fewstep.pipeline.load", lambda **how: how)
    assert quickest(asked) == {"backend": "both", "dtype": "bf16"} == quickest(asked)
    assert calls == list(ms)
    said = capsys.readouterr().err
    assert "1.6 times as fast as onnx" in said and said.count("measuring") == 1


@pytest.mark.parametrize("chosen", [{"path": "model"}, {"dtype": "fp32"}, {"backend": "onnx"}, {"device": "cpu"}])
def test_who_chose_is_not_overruled(chosen, monkeypatch):
    monkeypatch.setattr(cli_quickest, "_measured", None)
    assert quickest({"path": None, "lora": [], "backend": None, **chosen}) == {}


def test_a_small_gain_is_none(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    measured = fewstep.backends.measured.Measured({"onnx": 80.0, "openvino": 72.0}, "2026-11-22")
    monkeypatch.setattr(cli_quickest, "_measured", lambda found: measured)
    assert quickest({"path": None}) == {}


def test_a_runtime_that_fails_is_not_taken(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr("fewstep.pipeline.load", lambda **how: how)

    def speed_of(name, pipe, begun):
        if name != "onnx":
            raise RuntimeError("no such plugin")
        return fewstep.evaluate.speed.Speed(name, 1.0, 80.0, 3)

    monkeypatch.setattr("fewstep.evaluate.speed.speed_of", speed_of)
    assert quickest({"path": None}) == {}
