"""Random weights in the true shapes of Stable Diffusion 1.5 and SDXL, as diffusers folders in a cache, fp16 on disk.

    python benchmarks/weights.py sd15 [--vae full] [--small]

Times do not depend on what the weights say, so nothing has to be downloaded. `small` has the same layers with 32 to 64
channels, to see that a script runs. The autoencoder is tiny (`AutoencoderTiny`, 1.2 M weights in its decoder) or full
(`AutoencoderKL`, 50 M).
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from fewstep.checkpoints.vocabulary import clip_merges, tokenizer_files, tokenizer_of
from fewstep.models.published import PUBLISHED

KINDS = ("sd15", "sdxl")
VAES = ("tiny", "full")
UNETS = {
    "sd15": PUBLISHED["stable-diffusion-v1-5/stable-diffusion-v1-5"],
    "sdxl": PUBLISHED["stabilityai/stable-diffusion-xl-base-1.0"],
}
SMALL = {
    "sd15": {"block_out_channels": (32, 32, 64, 64), "cross_attention_dim": 64, "sample_size": 8},
    "sdxl": {"block_out_channels": (64, 64, 64), "attention_head_dim": (1, 1, 1), "cross_attention_dim": 192}
    | {"transformer_layers_per_block": (1, 1, 2), "projection_class_embeddings_input_dim": 1664, "sample_size": 8},
}
#: Width, inner width, layers, heads, activation, width of the projection (0: none) of the text encoders.
TEXTS = {
    "sd15": [(768, 3072, 12, 12, "quick_gelu", 0)],
    "sdxl": [(768, 3072, 12, 12, "quick_gelu", 0), (1280, 5120, 32, 20, "gelu", 1280)],
}
SMALL_TEXTS = {
    "sd15": [(64, 64, 3, 1, "quick_gelu", 0)],
    "sdxl": [(64, 64, 3, 1, "quick_gelu", 0), (128, 128, 3, 2, "gelu", 128)],
}
SCHEDULER = {
    **{"_class_name": "LCMScheduler", "beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"},
    **{"num_train_timesteps": 1000, "original_inference_steps": 50, "prediction_type": "epsilon"},
    **{"clip_sample": False, "set_alpha_to_one": True, "steps_offset": 1},
}
SAMPLING = {"sampler": "lcm", "steps": 4, "guidance": 1.0, "table": "linspace-lcm", "origin_steps": 50}


def cache() -> Path:
    """Where what is dear to make is kept: $XDG_CACHE_HOME/fewstep-benchmarks."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "fewstep-benchmarks"


def random_folder(kind: str, *, vae: str = "tiny", small: bool = False, root: Path | None = None) -> Path:
    """A diffusers folder with random weights, made where it is not there yet; the second autoencoder's folder holds
    the first one's other parts by hard links.
    """
    root = root or cache()
    folder = root / "-".join([kind, vae, *(["small"] if small else [])])
    with made(folder) as fresh:
        if fresh is not None:
            write_folder(fresh, kind, vae=vae, small=small, like=folder.with_name(folder.name.replace(vae, other(vae))))
    return folder


def other(vae: str) -> str:
    """The other autoencoder."""
    return VAES[1 - VAES.index(vae)]


@contextmanager
def made(folder: Path) -> Iterator[Path | None]:
    """A folder to fill, which takes its name when it is whole; None where it is there."""
    if folder.is_dir():
        yield None
        return
    fresh = folder.with_name(f"{folder.name}.{os.getpid()}")
    fresh.mkdir(parents=True)
    try:
        yield fresh
        fresh.rename(folder)
    finally:
        shutil.rmtree(fresh, ignore_errors=True)


def write_folder(folder: Path, kind: str, *, vae: str, small: bool, like: Path) -> None:
    """All parts; those that `like` has are its own."""
    parts: dict[str, Callable[[], Any]] = {"unet": lambda: unet(kind, small=small)}
    for index, settings in enumerate((SMALL_TEXTS if small else TEXTS)[kind]):
        parts["text_encoder" + "_2" * index] = lambda settings=settings: text_encoder(*settings)
    for name, build in parts.items():
        if like.is_dir():
            shutil.copytree(like / name, folder / name, copy_function=os.link)
        else:
            seeded(build).half().save_pretrained(folder / name)
    autoencoder = tiny_vae if vae == "tiny" else full_vae
    seeded(lambda: autoencoder(kind, small=small)).half().save_pretrained(folder / "vae")
    tokenizers = ["tokenizer" + "_2" * index for index in range(len(TEXTS[kind]))]
    for name, pad in zip(tokenizers, ("<|endoftext|>", "!"), strict=False):
        (folder / name).mkdir()
        for file, text in (tokenizer_files(tokenizer_of(clip_merges(), pad=pad)) or {}).items():
            (folder / name / file).write_text(text, encoding="utf-8")
    (folder / "scheduler").mkdir()
    write_json(folder / "scheduler" / "scheduler_config.json", SCHEDULER)
    write_json(folder / "fewstep.json", SAMPLING)
    write_json(folder / "model_index.json", model_index(kind, vae))


def write_json(path: Path, found: Any) -> None:
    """Readable."""
    path.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


def seeded(build: Callable[[], Any]) -> Any:
    """What `build` makes from seed 0, in eval mode, frozen."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return build().eval().requires_grad_(False)


def unet(kind: str, *, small: bool) -> Any:
    """Of the published shape."""
    from diffusers import UNet2DConditionModel

    return UNet2DConditionModel.from_config(dict(UNETS[kind]) | (SMALL[kind] if small else {}))


def full_vae(kind: str, *, small: bool) -> Any:
    """Stable Diffusion's autoencoder."""
    from diffusers import AutoencoderKL

    return AutoencoderKL(
        block_out_channels=(32, 32, 32, 32) if small else (128, 256, 512, 512),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        layers_per_block=2,
        latent_channels=4,
        sample_size=512,
        scaling_factor=0.13025 if kind == "sdxl" else 0.18215,
    )


def tiny_vae(kind: str, *, small: bool) -> Any:
    """TAESD's shape."""
    from diffusers import AutoencoderTiny

    widths = (16,) * 4 if small else (64,) * 4
    return AutoencoderTiny(encoder_block_out_channels=widths, decoder_block_out_channels=widths)


def text_encoder(width: int, inner: int, layers: int, heads: int, activation: str, projection: int) -> Any:
    """A CLIP text encoder."""
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    config = CLIPTextConfig(
        hidden_size=width,
        intermediate_size=inner,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        hidden_act=activation,
        projection_dim=projection or width,
        bos_token_id=49406,
        eos_token_id=49407,
        pad_token_id=1,
    )
    return (CLIPTextModelWithProjection if projection else CLIPTextModel)(config)


def model_index(kind: str, vae: str) -> dict[str, Any]:
    """What diffusers' pipelines are told of the parts."""
    parts: dict[str, Any] = {
        "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", "AutoencoderTiny" if vae == "tiny" else "AutoencoderKL"],
        "text_encoder": ["transformers", "CLIPTextModel"],
        "tokenizer": ["transformers", "CLIPTokenizer"],
        "scheduler": ["diffusers", "LCMScheduler"],
    }
    if kind == "sdxl":
        parts["text_encoder_2"] = ["transformers", "CLIPTextModelWithProjection"]
        parts["tokenizer_2"] = ["transformers", "CLIPTokenizer"]
        return {"_class_name": "StableDiffusionXLPipeline", "force_zeros_for_empty_prompt": True} | parts
    absent = {"safety_checker": [None, None], "feature_extractor": [None, None], "image_encoder": [None, None]}
    return {"_class_name": "StableDiffusionPipeline", "requires_safety_checker": False} | parts | absent


def main() -> None:
    """Make one, and say where it is."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kind", choices=KINDS)
    parser.add_argument("--vae", choices=VAES, default="tiny")
    parser.add_argument("--small", action="store_true")
    args = parser.parse_args()
    print(random_folder(args.kind, vae=args.vae, small=args.small))


if __name__ == "__main__":
    main()
