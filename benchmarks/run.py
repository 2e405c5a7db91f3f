"""Runs the benchmarks, one after the other, each in a process of its own.

    python benchmarks/run.py --all                      all of them: some eleven minutes on two quiet cores
    python benchmarks/run.py picture-pictogram users    these
    python benchmarks/run.py --quick                    all of them at sizes that show only that they run
    python benchmarks/run.py --all --missing            those that have no document of this commit yet
    python benchmarks/run.py --all --keep               and keep what was measured: benchmarks/results, docs/speed.md

Documents and plots are written to build/benchmarks (--out); a benchmark that fails does not stop the others. The
weights and graphs of SD 1.5's size are made when they are first wanted (some minutes, 6 GB in the cache).
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from race import ROOT, commit

HERE, RESULTS = ROOT / "benchmarks", ROOT / "benchmarks" / "results"


@dataclass(frozen=True)
class Benchmark:
    """A script with its arguments; `documents` are the names of what it leaves, `goals` what it shows."""

    name: str
    script: str
    usual: str = ""
    quick: str = ""
    goals: str = ""
    documents: tuple[str, ...] = ()

    def leaves(self) -> tuple[str, ...]:
        """The documents' names."""
        return self.documents or (self.name,)


BENCHMARKS = (
    Benchmark(
        "picture-pictogram",
        "picture.py",
        "--steps 1 4 --rounds 10 --memory",
        "--steps 1 --rounds 1 --contestants fewstep diffusers",
        "P1",
    ),
    Benchmark(
        "picture-batches",
        "picture.py",
        "--case batches --steps 4 --batches 1 2 4 8 --rounds 4 "
        "--contestants fewstep 'fewstep eager' 'fewstep openvino' diffusers 'OpenVINO by hand'",
        "--case batches --steps 1 --batches 1 2 --rounds 1 --contestants fewstep 'fewstep eager'",
    ),
    Benchmark(
        "picture-sd15-tiny",
        "picture.py",
        "--model sd15 --steps 1 4 --rounds 3 --check 1 "
        "--contestants 'fewstep openvino' diffusers 'diffusers, full autoencoder'",
        "--model sd15 --small --steps 1 --rounds 1 "
        "--contestants 'fewstep eager' diffusers 'diffusers, full autoencoder'",
        "P4",
    ),
    Benchmark(
        "picture-sd15-tiny-by-hand",
        "picture.py",
        "--model sd15 --case sd15-tiny-by-hand --steps 1 4 --rounds 5 --check 1 "
        "--contestants 'fewstep openvino' 'OpenVINO by hand'",
        "--model sd15 --small --case sd15-tiny-by-hand --steps 1 --rounds 1 "
        "--contestants 'fewstep openvino' 'OpenVINO by hand'",
        "P4",
    ),
    Benchmark(
        "picture-sd15-tiny-bf16",
        "picture.py",
        "--model sd15 --case sd15-tiny-bf16 --steps 1 4 --rounds 3 --check 1 "
        "--contestants 'fewstep openvino bf16' diffusers 'diffusers bf16'",
        "--model sd15 --small --case sd15-tiny-bf16 --steps 1 --rounds 1 "
        "--contestants 'fewstep eager' 'diffusers bf16'",
        "P4",
    ),
    Benchmark("cold_start", "cold_start.py", "--rounds 3", "--rounds 1 --steps 1", "P2"),
    Benchmark("overhead", "overhead.py", "", "--rounds 3 --steps 1 2", "P5"),
    Benchmark("live_page", "live_page.py", "--dots 12 --seconds 5", "--dots 1 --seconds 1 --steps 1", "P3"),
    Benchmark(
        "live_page-backend-onnx",
        "live_page.py",
        "--dots 12 --seconds 5 --serve backend=onnx",
        "--dots 1 --seconds 1 --steps 1 --serve backend=onnx",
        "P3",
    ),
    Benchmark(
        "lora_merge",
        "lora_merge.py",
        "--what file fuse weight --rounds 3",
        "--what fuse weight --rounds 1 --small --rank 4",
        "P6",
        ("lora_merge-file", "lora_merge-fuse", "lora_merge-weight"),
    ),
    Benchmark(
        "distill_step",
        "distill_step.py",
        "--model sd15 --size 256 --batch 1 --precision bfloat16 --script-precision float32 --rounds 3",
        "--rounds 1 --batch 1 --size 64",
        "P7",
    ),
    Benchmark("users", "users.py", "--seconds 4", "--seconds 3 --rounds 1 --users 2 --steps 1", "P10"),
    Benchmark(
        "users-cuda", "users.py", "--model sd15 --device cuda", "--device cuda --seconds 3 --rounds 1 --steps 1", "P10"
    ),
    Benchmark(
        "gpu",
        "gpu.py",
        "",
        "--device cpu --small --steps 1 --batches 1 --rounds 1 --contestants 'fewstep eager' diffusers",
        "P8, P9",
    ),
    Benchmark("web", "web.py", "", "", "P11"),
    Benchmark("live_transport", "live_transport.py", "--seconds 5", "--seconds 1 --size 64"),
    Benchmark("live_overhead", "live_overhead.py", "--rounds 100", "--rounds 3 --size 64"),
    Benchmark("autoencoder", "autoencoder.py", "", "--pictures 4 --rounds 2"),
    Benchmark(
        "worker_pictures",
        "worker_pictures.py",
        "--rounds 60",
        "--rounds 2 --sizes 64",
        "",
        ("worker_pictures-512px", "worker_pictures-1024px"),
    ),
    Benchmark("scale", "scale.py"),
)


def run(benchmark: Benchmark, out: Path, *, quick: bool) -> str:
    """Empty when it went well, else what went wrong."""
    if not (HERE / benchmark.script).is_file():
        return f"{benchmark.script} is not there"
    arguments = benchmark.quick if quick else benchmark.usual
    print(f"\n== {benchmark.name}: python benchmarks/{benchmark.script} {arguments}", flush=True)
    began = time.perf_counter()
    settings = os.environ | {"BENCHMARKS_OUT": str(out), "HF_HUB_OFFLINE": "1", "TQDM_DISABLE": "1"}
    done = subprocess.run(
        [sys.executable, str(HERE / benchmark.script), *shlex.split(arguments)], env=settings, check=False
    )
    print(f"== {benchmark.name}: {time.perf_counter() - began:.0f} s", flush=True)
    return "" if done.returncode == 0 else f"{benchmark.script} ended with {done.returncode}"


def is_there(benchmark: Benchmark, out: Path) -> bool:
    """Whether all its documents are of this commit."""
    paths = [out / f"{name}.json" for name in benchmark.leaves()]
    return all(path.is_file() and _commit_of(path) == commit() for path in paths)


def _commit_of(path: Path) -> str:
    return json.loads(path.read_text(encoding="utf-8"))["conditions"]["commit"]


def keep_all(benchmarks: list[Benchmark], out: Path) -> None:
    """The documents to benchmarks/results, and the page made anew."""
    from speed_page import write_page

    for benchmark in benchmarks:
        for path in (out / f"{name}.json" for name in benchmark.leaves()):
            if path.is_file():
                shutil.copy(path, RESULTS)
    write_page()


def parsed() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = [benchmark.name for benchmark in BENCHMARKS]
    parser.add_argument("names", nargs="*", metavar="name", help=f"of: {', '.join(names)}")
    parser.add_argument("--all", action="store_true")
    parser.add_argument("--quick", action="store_true", help="a smoke run; all of them where none is named")
    parser.add_argument("--missing", action="store_true", help="only those without a document of this commit")
    parser.add_argument("--keep", action="store_true", help="documents to benchmarks/results, docs/speed.md anew")
    parser.add_argument("--out", type=Path, help="default: build/benchmarks, or build/benchmarks-quick")
    args = parser.parse_args()
    if unknown := set(args.names) - set(names):
        parser.error(f"there is no benchmark '{unknown.pop()}'. There are: {', '.join(names)}")
    if not (args.names or args.all or args.quick):
        parser.error("name benchmarks, or say --all or --quick")
    if args.quick and args.keep:
        parser.error("a quick run measures nothing worth keeping")
    return args


def main() -> int:
    """1 where one failed."""
    args = parsed()
    out = (args.out or ROOT / "build" / ("benchmarks-quick" if args.quick else "benchmarks")).resolve()
    chosen = [benchmark for benchmark in BENCHMARKS if not args.names or benchmark.name in args.names]
    wanted = [benchmark for benchmark in chosen if not (args.missing and is_there(benchmark, out))]
    failed = [fault for benchmark in wanted if (fault := run(benchmark, out, quick=args.quick))]
    if args.keep:
        keep_all(chosen, out)
    for fault in failed:
        print(f"failed: {fault}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
