"""Race (P1, P4): a warm few-step picture from text to pixels, fewstep's back ends against everybody else's.

    python benchmarks/picture.py [--model pictogram|sd15|sdxl|FOLDER] [--vae tiny|full] [--steps 1 4] [--batches 1 4]
        [--rounds 10] [--contestants all] [--memory] [--size 64]

All run in this process, by turns, from the same weights, seeds and noise; the prompt is another in every round, so that
nobody gains by remembering a text. Pictures must agree with those of diffusers' own pipeline within --tolerance (mean
difference, of 255), or --tiny-tolerance: `fewstep` and `fewstep openvino bf16` paint as a user gets them, with the
embedded model's tiny autoencoder, all others with the full one. sd15 and sdxl have random weights in the true shapes
(weights.py). --memory: the peak of each contestant alone, in a process of its own.
"""

from __future__ import annotations

import argparse
import itertools
import json
import resource
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from contestants import (
    BY_HAND,
    HALF,
    OWN,
    PLAIN,
    PLAIN_FULL,
    Absent,
    Job,
    Paint,
    autoencoder_of,
    builders,
    difference,
    gathered,
)
from race import by_turns, fastest, keep, race
from weights import KINDS, VAES, random_folder

PROMPTS = ("a fox, 3d on a blue background", "a red apple, 3d", "a rocket at night, flat", "a cat on a beach, 3d")
PICTURES_OF_THEIR_OWN = ("stable-diffusion.cpp", PLAIN_FULL)
"""By another noise, or another autoencoder."""


def parsed(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--model", default="pictogram", help="pictogram (the embedded model), sd15, sdxl, or a diffusers folder")
    add("--vae", choices=VAES, default="tiny", help="of sd15 and sdxl")
    add("--small", action="store_true", help="sd15 and sdxl with few channels, to see that it runs")
    add("--lora", type=Path)
    add("--steps", type=int, nargs="+", default=[1, 4])
    add("--batches", type=int, nargs="+", default=[1])
    add("--rounds", type=int, default=10)
    add("--contestants", nargs="+", default=["all"], help=f"all, or of: {', '.join(builders())}")
    add("--device", default="cpu")
    add("--dtype", default="float32")
    add("--seed", type=int, default=7)
    add("--tolerance", type=float, default=1.0)
    add(
        "--tiny-tolerance", type=float, default=6.0, help="of those that paint by the embedded model's tiny autoencoder"
    )
    add("--check", type=int, nargs="+", help="numbers of steps whose pictures are compared; default: all")
    add("--memory", action="store_true")
    add("--case", help="the document's name; default: the model's")
    add("--alone", help=argparse.SUPPRESS)
    return parser.parse_args(argv)


def job_of(args: argparse.Namespace) -> Job:
    """The model that was asked for; random ones are made now."""
    if args.model in KINDS:
        model = random_folder(args.model, vae=args.vae, small=args.small)
    else:
        model = None if args.model == "pictogram" else Path(args.model)
    return Job(model, args.lora, args.device, args.dtype, args.seed)


def case_of(args: argparse.Namespace) -> str:
    """What tells this run's document from others."""
    if args.case:
        return args.case
    kind = f"{args.model}-{args.vae}" if args.model in KINDS else Path(args.model).name
    return "-".join([kind, *(["small"] if args.small else []), *([] if args.device == "cpu" else [args.device])])


def drawing(paint: Paint, steps: int, count: int, device: str = "cpu") -> Callable[[], Any]:
    """One picture (or batch) after another, each with the next prompt."""
    prompts: Iterator[str] = itertools.cycle(PROMPTS)

    def draw() -> Any:
        found = paint(next(prompts), steps, count)
        if device != "cpu":
            torch.cuda.synchronize()
        return found

    return draw


def agreement(contestants: Mapping[str, Paint], steps: int, args: argparse.Namespace) -> dict[str, Any]:
    """How far everybody's picture is from diffusers', or from OpenVINO's by hand; also what warms everybody up."""
    pictures = {name: paint(PROMPTS[0], steps, 1)[0] for name, paint in contestants.items()}
    judges = [name for name in (PLAIN, BY_HAND) if name in pictures]
    if not judges:
        return {}
    others = [name for name in pictures if name != judges[0] and name not in PICTURES_OF_THEIR_OWN]
    found: dict[str, Any] = {name: difference(pictures[name], pictures[judges[0]]) for name in others}
    for name, apart in found.items():
        tiny = name in (OWN, HALF) and args.model == "pictogram"
        apart["agrees"] = apart["mean"] <= (args.tiny_tolerance if tiny else args.tolerance)
        words = "agrees" if apart["agrees"] else "DIFFERS"
        print(f"steps {steps}: {name} {words}: mean difference {apart['mean']}, largest {apart['largest']:g} of 255")
    return found


def races(contestants: Mapping[str, Paint], args: argparse.Namespace) -> list[dict[str, Any]]:
    """One for each number of steps and batch."""
    found = []
    for steps in args.steps:
        wanted = args.check is None or steps in args.check
        apart = agreement(contestants, steps, args) if wanted else {}
        for count in args.batches:
            draws = {name: drawing(paint, steps, count, args.device) for name, paint in contestants.items()}
            seconds = by_turns(draws, rounds=args.rounds, warm_up=0 if count == 1 else 1)
            title = f"{steps} step{'s' * (steps > 1)}, batch {count}"
            facts = {"steps": steps, "batch": count, "apart": apart, "tolerance": args.tolerance}
            one = race(seconds, ours=fastest(seconds, "fewstep"), title=title, **facts)
            for figures in one["results"].values():
                figures["pictures_s"] = round(1000 * count / figures["median_ms"], 3)
            found.append(one)
    return found


def peaks(names: Sequence[str], argv: Sequence[str]) -> dict[str, int]:
    """Most resident memory, in MB, of each contestant alone."""
    found = {}
    for name in names:
        command = [sys.executable, __file__, *argv, "--alone", name]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode == 0:
            found[name] = round(json.loads(done.stdout.splitlines()[-1]))
    print(f"\npeak memory, MB: {found}")
    return found


def alone(args: argparse.Namespace) -> int:
    """Two pictures by one contestant, and this process' peak memory."""
    try:
        paint = builders()[args.alone](job_of(args))
    except Absent:
        return 3
    paint(PROMPTS[0], args.steps[-1], 1), paint(PROMPTS[1], args.steps[-1], 1)
    print(peak_mb())
    return 0


def peak_mb() -> float:
    """Most resident memory of this process. Linux' getrusage counts what the process was forked from, too."""
    status = Path("/proc/self/status")
    if status.exists():
        return next(int(line.split()[1]) / 1024 for line in status.read_text().splitlines() if "VmHWM" in line)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024**2


def main() -> int:
    """Gather, check, race; 1 where pictures differ."""
    args = parsed()
    if args.alone:
        return alone(args)
    job = job_of(args)
    names = list(builders()) if args.contestants == ["all"] else args.contestants
    contestants, skipped = gathered(names, job)
    for name, reason in skipped.items():
        print(f"without {name}: {reason}")
    found = races(contestants, args)
    document = {"benchmark": "picture", "case": case_of(args), "races": found, "skipped": skipped}
    facts = {"device": args.device, "dtype": args.dtype, "autoencoder": autoencoder_of(job), "small": args.small}
    facts["threads"] = torch.get_num_threads()
    if args.memory:
        argv = [word for word in sys.argv[1:] if word != "--memory"]
        facts["peak_mb"] = peaks(list(contestants), argv)
    keep(document | facts)
    return 0 if all(apart["agrees"] for one in found for apart in one["apart"].values()) else 1


if __name__ == "__main__":
    sys.exit(main())
