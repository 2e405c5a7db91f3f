"""What a live frame costs beside the network: planning, text, noise, the engine's turns, the picture's settings.

    python benchmarks/live_overhead.py [--size 512] [--steps 4] [--rounds 200] [--cpu]

The network, the autoencoder's two halves and nothing else do nothing here; the text encoder is the embedded model's
own. `request` plans every frame from its request, as a job is; `painter` is what live sessions have.
"""

from __future__ import annotations

import argparse
import itertools
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from PIL import Image
from race import by_turns, report

import fewstep
from fewstep.engine import pictures
from fewstep.engine.live import Frame, Order
from fewstep.engine.live_request import LiveRequest
from fewstep.engine.local import LocalEngine, wait_for
from fewstep.engine.painter import LivePainter
from fewstep.request import Request
from fewstep.runners import OnnxRunner


class NullRunner(OnnxRunner):
    """Text and noise as always; pictures are neither encoded nor decoded."""

    def encode(self, pixels_BHWC: np.ndarray, *, tiny: bool = False) -> np.ndarray:
        """Nothing, of the size of latents."""
        return np.zeros((len(pixels_BHWC), 4, pixels_BHWC.shape[1] // 8, pixels_BHWC.shape[2] // 8), np.float32)

    def decode(self, z_BCHW: Any, *, tiny: bool = False) -> np.ndarray:
        """Black pictures."""
        return np.zeros((len(z_BCHW), 8 * z_BCHW.shape[2], 8 * z_BCHW.shape[3], 3), np.uint8)


class NullNetwork:
    """Answers with the latents that were asked about."""

    def room(self, key: Any) -> int:
        """One at a time."""
        return 1

    def answer(self, asks: Any) -> list[Any]:
        """What was asked."""
        return [ask.what.z_BCHW for ask in asks]


def frames(size: int) -> Iterator[Frame]:
    """A camera's: no two are the same object."""
    pixels = np.random.default_rng(0).integers(0, 256, (8, size, size, 3), np.uint8)
    for seq in itertools.count():
        yield Frame(seq, Image.fromarray(pixels[seq % len(pixels)]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=512)
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=200)
    parser.add_argument("--cpu", action="store_true", help="seconds of processor, on a machine with other work")
    args = parser.parse_args()
    pipe = fewstep.load()
    pipe.runner = NullRunner(pipe.model)
    fields = LiveRequest(Request("a red apple, 3d on a blue background", steps=args.steps, seed=7, strength=0.6))
    engine, painter, taken = LocalEngine(NullNetwork()), LivePainter(pipe), frames(args.size)

    def by_request() -> Any:
        frame = next(taken)
        return wait_for(engine, lambda: pictures.paint(pipe, pipe.plan(fields.of(frame.picture, frame.mask))))

    def by_painter() -> Any:
        order = Order(next(taken), 1, fields)
        return wait_for(engine, lambda: painter.paint(order))

    clock = time.process_time if args.cpu else time.perf_counter
    contestants: dict[str, Callable[[], Any]] = {"painter": by_painter, "request": by_request}
    seconds = by_turns(contestants, rounds=args.rounds, warm_up=3, clock=clock)
    engine.close()
    report(
        seconds, ours="painter", benchmark="live_overhead", size_px=args.size, steps=args.steps, clock=clock.__name__
    )


if __name__ == "__main__":
    main()
