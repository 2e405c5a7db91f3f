"""`fewstep convert` and `fewstep merge`: there and back, guidance baked in, LoRAs baked in, nothing overwritten."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from fewstep.checkpoints.bake import bake_guidance
from fewstep.checkpoints.embedding import read_embedding
from fewstep.checkpoints.load import load_model, load_stored
from fewstep.checkpoints.lora import read_lora, stack_of, write_lora
from fewstep.checkpoints.lora_metadata import LCM_SAMPLING
from fewstep.cli.main import main
from fewstep.errors import RequestError
from fewstep.models.unet import predict
from fewstep.sampling.guidance import w_of
from tests.tiny import tiny_folder, tiny_model

torch.manual_seed(0)
Z_BCHW = torch.randn(1, 4, 8, 8)
UNET = "model.diffusion_model."


def output(model, guidance=None):
    w_B = None if guidance is None else torch.tensor([w_of(guidance)])
    return predict(model.unet, Z_BCHW, torch.tensor([499]), model.text.encode(["a cat"]), w_B=w_B)


def test_there_and_back(tmp_path, capsys):
    file, folder, again = tmp_path / "x.safetensors", tmp_path / "x", tmp_path / "y.safetensors"
    assert main(["convert", str(tiny_folder("sd2")), str(file)]) == 0
    assert main(["convert", str(file), str(folder)]) == 0 and main(["convert", str(folder), str(again)]) == 0
    assert again.read_bytes() == file.read_bytes()
    torch.testing.assert_close(output(load_model(again, device="cpu")), output(tiny_model("sd2")))
    assert "v_prediction" in capsys.readouterr().out
    assert main(["info", str(file), "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert (facts["kind"], facts["family"], facts["prediction"]) == ("model", "SD 2.x", "v_prediction")


def test_nothing_of_the_users_is_overwritten(tmp_path, capsys):
    file, folder = tmp_path / "x.safetensors", tmp_path / "x"
    file.write_text("mine")
    folder.mkdir()
    (folder / "mine").write_text("mine")
    for out in (file, folder):
        assert main(["convert", str(tiny_folder()), str(out)]) == 2
        assert "--force" in capsys.readouterr().err
    assert file.read_text() == "mine" and [path.name for path in folder.iterdir()] == ["mine"]
    assert main(["convert", str(tiny_folder()), str(file), "--force", "--dtype", "fp16"]) == 0
    assert {tensor.dtype for tensor in load_file(file).values()} == {torch.float16}
    assert main(["convert", "nowhere.safetensors", str(tmp_path / "new")]) == 2
    assert sorted(path.name for path in tmp_path.iterdir()) == ["x", "x.safetensors"]


def test_a_guidance_embedding_is_kept_or_baked(tmp_path):
    file, baked = tmp_path / "lcm.safetensors", tmp_path / "baked.safetensors"
    assert main(["convert", str(tiny_folder("lcm")), str(file)]) == 0
    assert UNET + "time_embedding.cond_proj.weight" in load_file(file)
    whole = load_model(file, device="cpu")
    assert whole.sampling.embedded_guidance
    assert main(["convert", str(file), str(baked), "--bake-w", "7"]) == 0
    model = load_model(baked, device="cpu")
    assert not model.sampling.embedded_guidance and model.sampling.guidance == 1 and model.sampling.sampler == "lcm"
    assert not [name for name in load_file(baked) if "cond_proj" in name]
    torch.testing.assert_close(output(model), output(whole, guidance=8.0), rtol=1e-5, atol=1e-5)
    assert not torch.allclose(output(model), output(whole, guidance=1.0), atol=1e-3)


@pytest.mark.parametrize(("kind", "w", "message"), [("sd15", 7, "nothing to bake"), ("lcm", -1, "guidance - 1")])
def test_what_cannot_be_baked(kind, w, message):
    with pytest.raises(RequestError, match=message):
        bake_guidance(load_stored(tiny_folder(kind)), w)


def test_merge_is_what_loading_with_the_lora_is(tmp_path):
    module = "mid_block.attentions.0.transformer_blocks.0.attn2.to_k"
    pair = (torch.randn(2, 32), torch.randn(32, 2))
    lora = write_lora(tmp_path / "lcm-lora.safetensors", {module: pair}, alpha=2, sampling=LCM_SAMPLING).path
    file = tmp_path / "fast.safetensors"
    assert main(["merge", str(tiny_folder()), "--lora", f"{lora}:0.5", "-o", str(file)]) == 0
    expected, found = tiny_model(), load_model(file, device="cpu")
    stack_of(expected).set([(read_lora(lora), 0.5, 0.5)])
    found_state, expected_state = found.unet.state_dict(), expected.unet.state_dict()
    assert all(torch.equal(tensor, expected_state[name]) for name, tensor in found_state.items())
    assert (found.sampling.sampler, found.sampling.steps, found.sampling.guidance) == ("lcm", 4, 1.0)
    assert found.metadata["modelspec.merged_from"] == "tiny-sd15, lcm-lora:0.5"
    assert found.metadata["modelspec.usage_hint"].startswith("LCM sampler, 4 steps")
    assert main(["merge", str(tiny_folder("sd2")), "--lora", str(lora), "-o", str(tmp_path / "no.safetensors")]) == 2
    assert not (tmp_path / "no.safetensors").exists()


def test_pickles_are_refused_unless_trusted_and_never_run(tmp_path, capsys):
    file, old, out = tmp_path / "x.safetensors", tmp_path / "x.ckpt", tmp_path / "out.safetensors"
    assert main(["convert", str(tiny_folder()), str(file)]) == 0
    base = ["--base", str(tiny_folder())]
    torch.save({"state_dict": load_file(file), "global_step": 7}, old)
    assert main(["convert", str(old), str(out), *base]) == 2 and "pickle" in capsys.readouterr().err

    class Bomb:
        def __reduce__(self):
            return (open, (str(tmp_path / "ran"), "w"))

    torch.save({"state_dict": {"a": Bomb()}}, tmp_path / "bomb.ckpt")
    assert main(["convert", str(tmp_path / "bomb.ckpt"), str(out), "--trust-pickle"]) == 2
    assert not (tmp_path / "ran").exists() and not out.exists()


@pytest.mark.parametrize(
    ("content", "keys"),
    [
        ({"string_to_token": {"*": 265}, "string_to_param": {"*": torch.ones(2, 32)}, "name": "x"}, {"emb_params"}),
        ({"<night>": torch.ones(32)}, {"<night>"}),
        ({"clip_l": torch.ones(2, 32), "clip_g": torch.ones(2, 64)}, {"clip_l", "clip_g"}),
    ],
)
def test_a_pickled_textual_inversion_is_written_safely(content, keys, tmp_path, capsys):
    old, new = tmp_path / "night.pt", tmp_path / "night.safetensors"
    torch.save(content, old)
    assert main(["convert", str(old), str(new)]) == 2 and "pickle" in capsys.readouterr().err
    assert main(["convert", "--trust-pickle", str(old), str(tmp_path / "folder")]) == 2
    assert ".safetensors" in capsys.readouterr().err and not new.exists()
    assert main(["convert", "--trust-pickle", str(old), str(new)]) == 0
    assert "textual inversion" in capsys.readouterr().out and load_file(new).keys() == keys
    found = read_embedding(new)
    assert set(found.vectors) == ({"text_encoder", "text_encoder_2"} if "clip_g" in keys else {"text_encoder"})
    assert torch.equal(found.vectors["text_encoder"], torch.ones(1 if "<night>" in keys else 2, 32))
    torch.save({"emb_params": torch.full((1, 32), float("nan"))}, tmp_path / "wild.pt")
    assert main(["convert", "--trust-pickle", str(tmp_path / "wild.pt"), str(tmp_path / "wild.safetensors")]) == 2
    assert not (tmp_path / "wild.safetensors").exists()


def test_metadata_of_a_file_is_kept(tmp_path):
    file, out = tmp_path / "x.safetensors", tmp_path / "y.safetensors"
    assert main(["convert", str(tiny_folder()), str(file)]) == 0
    said = load_stored(file).metadata | {"modelspec.author": "A. Painter", "modelspec.hash_sha256": "0x1", "note": "n"}
    from safetensors import safe_open

    with safe_open(file, framework="pt") as content:
        ours = {key: value for key, value in content.metadata().items() if key.startswith("fewstep.")}
    save_file(load_file(file), file, metadata=said | ours)
    assert main(["convert", str(file), str(tmp_path / "folder")]) == 0
    assert main(["convert", str(tmp_path / "folder"), str(out)]) == 0
    found = load_stored(out).metadata
    assert (found["modelspec.author"], found["note"], found["modelspec.title"]) == ("A. Painter", "n", "x")
    assert "modelspec.hash_sha256" not in found and found["modelspec.architecture"] == "stable-diffusion-v1"
