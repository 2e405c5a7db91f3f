"""Race (P5): what a picture costs beside its network, fewstep against diffusers' pipeline, with a network that does
nothing.

    python benchmarks/overhead.py [--steps 1 4 8] [--size 128] [--rounds 100]

The UNet answers with the latents it was given, at once. loop: from noise to the last latents, text encoded beforehand:
sampler, Denoiser, noise. picture: a whole call, from the request to a picture with its settings, where text encoder and
decoder do nothing either. A step's share is the slope between the fewest and the most steps.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from contestants import Job, loaded, pipeline
from race import by_turns, figure, keep, race

import fewstep
from fewstep.denoising import begin
from fewstep.sampling.sampler import sample

PROMPT, SEED = "a red apple, 3d", 7
LIBRARIES = {"onnx": "fewstep, numpy", "eager": "fewstep, torch", "diffusers": "diffusers"}
Draw = Callable[[], Any]


def pipes() -> dict[str, Any]:
    """fewstep on numpy arrays and on torch tensors, networks taken out, and diffusers' pipeline likewise."""
    light, torched, other = fewstep.load(), loaded("eager", Job(None)), pipeline(Job(None), fused=True)
    light.model.unet = lambda z_BCHW, *_, **__: z_BCHW
    for unet in (torched.model.unet, other.unet):
        unet.forward = lambda z_BCHW, *_, **__: (z_BCHW,)
    return {"onnx": light, "eager": torched, "diffusers": other}


def loop(pipe: Any, steps: int, size: int) -> Draw:
    """Ours from noise to latents."""
    plan = pipe.plan(
        fewstep.Request(PROMPT, steps=steps, seed=SEED, sampler="lcm", guidance=1.0, width=size, height=size)
    )
    denoiser = pipe.denoiser(plan)

    def run() -> Any:
        begun = begin(pipe.runner, pipe.model.schedule, plan, 0, 1)
        return list(sample(begun.keeping(denoiser), begun.z_BCHW, plan.timesteps, **begun.how))[-1].z

    return run


def their_loop(pipe: Any, steps: int, size: int, output: str = "latent") -> Draw:
    """diffusers' pipeline, told the text's vectors, back to latents; to pictures with another `output`."""
    text = pipe.encode_prompt(PROMPT, torch.device("cpu"), 1, do_classifier_free_guidance=False)[0]
    asked = {"height": size, "width": size, "num_inference_steps": steps, "guidance_scale": 1.0}

    def run() -> Any:
        generator = torch.Generator().manual_seed(SEED)
        return pipe(prompt_embeds=text, generator=generator, output_type=output, **asked).images

    return run


def picture(pipe: Any, steps: int, size: int) -> Draw:
    """Ours from a request to a picture with its settings; text encoder and decoder already do nothing."""
    asked = {"steps": steps, "seed": SEED, "sampler": "lcm", "guidance": 1.0, "width": size, "height": size}
    return lambda: pipe(PROMPT, **asked)


def take_out(found: Mapping[str, Any], size: int) -> None:
    """Text encoders give always the same, decoders black pictures."""
    black = torch.zeros(1, 3, size, size)
    for name in ("onnx", "eager"):
        pipe = found[name]
        denoiser = pipe.denoiser(pipe.plan(fewstep.Request(PROMPT, guidance=1.0)))
        pipe.runner.denoiser = partial(_given, denoiser)
        pipe.runner.decode = lambda z_BCHW, **_: np.zeros((len(z_BCHW), size, size, 3), np.uint8)
    found["diffusers"].vae.decode = lambda *_, **__: (black,)


def _given(denoiser: Any, *_: Any, **__: Any) -> Any:
    return denoiser


def measured(found: Mapping[str, Any], args: argparse.Namespace, ours: Any, theirs: Any, what: str) -> list[Any]:
    """A race for each number of steps."""
    races = []
    for steps in args.steps:
        runs = {LIBRARIES[name]: ours(found[name], steps, args.size) for name in ("onnx", "eager")}
        runs[LIBRARIES["diffusers"]] = theirs(found["diffusers"], steps, args.size)
        seconds = by_turns(runs, rounds=args.rounds, warm_up=3, clock=args.clock, awake=True)
        title = f"{what}, {steps} step{'s' * (steps > 1)}"
        races.append(race(seconds, ours=LIBRARIES["onnx"], title=title, steps=steps, what=what))
    return races


def slope(races: Sequence[Mapping[str, Any]], name: str) -> float:
    """Milliseconds of one more step."""
    first, last = races[0], races[-1]
    more = last["results"][name]["median_ms"] - first["results"][name]["median_ms"]
    return figure(more / (last["steps"] - first["steps"]))


def main() -> None:
    """The loops, then whole pictures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, nargs="+", default=[1, 4, 8])
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=100)
    parser.add_argument("--cpu", action="store_true", help="seconds of processor, on a machine with other work")
    args = parser.parse_args()
    args.clock = time.process_time if args.cpu else time.perf_counter
    found = pipes()
    loops = measured(found, args, loop, their_loop, "loop")
    take_out(found, args.size)
    pictures = measured(found, args, picture, partial(their_loop, output="pil"), "picture")
    facts = {"size_px": args.size, "clock": args.clock.__name__, "threads": torch.get_num_threads()}
    if len(loops) > 1:
        facts["step_ms"] = {name: slope(loops, name) for name in LIBRARIES.values()}
        print(f"\na step, ms: {facts['step_ms']}")
    keep({"benchmark": "overhead", "races": loops + pictures} | facts)


if __name__ == "__main__":
    main()
