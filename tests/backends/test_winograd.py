"""Winograd's convolutions, and the networks with them, against ordinary ones."""

import json

import numpy as np
import pytest
import torch

pytest.importorskip("onnx")
pytest.importorskip("openvino")

import fewstep
from fewstep.backends import openvino_session
from fewstep.backends.onnx_model import OnnxModel
from fewstep.checkpoints.description import describe
from fewstep.export.onnx import export_graphs
from fewstep.graphs import channels_last
from fewstep.graphs.winograd import TAPS, transformed, transforms
from tests.marks import slow
from tests.tiny import tiny_folder

ASKED = {"prompt": "a cat", "seed": 5}


@pytest.mark.parametrize("tile", [2, 4])
def test_a_tile_is_that_of_a_convolution(tile):
    rng = np.random.default_rng(tile)
    reach, (outs, ins) = tile + TAPS - 1, (5, 7)
    pixels, weight = rng.standard_normal((ins, reach, reach)), rng.standard_normal((outs, ins, TAPS, TAPS))
    wanted = torch.nn.functional.conv2d(torch.from_numpy(pixels)[None], torch.from_numpy(weight))[0].numpy()
    how = transforms(tile)
    factors = how.pixels @ pixels.reshape(ins, -1).T
    products = np.einsum("foc,fc->fo", transformed(weight.astype(np.float32), tile), factors)
    np.testing.assert_allclose((how.results @ products).T.reshape(wanted.shape), wanted, atol=2e-5)


def small(kind, into):
    """A folder whose narrow networks have Winograd's convolutions at every level that is mostly larger than a pixel."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(channels_last, "WIDE", 32)
        patch.setattr(channels_last, "LARGE", {4: 4, 2: 2})
        folder = tiny_folder(kind, into=into / kind)
        export_graphs(folder)
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return small("sd15", tmp_path_factory.mktemp("winograd"))


def told(folder, batch):
    rng = np.random.default_rng(0)
    width = sum(shape[0] for shape in json.loads((folder / "onnx/weights.json").read_text())["text_kv"].values())
    return {
        "timestep_B": np.linspace(999, 1, batch, dtype=np.float32),
        "text_kv_BLK": rng.standard_normal((batch, 77, width), np.float32),
    }


@pytest.mark.parametrize("small_bytes", [0, *slow(openvino_session.SMALL_BYTES)], ids=["open", "fixed"])
def test_the_same_network(folder, monkeypatch, small_bytes):
    monkeypatch.setattr(openvino_session, "SMALL_BYTES", small_bytes)
    with_them = OnnxModel(describe(folder), runtime="openvino")
    assert opened(with_them) == "unet.winograd.onnx"
    monkeypatch.setattr(openvino_session, "memory_bytes", lambda: 0)
    without = OnnxModel(describe(folder), runtime="openvino")
    for batch, height, width in [(1, 8, 8), (2, 16, 12), (3, 9, 13), (1, 5, 6), (1, 2, 3)]:
        z = np.random.default_rng(1).standard_normal((batch, 4, height, width), np.float32)
        found, wanted = (model.unet(z_BCHW=z, **told(folder, batch)) for model in (with_them, without))
        assert 0 < abs(found - wanted).max() < 2e-5  # the sums differ, and so do roundings


@pytest.mark.parametrize("kind", slow("sd2", "lcm", "ssd1b", "sdxl"))
def test_the_pictures_of_torch_for_every_family(kind, tmp_path):
    folder = small(kind, tmp_path)
    compare(folder, width=72, height=64, steps=2, guidance=1.5, negative_prompt="a dog")


@pytest.mark.parametrize("steps", [1, *slow(*range(2, 9))])
def test_the_pictures_of_torch(folder, steps):
    compare(folder, width=72, height=64, steps=steps)


def compare(folder, **asked):
    painted = fewstep.load(folder, backend="openvino")
    wanted = np.asarray(fewstep.load(folder, device="cpu", backend="eager")(**ASKED | asked), int)
    assert abs(np.asarray(painted(**ASKED | asked), int) - wanted).max() <= 1
    assert opened(painted.model) == "unet.winograd.onnx"


def opened(model):
    return model.sessions._session("unet").graph.name


@pytest.mark.parametrize(
    ("dtype", "free", "file"),
    [
        ("float32", 10**9, "unet.winograd.onnx"),
        ("float32", 1000, "unet.onnx"),
        ("float32", None, "unet.onnx"),
        ("bfloat16", 10**9, "unet.onnx"),
    ],
)
def test_only_in_float32_and_with_memory(folder, monkeypatch, dtype, free, file):
    monkeypatch.setattr(openvino_session, "memory_bytes", lambda: free)
    assert opened(OnnxModel(describe(folder), runtime="openvino", dtype=dtype)) == file


def test_narrow_networks_have_ordinary_ones_alone(tmp_path, folder):
    names = {path.name for path in (export_graphs(tiny_folder("sd15", into=tmp_path / "sd15"))).iterdir()}
    assert "unet.onnx" in names and "unet.winograd.onnx" not in names
    assert "unet.winograd" not in json.loads((folder / "onnx" / "weights.json").read_text())


@pytest.mark.slow
def test_other_weights_change_them_too(folder):
    pipe = fewstep.load(folder, backend="openvino")
    sessions, name = pipe.model.sessions, "down_blocks.0.resnets.0.conv1.weight"
    before = pipe.model.unet(z_BCHW=np.ones((1, 4, 8, 8), np.float32), **told(folder, 1))
    weights = sessions._weights

    def doubled(part, wanted):
        found = weights(part, wanted)
        return found | {name: 2 * found[name]} if name in found else found

    sessions._weights = doubled
    sessions._made.clear()
    after = pipe.model.unet(z_BCHW=np.ones((1, 4, 8, 8), np.float32), **told(folder, 1))
    assert abs(after - before).max() > 1e-4
