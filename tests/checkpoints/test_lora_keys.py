"""Every module name of the real layouts, in every naming, comes back as itself."""

import pytest
from torch import nn

from fewstep.checkpoints.lora_keys import Key, kohya_name, parse_key, unsupported
from tests.tiny import KINDS, tiny_text, tiny_unet

# sd-scripts' and sgm's names beside diffusers': the block numbers are facts of the original layout.
LDM = {
    "input_blocks_0_0": "conv_in",
    "time_embed_0": "time_embedding.linear_1",
    "time_embed_2": "time_embedding.linear_2",
    "label_emb_0_0": "add_embedding.linear_1",
    "label_emb_0_2": "add_embedding.linear_2",
    "out_0": "conv_norm_out",
    "out_2": "conv_out",
    "input_blocks_1_0_in_layers_0": "down_blocks.0.resnets.0.norm1",
    "output_blocks_3_1_norm": "up_blocks.1.attentions.0.norm",
    "input_blocks_1_0_in_layers_2": "down_blocks.0.resnets.0.conv1",
    "input_blocks_2_0_out_layers_3": "down_blocks.0.resnets.1.conv2",
    "input_blocks_3_0_op": "down_blocks.0.downsamplers.0.conv",
    "input_blocks_4_0_skip_connection": "down_blocks.1.resnets.0.conv_shortcut",
    "input_blocks_4_1_proj_in": "down_blocks.1.attentions.0.proj_in",
    "input_blocks_5_1_transformer_blocks_1_attn2_to_k": "down_blocks.1.attentions.1.transformer_blocks.1.attn2.to_k",
    "input_blocks_9_0_op": "down_blocks.2.downsamplers.0.conv",
    "input_blocks_11_0_emb_layers_1": "down_blocks.3.resnets.1.time_emb_proj",
    "middle_block_0_in_layers_2": "mid_block.resnets.0.conv1",
    "middle_block_1_transformer_blocks_9_ff_net_0_proj": "mid_block.attentions.0.transformer_blocks.9.ff.net.0.proj",
    "middle_block_2_emb_layers_1": "mid_block.resnets.1.time_emb_proj",
    "output_blocks_0_0_skip_connection": "up_blocks.0.resnets.0.conv_shortcut",
    "output_blocks_2_1_conv": "up_blocks.0.upsamplers.0.conv",
    "output_blocks_5_2_conv": "up_blocks.1.upsamplers.0.conv",
    "output_blocks_5_1_transformer_blocks_0_ff_net_2": "up_blocks.1.attentions.2.transformer_blocks.0.ff.net.2",
    "output_blocks_11_1_proj_out": "up_blocks.3.attentions.2.proj_out",
}


def layers(root):
    return [name for name, module in root.named_modules() if isinstance(module, (nn.Linear, nn.Conv2d))]


@pytest.mark.parametrize("kind", KINDS)
def test_every_unet_layer_in_every_naming(kind):
    names = layers(tiny_unet(kind))
    assert len(names) > 100
    for name in names:
        for prefix in ("unet.", "base_model.model.", "base_model.model.unet.", ""):
            assert parse_key(f"{prefix}{name}.lora_A.weight") == Key("unet", name, "down")
        assert parse_key(kohya_name(name) + ".lora_up.weight") == Key("unet", name, "up")
        assert parse_key(f"lycoris_{name.replace('.', '_')}.alpha") == Key("unet", name, "alpha")


@pytest.mark.parametrize("old", ["text_model.", ""])
def test_every_text_layer_in_every_naming(old):
    names = [name.removeprefix("text_model.") for name in layers(tiny_text("sdxl", second=True))]
    assert "text_projection" in names and len(names) == 19
    for name in names:
        flat = (old + name).replace(".", "_")
        for prefix, component in (("lora_te_", ""), ("lora_te1_", ""), ("lora_te2_", "_2")):
            assert parse_key(f"{prefix}{flat}.alpha") == Key(f"text_encoder{component}", name, "alpha")
            key = f"text_encoder{component}.{old}{name}.lora_linear_layer.up.weight"
            assert parse_key(key) == Key(f"text_encoder{component}", name, "up")


@pytest.mark.parametrize("ldm", LDM)
def test_original_block_names(ldm):
    assert parse_key(f"lora_unet_{ldm}.lora_down.weight") == Key("unet", LDM[ldm], "down")


def test_comfy_dots():
    key = "diffusion_model.output_blocks.5.1.transformer_blocks.0.attn2.to_out.0.lora_B.weight"
    assert parse_key(key) == Key("unet", "up_blocks.1.attentions.2.transformer_blocks.0.attn2.to_out.0", "up")


@pytest.mark.parametrize(
    ("ending", "module", "part"),
    [
        ("to_q.lora_A.default.weight", "to_q", "down"),
        ("to_q.lora_B.my_style.weight", "to_q", "up"),
        ("processor.to_q_lora.down.weight", "to_q", "down"),
        ("processor.to_out_lora.up.weight", "to_out.0", "up"),
        ("to_out.0.lora.down.weight", "to_out.0", "down"),
        ("to_k_lora.up.weight", "to_k", "up"),
        ("to_k.alpha", "to_k", "alpha"),
        ("processor.to_v_lora.alpha", "to_v", "alpha"),
    ],
)
def test_endings(ending, module, part):
    attention = "mid_block.attentions.0.transformer_blocks.0.attn1"
    assert parse_key(f"unet.{attention}.{ending}") == Key("unet", f"{attention}.{module}", part)


def test_old_text_names():
    key = "text_encoder.text_model.encoder.layers.0.self_attn.to_out_lora.down.weight"
    assert parse_key(key) == Key("text_encoder", "encoder.layers.0.self_attn.out_proj", "down")


@pytest.mark.parametrize(
    "key",
    [
        "",
        "alpha",
        ".alpha",
        "lora_unet_.alpha",
        "lora_unet_mid_block_.alpha",
        "lora_unet_mid_block_invented.lora_up.weight",
        "lora_unet_input_blocks_3_0_in_layers_2.alpha",
        "lora_unet_input_blocks_x_0_op.alpha",
        "lora_unet_middle_block_3_in_layers_2.alpha",
        "lora_te3_text_model_encoder_layers_0_mlp_fc1.alpha",
        "lora_te_text_model_encoder_layers_0_mlp_fc3.alpha",
        "unet.conv_in.weight",
        "model.diffusion_model.input_blocks.0.0.weight",
        "unet.conv_in.lora_C.weight",
    ],
)
def test_unknown_names(key):
    assert parse_key(key) is None


@pytest.mark.parametrize(
    ("ending", "part"),
    [
        ("hada_w1_a", "hada_w1_a"),
        ("hada_t2", "hada_t2"),
        ("lokr_w1", "lokr_w1"),
        ("lokr_w2_b", "lokr_w2_b"),
        ("dora_scale", "dora_scale"),
        ("lora_magnitude_vector", "magnitude"),
        ("lora_magnitude_vector.weight", "magnitude"),
        ("lora_magnitude_vector.default.weight", "magnitude"),
        ("lambda_layer", "lambda_layer"),
        ("p_layer.weight", "p_layer"),
        ("a1.weight", "a1"),
        ("oft_blocks", "oft_blocks"),
        ("weight", "weight"),
        ("on_input", "on_input"),
        ("diff", "diff"),
        ("diff_b", "diff_b"),
        ("w_norm", "diff"),
        ("b_norm", "diff_b"),
        ("set_weight", "set_weight"),
        ("lora_B.bias", "bias"),
        ("lora_up.bias", "bias"),
        ("ia3_l", "ia3_l"),
        ("oft_R.weight", "oft_R"),
        ("boft_R", "boft_R"),
        ("boft_s", "boft_s"),
    ],
)
def test_parts_of_every_family(ending, part):
    module = "mid_block.resnets.0.conv1"
    assert parse_key(f"{kohya_name(module)}.{ending}") == Key("unet", module, part)
    assert parse_key(f"lycoris_{module.replace('.', '_')}.{ending}") == Key("unet", module, part)


@pytest.mark.parametrize(
    ("ending", "label"),
    [
        ("oft_diag", "an OFT in the first LyCORIS form"),
        ("oft_r", "an OFT in the form of PEFT before 0.15"),
    ],
)
def test_formats_that_are_not_read(ending, label):
    plain = "base_model.model.mid_block.resnets.0.conv1"
    assert unsupported([f"{plain}.lora_A.weight"]) is None
    assert unsupported([f"{plain}.alpha", f"{plain}.{ending}"]) == (label, f"{plain}.{ending}")


def test_foreign_prefixes():
    assert unsupported(["lora_transformer_single_blocks_0.alpha", "x"]) is not None


def test_norms():
    text = "encoder.layers.0.layer_norm1"
    assert parse_key("lora_te_text_model_encoder_layers_0_layer_norm1.w_norm") == Key("text_encoder", text, "diff")
    assert parse_key("base_model.model.encoder.layers.0.mlp.fc1.lora_A.weight") == Key(
        "text_encoder", "encoder.layers.0.mlp.fc1", "down"
    )
