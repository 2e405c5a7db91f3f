"""Race: the tiny autoencoder against the full one, on what the embedded model paints: time, distance, recognition.

    python benchmarks/autoencoder.py [--pictures 500] [--steps 4] [--rounds 30] [--sheet sheet.png]

Both halves of both autoencoders run by turns on the same latents and pictures. The distance is between what the two
decoders make of the same latents, and, as a scale for it, between a scene and what the full autoencoder makes of it.
The judge reads both decoders' pictures.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from PIL import Image
from race import by_turns, report
from rich.progress import track

import fewstep
from fewstep.evaluate.cases import seen_cases
from fewstep.evaluate.judge import Judge, default_folder
from fewstep.evaluate.score import Seen, recognition


def decibel(one: np.ndarray, other: np.ndarray) -> float:
    """The peak signal-to-noise ratio of two sets of pictures, uint8."""
    return round(float(10 * np.log10(255**2 / np.mean((one.astype(float) - other) ** 2))), 2)


def main() -> None:
    """Paint, decode twice, look, race."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pictures", type=int, default=500)
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--sheet", type=Path, help="the full decoder's pictures above the tiny one's")
    args = parser.parse_args()
    judge = Judge(default_folder())
    cases, pipe = seen_cases(judge.labels, args.pictures), fewstep.load(device="cpu")
    asked = [fewstep.Request(case.prompt, seed=case.seed, steps=args.steps) for case in cases]
    z_NCHW = np.concatenate([list(pipe.steps(one))[-1].step.z for one in track(asked, "painting")])
    decode, encode = pipe.runner.decode, pipe.runner.encode
    made = {name: decode(z_NCHW, tiny=name == "tiny") for name in ("full", "tiny")}
    read = {name: recognition(judge, Seen.by(judge, pictures), cases) for name, pictures in made.items()}
    again = {name: decode(encode(made["full"], tiny=name == "tiny")) for name in made}
    facts = {
        "steps": args.steps,
        "pictures": len(cases),
        "decoders_apart_db": decibel(made["tiny"], made["full"]),
        "decoders_apart_mean": round(float(np.abs(made["tiny"].astype(int) - made["full"]).mean()), 2),
        "round_trip_db": {name: decibel(pictures, made["full"]) for name, pictures in again.items()},
        "recognised": {name: found["top1"]["share"] for name, found in read.items()},
        "style": {name: found["style"]["share"] for name, found in read.items()},
    }
    print(facts)
    if args.sheet:
        rows = [np.concatenate(made[name][k : k + 8], 1) for k in range(0, 32, 8) for name in ("full", "tiny")]
        Image.fromarray(np.concatenate(rows)).save(args.sheet)
    z, picture = z_NCHW[:1], made["full"][:1]
    seconds = by_turns(
        {
            "tiny decoder": lambda: decode(z, tiny=True),
            "full decoder": lambda: decode(z),
            "tiny encoder": lambda: encode(picture, tiny=True),
            "full encoder": lambda: encode(picture),
        },
        rounds=args.rounds,
    )
    report(seconds, ours="tiny decoder", benchmark="autoencoder", **facts)


if __name__ == "__main__":
    main()
