"""Race (P8, P9): SD 1.5 at 512 px and SDXL at 1024 px on a GPU, fewstep against diffusers eager and compiled.

    python benchmarks/gpu.py [--models sd15 sdxl] [--steps 1 4] [--batches 1 4 8] [--rounds 10] [--dtype bfloat16]
        [--profile fewstep] [--device cuda]
    python benchmarks/gpu.py --device cpu --small                  to see that it runs

Random weights in the true shapes (weights.py), tiny autoencoder, from prompt to pixels. Beside milliseconds stands the
share of the floor: what the counted operations alone would take at the rate that this device reaches in one large
matrix product, measured here. --profile NAME: the kernels of one picture by that contestant, as a table.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Mapping
from typing import Any

import torch
from contestants import Job, Paint, autoencoder_of, gathered
from picture import PROMPTS, races
from race import figure, keep
from weights import KINDS, SMALL_TEXTS, TEXTS, VAES, full_vae, random_folder, text_encoder, tiny_vae, unet

CONTESTANTS = ("fewstep eager", "fewstep compiled", "fewstep graphs", "diffusers", "diffusers compiled")


def rate(device: str, dtype: str) -> float:
    """Operations a second in one large matrix product, the best of ten."""
    side = 8192 if device != "cpu" else 1024
    a = torch.randn(side, side, device=device, dtype=getattr(torch, dtype))
    wait = torch.cuda.synchronize if device != "cpu" else bool
    best = float("inf")
    for _ in range(10):
        began = time.perf_counter()
        a @ a
        wait()
        best = min(best, time.perf_counter() - began)
    return 2 * side**3 / best


def operations(kind: str, vae: str, *, small: bool) -> dict[str, float]:
    """Multiplications and additions of text, one network call and one decoding, counted by torch on shapes alone."""
    from torch.utils.flop_counter import FlopCounterMode

    with torch.device("meta"):
        net, autoencoder = unet(kind, small=small), (tiny_vae if vae == "tiny" else full_vae)(kind, small=small)
        encoders = [text_encoder(*settings) for settings in (SMALL_TEXTS if small else TEXTS)[kind]]
        side, width = net.config.sample_size, net.config.cross_attention_dim
        z, text, tokens = (
            torch.zeros(1, 4, side, side),
            torch.zeros(1, 77, width),
            torch.zeros(1, 77, dtype=torch.int64),
        )
        extra: dict[str, Any] = {}
        if kind == "sdxl":
            pooled = torch.zeros(1, encoders[-1].config.projection_dim)
            extra["added_cond_kwargs"] = {"text_embeds": pooled, "time_ids": torch.zeros(1, 6)}
        runs = {
            "text": lambda: [encoder(tokens) for encoder in encoders],
            "unet": lambda: net(z, torch.zeros(1), encoder_hidden_states=text, **extra),
            "decoder": lambda: autoencoder.decode(z),
        }
        found = {}
        for name, run in runs.items():
            with FlopCounterMode(display=False) as counter, torch.no_grad():
                run()
            found[name] = float(counter.get_total_flops())
    return found


def with_floors(one: dict[str, Any], counted: Mapping[str, float], per_s: float) -> dict[str, Any]:
    """A race with the share of the floor that each contestant reaches; the text is encoded once for a batch."""
    picture = one["steps"] * counted["unet"] + counted["decoder"]
    floor_ms = 1000 * (counted["text"] + one["batch"] * picture) / per_s
    for figures in one["results"].values():
        figures["floor_share"] = figure(floor_ms / figures["median_ms"])
    return one | {"floor_ms": figure(floor_ms)}


def profile(name: str, paint: Paint, device: str, steps: int) -> None:
    """The dearest kernels of one warm picture."""
    from torch.profiler import ProfilerActivity
    from torch.profiler import profile as record

    paint(PROMPTS[0], steps, 1)
    kinds = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if device != "cpu" else [])]
    with record(activities=kinds) as found:
        paint(PROMPTS[1], steps, 1)
    by = "self_cpu_time_total" if device == "cpu" else "self_cuda_time_total"
    print(f"\n{name}, {steps} steps\n{found.key_averages().table(sort_by=by, row_limit=25)}")


def parsed() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", choices=KINDS, nargs="+", default=list(KINDS))
    parser.add_argument("--vae", choices=VAES, default="tiny")
    parser.add_argument("--small", action="store_true")
    parser.add_argument("--steps", type=int, nargs="+", default=[1, 4])
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 4, 8])
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--contestants", nargs="+", default=list(CONTESTANTS))
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--dtype", help="default: bfloat16 on a GPU, float32 on a CPU")
    parser.add_argument("--tolerance", type=float, default=8.0, help="mean difference, of 255, in half precision")
    parser.add_argument("--profile", nargs="*", default=[])
    parser.set_defaults(check=None)
    return parser.parse_args()


def main() -> int:
    """One race for each model, number of steps and batch; a document that says so where there is no GPU."""
    args = parsed()
    args.dtype = args.dtype or ("float32" if args.device == "cpu" else "bfloat16")
    document: dict[str, Any] = {
        "benchmark": "gpu",
        "case": "cpu" if args.device == "cpu" else "",
        "device": args.device,
    }
    if args.device != "cpu" and not torch.cuda.is_available():
        keep(document | {"unmeasured": "there is no CUDA device here"})
        return 0
    per_s, found, skipped = rate(args.device, args.dtype), [], {}
    facts = {"dtype": args.dtype, "small": args.small, "tflop_s": figure(per_s / 1e12), "operations": {}}
    for kind in args.models:
        job = Job(random_folder(kind, vae=args.vae, small=args.small), device=args.device, dtype=args.dtype)
        contestants, absent = gathered(args.contestants, job)
        skipped |= {f"{name}, {kind}": reason for name, reason in absent.items()}
        facts["operations"][kind] = operations(kind, args.vae, small=args.small)
        facts["autoencoder"] = autoencoder_of(job)
        for one in races(contestants, args):
            one["title"] = f"{kind}, {one['title']}"
            found.append(with_floors(one, facts["operations"][kind], per_s))
        for name in args.profile:
            profile(name, contestants[name], args.device, args.steps[-1])
        del contestants
    keep(document | facts | {"races": found, "skipped": skipped})
    return 0


if __name__ == "__main__":
    sys.exit(main())
