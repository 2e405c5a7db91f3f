"""The choice between the full and the tiny autoencoder: which one paints, what is recorded, what is read back."""

import json

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

import fewstep
from fewstep import Request
from fewstep.checkpoints.load import load_model
from fewstep.checkpoints.save import save_model
from fewstep.engine.live import Frame, Order
from fewstep.engine.live_request import LiveRequest
from fewstep.engine.painter import LivePainter
from fewstep.engine.pictures import PictureNetwork
from fewstep.errors import CheckpointError
from fewstep.infotext import parse, request_from_infotext
from fewstep.models import vae
from tests.tiny import tiny_folder, tiny_taesd

ASKED = Request("a cat", steps=2, seed=0, guidance=1, width=64, height=64)


@pytest.fixture(scope="module")
def taesd(tmp_path_factory):
    path = tmp_path_factory.mktemp("taesd") / "taesd.safetensors"
    save_file(tiny_taesd().state_dict(), path)
    return path


@pytest.fixture(scope="module")
def pipe(taesd):
    return fewstep.load(tiny_folder("sd15"), device="cpu", tiny_vae=taesd)


@pytest.fixture(scope="module")
def finishing(taesd, tmp_path_factory):
    """The folder of a model whose tiny autoencoder is good enough for finished pictures."""
    folder = tmp_path_factory.mktemp("model") / "model"
    save_model(load_model(tiny_folder("pictogram"), device="cpu", tiny_vae=taesd), folder)
    path = folder / "tiny_vae" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"_fewstep_finishes": True}))
    return folder


def pixels(picture):
    return np.asarray(picture, np.int16)


def decoded(part, z_BCHW):
    with torch.no_grad():
        image = vae.decode(part, z_BCHW)
    return ((image + 1) * 127.5).round().clamp(0, 255).permute(0, 2, 3, 1)[0].short().numpy()


@pytest.mark.parametrize("which", ["auto", "full", "tiny"])
def test_who_decodes(pipe, which):
    last = list(pipe.steps(ASKED.replaced(autoencoder=which)))[-1]
    part = pipe.model.tiny_vae if which == "tiny" else pipe.model.vae
    assert (pixels(last.pictures()[0]) == decoded(part, last.step.z)).all()
    assert (pixels(last.preview()[0]) == decoded(pipe.model.tiny_vae, last.step.z0)).all()


@pytest.mark.parametrize("which", ["auto", "full", "tiny"])
@pytest.mark.parametrize("start", [False, True])
def test_what_is_recorded_paints_the_same_again(pipe, which, start):
    asked = ASKED.replaced(autoencoder=which)
    if start:
        asked = asked.replaced(image=pipe(ASKED.replaced(seed=5)), strength=0.5)
    picture = pipe(asked)
    settings = parse(picture.info["parameters"]).settings
    assert settings.get("VAE Decoder", "") == {"auto": "", "full": "Full", "tiny": "TAESD"}[which]
    assert settings.get("VAE Encoder", "") == ("TAESD" if start and which == "tiny" else "")
    again = request_from_infotext(picture.info["parameters"]).replaced(image=asked.image, strength=asked.strength)
    assert (pixels(pipe(again)) == pixels(picture)).all()


def test_good_enough_for_finished_pictures(finishing):
    pipe = fewstep.load(finishing, device="cpu")
    assert pipe.model.tiny == "pictures"
    found = {which: pixels(pipe(ASKED.replaced(autoencoder=which))) for which in ("auto", "full", "tiny")}
    assert (found["auto"] == found["tiny"]).all() and (found["auto"] != found["full"]).any()
    assert parse(pipe(ASKED).info["parameters"]).settings["VAE Decoder"] == "TAESD"


def test_there_is_none():
    pipe = fewstep.load(tiny_folder("sd15"), device="cpu")
    with pytest.warns(UserWarning, match="no tiny autoencoder"):
        picture = pipe(ASKED.replaced(autoencoder="tiny"))
    assert (pixels(picture) == pixels(pipe(ASKED))).all()
    assert "VAE Decoder" not in picture.info["parameters"]


@pytest.mark.parametrize("which", ["auto", "full", "tiny"])
def test_live_pictures_take_the_tiny_one_and_refined_ones_do_not(pipe, which):
    painter, fields = LivePainter(pipe), LiveRequest(ASKED.replaced(autoencoder=which))
    for refined in (False, True):
        work = painter.paint(Order(Frame(0, None), 0, fields, refined))
        ask = next(work)
        while True:
            try:
                ask = work.send(PictureNetwork(1).answer([ask])[0])
            except StopIteration as end:
                picture = end.value
                break
        tiny = which == "tiny" or (which == "auto" and not refined)
        assert ("VAE Decoder: TAESD" in picture.info["parameters"]) == tiny


def test_folders_and_graphs_keep_it(finishing):
    pytest.importorskip("onnx")
    from fewstep.export.onnx import export_graphs

    export_graphs(finishing)
    pipe, torch_pipe = fewstep.load(finishing, device="cpu"), fewstep.load(finishing, device="cpu", dtype="bf16")
    assert type(pipe.model).__name__ == "OnnxModel" and pipe.model.tiny == "pictures"
    model = load_model(finishing, device="cpu", dtype="float32")
    z = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    assert np.abs(pixels(pipe.runner.decode(z.numpy(), tiny=True)[0]) - decoded(model.tiny_vae, z)).max() <= 1
    image = np.random.default_rng(0).integers(0, 256, (1, 64, 64, 3), np.uint8)
    with torch.no_grad():
        wanted = vae.encode(model.tiny_vae, torch.tensor(image).permute(0, 3, 1, 2).float() / 127.5 - 1)
    assert np.abs(pipe.runner.encode(image, tiny=True) - wanted.numpy()).max() < 1e-5
    assert torch_pipe.model.tiny == "pictures"


def test_a_full_vae_is_no_tiny_one(taesd):
    folder = tiny_folder("sd15")
    with pytest.raises(CheckpointError, match="no tiny autoencoder"):
        fewstep.load(folder, device="cpu", tiny_vae=folder / "vae" / "diffusion_pytorch_model.safetensors")
    with pytest.raises(CheckpointError, match="does not exist"):
        fewstep.load(folder, device="cpu", tiny_vae=taesd.with_name("missing.safetensors"))
