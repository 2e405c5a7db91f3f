"""What PEFT itself makes, saves and merges is what we read and merge: PEFT is the oracle, on tiny random models."""

import json
from types import SimpleNamespace

import numpy as np
import peft
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from fewstep.checkpoints.lora import LoraStack, read_lora
from fewstep.checkpoints.lora_apply import merged
from fewstep.checkpoints.lora_edit import merge
from fewstep.checkpoints.lora_rotations import PeftBoft, PeftOft
from fewstep.checkpoints.lora_save import save_lora
from fewstep.errors import LoraError
from fewstep.models.family import family_of
from tests.marks import all_but
from tests.tiny import tiny_text, tiny_unet

LINEAR = r"mid_block\..*(attn\d\.to_[qkv]|to_out\.0|ff\.net\.2)"
MIXED = r"mid_block\.(.*(to_q|to_out\.0|ff\.net\.2)|resnets\.0\.(conv1|time_emb_proj))"
MIXED = rf"{MIXED}|.*up_blocks\.0\.resnets\.0\.conv_shortcut"
TEXT = r".*layers\.[01]\..*(q_proj|fc1)"

CONFIGS = {
    "lora": peft.LoraConfig(r=4, lora_alpha=6, target_modules=MIXED, init_lora_weights=False),
    "rslora with patterns": peft.LoraConfig(
        r=4,
        lora_alpha=6,
        use_rslora=True,
        rank_pattern={"conv1": 2},
        alpha_pattern={"attn1.to_q": 3, "^.*conv1": 1},
        target_modules=MIXED,
        init_lora_weights=False,
    ),
    "lora of biases": peft.LoraConfig(
        r=4, lora_alpha=6, lora_bias=True, target_modules=r"mid_block\..*(ff\.net\.2|conv1)", init_lora_weights=False
    ),
    "dora": peft.LoraConfig(r=4, lora_alpha=6, use_dora=True, target_modules=MIXED, init_lora_weights=False),
    "loha": peft.LoHaConfig(r=4, alpha=6, target_modules=MIXED, init_weights=False),
    "loha tucker": peft.LoHaConfig(r=4, alpha=6, target_modules=MIXED, init_weights=False, use_effective_conv2d=True),
    "lokr": peft.LoKrConfig(r=2, alpha=3, target_modules=MIXED, init_weights=False),
    "lokr of both": peft.LoKrConfig(r=2, alpha=3, decompose_both=True, target_modules=MIXED, init_weights=False),
    "lokr whole": peft.LoKrConfig(r=64, alpha=16, target_modules=MIXED, init_weights=False),
    "lokr tucker": peft.LoKrConfig(r=2, alpha=3, target_modules=MIXED, init_weights=False, use_effective_conv2d=True),
    "oft": peft.OFTConfig(oft_block_size=4, target_modules=MIXED, init_weights=False),
    **{
        f"oft of {terms} terms": peft.OFTConfig(
            oft_block_size=4, num_cayley_neumann_terms=terms, target_modules=LINEAR, init_weights=False
        )
        for terms in (2, 3, 4, 7)
    },
    "oft exact": peft.OFTConfig(
        r=4, oft_block_size=0, use_cayley_neumann=False, target_modules=MIXED, init_weights=False
    ),
    "oft shared": peft.OFTConfig(oft_block_size=8, block_share=True, target_modules=MIXED, init_weights=False),
    "coft": peft.OFTConfig(oft_block_size=4, coft=True, eps=0.3, target_modules=MIXED, init_weights=False),
    "boft": peft.BOFTConfig(boft_block_size=4, target_modules=MIXED, init_weights=False),
    "butterfly": peft.BOFTConfig(
        boft_block_size=4, boft_n_butterfly_factor=3, target_modules=LINEAR, init_weights=False
    ),
    "ia3": peft.IA3Config(target_modules=MIXED, feedforward_modules=r".*(ff\.net\.2|conv1)", init_ia3_weights=False),
}
"""What is in use of PEFT's methods for convolutions and linear layers."""


@pytest.fixture(scope="module", params=["sd15", pytest.param("sdxl", marks=pytest.mark.slow)])
def kind(request):
    return request.param


def model_of(kind, encoders=None):
    """All that a stack needs to know of a model."""
    unet, text = tiny_unet(kind), SimpleNamespace(encoders=encoders or [nn.Identity()])
    return SimpleNamespace(unet=unet, text=text, family=family_of(unet.config), stored={})


def encoders():
    return [tiny_text("sdxl"), tiny_text("sdxl", second=True)]


@pytest.fixture(autouse=True)
def no_compiler(monkeypatch):
    """PEFT's BOFT wants to compile a CUDA extension; its products are written out here instead."""
    import peft.tuners.boft.layer as boft

    apart = SimpleNamespace(apply=lambda r_MKNN: torch.stack([torch.block_diag(*r_KNN) for r_KNN in r_MKNN]))
    monkeypatch.setattr(boft, "FastBlockDiag", apart)
    monkeypatch.setattr(boft, "get_fbd_cuda", lambda: True)


def made_by_peft(root, config, folder, monkeypatch):
    """The weights as PEFT merges them, and the file it saved."""
    torch.manual_seed(0)
    if config.peft_type == "BOFT" and config.boft_n_butterfly_factor == 1:
        monkeypatch.setattr("peft.tuners.boft.layer.get_fbd_cuda", lambda: None)
    wrapped = peft.get_peft_model(root, config)
    for name, parameter in wrapped.named_parameters():
        if "magnitude" in name or "lora_B" in name:
            parameter.data += 0.1 * torch.randn_like(parameter)
        elif "oft_R" in name and parameter.ndim == 2:
            parameter.data *= 3
    wrapped.save_pretrained(folder)
    return wrapped.merge_and_unload().state_dict(), folder / "adapter_model.safetensors"


def peft_config(name, targets=None):
    config = type(CONFIGS[name])(
        **{key: value for key, value in CONFIGS[name].to_dict().items() if key != "peft_version"}
    )
    config.target_modules = targets or config.target_modules
    return config


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", all_but(tuple(CONFIGS)[:4], CONFIGS))
def test_what_peft_saves_is_merged_as_peft_does(name, kind, tmp_path, monkeypatch):
    model = model_of(kind)
    before = {key: value.clone() for key, value in model.unet.state_dict().items()}
    expected, path = made_by_peft(tiny_unet(kind), peft_config(name), tmp_path, monkeypatch)
    stack, lora = LoraStack(model), read_lora(path, family=model.family)
    stack.set([(lora, 1.0, 1.0)])
    found = model.unet.state_dict()
    assert found.keys() == expected.keys()
    assert max(float((found[key] - expected[key]).abs().max()) for key in found) < 1e-4
    assert not all(torch.equal(found[key], before[key]) for key in found)
    stack.set([])
    assert all(torch.equal(value, before[key]) for key, value in model.unet.state_dict().items())


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", ["coft", "butterfly", "ia3"])
def test_numpy_and_torch_are_one(name, tmp_path, monkeypatch):
    model = model_of("sd15")
    _, path = made_by_peft(tiny_unet(), peft_config(name), tmp_path, monkeypatch)
    theirs, ours = read_lora(path).layers, read_lora(path, numpy=True).layers
    weights = dict(model.unet.named_parameters())
    for module in list(ours)[:6]:
        base = weights.get(module if module.endswith(".bias") else f"{module}.weight")
        if base is not None:
            found = merged(base.detach().numpy(), [(ours[module], 0.7)])
            assert found.dtype == np.float32
            assert abs(found - merged(base.detach(), [(theirs[module], 0.7)]).numpy()).max() < 1e-5


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", ["loha", "oft", "ia3"])
@pytest.mark.parametrize("second", [False, True])
def test_a_text_encoder_in_diffusers_names(name, second, tmp_path, monkeypatch):
    """PEFT's own keys under the component's name, with its config in diffusers' metadata."""
    model, part = model_of("sdxl", encoders()), "text_encoder_2" if second else "text_encoder"
    root, config = encoders()[second], peft_config(name, TEXT)
    expected, path = made_by_peft(root, config, tmp_path, monkeypatch)
    tensors = {key.replace("base_model.model.", f"{part}."): value for key, value in load_file(path).items()}
    known = {
        f"{part}.{key}": value for key, value in json.loads((tmp_path / "adapter_config.json").read_text()).items()
    }
    save_file(tensors, tmp_path / "x.safetensors", metadata={"lora_adapter_metadata": json.dumps(known)})
    stack = LoraStack(model)
    stack.set([(read_lora(tmp_path / "x.safetensors", family=model.family), 1.0, 1.0)])
    found = model.text.encoders[second].state_dict()
    assert max(float((found[key] - expected[key]).abs().max()) for key in expected) < 1e-4
    other = encoders()[not second].state_dict()
    assert all(torch.equal(value, other[key]) for key, value in model.text.encoders[not second].state_dict().items())


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", ["oft", "ia3"])
def test_without_its_config_it_is_refused(name, tmp_path, monkeypatch):
    _, path = made_by_peft(tiny_unet(), peft_config(name), tmp_path, monkeypatch)
    (tmp_path / "adapter_config.json").unlink()
    with pytest.raises(LoraError, match=r"without PEFT's configuration.*adapter_config\.json together"):
        read_lora(path)


@pytest.mark.filterwarnings("ignore")
def test_rotations_become_plain(tmp_path, monkeypatch):
    """Only by way of the weights they rotate: no other naming has keys for them."""
    model = model_of("sd15")
    expected, path = made_by_peft(tiny_unet(), peft_config("oft"), tmp_path, monkeypatch)
    lora = read_lora(path)
    with pytest.raises(LoraError, match=r"in PEFT's own form.*--plain --model"):
        save_lora(tmp_path / "no.safetensors", lora.all_layers)
    assert not (tmp_path / "no.safetensors").exists()
    plain = save_lora(tmp_path / "plain.safetensors", merge([(lora, 1.0)], model=model), dtype=torch.float32)
    stack = LoraStack(model)
    stack.set([(plain, 1.0, 1.0)])
    assert all((value - expected[key]).abs().max() < 1e-4 for key, value in model.unet.state_dict().items())


@pytest.mark.parametrize(
    ("layer", "words"),
    [
        (PeftOft(torch.ones(6, 6), 5, 0), "rotation of 24 inputs does not fit a weight of 32"),
        (PeftOft(torch.ones(1, 10), 5, 0), "rotation of 5 inputs does not fit a weight of 32"),
        (PeftBoft(torch.ones(1, 6, 4, 4), torch.ones(32, 1)), "rotation of 24 inputs does not fit a weight of 32"),
    ],
)
def test_rotations_fit_one_width(layer, words):
    assert layer.shape is not None
    with pytest.raises(LoraError, match=words):
        layer.delta(torch.ones(32, 32))


def test_shapes_that_are_no_rotation():
    assert PeftOft(torch.ones(6, 5), 5, 0).shape is None and PeftOft(torch.ones(6), 5, 0).shape is None
    for blocks, scales in (((1, 6, 4, 3), 24), ((2, 3, 4, 4), 12), ((2, 4, 3, 3), 12), ((6, 4, 4), 24)):
        assert PeftBoft(torch.ones(blocks), torch.ones(scales, 1)).shape is None
