"""The live socket without a model: what decoding, scheduling, encoding and the line cost, and what a line lets through.

    python benchmarks/live_transport.py [--seconds 10] [--size 512] [--lines] [--minutes 0]

overhead: one frame at a time through server and socket, on loopback, the picture given back as it came. lines: a
camera of 30 frames a second through a simulated line (round trip in ms; uplink in Mbit/s). --minutes: a camera for so
long, the server's memory at its beginning and end.
"""

from __future__ import annotations

import argparse
import io
import os
import statistics
import sys
import time
from pathlib import Path

import numpy as np
from PIL import Image
from race import keep

sys.path.insert(0, str(Path(__file__).parents[1]))

from fewstep.client import Live, Painted, _now_ms
from fewstep.serve.frames import Codec, Message
from tests.serve.line import Line
from tests.serve.null import NullStudio
from tests.serve.running import running

LINES = ((1, None), (40, None), (120, None), (1, 8), (40, 8), (120, 8))


def pictures(size: int, count: int = 16) -> list[Image.Image]:
    """Frames like a camera's: a drawing that moves before a soft background, a little noise."""
    rng, frames = np.random.default_rng(0), []
    x, y = np.meshgrid(np.linspace(0, 1, size), np.linspace(0, 1, size))
    for index in range(count):
        angle = 2 * np.pi * index / count
        blob = np.exp(-((x - 0.5 - 0.3 * np.cos(angle)) ** 2 + (y - 0.5 - 0.3 * np.sin(angle)) ** 2) * 30)
        edges = np.sin(40 * x + 3 * np.sin(8 * y)) > 0.6
        rgb = np.stack([120 + 100 * blob, 90 + 80 * x, 60 + 120 * y], -1) + 25 * edges[..., None]
        frames.append(Image.fromarray((rgb + rng.normal(0, 9, rgb.shape)).clip(0, 255).astype(np.uint8)))
    return frames


def memory_mb() -> float:
    """Resident memory of this process, which is server and client."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20


class Bytes(Live):
    """A client whose frames are JPEGs already, and which does not look at what comes back."""

    def _frame(self, picture, kind, seq):
        self._send(Message(kind, Codec.JPEG, seq, picture, sender_ms=_now_ms()).packed())

    def _output(self, message):
        self._text("ack", seq=message.seq)
        with self._news:
            self._waiting = [Painted(None, message.source_seq, 0, True, False, 0.0, 0.0, 0.0)]
            self._news.notify_all()


def overhead(port: int, frames: list[Image.Image], seconds: float) -> dict[str, float]:
    """Milliseconds in server and socket from a JPEG to the JPEG of its picture, one after the other."""
    took, ready = [], []
    for frame in frames:
        stream = io.BytesIO()
        frame.save(stream, "JPEG", quality=80)
        ready.append(stream.getvalue())
    with Bytes(f"http://127.0.0.1:{port}", mode="camera", every=True, refine=False) as live:
        until, cpu_s = time.monotonic() + seconds, time.process_time()
        while time.monotonic() < until:
            begun = time.perf_counter()
            live.paint(ready[len(took) % len(ready)])
            took.append(1e3 * (time.perf_counter() - begun))
        cpu_ms = 1e3 * (time.process_time() - cpu_s) / len(took)
    took.sort()
    p95_ms = took[int(0.95 * len(took))]
    return {
        "median_ms": statistics.median(took),
        "p95_ms": p95_ms,
        "cpu_ms": cpu_ms,
        "fps": 1e3 / statistics.mean(took),
    }


def camera(port: int, frames: list[Image.Image], seconds: float, fps: float = 30.0) -> dict[str, float]:
    """Pictures a second and milliseconds late, from a camera of `fps` that does not wait."""
    begun = time.monotonic()

    def feed():
        index = 0
        while time.monotonic() - begun < seconds:
            yield frames[index % len(frames)]
            index += 1
            time.sleep(max(0.0, index / fps - (time.monotonic() - begun)))

    warm, late, count = min(3.0, seconds / 3), [], 0
    with Live(f"http://127.0.0.1:{port}", mode="camera", every=True, refine=False, fps=fps) as live:
        begun = time.monotonic()
        for painted in live.stream(feed()):
            now = time.monotonic() - begun
            if warm <= now < seconds:
                late.append(painted.late_ms)
                count += 1
        quality = live.quality
    return {"fps": count / (seconds - warm), "late_ms": statistics.median(late), "jpeg_quality": quality}


def main() -> None:
    """Print the tables and, as the last line, one JSON document."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=10)
    parser.add_argument("--size", type=int, default=512)
    parser.add_argument("--lines", action="store_true")
    parser.add_argument("--minutes", type=float, default=0)
    args = parser.parse_args()
    from fewstep.pipeline import Pipeline
    from tests.tiny import tiny_model

    frames, found = pictures(args.size), {"benchmark": "live_transport", "size_px": args.size}
    with running(NullStudio(Pipeline(tiny_model("sd15")))) as port:
        overhead(port, frames, 1)
        found["overhead"] = overhead(port, frames, args.seconds)
        print("overhead ", {name: round(value, 2) for name, value in found["overhead"].items()})
        if args.lines:
            found["lines"] = []
            for round_trip_ms, mbit_s in LINES:
                with Line(port, round_trip_s=round_trip_ms / 1e3, uplink_bits_s=mbit_s and mbit_s * 1e6) as line:
                    row = {"round_trip_ms": round_trip_ms, "uplink_mbit_s": mbit_s}
                    row |= camera(line.port, frames, args.seconds)
                found["lines"].append(row)
                print({name: round(value, 1) if value else value for name, value in row.items()}, flush=True)
        if args.minutes:
            camera(port, frames, 20)
            before = memory_mb()
            row = camera(port, frames, 60 * args.minutes)
            found["long"] = row | {"minutes": args.minutes, "memory_mb": [before, memory_mb()]}
            print("long ", found["long"])
    keep(found)


if __name__ == "__main__":
    main()
