"""Graphs of every family, from folders and single files, against the eager torch modules."""

import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

pytest.importorskip("onnx")

import fewstep
from fewstep.backends.eager import EagerDenoiser
from fewstep.backends.graph_folder import graph_folder
from fewstep.backends.onnx import OnnxDenoiser
from fewstep.backends.onnx_model import OnnxModel, open_onnx
from fewstep.checkpoints.complete import describe_model
from fewstep.checkpoints.load import load_model, load_stored
from fewstep.checkpoints.save_single import save_single
from fewstep.errors import GraphError
from tests.tiny import KINDS, tiny_folder, tiny_model, tiny_taesd, tiny_unet

SLOW = pytest.mark.slow
#: OpenVINO takes some two seconds to compile a tiny UNet.
PAIRS = [("onnx", kind) for kind in KINDS] + [pytest.param("openvino", kind, marks=SLOW) for kind in KINDS]


def close(found, wanted, tolerance=1e-4):
    wanted = wanted.numpy() if isinstance(wanted, torch.Tensor) else wanted
    np.testing.assert_allclose(found, wanted, atol=tolerance * max(1, abs(wanted).max()), rtol=0)


def predictions(model, denoiser, z_BCHW, timestep_B):
    """Three items with guidance 1, 3 and 3, and negative prompts."""
    text = model.text.encode_prompt("a photo of a cat " * 20, clip_skip=2)
    return denoiser(model, text, model.text.encode_negative([""]), (1.0, 3.0, 2.0))(z_BCHW, timestep_B)


@pytest.mark.parametrize(("runtime", "kind"), PAIRS)
def test_every_family_is_eager(runtime, kind):
    pytest.importorskip("openvino") if runtime == "openvino" else None
    model, ours = tiny_model(kind), OnnxModel(describe_model(tiny_folder(kind)), runtime=runtime)
    z_BCHW = torch.randn(3, 4, 8, 12, generator=torch.Generator().manual_seed(0))
    wanted = predictions(model, EagerDenoiser, z_BCHW, torch.tensor([999, 499, 19]))
    close(predictions(ours, OnnxDenoiser, z_BCHW.numpy(), np.array([999, 499, 19])), wanted)


@pytest.mark.parametrize("kind", ["sdxl", "sd2"])
def test_prompts_are_read_as_by_torch(kind):
    model, ours = tiny_model(kind), OnnxModel(describe_model(tiny_folder(kind)))
    for prompt in ("", "a (cat:1.4) [dog]!", "cat " * 80 + "(moon:0.5) BREAK a dog"):
        wanted = model.text.encode_prompt(prompt, negative=True)
        found = ours.text.encode_prompt(prompt, negative=True)
        close(found.text_BLD, wanted.text_BLD)
        if wanted.pooled_BD is not None:
            close(found.pooled_BD, wanted.pooled_BD)


@pytest.mark.parametrize(("kind", "dtype"), [("sdxl", "float32"), ("sd15", "bfloat16"), ("sd2", "fp16")])
def test_single_files_in_either_number_format(tmp_path, kind, dtype):
    stored = load_stored(tiny_folder(kind))
    path = save_single(stored, tmp_path / "model.safetensors", dtype=dtype)
    model, ours = load_model(path, device="cpu", dtype="float32"), open_onnx(path)
    assert ours.content_hash == model.content_hash
    z_BCHW = torch.randn(3, 4, 8, 8, generator=torch.Generator().manual_seed(1))
    wanted = predictions(model, EagerDenoiser, z_BCHW, torch.tensor([999, 499, 19]))
    close(predictions(ours, OnnxDenoiser, z_BCHW.numpy(), np.array([999, 499, 19])), wanted)
    close(ours.decode(z_BCHW[:1].numpy()), fewstep.Pipeline(model).runner.decode(z_BCHW[:1]), 1.01 / 255)


def test_a_lora_of_both_text_encoders_and_the_unet(tmp_path):
    modules = {
        "unet_mid_block_attentions_0_proj_in": 32,
        "te1_text_model_encoder_layers_2_mlp_fc2": 64,
        "te1_text_model_encoder_layers_1_self_attn_q_proj": 32,
        "te2_text_model_encoder_layers_1_self_attn_q_proj": 32,
    }
    tensors = {f"lora_{name}.lora_down.weight": torch.full((2, width), 0.05) for name, width in modules.items()}
    tensors |= {f"lora_{name}.lora_up.weight": torch.full((32, 2), 0.5) for name in modules}
    save_file(tensors, tmp_path / "ink.safetensors")
    pipes = [fewstep.load(tiny_folder("sdxl"), device="cpu", backend=name) for name in ("eager", "onnx")]
    shown = []
    for pipe in pipes:
        asked = {"prompt": "a cat", "steps": 2, "width": 64, "height": 64, "seed": 3}
        plain = np.asarray(pipe(**asked), int)
        pipe.set_loras(tmp_path / "ink.safetensors")
        shown.append(np.asarray(pipe(**asked), int))
        assert abs(shown[-1] - plain).max() > 1
    assert abs(shown[0] - shown[1]).max() <= 1


@pytest.mark.parametrize("runtime", ["onnx", "openvino"])
def test_a_tiny_autoencoder_as_the_only_one(tmp_path, runtime):
    pytest.importorskip("openvino") if runtime == "openvino" else None
    folder = tiny_folder("pictogram", into=tmp_path / "model")
    taesd = tiny_taesd()
    shutil.rmtree(folder / "vae")
    taesd.save_pretrained(folder / "vae")
    model, ours = load_model(folder, device="cpu", dtype="float32"), open_onnx(folder, runtime=runtime)
    pixels = np.random.default_rng(0).integers(0, 256, (1, 64, 64, 3), dtype=np.uint8)
    runner = fewstep.Pipeline(model).runner
    z_BCHW = runner.encode(pixels)
    close(ours.encode(pixels), z_BCHW)
    assert abs(ours.decode(z_BCHW.numpy()).astype(int) - runner.decode(z_BCHW)).max() <= 1


def test_graphs_are_written_once_and_without_the_cache_too(monkeypatch, tmp_path):
    found = describe_model(tiny_folder("lcm"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    first, shapes = graph_folder(found)
    stamp = (first / "unet.onnx").stat().st_mtime_ns
    assert graph_folder(found)[0] == first and (first / "unet.onnx").stat().st_mtime_ns == stamp
    assert first.is_relative_to(tmp_path / "cache" / "fewstep") and len(list(first.parent.iterdir())) == 1
    assert shapes["unet"]["time_embedding.cond_proj.weight"] == (32, 256)
    (tmp_path / "file").write_text("no folder")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    second, _ = graph_folder(found)
    assert second != first and (second / "unet.onnx").read_bytes() == (first / "unet.onnx").read_bytes()


def test_what_no_graph_knows_goes_to_torch_with_a_note(tmp_path):
    folder = tiny_folder("sd15", into=tmp_path / "tiny")
    tiny_unet("sd15", resnet_time_scale_shift="scale_shift").save_pretrained(folder / "unet")
    with pytest.raises(GraphError, match="resnet_time_scale_shift"):
        open_onnx(folder)
    pipe = fewstep.load(folder, backend="onnx", device="cpu")
    assert pipe.notes[-1].startswith("eager and not onnx: ") and hasattr(pipe.model, "unet")
