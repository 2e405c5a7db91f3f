"""Train the tiny autoencoder: TAESD's layout (diffusers' `AutoencoderTiny`), taught what the full one does.

python -m pictogram.train_tiny        # -> build/pictogram/model/tiny_vae, after the full one, the teacher and the LoRA

Its decoder learns the full decoder's pictures, of scenes' latents and of those that the few-step model paints; its
encoder learns the full encoder's latents. So it may stand in for either half.
"""

import argparse
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderTiny
from PIL import Image
from rich.progress import track

import fewstep
from fewstep.export.onnx import export_graphs
from fewstep.pipeline import Pipeline
from pictogram import loop
from pictogram.fetch import BUILD
from pictogram.scenes import compose, load_cutouts, trained
from pictogram.ship import STRENGTH
from pictogram.train_vae import edges

WIDTH = 32
SHAPE = dict(
    encoder_block_out_channels=(WIDTH,) * 4,
    decoder_block_out_channels=(WIDTH,) * 4,
    num_encoder_blocks=(0, 1, 2, 3),
    num_decoder_blocks=(3, 2, 2, 0),
)
"""Few blocks at the picture's own size, where a block costs 64 times one among the latents."""

HELD = 64


def pairs(pipe: Pipeline, scenes: int, painted: int, *, seed: int) -> dict[str, np.ndarray]:
    """Scenes, their latents and what the full decoder makes of them; and latents that the model painted, likewise."""
    cutouts, rng, words = load_cutouts(BUILD / "cutouts.npz"), np.random.default_rng(seed), trained(words="everyday")
    images, latents, captions = [], [], []
    for _ in track(range(scenes), "composing and encoding scenes"):
        scene = compose(cutouts, rng, words)
        images.append(np.asarray(scene.image))
        latents.append(pipe.runner.encode(images[-1][None])[0])
        captions.append(scene.caption)
    for number in track(range(painted), "painting"):
        asked = fewstep.Request(captions[number % scenes], seed=seed + number, steps=1 + number % 4)
        latents.append([step.step.z for step in pipe.steps(asked)][-1][0])
    decoded = [pipe.runner.decode(z_CHW[None])[0] for z_CHW in track(latents, "decoding")]
    return {"images": np.stack(images), "latents": np.stack(latents), "decoded": np.stack(decoded)}


def cached_pairs(folder: Path, scenes: int, painted: int, *, seed: int) -> dict[str, torch.Tensor]:
    """The same, kept in a file: pictures uint8 [N, 3, SIZE_PX, SIZE_PX], latents [N, 4, 16, 16]."""
    path = folder / f"tiny-{scenes}-{painted}-{seed}.npz"
    if not path.exists():
        export_graphs(BUILD / "model")
        lora = BUILD / "lcm-lora.safetensors", STRENGTH
        pipe = fewstep.load(BUILD / "model", lora=lora, device="cpu")
        np.savez(path, **pairs(pipe, scenes, painted, seed=seed))
    with np.load(path) as found:
        arrays = {name: torch.from_numpy(found[name]) for name in found.files}
    return {name: x if name == "latents" else x.permute(0, 3, 1, 2).contiguous() for name, x in arrays.items()}


def tiny_loss(tiny: AutoencoderTiny, data: dict[str, torch.Tensor], which: torch.Tensor) -> torch.Tensor:
    """L1 on pixels and edges for the decoder; on latents for the encoder, where there is a scene to encode."""
    z_BCHW, y_BCHW = data["latents"][which], data["decoded"][which].float() / 127.5 - 1
    made = tiny.decode(z_BCHW.to(memory_format=torch.channels_last)).sample
    loss = (made - y_BCHW).abs().mean()
    loss = loss + sum((a - b).abs().mean() for a, b in zip(edges(made), edges(y_BCHW), strict=True))
    scenes = which[which < len(data["images"])]
    if len(scenes):
        x_BCHW = data["images"][scenes].float() / 127.5 - 1
        read = tiny.encode(x_BCHW.to(memory_format=torch.channels_last)).latents
        loss = loss + 0.5 * (read - data["latents"][scenes]).abs().mean()
    return loss


@torch.no_grad()
def report(tiny: AutoencoderTiny, held: dict[str, torch.Tensor], path: Path) -> dict[str, float]:
    """The full decoder's pictures above the tiny one's; distances of both halves on what was not trained."""
    made = torch.cat([tiny.decode(z).sample.clamp(-1, 1) for z in held["latents"].split(16)])
    full = held["decoded"].float() / 127.5 - 1
    count = len(held["images"])
    x = held["images"].float() / 127.5 - 1
    z = torch.cat([tiny.encode(part).latents for part in x.split(16)])
    rows = [
        torch.cat(list(half), -1) for half in (full[:8], made[:8], full[count : count + 8], made[count : count + 8])
    ]
    sheet = ((torch.cat(rows, 1) + 1) * 127.5).round().byte()
    Image.fromarray(sheet.permute(1, 2, 0).numpy()).save(path)

    def decibel(a: torch.Tensor, b: torch.Tensor) -> float:
        return round(float(10 * torch.log10(4 / F.mse_loss(a, b))), 2)

    return {
        "tiny to full, scenes, dB": decibel(made[:count], full[:count]),
        "tiny to full, painted, dB": decibel(made[count:], full[count:]),
        "tiny to scene, dB": decibel(made[:count], x),
        "full to scene, dB": decibel(full[:count], x),
        "encoder, rms of latents": round(float(F.mse_loss(z, held["latents"][:count]).sqrt()), 4),
    }


def arguments() -> argparse.Namespace:
    """What the command line says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=9000)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--scenes", type=int, default=5000)
    parser.add_argument("--painted", type=int, default=3000)
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


def main() -> None:
    """Train and save."""
    args = arguments()
    torch.manual_seed(args.seed)
    data = cached_pairs(BUILD, args.scenes, args.painted, seed=args.seed)
    held = cached_pairs(BUILD, HELD, HELD, seed=args.seed + 100_003)
    tiny = AutoencoderTiny(**SHAPE).to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(tiny.parameters(), lr=args.lr, betas=(0.9, 0.99), weight_decay=1e-4, fused=True)

    def step(i: int, generator: torch.Generator) -> float:
        for group in optimizer.param_groups:
            group["lr"] = args.lr * loop.cosine(i, args.steps, warm_up=100)
        loss = tiny_loss(tiny, data, torch.randint(len(data["latents"]), (args.batch,), generator=generator))
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(tiny.parameters(), 1.0)
        optimizer.step()
        return float(loss.detach())

    def say(done: int) -> None:
        print(f"step {done}: {report(tiny, held, BUILD / 'tiny.png')}", flush=True)

    notes = {"batch": args.batch, "lr": args.lr, "scenes": args.scenes, "painted": args.painted}
    parts = {"tiny": tiny, "optimizer": optimizer}
    loop.run("tiny-vae", step, parts, steps=args.steps, folder=BUILD, seed=args.seed, at_checkpoint=say, notes=notes)
    say(args.steps)
    tiny.to(memory_format=torch.contiguous_format).save_pretrained(BUILD / "model" / "tiny_vae")


if __name__ == "__main__":
    main()
