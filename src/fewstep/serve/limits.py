"""What one order may ask of the server."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

from fewstep.errors import RequestError
from fewstep.plan import Plan


@dataclass(frozen=True)
class Limits:
    """`steps` of each pass, `count` of pictures, and `pixels` of them all, at the size of the larger pass."""

    steps: int = 50
    count: int = 16
    pixels: int = 16 * 1024 * 1024

    def check(self, *plans: Plan) -> None:
        """Raises RequestError where plans that are asked for together are beyond them."""
        passes = [one for plan in plans for one in (plan, plan.hires) if one is not None]
        count, steps = sum(plan.request.count for plan in plans), max(len(one.timesteps) for one in passes)
        if steps > self.steps:
            raise RequestError(f"{steps} steps are more than the {self.steps} that this server takes. Ask for fewer.")
        if count > self.count:
            raise RequestError(f"{count} pictures are more than {self.count} at once. Ask several times.")
        pixels = sum(plan.request.count * max(map(prod, _sizes(plan))) for plan in plans)
        if pixels > self.pixels:
            width, height = max((size for plan in plans for size in _sizes(plan)), key=prod)
            of = "of" if count * width * height == pixels else "of up to"
            raise RequestError(
                f"{count} {of} {width}x{height} are {pixels} pixels, but at most {self.pixels} are "
                "painted at once. Ask for fewer, or for smaller ones."
            )


def _sizes(plan: Plan) -> list[tuple[int, int]]:
    return [plan.size] if plan.hires is None else [plan.size, plan.hires.size]
