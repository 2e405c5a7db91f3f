"""Train the autoencoder: `AutoencoderKL`, factor 8, four channels, on crops of composed scenes.

python -m pictogram.train_vae         # -> build/pictogram/model/vae
"""

import argparse
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from PIL import Image
from rich.progress import track

from pictogram import loop
from pictogram.fetch import BUILD
from pictogram.scenes import SIZE_PX, compose, load_cutouts, trained

SHAPE = dict(
    block_out_channels=(16, 32, 64, 128),
    layers_per_block=1,
    latent_channels=4,
    norm_num_groups=8,
    down_block_types=("DownEncoderBlock2D",) * 4,
    up_block_types=("UpDecoderBlock2D",) * 4,
    sample_size=SIZE_PX,
    scaling_factor=1.0,
)


def scenes_array(count: int, *, seed: int) -> torch.Tensor:
    """`count` scenes as uint8 (count, 3, SIZE_PX, SIZE_PX)."""
    cutouts, rng, pairs = load_cutouts(BUILD / "cutouts.npz"), np.random.default_rng(seed), trained()
    pictures = [np.asarray(compose(cutouts, rng, pairs).image) for _ in track(range(count), "composing scenes")]
    return torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2).contiguous()


def crops(images: torch.Tensor, batch: int, size_px: int, generator: torch.Generator) -> torch.Tensor:
    """Random crops, float in [-1, 1], (batch, 3, size_px, size_px)."""
    which = torch.randint(len(images), (batch,), generator=generator)
    at = torch.randint(SIZE_PX - size_px + 1, (batch, 2), generator=generator)
    cut = [images[i, :, y : y + size_px, x : x + size_px] for i, (y, x) in zip(which, at.tolist(), strict=True)]
    return torch.stack(cut).float() / 127.5 - 1


def edges(x_BCHW: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Horizontal and vertical differences."""
    return x_BCHW[..., 1:] - x_BCHW[..., :-1], x_BCHW[..., 1:, :] - x_BCHW[..., :-1, :]


def vae_loss(vae: AutoencoderKL, x_BCHW: torch.Tensor, *, colour: float, generator: torch.Generator) -> torch.Tensor:
    """L1 on pixels and edges, a little KL, and a colour anchor on the latents while training starts."""
    posterior = vae.encode(x_BCHW).latent_dist
    noise = torch.randn(posterior.mean.shape, generator=generator).to(x_BCHW.device)
    z = posterior.mean + posterior.std * noise
    y_BCHW = vae.decode(z).sample
    loss = (y_BCHW - x_BCHW).abs().mean() + 1e-5 * posterior.kl().mean() / z[0].numel()
    loss = loss + sum((a - b).abs().mean() for a, b in zip(edges(y_BCHW), edges(x_BCHW), strict=True))
    if colour:
        loss = loss + colour * F.mse_loss(posterior.mean[:, :3], 1.6 * F.avg_pool2d(x_BCHW, 8))
    return loss


@torch.no_grad()
def normalise(vae: AutoencoderKL, images: torch.Tensor) -> None:
    """Fold zero mean and unit deviation of each latent channel into the two 1x1 convolutions."""
    z = torch.cat([vae.encode(b.float() / 127.5 - 1).latent_dist.mean for b in images[:1024].split(64)])
    mean, std = z.mean((0, 2, 3)), z.std((0, 2, 3))
    quant, post = vae.quant_conv, vae.post_quant_conv
    quant.weight[:4] /= std[:, None, None, None]
    quant.bias[:4] = (quant.bias[:4] - mean) / std
    quant.bias[4:] -= 2 * std.log()
    post.bias += (post.weight[:, :, 0, 0] * mean).sum(1)
    post.weight *= std[None, :, None, None]


@torch.no_grad()
def sheet(vae: AutoencoderKL, images: torch.Tensor, path: Path) -> float:
    """Pictures above their reconstructions; returns the PSNR in dB."""
    x = images[:32].to(vae.device).float() / 127.5 - 1
    y = vae.decode(vae.encode(x).latent_dist.mean).sample.clamp(-1, 1)
    rows = torch.cat(
        [torch.cat(list(half), -1) for pair in zip(x.split(8), y.split(8), strict=True) for half in pair], 1
    )
    Image.fromarray(((rows + 1) * 127.5).round().byte().permute(1, 2, 0).cpu().numpy()).save(path)
    return float(10 * torch.log10(4 / F.mse_loss(x, y)))


def arguments() -> argparse.Namespace:
    """What the command line says."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=3600)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default=loop.best_device())
    return parser.parse_args()


def main() -> None:
    """Train, normalise, save."""
    args = arguments()
    torch.manual_seed(args.seed)
    images, held = scenes_array(6000, seed=args.seed), scenes_array(64, seed=args.seed + 1)
    vae = AutoencoderKL(**SHAPE).to(args.device, memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(vae.parameters(), lr=args.lr, betas=(0.9, 0.99), weight_decay=1e-4, fused=True)

    def step(i: int, generator: torch.Generator) -> float:
        for group in optimizer.param_groups:
            group["lr"] = args.lr * loop.cosine(i, args.steps, warm_up=100)
        late = i > 0.9 * args.steps  # whole pictures at the end, a quarter as many
        x = crops(images, args.batch // 4 if late else args.batch, SIZE_PX if late else 64, generator)
        x = x.to(args.device, memory_format=torch.channels_last)
        loss = vae_loss(vae, x, colour=0.5 * max(0.0, 1 - i / (0.3 * args.steps)), generator=generator)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(vae.parameters(), 1.0)
        optimizer.step()
        return float(loss.detach())

    def report(done: int) -> None:
        print(f"step {done}: held-out PSNR {sheet(vae, held, BUILD / 'vae.png'):.2f} dB", flush=True)

    loop.run(
        "vae",
        step,
        {"vae": vae, "optimizer": optimizer},
        steps=args.steps,
        folder=BUILD,
        seed=args.seed,
        at_checkpoint=report,
        notes={"batch": args.batch, "lr": args.lr},
    )
    vae.to("cpu")
    normalise(vae, images)
    report(args.steps)
    vae.to(memory_format=torch.contiguous_format).save_pretrained(BUILD / "model" / "vae")


if __name__ == "__main__":
    main()
