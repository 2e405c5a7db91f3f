"""Tiny random models by the rules of the published ones: heads of 64 channels, norms of 32 groups, CLIP's vocabulary.

Nothing but shapes is needed to know them. WHOLE: kinds; whole_folder(kind): a diffusers folder, made once.
"""

import atexit
import json
import shutil
import tempfile
from functools import lru_cache
from pathlib import Path

from fewstep.checkpoints.vocabulary import clip_merges, tokenizer_files, tokenizer_of
from tests.tiny import _model_index, _seeded, noise_config, tiny_unet, tiny_vae

XL = {"cross_attention_dim": 192, "attention_head_dim": (1, 1, 1), "addition_time_embed_dim": 256}
XL |= {"projection_class_embeddings_input_dim": 6 * 256 + 128}
SD = {"cross_attention_dim": 64, "attention_head_dim": 8}
WHOLE = {
    "sd15": ("sd15", SD),
    "inpainting": ("sd15", SD | {"in_channels": 9}),
    "lcm": ("lcm", SD),
    "sd2": ("sd2", SD | {"attention_head_dim": (1, 1, 1, 1)}),
    "sdxl": ("sdxl", XL),
    "ssd1b": ("ssd1b", XL),
    "vega": ("sdxl", XL | {"mid_block_type": "UNetMidBlock2D"}),
}


def whole_text(width, *, act, projection=None, seed=2):
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    config = CLIPTextConfig(
        vocab_size=49408,
        hidden_size=width,
        intermediate_size=width,
        num_hidden_layers=3,
        num_attention_heads=width // 64,
        projection_dim=projection or width,
        hidden_act=act,
        bos_token_id=0,
        eos_token_id=2,
        pad_token_id=1,
    )
    kind = CLIPTextModelWithProjection if projection else CLIPTextModel
    return _seeded(lambda: kind(config), seed)


@lru_cache
def whole_folder(kind: str) -> Path:
    root = Path(tempfile.mkdtemp(prefix="fewstep-whole-"))
    atexit.register(shutil.rmtree, root, ignore_errors=True)
    like, changes = WHOLE[kind]
    folder, xl = root / kind, "add" in str(changes)
    tiny_unet(like, norm_num_groups=32, **changes).save_pretrained(folder / "unet")
    scale = 0.13025 if xl else 0.18215
    channels = {"block_out_channels": (32, 32, 32, 32), "norm_num_groups": 32}
    tiny_vae(scaling_factor=scale, **channels).save_pretrained(folder / "vae")
    open_clip = like == "sd2"
    whole_text(64, act="gelu" if open_clip else "quick_gelu").save_pretrained(folder / "text_encoder")
    write_tokenizer(folder / "tokenizer", pad="!" if open_clip else "<|endoftext|>")
    if xl:
        whole_text(128, act="gelu", projection=128, seed=3).save_pretrained(folder / "text_encoder_2")
        write_tokenizer(folder / "tokenizer_2", pad="!")
    (folder / "scheduler").mkdir()
    (folder / "scheduler" / "scheduler_config.json").write_text(json.dumps(noise_config(like)))
    (folder / "model_index.json").write_text(json.dumps(_model_index("sdxl" if xl else "sd15")))
    return folder


@lru_cache
def clip_files(pad: str):
    return tokenizer_files(tokenizer_of(clip_merges(), pad=pad)) or {}


def write_tokenizer(folder: Path, *, pad: str) -> None:
    folder.mkdir()
    for name, text in clip_files(pad).items():
        (folder / name).write_text(text, encoding="utf-8")
