"""OpenVINO against the eager torch modules, and what its sessions keep."""

import subprocess
import sys
from importlib.util import find_spec
from threading import Barrier, Thread

import numpy as np
import pytest

pytest.importorskip("onnx")
pytest.importorskip("openvino")

import fewstep
from fewstep.backends import openvino_session
from fewstep.backends.onnx_model import OnnxModel
from fewstep.backends.sessions import Sessions
from fewstep.checkpoints.description import describe
from fewstep.errors import CheckpointError
from fewstep.export.onnx import export_graphs
from tests.test_runners import CASES
from tests.tiny import tiny_folder

DEFAULT = "guided, two"
ASKED = {"prompt": "a cat", "steps": 2, "seed": 5}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tiny_folder("pictogram", into=tmp_path_factory.mktemp("openvino") / "tiny")
    export_graphs(folder)
    return folder


@pytest.fixture(scope="module")
def pipe(folder):
    return fewstep.load(folder, backend="openvino")


def pixels(pipe, **asked):
    shown = pipe(**ASKED | asked)
    return np.stack([np.asarray(one, int) for one in (shown if isinstance(shown, list) else [shown])])


@pytest.mark.parametrize("name", [DEFAULT, *(pytest.param(n, marks=pytest.mark.slow) for n in CASES if n != DEFAULT)])
def test_the_pictures_of_torch(folder, pipe, name):
    asked = {key: value for key, value in CASES[name].items() if key != "prompt"} | {"width": 72, "height": 64}
    wanted = pixels(fewstep.load(folder, device="cpu", backend="eager"), **asked)
    assert abs(pixels(pipe, **asked) - wanted).max() <= 1


@pytest.mark.slow
@pytest.mark.parametrize("steps", range(1, 9))
def test_every_number_of_steps(folder, pipe, steps):
    eager = fewstep.load(folder, device="cpu", backend="eager")
    assert abs(pixels(pipe, steps=steps) - pixels(eager, steps=steps)).max() <= 1


def test_networks_of_other_shapes_leave_and_threads_share(folder, monkeypatch):
    monkeypatch.setattr(openvino_session, "MOST_SHAPES", 2)
    model = OnnxModel(describe(folder), runtime="openvino")
    found = {}

    def run(batch):
        text = np.ones((batch, 77, 160), np.float32)
        found[batch] = model.sessions.run("text_kv", "text_kv_BLK", text_BLD=text)

    threads = [Thread(target=run, args=(batch,)) for batch in (1, 2, 3, 1, 2, 3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    session = model.sessions._made["text_kv"].result()
    assert len(session._compiled) == 2
    for batch, rows in found.items():
        np.testing.assert_allclose(rows, np.repeat(found[1], batch, axis=0), atol=1e-5)


def test_threads_that_want_a_session_at_once_get_the_same(folder, monkeypatch):
    made = []
    monkeypatch.setattr(Sessions, "_make", lambda self, graph: made.append(graph) or object())
    interval = sys.getswitchinterval()

    def want(sessions, begin):
        begin.wait()
        sessions._session("unet")

    sys.setswitchinterval(1e-6)
    try:
        for _ in range(50):
            sessions, begin = OnnxModel(describe(folder)).sessions, Barrier(8)
            threads = [Thread(target=want, args=(sessions, begin)) for _ in range(8)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
    finally:
        sys.setswitchinterval(interval)
    assert made == ["unet"] * 50


def test_a_network_of_open_shapes_is_compiled_once(folder, monkeypatch):
    monkeypatch.setattr(openvino_session, "SMALL_BYTES", 0)
    model = OnnxModel(describe(folder), runtime="openvino")
    one, two = (
        model.sessions.run("text_kv", "text_kv_BLK", text_BLD=np.ones((b, 77, 160), np.float32)) for b in (1, 2)
    )
    np.testing.assert_allclose(two, np.repeat(one, 2, axis=0), atol=1e-5)
    assert len(model.sessions._made["text_kv"].result()._compiled) == 1


def test_a_damaged_graph_is_one_sentence(tmp_path):
    (tmp_path / "unet.onnx").write_bytes(b"no")
    with pytest.raises(CheckpointError, match="OpenVINO cannot load"):
        openvino_session.OpenVinoSession(tmp_path / "unet.onnx", {})


def test_it_is_imported_without_its_telemetry():
    """Which would send word of it, from a fork that waits for ever while another thread multiplies."""
    seen = "sorted(name for name in sys.modules if 'openvino_telemetry' in name)"
    code = f"import sys; from fewstep.backends.openvino_session import core; core().available_devices; print({seen})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["[]"]
    assert find_spec("openvino_telemetry") is not None, "nothing to keep out: the test shows nothing"
