"""The names that LoRA files use, all translated to one: the dotted module name of diffusers.

    lora_unet_down_blocks_0_attentions_0_..._attn1_to_q.lora_down.weight     kohya, diffusers names
    lora_unet_input_blocks_1_1_..._attn1_to_q.lora_down.weight               kohya, original (LDM, sgm) names
    lora_te_ | lora_te1_ | lora_te2_text_model_encoder_layers_0_mlp_fc1....  kohya, text encoders
    unet.down_blocks.0....attn1.to_q.lora_A.weight                           diffusers with PEFT
    base_model.model.down_blocks.0....attn1.to_q.lora_A.weight               PEFT by itself
    unet.down_blocks.0....attn1.processor.to_q_lora.down.weight              diffusers before PEFT
    diffusion_model.input_blocks.1.1....attn1.to_q.lora_A.weight             ComfyUI

One file may mix them. Names are flattened (dots become underscores) and read by a small grammar, so no model is needed.
"""

import re
from collections.abc import Iterable
from typing import Literal, NamedTuple

Component = Literal["unet", "text_encoder", "text_encoder_2"]


class Key(NamedTuple):
    """One tensor's place: which network, which module of it (diffusers' name), which part of that module's LoRA."""

    component: Component
    module: str
    part: str


def _words(text: str) -> re.Pattern[str]:
    """One word or number and the underscore behind it; the longest first, so that `conv_in` is not `conv`, `in`."""
    words = "|".join(sorted(text.split(), key=len, reverse=True))
    return re.compile(rf"({words}|\d+)(?:_|$)")


_UNET_WORDS = _words("""
    down_blocks up_blocks mid_block attentions resnets downsamplers upsamplers transformer_blocks attn1 attn2 ff net
    proj to_q to_k to_v to_out proj_in proj_out conv conv1 conv2 conv_shortcut conv_in conv_out time_emb_proj
    time_embedding add_embedding linear_1 linear_2 cond_proj norm norm1 norm2 norm3 conv_norm_out
""")
_TEXT_WORDS = _words("""
    text_model encoder layers self_attn q_proj k_proj v_proj out_proj to_q to_k to_v to_out mlp fc1 fc2 text_projection
    layer_norm1 layer_norm2 final_layer_norm
""")
_OLD_TEXT_WORDS = {"to_q": "q_proj", "to_k": "k_proj", "to_v": "v_proj", "to_out": "out_proj"}

_PREFIXES: tuple[tuple[str, Component], ...] = (
    ("lora_unet_", "unet"),
    ("lycoris_", "unet"),
    ("lora_te_", "text_encoder"),
    ("lora_te1_", "text_encoder"),
    ("lora_te2_", "text_encoder_2"),
    ("unet.", "unet"),
    ("diffusion_model.", "unet"),
    ("text_encoder.", "text_encoder"),
    ("text_encoder_2.", "text_encoder_2"),
    ("text_model.", "text_encoder"),
)

_PARTS: dict[str, str] = {
    "down": r"\.lora_down\.weight|\.lora_A(?:\.[^.]+)?\.weight|[._]lora(?:_linear_layer)?\.down\.weight",
    "up": r"\.lora_up\.weight|\.lora_B(?:\.[^.]+)?\.weight|[._]lora(?:_linear_layer)?\.up\.weight",
    "mid": r"\.lora_mid\.weight",
    "bias": r"\.lora_(?:up|B)(?:\.[^.]+)?\.bias",
    "alpha": r"(?:_lora)?\.alpha",
    "dora_scale": r"(?:_lora)?\.dora_scale",
    "magnitude": r"\.lora_magnitude_vector(?:\.[^.]+){0,2}",
    **{part: rf"\.{part}" for part in ("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b", "hada_t1", "hada_t2")},
    **{part: rf"\.{part}" for part in ("lokr_w1", "lokr_w1_a", "lokr_w1_b", "lokr_t1")},
    **{part: rf"\.{part}" for part in ("lokr_w2", "lokr_w2_a", "lokr_w2_b", "lokr_t2")},
    **{part: rf"\.{part}\.weight" for part in ("a1", "a2", "b1", "b2", "bm", "q_layer", "p_layer")},
    **{part: rf"\.{part}" for part in ("lambda_layer", "oft_blocks", "rescale", "on_input", "set_weight")},
    "oft_R": r"\.oft_R(?:\.[^.]+)?\.weight",
    **{part: rf"\.{part}(?:\.[^.]+)?" for part in ("ia3_l", "boft_R", "boft_s")},
    "diff": r"\.diff|\.w_norm",
    "diff_b": r"\.diff_b|\.b_norm",
    "weight": r"\.weight",
}
"""Part of a family (a field in `lora_families`) -> how the names of its tensors end."""

_NAMINGS = {"lora_": "kohya", "lycoris_": "LyCORIS", "base_model.model.": "PEFT", "diffusion_model.": "ComfyUI"}

_SUFFIX = re.compile(r"(?P<module>.+?)(?:" + "|".join(f"(?P<{part}>{end})" for part, end in _PARTS.items()) + ")")

_RESIDUAL = {
    "in_layers_0": "norm1",
    "out_layers_0": "norm2",
    "in_layers_2": "conv1",
    "emb_layers_1": "time_emb_proj",
    "out_layers_3": "conv2",
    "skip_connection": "conv_shortcut",
}
_OUTSIDE_BLOCKS = {
    "input_blocks_0_0": "conv_in",
    "out_0": "conv_norm_out",
    "out_2": "conv_out",
    "time_embed_0": "time_embedding.linear_1",
    "time_embed_2": "time_embedding.linear_2",
    "label_emb_0_0": "add_embedding.linear_1",
    "label_emb_0_2": "add_embedding.linear_2",
}
_MIDDLE = {"0": "resnets.0", "1": "attentions.0", "2": "resnets.1"}
_LDM_BLOCK = re.compile(r"(input_blocks|middle_block|output_blocks)_(\d+)(?:_(\d+))?_([a-z].*)")
_BLOCKS_PER_LEVEL = 3  # two residual blocks and a change of size, in every published model of this layout (going down)

_UNSUPPORTED: tuple[tuple[str, str], ...] = (
    ("an OFT in the first LyCORIS form", r"\.oft_diag$"),
    ("an OFT in the form of PEFT before 0.15", r"\.oft_[rs](\.|$)"),
    ("a ControlNet-LLLite", r"^lllite_"),
    (
        "a LoRA for a transformer or Kandinsky model",
        r"^(lora_(prior|transformer)_|(base_model\.model\.)?transformer\.)",
    ),
)


def parse_key(key: str) -> Key | None:
    """Where a tensor named `key` belongs, or None when the name is not one this grammar knows.

    >>> parse_key("lora_unet_input_blocks_4_1_transformer_blocks_0_attn2_to_k.alpha")
    Key(component='unet', module='down_blocks.1.attentions.0.transformer_blocks.0.attn2.to_k', part='alpha')
    >>> parse_key("unet.mid_block.attentions.0.transformer_blocks.0.attn1.processor.to_out_lora.up.weight").module
    'mid_block.attentions.0.transformer_blocks.0.attn1.to_out.0'
    >>> parse_key("model.diffusion_model.input_blocks.0.0.weight")
    """
    match = _SUFFIX.fullmatch(key.removeprefix("base_model.model."))
    if match is None:
        return None
    if match.lastgroup == "weight" and not match["module"].startswith(
        ("lora_", "lycoris_")
    ):  # a checkpoint's, not IA3's
        return None
    component, rest = _component(match["module"])
    flat = rest.replace(".processor.", ".").replace(".", "_")
    module = _unet_module(flat) if component == "unet" else _text_module(flat)
    return None if module is None else Key(component, module, str(match.lastgroup))


def unsupported(keys: Iterable[str]) -> tuple[str, str] | None:
    """(format, first key of it) for a file in a format that is known but not read yet, None for any other file."""
    for key in keys:
        for label, pattern in _UNSUPPORTED:
            if re.search(pattern, key):
                return label, key
    return None


def naming_of(key: str) -> str:
    """Whose spelling a key has.

    >>> naming_of("lora_unet_conv_in.alpha"), naming_of("base_model.model.conv_in.lora_A.weight")
    ('kohya', 'PEFT')
    """
    for prefix, naming in _NAMINGS.items():
        if key.startswith(prefix):
            return naming
    return "diffusers before PEFT" if re.search(r"[._]lora\.(down|up)\.", key) else "diffusers"


def kohya_name(module: str) -> str:
    """The kohya name of a UNet module, which every user interface reads.

    >>> kohya_name("mid_block.resnets.0.conv1")
    'lora_unet_mid_block_resnets_0_conv1'
    """
    return "lora_unet_" + module.replace(".", "_")


def _component(name: str) -> tuple[Component, str]:
    for prefix, component in _PREFIXES:
        if name.startswith(prefix):
            return component, name.removeprefix(prefix)
    return ("text_encoder" if name.startswith("encoder.layers.") else "unet"), name


def _unet_module(flat: str) -> str | None:
    module = _ldm_module(flat) or _dotted(flat, _UNET_WORDS)
    return module + ".0" if module and module.endswith(".to_out") else module


def _text_module(flat: str) -> str | None:
    module = _dotted(flat, _TEXT_WORDS)
    if module is None:
        return None
    return ".".join(_OLD_TEXT_WORDS.get(word, word) for word in module.removeprefix("text_model.").split("."))


def _dotted(flat: str, words: re.Pattern[str]) -> str | None:
    """Dots for the underscores that stand between words; None where something is no word."""
    parts: list[str] = []
    position = 0
    while match := words.match(flat, position):
        parts.append(match[1])
        position = match.end()
    return ".".join(parts) if position == len(flat) and parts and not flat.endswith("_") else None


def _ldm_module(flat: str) -> str | None:
    if flat in _OUTSIDE_BLOCKS:
        return _OUTSIDE_BLOCKS[flat]
    match = _LDM_BLOCK.fullmatch(flat)
    if match is None:
        return None
    side, block, branch, rest = match.groups()
    inside = _RESIDUAL.get(rest) or _dotted(rest, _UNET_WORDS)
    if side == "middle_block":
        return f"mid_block.{_MIDDLE[block]}.{inside}" if block in _MIDDLE and branch is None and inside else None
    if side == "input_blocks":
        level, index = divmod(int(block) - 1, _BLOCKS_PER_LEVEL)
        if index == 2:
            return f"down_blocks.{level}.downsamplers.0.conv" if rest == "op" else None
    else:
        level, index = divmod(int(block), _BLOCKS_PER_LEVEL)
        if rest == "conv":
            return f"up_blocks.{level}.upsamplers.0.conv"
    blocks = "down_blocks" if side == "input_blocks" else "up_blocks"
    kind = "resnets" if rest in _RESIDUAL else "attentions"
    return f"{blocks}.{level}.{kind}.{index}.{inside}" if inside else None
