"""The families of LoRA files that rotate a weight's outputs, or in PEFT's form its inputs.

Suffixes: K blocks, N block size, M stages. Blocks are rotations by Cayley's map of skew matrices Q.
"""

from dataclasses import dataclass
from math import isqrt, prod
from typing import ClassVar

from fewstep.checkpoints.lora_products import Shape, flat, like
from fewstep.errors import LoraError
from fewstep.sampling.arrays import Array, namespace


class Rankless:
    """A layer without an inner width."""

    @property
    def rank(self) -> None:
        """None."""
        return None


@dataclass(frozen=True, eq=False)
class Oft(Rankless):
    """Blocks [K, N, N] that rotate the outputs, and perhaps `rescale` [out, 1, ...]; alpha bounds the norm of Q."""

    label: ClassVar[str] = "OFT"
    oft_blocks: Array
    rescale: Array | None = None
    alpha: float | None = None

    @property
    def shape(self) -> Shape | None:
        blocks = self.oft_blocks.shape
        fits = len(blocks) == 3 and blocks[1] == blocks[2]
        return (blocks[0] * blocks[1], None) if fits and self._scales(blocks[0] * blocks[1]) else None

    def _scales(self, out: int) -> bool:
        return self.rescale is None or prod(self.rescale.shape) == out

    def _rotations(self, base: Array) -> Array:
        """R = (I + Q) (I - Q)^-1 of every block; Q is skew, its norm over all blocks at most alpha · out."""
        xp, blocks = namespace(base), like(self.oft_blocks, base)
        q, bound = blocks - blocks.swapaxes(-1, -2), (self.alpha or 0.0) * len(base)
        norm = float((q * q).sum()) ** 0.5
        q = q * (bound / norm) if 0 < bound < norm else q
        eye = like(xp.eye(q.shape[-1]), base)
        return (eye + q) @ xp.linalg.inv(eye - q)

    def _turned(self, base: Array) -> Array:
        r_KNN = self._rotations(base)
        return r_KNN.swapaxes(-1, -2) @ base.reshape(*r_KNN.shape[:2], -1)

    def delta(self, base: Array) -> Array:
        turned = self._turned(base).reshape(len(base), -1)
        scale = 1.0 if self.rescale is None else like(self.rescale, base).reshape(-1, 1)
        return turned * scale - flat(base)


@dataclass(frozen=True, eq=False)
class Boft(Oft):
    """As OFT with blocks [M, K, N, N]: stage i rotates rows that stand 2^i · N/2 apart."""

    label: ClassVar[str] = "BOFT"

    @property
    def shape(self) -> Shape | None:
        stages, count, size, other = self.oft_blocks.shape
        out = count * size
        fits = size == other and size % 2 == 0 and out % (2**stages * size // 2) == 0 and self._scales(out)
        return (out, None) if fits else None

    def _turned(self, base: Array) -> Array:
        turned, rest = flat(base), prod(base.shape[1:])
        for stage, r_KNN in enumerate(self._rotations(base)):
            apart = 2**stage * r_KNN.shape[-1] // 2
            pairs = turned.reshape(-1, 2, apart, rest).swapaxes(1, 2)
            mixed = r_KNN @ pairs.reshape(*r_KNN.shape[:2], rest)
            turned = mixed.reshape(-1, apart, 2, rest).swapaxes(1, 2).reshape(len(base), rest)
        return turned


@dataclass(frozen=True, eq=False)
class PeftOft(Rankless):
    """The upper halves of skew matrices, [K, N (N - 1) / 2]; one block for all inputs where K is 1.

    `terms`: of the Neumann series for (I + Q) (I - Q)^-1, or 0: (I - Q) (I + Q)^-1, the rotation the other way round.
    `bound`: of the norm of each Q (PEFT's coft), 0: none.
    """

    label: ClassVar[str] = "OFT"
    oft_R: Array
    terms: float
    bound: float

    @property
    def _size(self) -> int:
        return (1 + isqrt(1 + 8 * self.oft_R.shape[-1])) // 2

    @property
    def shape(self) -> Shape | None:
        count = self.oft_R.shape[-1] if self.oft_R.ndim == 2 else -1
        return (None, None) if self._size * (self._size - 1) == 2 * count else None

    def _rotations(self, base: Array) -> Array:
        xp, size = namespace(base), self._size
        rows, columns = zip(*((i, j) for i in range(size) for j in range(i + 1, size)), strict=True)
        q = like(xp.zeros((len(self.oft_R), size, size)), base)
        q[:, list(rows), list(columns)] = like(self.oft_R, base)
        q = q - q.swapaxes(-1, -2)
        if self.bound:
            bound, norm = self.bound / len(q) ** 0.5, (q * q).sum((1, 2)) ** 0.5
            q = q * ((norm > bound) * (bound / (norm + (norm == 0)) - 1) + 1).reshape(-1, 1, 1)
        eye = like(xp.eye(size), base)
        return _neumann(q, eye, int(self.terms)) if self.terms else (eye - q) @ xp.linalg.inv(eye + q)

    def delta(self, base: Array) -> Array:
        r_KNN, w_IO = self._rotations(base), flat(base).T
        if len(w_IO) % self._size or len(r_KNN) not in (1, len(w_IO) // self._size):
            raise _misfit(len(r_KNN) * self._size, len(w_IO))
        turned = r_KNN @ w_IO.reshape(-1, self._size, w_IO.shape[1])
        return turned.reshape(w_IO.shape).T - flat(base)


def _neumann(q: Array, eye: Array, terms: int) -> Array:
    """I + 2 Q + 2 Q² + ... + Qⁿ, as PEFT cuts the series off; n is terms - 1, but 3 for 3 terms."""
    last = max(terms, 4) - 1 if terms > 2 else 0
    total, power = eye + 2 * q * (terms > 1), q
    for exponent in range(2, last + 1):
        power = power @ q
        total = total + power * (1 if exponent == last else 2)
    return total


@dataclass(frozen=True, eq=False)
class PeftBoft(Rankless):
    """Blocks [M, K, N, N] whose skew halves rotate the inputs; stage i takes half blocks that stand 2^i apart.
    `boft_s` [out, 1] scales the outputs.
    """

    label: ClassVar[str] = "BOFT"
    boft_R: Array
    boft_s: Array

    @property
    def shape(self) -> Shape | None:
        blocks, scales = self.boft_R.shape, self.boft_s.shape
        if len(blocks) != 4 or blocks[2] != blocks[3] or prod(scales) != max(scales, default=0):
            return None
        stages, count, size, _ = blocks
        fits = stages == 1 or (size % 2 == 0 and count % 2 ** (stages - 1) == 0)
        return (prod(scales), None) if fits else None

    def delta(self, base: Array) -> Array:
        xp, blocks = namespace(base), like(self.boft_R, base)
        turned, (stages, count, size, _) = flat(base).T, blocks.shape
        inputs, rest = turned.shape
        if count * size != inputs:
            raise _misfit(count * size, inputs)
        q, eye = (blocks - blocks.swapaxes(-1, -2)) / 2, like(xp.eye(size), base)
        for stage, r_KNN in enumerate((eye - q) @ xp.linalg.inv(eye + q)):
            half, apart = (size // 2, 2**stage) if stages > 1 else (size, 1)
            sides = size // half
            pairs = turned.reshape(-1, sides, apart, half, rest).swapaxes(1, 2)
            mixed = (r_KNN @ pairs.reshape(count, size, rest)).reshape(-1, apart, sides, half, rest)
            turned = mixed.swapaxes(1, 2).reshape(inputs, rest)
        return turned.T * like(self.boft_s, base).reshape(-1, 1) - flat(base)


def _misfit(found: int, inputs: int) -> LoraError:
    return LoraError(
        f"A rotation of {found} inputs does not fit a weight of {inputs}. Use a LoRA made for this model's family."
    )
