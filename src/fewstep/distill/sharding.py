"""Networks split among the processes (FSDP2, `fully_shard`), and made whole again for whoever needs them whole.

Each weight is split by its rows; a residual or transformer block is gathered when it is computed and dropped after.
Forward and backward passes are then everybody's business at the same time, so looks and results, which only the first
process makes, are made from a whole copy that it gathers. Checkpoints hold whole tensors, as those of one process do.

Source: Zhao et al. 2023, PyTorch FSDP, 2304.11277; the per-parameter form is torch.distributed.fsdp.fully_shard.
"""

from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import replace
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from fewstep.distill.world import World, on_first

if TYPE_CHECKING:
    from fewstep.distill.run import Run

BLOCKS = ("BasicTransformerBlock", "ResnetBlock2D")
"""What is gathered at once: the classes that a diffusers UNet repeats."""

_T = TypeVar("_T")


def spread_over(world: World) -> Callable[[Any], Any]:
    """A function that splits a network, in place, among the world's processes, on their devices."""
    mesh = init_device_mesh(torch.device(world.device).type, (world.size,))

    def spread(unet: Any) -> Any:
        for block in [module for module in unet.modules() if type(module).__name__ in BLOCKS]:
            fully_shard(block, mesh=mesh)
        # What is in no block would stay gathered by default, and an average that is moved would not be heard.
        return fully_shard(unet, mesh=mesh, reshard_after_forward=True)

    return spread


def whole(tensor: torch.Tensor) -> torch.Tensor:
    """The whole of a tensor; one that is split is gathered by all processes together."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def gathered(tensors: Mapping[str, torch.Tensor], *, keep: bool) -> dict[str, torch.Tensor]:
    """Whole copies on the CPU, one gathered after another, so that the device holds one at a time; empty unless
    `keep`.
    """
    found: dict[str, torch.Tensor] = {}
    for name, tensor in tensors.items():
        full = whole(tensor.detach())
        if keep:
            found[name] = full.cpu().contiguous()
    return found


@torch.no_grad()
def put(target: torch.Tensor, value: torch.Tensor) -> None:
    """Write a whole tensor into one that may be split; each process takes its rows of it, and none is sent."""
    if isinstance(target, DTensor):
        value = value.to(target.device, target.dtype)
        value = distribute_tensor(value, target.device_mesh, target.placements, src_data_rank=None)
    target.copy_(value)


def on_whole(run: "Run", work: Callable[["Run"], _T]) -> _T:
    """Let the first process do some work with the run while the others wait; its answer, or its error, is everybody's.

    Where networks are split, the work sees a copy of the run with whole ones. Nothing is compiled for it.
    """
    copy = _whole_run(run) if _is_split(run) else run
    eager = torch.compiler.set_stance("force_eager") if run.recipe.compile else nullcontext()
    with eager:
        return on_first(run.world, lambda: work(copy))


def _is_split(run: "Run") -> bool:
    return any(isinstance(value, DTensor) for value in run.student.parameters.values())


def _whole_run(run: "Run") -> "Run":
    from fewstep.distill.students import STUDENTS

    student, first = run.student, run.world.first
    named = {
        name.replace(".base_layer.", "."): value
        for name, value in student.teacher_unet.state_dict().items()
        if ".lora_" not in name
    }
    base, learnt = gathered(named, keep=first), gathered(student.tensors(), keep=first)
    if not first:
        return run
    with torch.device("meta"):
        unet = student.kind.from_config(dict(student.teacher_unet.config))
    unet.to_empty(device=run.device).load_state_dict(base)
    plain = STUDENTS[run.recipe.student](unet, replace(run.recipe, compile=False), size=run.size)
    plain.load(learnt)
    return replace(run, model=replace(run.model, unet=unet), student=plain)
