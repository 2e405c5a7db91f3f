"""Race: from nothing to a PNG on disk, `fewstep generate` against a minimal diffusers script, each a new process.

python benchmarks/cold_start.py [--model FOLDER] [--lora FILE] [--steps 4] [--rounds 5]
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from race import by_turns, report

SCRIPT = """
import sys, torch
from diffusers import LCMScheduler, StableDiffusionPipeline
model, lora, prompt, steps, seed, out = sys.argv[1:]
pipe = StableDiffusionPipeline.from_pretrained(model, safety_checker=None)
pipe.scheduler = LCMScheduler.from_config(pipe.scheduler.config)
if lora:
    folder, _, name = lora.rpartition("/")
    pipe.load_lora_weights(folder, weight_name=name)
generator = torch.Generator().manual_seed(int(seed))
pipe(prompt, num_inference_steps=int(steps), guidance_scale=1.0, generator=generator).images[0].save(out)
"""


def embedded_model() -> Path:
    """Where the package's own model lies, found without importing torch."""
    import fewstep

    return Path(fewstep.__file__).parent / "assets" / "pictogram"


def our_command(args: argparse.Namespace, out: Path) -> list[str]:
    """`fewstep generate`, with nothing said that is the default."""
    program = Path(sys.executable).with_name("fewstep")
    start = [str(program)] if program.exists() else [shutil.which("fewstep") or "fewstep"]
    named = [] if args.model is None else ["--model", str(args.model)]
    named += [] if args.lora is None else ["--lora", str(args.lora)]
    return [
        *start,
        "generate",
        args.prompt,
        *named,
        "--steps",
        str(args.steps),
        "--seed",
        str(args.seed),
        "-o",
        str(out),
    ]


def their_command(args: argparse.Namespace, out: Path) -> list[str]:
    """The diffusers script."""
    model = args.model or embedded_model()
    own = model / "lcm-lora.safetensors"
    lora = args.lora or (own if own.exists() else "")
    return [sys.executable, "-c", SCRIPT, str(model), str(lora), args.prompt, str(args.steps), str(args.seed), str(out)]


class Process:
    """A command that must leave a picture; `peak_mb` is the most memory it took in any run."""

    def __init__(self, command: list[str], out: Path) -> None:
        """Nothing runs yet."""
        self.command, self.out, self.peak_mb = command, out, 0.0

    def __call__(self) -> None:
        """Run it once, to the end."""
        self.out.unlink(missing_ok=True)
        with tempfile.TemporaryFile() as said:
            process = subprocess.Popen(self.command, stdout=said, stderr=said)
            _, status, usage = os.wait4(process.pid, 0)
            process.returncode = os.waitstatus_to_exitcode(status)
            if process.returncode != 0 or not self.out.exists():
                said.seek(0)
                raise SystemExit(
                    f"{' '.join(self.command[:3])} failed:\n{said.read().decode(errors='replace')[-2000:]}"
                )
        self.peak_mb = max(self.peak_mb, usage.ru_maxrss / (1024 if sys.platform != "darwin" else 1024**2))


def parsed() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, help="diffusers folder (default: the embedded model)")
    parser.add_argument("--lora", type=Path, help="default: lcm-lora.safetensors in the model's folder")
    parser.add_argument("--prompt", default="a fox, 3d on a blue background")
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--rounds", type=int, default=5)
    return parser.parse_args()


def main() -> None:
    """Race, after one uncounted round that fills the file cache."""
    args = parsed()
    with tempfile.TemporaryDirectory() as folder:
        outs = {name: Path(folder) / f"{name}.png" for name in ("fewstep", "diffusers")}
        runs = {
            "fewstep": Process(our_command(args, outs["fewstep"]), outs["fewstep"]),
            "diffusers": Process(their_command(args, outs["diffusers"]), outs["diffusers"]),
        }
        seconds = by_turns(runs, rounds=args.rounds)
    peak_mb = {name: round(run.peak_mb) for name, run in runs.items()}
    print(f"peak memory, MB: {peak_mb}")
    report(seconds, ours="fewstep", benchmark="cold_start", steps=args.steps, peak_mb=peak_mb)


if __name__ == "__main__":
    main()
