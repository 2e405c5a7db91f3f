"""What one order may ask of the server."""

from __future__ import annotations

from dataclasses import dataclass

from fewstep.errors import RequestError
from fewstep.plan import Plan


@dataclass(frozen=True)
class Limits:
    """`steps` of each pass, `count` of pictures, and `pixels` of them all, at the size of the larger pass."""

    steps: int = 50
    count: int = 16
    pixels: int = 16 * 1024 * 1024

    def check(self, plan: Plan) -> None:
        """Raises RequestError where a plan is beyond them."""
        passes = [plan, plan.hires] if plan.hires is not None else [plan]
        count, steps = plan.request.count, max(len(one.timesteps) for one in passes)
        if steps > self.steps:
            raise RequestError(f"{steps} steps are more than the {self.steps} that this server takes. Ask for fewer.")
        if count > self.count:
            raise RequestError(f"{count} pictures are more than {self.count} at once. Ask several times.")
        width, height = max((one.size for one in passes), key=lambda size: size[0] * size[1])
        if count * width * height > self.pixels:
            raise RequestError(
                f"{count} of {width}x{height} are {count * width * height} pixels, but at most {self.pixels} are "
                "painted at once. Ask for fewer, or for smaller ones."
            )
