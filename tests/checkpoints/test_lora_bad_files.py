"""Everything wrong with a LoRA file is one sentence that names the file."""

import pytest
import torch

from fewstep.checkpoints.lora import read_lora
from fewstep.errors import CheckpointError, LoraError
from fewstep.models.family import Family
from tests.checkpoints.lora_files import TEXT, Piece, kohya, peft, pieces, save
from tests.tiny import tiny_text, tiny_unet

SD15 = Family("sd15", "SD 1.5", 768, 512, 1)
SDXL = Family("sdxl", "SDXL", 2048, 1024, 2)
PICTOGRAM = Family("pictogram", "pictogram", 160, 256, 1)
MODULE = "mid_block.resnets.0.conv1"
KEY = "lora_unet_mid_block_resnets_0_conv1"


def conv(**changes):
    tensors = {"lora_down.weight": torch.ones(2, 8, 3, 3), "lora_up.weight": torch.ones(8, 2, 1, 1)} | changes
    return {f"{KEY}.{part}": tensor for part, tensor in tensors.items() if tensor is not None}


def cross(width):
    module = "mid_block.attentions.0.transformer_blocks.0.attn2.to_k"
    return kohya({module: Piece(torch.ones(2, width), torch.ones(8, 2), 2.0)})


def text(width, prefix):
    module = "text_model.encoder.layers.0.self_attn.q_proj"
    return kohya({module: Piece(torch.ones(2, width), torch.ones(width, 2), 2.0)}, prefix)


@pytest.mark.parametrize(
    ("tensors", "words"),
    [
        ({}, "is not a LoRA: it holds no tensors"),
        (
            {"model.diffusion_model.out.2.bias": torch.ones(4)},
            r"is not a LoRA: it holds 1 tensors.*load it as the model",
        ),
        (conv() | {"lora_unet_surprise.lora_up.weight": torch.ones(2, 2)}, "1 keys of 3 that fit.*'lora_unet_surprise"),
        (conv(**{"lora_up.weight": None}), f"incomplete: the module '{MODULE}' has down but no 'up'"),
        (conv(**{"lora_down.weight": None, "alpha": torch.tensor(1.0)}), "has alpha and up but no 'down'"),
        ({f"{KEY}.alpha": torch.tensor(1.0)}, "has alpha but no 'down'"),
        (conv(**{"lora_up.weight": torch.ones(8, 3, 1, 1)}), r"damaged: the shapes.*\[2, 8, 3, 3\].*\[8, 3, 1, 1\]"),
        (conv(**{"lora_up.weight": torch.ones(8, 2, 3, 3)}), "damaged: the shapes"),
        (conv(**{"lora_up.weight": torch.ones(8)}), "damaged: the shapes"),
        (conv(**{"lora_mid.weight": torch.ones(2, 2, 3, 3)}), "damaged: the shapes"),
        (conv(**{"lora_down.weight": torch.ones(0, 8, 3, 3), "lora_up.weight": torch.ones(8, 0, 1, 1)}), "damaged"),
        (conv(alpha=torch.ones(2)), "the alpha of the module .* is not one number"),
        (conv() | peft({MODULE: Piece(torch.ones(2, 8, 3, 3), torch.ones(8, 2, 1, 1), None)}), "'down' of .* twice"),
        (conv(dora_scale=torch.ones(9, 1, 1, 1)), r"damaged: the shapes .*dora_scale \[9, 1, 1, 1\]"),
        ({f"{KEY}.dora_scale": torch.ones(8, 1)}, "has dora_scale but no 'down'"),
        ({f"{KEY}.hada_w1_a": torch.ones(2, 2)}, "incomplete: .* has hada_w1_a but no 'hada_w1_b'"),
        ({f"{KEY}.lokr_w1": torch.ones(2, 2)}, "incomplete: .* has lokr_w1 but no 'lokr_w2_a'"),
        (conv(diff=torch.ones(8, 8, 3, 3)), "parts of two formats, LoRA and full difference"),
        ({f"{KEY}.oft_diag": torch.ones(2, 4, 4)}, "is an OFT in the first LyCORIS form .its key"),
        (conv() | {"bundle_emb.../x.string_to_param.*": torch.ones(1, 8)}, "is not the name of an embedding"),
        (conv() | {"bundle_emb.x.clip_l": torch.ones(1, 8, 3)}, r"the embedding 'x' has the shapes \[1, 8, 3\]"),
        ({"emb_params": torch.ones(1, 8)}, "is a textual inversion, not a LoRA"),
        (conv() | {"../../etc/passwd.lora_up.weight": torch.ones(2, 2)}, "fit no known module, first '../../etc"),
        (conv(**{"lora_down.weight": torch.ones(200_000, 1), "lora_up.weight": torch.ones(1, 200_000)}), "damaged"),
        (
            {f"{KEY}.lokr_w1": torch.ones(1000, 2), f"{KEY}.lokr_w2": torch.ones(1000, 2)},
            r"would have the shape \[1000000, 4\]",
        ),
    ],
)
def test_one_sentence(tensors, words, tmp_path):
    with pytest.raises(LoraError, match=words) as caught:
        read_lora(save(tmp_path / "ink.safetensors", tensors), family=SD15)
    assert str(caught.value).startswith("'ink.safetensors'") and "\n" not in str(caught.value)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("part", ["lora_down.weight", "lora_up.weight", "alpha"])
def test_not_a_number(bad, part, tmp_path):
    tensors = conv(alpha=torch.tensor(2.0))
    tensors[f"{KEY}.{part}"].view(-1)[-1] = bad
    with pytest.raises(CheckpointError, match=rf"ink\.safetensors.*NaN or infinity.*{part}"):
        read_lora(save(tmp_path / "ink.safetensors", tensors))


def test_damaged_files(tmp_path):
    whole = save(tmp_path / "ink.safetensors", conv()).read_bytes()
    for size in (0, 5, 60, len(whole) - 1):
        (tmp_path / "ink.safetensors").write_bytes(whole[:size])
        with pytest.raises(CheckpointError, match=r"ink\.safetensors"):
            read_lora(tmp_path / "ink.safetensors")
    with pytest.raises(CheckpointError, match="does not exist"):
        read_lora(tmp_path / "absent.safetensors")
    with pytest.raises(CheckpointError, match="pickle"):
        read_lora(tmp_path / "ink.pt")


def _entry(key, shape, start, end):
    return f'"{KEY}.{key}": {{"dtype": "F32", "shape": {list(shape)}, "data_offsets": [{start}, {end}]}}'


@pytest.mark.parametrize(
    ("length", "entries"),
    [
        (1 << 62, ""),
        (90_000_000, ""),
        (None, _entry("lora_down.weight", (1 << 40, 1 << 40), 0, 16)),
        (None, _entry("lora_down.weight", (1 << 20, 1 << 20), 0, 1 << 42)),
        (None, _entry("lora_down.weight", (-4,), 0, 16)),
        (None, _entry("lora_down.weight", (4,), 16, 0)),
        (None, _entry("lora_up.weight", (2, 1), 0, 8) + "," + _entry("lora_up.weight", (2, 1), 8, 16)),
        (None, _entry("lora_up.weight", (2, 1), 0, 8) + "," + _entry("lora_down.weight", (2, 1), 4, 12)),
        (None, '"a": ' + "[" * 100_000),
        (None, "nonsense"),
    ],
)
def test_headers_that_lie(length, entries, tmp_path):
    """Nothing of what they declare is ever allocated."""
    header = f"{{{entries}}}".encode()
    body = (len(header) if length is None else length).to_bytes(8, "little") + header + bytes(16)
    (tmp_path / "ink.safetensors").write_bytes(body)
    with pytest.raises(LoraError, match=r"ink\.safetensors") as caught:
        read_lora(tmp_path / "ink.safetensors")
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 400


def test_a_whole_unet_is_not_a_lora(tmp_path):
    with pytest.raises(LoraError, match=r"is not a LoRA: it holds \d+ tensors, first"):
        read_lora(save(tmp_path / "model.safetensors", tiny_unet("sd15").state_dict()))


@pytest.mark.parametrize(
    ("tensors", "family", "sentence"),
    [
        (
            cross(2048),
            SD15,
            "'ink.safetensors' is a LoRA for SDXL (cross-attention 2048) but the model is SD 1.5 (768). "
            "Load an SDXL checkpoint, or a LoRA made for SD 1.5.",
        ),
        (
            cross(768),
            SDXL,
            "'ink.safetensors' is a LoRA for SD 1.5 (cross-attention 768) but the model is SDXL (2048). "
            "Load an SD 1.5 checkpoint, or a LoRA made for SDXL.",
        ),
        (
            cross(24),
            PICTOGRAM,
            "'ink.safetensors' is a LoRA for another family (cross-attention 24) but the model is pictogram (160). "
            "Load the checkpoint it was made for, or a LoRA made for pictogram.",
        ),
    ],
)
def test_another_family(tensors, family, sentence, tmp_path):
    with pytest.raises(LoraError) as caught:
        read_lora(save(tmp_path / "ink.safetensors", tensors), family=family)
    assert str(caught.value) == sentence


@pytest.mark.parametrize(
    ("tensors", "family", "fits"),
    [
        (text(768, "lora_te_"), SD15, True),
        (text(1024, "lora_te_"), SD15, False),
        (text(768, "lora_te1_") | text(1280, "lora_te2_"), SDXL, True),
        (text(768, "lora_te1_") | text(1280, "lora_te2_"), SD15, False),
        (text(768, "lora_te1_"), SDXL, True),
        (conv(), SD15, True),
        (cross(160), PICTOGRAM, True),
        (cross(768), None, True),
    ],
)
def test_family_by_text_encoders_or_none(tensors, family, fits, tmp_path):
    path = save(tmp_path / "ink.safetensors", tensors)
    if fits:
        read_lora(path, family=family)
    else:
        with pytest.raises(LoraError, match="is a LoRA for"):
            read_lora(path, family=family)


def test_layers_and_text_layers_are_apart(tmp_path):
    unet, clip = pieces(tiny_unet("sd15")), pieces(tiny_text("sd15"), TEXT)
    lora = read_lora(save(tmp_path / "ink.safetensors", kohya(unet) | kohya(clip, "lora_te_text_model_")))
    assert lora.name == "ink" and lora.layers.keys() == unet.keys()
    assert lora.text_layers.keys() == {f"text_encoder.{name.removeprefix('text_model.')}" for name in clip}
