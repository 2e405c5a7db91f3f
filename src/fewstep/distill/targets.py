"""Where a consistency method lands: the target time s of each item, 0 <= s <= t' < t, by the method's own rule.

    LCM   the clean latent                                      Luo et al. 2023, 2310.04378
    PCM   the lower edge of t's phase                           Wang et al. 2024, 2405.18407
    TCD   anywhere on the grid down from t'                     Zheng et al. 2024, 2402.19159, algorithm 3
    TDD   the points of the samplers to come, a little below t' Wang et al. 2024, 2409.01347
    TSCD  anywhere in t's segment                               Ren et al. 2024, Hyper-SD, 2404.13686, section 3.1

Each rule is a pure function of the drawn timesteps and of uniform numbers, so that a resumed run draws the same.
Shapes: B batch.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch

from fewstep.sampling.consistency import phase_edges


@dataclass(frozen=True)
class Ends:
    """The two ends of a teacher's jump on its grid of `origin_steps` points, and `uniform_B2`, two numbers in [0, 1)
    for each item.
    """

    t_B: torch.Tensor
    t_next_B: torch.Tensor
    uniform_B2: torch.Tensor
    origin_steps: int
    count: int = 1000


Target = Callable[[Ends], torch.Tensor]


def to_clean(ends: Ends) -> torch.Tensor:
    """0 everywhere."""
    return torch.zeros_like(ends.t_next_B)


def to_edge(ends: Ends, *, phases: int) -> torch.Tensor:
    """The greatest of the phases' lower edges that lies below t.

    >>> ends = Ends(torch.tensor([124, 249, 374, 999]), torch.tensor([0, 124, 249, 874]), torch.zeros(4, 2), 8)
    >>> to_edge(ends, phases=4).tolist()
    [0, 0, 249, 749]
    """
    edges_M = torch.tensor(phase_edges(phases, count=ends.count), device=ends.t_B.device)
    return edges_M[((edges_M < ends.t_B[:, None]).sum(1) - 1).clamp(min=0)]


def to_anywhere(ends: Ends, *, segments: int = 1) -> torch.Tensor:
    """A point of the grid, drawn evenly from the lower edge of t's segment (of `segments` equal ones) to t'."""
    stride = ends.count // ends.origin_steps
    low_B = to_edge(ends, phases=segments)
    steps_B = (ends.t_next_B - low_B + stride - 1) // stride
    drawn_B = (ends.uniform_B2[:, 0] * (steps_B + 1)).long().clamp(max=steps_B)
    return (ends.t_next_B - drawn_B * stride).clamp(min=low_B)


def to_later_steps(ends: Ends, *, steps: tuple[int, ...] = (4, 5, 6, 7, 8), eta: float = 0.3) -> torch.Tensor:
    """One of the points that samplers of `steps` steps visit within the longest such step below t', drawn evenly, and
    shortened by up to the share `eta` ("non-equidistant" targets).
    """
    points = {max(round(ends.count * place / n) - 1, 0) for n in steps for place in range(n)}
    points_M = torch.tensor(sorted(points), device=ends.t_B.device)
    reach = ends.count // min(steps)
    near_BM = (points_M <= ends.t_next_B[:, None]) & (points_M >= ends.t_next_B[:, None] - reach)
    place_B = (ends.uniform_B2[:, 0] * near_BM.sum(1)).long()
    chosen_B = points_M[(near_BM.cumsum(1) > place_B[:, None]).int().argmax(1)]
    return (chosen_B * (1 - eta * ends.uniform_B2[:, 1])).long()
