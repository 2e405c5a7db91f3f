"""What a layer of a LoRA file is, and the families whose tensors multiply to what is added; `lora_families` has all.

Suffixes: O out, I in, R and S rank, H and W a kernel's height and width.
"""

from dataclasses import dataclass
from math import prod
from typing import Any, ClassVar, Protocol, TypeAlias

from fewstep.sampling.arrays import Array, is_torch, namespace

Shape: TypeAlias = tuple[int | None, ...]
"""(out, in) or (out, in, height, width), or flattened behind `out`; None: whatever the weight has."""


class Layer(Protocol):
    """What a LoRA does to one weight (or bias)."""

    label: ClassVar[str]

    @property
    def rank(self) -> int | None:
        """The inner width, by which alpha is divided; None where there is none."""
        ...

    @property
    def shape(self) -> Shape | None:
        """Of the weight it fits; None when its own tensors do not fit one another."""
        ...

    def delta(self, base: Array) -> Array:
        """What is added to `base` at weight 1: float32, as many numbers as `base` in the same order."""
        ...


def like(part: Array, base: Array) -> Array:
    """`part` in float32, in the library and on the device of `base`."""
    xp = namespace(base)
    if is_torch(base):
        return xp.as_tensor(part).to(base.device, xp.float32)
    return xp.asarray(part.float() if is_torch(part) else part, xp.float32)


def flat(x: Array) -> Array:
    """The first axis as it is, the others as one."""
    return x.reshape(len(x), -1)


def tucker(core_RSHW: Array, up_RO: Array, down_SI: Array) -> Array:
    """The sum over r and s of up[r, o] core[r, s, h, w] down[s, i] as (O, I H W)."""
    inner = down_SI.T @ core_RSHW.reshape(*core_RSHW.shape[:2], -1)
    return up_RO.T @ flat(inner)


def scale_of(alpha: float | None, rank: int | None) -> float:
    """By which a product is multiplied: alpha / rank; a file without alphas means alpha = rank."""
    return 1.0 if alpha is None or rank is None else alpha / rank


@dataclass(frozen=True, eq=False)
class LoraLayer:
    """Linear: down [rank, in], up [out, rank]. Convolution: down [rank, in, height, width], up [out, rank, 1, 1]; or
    with mid [rank, rank, height, width] and down [rank, in, 1, 1].
    """

    label: ClassVar[str] = "LoRA"
    down: Array
    up: Array
    alpha: float | None = None
    mid: Array | None = None

    @property
    def rank(self) -> int:
        return self.down.shape[0]

    @property
    def scale(self) -> float:
        """By which up down is multiplied: alpha / rank."""
        return scale_of(self.alpha, self.rank)

    @property
    def shape(self) -> Shape | None:
        down, up, mid = self.down.shape, self.up.shape, None if self.mid is None else self.mid.shape
        if len(down) not in (2, 4) or len(up) not in (2, 4) or up[1] != down[0] or prod(up[2:]) != 1:
            return None
        if mid is None:
            return (up[0], *down[1:])
        fits = len(mid) == 4 and mid[:2] == (up[1], down[0]) and prod(down[2:]) == 1
        return (up[0], down[1], *mid[2:]) if fits else None

    def delta(self, base: Array) -> Array:
        up_OR, down_RI = flat(like(self.up, base)) * self.scale, flat(like(self.down, base))
        return up_OR @ down_RI if self.mid is None else tucker(like(self.mid, base), up_OR.T, down_RI)


def _half_shape(a: Any, b: Any, core: Any) -> tuple[int, ...] | None:
    """Of a b, where a is [out, rank], b [rank, in]; with a core a is [rank, out] and the core [rank, rank, h, w]."""
    if a is None or b is None or a.ndim != 2 or b.ndim not in (2, 4):
        return None
    if core is None:
        return (a.shape[0], *b.shape[1:]) if a.shape[1] == b.shape[0] else None
    fits = core.ndim == 4 and b.ndim == 2 and core.shape[:2] == (a.shape[0], b.shape[0])
    return (a.shape[1], b.shape[1], *core.shape[2:]) if fits else None


def _half(a: Array, b: Array, core: Array | None, base: Array) -> Array:
    """The product that `_half_shape` measures, as (O, rest)."""
    a, b = like(a, base), flat(like(b, base))
    return a @ b if core is None else tucker(like(core, base), a, b)


@dataclass(frozen=True, eq=False)
class Loha:
    """The entrywise product of two products."""

    label: ClassVar[str] = "LoHa"
    hada_w1_a: Array
    hada_w1_b: Array
    hada_w2_a: Array
    hada_w2_b: Array
    hada_t1: Array | None = None
    hada_t2: Array | None = None
    alpha: float | None = None

    @property
    def rank(self) -> int:
        return self.hada_w1_b.shape[0]

    @property
    def halves(self) -> tuple[tuple[Array, Array, Array | None], tuple[Array, Array, Array | None]]:
        """(a, b, core) twice."""
        return (self.hada_w1_a, self.hada_w1_b, self.hada_t1), (self.hada_w2_a, self.hada_w2_b, self.hada_t2)

    @property
    def shape(self) -> Shape | None:
        one, two = (_half_shape(*half) for half in self.halves)
        return one if one == two else None

    def delta(self, base: Array) -> Array:
        one, two = (_half(*half, base) for half in self.halves)
        return one * two * scale_of(self.alpha, self.rank)


@dataclass(frozen=True, eq=False)
class Lokr:
    """A Kronecker product. Where both factors are whole there is no rank, and alpha has no effect."""

    label: ClassVar[str] = "LoKr"
    lokr_w1: Array | None = None
    lokr_w1_a: Array | None = None
    lokr_w1_b: Array | None = None
    lokr_t1: Array | None = None
    lokr_w2: Array | None = None
    lokr_w2_a: Array | None = None
    lokr_w2_b: Array | None = None
    lokr_t2: Array | None = None
    alpha: float | None = None

    @property
    def rank(self) -> int | None:
        inner = self.lokr_w1_b if self.lokr_w1_b is not None else self.lokr_w2_b
        return None if inner is None else inner.shape[0]

    @property
    def _factors(self) -> tuple[tuple[Any, Any, Any, Any], ...]:
        return (
            (self.lokr_w1, self.lokr_w1_a, self.lokr_w1_b, self.lokr_t1),
            (self.lokr_w2, self.lokr_w2_a, self.lokr_w2_b, self.lokr_t2),
        )

    @property
    def _shapes(self) -> list[tuple[int, ...] | None]:
        """Of both factors, padded by ones to the same length."""
        found = [
            _half_shape(a, b, core) if whole is None else tuple(whole.shape) for whole, a, b, core in self._factors
        ]
        length = max(len(shape or ()) for shape in found)
        return [shape and shape + (1,) * (length - len(shape)) for shape in found]

    @property
    def shape(self) -> Shape | None:
        one, two = self._shapes
        return tuple(a * b for a, b in zip(one, two, strict=True)) if one and two and len(one) in (2, 4) else None

    def delta(self, base: Array) -> Array:
        one, two = (
            (_half(a, b, core, base) if whole is None else like(whole, base)).reshape(shape)
            for (whole, a, b, core), shape in zip(self._factors, self._shapes, strict=True)
        )
        return namespace(base).kron(one, two) * scale_of(self.alpha, self.rank)


@dataclass(frozen=True, eq=False)
class Glora:
    """a1 [in, rank], a2 [rank, in], b1 [out, rank], b2 [rank, in, ...]; bm [rank, rank, height, width] between the b.

    Files of LyCORIS before 3.0 have the two of each pair the other way round; their shapes tell.
    """

    label: ClassVar[str] = "GLoRA"
    a1: Array
    a2: Array
    b1: Array
    b2: Array
    bm: Array | None = None
    alpha: float | None = None

    @property
    def _ordered(self) -> tuple[Array, Array, Array, Array]:
        a1, a2, b1, b2 = found = self.a1, self.a2, self.b1, self.b2
        if any(part.ndim < 2 for part in found):
            return found
        new = a1.shape[1] == a2.shape[0] == b1.shape[1] == b2.shape[0]
        old = a1.shape[0] == a2.shape[1] == b1.shape[0] == b2.shape[1]
        both = new and old and a1.shape[0] < a1.shape[1]  # of a square weight; the rank is the smaller
        return (a2, a1, b2, b1) if both or (old and not new) else found

    @property
    def rank(self) -> int:
        return self._ordered[1].shape[0]

    @property
    def shape(self) -> Shape | None:
        a1, a2, b1, b2 = self._ordered
        if any(part.ndim not in (2, 4) for part in (a1, a2, b1, b2)):
            return None
        found = LoraLayer(b2, b1, mid=self.bm).shape
        ranks = {a1.shape[1], a2.shape[0], b2.shape[0]}
        fits = found is not None and a1.shape[0] == a2.shape[1] == found[1] and len(ranks) == 1
        return found if fits and prod(a1.shape[2:]) == prod(a2.shape[2:]) == 1 else None

    def delta(self, base: Array) -> Array:
        a1, a2, b1, b2 = self._ordered
        added = LoraLayer(b2, b1, self.alpha, self.bm).delta(base)
        a_II = flat(like(a1, base)) @ flat(like(a2, base))
        mixed = a_II.T @ base.reshape(*base.shape[:2], -1)  # over the inputs, at every pixel of a kernel
        return added + flat(mixed) * scale_of(self.alpha, self.rank)
