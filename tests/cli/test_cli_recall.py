"""`--from` a picture of another program, or one whose files are elsewhere or nowhere; `info` of a picture."""

import json
import shutil

import pytest
from PIL import Image, PngImagePlugin

from fewstep.checkpoints.lora_metadata import tensor_hash
from fewstep.checkpoints.search import Places, file_hash, model_hash
from fewstep.cli.main import main
from fewstep.cli.recall import differences, recall
from fewstep.infotext import parse, read
from tests.foreign.test_programs import comfy, node
from tests.tiny import tiny_folder

MODULE = "down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_v"
SETTINGS = "Steps: 2, Sampler: LCM, CFG scale: 1, Seed: 5, Size: 64x64, Model: toy, Version: v1.10.1"


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="module")
def model():
    return str(tiny_folder("sd15"))


def generate(*arguments):
    return main(["generate", *map(str, arguments)])


def picture(path, **texts):
    chunks = PngImagePlugin.PngInfo()
    for key, text in texts.items():
        chunks.add_text(key, text)
    Image.new("RGB", (8, 8)).save(path, pnginfo=chunks)
    return path


def ink(path, weight=1.0):
    """A LoRA file; returns the 12 digits by which A1111 knows it."""
    import torch

    from fewstep.checkpoints.lora import write_lora

    path.parent.mkdir(parents=True, exist_ok=True)
    write_lora(path, {MODULE: (torch.eye(2, 32) * weight, torch.eye(32, 2))}, alpha=2)
    with path.open("rb") as file:
        return tensor_hash(file)[:12]


def test_a_graph_is_painted_and_what_it_lacks_is_said(here, capsys):
    tiny_folder("sd15", into=here / "toy")
    how = comfy()["3"]["inputs"] | {"seed": 2**40, "steps": 2, "sampler_name": "ddpm", "latent_image": ["u", 0]}
    nodes = comfy(**{
        "3": node("KSampler", **how),
        "4": node("CheckpointLoaderSimple", ckpt_name="sd15/toy.safetensors"),
        "5": node("EmptyLatentImage", width=64, height=72),
        "u": node("LatentRotate", samples=["5", 0]),
    })  # fmt: skip
    assert generate("--from", picture("a.png", prompt=json.dumps(nodes)), "-o", "b.png", "--seed", 3) == 0
    info = parse(read("b.png"))
    kept = {"Steps": "2", "CFG scale": "1.5", "Schedule type": "SGM Uniform", "Size": "64x72", "Seed": "3"}
    assert {key: info.settings[key] for key in kept} == kept
    assert (info.prompt, info.negative_prompt, info.settings["Model"]) == ("a cat", "blurry", "toy")
    said = capsys.readouterr().err
    assert f"Not restored: seed is {2**40}" in said
    assert "Not restored: There is no sampler 'ddpm'" in said
    assert "Not restored, as there is nothing like it here: Nodes: LatentRotate." in said


def test_loras_of_the_prompt_by_name_by_hash_and_not_at_all(here, model, capsys):
    digest = ink(here / "store" / "below" / "renamed.safetensors")
    ink(here / "pictures" / "fox.safetensors", 0.5)
    prompt = "a cat <lora:ink:0.8> <lora:fox:0.5:1> <lora:gone:1>"
    text = f'{prompt}\n{SETTINGS}, Lora hashes: "ink: {digest}, gone: 0123456789ab"'
    picture("pictures/a.png", parameters=text)
    common = ("--from", "pictures/a.png", "--model", model, "-o", "b.png")
    assert generate(*common, "--look-in", "store") == 0
    info = parse(read("b.png"))
    assert info.prompt == "a cat <lora:renamed:0.8> <lora:fox:0.5:1>"
    assert {entry.split(":")[0] for entry in info.settings["Lora hashes"].split(", ")} == {"renamed", "fox"}
    assert f"renamed: {digest}" in info.settings["Lora hashes"]
    assert "Loras" not in info.settings
    said = capsys.readouterr().err
    assert said.count("was not found, so it is left out") == 1
    assert "The LoRA 'gone' was not found" in said
    assert "another set of LoRAs" in said
    shutil.copy("store/below/renamed.safetensors", "renamed.safetensors")
    assert generate("--from", "b.png", "--model", model, "-o", "c.png", "--look-in", "pictures") == 0
    assert (here / "b.png").read_bytes() == (here / "c.png").read_bytes()
    assert generate("a <lora:none:1>", *common) == 2
    assert "no LoRA 'none'" in capsys.readouterr().err


def test_loras_beside_the_prompt_that_are_gone(here, model, capsys):
    ink(here / "ink.safetensors")
    assert generate("a cat", "-o", "a.png", "--steps", 1, "--lora", "ink:0.5", "--model", model) == 0
    (here / "store").mkdir()
    shutil.move("ink.safetensors", "store/other.safetensors")
    assert generate("--from", "a.png", "-o", "b.png", "--model", model, "--look-in", "store") == 0
    assert parse(read("b.png")).settings["Loras"] == "other: 0.5"
    assert "had another set" not in capsys.readouterr().err
    assert generate("--from", "a.png", "-o", "c.png", "--model", model) == 0
    said = capsys.readouterr().err
    assert "The LoRA 'ink' was not found" in said
    assert "had another set of LoRAs" in said


def test_a_missing_model_is_an_error_with_what_to_do(here, capsys):
    picture("a.png", parameters=f"a cat\n{SETTINGS}")
    assert generate("--from", "a.png", "-o", "b.png") == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert "the model 'toy' (hash unknown)" in said
    assert "--look-in" in said
    tiny_folder("sd15", into=here / "models" / "sd" / "toy")
    assert generate("--from", "a.png", "-o", "b.png", "--look-in", "models") == 0


def test_what_is_not_in_a_picture(here, model, capsys):
    lacking = "Denoising strength: 0.4, Mask blur: 4, Face restoration: GFPGAN, VAE: good.safetensors"
    settings = SETTINGS.replace("Model: toy, ", "")
    picture("a.png", parameters=f"a cat\n{settings.replace('Version', f'{lacking}, Version')}")
    assert generate("--from", "a.png", "-o", "b.png", "--json", "--model", model) == 0
    notes = " ".join(json.loads(capsys.readouterr().out)["notes"])
    for words in (
        *("does not say which model", "probably made from another picture", "made with a mask"),
        *("VAE 'good.safetensors' was not found", "nothing like it here: Mask blur: 4; Face restoration: GFPGAN."),
    ):
        assert words in notes


def test_a_model_by_its_hash(here):
    (here / "models" / "deep").mkdir(parents=True)
    one, two = here / "models" / "deep" / "one.safetensors", here / "two.safetensors"
    one.write_bytes(b"1" * 0x110000)
    two.write_bytes(b"2" * 100)
    places = Places(within=(here / "models",))
    assert places.model("x", file_hash(one)[:10]) == one
    assert model_hash(one) == file_hash(one)[:10]
    assert places.model("x", "8e29053b") is None
    import hashlib

    assert places.model("x", hashlib.sha256(b"1" * 0x10000).hexdigest()[:8]) == one
    assert places.model("two", "") is not None
    for name, digest in (("", ""), ("../two", ""), ("x", "zz" * 5), (".", "")):
        assert places.model(name, digest) is None


def test_another_vae_is_recorded_and_looked_for(here, model):
    from fewstep.checkpoints.load import load_model
    from fewstep.cli.recall import recalled_vae
    from fewstep.pipeline import Pipeline

    pipe = Pipeline(load_model(model, device="cpu", vae=tiny_folder("sd15", into=here / "other")))
    assert pipe.facts()["VAE"] == "other"
    assert load_model(model, device="cpu").vae_path is None
    (here / "good.safetensors").write_bytes(b"weights")
    pipe = Pipeline(load_model(model, device="cpu"))
    pipe.model.vae_path = here / "good.safetensors"
    facts = pipe.facts()
    assert (facts["VAE"], facts["VAE hash"]) == ("good.safetensors", file_hash(here / "good.safetensors")[:10])
    for name, found in (("good.safetensors", "good.safetensors"), ("good", "good.safetensors"), ("None", None)):
        picture("a.png", parameters=f"a\n{SETTINGS}, VAE: {name}")
        path = recalled_vae(recall(here / "a.png", model=model))
        assert (path and path.name) == found


def test_a_lora_says_the_hash_of_its_metadata(here):
    from safetensors.torch import load_file, save_file

    from fewstep.checkpoints.lora import read_lora

    digest = ink(here / "ink.safetensors")
    assert read_lora("ink.safetensors").short_hash == digest
    save_file(load_file("ink.safetensors"), "said.safetensors", {"sshs_model_hash": "ab" * 32})
    assert read_lora("said.safetensors").short_hash == "ab" * 6
    assert Places().lora("x", "ab" * 6).name == "said.safetensors"
    save_file(load_file("ink.safetensors"), "wrong.safetensors", {"sshs_model_hash": "none"})
    assert read_lora("wrong.safetensors").short_hash == digest


def test_hashes_of_another_length_are_not_compared(here, model):
    from fewstep.plan import Defaults, plan_of
    from fewstep.request import Request

    class Own:
        sampler, table, steps, guidance, origin_steps = "lcm", "linspace-lcm", 4, 1.0, 50

    plan = plan_of(Request("a"), Defaults(Own()))
    for digest, count in (("7460a6fa", 0), ("0123456789", 1)):
        picture("a.png", parameters=f"a\n{SETTINGS}, Model hash: {digest}")
        found = differences(recall(here / "a.png", model=model), plan, {"Model hash": "abcdef0123"})
        assert len(found) == count


@pytest.mark.parametrize(
    "text",
    [
        *(f"a\nSteps: four, Seed: 1, Size: 64x64, Model: {name}" for name in ("toy", "x" * 9000)),
        "a\nSteps: 1, Seed: 1, Size: 64 by 64",
        f"{'a' * 20_000}\n{SETTINGS}",
        f"<lora:a:b>\n{SETTINGS}",
        f"a\n{SETTINGS}, Sampler: LCM{' Karras' * 5000}, Init image hash: 5",
    ],
)
def test_malformed_settings_are_one_sentence_and_write_nothing(here, model, capsys, text):
    picture("a.png", parameters=text)
    assert generate("--from", "a.png", "-o", "b.png", "--model", model) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert len(said) < 400
    assert sorted(path.name for path in here.iterdir()) == ["a.png"]


def test_a_jpeg_that_cannot_carry_its_settings_is_noted(here, model, capsys):
    words = "龍" * 9_990 + " "
    common = ("--negative-prompt", words, "--steps", 1, "--seed", 1, "--model", model)
    assert generate(words, *common, "-o", "a.jpg", "--json") == 0
    output = capsys.readouterr()
    assert "does not carry its settings: JPEG" in json.loads(output.out)["notes"][-1]
    assert "does not carry its settings: JPEG" in output.err


def test_info_of_a_picture(here, capsys):
    picture("a.png", parameters=f"a cat\x1b[2J\nred\nNegative prompt: dog\n{SETTINGS}, Face restoration: GFPGAN")
    assert main(["info", "a.png"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "prompt           a cat?[2J" in lines
    assert "                 red" in lines
    assert "  Sampler           LCM" in lines
    assert "not restored     Face restoration" in lines
    assert main(["info", "a.png", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert (document["negative_prompt"], document["settings"]["Seed"]) == ("dog", "5")
    picture("b.png", prompt=json.dumps(comfy()))
    assert main(["info", "b.png", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["settings"]["Version"] == "ComfyUI"
    picture("c.png", Software="GIMP")
    assert main(["info", "c.png", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["settings"] is None
