"""The families of LoRA files: what each adds to a weight, as one closed form of its tensors and the untouched weight.

| class     | adds to W (times the user's weight)                             | source                         |
|-----------|-----------------------------------------------------------------|--------------------------------|
| LoraLayer | alpha/r · up down, or up mid down (LoCon's Tucker form)         | 2106.09685 eq. 3; 2309.14859   |
| Loha      | alpha/r · (a1 b1) ⊙ (a2 b2), each perhaps in Tucker form        | 2108.06098 prop. 1 to 3        |
| Lokr      | alpha/r · w1 ⊗ w2, each whole, a product or in Tucker form      | 2309.14859                     |
| Glora     | alpha/r · (W a1 a2 + b1 b2)                                     | 2306.07967, as LyCORIS has it  |
| Ia3       | W ⊙ l, by row or (on_input) by column; PEFT's of biases too     | 2205.05638, with l - 1 as l    |
| Oft       | s Rᵀ W - W, R blocks on the diagonal, by Cayley from skew Q     | 2306.07280                     |
| Boft      | s R_m ... R_1 W - W, a butterfly of such blocks                 | 2311.06243                     |
| PeftOft, PeftBoft | the same of the inputs, W Rᵀ, with PEFT's Cayley maps   | peft 0.21, tuners/oft and boft |
| Tlora     | alpha/r · (p λ q - U S Vᵀ), singular triplets of W it began at  | 2507.05964, as LyCORIS has it  |
| Diff      | the difference itself; also of norms and of biases              | LyCORIS "full", ComfyUI        |
| SetWeight | new - W                                                         | ComfyUI                        |
| Dora      | m (W + D) / |W + D| - W, where D is what another family adds    | 2402.09353 eq. 5               |

Everything is a difference from the untouched weight, and several LoRAs add up: no order of theirs matters. Departures:
the user's weight scales this whole difference, where LyCORIS scales inside a rotation and ComfyUI ignores it for
SetWeight; at weight 1 all agree. T-LoRA's mask of ranks by timestep is open, as in LyCORIS' merging.

One implementation for torch and numpy: `base` is float32 and says which. Nothing here imports torch.
Suffixes: O out, I in, R rank, K blocks, N block size.
"""

from collections.abc import Mapping
from dataclasses import MISSING, dataclass, fields, replace
from math import prod
from typing import Any, ClassVar

from fewstep.checkpoints.lora_products import Glora, Layer, Loha, Lokr, LoraLayer, Shape, flat, like, scale_of
from fewstep.checkpoints.lora_rotations import Boft, Oft, PeftBoft, PeftOft, Rankless
from fewstep.errors import LoraError
from fewstep.sampling.arrays import Array, namespace

__all__ = [
    "FAMILIES",
    "BiasIa3",
    "Diff",
    "Dora",
    "Layer",
    "Loha",
    "Lokr",
    "LoraLayer",
    "Shape",
    "alpha_of",
    "build",
    "tensors_of",
    "with_alpha",
]


@dataclass(frozen=True, eq=False)
class Ia3(Rankless):
    """One number for each output, or for each input."""

    label: ClassVar[str] = "IA3"
    weight: Array
    on_input: float

    @property
    def shape(self) -> Shape | None:
        count = prod(self.weight.shape)
        if count != max(self.weight.shape, default=0):
            return None
        return (None, count) if self.on_input else (count, None)

    def delta(self, base: Array) -> Array:
        scale = like(self.weight, base).reshape((1, -1) if self.on_input else (-1, 1))
        return base * scale.reshape(scale.shape + (1,) * (base.ndim - 2))


@dataclass(frozen=True, eq=False)
class BiasIa3(Ia3):
    """One number for each output, of its bias; for nothing where there is no bias."""

    optional: ClassVar[bool] = True

    def delta(self, base: Array) -> Array:
        return base * like(self.weight, base).reshape(-1)


@dataclass(frozen=True, eq=False)
class Tlora:
    """p [out, rank], λ [1, rank], q [rank, in]: learned from singular triplets of W, which the file does not hold.

    They are the first, the middle or the last ones of W; those nearest to q are taken.
    """

    label: ClassVar[str] = "T-LoRA"
    q_layer: Array
    p_layer: Array
    lambda_layer: Array
    alpha: float | None = None

    @property
    def rank(self) -> int:
        return self.q_layer.shape[0]

    @property
    def shape(self) -> Shape | None:
        found = LoraLayer(self.q_layer, self.p_layer).shape
        return found if prod(self.lambda_layer.shape) == self.rank else None

    def delta(self, base: Array) -> Array:
        q_RI, p_OR = flat(like(self.q_layer, base)), flat(like(self.p_layer, base))
        learned = p_OR * like(self.lambda_layer, base).reshape(1, -1) @ q_RI
        return (learned - self._start(q_RI, base)) * scale_of(self.alpha, self.rank)

    def _start(self, q_RI: Array, base: Array) -> Array:
        u, s, vh = namespace(base).linalg.svd(flat(base), full_matrices=False)
        rank, count = self.rank, len(s)
        places = [slice(first, first + rank) for first in (0, max((count - rank) // 2, 0), max(count - rank, 0))]
        near = [float(((vh[place] @ q_RI.T) ** 2).sum() / (q_RI * q_RI).sum()) for place in places]
        if max(near) < 0.5:
            raise LoraError(
                "A T-LoRA that began at random matrices cannot be applied: they are not in its file. Train it from the "
                "singular vectors of the weights (use_data_init), or use a LoRA."
            )
        place = places[near.index(max(near))]
        return (u[:, place] * s[place]) @ vh[place]


@dataclass(frozen=True, eq=False)
class Diff(Rankless):
    """A difference of the whole weight, norm or bias."""

    label: ClassVar[str] = "full difference"
    diff: Array
    alpha: float | None = None

    @property
    def shape(self) -> Shape | None:
        return tuple(self.diff.shape)

    def delta(self, base: Array) -> Array:
        return like(self.diff, base)


@dataclass(frozen=True, eq=False)
class SetWeight(Rankless):
    """A new weight in the place of the old."""

    label: ClassVar[str] = "set_weight"
    set_weight: Array

    @property
    def shape(self) -> Shape | None:
        return tuple(self.set_weight.shape)

    def delta(self, base: Array) -> Array:
        return like(self.set_weight, base).reshape(base.shape) - base


@dataclass(frozen=True, eq=False)
class Dora:
    """New lengths for the rows, or in old LyCORIS files for the columns, of the weight that another family changed.

    PEFT's magnitudes are of rows, one for each output; kohya's `dora_scale` [out, 1] of rows, [1, in] of columns.
    """

    label: ClassVar[str] = "DoRA"
    layer: Layer
    magnitude: Array
    of_rows: bool

    @property
    def rank(self) -> int | None:
        return self.layer.rank

    @property
    def shape(self) -> Shape | None:
        found, count = self.layer.shape, prod(self.magnitude.shape)
        if found is not None and not self.of_rows and len(found) == 2 and found[1] and found[1] % count == 0:
            found = (found[0], count, found[1] // count)  # a kernel that was flattened
        return found if found is not None and count == found[0 if self.of_rows else 1] else None

    def delta(self, base: Array) -> Array:
        changed = base + self.layer.delta(base).reshape(base.shape)
        others = tuple(axis for axis in range(base.ndim) if axis != (0 if self.of_rows else 1))
        length = (changed * changed).sum(others)
        lengths = (length + (length == 0)) ** 0.5  # a row of zeros has no direction and stays
        ratio = like(self.magnitude, base).reshape(-1) / lengths
        return changed * ratio.reshape([1 if axis in others else -1 for axis in range(base.ndim)]) - base


FAMILIES: tuple[type[Any], ...] = (
    *(LoraLayer, Loha, Lokr, Glora, Ia3, Oft, PeftOft, PeftBoft, Tlora, Diff, SetWeight),
)
"""A family is recognised by its parts, which `lora_keys` finds at the ends of names: they are its class's fields."""


def build(parts: Mapping[str, Any]) -> Layer:
    """The layer that these parts of one module make.

    Raises ValueError with what is wrong, to be said after the module's name.
    """
    found = [cls for cls in FAMILIES if parts.keys() & _own(cls)]
    if len(found) > 1:
        raise ValueError(f"has parts of two formats, {found[0].label} and {found[1].label}")
    cls = found[0] if found else LoraLayer
    lacking = sorted(_lacking(cls, parts))
    if lacking:
        raise ValueError(f"has {' and '.join(parts)} but no '{lacking[0]}'")
    if cls is Oft and parts["oft_blocks"].ndim == 4:
        cls = Boft
    known = {field.name for field in fields(cls)}
    layer = cls(**{part: value for part, value in parts.items() if part in known})
    for name, of_rows in (("magnitude", True), ("dora_scale", False)):
        if (magnitude := parts.get(name)) is not None:
            layer = Dora(layer, magnitude, of_rows or magnitude.ndim < 2 or magnitude.shape[0] != 1)
    return layer


def _own(cls: type[Any]) -> set[str]:
    return {field.name for field in fields(cls)} - {"alpha"}


def _lacking(cls: type[Any], parts: Mapping[str, Any]) -> set[str]:
    if cls is Lokr:
        halves = [name for name in ("lokr_w1", "lokr_w2") if name not in parts]
        return {f"{name}{end}" for name in halves for end in ("_a", "_b") if f"{name}{end}" not in parts}
    return {field.name for field in fields(cls) if field.default is MISSING} - parts.keys()


def with_alpha(layer: Any, alpha: float) -> Any:
    """The same layer with another alpha."""
    if isinstance(layer, Dora):
        return replace(layer, layer=with_alpha(layer.layer, alpha))
    return replace(layer, alpha=alpha)


def alpha_of(layer: Any) -> float | None:
    """A layer's alpha, where its family has one."""
    return alpha_of(layer.layer) if isinstance(layer, Dora) else getattr(layer, "alpha", None)


def tensors_of(layer: Any) -> list[Array]:
    """All tensors of a layer."""
    if isinstance(layer, Dora):
        return [*tensors_of(layer.layer), layer.magnitude]
    values = [getattr(layer, field.name) for field in fields(layer)]
    return [value for value in values if hasattr(value, "shape")]
