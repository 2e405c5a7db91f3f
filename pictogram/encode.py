"""Encode composed scenes with the finished teacher's own encoders into the cache that distillation reads.

python -m pictogram.encode            # -> build/pictogram/cache
"""

import argparse
from collections.abc import Iterator

import numpy as np
from PIL import Image
from rich.progress import track

from fewstep.checkpoints.load import load_model
from fewstep.data.latents import write_cache
from pictogram.fetch import BUILD
from pictogram.scenes import compose, load_cutouts, trained

SHARD = 1024


def samples(count: int, *, words: str, seed: int) -> Iterator[tuple[Image.Image, str]]:
    """`count` captioned scenes, the same for a seed."""
    cutouts, rng, pairs = load_cutouts(BUILD / "cutouts.npz"), np.random.default_rng(seed), trained(words=words)
    for _ in range(count):
        scene = compose(cutouts, rng, pairs)
        yield scene.image, scene.caption


def main() -> None:
    """Write the cache."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--scenes", type=int, default=12 * SHARD)
    parser.add_argument("--words", choices=("all", "everyday"), default="everyday")
    parser.add_argument("--seed", type=int, default=30)
    args = parser.parse_args()
    shards = write_cache(
        BUILD / "cache",
        load_model(BUILD / "model"),
        samples(args.scenes, words=args.words, seed=args.seed),
        shard_size=SHARD,
        batch=64,
        moments=False,
    )
    for _ in track(shards, "encoding scenes", total=args.scenes // SHARD):
        pass


if __name__ == "__main__":
    main()
