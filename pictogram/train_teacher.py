"""Train the teacher: text encoder and UNet together, from scratch, v-prediction on SD's scaled-linear schedule.

python -m pictogram.train_teacher     # -> build/pictogram/model, a diffusers folder
"""

import argparse
import copy
import json
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, UNet2DConditionModel
from rich.progress import track
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from fewstep.sampling.schedule import Schedule, add_noise, scaled_linear, target
from pictogram import loop
from pictogram.fetch import BUILD
from pictogram.scenes import SIZE_PX, compose, load_cutouts, trained
from pictogram.tokenizer import ENTRIES

MODEL = BUILD / "model"
SCHEDULE = Schedule(scaled_linear(), "v_prediction")
#: Of the running average: a few hundred steps. At 0.999 the average lagged visibly behind the model (docs/log.md).
EMA = 0.995
UNET = dict(
    sample_size=SIZE_PX // 8,
    in_channels=4,
    out_channels=4,
    block_out_channels=(48, 80, 112, 112),
    layers_per_block=2,
    cross_attention_dim=160,
    attention_head_dim=4,
    norm_num_groups=16,
    down_block_types=("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
    up_block_types=("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
)
TEXT = dict(
    vocab_size=ENTRIES,
    hidden_size=160,
    intermediate_size=320,
    num_hidden_layers=3,
    num_attention_heads=4,
    max_position_embeddings=77,
    projection_dim=160,
    hidden_act="quick_gelu",
    bos_token_id=ENTRIES - 2,
    eos_token_id=ENTRIES - 1,
    pad_token_id=ENTRIES - 1,
)


class Teacher(nn.Module):
    """Text encoder and UNet under one roof, so that one optimiser and one average see both."""

    def __init__(self, start: Path | None = None) -> None:
        """Random weights, or those of a diffusers folder."""
        super().__init__()
        if start is None:
            self.text, self.unet = CLIPTextModel(CLIPTextConfig(**TEXT)), UNet2DConditionModel(**UNET)
        else:
            self.text = CLIPTextModel.from_pretrained(start / "text_encoder", dtype=torch.float32)
            self.unet = UNet2DConditionModel.from_pretrained(start / "unet", torch_dtype=torch.float32)
        self.train().to(memory_format=torch.channels_last)

    def forward(self, z_BCHW: Tensor, timestep_B: Tensor, ids_BL: Tensor) -> Tensor:
        """v for each item, (B, 4, h, w)."""
        return self.unet(z_BCHW, timestep_B, self.text(ids_BL).last_hidden_state).sample


def tokens(captions: list[str]) -> Tensor:
    """Token ids, (N, 77)."""
    tokenizer = CLIPTokenizer.from_pretrained(MODEL / "tokenizer", local_files_only=True)
    assert len(tokenizer) == ENTRIES, "the tokenizer was not written by pictogram.tokenizer"
    return tokenizer(captions, padding="max_length", max_length=77, truncation=True, return_tensors="pt").input_ids


@torch.no_grad()
def latents(count: int, pairs: list[tuple[str, str]], *, seed: int, extras: float) -> tuple[Tensor, list[str]]:
    """`count` composed scenes as latents (count, 4, 16, 16), and their captions."""
    vae = AutoencoderKL.from_pretrained(MODEL / "vae").to(memory_format=torch.channels_last)
    cutouts, rng = load_cutouts(BUILD / "cutouts.npz"), np.random.default_rng(seed)
    pairs = [(slug, style) for slug, style in pairs if f"{style}/{slug}" in cutouts]
    parts, captions = [], []
    for _ in track(range(0, count, 16), "encoding scenes"):
        scenes = [compose(cutouts, rng, pairs, extras=extras) for _ in range(16)]
        x = torch.from_numpy(np.stack([np.asarray(s.image) for s in scenes])).permute(0, 3, 1, 2).float() / 127.5 - 1
        parts.append(vae.encode(x.contiguous(memory_format=torch.channels_last)).latent_dist.mean.contiguous())
        captions += [s.caption for s in scenes]
    return torch.cat(parts), captions


def cached_latents(
    name: str, count: int, pairs: list[tuple[str, str]], *, seed: int, extras: float = 0.2
) -> tuple[Tensor, Tensor]:
    """Latents and token ids, from disk where they are already there."""
    path = BUILD / f"{name}.pt"
    if not path.exists():
        z, captions = latents(count, pairs, seed=seed, extras=extras)
        loop.save_atomically({"z": z, "captions": captions}, path)
    saved = torch.load(path, weights_only=True)
    return saved["z"], tokens(saved["captions"])


@torch.no_grad()
def average(ema: nn.Module, model: nn.Module, decay: float) -> None:
    """ema <- decay * ema + (1 - decay) * model."""
    torch._foreach_lerp_(list(ema.parameters()), list(model.parameters()), 1 - decay)


def v_loss(model: Teacher, z0: Tensor, ids: Tensor, generator: torch.Generator) -> Tensor:
    """Mean squared error of v (Salimans and Ho 2022, appendix D), timesteps drawn with a density that rises with t.

    What a picture shows is settled at high noise, and a few-step student lives there: t = count * u ** 0.7.
    With sqrt(u) only 1 % of the draws lie below t = 100, and the student's last step reads the teacher there.
    """
    t = (SCHEDULE.count * torch.rand(len(z0), generator=generator).pow(0.7)).long().to(z0.device)
    noise = torch.randn(z0.shape, generator=generator).to(z0.device)
    z = add_noise(SCHEDULE, z0, noise, t).contiguous(memory_format=torch.channels_last)
    with loop.bf16_on_gpu(z0.device):
        v = model(z, t, ids)
    return F.mse_loss(v.float(), target(SCHEDULE, z0, noise, t))


def train(
    model: Teacher, z0: Tensor, ids: Tensor, options: argparse.Namespace, *, name: str, folder: Path = MODEL
) -> nn.Module:
    """Train with AdamW, cosine and a running average; returns the average, on the CPU.

    Options: steps, until, batch, lr, seed, device. Random numbers are drawn on the CPU, so they do not depend on it.
    """
    steps, batch, lr, device = options.steps, options.batch, options.lr, options.device
    ema = copy.deepcopy(model.to(device))
    z0, ids, empty = z0.to(device), ids.to(device), tokens([""]).to(device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr, betas=(0.9, 0.99), weight_decay=1e-2, fused=True)

    def step(i: int, generator: torch.Generator) -> float:
        for group in optimizer.param_groups:
            group["lr"] = lr * loop.cosine(i, steps, warm_up=200)
        which = torch.randint(len(z0), (batch,), generator=generator)
        drop = (torch.rand(batch, 1, generator=generator) < 0.1).to(device)
        loss = v_loss(model, z0[which], torch.where(drop, empty, ids[which]), generator)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        average(ema, model, min(EMA, (1 + i) / (10 + i)))
        return float(loss.detach())

    state = {"model": model, "ema": ema, "optimizer": optimizer}
    until = steps if options.until is None else options.until
    notes = {key: value for key, value in vars(options).items() if key not in ("seed", "device", "until", "start")}
    loop.run(
        name,
        step,
        state,
        steps=until,
        folder=BUILD,
        seed=options.seed,
        at_checkpoint=lambda _: save(ema, folder),
        notes=notes,
    )
    return ema.to("cpu")


def save(teacher: nn.Module, folder: Path) -> None:
    """Write unet, text encoder, schedule and index beside the autoencoder and the tokenizer."""
    teacher = copy.deepcopy(teacher).to("cpu", memory_format=torch.contiguous_format)
    teacher.unet.save_pretrained(folder / "unet")
    teacher.text.save_pretrained(folder / "text_encoder")
    write_index(folder)


def write_index(folder: Path) -> None:
    """model_index.json and scheduler_config.json in the layout diffusers reads."""
    index = {
        "_class_name": "StableDiffusionPipeline",
        "_diffusers_version": "0.42.1",
        "feature_extractor": [None, None],
        "requires_safety_checker": False,
        "safety_checker": [None, None],
        "scheduler": ["diffusers", "DDIMScheduler"],
        "text_encoder": ["transformers", "CLIPTextModel"],
        "tokenizer": ["transformers", "CLIPTokenizer"],
        "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", "AutoencoderKL"],
    }
    scheduler = {
        "_class_name": "DDIMScheduler",
        "num_train_timesteps": 1000,
        "beta_schedule": "scaled_linear",
        "beta_start": 0.00085,
        "beta_end": 0.012,
        "prediction_type": "v_prediction",
        "clip_sample": False,
        "set_alpha_to_one": False,
        "steps_offset": 1,
        "timestep_spacing": "trailing",
    }
    (folder / "scheduler").mkdir(parents=True, exist_ok=True)
    (folder / "model_index.json").write_text(json.dumps(index, indent=2) + "\n")
    (folder / "scheduler" / "scheduler_config.json").write_text(json.dumps(scheduler, indent=2) + "\n")


def main() -> None:
    """Train and save."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=3500, help="length of the learning-rate curve")
    parser.add_argument("--until", type=int, default=None, help="stop at this step (default: at the end)")
    parser.add_argument("--words", choices=("all", "everyday"), default="all")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--scenes", type=int, default=24_000)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default=loop.best_device())
    parser.add_argument("--start", type=Path, default=None, help="a diffusers folder to go on from (default: nothing)")
    args = parser.parse_args()
    torch.manual_seed(args.seed)
    name, extras = ("scenes", 0.2) if args.words == "all" else ("scenes-everyday", 0.12)
    z0, ids = cached_latents(name, args.scenes, trained(words=args.words), seed=args.seed + 10, extras=extras)
    ema = train(Teacher(args.start), z0, ids, args, name="teacher")
    save(ema, MODEL)


if __name__ == "__main__":
    main()
