"""What a picture costs outside the network: sampler and Denoiser around a UNet that returns at once (P5).

    python benchmarks/loop_overhead.py [--steps 4] [--rounds 200] [--guidance 1]

Neither text nor decoding is counted. --clock cpu counts this thread's own time, for a machine with other work.
"""

from __future__ import annotations

import argparse
import json
import time
from typing import Any

import torch
from race import summary

from fewstep.checkpoints.load import load_model
from fewstep.denoising import begin
from fewstep.pipeline import Pipeline
from fewstep.request import Request
from fewstep.sampling.sampler import sample

SAMPLERS = ("lcm", "tcd", "ddim", "euler_a", "dpmpp_2m")


class Null(torch.nn.Module):
    """In place of a UNet: gives its input back."""

    def __init__(self, unet: Any) -> None:
        super().__init__()
        self.config, self.conv_in = unet.config, unet.conv_in

    def forward(self, z_BCHW: torch.Tensor, *_: Any, **__: Any) -> tuple[torch.Tensor]:
        """As a UNet answers with return_dict False."""
        return (z_BCHW,)


def main() -> None:
    """One line for each sampler, and one JSON document."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=200)
    parser.add_argument("--guidance", type=float, default=1.0)
    parser.add_argument("--clock", choices=("wall", "cpu"), default="wall")
    args = parser.parse_args()
    torch.set_num_threads(1)
    clock = time.thread_time if args.clock == "cpu" else time.perf_counter
    pipe = Pipeline(load_model(None, device="cpu"))
    pipe.model.unet = Null(pipe.model.unet)
    results = {}
    for name in SAMPLERS:
        asked = Request(prompt="a fox, 3d", steps=args.steps, guidance=args.guidance, seed=7, sampler=name)
        plan = pipe.plan(asked)
        denoiser, seconds = pipe.denoiser(plan), []
        for _ in range(args.rounds + 20):
            started = clock()
            begun = begin(pipe.runner, pipe.model.schedule, plan, 0, 1)
            for _step in sample(begun.keeping(denoiser), begun.z_BCHW, plan.timesteps, **begun.how):
                pass
            seconds.append(clock() - started)
        results[name] = summary(seconds[20:])
        print(f"{name:12} {results[name]['median_ms']:.2f} ms a picture, {results[name]['min_ms']:.2f} at least")
    facts = {"steps": args.steps, "guidance": args.guidance, "clock": args.clock, "torch": torch.__version__}
    print(json.dumps({"benchmark": "loop_overhead", "results": results, "rounds": args.rounds} | facts))


if __name__ == "__main__":
    main()
