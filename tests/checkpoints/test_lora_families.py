"""Every family in the UNet and the text encoders of SD 1.5 and SDXL, against closed forms; undone to the last bit."""

import dataclasses

import numpy as np
import pytest
import torch

from fewstep.checkpoints.lora import CACHE_BYTES, LoraStack, Strength, read_lora
from fewstep.checkpoints.lora_apply import BLOCK_NAMES, block_of, block_weights, merged
from fewstep.checkpoints.lora_keys import kohya_name
from fewstep.errors import LoraError, RequestError
from tests.checkpoints.lora_files import save
from tests.checkpoints.lora_forms import FORMS
from tests.tiny import tiny_model, tiny_unet

CROSS = "down_blocks.1.attentions.0.transformer_blocks.0.attn2.to_k"
UNET = (
    CROSS,
    "down_blocks.1.attentions.1.proj_in",
    "mid_block.resnets.0.conv1",
    "up_blocks.0.resnets.0.conv_shortcut",
    "down_blocks.0.downsamplers.0.conv",
)
TEXT = ("encoder.layers.0.self_attn.q_proj", "encoder.layers.1.mlp.fc1")


@pytest.fixture(scope="module", params=["sd15", "sdxl"])
def model(request):
    return tiny_model(request.param)


def roots(model):
    """Prefix of the names in files -> module."""
    encoders = model.text.encoders
    prefixes = ("lora_te_",) if len(encoders) == 1 else ("lora_te1_", "lora_te2_")
    return {"lora_unet_": model.unet} | dict(zip(prefixes, encoders, strict=True))


def snapshot(model):
    return [{name: value.clone() for name, value in root.state_dict().items()} for root in roots(model).values()]


def same(model, before):
    return all(
        torch.equal(value, held[name])
        for root, held in zip(roots(model).values(), before, strict=True)
        for name, value in root.state_dict().items()
    )


def write(model, form, path, seed=0):
    """A file of this form for some layers of every network, and their weights with the closed form of the change."""
    generator, tensors, wanted = torch.Generator().manual_seed(seed), {}, []
    for prefix, root in roots(model).items():
        modules = {name.removeprefix("text_model."): module for name, module in root.named_modules()}
        for name in UNET if prefix == "lora_unet_" else TEXT:
            weight = modules[name].weight
            parts, after = form(tuple(weight.shape), generator)
            flat = name if prefix == "lora_unet_" else f"text_model_{name}"
            tensors |= {f"{prefix}{flat.replace('.', '_')}.{part}": tensor for part, tensor in parts.items()}
            wanted.append((weight, weight.detach().clone().double(), after))
    return save(path, tensors), wanted


@pytest.mark.parametrize("name", FORMS)
def test_the_merge_is_the_closed_form_and_comes_out_again(name, model, tmp_path):
    before = snapshot(model)
    path, wanted = write(model, FORMS[name], tmp_path / "x.safetensors")
    stack, lora = LoraStack(model), read_lora(path, family=model.family)
    for unet, text in ((1.0, 1.0), (0.6, -0.4), (1.0, 1.0)):
        stack.set([(lora, unet, text)])
        for index, (weight, base, after) in enumerate(wanted):
            strength = unet if index < len(UNET) else text
            expected = base + strength * (after(base) - base)
            assert (weight.double() - expected).abs().max() < 1e-4
            assert (weight.double() - base).abs().max() > 1e-3
    stack.set([])
    assert same(model, before)


@pytest.mark.parametrize("name", FORMS)
def test_numpy_and_torch_are_one(name, model, tmp_path):
    path, _ = write(model, FORMS[name], tmp_path / "x.safetensors")
    theirs, ours = read_lora(path).all_layers, read_lora(path, numpy=True).all_layers
    modules = dict(model.unet.named_modules())
    for module in UNET[:3]:
        base = modules[module].weight.detach()
        found = merged(base.numpy(), [(ours[f"unet.{module}"], 0.7)])
        assert isinstance(found, np.ndarray) and found.dtype == np.float32
        assert abs(found - merged(base, [(theirs[f"unet.{module}"], 0.7)]).numpy()).max() < 1e-4


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_is_undone_to_the_last_bit(dtype, tmp_path):
    model = tiny_model("sd15", dtype=dtype)
    before, stack = snapshot(model), None
    for name in ("dora of rows", "oft", "lokr tucker"):
        path, _ = write(model, FORMS[name], tmp_path / f"{name}.safetensors")
        stack = LoraStack(model)
        stack.set([(read_lora(path), 0.8, 0.5)])
        assert not same(model, before)
        stack.set([])
        assert same(model, before)


def test_the_order_of_a_stack_does_not_matter(model, tmp_path):
    """IA3, DoRA and OFT act on the untouched weight, whatever else there is."""
    names = ("ia3 on outputs", "dora of rows", "oft", "lora")
    files = [write(model, FORMS[name], tmp_path / f"{index}.safetensors", index) for index, name in enumerate(names)]
    loras = [(read_lora(path), 0.5 + index, 0.3) for index, (path, _) in enumerate(files)]
    before, stack = snapshot(model), LoraStack(model)
    stack.set(loras)
    forward = snapshot(model)
    for index, (weight, base, _) in enumerate(files[0][1]):
        strengths = [unet if index < len(UNET) else text for _, unet, text in loras]
        changes = [files[k][1][index][2](base) - base for k in range(len(files))]
        expected = base + sum(strength * change for strength, change in zip(strengths, changes, strict=True))
        assert (weight.double() - expected).abs().max() < 1e-4
    stack.set(loras[::-1])
    for root, held in zip(roots(model).values(), forward, strict=True):
        assert all(torch.allclose(value, held[name], atol=1e-5) for name, value in root.state_dict().items())
    stack.set([])
    assert same(model, before)


def test_what_was_merged_before_is_kept_up_to_a_limit(model, tmp_path):
    path, _ = write(model, FORMS["oft"], tmp_path / "x.safetensors")
    stack, lora, before = LoraStack(model), read_lora(path), snapshot(model)
    stack.set([(lora, 1.0, 1.0)])
    first, state = snapshot(model), stack.state
    stack.set([(lora, 0.5, 1.0)])
    assert state in stack._cache._held and stack._cache.limit == CACHE_BYTES
    stack.set([(lora, 1.0, 1.0)])
    assert same(model, first)
    stack._cache.limit = 10
    stack._cache._held.clear()
    stack.set([(lora, 0.1, 1.0)])
    stack.set([])
    assert not stack._cache._held and same(model, before)


def test_norms_and_biases(model, tmp_path):
    g = torch.Generator().manual_seed(0)
    norm, text, conv = "mid_block.resnets.0.norm1", "encoder.layers.0.layer_norm1", "mid_block.resnets.0.conv1"
    te = "lora_te_" if len(model.text.encoders) == 1 else "lora_te1_"
    w, b, tw, cb, lb = (torch.randn(32, generator=g) for _ in range(5))
    down, up = torch.randn(2, 32, 3, 3, generator=g), torch.randn(32, 2, 1, 1, generator=g)
    tensors = {
        f"{kohya_name(norm)}.w_norm": w,
        f"{kohya_name(norm)}.b_norm": b,
        f"{te}text_model_encoder_layers_0_layer_norm1.w_norm": tw,
        f"{kohya_name(conv)}.diff_b": cb,
        "unet.mid_block.resnets.1.conv1.lora_A.weight": down,
        "unet.mid_block.resnets.1.conv1.lora_B.weight": up,
        "unet.mid_block.resnets.1.conv1.lora_B.bias": lb,
        "unet.mid_block.resnets.1.conv1.alpha": torch.tensor(1.0),
    }
    before, unet = snapshot(model), dict(model.unet.named_parameters())
    held = {name: value.clone() for name, value in unet.items()}
    encoder = {k.removeprefix("text_model."): v for k, v in model.text.encoders[0].named_parameters()}
    held_text = encoder[f"{text}.weight"].clone()
    stack = LoraStack(model)
    stack.set([(read_lora(save(tmp_path / "x.safetensors", tensors), family=model.family), 0.5, 2.0)])
    for name, change in ((f"{norm}.weight", w), (f"{norm}.bias", b), (f"{conv}.bias", cb)):
        assert torch.allclose(unet[name], held[name] + 0.5 * change, atol=1e-6)
    assert torch.allclose(unet["mid_block.resnets.1.conv1.bias"], held["mid_block.resnets.1.conv1.bias"] + 0.25 * lb)
    assert torch.allclose(encoder[f"{text}.weight"], held_text + 2 * tw, atol=1e-6)
    stack.set([])
    assert same(model, before)
    lost = {f"{kohya_name(CROSS)}.diff_b": w}
    with pytest.raises(LoraError, match=r"1 of its 1 modules are not there, first 'unet.*attn2\.to_k\.bias'"):
        stack.set([(read_lora(save(tmp_path / "y.safetensors", lost)), 1.0, 1.0)])


@pytest.mark.parametrize("place", ["principal", "last"])
def test_tlora_is_what_was_learned_since_the_singular_vectors(place, model, tmp_path):
    module = dict(model.unet.named_modules())[CROSS]
    base, g, rank = module.weight.detach().double(), torch.Generator().manual_seed(0), 4
    u, s, vh = torch.linalg.svd(base, full_matrices=False)
    chosen = slice(0, rank) if place == "principal" else slice(len(s) - rank, len(s))
    q, p, diagonal = vh[chosen], u[:, chosen], s[chosen][None]
    start = p @ torch.diag(diagonal[0]) @ q
    q, p, diagonal = (x + torch.randn(x.shape, generator=g).double() * 0.05 for x in (q, p, diagonal))
    wanted = base + (p @ torch.diag(diagonal[0]) @ q - start) * (2 / rank)
    parts = {"q_layer.weight": q, "p_layer.weight": p, "lambda_layer": diagonal, "alpha": torch.tensor(2.0)}
    tensors = {f"lycoris_{CROSS.replace('.', '_')}.{part}": tensor.float() for part, tensor in parts.items()}
    stack = LoraStack(model)
    stack.set([(read_lora(save(tmp_path / "x.safetensors", tensors)), 1.0, 1.0)])
    assert (module.weight.double() - wanted).abs().max() < 1e-4
    stack.set([])
    assert torch.equal(module.weight, base.float())
    key = f"lycoris_{CROSS.replace('.', '_')}.q_layer.weight"
    wild = tensors | {key: torch.randn(tensors[key].shape, generator=g)}
    with pytest.raises(LoraError, match="began at random matrices"):
        stack.set([(read_lora(save(tmp_path / "y.safetensors", wild)), 1.0, 1.0)])


# ---- strengths


def test_every_block_and_encoder_has_its_own_weight(tmp_path):
    model = tiny_model("sdxl")
    path, wanted = write(model, FORMS["lora"], tmp_path / "x.safetensors")
    lora, stack = read_lora(path), LoraStack(model)
    numbers = {name: 0.1 * (1 + index) for index, name in enumerate(BLOCK_NAMES["XL"][0])}
    blocks = ",".join(str(number) for number in numbers.values())
    stack.set([(lora, Strength(0.5, 0.25, 2.0, blocks))])
    unet = [0.5 * numbers.get(block_of(name), 1.0) for name in UNET]
    strengths = [*unet, *[0.25 * numbers["BASE"]] * len(TEXT), *[2.0 * numbers["BASE"]] * len(TEXT)]
    assert len({*strengths}) >= 6
    for strength, (weight, base, after) in zip(strengths, wanted, strict=True):
        assert (weight.double() - base - strength * (after(base) - base)).abs().max() < 1e-5


@pytest.mark.parametrize(("kind", "level_count"), [("sd15", 12), ("sdxl", 9)])
def test_blocks_are_those_of_the_original_layout(kind, level_count):
    found = {block_of(name) for name, _ in tiny_unet(kind).named_modules() if name.count(".") > 2}
    ends = [f"IN{number:02}" for number in range(1, level_count)] + [f"OUT{number:02}" for number in range(level_count)]
    assert found - {None} == {"M00", *ends}


def test_block_presets_and_what_is_none():
    assert block_weights("midd", 1) == block_weights("1,0,0,0,1,1,1,1,1,1,1,1,0,0,0,0,0", 1)
    assert block_weights("OUTS", 1) == block_weights("1,0,0,0,0,0,0,0,0,0,0,0,1,1,1,1,1", 1)
    assert set(block_weights("NONE", 1).values()) == {0.0} and set(block_weights("ALL", 2).values()) == {1.0}
    assert len(block_weights(",".join("1" * 26), 1)) == 26 and len(block_weights(",".join("1" * 20), 2)) == 20
    for text, encoders in ((",".join("1" * 17), 2), (",".join("1" * 12), 1), ("OUTZ", 1), ("1,nan" + ",1" * 15, 1)):
        with pytest.raises(RequestError, match="nor one of NONE, ALL, INS"):
            block_weights(text, encoders)


# ---- what does not fit


def test_a_lora_for_four_channels_in_an_inpainting_model(tmp_path):
    model = dataclasses.replace(tiny_model("sd15"), unet=tiny_unet("sd15", in_channels=9))
    weight, g = model.unet.conv_in.weight, torch.Generator().manual_seed(0)
    base = weight.detach().clone()
    for form in ("lora", "loha", "dora of rows"):
        parts, after = FORMS[form]((32, 4, 3, 3), g)
        tensors = {f"lora_unet_conv_in.{part}": tensor for part, tensor in parts.items()}
        stack = LoraStack(model)
        stack.set([(read_lora(save(tmp_path / "x.safetensors", tensors)), 1.0, 1.0)])
        assert (weight[:, :4].double() - after(base[:, :4].double())).abs().max() < 1e-4
        assert torch.equal(weight[:, 4:], base[:, 4:])
        stack.set([])
        assert torch.equal(weight, base)


def test_a_lenient_reading_names_what_it_leaves_out(model, tmp_path):
    path, wanted = write(model, FORMS["lora"], tmp_path / "x.safetensors")
    tensors = {"lora_unet_surprise.lora_up.weight": torch.ones(2, 2), "bundle_emb.word.emb_params": torch.ones(2, 8)}
    lost = FORMS["lora"]((8, 8), torch.Generator())[0]
    tensors |= {f"lora_unet_down_blocks_7_resnets_0_conv1.{part}": tensor for part, tensor in lost.items()}
    from safetensors.torch import load_file

    path = save(path, load_file(path) | tensors)
    with pytest.raises(LoraError, match="1 keys of .* first 'lora_unet_surprise"):
        read_lora(path)
    lora, stack = read_lora(path, lenient=True), LoraStack(model)
    assert lora.skipped == ("lora_unet_surprise.lora_up.weight",)
    assert [e.name for e in lora.embeddings] == ["word"] and len(lora.notes) == 1
    stack.set([(lora, 1.0, 1.0)])
    assert len(stack.notes) == 1 and "unet.down_blocks.7.resnets.0.conv1" in stack.notes[0]
    for weight, base, after in wanted:
        assert (weight.double() - after(base)).abs().max() < 1e-4
    stack.set([])
