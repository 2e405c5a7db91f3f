"""Race (P2): from nothing to a PNG on disk, `fewstep generate` against a minimal diffusers script, each a new process.

    python benchmarks/cold_start.py [--model FOLDER] [--lora FILE] [--steps 4] [--rounds 5]

Beside it, for scale, what it takes only to import the libraries that such programs stand on. Memory is the most that
the process held at any time.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from race import by_turns, keep, race

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

IMPORTS = {
    "python alone": "pass",
    "import numpy, PIL": "import numpy, PIL.Image",
    "import onnxruntime": "import onnxruntime",
    "import openvino": "import sys; sys.modules['openvino_telemetry'] = None; import openvino",
    "import torch": "import torch",
    "import diffusers' pipeline": "from diffusers import StableDiffusionPipeline",
}
OURS, TORCHED, THEIRS = "fewstep", "fewstep on torch", "diffusers"


def embedded_model() -> Path:
    """Where the package's own model lies, found without importing torch."""
    import fewstep

    return Path(fewstep.__file__).parent / "assets" / "pictogram"


def our_command(args: argparse.Namespace, out: Path, *, torched: bool = False) -> list[str]:
    """`fewstep generate`, with nothing said that is the default; torched: the model named as a folder."""
    program = Path(sys.executable).with_name("fewstep")
    start = [str(program)] if program.exists() else [shutil.which("fewstep") or "fewstep"]
    model = args.model or (embedded_model() if torched else None)
    lora = args.lora or (embedded_model() / "lcm-lora.safetensors" if torched and args.model is None else None)
    named = [] if model is None else ["--model", str(model)]
    named += [] if lora is None else ["--lora", str(lora)]
    asked = ["--steps", str(args.steps), "--seed", str(args.seed), "-o", str(out)]
    return [*start, "generate", args.prompt, *named, *asked]


def their_command(args: argparse.Namespace, out: Path) -> list[str]:
    """The diffusers script."""
    model = args.model or embedded_model()
    own = model / "lcm-lora.safetensors"
    lora = args.lora or (own if own.exists() else "")
    return [sys.executable, "-c", SCRIPT, str(model), str(lora), args.prompt, str(args.steps), str(args.seed), str(out)]


class Process:
    """A command that must end well, and leave a picture where `out` is given; `peak_mb` is its most memory so far."""

    def __init__(self, command: list[str], out: Path | None = None) -> None:
        """Nothing runs yet."""
        self.command, self.out, self.peak_mb = command, out, 0.0

    def __call__(self) -> None:
        """Run it once, to the end."""
        if self.out is not None:
            self.out.unlink(missing_ok=True)
        with tempfile.TemporaryFile() as said:
            process = subprocess.Popen(self.command, stdout=said, stderr=said)
            _, status, usage = os.wait4(process.pid, 0)
            process.returncode = os.waitstatus_to_exitcode(status)
            if process.returncode != 0 or (self.out is not None and not self.out.exists()):
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


def races(runs: dict[str, Process], rounds: int, *, ours: str, title: str) -> dict[str, Any]:
    """By turns, after one uncounted round that fills the file cache; with everybody's peak memory."""
    one = race(by_turns(runs, rounds=rounds), ours=ours, title=title)
    for name, run in runs.items():
        one["results"][name]["peak_mb"] = round(run.peak_mb)
    print(f"peak memory, MB: { {name: round(run.peak_mb) for name, run in runs.items()} }")
    return one


def main() -> None:
    """First the pictures, then the imports; libraries that are not here are left out."""
    args = parsed()
    with tempfile.TemporaryDirectory() as folder:
        outs = {name: Path(folder) / f"{number}.png" for number, name in enumerate((OURS, TORCHED, THEIRS))}
        runs = {
            OURS: Process(our_command(args, outs[OURS]), outs[OURS]),
            TORCHED: Process(our_command(args, outs[TORCHED], torched=True), outs[TORCHED]),
            THEIRS: Process(their_command(args, outs[THEIRS]), outs[THEIRS]),
        }
        pictures = races(runs, args.rounds, ours=OURS, title=f"first picture on disk, {args.steps} steps")
    there = {name: code for name, code in IMPORTS.items() if "openvino" not in code or find_spec("openvino")}
    bare = {name: Process([sys.executable, "-c", code]) for name, code in there.items()}
    imports = races(bare, args.rounds, ours="python alone", title="imports alone")
    keep({"benchmark": "cold_start", "races": [pictures, imports], "steps": args.steps})


if __name__ == "__main__":
    main()
