"""Race: a warm few-step picture end to end (text, network, decoding), fewstep against diffusers' own pipeline.

    python benchmarks/generate_warm.py [--model FOLDER] [--lora FILE] [--steps 4] [--rounds 20]

Both run in this process, by turns, from the same weights, seed and noise; the pictures must agree.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from race import by_turns, report

import fewstep
from fewstep.checkpoints.load import assets_path

Draw = Callable[[], Image.Image]


def ours(args: argparse.Namespace) -> Draw:
    """fewstep, at its defaults."""
    pipe = fewstep.load(args.model, lora=args.lora, device=args.device, dtype=args.dtype)
    return lambda: pipe(args.prompt, steps=args.steps, seed=args.seed, guidance=1.0, sampler="lcm")


def theirs(args: argparse.Namespace) -> Draw:
    """diffusers, as its documentation shows for an LCM-LoRA."""
    from diffusers import LCMScheduler, StableDiffusionPipeline

    pipe = StableDiffusionPipeline.from_pretrained(
        args.model, torch_dtype=getattr(torch, args.dtype), safety_checker=None
    )
    pipe.scheduler = LCMScheduler.from_config(pipe.scheduler.config)
    if args.lora is not None:
        pipe.load_lora_weights(args.lora.parent, weight_name=args.lora.name)
        if args.fuse:
            pipe.fuse_lora()
    pipe.to(args.device).set_progress_bar_config(disable=True)

    def draw() -> Image.Image:
        generator = torch.Generator().manual_seed(args.seed)
        return pipe(args.prompt, num_inference_steps=args.steps, guidance_scale=1.0, generator=generator).images[0]

    return draw


def difference(a: Image.Image, b: Image.Image) -> dict[str, float]:
    """Largest and mean absolute difference, 0 to 255."""
    delta = np.abs(np.asarray(a, np.int16) - np.asarray(b, np.int16))
    return {"largest": float(delta.max()), "mean": round(float(delta.mean()), 3)}


def parsed() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--model", type=Path, default=assets_path(), help="diffusers folder (default: the embedded model)"
    )
    parser.add_argument("--lora", type=Path, help="default: lcm-lora.safetensors in the model's folder")
    parser.add_argument("--prompt", default="a fox, 3d on a blue background")
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--threads", type=int, help="of PyTorch")
    parser.add_argument(
        "--fuse", action="store_true", help="let diffusers fuse the LoRA, which its documentation does not"
    )
    parser.add_argument("--tolerance", type=float, default=1.0, help="mean difference allowed, of 255")
    args = parser.parse_args()
    if args.lora is None and (args.model / "lcm-lora.safetensors").exists():
        args.lora = args.model / "lcm-lora.safetensors"
    return args


def main() -> int:
    """Check that the pictures agree, then race; 1 if they do not."""
    args = parsed()
    if args.threads is not None:
        torch.set_num_threads(args.threads)
    contestants = {"fewstep": ours(args), "diffusers": theirs(args)}
    found = difference(contestants["fewstep"](), contestants["diffusers"]())
    seconds = by_turns(contestants, rounds=args.rounds)
    agree = found["mean"] <= args.tolerance
    print(
        f"pictures {'agree' if agree else 'DIFFER'}: mean difference {found['mean']}, largest {found['largest']} of 255"
    )
    facts = {"difference": found, "agree": agree, "steps": args.steps, "device": args.device, "dtype": args.dtype}
    report(
        seconds,
        ours="fewstep",
        benchmark="generate_warm",
        threads=torch.get_num_threads(),
        torch=torch.__version__,
        **facts,
    )
    return 0 if agree else 1


if __name__ == "__main__":
    sys.exit(main())
