"""The processes that train together, as torchrun (or accelerate launch) starts them, on one machine or on several.

One process alone is a world of size 1, and nothing here then communicates. The first process (rank 0) writes, prints
and looks; what it decides is told to the others. All of them need the same folders: data, model and run.

Gradients are averaged by hand after the backward pass, not by DistributedDataParallel: a step calls the one UNet
several times with different LoRA layers heard, under no_grad and with it, and DDP's hooks count on one forward to one
backward, and put a second name before every weight. The price is that nothing overlaps: for a LoRA that is one
all-reduce of some hundred megabytes; a full student at scale is for `sharding = "fsdp2"`, which overlaps.
"""

import os
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any

import torch
from torch import distributed
from torch.distributed.rendezvous import rendezvous
from torch.distributed.tensor import DTensor

from fewstep import device as devices
from fewstep.errors import FewstepError

BUCKET = 1 << 24
"""Numbers that are averaged in one message."""

_WAIT = timedelta(hours=2)
_FAILED = "fewstep.failed"


@dataclass(frozen=True)
class World:
    """This process's rank, from 0, among `size` processes, its number on its own machine, and its device."""

    rank: int = 0
    size: int = 1
    local: int = 0
    device: str = "cpu"

    @property
    def first(self) -> bool:
        """Whether this process writes and speaks."""
        return self.rank == 0


def world_of(environment: dict[str, str] | None = None) -> World:
    """The world a launcher describes in the environment; without one, this process alone.

    >>> world_of({"RANK": "9", "WORLD_SIZE": "16", "LOCAL_RANK": "1"}).local, world_of({}).size
    (1, 1)
    """
    found = os.environ if environment is None else environment
    if "WORLD_SIZE" not in found:
        return World()
    rank, size, local = (int(found[name]) for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"))
    return World(rank, size, local)


def own_device(world: World, asked: str | None) -> str:
    """The device of this process: its own GPU of the machine, where GPUs are asked for. Raises DeviceError."""
    chosen = devices.choose(asked).device
    return devices.choose(f"cuda:{world.local}").device if world.size > 1 and chosen == "cuda" else chosen


@contextmanager
def joined(*, device: str) -> Iterator[World]:
    """The world this process belongs to, connected; an error in one process ends all of them with its sentence."""
    world = replace(world_of(), device=device)
    if world.size == 1:
        yield world
        return
    on_gpu = device.startswith("cuda")
    if on_gpu:
        torch.cuda.set_device(device)
    store = next(iter(rendezvous("env://", timeout=_WAIT)))[0]
    distributed.init_process_group(
        "cpu:gloo,cuda:nccl" if on_gpu else "gloo",
        store=store,
        rank=world.rank,
        world_size=world.size,
        timeout=_WAIT,
    )
    try:
        yield world
        distributed.destroy_process_group()  # not after an error: it might wait for those who failed
    except FewstepError as error:
        store.set(_FAILED, f"{type(error).__name__}:{error}")
        raise
    except RuntimeError as error:  # of this process's own, or a connection that another one's end broke
        found = _said_elsewhere(store)
        if found is None:
            store.set(_FAILED, f":Another process ended: {type(error).__name__}: {error}")
            raise
        raise found from error


def on_first(world: World, work: Callable[[], Any]) -> Any:
    """Let the first process do some work while the others wait; its answer, or its error, is everybody's."""
    if world.size == 1:
        return work()
    told: list[Any] = [None, None]
    if world.first:
        try:
            told[0] = work()
        except FewstepError as error:
            told[1] = error
    distributed.broadcast_object_list(told, src=0, device=torch.device("cpu"))
    if told[1] is not None:
        raise told[1]
    return told[0]


def anywhere(world: World, flag: bool) -> bool:
    """Whether the flag is up in any process, so that all of them act on the same step."""
    if world.size == 1:
        return flag
    raised = torch.tensor(int(flag))
    distributed.all_reduce(raised, distributed.ReduceOp.MAX)
    return bool(raised)


def together_N(world: World, value_N: torch.Tensor) -> torch.Tensor:
    """The values of all processes behind each other, in the order of their ranks, on the CPU."""
    if world.size == 1:
        return value_N
    parts = [torch.empty_like(value_N) for _ in range(world.size)]
    distributed.all_gather(parts, value_N.contiguous())
    return torch.cat(parts)


def same_start(world: World, parameters: Iterable[torch.Tensor]) -> None:
    """Every process begins with the first one's weights, whatever its own machine's arithmetic made of the seed."""
    if world.size > 1:
        for value in parameters:
            distributed.broadcast(value.data, src=0)


@torch.no_grad()
def average_gradients(world: World, parameters: Iterable[torch.nn.Parameter]) -> None:
    """Put the mean over the processes into each gradient, some at a time in one flat message."""
    if world.size == 1:
        return
    gradients = [value.grad for value in parameters if value.grad is not None]
    for bucket in buckets([gradient for gradient in gradients if not isinstance(gradient, DTensor)]):  # those are means
        flat = torch.cat([gradient.flatten() for gradient in bucket])
        distributed.all_reduce(flat)
        flat /= world.size
        for gradient, mean in zip(bucket, flat.split([gradient.numel() for gradient in bucket]), strict=True):
            gradient.copy_(mean.view(gradient.shape))


def buckets(tensors: Iterable[torch.Tensor], most: int = BUCKET) -> Iterator[list[torch.Tensor]]:
    """The tensors in order, in groups of at most `most` numbers; a larger one stands alone.

    >>> [len(bucket) for bucket in buckets([torch.zeros(2), torch.zeros(2), torch.zeros(9), torch.zeros(1)], most=4)]
    [2, 1, 1]
    """
    found: list[torch.Tensor] = []
    count = 0
    for tensor in tensors:
        if found and count + tensor.numel() > most:
            yield found
            found, count = [], 0
        found.append(tensor)
        count += tensor.numel()
    if found:
        yield found


def _said_elsewhere(store: Any) -> FewstepError | None:
    """What another process said before it ended; it may need a moment to say it."""
    for _ in range(20):
        if store.check([_FAILED]):
            name, _, sentence = store.get(_FAILED).decode().partition(":")
            kinds = {kind.__name__: kind for kind in _all_of(FewstepError)}
            return kinds.get(name, FewstepError)(sentence)
        time.sleep(0.1)
    return None


def _all_of(kind: type[FewstepError]) -> list[type[FewstepError]]:
    return [kind, *(deeper for below in kind.__subclasses__() for deeper in _all_of(below))]
