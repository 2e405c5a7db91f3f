"""Tiny random models in Stable Diffusion's real layouts, for everybody's tests.

    from tests.tiny import KINDS, tiny_folder, tiny_model, tiny_unet

    tiny_folder("sd15")                a diffusers folder on disk (made once per process; do not write to it)
    tiny_folder("sd15", into=tmp_path) the same, fresh, in a folder of your own
    tiny_model("sdxl")                 a fresh `fewstep.checkpoints.load.Model` loaded from that folder (CPU, float32)
    tiny_unet(kind), tiny_vae(), tiny_taesd(), tiny_text(kind) -> bare modules in eval mode; same seed, same weights
    write_tokenizer(folder)            a hand-made CLIP tokenizer: vocab.json, merges.txt, tokenizer_config.json

KINDS: "sd15" (eps), "sd2" (v-prediction, linear projections), "ssd1b" (no middle attention), "sdxl" (two text
encoders), "pictogram" (cross-attention 160, v-prediction), "lcm" (SD 1.5 with guidance embedding of 256, LCMScheduler).

Latents are [B, 4, 8, 8] for 64 px pictures; the cross-attention width is 32 (SD 1.x), 48 (SD 2.x), 64 (SDXL, SSD-1B),
160 (pictogram); channels are 32 at every level; the UNets keep their family's true levels and two layers a block, so
their keys are named like the real ones.
Text encoders: 3 layers, 77 positions, about 530 tokens, where "cat", "dog", "a", "photo", "of" are one token each.
"""

import atexit
import json
import shutil
import tempfile
from functools import lru_cache
from pathlib import Path
from typing import Any

KINDS = ("sd15", "sd2", "ssd1b", "sdxl", "pictogram", "lcm")
WORDS = ("a", "cat", "dog", "photo", "of", "red", "apple", "on", "the", "moon")
BOS, EOS = "<|startoftext|>", "<|endoftext|>"

_LEVELS_SD = {
    "block_out_channels": (32, 32, 32, 32),
    "down_block_types": ("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
    "attention_head_dim": 2,
    "cross_attention_dim": 32,
}
_LEVELS_XL = {
    "block_out_channels": (32, 32, 32),
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "attention_head_dim": (2, 2, 2),
    "cross_attention_dim": 64,
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 8,
    "projection_class_embeddings_input_dim": 6 * 8 + 32,
}
_UNETS: dict[str, dict[str, Any]] = {
    "sd15": _LEVELS_SD,
    "lcm": _LEVELS_SD | {"time_cond_proj_dim": 256},
    "sd2": _LEVELS_SD | {"cross_attention_dim": 48, "use_linear_projection": True, "attention_head_dim": (2, 2, 2, 2)},
    "pictogram": _LEVELS_SD | {"cross_attention_dim": 160, "attention_head_dim": 4},
    "sdxl": _LEVELS_XL | {"transformer_layers_per_block": (1, 1, 2)},
    "ssd1b": _LEVELS_XL
    | {
        "mid_block_type": "UNetMidBlock2D",
        "transformer_layers_per_block": [1, [1, 1], [2, 1]],
        "reverse_transformer_layers_per_block": [[1, 1, 2], [1, 1, 1], 1],
    },
}
_TEXT_WIDTHS = {"sd15": 32, "lcm": 32, "sd2": 48, "pictogram": 160, "sdxl": 32, "ssd1b": 32}


def is_xl(kind: str) -> bool:
    """Does this kind have two text encoders?"""
    return kind in ("sdxl", "ssd1b")


def _seeded(build: Any, seed: int) -> Any:
    """Calls `build()` with torch's own seed, leaving the global generator as it was."""
    import torch

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return build().eval().requires_grad_(False)


def tiny_unet(kind: str = "sd15", *, seed: int = 0, **changes: Any) -> Any:
    """A random `UNet2DConditionModel` of this kind; `changes` override its config."""
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel

    settings = {"sample_size": 8, "layers_per_block": 2, "norm_num_groups": 8} | _UNETS[kind] | changes
    return _seeded(lambda: UNet2DConditionModel(**settings), seed)


def tiny_vae(*, seed: int = 1, scaling_factor: float = 0.18215, **changes: Any) -> Any:
    """A random `AutoencoderKL` of factor 8 with 4 latent channels."""
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL

    settings: dict[str, Any] = {
        "block_out_channels": (8, 8, 8, 8),
        "down_block_types": ("DownEncoderBlock2D",) * 4,
        "up_block_types": ("UpDecoderBlock2D",) * 4,
        "layers_per_block": 1,
        "norm_num_groups": 4,
        "latent_channels": 4,
        "sample_size": 64,
        "scaling_factor": scaling_factor,
    }
    return _seeded(lambda: AutoencoderKL(**(settings | changes)), seed)


def tiny_taesd(*, seed: int = 1) -> Any:
    """A random `AutoencoderTiny` of factor 8."""
    from diffusers.models.autoencoders.autoencoder_tiny import AutoencoderTiny

    return _seeded(
        lambda: AutoencoderTiny(
            encoder_block_out_channels=(8, 8, 8, 8),
            decoder_block_out_channels=(8, 8, 8, 8),
            num_encoder_blocks=(1, 1, 1, 1),
            num_decoder_blocks=(1, 1, 1, 1),
        ),
        seed,
    )


def tiny_text(kind: str = "sd15", *, second: bool = False, seed: int = 2) -> Any:
    """A random CLIP text encoder; `second` is SDXL's second one, with a projection."""
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    width, count = _TEXT_WIDTHS[kind], len(_vocabulary()[0])
    config = CLIPTextConfig(
        vocab_size=count,
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=3,
        num_attention_heads=2,
        projection_dim=32,
        max_position_embeddings=77,
        hidden_act="gelu" if second else "quick_gelu",
        bos_token_id=count - 2,
        eos_token_id=count - 1,
        pad_token_id=count - 1,
    )
    kind_of = CLIPTextModelWithProjection if second else CLIPTextModel
    return _seeded(lambda: kind_of(config), seed + int(second))


@lru_cache
def _vocabulary() -> tuple[dict[str, int], list[str]]:
    """(token -> id, merges): CLIP's order is bytes, bytes at a word's end, merges, start, end; "!" is 0."""
    from tokenizers.pre_tokenizers import ByteLevel

    letters = sorted(ByteLevel.alphabet())
    tokens = letters + [letter + "</w>" for letter in letters]
    merges: list[str] = []
    for word in WORDS:
        parts = [*word[:-1], word[-1] + "</w>"]
        while len(parts) > 1:
            pair = parts[-2] + " " + parts[-1]
            parts = [*parts[:-2], parts[-2] + parts[-1]]
            if pair not in merges:
                merges.append(pair)
                tokens.append(parts[-1])
    return {token: index for index, token in enumerate([*tokens, BOS, EOS])}, merges


def write_tokenizer(folder: Path, *, pad: str = EOS) -> Path:
    """Writes a CLIP tokenizer's three files into `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    vocabulary, merges = _vocabulary()
    settings = {
        "tokenizer_class": "CLIPTokenizer",
        "model_max_length": 77,
        "bos_token": BOS,
        "eos_token": EOS,
        "unk_token": EOS,
        "pad_token": pad,
    }
    (folder / "vocab.json").write_text(json.dumps(vocabulary, ensure_ascii=False), encoding="utf-8")
    (folder / "merges.txt").write_text("#version: 0.2\n" + "\n".join(merges) + "\n", encoding="utf-8")
    (folder / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")
    return folder


def noise_config(kind: str = "sd15") -> dict[str, Any]:
    """What the folder's scheduler/scheduler_config.json says."""
    return {
        "_class_name": "LCMScheduler" if kind == "lcm" else "DDIMScheduler",
        "beta_start": 0.00085,
        "beta_end": 0.012,
        "beta_schedule": "scaled_linear",
        "num_train_timesteps": 1000,
        "prediction_type": "v_prediction" if kind in ("sd2", "pictogram") else "epsilon",
        "clip_sample": False,
        "set_alpha_to_one": False,
        "steps_offset": 1,
    }


def _model_index(kind: str) -> dict[str, Any]:
    parts: dict[str, Any] = {
        "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", "AutoencoderKL"],
        "text_encoder": ["transformers", "CLIPTextModel"],
        "tokenizer": ["transformers", "CLIPTokenizer"],
        "scheduler": ["diffusers", noise_config(kind)["_class_name"]],
    }
    if is_xl(kind):
        parts["text_encoder_2"] = ["transformers", "CLIPTextModelWithProjection"]
        parts["tokenizer_2"] = ["transformers", "CLIPTokenizer"]
        return {"_class_name": "StableDiffusionXLPipeline", "force_zeros_for_empty_prompt": True} | parts
    absent = {"safety_checker": [None, None], "feature_extractor": [None, None], "image_encoder": [None, None]}
    return {"_class_name": "StableDiffusionPipeline", "requires_safety_checker": False} | parts | absent


def _write_folder(kind: str, folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    tiny_unet(kind).save_pretrained(folder / "unet")
    tiny_vae(scaling_factor=0.13025 if is_xl(kind) else 0.18215).save_pretrained(folder / "vae")
    tiny_text(kind).save_pretrained(folder / "text_encoder")
    write_tokenizer(folder / "tokenizer")
    if is_xl(kind):
        tiny_text(kind, second=True).save_pretrained(folder / "text_encoder_2")
        write_tokenizer(folder / "tokenizer_2", pad="!")
    (folder / "scheduler").mkdir(exist_ok=True)
    (folder / "scheduler" / "scheduler_config.json").write_text(json.dumps(noise_config(kind)), encoding="utf-8")
    (folder / "model_index.json").write_text(json.dumps(_model_index(kind)), encoding="utf-8")
    return folder


@lru_cache
def _shared_folder(kind: str) -> Path:
    root = Path(tempfile.mkdtemp(prefix="fewstep-tiny-"))
    atexit.register(shutil.rmtree, root, ignore_errors=True)
    return _write_folder(kind, root / f"tiny-{kind}")


def tiny_folder(kind: str = "sd15", *, into: Path | None = None) -> Path:
    """A diffusers folder with a random model: shared (do not write to it), or a fresh copy made at `into`."""
    if into is None:
        return _shared_folder(kind)
    shutil.copytree(_shared_folder(kind), into, dirs_exist_ok=True)
    return into


def tiny_model(kind: str = "sd15", **how: Any) -> Any:
    """A fresh `Model`, loaded by `load_model` from the shared folder; `how` are its keywords (device, dtype)."""
    from fewstep.checkpoints.load import load_model

    return load_model(tiny_folder(kind), **({"device": "cpu"} | how))
