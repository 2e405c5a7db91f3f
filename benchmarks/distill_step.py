"""Race (P7): one LCM-LoRA training step of fewstep against what the diffusers script does in one, with random weights.

    python benchmarks/distill_step.py [--model mini|sd15] [--size 128] [--batch 8] [--precision bfloat16]
        [--script-precision float32] [--compile] [--rounds 5] [--threads 2]

The peer re-states the step of diffusers' LCM-LoRA script for Stable Diffusion (webdataset version) from its documented
behaviour: a second UNet as teacher, called once for each of the two prompts; the student with peft's LoRA layers of the
same rank on the same layers; a target pass without gradient; VAE and text encoder inside the loop; Huber loss,
gradient clipping at 1, AdamW. It is timed with the encoders ("script"), with them left out of the count ("script,
cached"), and so with --gradient_checkpointing too, as its README calls it ("script, cached, checkpointing"). Ours reads
latents and text from a cache, as training does, and recomputes nothing. In bfloat16 the peer does what the script does
under that name: both UNets and the text encoder in bfloat16, LoRA layers in float32 under autocast, and the autoencoder
in float32.

Time: all by turns in one process. Memory: the peak resident set of each alone, in a process of its own; the
figure "libraries" is that of a process that has only imported them, and is counted in the others.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from race import by_turns, report

from fewstep.device import keep_memory
from fewstep.distill.objectives import objective_named
from fewstep.distill.recipes import Recipe, make_recipe
from fewstep.distill.students import DTYPES, LoraStudent, networks
from fewstep.distill.terms import Draw, distance_named
from fewstep.models.lora_layers import TARGETS
from fewstep.models.published import PUBLISHED
from fewstep.models.text import Text
from fewstep.sampling.schedule import Schedule, scaled_linear

OURS, SCRIPT, CACHED, LIBRARIES = "fewstep", "script", "script, cached", "libraries"
DOCUMENTED = "script, cached, checkpointing"
W, HUBER_C = 7.5, 1e-3
Step = Callable[[], float]

UNETS: dict[str, dict[str, Any]] = {
    "mini": {"cross_attention_dim": 160, "attention_head_dim": 4, "norm_num_groups": 16},
    "sd15": dict(PUBLISHED["stable-diffusion-v1-5/stable-diffusion-v1-5"]),
}
UNETS["mini"]["block_out_channels"] = (48, 80, 112, 112)
TEXTS = {"mini": (160, 320, 3, 4), "sd15": (768, 3072, 12, 12)}
RANKS = {"mini": 12, "sd15": 64}


def seeded(build: Callable[[], Any]) -> Any:
    """What `build` makes from seed 0, in eval mode, frozen."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return build().eval().requires_grad_(False)


def unet_of(args: argparse.Namespace) -> Any:
    """A UNet of random weights, the same each time."""
    from diffusers import UNet2DConditionModel

    return seeded(lambda: UNet2DConditionModel.from_config(UNETS[args.model]))


def encoders_of(args: argparse.Namespace) -> tuple[Any, Any]:
    """Stable Diffusion's autoencoder, as the script has it, and a CLIP text encoder, of random weights."""
    from diffusers import AutoencoderKL
    from transformers import CLIPTextConfig, CLIPTextModel

    width, inner, layers, heads = TEXTS[args.model]
    config = CLIPTextConfig(
        hidden_size=width, intermediate_size=inner, num_hidden_layers=layers, num_attention_heads=heads
    )
    blocks = {"down_block_types": ("DownEncoderBlock2D",) * 4, "up_block_types": ("UpDecoderBlock2D",) * 4}
    vae = seeded(
        lambda: AutoencoderKL(**blocks, block_out_channels=(128, 256, 512, 512), layers_per_block=2, latent_channels=4)
    )
    return vae, seeded(lambda: CLIPTextModel(config))


def inputs(args: argparse.Namespace) -> dict[str, torch.Tensor]:
    """One batch, the same for all: latents, noise, grid index, text, pixels and tokens."""
    generator = torch.Generator().manual_seed(1)
    side, width = args.size // 8, TEXTS[args.model][0]
    shapes = {
        "z0": (args.batch, 4, side, side),
        "noise": (args.batch, 4, side, side),
        "text": (args.batch, 77, width),
        "empty": (1, 77, width),
        "pixels": (args.batch, 3, args.size, args.size),
    }
    found = {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    found["tokens"] = torch.randint(1000, (args.batch, 77), generator=generator)
    found["index"] = torch.randint(50, (args.batch,), generator=generator)
    return found


def ours(args: argparse.Namespace) -> Step:
    """fewstep's step: student, objective, clipping and optimiser as the trainer puts them together."""
    from fewstep.distill.times import Times, grid_pair
    from fewstep.distill.trainer import clip_gradients

    recipe = recipe_of(args)
    student, batch = LoraStudent(unet_of(args), recipe, size=(args.size, args.size)), inputs(args)
    optimiser = torch.optim.AdamW(student.groups[0], lr=1e-4, weight_decay=0.0, fused=True)
    t_B, t_next_B = grid_pair(batch["index"], 50)
    draw = Draw(
        batch["z0"], batch["noise"], batch["noise"], Times(t_B, t_next_B, t_B * 0), torch.full((args.batch,), W)
    )
    schedule, distance = Schedule(scaled_linear()), distance_named("huber", huber_c=HUBER_C)

    def step() -> float:
        optimiser.zero_grad(set_to_none=True)
        found = networks(student, Text(batch["text"]), Text(batch["empty"]), w_B=draw.w_B, guided=True)
        loss = objective_named("lcm").loss(found, schedule, draw, distance=distance)["consistency"].mean()
        loss.backward()
        clip_gradients(student.groups[0], recipe.clip)
        optimiser.step()
        return float(loss.detach())

    return step


def recipe_of(args: argparse.Namespace) -> Recipe:
    """The race's recipe."""
    rank = RANKS[args.model]
    return make_recipe(
        {
            "rank": rank,
            "alpha": rank,
            "batch": args.batch,
            "w_min": W,
            "w_max": W,
            "precision": args.precision,
            "compile": args.compile,
        }
    )


def theirs(args: argparse.Namespace, *, encode: bool = True) -> Callable[..., float]:
    """The script's step, told whether to encode and to recompute; without `encode` no encoders are in memory at all."""
    from peft import LoraConfig, get_peft_model

    dtype = DTYPES[args.script_precision or args.precision]
    teacher, base, rank = unet_of(args), unet_of(args), RANKS[args.model]
    with torch.random.fork_rng(devices=[]):
        student = get_peft_model(base.to(dtype), LoraConfig(r=rank, lora_alpha=rank, target_modules=list(TARGETS)))
    student.train(), teacher.to(dtype)
    encoders, batch = encoders_of(args) if encode else None, inputs(args)
    if encoders is not None:
        encoders[1].to(dtype)
    learnt = [value for value in student.parameters() if value.requires_grad]
    for value in learnt:
        value.data = value.data.float()
    optimiser = torch.optim.AdamW(learnt, lr=1e-4, weight_decay=0.0)

    def step(encoding: bool, checkpointing: bool = False) -> float:
        unet = student.get_base_model()
        unet.enable_gradient_checkpointing() if checkpointing else unet.disable_gradient_checkpointing()
        z0, text = encoded(encoders, batch) if encoders and encoding else (batch["z0"], batch["text"])
        with torch.autocast("cpu", dtype, enabled=dtype is not torch.float32):
            loss = script_loss(student, teacher, z0, text.to(dtype), batch)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(learnt, 1.0)
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)
        return float(loss.detach())

    return step


def script_loss(
    student: Any, teacher: Any, z0: torch.Tensor, text: torch.Tensor, batch: dict[str, torch.Tensor]
) -> torch.Tensor:
    """The script's loss: four passes of a UNet, one of them with gradient."""
    alphas, sigmas = (torch.tensor(values) for values in zip(*map(split, scaled_linear()), strict=True))

    def at(table: torch.Tensor, t_B: torch.Tensor) -> torch.Tensor:
        return table[t_B].view(-1, 1, 1, 1)

    def landed(eps_BCHW: torch.Tensor, z_BCHW: torch.Tensor, t_B: torch.Tensor) -> torch.Tensor:
        tau = 10.0 * t_B.view(-1, 1, 1, 1)
        clean = (z_BCHW - at(sigmas, t_B) * eps_BCHW) / at(alphas, t_B)
        return 0.25 / (tau**2 + 0.25) * z_BCHW + tau / (tau**2 + 0.25) ** 0.5 * clean

    t_B = batch["index"] * 20 + 19
    t_next_B = (t_B - 20).clamp(min=0)
    z_BCHW = at(alphas, t_B) * z0 + at(sigmas, t_B) * batch["noise"]
    predicted = landed(student(z_BCHW, t_B, encoder_hidden_states=text).sample, z_BCHW, t_B)
    with torch.no_grad():
        with_text = teacher(z_BCHW, t_B, encoder_hidden_states=text).sample
        empty = batch["empty"].to(text).expand(len(z0), -1, -1)
        eps = with_text + W * (with_text - teacher(z_BCHW, t_B, encoder_hidden_states=empty).sample)
        clean = (z_BCHW - at(sigmas, t_B) * eps) / at(alphas, t_B)
        jumped = at(alphas, t_next_B) * clean + at(sigmas, t_next_B) * eps
        target = landed(student(jumped, t_next_B, encoder_hidden_states=text).sample, jumped, t_next_B)
    return (((predicted - target) ** 2 + HUBER_C**2).sqrt() - HUBER_C).mean()


def split(abar: float) -> tuple[float, float]:
    """(alpha, sigma) of abar."""
    return abar**0.5, (1 - abar) ** 0.5


def encoded(encoders: tuple[Any, Any], batch: dict[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    """The batch through autoencoder and text encoder: the work the script repeats every time a picture is seen."""
    vae, text = encoders
    with torch.no_grad():
        z0 = vae.encode(batch["pixels"]).latent_dist.sample() * vae.config.scaling_factor
        return z0, text(batch["tokens"]).last_hidden_state


def only(name: str, args: argparse.Namespace) -> Step:
    """One contestant by name, with nothing of the others in memory."""
    if name == LIBRARIES:
        import diffusers  # noqa: F401
        import peft  # noqa: F401

        return lambda: 0.0
    if name == OURS:
        return ours(args)
    return partial(theirs(args, encode=name == SCRIPT), name == SCRIPT, name == DOCUMENTED)


def alone(name: str, argv: list[str]) -> float:
    """Peak resident memory, in MB, of two steps in a process of its own."""
    command = [sys.executable, __file__, *argv, "--alone", name]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return float(json.loads(done.stdout.splitlines()[-1]))


def parsed() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=UNETS, default="mini", help="mini is pictogram's UNet")
    parser.add_argument("--size", type=int, default=128, help="of the pictures, in pixels")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--precision", choices=DTYPES, default="float32", help="number format of ours")
    parser.add_argument("--script-precision", choices=DTYPES, help="of the script; the same unless said")
    parser.add_argument("--compile", action="store_true", help="ours by torch.compile, which needs a C++ compiler")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, help="of PyTorch")
    parser.add_argument("--alone", help=argparse.SUPPRESS)
    return parser.parse_args()


def main() -> None:
    """Memory first, each alone; then the race."""
    args, argv = parsed(), sys.argv[1:]
    if args.threads is not None:
        torch.set_num_threads(args.threads)
    keep_memory()  # as `fewstep distill` does; the others have it too
    if args.alone:
        step = only(args.alone, args)
        step(), step()
        print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1024 if sys.platform != "darwin" else 1024**2))
        return
    peak_mb = {name: round(alone(name, argv)) for name in (LIBRARIES, OURS, CACHED, DOCUMENTED, SCRIPT)}
    script = theirs(args)
    runs = {OURS: ours(args), CACHED: partial(script, False), DOCUMENTED: partial(script, False, True)}
    runs[SCRIPT] = partial(script, True)
    first = {name: run() for name, run in runs.items()}  # before any weight has moved: the losses must be equal
    print(f"peak memory, MB: {peak_mb}\nloss of the first step: {first}")
    seconds = by_turns(runs, rounds=args.rounds, warm_up=0)
    facts = {
        "model": args.model,
        "size": args.size,
        "batch": args.batch,
        "precision": args.precision,
        "script_precision": args.script_precision or args.precision,
        "compile": args.compile,
        "threads": torch.get_num_threads(),
    }
    above = {name: value - peak_mb[LIBRARIES] for name, value in peak_mb.items() if name != LIBRARIES}
    facts["memory_above_libraries"] = {name: round(above[OURS] / value, 2) for name, value in above.items()}
    same = abs(first[OURS] - first[CACHED]) <= (1e-3 if args.precision == "float32" else 3e-2) * abs(first[CACHED])
    report(seconds, ours=OURS, benchmark="distill_step", **facts, same=same, peak_mb=peak_mb)


if __name__ == "__main__":
    main()
