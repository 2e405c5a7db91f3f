"""Single files: every family there and back to the last bit, in diffusers too, and every other file in one sentence."""

import json
from functools import lru_cache

import pytest
import torch
from safetensors.torch import load_file, save_file

from fewstep.checkpoints.bake import bake_guidance
from fewstep.checkpoints.load import load_model, load_stored
from fewstep.checkpoints.save import modules_of, named, save_model
from fewstep.checkpoints.save_single import save_single
from fewstep.errors import CheckpointError, RequestError
from tests.checkpoints.whole import WHOLE, whole_folder
from tests.marks import all_but, slow
from tests.tiny import tiny_folder, tiny_taesd

FAMILIES = {"inpainting": "sd15", "lcm": "sd15"}
UNET = "model.diffusion_model."

KINDS = [pytest.param(kind, marks=pytest.mark.slow if kind in ("vega", "ssd1b", "lcm") else ()) for kind in WHOLE]


@lru_cache
def written(kind):
    """The kind as a single file, written once."""
    folder = whole_folder(kind)
    return save_single(load_stored(folder), folder.with_name(f"{kind}.safetensors"))


def foreign(kind, path, edit=None, metadata=None):
    """The same weights as another program writes them: without our metadata."""
    tensors = dict(load_file(written(kind)))
    tensors = tensors if edit is None else edit(tensors)
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path, metadata=metadata)
    return path


def same(one, other):
    for part, module in modules_of(one).items():
        ours, theirs = module.state_dict(), modules_of(other)[part].state_dict()
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(tensor, theirs[name]) for name, tensor in ours.items()), part
    return True


@pytest.mark.parametrize("kind", all_but(("sd15", "sdxl"), KINDS))
def test_a_foreign_file_is_known_by_its_shapes(tmp_path, kind):
    prediction = "v" if kind == "sd2" else None
    path = foreign(kind, tmp_path / "x.safetensors")
    found, whole = load_model(path, device="cpu", prediction=prediction), load_model(whole_folder(kind), device="cpu")
    assert same(found, whole)
    assert found.family.name == whole.family.name == FAMILIES.get(kind, kind)
    assert found.schedule == whole.schedule
    assert found.sampling.embedded_guidance == (kind == "lcm")
    words = ["a photo of a cat, 1girl"]
    assert torch.equal(found.text.encode(words).text_BLD, whole.text.encode(words).text_BLD)
    assert found.vae.config.scaling_factor == whole.vae.config.scaling_factor


@pytest.mark.parametrize("kind", all_but(("sd15", "sdxl", "lcm"), KINDS))
def test_file_to_folder_to_file_changes_no_byte(tmp_path, kind):
    folder = save_model(load_stored(written(kind)), tmp_path / kind)
    assert save_single(load_stored(folder), tmp_path / "x.safetensors").read_bytes() == written(kind).read_bytes()
    assert same(load_model(folder, device="cpu"), load_model(whole_folder(kind), device="cpu"))


@pytest.mark.parametrize("kind", ["sd15", "sdxl", "pictogram"])
def test_miniatures_with_their_own_tokenizer_come_back(tmp_path, kind):
    path = save_single(load_stored(tiny_folder(kind)), tmp_path / "x.safetensors")
    found, whole = load_model(path, device="cpu"), load_model(tiny_folder(kind), device="cpu")
    assert same(found, whole)
    assert torch.equal(found.text.encode(["a cat"]).text_BLD, whole.text.encode(["a cat"]).text_BLD)
    assert (found.family, found.schedule, found.sampling) == (whole.family, whole.schedule, whole.sampling)


@pytest.mark.parametrize("kind", ["sd15", "sdxl", *slow("sd2", "inpainting", "ssd1b", "vega")])
def test_diffusers_reads_it_to_the_same_weights(kind):
    import diffusers

    xl = kind in ("sdxl", "ssd1b", "vega")
    pipeline = diffusers.StableDiffusionXLPipeline if xl else diffusers.StableDiffusionPipeline
    theirs = pipeline.from_single_file(str(written(kind)), config=str(whole_folder(kind)), local_files_only=True)
    for part, module in modules_of(load_model(whole_folder(kind), device="cpu")).items():
        ours, other = named(module), named(getattr(theirs, part))
        assert ours.keys() == other.keys()
        assert all(torch.equal(tensor, other[name]) for name, tensor in ours.items()), part


def test_diffusers_reads_a_full_lcm_once_its_guidance_is_baked_in(tmp_path):
    """With the embedding diffusers leaves its weight on the meta device, whoever wrote the file."""
    import diffusers

    model = load_stored(whole_folder("lcm"))
    bake_guidance(model, 7.0)
    path, folder = save_single(model, tmp_path / "x.safetensors"), save_model(model, tmp_path / "x")
    found = diffusers.StableDiffusionPipeline.from_single_file(str(path), config=str(folder), local_files_only=True)
    ours, theirs = named(model.unet), named(found.unet)
    assert ours.keys() == theirs.keys() and all(torch.equal(tensor, theirs[name]) for name, tensor in ours.items())


# ---- layouts and number formats


def averaged(tensors):
    unet = {name: tensor for name, tensor in tensors.items() if name.startswith(UNET)}
    rest = {name: tensor for name, tensor in tensors.items() if name not in unet}
    flat = {"model_ema." + name.removeprefix("model.").replace(".", ""): tensor for name, tensor in unet.items()}
    return rest | flat | {"model_ema.decay": torch.ones(1), "model_ema.num_updates": torch.ones(1)}


def in_diffusers_names(tensors):
    parts = modules_of(load_stored(whole_folder("sd15")))
    return {f"{part}.{name}": tensor for part, module in parts.items() for name, tensor in named(module).items()}


def with_rubbish(tensors):
    extra = {"alphas_cumprod": torch.ones(3), "cond_stage_model.transformer.text_model.embeddings.position_ids": ID}
    return tensors | extra


ID = torch.arange(77)[None]
LAYOUTS = {"average": averaged, "diffusers": in_diffusers_names, "rubbish": with_rubbish}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts(tmp_path, layout):
    path = foreign("sd15", tmp_path / "x.safetensors", LAYOUTS[layout])
    found = load_model(path, device="cpu")
    assert same(found, load_model(whole_folder("sd15"), device="cpu"))
    assert any("alphas_cumprod" in note for note in found.notes) == (layout == "rubbish")


def unet_alone(tensors):
    return {name.removeprefix(UNET): tensor for name, tensor in tensors.items() if name.startswith(UNET)}


def diffusers_unet_alone(tensors):
    return dict(load_stored(whole_folder("sd15")).unet.state_dict())


@pytest.mark.parametrize("edit", [unet_alone, diffusers_unet_alone])
def test_a_unet_alone_is_completed_from_a_base(tmp_path, edit):
    path = foreign("sd15", tmp_path / "x.safetensors", edit)
    with pytest.raises(CheckpointError, match=r"lacks its VAE and text encoder.*--base"):
        load_model(path, device="cpu")
    for base in (whole_folder("sd15"), written("sd15")):
        assert same(load_model(path, device="cpu", base=base), load_model(whole_folder("sd15"), device="cpu"))
    with pytest.raises(CheckpointError, match="own family"):
        load_model(path, device="cpu", base=whole_folder("sdxl"))


@pytest.mark.parametrize("dtype", [torch.float16, *slow(torch.bfloat16, torch.float8_e4m3fn)])
def test_number_formats(tmp_path, dtype):
    path = foreign("sd15", tmp_path / "x.safetensors", lambda t: {name: one.to(dtype) for name, one in t.items()})
    stored = load_stored(path)
    assert stored.unet.conv_in.weight.dtype == stored.dtype == dtype
    again = load_file(save_single(stored, tmp_path / "again.safetensors"))
    folder = save_model(stored, tmp_path / "folder")
    through = load_file(save_single(load_stored(folder), tmp_path / "through.safetensors"))
    for name, tensor in load_file(path).items():
        for other in (again[name], through[name]):
            assert other.dtype == dtype and torch.equal(tensor.float(), other.float())
    assert load_model(path, device="cpu").unet.conv_in.weight.dtype == torch.float32


def test_v_prediction_comes_back(tmp_path):
    path = foreign("sd2", tmp_path / "x.safetensors")
    folder = save_model(load_stored(path, prediction="v"), tmp_path / "folder")
    again = save_single(load_stored(folder), tmp_path / "again.safetensors")
    for place in (folder, again):
        assert load_model(place, device="cpu").schedule.prediction == "v_prediction"
    theirs, ours = load_file(path), load_file(again)
    assert theirs.keys() == ours.keys() and all(torch.equal(ours[name], tensor) for name, tensor in theirs.items())


@pytest.mark.parametrize("layout", ["average", "unet alone"])
def test_what_is_completed_or_averaged_comes_back_too(tmp_path, layout):
    edit = averaged if layout == "average" else unet_alone
    path, base = foreign("sd15", tmp_path / "x.safetensors", edit), whole_folder("sd15")
    model = load_stored(path, base=None if layout == "average" else base)
    folder = save_model(model, tmp_path / "folder")
    again = save_single(load_stored(folder), tmp_path / "again.safetensors")
    assert same(load_stored(again), load_stored(base))


def test_a_whole_open_clip_tower_loses_its_last_layer(tmp_path):
    def grown(tensors):
        last = {name: t for name, t in tensors.items() if ".resblocks.2." in name}
        more = {name.replace(".resblocks.2.", ".resblocks.3."): t.clone() for name, t in last.items()}
        return tensors | more | {"cond_stage_model.model.text_projection": torch.ones(64, 64)}

    found = load_model(foreign("sd2", tmp_path / "x.safetensors", grown), device="cpu")
    assert same(found, load_model(whole_folder("sd2"), device="cpu"))


def test_a_pickle_that_is_trusted(tmp_path):
    path = tmp_path / "x.ckpt"
    torch.save({"state_dict": load_file(written("sd15")), "global_step": 7}, path)
    with pytest.raises(CheckpointError, match="pickle"):
        load_stored(path)
    assert same(load_stored(path, trust_pickle=True), load_stored(whole_folder("sd15")))


# ---- what it predicts


def marked(tensors):
    return tensors | {"v_pred": torch.zeros(0), "ztsnr": torch.zeros(0)}


def spread(tensors):
    name = UNET + "output_blocks.11.1.transformer_blocks.0.norm1.bias"
    return tensors | {name: torch.linspace(-1, 1, 32)}


@pytest.mark.parametrize(
    ("kind", "edit", "metadata", "expected"),
    [
        ("sd15", None, None, "epsilon"),
        ("sd15", marked, None, "v_prediction"),
        ("sd15", None, {"modelspec.prediction_type": "v"}, "v_prediction"),
        ("sd2", None, None, "epsilon"),
        ("sd2", spread, None, "v_prediction"),
        ("sd2", spread, {"modelspec.prediction_type": "epsilon"}, "epsilon"),
    ],
)
def test_prediction(tmp_path, kind, edit, metadata, expected):
    path = foreign(kind, tmp_path / "x.safetensors", edit, metadata)
    model = load_model(path, device="cpu")
    assert model.schedule.prediction == expected
    assert (model.schedule.alphas_cumprod[-1] < 1e-6) == (edit is marked)
    assert any("--prediction" in note for note in model.notes) == (kind == "sd2" and metadata is None)


def test_the_users_word_on_prediction_wins(tmp_path):
    path = foreign("sd15", tmp_path / "x.safetensors", metadata={"modelspec.prediction_type": "v"})
    assert load_model(path, device="cpu", prediction="eps").schedule.prediction == "epsilon"
    with pytest.raises(RequestError, match="Use eps or v"):
        load_model(path, device="cpu", prediction="flow")


# ---- other VAEs


def test_another_vae_in_both_layouts_and_a_tiny_one(tmp_path):
    ldm = {name: t for name, t in load_file(written("sdxl")).items() if name.startswith("first_stage_model.")}
    bare = {name.removeprefix("first_stage_model."): tensor for name, tensor in ldm.items()}
    theirs = dict(load_stored(whole_folder("sdxl")).vae.state_dict())
    for tensors in (ldm, bare, theirs):
        save_file(tensors, tmp_path / "vae.safetensors")
        found = load_model(whole_folder("sd15"), device="cpu", vae=tmp_path / "vae.safetensors")
        assert torch.equal(found.vae.decoder.conv_in.weight, theirs["decoder.conv_in.weight"])
        assert found.vae.config.scaling_factor == 0.18215
    tiny = tiny_taesd()
    save_file(tiny.state_dict(), tmp_path / "taesd.safetensors")
    found = load_model(whole_folder("sd15"), device="cpu", vae=tmp_path / "taesd.safetensors").vae
    assert type(found).__name__ == "AutoencoderTiny"
    z_BCHW = torch.ones(1, 4, 2, 2)
    assert torch.equal(found.decode(z_BCHW).sample, tiny.decode(z_BCHW).sample)
    with pytest.raises(CheckpointError, match=r"no UNet.*--vae"):
        load_model(tmp_path / "taesd.safetensors", device="cpu")


# ---- other files


def keys(*names):
    return {name: torch.ones(2, 2) for name in names}


def poisoned(tensors):
    tensors[UNET + "out.2.bias"] = torch.tensor([1.0, float("nan"), 1.0, 1.0])
    return tensors


def refiner(tensors):
    return {name.replace("embedders.1.model", "embedders.0.model"): t for name, t in tensors.items() if ".1.m" in name}


REFUSED = {
    "lora": (keys("lora_unet_mid.lora_down.weight"), "is a LoRA"),
    "controlnet": (keys("control_model.time_embed.0.weight"), "is a ControlNet"),
    "diffusers controlnet": (keys("controlnet_cond_embedding.conv_in.weight"), "is a ControlNet"),
    "motion": (keys("down_blocks.0.motion_modules.0.temporal_transformer.norm.bias"), "is a motion module"),
    "refiner": (keys("conditioner.embedders.0.model.ln_final.weight", UNET + "out.0.bias"), "SDXL refiner"),
    "half a tiny VAE": (keys("1.weight", "3.conv.0.weight"), "one half of a tiny autoencoder"),
    "flux": (keys("model.diffusion_model.double_blocks.0.img_attn.norm.key_norm.scale"), "transformer model"),
    "unknown": (keys("backbone.weight"), "no layout that is known"),
    "nothing": ({}, "no tensors"),
    "a stump": (keys(UNET + "input_blocks.0.0.weight"), "not whole"),
}
DAMAGED = {
    "nan": (poisoned, "NaN or infinity"),
    "shape": (lambda t: t | {UNET + "out.2.bias": torch.ones(7)}, r"conv_out\.bias.*shape"),
    "missing": (lambda t: {n: v for n, v in t.items() if n != UNET + "out.2.bias"}, r"lacks 1 of .*conv_out\.bias"),
    "unknown weight": (lambda t: t | {UNET + "odd.weight": torch.ones(1)}, "does not know"),
    "integers": (lambda t: t | {UNET + "out.2.bias": torch.ones(4, dtype=torch.int32)}, "not as floating-point"),
}
BYTES = {
    "empty": (b"", "cut short"),
    "page": (b"<!DOCTYPE html><html>", "web page"),
    "huge header": ((1 << 62).to_bytes(8, "little") + b"{}", "not a readable safetensors"),
    "cut header": ((5000).to_bytes(8, "little") + b'{"a":', "cut short"),
}


@pytest.mark.parametrize("name", [*REFUSED, *DAMAGED, *BYTES, "huge tensor", "huge width"])
def test_other_files_are_one_sentence(tmp_path, name):
    path = tmp_path / "x.safetensors"
    if name in REFUSED:
        content, message = REFUSED[name]
        save_file(content, path)
    elif name in DAMAGED:
        edit, message = DAMAGED[name]
        foreign("sd15", path, edit)
    elif name in BYTES:
        content, message = BYTES[name]
        path.write_bytes(content)
    else:
        key, shape = UNET + "input_blocks.0.0.weight", [10**12] if name == "huge tensor" else [10**12, 0, 3, 3]
        size = 4 * 10**12 if name == "huge tensor" else 0
        header = json.dumps({key: {"dtype": "F32", "shape": shape, "data_offsets": [0, size]}}).encode()
        path.write_bytes(len(header).to_bytes(8, "little") + header)
        message = "cut short" if name == "huge tensor" else "not whole"
    with pytest.raises(CheckpointError, match=message) as caught:
        load_model(path, device="cpu")
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == [path]
