"""How many frames a live session has in the making, and how many asks share a call: from what calls of this model take.

A call of B asks takes T(B). On a GPU T(B) grows slowly, so that frames at different steps do well to share calls; on a
CPU T(B) is about B T(1), so that sharing makes every frame later and none sooner. What is measured decides.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass
from math import prod
from statistics import median
from typing import Any

import numpy as np
from PIL import Image

from fewstep.engine.pictures import PictureNetwork, paint
from fewstep.engine.work import Ask
from fewstep.pipeline import Pipeline
from fewstep.request import Request
from fewstep.sampling.arrays import is_torch

SIZES = (1, 2, 3, 4, 6, 8)
DEEPEST = 4
GAIN = 0.75
"""What a shared call takes at most, as a part of the same asks one by one, to be worth it."""


@dataclass(frozen=True)
class Pace:
    """Seconds of a network call by the number of its asks, and of what a frame takes beside them (the autoencoder).

    Of pictures of `size_px` (width, height).
    """

    calls_s: Mapping[int, float]
    around_s: float = 0.0
    size_px: tuple[int, int] = (512, 512)

    def sized(self, size_px: tuple[int, int]) -> Pace:
        """The pace of pictures of another size, as if every time grew with their area.

        >>> Pace({1: 0.01, 2: 0.012}).sized((1024, 512)).calls_s
        {1: 0.02, 2: 0.024}
        """
        factor = prod(size_px) / prod(self.size_px)
        return Pace({size: factor * s for size, s in self.calls_s.items()}, factor * self.around_s, size_px)

    def room(self, budget_s: float) -> Callable[[tuple[int, int]], int]:
        """`at_once` as a function of the pictures' size, for `PictureNetwork`."""
        return lambda size_px: self.sized(size_px).at_once(budget_s)

    def at_once(self, budget_s: float) -> int:
        """The most asks whose shared call takes at most `budget_s` and is worth it; at least 1.

        >>> Pace({1: 0.010, 2: 0.012, 4: 0.020, 8: 0.038}).at_once(0.033)
        4
        >>> Pace({1: 0.010, 2: 0.020}).at_once(0.033)
        1
        """
        worth = (size for size, call_s in self.calls_s.items() if call_s <= budget_s and self._gains(size))
        return max(worth, default=1)

    def depth(self, steps: int, period_s: float, *, rows: int = 1) -> int:
        """Frames in the making at once, so that one comes out every `period_s`; at most `steps`, and no more than gain.

        The fewest that meet the period, since each waits for shared, longer calls: 1 where the steps one after the
        other meet it. Where none do, the number with the highest rate. `rows`: 2 where a step is also asked for the
        negative prompt.

        >>> gpu = Pace({1: 0.0125, 2: 0.014, 4: 0.020}, around_s=0.004)
        >>> [gpu.depth(4, period_s) for period_s in (0.1, 0.033, 0.025)], gpu.depth(1, 0.001)
        ([1, 2, 4], 1)
        >>> Pace({1: 0.1, 2: 0.2, 4: 0.4}).depth(4, 0.033)
        1
        """
        deeper = (size for size in sorted(self.calls_s) if 1 < size <= min(steps, DEEPEST) and self._gains(size, rows))
        found = {size: self.frame_s(steps, size, rows=rows) for size in (1, *deeper)}
        meeting = [size for size, frame_s in found.items() if frame_s <= period_s]
        return min(meeting) if meeting else min(found, key=lambda size: found[size])

    def frame_s(self, steps: int, depth: int, *, rows: int = 1) -> float:
        """Seconds from one finished frame to the next with so many in the making (StreamDiffusion's stream batch,
        Kodaira et al. 2023, arXiv:2312.12491, section 3.1, where `depth` is `steps`).
        """
        return steps * self._call_s(depth * rows) / depth + self.around_s

    def _call_s(self, size: int) -> float:
        """As measured; what was not, because it was not worth it, takes as long as one by one."""
        return self.calls_s.get(size, size * self.calls_s[1])

    def _gains(self, size: int, rows: int = 1) -> bool:
        return self._call_s(size * rows) <= GAIN * size * self._call_s(rows)


ALONE = Pace({1: 1.0})
"""Where a session's frames gain nothing from each other: on a CPU, and where workers share calls as they like."""


def measured(
    pipe: Pipeline, *, budget_s: float, size_px: int | None = None, clock: Callable[[], float] = time.perf_counter
) -> Generator[Ask, Any, Pace]:
    """The pace of a pipeline, as a work for its engine that asks nothing.

    To be used as `wait_for(engine, lambda: measured(pipe, budget_s=0.1))`, before sessions begin. Pictures are squares
    of `size_px`, the model's own size where it is None. Larger calls are not tried when a call exceeds the budget, is
    not worth it, or has no place in the pipeline's own batch: on a CPU a picture is bit for bit the same alone.
    """
    side = size_px or pipe.model.family.size_px
    grey = Image.new("RGB", (side, side), "grey")
    plan = pipe.plan(Request("", seed=0, steps=1, image=grey, strength=1, width=side, height=side, guidance=1))
    timed_s = _Timed(clock)
    around_s = timed_s(lambda: pipe.runner.encode(np.asarray(grey)[None]))
    ask, network = next(paint(pipe, plan)), PictureNetwork()
    around_s += timed_s(lambda: pipe.runner.decode(ask.what.z_BCHW))
    calls_s: dict[int, float] = {}
    for size in [size for size in SIZES if size <= pipe.batch]:
        calls_s[size] = timed_s(lambda size=size: network.answer([ask] * size)[0])
        if calls_s[size] > budget_s or (size > 1 and calls_s[size] > GAIN * size * calls_s[1]):
            break
    return Pace(calls_s, around_s, (side, side))
    yield  # nothing is asked of the engine


class _Timed:
    """The median seconds of three calls after one to warm up; each is waited for to its end, on any device."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self.clock = clock

    def __call__(self, call: Callable[[], Any]) -> float:
        def run() -> float:
            begun = self.clock()
            found = call()
            if is_torch(found):
                found.reshape(-1)[0].item()
            return self.clock() - begun

        run()
        return median(run() for _ in range(3))
