"""Merging against the closed form and against diffusers; undoing to the last bit."""

import json

import pytest
import torch
import torch.nn.functional as F

from fewstep.checkpoints import lora as module
from fewstep.checkpoints.lora import LoraLayer, LoraStack, Merged, Strength, read_lora
from fewstep.errors import LoraError, RequestError
from tests.checkpoints.lora_files import ATTENTION, CONVOLUTIONS, TEXT, Piece, kohya, old_diffusers, peft, pieces, save
from tests.tiny import tiny_folder, tiny_model

ALL = ATTENTION + CONVOLUTIONS
SGM = {"down_blocks.1.attentions.0": "input_blocks_4_1", "up_blocks.0.attentions.2": "output_blocks_2_1"}


@pytest.fixture
def model():
    return tiny_model("sd15")


def weights(root):
    return {name: value.clone() for name, value in root.state_dict().items()}


def expect(root, before, found, strength=1.0):
    """Every weight is base + strength x delta in the closed form, and those without a LoRA are untouched."""
    for name, value in root.state_dict().items():
        piece = found.get(name.removesuffix(".weight"))
        if piece is None:
            assert torch.equal(value, before[name]), name
        else:
            wanted = before[name].double() + strength * piece.delta().reshape(value.shape)
            assert (value.double() - wanted).abs().max() < 1e-5, name


def output(unet):
    generator = torch.Generator().manual_seed(5)
    z_BCHW = torch.randn(2, 4, 8, 8, generator=generator)
    text_BLD = torch.randn(2, 7, unet.config.cross_attention_dim, generator=generator)
    with torch.no_grad():
        return unet(z_BCHW, torch.tensor([3, 700]), text_BLD).sample


def dynamic(index):
    return 1 + index % 5


NAMINGS = {
    "kohya": kohya,
    "peft": peft,
    "raw peft": lambda found: peft(found, "base_model.model."),
    "bare": lambda found: peft(found, ""),
    "old diffusers": old_diffusers,
    "mixed": lambda found: (
        old_diffusers({name: piece for name, piece in found.items() if ".to_" in name})
        | peft({name: piece for name, piece in found.items() if ".to_" not in name})
    ),
}


@pytest.mark.parametrize("naming", NAMINGS)
def test_merge_is_the_closed_form_in_every_naming(naming, model, tmp_path):
    found = pieces(model.unet, ALL, rank=dynamic, alpha=lambda index: None)
    before = weights(model.unet)
    lora = read_lora(save(tmp_path / "x.safetensors", NAMINGS[naming](found)), family=model.family)
    assert lora.layers.keys() == found.keys() and not lora.text_layers
    LoraStack(model).set([(lora, 0.7, 1.0)])
    expect(model.unet, before, found, 0.7)


def test_every_module_has_its_own_alpha(model, tmp_path):
    """The file kohya's resize_lora.py makes: diffusers gives all attention one alpha here."""
    found = pieces(model.unet, ALL, rank=dynamic, alpha=lambda index: 0.5 + index % 7)
    text = pieces(model.text.encoders[0], TEXT, rank=dynamic, alpha=lambda index: 0.25 * (1 + index % 3))
    before, text_before = weights(model.unet), weights(model.text.encoders[0])
    path = save(tmp_path / "x.safetensors", kohya(found) | kohya(text, "lora_te_text_model_"))
    LoraStack(model).set([(read_lora(path, family=model.family), 1.0, 0.5)])
    expect(model.unet, before, found)
    expect(model.text.encoders[0], text_before, text, 0.5)


def test_half_the_keys_without_alpha(model, tmp_path):
    found = pieces(model.unet, alpha=lambda index: None if index % 2 else 3.0)
    before = weights(model.unet)
    LoraStack(model).set([(read_lora(save(tmp_path / "x.safetensors", kohya(found))), 1.0, 1.0)])
    expect(model.unet, before, found)


@pytest.mark.parametrize("stride", [1, 2])
def test_delta_of_a_convolution_is_the_chain_of_convolutions(stride):
    generator = torch.Generator().manual_seed(0)
    down, mid, up = (torch.randn(*shape, generator=generator) for shape in ((3, 5, 1, 1), (3, 3, 3, 3), (7, 3, 1, 1)))
    x = torch.randn(2, 5, 8, 8, generator=generator)
    chain = F.conv2d(F.conv2d(F.conv2d(x, down), mid, padding=1, stride=stride), up) * 0.5
    whole = F.conv2d(x, LoraLayer(down, up, 1.5, mid).delta(x).reshape(7, 5, 3, 3), padding=1, stride=stride)
    assert (chain - whole).abs().max() < 1e-4
    kernel = torch.randn(3, 5, 3, 3, generator=generator)
    chain = F.conv2d(F.conv2d(x, kernel, padding=1, stride=stride), up) * 2
    whole = F.conv2d(x, LoraLayer(kernel, up, 6.0).delta(x).reshape(7, 5, 3, 3), padding=1, stride=stride)
    assert (chain - whole).abs().max() < 1e-4


def test_mid_and_linear_for_1x1_convolution(model, tmp_path):
    generator = torch.Generator().manual_seed(0)
    shapes = ((2, 32, 1, 1), (32, 2, 1, 1), (2, 2, 3, 3))
    down, up, mid = (torch.randn(*shape, generator=generator) for shape in shapes)
    found = {
        "mid_block.resnets.0.conv1": Piece(down, up, 1.0, mid),
        "mid_block.attentions.0.proj_in": Piece(torch.randn(2, 32, generator=generator), up[:, :, 0, 0] * 2, 1.0),
    }
    before = weights(model.unet)
    LoraStack(model).set([(read_lora(save(tmp_path / "x.safetensors", kohya(found))), 1.0, 1.0)])
    expect(model.unet, before, found)


def test_diffusers_agrees_on_sd15(model, tmp_path):
    """UNet with convolutions and text encoder, each with one alpha: what diffusers gets right."""
    from diffusers import StableDiffusionPipeline

    found = pieces(model.unet, ALL, alpha=lambda index: 3.0)
    text = pieces(model.text.encoders[0], TEXT, alpha=lambda index: 1.0)
    save(tmp_path / "x.safetensors", kohya(found) | kohya(text, "lora_te_text_model_"))
    pipe = StableDiffusionPipeline.from_pretrained(tiny_folder("sd15"), safety_checker=None)
    plain = output(pipe.unet)
    pipe.load_lora_weights(tmp_path, weight_name="x.safetensors")
    LoraStack(model).set([(read_lora(tmp_path / "x.safetensors", family=model.family), 1.0, 1.0)])
    assert (output(pipe.unet) - plain).abs().max() > 0.05
    assert (output(pipe.unet) - output(model.unet)).abs().max() < 1e-4
    ids = torch.tensor([[1, 2, 3, 4]])
    with torch.no_grad():
        theirs, ours = (encoder(ids).last_hidden_state for encoder in (pipe.text_encoder, model.text.encoders[0]))
    assert (theirs - ours).abs().max() < 1e-4


def test_diffusers_agrees_on_sdxl_with_original_names(tmp_path):
    from diffusers import StableDiffusionXLPipeline

    model = tiny_model("sdxl")
    found = {name: piece for name, piece in pieces(model.unet).items() if name.startswith(tuple(SGM))}
    assert len(found) == 12 + 22
    tensors = kohya({name.replace(block, SGM[block]): found[name] for name in found for block in SGM if block in name})
    texts = [pieces(encoder, TEXT, seed=1 + index) for index, encoder in enumerate(model.text.encoders)]
    for index, text in enumerate(texts):
        plain = {name.removeprefix("text_model."): piece for name, piece in text.items()}
        tensors |= kohya(plain, f"lora_te{index + 1}_text_model_")
    save(tmp_path / "x.safetensors", tensors)
    pipe = StableDiffusionXLPipeline.from_pretrained(tiny_folder("sdxl"))
    pipe.load_lora_weights(tmp_path, weight_name="x.safetensors")
    pipe.fuse_lora()
    pipe.unload_lora_weights()
    stack = LoraStack(model)
    stack.set([(read_lora(tmp_path / "x.safetensors", family=model.family), 1.0, 1.0)])
    for theirs, ours in zip(
        (pipe.unet, pipe.text_encoder, pipe.text_encoder_2), (model.unet, *model.text.encoders), strict=True
    ):
        wanted = theirs.state_dict()
        assert all((value - wanted[name]).abs().max() < 1e-5 for name, value in ours.state_dict().items())
    changed = len(found) + sum(map(len, texts))
    assert len(stack._base) == changed


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_undo_is_bit_identical(dtype, tmp_path):
    model = tiny_model("sd15", dtype=dtype)
    before = weights(model.unet), weights(model.text.encoders[0])
    text = pieces(model.text.encoders[0], TEXT)
    one = read_lora(save(tmp_path / "1.safetensors", kohya(pieces(model.unet, ALL)) | kohya(text, "lora_te_")))
    two = read_lora(save(tmp_path / "2.safetensors", kohya(pieces(model.unet, seed=9))))
    stack = LoraStack(model)
    for loras in ([(one, 1.0, 1.0)], [(two, 50.0, 1.0), (one, -0.3, 0.2)], [(two, 0.1, 0.1)], [(one, 0.0, 1.0)]):
        stack.set(loras)
        changed = any(not torch.equal(value, before[0][name]) for name, value in model.unet.state_dict().items())
        assert changed == bool(loras[0][1])
    stack.set([])
    for root, wanted in zip((model.unet, model.text.encoders[0]), before, strict=True):
        assert all(torch.equal(value, wanted[name]) for name, value in root.state_dict().items())
    assert stack.state == () and not stack._base


def test_weights_change_from_the_base_and_order_does_not_matter(model, tmp_path):
    before = weights(model.unet)
    a, b = pieces(model.unet, seed=1), pieces(model.unet, seed=2)
    one, two = (read_lora(save(tmp_path / f"{i}.safetensors", kohya(found))) for i, found in enumerate((a, b)))
    stack = LoraStack(model)
    stack.set([(one, 3.0, 1.0), (two, 0.4, 1.0)])
    stack.set([(one, 0.5, 1.0), (two, 0.4, 1.0)])
    forward = weights(model.unet)
    stack.set([(two, 0.4, 1.0), (one, 0.5, 1.0)])
    for name, value in model.unet.state_dict().items():
        assert torch.allclose(value, forward[name], atol=1e-6)
        if (module := name.removesuffix(".weight")) in a:
            wanted = before[name].double() + (0.5 * a[module].delta() + 0.4 * b[module].delta()).reshape(value.shape)
            assert (value.double() - wanted).abs().max() < 1e-5


def test_setting_the_same_again_does_not_touch_a_weight(model, tmp_path):
    path = save(tmp_path / "x.safetensors", kohya(pieces(model.unet)))
    stack = LoraStack(model)
    stack.set([(read_lora(path), 0.5, 1.0)])
    versions = [parameter._version for parameter in model.unet.parameters()]
    stack.set([(read_lora(path), 0.5, 1.0)])
    assert versions == [parameter._version for parameter in model.unet.parameters()]
    assert stack.state == (Merged(read_lora(path).fingerprint, Strength(0.5, 1.0)),)
    stack.set([(read_lora(path), 0.6, 1.0)])
    assert versions != [parameter._version for parameter in model.unet.parameters()]


def test_what_does_not_fit_changes_nothing(model, tmp_path):
    good = read_lora(save(tmp_path / "good.safetensors", kohya(pieces(model.unet))))
    stack = LoraStack(model)
    stack.set([(good, 1.0, 1.0)])
    held, state = weights(model.unet), stack.state
    name = "mid_block.resnets.0.conv1"
    lost = {"down_blocks.7.resnets.0.conv1": Piece(torch.ones(1, 32, 3, 3), torch.ones(32, 1, 1, 1), 1.0)}
    wide = {name: Piece(torch.ones(1, 64, 3, 3), torch.ones(32, 1, 1, 1), 1.0)}
    for found, words in (
        (lost, "1 of its 1 modules are not there, first 'unet.down_blocks.7"),
        (wide, r"\[32, 64, 3, 3\]"),
    ):
        bad = read_lora(save(tmp_path / "bad.safetensors", kohya(found)))
        with pytest.raises(LoraError, match=words):
            stack.set([(good, 0.1, 1.0), (bad, 1.0, 1.0)])
    for weight in (float("nan"), float("inf")):
        with pytest.raises(RequestError, match="not a finite number"):
            stack.set([(good, weight, 1.0)])
    assert stack.state == state and all(torch.equal(value, held[key]) for key, value in model.unet.state_dict().items())


def test_a_failure_half_way_restores_the_base(model, tmp_path, monkeypatch):
    before = weights(model.unet)
    lora = read_lora(save(tmp_path / "x.safetensors", kohya(pieces(model.unet))))
    stack = LoraStack(model)
    left, true = iter([True] * 5), module._add
    monkeypatch.setattr(module, "_add", lambda *parts: next(left) and true(*parts))
    with pytest.raises(StopIteration):
        stack.set([(lora, 1.0, 1.0)])
    assert stack.state == () and all(torch.equal(value, before[key]) for key, value in model.unet.state_dict().items())


def test_sdxl_lora_on_a_model_without_middle_attention(tmp_path):
    lora = read_lora(save(tmp_path / "x.safetensors", kohya(pieces(tiny_model("sdxl").unet))))
    with pytest.raises(
        LoraError, match=r"does not fit this SSD-1B model: \d+ of its \d+ modules are not there.*SSD-1B"
    ):
        LoraStack(tiny_model("ssd1b")).set([(lora, 1.0, 1.0)])


@pytest.mark.parametrize("where", ["unet.", ""])
def test_diffusers_records_alpha_in_metadata(where, model, tmp_path):
    found = pieces(model.unet, alpha=lambda index: 8.0)
    special = next(iter(found))
    found[special].alpha = 1.0
    config = {f"{where}r": 4, f"{where}lora_alpha": 8, f"{where}alpha_pattern": {special: 1}}
    tensors = {key: value for key, value in peft(found).items() if not key.endswith(".alpha")}
    lora = read_lora(save(tmp_path / "x.safetensors", tensors, lora_adapter_metadata=json.dumps(config)))
    assert {name: layer.alpha for name, layer in lora.layers.items()} == {name: p.alpha for name, p in found.items()}


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["rslora", "dora", "biased", "loha", "lokr"])
def test_raw_peft_folder_records_alpha_beside(kind, model, tmp_path):
    from peft import LoHaConfig, LoKrConfig, LoraConfig, get_peft_model

    unet, on = tiny_model("sd15").unet, {"target_modules": ["to_out.0", "conv1"]}
    config = {
        "rslora": lambda: LoraConfig(r=4, lora_alpha=10, use_rslora=True, **on),
        "dora": lambda: LoraConfig(r=4, lora_alpha=10, use_dora=True, **on),
        "biased": lambda: LoraConfig(r=4, lora_alpha=10, lora_bias=True, **on),
        "loha": lambda: LoHaConfig(r=4, alpha=2, use_effective_conv2d=True, **on),
        "lokr": lambda: LoKrConfig(r=2, alpha=1, **on),
    }[kind]()
    wrapped, plain = get_peft_model(unet, config).eval(), output(model.unet)
    generator = torch.Generator().manual_seed(0)
    for name, parameter in wrapped.named_parameters():
        if any(mark in name for mark in ("lora_B", "hada_", "lokr_", "magnitude")):
            parameter.data += torch.randn(parameter.shape, generator=generator) * 0.3
    assert (output(wrapped) - plain).abs().max() > 0.05
    wrapped.save_pretrained(tmp_path)
    LoraStack(model).set([(read_lora(tmp_path / "adapter_model.safetensors", family=model.family), 1.0, 1.0)])
    assert (output(wrapped) - output(model.unet)).abs().max() < 1e-4


def test_unreadable_peft_record(model, tmp_path):
    for text in ("{", "[1]", '{"lora_alpha": "strong"}', '{"alpha_pattern": {"(": 1}}'):
        path = save(tmp_path / "x.safetensors", peft(pieces(model.unet)), lora_adapter_metadata=text)
        with pytest.raises(LoraError, match="PEFT configuration that cannot be read"):
            read_lora(path)
