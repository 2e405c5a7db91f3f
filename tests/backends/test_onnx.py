"""ONNX Runtime against the eager torch modules, on random models in the real layout."""

import json
import threading
import time
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch

pytest.importorskip("onnx")

from fewstep.backends import onnx_session
from fewstep.backends.eager import EagerDenoiser
from fewstep.backends.onnx import OnnxDenoiser
from fewstep.backends.onnx_model import OnnxModel
from fewstep.backends.onnx_session import thread_count
from fewstep.checkpoints.description import describe
from fewstep.checkpoints.load import load_model
from fewstep.checkpoints.lora import Lora, LoraLayer, LoraStack
from fewstep.errors import CheckpointError, LoraError, RequestError
from fewstep.export.onnx import export_graphs
from fewstep.models.vae import decode, encode
from tests.tiny import tiny_folder, tiny_unet

PROMPTS = ["a photo of a cat", "", "red apple, 3d!! \u00e9t\u00e9 \U0001f34e", "dog " * 90 + "the end"]
ODD = ["  A  Cat's <|endoftext|> we'll\n12 ", "\u6f22\u5b57 \u0130 \ufb01 \u200d", "<|startoftext|>dog", "x" * 500]


def twin(folder, model):
    """The same folder by ONNX Runtime."""
    export_graphs(folder)
    return OnnxModel(describe(folder))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny_folder("pictogram", into=tmp_path_factory.mktemp("onnx") / "tiny")


@pytest.fixture(scope="module")
def pair(folder):
    model = load_model(folder, device="cpu")
    return model, twin(folder, model)


def close(found, wanted, tolerance=2e-5):
    wanted = wanted.numpy() if isinstance(wanted, torch.Tensor) else wanted
    assert found.dtype == np.float32 and found.shape == wanted.shape
    np.testing.assert_allclose(found, wanted, atol=tolerance * max(1, abs(wanted).max()), rtol=0)


def noise(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("prompt", PROMPTS + ODD)
def test_tokens_are_those_of_transformers(pair, prompt):
    model, ours = pair
    assert ours.text.chunks(prompt) == model.text.chunks(prompt)
    wanted = model.text.tokenizers[0]([prompt], padding="max_length", max_length=77, truncation=True).input_ids
    assert ours.text.ids([prompt]).tolist() == wanted


@pytest.mark.parametrize("skip", [1, 2, 3])
def test_text(pair, skip):
    model, ours = pair
    close(ours.text.encode(PROMPTS, clip_skip=skip).text_BLD, model.text.encode(PROMPTS, clip_skip=skip).text_BLD)


@pytest.mark.parametrize("emphasis", ["original", "no norm", "ignore", "none"])
@pytest.mark.parametrize("prompt", ["", "a (cat:1.4) [dog]", "cat " * 80 + "(moon:0.5) BREAK a dog"])
def test_weights_and_chunks(pair, prompt, emphasis):
    model, ours = pair
    wanted = model.text.encode_prompt(prompt, emphasis=emphasis, clip_skip=2).text_BLD
    close(ours.text.encode_prompt(prompt, emphasis=emphasis, clip_skip=2).text_BLD, wanted)


def test_prompts_of_different_lengths(pair):
    model, ours = pair
    z_BCHW, words, away = noise(2, 4, 8, 8), "cat " * 80, "dog"
    wanted = EagerDenoiser(model, *(model.text.encode_prompt(text) for text in (words, away)), 2.0)(z_BCHW, 499)
    found = OnnxDenoiser(ours, *(ours.text.encode_prompt(text) for text in (words, away)), 2.0)(z_BCHW.numpy(), 499)
    close(found, wanted)
    alone = [EagerDenoiser(model, model.text.encode_prompt(text))(z_BCHW, 499) for text in (words, away)]
    close(found, alone[1] + 2 * (alone[0] - alone[1]), 1e-4)


def test_clip_skip_beyond_the_layers_is_refused(pair):
    with pytest.raises(RequestError, match="not in 1 to 3"):
        pair[1].text.encode(["a cat"], clip_skip=4)


@pytest.mark.parametrize(("count", "height", "width"), [(1, 8, 8), (2, 16, 8), (3, 9, 13), (1, 1, 1)])
def test_per_item_timesteps_and_sizes(pair, count, height, width):
    model, ours = pair
    z_BCHW, timestep_B = noise(count, 4, height, width), torch.tensor([999, 259, 0][:count])
    prompts = PROMPTS[:count]
    wanted = EagerDenoiser(model, model.text.encode(prompts))(z_BCHW, timestep_B)
    close(OnnxDenoiser(ours, ours.text.encode(prompts))(z_BCHW.numpy(), timestep_B.numpy()), wanted)


@pytest.mark.parametrize("guidance", [1.0, 3.0, (1.0, 2.0, 0.0), (1.5, 1.0, 1.0)])
@pytest.mark.parametrize("negative", [None, "dog"])
def test_guidance_per_item(pair, guidance, negative):
    model, ours = pair
    z_BCHW = noise(3, 4, 8, 8)

    def run(denoiser, one):
        text, away = one.text.encode(["a cat"]), negative and one.text.encode_negative([negative])
        return denoiser(one, text, away or None, guidance)

    wanted = run(EagerDenoiser, model)(z_BCHW, 499)
    close(run(OnnxDenoiser, ours)(z_BCHW.numpy(), 499), wanted, 1e-4)


def test_the_same_alone_and_in_a_batch(pair):
    _, ours = pair
    denoiser = OnnxDenoiser(ours, ours.text.encode(["a cat"]))
    z_BCHW = noise(3, 4, 8, 8).numpy()
    close(denoiser(z_BCHW, 499)[1:2], denoiser(z_BCHW[1:2], 499), 5e-6)


def test_counts_that_do_not_fit_are_refused(pair):
    _, ours = pair
    z_BCHW = noise(3, 4, 8, 8).numpy()
    with pytest.raises(ValueError, match="2 guidances for 3"):
        OnnxDenoiser(ours, ours.text.encode(["a cat"]), None, (1.0, 2.0))(z_BCHW, 499)
    with pytest.raises(ValueError, match="2 prompts for 3"):
        OnnxDenoiser(ours, ours.text.encode(["a cat", "dog"]))(z_BCHW, 499)


@pytest.mark.parametrize(("count", "height", "width"), [(1, 64, 64), (2, 72, 120)])
def test_autoencoder_both_ways(pair, count, height, width):
    model, ours = pair
    pixels_BHWC = np.random.default_rng(0).integers(0, 256, (count, height, width, 3), np.uint8)
    image_BCHW = torch.from_numpy(pixels_BHWC).permute(0, 3, 1, 2).float() / 127.5 - 1
    with torch.no_grad():
        z_BCHW = encode(model.vae, image_BCHW)
        wanted = ((decode(model.vae, z_BCHW) + 1) * 127.5).permute(0, 2, 3, 1).numpy()
    close(ours.encode(pixels_BHWC), z_BCHW)
    found = ours.decode(z_BCHW.numpy())
    assert found.dtype == np.uint8 and found.shape == wanted.shape
    assert abs(found - wanted).max() <= 0.51


def lora(weights, *, name="ink"):
    """A random LoRA for these modules, rank 4, with alphas of their own."""
    layers = {}
    for index, (module, weight) in enumerate(weights.items()):
        shape = weight.shape
        down, up = noise(4, *shape[1:], seed=index), noise(shape[0], 4, *[1] * (len(shape) - 2), seed=index + 99)
        layers[module] = LoraLayer(down * 0.1, up * 0.1, alpha=2.0 + index % 3)
    unet = {module: layer for module, layer in layers.items() if not module.startswith("text_encoder.")}
    text = {module: layer for module, layer in layers.items() if module.startswith("text_encoder.")}
    return Lora(name, Path(f"{name}.safetensors"), unet, text, {}, None, hash=name)


TARGETS = ("to_q", "to_k", "to_v", "to_out.0", "proj_in", "proj_out", "ff.net.0.proj")
TARGETS += ("conv1", "conv_shortcut", "time_emb_proj")


def test_a_merged_lora_is_torchs_merge_and_can_be_taken_out(pair):
    model, ours = pair
    modules = dict(model.unet.named_modules())
    ink = lora({name: module.weight for name, module in modules.items() if name.endswith(TARGETS)})
    encoder = {name: module.weight for name, module in model.text.encoders[0].named_modules() if name.endswith("fc1")}
    text = lora({f"text_encoder.{n.removeprefix('text_model.')}": w for n, w in encoder.items()}).text_layers
    ink.text_layers.update(text)
    z_BCHW, before = noise(1, 4, 8, 8), {}
    stack = LoraStack(model)
    for name, loras in {"none": [], "half": [(ink, 0.5, -0.5)], "again": []}.items():
        stack.set(loras)
        ours.set_loras(loras)
        wanted = EagerDenoiser(model, model.text.encode(["a cat"]))(z_BCHW, 499)
        before[name] = OnnxDenoiser(ours, ours.text.encode(["a cat"]))(z_BCHW.numpy(), 499)
        close(before[name], wanted, 1e-4)
    assert abs(before["half"] - before["none"]).max() > 0.01
    np.testing.assert_array_equal(before["again"], before["none"])


def test_only_what_changed_is_made_anew(pair):
    _, ours = pair
    ours.text.encode(["a cat"])
    made = ours.sessions._made["text_encoder"]
    ours.set_loras([(lora({"conv_in": torch.zeros(32, 4, 3, 3)}), 1.0, 1.0)])
    assert ours.sessions._made["text_encoder"] is made and "unet" not in ours.sessions._made
    ours.set_loras([])


@pytest.mark.parametrize(
    ("weights", "strength", "error", "match"),
    [
        ({"mid_block.nothing": torch.zeros(8, 8)}, 1.0, LoraError, "modules are not there"),
        ({"conv_in": torch.zeros(32, 5, 3, 3)}, 1.0, LoraError, "has shape"),
        ({"conv_in": torch.zeros(32, 4, 3, 3)}, float("nan"), RequestError, "not a finite number"),
    ],
)
def test_a_lora_that_does_not_fit_changes_nothing(pair, weights, strength, error, match):
    _, ours = pair
    before = ours.sessions.additions
    with pytest.raises(error, match=match):
        ours.set_loras([(lora(weights), strength, strength)])
    assert ours.sessions.additions is before


@pytest.mark.parametrize("changes", [{"use_linear_projection": True}, {"transformer_layers_per_block": 2}], ids=str)
def test_other_unets_of_the_family(tmp_path, pair, changes):
    folder = tiny_folder("pictogram", into=tmp_path / "tiny")
    tiny_unet("pictogram", **changes).save_pretrained(folder / "unet")
    model = load_model(folder, device="cpu")
    ours, z_BCHW = twin(folder, model), noise(1, 4, 8, 8)
    wanted = EagerDenoiser(model, model.text.encode(["a cat"]))(z_BCHW, 19)
    close(OnnxDenoiser(ours, ours.text.encode(["a cat"]))(z_BCHW.numpy(), 19), wanted)


def test_graphs_are_small_hold_no_weights_and_are_the_same_each_time(folder, pair):
    first = {path.name: path.read_bytes() for path in (folder / "onnx").iterdir()}
    export_graphs(folder)
    assert first == {path.name: path.read_bytes() for path in (folder / "onnx").iterdir()}
    assert all(len(content) < 300_000 for content in first.values())
    assert set(json.loads(first["weights.json"])) == {name[:-5] for name in first if name.endswith(".onnx")}


def test_missing_and_damaged_files_are_one_sentence(tmp_path, pair):
    model, _ = pair
    folder = tiny_folder("pictogram", into=tmp_path / "tiny")
    ours = twin(folder, model)
    (folder / "unet" / "diffusion_pytorch_model.safetensors").write_bytes(b"no")
    with pytest.raises(CheckpointError, match="does not hold the weights"):
        ours.unet(noise(1, 4, 8, 8).numpy(), np.zeros(1), text_kv_BLK=np.zeros((1, 77, 8), np.float32))
    (folder / "onnx" / "weights.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"weights.json' is missing or damaged"):
        OnnxModel(describe(folder))


def test_threads_follow_the_environment(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    assert thread_count() == 1
    monkeypatch.delenv("OMP_NUM_THREADS")
    assert 1 <= thread_count() <= 8


def test_two_threads_that_make_the_first_sessions_share_one_pool(monkeypatch):
    made, both = [], threading.Barrier(2)

    class Ort:
        SessionOptions = onnxruntime.SessionOptions

        @staticmethod
        def set_global_thread_pool_sizes(*sizes):
            time.sleep(0.05)
            made.append(sizes)

    def make():
        both.wait(10)
        onnx_session.session_options(Ort)

    threads = [threading.Thread(target=make) for _ in range(2)]
    for one in threads:
        one.start()
    for one in threads:
        one.join(10)
    assert made == [(onnx_session.thread_count(), 1)]
