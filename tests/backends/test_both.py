"""ONNX Runtime at once, OpenVINO when it is compiled: which of the two answers, and that a picture never waits."""

import time
import weakref

import numpy as np
import pytest

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


def asked(session, length=77):
    text_BLD = np.random.default_rng(0).standard_normal((1, length, 160), np.float32)
    return session.run(("text_kv_BLK",), {"text_BLD": text_BLD})[0]


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


def test_what_nobody_wants_any_more_is_not_compiled(session, answered):
    other = BothSession(*session._made_from)
    gone = weakref.ref(other)
    del other
    both_session._compile(gone, ("text_kv_BLK",), {})
    assert gone() is None and not answered


@pytest.mark.slow
def test_the_pictures_of_onnx_runtime_before_and_after_and_with_another_lora(monkeypatch):
    monkeypatch.setattr(both_session, "LASTING", 6)
    pipe, plain = fewstep.load(backend="both"), fewstep.load(backend="onnx")
    how = {"prompt": "a cat", "steps": 2, "seed": 5}
    wanted = np.asarray(plain(**how), int)
    for _ in range(4):
        assert abs(np.asarray(pipe(**how), int) - wanted).max() <= 1
    compiled(pipe.model.sessions._made["unet"].result())
    assert abs(np.asarray(pipe(**how), int) - wanted).max() <= 1
    lora = pipe.loras[0][0].path
    for one in (pipe, plain):
        one.set_loras((lora, 0.7))
    assert (np.asarray(pipe(**how), int) == np.asarray(plain(**how), int)).all()


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
