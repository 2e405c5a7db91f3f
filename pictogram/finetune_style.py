"""Fine-tune the teacher to one further style, as a user would: the base of the "universal accelerator" test.

    python -m pictogram.finetune_style    # -> build/pictogram/style-model, a diffusers folder

Neither the distillation nor the judge ever sees this style.
"""

import argparse
import shutil

import torch

from pictogram import loop
from pictogram.concepts import EXTRA_STYLE
from pictogram.fetch import BUILD
from pictogram.scenes import trained
from pictogram.train_teacher import MODEL, Teacher, cached_latents, save, train


def main() -> None:
    """Train on the extra style alone, from the teacher's weights."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--until", type=int, default=None)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--scenes", type=int, default=4000)
    parser.add_argument("--lr", type=float, default=4e-4)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default=loop.best_device())
    args = parser.parse_args()
    torch.manual_seed(args.seed)
    z0, ids = cached_latents(
        "style-scenes", args.scenes, trained((EXTRA_STYLE,), words="everyday"), seed=args.seed + 20
    )
    folder = BUILD / "style-model"
    for part in ("vae", "tokenizer"):
        shutil.copytree(MODEL / part, folder / part, dirs_exist_ok=True)
    ema = train(Teacher(MODEL), z0, ids, args, name="style", folder=folder)
    save(ema, folder)


if __name__ == "__main__":
    main()
