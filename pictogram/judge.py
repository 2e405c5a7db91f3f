"""Train the judge of the evaluation: which concept and which style does a picture show?

    python -m pictogram.judge               # -> build/pictogram/judge and src/fewstep/assets/judge

It learns from the cut-outs directly (never from the generator or its autoencoder), with strong augmentation, and
without the pairs and artists that are held out. Its ceilings on real pictures are measured at the end and kept.
"""

from __future__ import annotations

import argparse
import copy
import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from rich.progress import track
from torch import Tensor, nn

from fewstep.evaluate.judge import Background, Judge, Labels, Network, Shape, default_folder, save_judge, to_input
from fewstep.evaluate.recognition import top
from fewstep.evaluate.score import rate
from pictogram import loop
from pictogram.concepts import (
    CEILING_STYLE,
    COLOURS,
    CONCEPTS,
    EXTRA_STYLE,
    PLACES,
    TRAIN_STYLES,
    background_held_out,
    style_held_out,
)
from pictogram.fetch import BUILD
from pictogram.scenes import (
    Cutouts,
    article,
    background_phrase,
    draw_background,
    load_cutouts,
    paint_background,
    paste,
    single,
    trained,
)

Pairs = list[tuple[str, str]]
SLUGS = tuple(CONCEPTS)


def labels() -> Labels:
    """Everything the judge and the fixed prompts need to know, from pictogram/concepts.py."""
    names = {slug: words[0] for slug, words in CONCEPTS.items()}
    grounds = {name: Background(background_phrase(name), COLOURS.get(name)) for name in (*COLOURS, *PLACES)}
    return Labels(
        concepts=tuple(names.values()),
        phrases=tuple(article(name) for name in names.values()),
        styles=TRAIN_STYLES,
        backgrounds=grounds,
        held_out_styles=tuple((names[s], style) for s in SLUGS for style in TRAIN_STYLES if style_held_out(s, style)),
        held_out_backgrounds=tuple((names[s], b) for s in SLUGS for b in grounds if background_held_out(s, b)),
    )


def practice_scene(cutouts: Cutouts, slug: str, style: str, rng: np.random.Generator) -> np.ndarray:
    """A single scene, placed and sized more freely than the generator's; now and then on any colour at all."""
    image = paint_background(draw_background(slug, rng), rng)
    if rng.random() < 0.15:
        image.paste(tuple(int(c) for c in rng.integers(0, 256, 3)), (0, 0, *image.size))
    x, y = 0.5 + rng.uniform(-0.08, 0.08, 2)
    paste(image, cutouts[f"{style}/{slug}"], x, y, rng.uniform(0.65, 0.95))
    return np.asarray(image)


def practice(cutouts: Cutouts, count: int, *, size_px: int, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """`count` scenes of the trained pairs in turn: uint8 (N, 3, size_px, size_px), concept and style numbers (N,)."""
    rng, pairs = np.random.default_rng(seed), trained()
    chosen = [pairs[i % len(pairs)] for i in range(count)]
    parts = []
    for at in track(range(0, count, 256), "composing scenes"):
        scenes = np.stack([practice_scene(cutouts, slug, style, rng) for slug, style in chosen[at : at + 256]])
        parts.append(((to_input(scenes, size_px) + 1) * 127.5).round().byte())
    concepts = torch.tensor([SLUGS.index(slug) for slug, _ in chosen])
    return torch.cat(parts), concepts, torch.tensor([TRAIN_STYLES.index(style) for _, style in chosen])


def uniform(shape: tuple[int, ...], low: float, high: float, generator: torch.Generator) -> Tensor:
    """Uniform random numbers."""
    return low + (high - low) * torch.rand(shape, generator=generator)


def move(x_BCHW: Tensor, generator: torch.Generator) -> Tensor:
    """Random turn, size, shift and mirror image."""
    b = len(x_BCHW)
    angle, scale = uniform((b,), -0.18, 0.18, generator), uniform((b,), 0.85, 1.2, generator)
    mirror = 1 - 2.0 * (torch.rand(b, generator=generator) < 0.5)
    cos, sin = angle.cos() * scale, angle.sin() * scale
    shift = uniform((b, 2, 1), -0.1, 0.1, generator)
    turn = torch.stack([torch.stack([cos * mirror, -sin], -1), torch.stack([sin * mirror, cos], -1)], 1)
    grid = F.affine_grid(torch.cat([turn, shift], -1), list(x_BCHW.shape), align_corners=False)
    return F.grid_sample(x_BCHW, grid, padding_mode="border", align_corners=False)


def tint(x_BCHW: Tensor, generator: torch.Generator) -> Tensor:
    """Random hue (a turn around grey of up to 15 degrees), saturation, contrast and brightness."""
    b = len(x_BCHW)
    angle = uniform((b,), -math.radians(15), math.radians(15), generator)
    axis = torch.full((3,), 1 / math.sqrt(3))
    cross = torch.linalg.cross(axis.expand(3, 3), torch.eye(3)).T
    flat = axis[:, None] * axis
    turn = angle.cos()[:, None, None] * (torch.eye(3) - flat) + flat + angle.sin()[:, None, None] * cross
    saturation = uniform((b, 1, 1), 0.6, 1.4, generator)
    y_BCHW = torch.einsum("bij,bjhw->bihw", saturation * turn + (1 - saturation) * flat, x_BCHW)
    contrast, brightness = uniform((b, 1, 1, 1), 0.7, 1.4, generator), uniform((b, 1, 1, 1), -0.15, 0.15, generator)
    return y_BCHW * contrast + brightness


def soften(x_BCHW: Tensor, generator: torch.Generator) -> Tensor:
    """As an autoencoder or too few steps leave a picture: partly blurred through a smaller size, then noisy."""
    b, _, side, _ = x_BCHW.shape
    small = int(torch.randint(side // 4, side * 7 // 8, (1,), generator=generator))
    blurred = F.interpolate(F.interpolate(x_BCHW, size=(small, small), mode="area"), size=(side, side), mode="bilinear")
    share = uniform((b, 1, 1, 1), 0, 1, generator) * (torch.rand(b, 1, 1, 1, generator=generator) < 0.6)
    fine = torch.randn(x_BCHW.shape, generator=generator) * uniform((b, 1, 1, 1), -0.12, 0.12, generator).clamp_min(0)
    coarse = torch.randn((b, 3, side // 8, side // 8), generator=generator) * uniform(
        (b, 1, 1, 1), -0.2, 0.2, generator
    ).clamp_min(0)
    return torch.lerp(x_BCHW, blurred, share) + fine + F.interpolate(coarse, size=(side, side), mode="bilinear")


def erase(x_BCHW: Tensor, generator: torch.Generator) -> Tensor:
    """A fifth of the pictures lose a rectangle."""
    b, _, side, _ = x_BCHW.shape
    at = torch.arange(side)
    middle, half = uniform((b, 2, 1), 0, side, generator), uniform((b, 2, 1), side / 16, side / 6, generator)
    inside = (at - middle).abs() < half
    hole = (inside[:, 0, :, None] & inside[:, 1, None, :])[:, None] & (
        torch.rand(b, 1, 1, 1, generator=generator) < 0.2
    )
    return torch.where(hole, x_BCHW.mean((2, 3), keepdim=True), x_BCHW)


def augment(pictures_BCHW: Tensor, generator: torch.Generator) -> Tensor:
    """uint8 pictures to the network's input, in [-1, 1], each changed at random."""
    x_BCHW = tint(move(pictures_BCHW.float() / 127.5 - 1, generator), generator)
    return erase(soften(x_BCHW, generator), generator).clamp(-1, 1).contiguous(memory_format=torch.channels_last)


def folded(network: Network, shape: Shape) -> Network:
    """The same function without normalisation layers."""
    plain = Network(shape, concepts=network.concepts.out_features, styles=network.styles.out_features)
    twin = copy.deepcopy(network).eval()
    for module in twin.modules():
        if isinstance(module, nn.Sequential) and len(module) == 2 and isinstance(module[1], nn.BatchNorm2d):
            module[0] = nn.utils.fusion.fuse_conv_bn_eval(module[0], module[1])
            module[1] = nn.Identity()
    plain.load_state_dict(twin.state_dict())
    return plain.eval()


def train(shape: Shape, *, steps: int, batch: int, count: int, lr: float, seed: int, folder: Path) -> Network:
    """Train on composed scenes; returns the network with its normalisation folded in."""
    torch.manual_seed(seed)
    pictures, concepts, styles = practice(load_cutouts(BUILD / "cutouts.npz"), count, size_px=shape.size_px, seed=seed)
    network = Network(shape, concepts=len(SLUGS), styles=len(TRAIN_STYLES), norm=nn.BatchNorm2d)
    network = network.to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(network.parameters(), lr=lr, weight_decay=0.02, fused=True)

    def step(i: int, generator: torch.Generator) -> float:
        for group in optimizer.param_groups:
            group["lr"] = lr * loop.cosine(i, steps, warm_up=min(100, steps // 10))
        which = torch.randint(len(pictures), (batch,), generator=generator)
        _, concept, style = network(augment(pictures[which], generator))
        loss = F.cross_entropy(concept, concepts[which], label_smoothing=0.1)
        loss = loss + 0.3 * F.cross_entropy(style, styles[which], label_smoothing=0.1)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return float(loss.detach())

    loop.run("judge", step, {"network": network, "optimizer": optimizer}, steps=steps, folder=folder, seed=seed)
    return folded(network, shape)


def real_scenes(cutouts: Cutouts, pairs: Pairs, *, seed: int, plain: bool = False) -> np.ndarray:
    """One scene of each pair as the generator's training set has them, uint8 (N, 128, 128, 3)."""
    rng = np.random.default_rng(seed)
    grounds = ["white" if plain else draw_background(slug, rng) for slug, _ in pairs]
    return np.stack(
        [np.asarray(single(cutouts, *pair, ground, rng)) for pair, ground in zip(pairs, grounds, strict=True)]
    )


def reading(judge: Judge, pictures: np.ndarray, pairs: Pairs) -> dict[str, Any]:
    """Recognition rates on real pictures of known pairs."""
    read = judge(pictures)
    wanted = np.array([SLUGS.index(slug) for slug, _ in pairs])
    found = {"top1": rate(top(read.concepts_NC, wanted)), "top5": rate(top(read.concepts_NC, wanted, k=5))}
    if all(style in TRAIN_STYLES for _, style in pairs):
        found["style"] = rate(top(read.styles_NS, np.array([TRAIN_STYLES.index(style) for _, style in pairs])))
    return found


def reconstructed(pictures: np.ndarray, folder: Path) -> np.ndarray:
    """What the generator's autoencoder makes of the pictures."""
    from diffusers import AutoencoderKL

    vae = AutoencoderKL.from_pretrained(folder)
    x_BCHW = torch.from_numpy(pictures).permute(0, 3, 1, 2).float() / 127.5 - 1
    with torch.inference_mode():
        y = torch.cat([vae.decode(vae.encode(part).latent_dist.mean).sample for part in x_BCHW.split(64)])
    return ((y.clamp(-1, 1) + 1) * 127.5).round().byte().permute(0, 2, 3, 1).numpy()


def ceilings(judge: Judge, cutouts: Cutouts, *, vae: Path) -> dict[str, Any]:
    """What the judge recognises in real pictures it has not seen: the most that a generator can score."""
    pairs = trained()
    sets = {
        "new scenes of trained pairs": pairs * 2,
        "held-out style pairs": [
            (slug, style) for slug in SLUGS for style in TRAIN_STYLES if style_held_out(slug, style)
        ],
        f"artist never seen: {EXTRA_STYLE}": [
            (slug, EXTRA_STYLE) for slug in SLUGS if f"{EXTRA_STYLE}/{slug}" in cutouts
        ],
        f"artist never seen: {CEILING_STYLE}": [
            (slug, CEILING_STYLE) for slug in SLUGS if f"{CEILING_STYLE}/{slug}" in cutouts
        ],
    }
    found = {name: reading(judge, real_scenes(cutouts, part, seed=9_001), part) for name, part in sets.items()}
    if (vae / "config.json").exists():
        rebuilt = reconstructed(real_scenes(cutouts, pairs, seed=9_001), vae)
        found["autoencoder's reconstructions of trained pairs"] = reading(judge, rebuilt, pairs)
    return found


def main() -> None:
    """Train, save twice, print the ceilings."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--count", type=int, default=12_000, help="scenes to compose")
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--build", type=Path, default=BUILD, help="where checkpoint, judge/ and model/vae are")
    parser.add_argument("--no-ship", action="store_true", help="leave src/fewstep/assets/judge as it is")
    args = parser.parse_args()
    shape = Shape()
    network = train(
        shape, steps=args.steps, batch=args.batch, count=args.count, lr=args.lr, seed=args.seed, folder=args.build
    )
    save_judge(network, args.build / "judge", shape=shape, labels=labels())
    measured = ceilings(
        Judge(args.build / "judge"), load_cutouts(BUILD / "cutouts.npz"), vae=args.build / "model" / "vae"
    )
    for folder in (args.build / "judge", *(() if args.no_ship else (default_folder(),))):
        save_judge(network, folder, shape=shape, labels=labels(), ceilings=measured)
    for name, found in measured.items():
        print(name, {key: f"{value['share']:.3f} of {value['count']}" for key, value in found.items()})


if __name__ == "__main__":
    main()
