"""What a recipe will cost, before anything is downloaded: one optimiser step in shapes alone, its operations counted.

The step is the trainer's own: the student that it would build, the recipe's objective, batch, number format and
checkpointing, forward and backward. The tensors have shapes and no values (torch's fake tensors), so that SDXL at 1024
px takes seconds and no memory. Counted are the floating-point operations of matrix products, convolutions and
attention (a multiplication and an addition are two, as everywhere), and the bytes of every tensor from the moment it
is made until it is freed, which is what an allocator would hand out.

Not counted: the memory of the device's own context (about 1 GB on CUDA), scratch space of kernels, fragmentation, and
the looks. Attention is taken to be the fused kind, which keeps no matrix of weights.
"""

import time
import weakref
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry, sdpa_backward_flop_count, sdpa_flop_count, shape_wrapper

from fewstep.data.seeds import generator_at
from fewstep.distill.objectives import objective_named
from fewstep.distill.recipes import Recipe
from fewstep.distill.students import STUDENTS, Student, networks
from fewstep.distill.terms import Draw, distance_named
from fewstep.distill.times import Times
from fewstep.models.family import family_of
from fewstep.models.published import empty_unet, text_widths
from fewstep.models.text import Text
from fewstep.models.unet import LATENT_PX
from fewstep.sampling.schedule import Schedule, scaled_linear

TFLOPS: dict[str, Mapping[str, float]] = {
    "H200": {"bfloat16": 989, "float32": 67},
    "H100": {"bfloat16": 989, "float32": 67},
    "A100": {"bfloat16": 312, "float32": 19.5},
    "4090": {"bfloat16": 165, "float32": 82.6},
}
"""Dense TFLOP/s by the makers' data sheets (SXM boards; no TF32)."""

UTILISATION = 0.35
"""The share of that which a training step is taken to reach; measured ones lie between 0.3 and 0.5."""

TOKENS = 77
_DRAWS = 256


@dataclass(frozen=True)
class Cost:
    """A recipe's cost in bytes and operations; `flops` are those of one optimiser step, all its forward passes."""

    trained: int
    weights: int
    gradients: int
    moments: int
    activations: int
    peak: int
    flops: float
    samples: int
    steps: int
    precision: str

    @property
    def memory(self) -> int:
        """The most that a run takes at once, in bytes."""
        return self.weights + self.moments + self.peak

    def hours(self, gpu: str) -> float:
        """Hours of the whole run on one GPU of `TFLOPS` at `UTILISATION`."""
        return self.seconds(TFLOPS[gpu][self.precision] * 1e12 * UTILISATION) * self.steps / 3600

    def seconds(self, flops_per_s: float) -> float:
        """Seconds of one optimiser step at a speed that was measured or assumed."""
        return self.flops / flops_per_s


@dataclass(frozen=True)
class DryRun:
    """One step in shapes: the shape of each loss, and the trained weights that no gradient reached."""

    losses: dict[str, tuple[int, ...]]
    unreached: tuple[str, ...]


class Tally(TorchDispatchMode):
    """Counts everything run inside it: `flops`, and the most bytes alive at once, with and without the gradients that
    were finished by then (`most`, `most_beside`). `known` is what was there before, which a view would show again.
    """

    def __init__(self, known: Iterable[torch.Tensor] = ()) -> None:
        super().__init__()
        self.flops, self.most, self.most_beside = 0, 0, 0
        self._alive, self._finished = 0, 0
        self._seen = weakref.WeakSet(value.untyped_storage() for value in known)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run the operation, and count it and what it made."""
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        count = _FLOPS.get(func.overloadpacket)
        if count is not None:
            self.flops += count(*args, **kwargs, out_val=out)
        for value in tree_leaves(out):
            if isinstance(value, torch.Tensor):
                self._hold(value.untyped_storage())
        return out

    def finished(self, parameter: torch.Tensor) -> None:
        """A hook of a parameter whose gradient is there, to stay until the optimiser has seen it."""
        assert parameter.grad is not None
        self._finished += _bytes([parameter.grad])

    def _hold(self, storage: torch.UntypedStorage) -> None:
        if storage not in self._seen:
            self._seen.add(storage)
            self._change(storage.nbytes())
            weakref.finalize(storage, self._change, -storage.nbytes())

    def _change(self, count: int) -> None:
        self._alive += count
        self.most = max(self.most, self._alive)
        self.most_beside = max(self.most_beside, self._alive - self._finished)


def predict(recipe: Recipe, config: Mapping[str, Any], *, size_px: int | None = None) -> Cost:
    """The cost of a recipe with a UNet of this config, for square pictures (default: those it was trained at)."""
    size = _size(config, size_px)
    student = _student(recipe, config, size)
    weights = _bytes(_tensors(student))
    times, further = _times(recipe)
    with FakeTensorMode(allow_non_fake_inputs=True):
        _fill(student)
        draw, text, empty = _batch(recipe, config, size, times)
        _, tally = _pass(student, recipe, draw, text, empty)
        walk = further * _flops_of_target(student, draw, text) if further else 0
    trained = sum(value.numel() for value in student.parameters.values())
    gradients = _bytes(value.grad for value in student.parameters.values() if value.grad is not None)
    return Cost(
        trained=trained,
        weights=weights,
        gradients=gradients,
        moments=2 * (1 if recipe.optimiser == "adamw8bit" else 4) * trained,
        activations=tally.most_beside,
        peak=tally.most if recipe.accumulate == 1 else gradients + tally.most_beside,
        flops=recipe.accumulate * (tally.flops + walk),
        samples=recipe.accumulate * recipe.batch,
        steps=recipe.steps,
        precision=recipe.precision,
    )


def arithmetic_speed(device: torch.device, precision: str, *, side: int = 1536, tries: int = 5) -> float:
    """The fastest of a few matrix products on a device, in FLOP/s: what no training step will exceed by much."""
    a_NN = torch.ones(side, side, device=device, dtype=getattr(torch, precision))

    def once() -> float:
        began = time.perf_counter()
        float((a_NN @ a_NN)[0, 0])  # which waits for a GPU
        return time.perf_counter() - began

    return 2 * side**3 / min(once() for _ in range(tries))


def dry_run(recipe: Recipe, config: Mapping[str, Any], *, size_px: int | None = None) -> DryRun:
    """One forward and backward pass of a recipe in shapes; quicker than `predict`, because number format and
    checkpointing, which change neither shapes nor gradients, are left out.
    """
    plain, size = replace(recipe, precision="float32", checkpointing=False), _size(config, size_px)
    student = _student(plain, config, size)
    times = _times(recipe)[0].to(torch.device("meta"))
    with torch.device("meta"):
        draw, text, empty = _batch(recipe, config, size, times)
    losses, _ = _pass(student, plain, draw, text, empty)
    return DryRun(losses, tuple(name for name, value in student.parameters.items() if value.grad is None))


def _size(config: Mapping[str, Any], size_px: int | None) -> tuple[int, int]:
    side = size_px or family_of(config).size_px
    return side, side


def _student(recipe: Recipe, config: Mapping[str, Any], size: tuple[int, int]) -> Student:
    with torch.device("meta"):
        return STUDENTS[recipe.student](empty_unet(config), replace(recipe, compile=False), size=size)


class _Shapes(Schedule):
    """A schedule that does not ask whether timesteps are in range: they have no values."""

    def _check(self, t_B: Any) -> None:
        pass


def _pass(
    student: Student, recipe: Recipe, draw: Draw, text: Text, empty: Text
) -> tuple[dict[str, tuple[int, ...]], Tally]:
    given = (draw.z0_BCHW, text.text_BLD, text.pooled_BD, empty.text_BLD, empty.pooled_BD)
    tally = Tally([*_tensors(student), *(value for value in given if value is not None)])
    hooks = [value.register_post_accumulate_grad_hook(tally.finished) for value in student.parameters.values()]
    with tally:
        losses = objective_named(recipe.objective).loss(
            networks(student, text, empty, w_B=draw.w_B, guided=recipe.w_max > 0),
            _Shapes(scaled_linear()),
            draw,
            distance=distance_named(recipe.distance, huber_c=recipe.huber_c),
        )
        torch.stack([loss_B.mean() for loss_B in losses.values()]).sum().backward()
    for hook in hooks:
        hook.remove()
    return {name: tuple(loss_B.shape) for name, loss_B in losses.items()}, tally


def _times(recipe: Recipe) -> tuple[Times, float]:
    """The times of one step, and by how many of the student's own steps an average draw walks further than it."""
    drawn = [
        objective_named(recipe.objective).times(recipe, 1000, generator_at(recipe.seed, place, "draw"))
        for place in range(_DRAWS)
    ]
    return drawn[0], sum(len(times.path) for times in drawn) / _DRAWS - len(drawn[0].path)


def _flops_of_target(student: Student, draw: Draw, text: Text) -> int:
    with Tally() as tally:
        student.target(draw.z0_BCHW, draw.times.t_B, text, draw.w_B)
    return tally.flops


def _batch(recipe: Recipe, config: Mapping[str, Any], size: tuple[int, int], times: Times) -> tuple[Draw, Text, Text]:
    batch, (width, pooled) = recipe.batch, text_widths(config)
    z_BCHW = torch.empty(batch, config.get("in_channels", 4), *(px // LATENT_PX for px in size))
    text, empty = (
        Text(torch.empty(rows, TOKENS, width), None if pooled is None else torch.empty(rows, pooled))
        for rows in (batch, 1)
    )
    return Draw(z_BCHW, z_BCHW, z_BCHW, times, torch.empty(batch)), text, empty


def _modules(student: Student) -> list[torch.nn.Module]:
    return [value for value in vars(student).values() if isinstance(value, torch.nn.Module)]


def _tensors(student: Student) -> Iterator[torch.Tensor]:
    for network in _modules(student):
        yield from network.parameters()
        yield from network.buffers()


def _bytes(tensors: Iterable[torch.Tensor]) -> int:
    return sum({id(value): value.numel() * value.element_size() for value in tensors}.values())


def _fill(student: Student) -> None:
    """Put tensors that claim to be on a CPU where those on "meta" are, which knows neither autocast nor fused
    attention.
    """
    new: dict[int, torch.nn.Parameter] = {}
    for module in {id(part): part for network in _modules(student) for part in network.modules()}.values():
        for name, value in module.named_parameters(recurse=False):
            filled = torch.nn.Parameter(torch.empty_like(value, device="cpu"), value.requires_grad)
            setattr(module, name, new.setdefault(id(value), filled))
        for name, value in module.named_buffers(recurse=False):
            setattr(module, name, torch.empty_like(value, device="cpu"))
    student.parameters = {name: new[id(value)] for name, value in student.parameters.items()}


def _attention(query: Any, key: Any, value: Any, *args: Any, **kwargs: Any) -> int:
    return sdpa_flop_count(query, key, value)


def _attention_backward(grad: Any, query: Any, key: Any, value: Any, *args: Any, **kwargs: Any) -> int:
    return sdpa_backward_flop_count(grad, query, key, value)


FUSED_ATTENTION = {
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _attention,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: _attention_backward,
}
"""Operations of attention on a CPU as functions of shapes, which torch's own table lacks."""

_FLOPS: dict[Any, Any] = flop_registry | {name: shape_wrapper(count) for name, count in FUSED_ATTENTION.items()}
