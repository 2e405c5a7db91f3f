"""LoRAs made of LoRAs: what is written changes a model as the sources do, and every refusal is one sentence."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file

from fewstep.checkpoints.lora import LoraStack, read_lora
from fewstep.checkpoints.lora_edit import Size
from fewstep.cli.main import main
from tests.checkpoints.lora_files import ATTENTION, TEXT, kohya, pieces, save
from tests.checkpoints.lora_forms import FORMS
from tests.tiny import tiny_folder, tiny_model, tiny_unet

CROSS = "mid_block.attentions.0.transformer_blocks.0.attn2.to_k"
CONV = "mid_block.resnets.0.conv1"


@pytest.fixture(scope="module")
def model():
    return tiny_model("sd15")


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def form(name, path, seed=0, **metadata):
    """A file of one family: a linear layer and a convolution."""
    generator, tensors = torch.Generator().manual_seed(seed), {}
    for module, shape in ((CROSS, (32, 32)), (CONV, (32, 32, 3, 3))):
        parts, _ = FORMS[name](shape, generator)
        tensors |= {f"lora_unet_{module.replace('.', '_')}.{part}": tensor for part, tensor in parts.items()}
    return save(path, tensors, **metadata)


def changes(model, *loras):
    """What (path, weight) do to every weight of a model."""
    roots = [model.unet, *model.text.encoders]
    before = [{name: value.clone() for name, value in root.state_dict().items()} for root in roots]
    stack = LoraStack(model)
    stack.set([(read_lora(path, family=model.family), weight, weight) for path, weight in loras])
    found = [
        value.double() - held[name].double()
        for root, held in zip(roots, before, strict=True)
        for name, value in root.state_dict().items()
    ]
    stack.set([])
    return torch.cat([change.flatten() for change in found])


def run(*words):
    assert main(["lora", *map(str, words)]) == 0


def refused(capsys, *words):
    capsys.readouterr()  # what making the tiny models said
    assert main(["lora", *map(str, words)]) == 2
    said = capsys.readouterr().err
    assert said.startswith("fewstep: error: ") and said.count("\n") == 1
    return said


def header(path):
    body = path.read_bytes()
    return json.loads(body[8 : 8 + int.from_bytes(body[:8], "little")])["__metadata__"]


def test_merging_is_exact_or_of_the_asked_rank(here, model, capsys):
    save(
        here / "a.safetensors",
        kohya(pieces(model.unet, ATTENTION, rank=lambda i: 1 + i % 4, alpha=lambda i: 1 + i % 3)),
    )
    save(
        here / "b.safetensors",
        kohya(pieces(model.unet, ("conv1", "to_q"))) | kohya(pieces(model.text.encoders[0], TEXT), "lora_te_"),
    )
    for name in ("loha", "lokr tucker", "lora mid"):
        form(name, here / f"{name[:5].strip()}.safetensors")
    wanted = changes(model, ("a.safetensors", 0.5), ("b.safetensors", -1.0))
    run("merge", "a.safetensors:0.5", "b.safetensors:-1", "-o", "ab.safetensors", "--dtype", "fp32")
    assert (changes(model, ("ab.safetensors", 1.0)) - wanted).abs().max() < 1e-5
    assert read_lora("ab.safetensors").layers[CROSS].rank == read_lora("a.safetensors").layers[CROSS].rank
    assert header(here / "ab.safetensors")["modelspec.merged_from"] == "a:0.5, b:-1"
    run(
        "merge",
        "a.safetensors",
        "loha.safetensors",
        "lokr.safetensors:0.3",
        "lora.safetensors",
        "-o",
        "all.safetensors",
    )
    several = (("a.safetensors", 1.0), ("loha.safetensors", 1.0), ("lokr.safetensors", 0.3), ("lora.safetensors", 1.0))
    assert (changes(model, ("all.safetensors", 1.0)) - changes(model, *several)).abs().max() < 1e-4
    run("merge", "a.safetensors:0.5", "b.safetensors:-1", "-o", "small.safetensors", "--rank", "2")
    assert {layer.rank for layer in read_lora("small.safetensors").all_layers.values()} <= {1, 2}
    assert (changes(model, ("small.safetensors", 1.0)) - wanted).norm() < 0.8 * wanted.norm()
    assert "rank 1 to 2" in capsys.readouterr().out


def test_a_family_that_multiplies_needs_its_model(here, model, capsys):
    form("dora of rows", here / "dora.safetensors")
    said = refused(capsys, "convert", "dora.safetensors", "-o", "x.safetensors", "--plain")
    assert (
        "'dora.safetensors' is DoRA at 'unet." in said and "--model" in said and not (here / "x.safetensors").exists()
    )
    run("convert", "dora.safetensors", "-o", "x.safetensors", "--rank", "32", "--model", tiny_folder("sd15"))
    difference = changes(model, ("x.safetensors", 1.0)) - changes(model, ("dora.safetensors", 1.0))
    assert {layer.label for layer in read_lora("x.safetensors").layers.values()} == {"LoRA"}
    assert difference.abs().max() < 1e-4


@pytest.mark.parametrize("naming", ["kohya", "diffusers", "peft"])
def test_every_naming_is_the_same_lora(naming, here, model):
    found = pieces(model.unet, (*ATTENTION, "conv1"), rank=lambda i: 1 + i % 4, alpha=lambda i: 0.5 + i % 3)
    save(here / "a.safetensors", kohya(found), ss_output_name="ink", **{"modelspec.trigger_phrase": "inked"})
    run("convert", "a.safetensors", "-o", "b.safetensors", "--to", naming)
    assert (changes(model, ("b.safetensors", 0.7)) - changes(model, ("a.safetensors", 0.7))).abs().max() < 1e-5
    said = header(here / "b.safetensors")
    assert (said["ss_output_name"], said["modelspec.trigger_phrase"]) == ("ink", "inked")
    assert said["ss_network_dim"] == "Dynamic"


def test_diffusers_reads_what_is_written_for_it(here, model):
    """Also kohya's naming of modules with different strengths, which diffusers misreads in other people's files."""
    from diffusers import StableDiffusionPipeline

    found = pieces(model.unet, (*ATTENTION, "conv1"), rank=lambda i: 1 + i % 4, alpha=lambda i: 0.5 + i % 3)
    save(here / "a.safetensors", kohya(found))
    for naming in ("kohya", "diffusers"):
        run("convert", "a.safetensors", "-o", f"{naming}.safetensors", "--to", naming)
        pipe = StableDiffusionPipeline.from_pretrained(tiny_folder("sd15"), safety_checker=None)
        pipe.load_lora_weights(here, weight_name=f"{naming}.safetensors")
        pipe.fuse_lora()
        pipe.unload_lora_weights()
        stack = LoraStack(model)
        stack.set([(read_lora("a.safetensors"), 1.0, 1.0)])
        wanted = pipe.unet.state_dict()
        assert all((value - wanted[name]).abs().max() < 1e-5 for name, value in model.unet.state_dict().items())
        stack.set([])


@pytest.mark.parametrize(
    "name", ["loha", "lokr both products", "glora", "ia3 on inputs", "oft rescaled", "boft", "full"]
)
def test_other_families_are_renamed_to_the_last_bit(name, here):
    path = form(name, here / "a.safetensors")
    tensors = {key.replace("lora_unet_", "lycoris_"): tensor for key, tensor in load_file(path).items()}
    run("convert", save(here / "b.safetensors", tensors), "-o", "c.safetensors")
    again, first = load_file(here / "c.safetensors"), load_file(path)
    assert again.keys() == first.keys()
    assert all(torch.equal(tensor.float(), first[key].float()) for key, tensor in again.items())


def test_resizing_keeps_the_asked_share(here, model):
    save(here / "a.safetensors", kohya(pieces(model.unet, ATTENTION, rank=lambda i: 8, alpha=lambda i: 1 + i % 3)))
    run("resize", "a.safetensors", "-o", "b.safetensors", "--energy", "0.9", "--rank", "7")
    wanted, kept = read_lora("a.safetensors").layers, read_lora("b.safetensors").layers
    ranks = {layer.rank for layer in kept.values()}
    assert len(ranks) > 1 and max(ranks) <= 7
    for name, layer in kept.items():
        zero = torch.zeros(1)
        whole, part = wanted[name].delta(zero), layer.delta(zero)
        assert (part - whole).norm() ** 2 <= 0.1001 * whole.norm() ** 2
        best = torch.linalg.svdvals(whole.double())[layer.rank :].norm()
        assert abs((part - whole).norm() - best) < 1e-4
    run("resize", "a.safetensors", "-o", "c.safetensors", "--rank", "8")
    assert (changes(model, ("c.safetensors", 1.0)) - changes(model, ("a.safetensors", 1.0))).abs().max() < 1e-5


def test_sizes():
    assert Size(rank=9).count(torch.ones(4)) == 4 and Size(energy=1.0).count(torch.tensor([2.0, 1.0])) == 2
    assert Size(energy=0.5).count(torch.zeros(3)) == 1 and not Size()


def test_extracting_the_difference_of_two_models(here, model):
    tuned = shutil.copytree(tiny_folder("sd15"), here / "tuned")
    unet, generator = tiny_unet("sd15"), torch.Generator().manual_seed(5)
    with torch.no_grad():
        for name in (f"{CROSS}.weight", f"{CONV}.weight", f"{CONV}.bias", "mid_block.resnets.0.norm1.weight"):
            parameter = dict(unet.named_parameters())[name]
            parameter += torch.randn(parameter.shape, generator=generator) * 0.1
    unet.save_pretrained(tuned / "unet")
    run("extract", tiny_folder("sd15"), tuned, "-o", "x.safetensors", "--energy", "1", "--dtype", "fp32")
    held = {name: value.clone() for name, value in model.unet.state_dict().items()}
    stack = LoraStack(model)
    stack.set([(read_lora("x.safetensors", family=model.family), 1.0, 1.0)])
    assert all((value - model.unet.state_dict()[name]).abs().max() < 1e-5 for name, value in unet.state_dict().items())
    stack.set([])
    assert all(torch.equal(value, held[name]) for name, value in model.unet.state_dict().items())


def test_info(here, capsys):
    path = form("doha", here / "a.safetensors", ss_output_name="ink")
    save(path, load_file(path) | {"bundle_emb.word.emb_params": torch.ones(2, 8), "what.is.this": torch.ones(1)})
    run("info", path, "--json")
    facts = json.loads(capsys.readouterr().out)
    assert (facts["families"], facts["namings"], facts["ranks"]) == ({"DoRA": 2}, ["diffusers", "kohya"], [3])
    assert (facts["embeddings"], facts["not_read"], facts["alphas"]) == (["word"], ["what.is.this"], [2.0])
    run("info", path)
    assert "not read" in capsys.readouterr().out


def test_refusals(here, capsys):
    path = form("lora", here / "a.safetensors")
    (here / "mine.safetensors").write_bytes(b"mine")
    assert "--force" in refused(capsys, "resize", path, "--rank", "1", "-o", "mine.safetensors")
    assert (here / "mine.safetensors").read_bytes() == b"mine"
    run("resize", path, "--rank", "1", "-o", "mine.safetensors", "--force")
    assert read_lora("mine.safetensors").layers[CROSS].rank == 1
    for words, reason in (
        (("resize", path, "-o", "x.safetensors"), "No size"),
        (("resize", path, "-o", "x.safetensors", "--rank", "0"), "'0' is not a rank"),
        (("resize", path, "-o", "x.safetensors", "--rank", "99999999999"), "is not a rank"),
        (("resize", path, "-o", "x.safetensors", "--energy", "nan"), "is not a share"),
        (("resize", path, "-o", "x.ckpt", "--rank", "1"), "written as .safetensors"),
        (("resize", path, "-o", "no/x.safetensors", "--rank", "1"), "does not exist"),
        (("merge", f"{path}:inf", "-o", "x.safetensors"), "not a finite number"),
        (("merge", f"{path}:1e38", f"{path}:1e38", "-o", "x.safetensors", "--dtype", "fp16"), "NaN or infinity"),
        (("merge", "gone.safetensors", "-o", "x.safetensors"), "does not exist"),
        (
            ("convert", form("full", here / "f.safetensors"), "--to", "peft", "-o", "x.safetensors"),
            "no keys for 2 of 2",
        ),
        (("extract", tiny_folder("sd15"), tiny_folder("sd15"), "-o", "x.safetensors"), "nothing to extract"),
        (("extract", tiny_folder("sd15"), tiny_folder("sdxl"), "-o", "x.safetensors"), "different layouts"),
    ):
        assert reason in refused(capsys, *words)
        assert not (here / "x.safetensors").exists() and not list(here.glob(".*.part"))


@pytest.mark.embedded
def test_the_embedded_lora_paints_the_same_picture_in_every_naming(here):
    import numpy as np

    from fewstep.checkpoints.load import assets_path, load_model
    from fewstep.pipeline import Pipeline

    own = assets_path() / "lcm-lora.safetensors"
    pipe = Pipeline(load_model(device="cpu"), own)
    how = {"steps": 1, "seed": 3, "guidance": 1.0}
    wanted = np.asarray(pipe("a red apple", **how), int)
    plain = np.asarray(pipe("a red apple <lora:lcm-lora:0>", **how, sampler="lcm"), int)
    assert abs(plain - wanted).max() > 10
    for naming in ("kohya", "diffusers", "peft"):
        run("convert", own, "--to", naming, "-o", f"{naming}.safetensors", "--dtype", "fp32")
        pipe.set_loras(f"{naming}.safetensors")
        assert pipe.loras[0][0].is_consistency
        assert abs(np.asarray(pipe("a red apple", **how), int) - wanted).max() <= 1
