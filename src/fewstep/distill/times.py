"""Which timesteps a method trains on: where each item starts, where the jump ends, and the target time it must land at.

    LCM   the clean latent                                      Luo et al. 2023, 2310.04378
    PCM   the lower edge of t's phase                           Wang et al. 2024, 2405.18407
    TCD   anywhere on the grid down from t'                     Zheng et al. 2024, 2402.19159, algorithm 3
    TDD   the points of the samplers to come, a little below t' Wang et al. 2024, 2409.01347
    TSCD  anywhere in t's segment                               Ren et al. 2024, Hyper-SD, 2404.13686, section 3.1
    TDM   the lower edge of the segment the batch is in         Luo et al. 2025, 2503.06674

Shapes: B batch.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch

from fewstep.errors import RecipeError
from fewstep.sampling.consistency import phase_edges


@dataclass(frozen=True)
class Times:
    """t > t' >= s of each item, [B] int64; `path` the timesteps from which a student gets to t by its own steps."""

    t_B: torch.Tensor
    t_next_B: torch.Tensor
    s_B: torch.Tensor
    path: tuple[int, ...] = ()

    def to(self, device: torch.device) -> "Times":
        """The same on another device."""
        return Times(self.t_B.to(device), self.t_next_B.to(device), self.s_B.to(device), self.path)


@dataclass(frozen=True)
class Jump:
    """The ends of a teacher's jump on its grid of `origin_steps` points, and two numbers in [0, 1) for each item."""

    t_B: torch.Tensor
    t_next_B: torch.Tensor
    uniform_B2: torch.Tensor
    origin_steps: int
    count: int = 1000


Target = Callable[[Jump], torch.Tensor]


def grid(origin_steps: int, count: int = 1000) -> tuple[int, ...]:
    """The teacher's grid, ascending: (1..N) * count/N - 1.

    >>> grid(50)[:3], grid(50)[-1]
    ((19, 39, 59), 999)
    """
    if not 1 <= origin_steps <= count or count % origin_steps:
        raise RecipeError(
            f"origin_steps = {origin_steps} does not divide the {count} timesteps evenly. Use 50, 40, 25 or 20."
        )
    stride = count // origin_steps
    return tuple(stride * place - 1 for place in range(1, origin_steps + 1))


def grid_pair(index_B: torch.Tensor, origin_steps: int, count: int = 1000) -> tuple[torch.Tensor, torch.Tensor]:
    """Timesteps t = grid[index] and t' = max(t - stride, 0), both [B] int64; at index 0, t' is timestep 0, not -1."""
    t_B = torch.tensor(grid(origin_steps, count), device=index_B.device)[index_B]
    return t_B, (t_B - count // origin_steps).clamp(min=0)


def jump_times(target: Target, batch: int, origin_steps: int, count: int, generator: torch.Generator) -> Times:
    """A jump from an evenly drawn point of the grid to the next one, and `target`'s time below it."""
    index_B = torch.randint(origin_steps, (batch,), generator=generator)
    t_B, t_next_B = grid_pair(index_B, origin_steps, count)
    uniform_B2 = torch.rand((batch, 2), generator=generator)
    return Times(t_B, t_next_B, target(Jump(t_B, t_next_B, uniform_B2, origin_steps, count)))


def segment_times(phases: int, batch: int, origin_steps: int, count: int, generator: torch.Generator) -> Times:
    """One segment for the whole batch, because its students have to walk there together; t' is drawn evenly from the
    grid's points above the segment's lower edge, and is where samples are noised to, to be judged.
    """
    stride, edges = count // origin_steps, (*phase_edges(phases, count=count), count - 1)
    place = int(torch.randint(phases, (1,), generator=generator))
    low, high = (edges[place] + 1) // stride, (edges[place + 1] + 1) // stride
    judged_B = torch.randint(low + 1, high + 1, (batch,), generator=generator) * stride - 1
    t_B, s_B = (torch.full((batch,), edge) for edge in (edges[place + 1], edges[place]))
    return Times(t_B, judged_B, s_B, path=edges[:place:-1])


def to_clean(jump: Jump) -> torch.Tensor:
    """0 everywhere."""
    return torch.zeros_like(jump.t_next_B)


def to_edge(jump: Jump, *, phases: int) -> torch.Tensor:
    """The greatest of the phases' lower edges that lies below t.

    >>> jump = Jump(torch.tensor([124, 249, 374, 999]), torch.tensor([0, 124, 249, 874]), torch.zeros(4, 2), 8)
    >>> to_edge(jump, phases=4).tolist()
    [0, 0, 249, 749]
    """
    edges_M = torch.tensor(phase_edges(phases, count=jump.count), device=jump.t_B.device)
    return edges_M[((edges_M < jump.t_B[:, None]).sum(1) - 1).clamp(min=0)]


def to_anywhere(jump: Jump, *, segments: int = 1) -> torch.Tensor:
    """A point of the grid, drawn evenly from the lower edge of t's segment (of `segments` equal ones) to t'."""
    stride = jump.count // jump.origin_steps
    low_B = to_edge(jump, phases=segments)
    steps_B = (jump.t_next_B - low_B + stride - 1) // stride
    drawn_B = (jump.uniform_B2[:, 0] * (steps_B + 1)).long().clamp(max=steps_B)
    return (jump.t_next_B - drawn_B * stride).clamp(min=low_B)


def to_later_steps(jump: Jump, *, steps: tuple[int, ...] = (4, 5, 6, 7, 8), eta: float = 0.3) -> torch.Tensor:
    """One of the points that samplers of `steps` steps visit within the longest such step below t', drawn evenly, and
    shortened by up to the share `eta` ("non-equidistant" targets).
    """
    points = {max(round(jump.count * place / n) - 1, 0) for n in steps for place in range(n)}
    points_M = torch.tensor(sorted(points), device=jump.t_B.device)
    reach = jump.count // min(steps)
    near_BM = (points_M <= jump.t_next_B[:, None]) & (points_M >= jump.t_next_B[:, None] - reach)
    place_B = (jump.uniform_B2[:, 0] * near_BM.sum(1)).long()
    chosen_B = points_M[(near_BM.cumsum(1) > place_B[:, None]).int().argmax(1)]
    return (chosen_B * (1 - eta * jump.uniform_B2[:, 1])).long()
