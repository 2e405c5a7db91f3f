"""Race (P10): eight people at live drawing, their steps in one network call against one after the other.

    python benchmarks/users.py [--model pictogram|sd15] [--users 8] [--steps 4] [--seconds 5] [--rounds 3]
        [--device cuda]

Every user has an own prompt, seed and moving picture, and sends the next frame when the last is painted; the engine is
the server's, without sockets. By turns: for --seconds all steps that wait share a call, then each has its own. The
gain is a GPU's; a CPU's cores are full with one picture.
"""

from __future__ import annotations

import argparse
import itertools
import threading
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from PIL import Image
from race import keep, race
from weights import VAES, random_folder

import fewstep
from fewstep.engine.live import Frame, Order
from fewstep.engine.live_request import LiveRequest
from fewstep.engine.local import LocalEngine, wait_for
from fewstep.engine.painter import LivePainter
from fewstep.engine.pictures import PictureNetwork
from fewstep.request import Request

ALONE = "fewstep, one at a time"
THINGS = (
    "a red apple, 3d",
    "a fox, 3d",
    "a rocket, flat",
    "a cat, 3d",
    "a house, flat",
    "a fish, 3d",
    "a tree",
    "a car",
)


def frames(size: int, seed: int) -> Iterator[Frame]:
    """A drawing that moves."""
    pixels = np.random.default_rng(seed).integers(0, 256, (8, size, size, 3), np.uint8)
    for seq in itertools.count():
        yield Frame(seq, Image.fromarray(pixels[seq % len(pixels)]))


class User:
    """Somebody who draws: sends a frame, waits for its picture, sends the next."""

    def __init__(self, pipe: Any, number: int, args: argparse.Namespace) -> None:
        asked = Request(
            THINGS[number % len(THINGS)], steps=args.steps, seed=number, strength=args.strength, guidance=1.0
        )
        self.fields, self.name = LiveRequest(asked), f"user {number}"
        self.painter, self.frames, self.painted = LivePainter(pipe), frames(args.size, number), 0

    def draw_until(self, engine: LocalEngine, end: float) -> None:
        """Count the pictures that are there before the end."""
        while time.perf_counter() < end:
            order = Order(next(self.frames), 1, self.fields)
            wait_for(engine, lambda order=order: self.painter.paint(order), owner=self.name)
            self.painted += time.perf_counter() < end


def slice_of(engine: LocalEngine, users: list[User], seconds: float) -> list[int]:
    """How many pictures each user got in this time."""
    for user in users:
        user.painted = 0
    end = time.perf_counter() + seconds
    threads = [threading.Thread(target=user.draw_until, args=(engine, end)) for user in users]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return [user.painted for user in users]


def parsed() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=("pictogram", "sd15"), default="pictogram")
    parser.add_argument("--vae", choices=VAES, default="tiny", help="of sd15")
    parser.add_argument("--small", action="store_true", help="sd15 with few channels")
    parser.add_argument("--users", type=int, default=8)
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--strength", type=float, default=0.6)
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--device", default="cpu")
    return parser.parse_args()


def main() -> None:
    """By turns, after one uncounted slice of each."""
    args = parsed()
    document: dict[str, Any] = {"benchmark": "users", "case": "" if args.device == "cpu" else args.device}
    if args.device != "cpu" and not torch.cuda.is_available():
        keep(document | {"unmeasured": "there is no CUDA device here"})
        return
    folder = None if args.model == "pictogram" else random_folder(args.model, vae=args.vae, small=args.small)
    pipe = fewstep.load(folder) if args.device == "cpu" else fewstep.load(folder, device=args.device)
    args.size = pipe.model.family.size_px
    users = [User(pipe, number, args) for number in range(args.users)]
    together, alone = f"fewstep, up to {args.users} at once", ALONE
    engines = {together: LocalEngine(PictureNetwork(args.users)), alone: LocalEngine(PictureNetwork(1))}
    counts = by_slices(engines, users, args)
    seconds = {name: [args.seconds / max(1, sum(one)) for one in found] for name, found in counts.items()}
    one = race(seconds, ours=together, title=f"a picture, {args.users} users, {args.steps} steps")
    shares = {name: [sum(user) for user in zip(*found, strict=True)] for name, found in counts.items()}
    print(f"\npictures of each user: {shares}")
    keep(document | {"races": [one], "model": args.model, "users": args.users, "pictures_of_each_user": shares})


def by_slices(
    engines: dict[str, LocalEngine], users: list[User], args: argparse.Namespace
) -> dict[str, list[list[int]]]:
    """Pictures of each user in each slice, the engines by turns; the first slice of each is not counted."""
    counts: dict[str, list[list[int]]] = {name: [] for name in engines}
    for turn in range(args.rounds + 1):
        for name, engine in engines.items():
            found = slice_of(engine, users, args.seconds)
            if not any(found):
                raise SystemExit(f"'{name}' painted nothing in a slice. Give it longer slices (--seconds).")
            counts[name] += [found] if turn else []
    for engine in engines.values():
        engine.close()
    return counts


if __name__ == "__main__":
    main()
