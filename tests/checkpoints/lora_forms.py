"""Random layers of every family with the closed form of each in float64, made without the code under test.

`FORMS[name](shape, generator)` is (parts, after): tensors by the ends of their names in kohya's spelling, and the
function from the untouched weight (float64, of that shape) to the merged one at weight 1.
"""

import numpy as np
import torch


def _randn(generator, *shape):
    return torch.randn(*shape, generator=generator) * 0.3


def _d(tensor):
    return tensor.double()


def _low(shape, g, rank=3):
    """down, up, and their product by explicit sums."""
    out, inner = shape[0], shape[1:]
    down, up = _randn(g, rank, *inner), _randn(g, out, rank, *(1,) * (len(shape) - 2))
    product = sum(torch.tensordot(_d(up).reshape(out, rank)[:, r], _d(down)[r], dims=0) for r in range(rank))
    return down, up, product


def lora(shape, g, alpha=1.5, rank=3):
    down, up, product = _low(shape, g, rank)
    parts = {"lora_down.weight": down, "lora_up.weight": up, "alpha": torch.tensor(alpha)}
    return parts, lambda w: w + product * alpha / rank


def lora_without_alpha(shape, g):
    down, up, product = _low(shape, g)
    return {"lora_down.weight": down, "lora_up.weight": up}, lambda w: w + product


def lora_mid(shape, g, alpha=2.0, rank=3):
    if len(shape) == 2:
        return lora(shape, g)
    down, mid, up = _randn(g, rank, shape[1], 1, 1), _randn(g, rank, rank, *shape[2:]), _randn(g, shape[0], rank, 1, 1)
    product = torch.einsum("or,rshw,si->oihw", _d(up)[:, :, 0, 0], _d(mid), _d(down)[:, :, 0, 0])
    parts = {"lora_down.weight": down, "lora_mid.weight": mid, "lora_up.weight": up, "alpha": torch.tensor(alpha)}
    return parts, lambda w: w + product * alpha / rank


def loha(shape, g, alpha=2.0, rank=3):
    flat = int(np.prod(shape[1:]))
    a1, b1, a2, b2 = (_randn(g, *size) for size in ((shape[0], rank), (rank, flat)) * 2)
    product = ((_d(a1) @ _d(b1)) * (_d(a2) @ _d(b2))).reshape(shape)
    parts = {"hada_w1_a": a1, "hada_w1_b": b1, "hada_w2_a": a2, "hada_w2_b": b2, "alpha": torch.tensor(alpha)}
    return parts, lambda w: w + product * alpha / rank


def _tucker(t, a, b):
    return torch.einsum("ijhw,io,jn->onhw", _d(t), _d(a), _d(b))


def loha_tucker(shape, g, alpha=2.0, rank=3):
    if len(shape) == 2:
        return loha(shape, g)
    a1, b1, a2, b2 = (_randn(g, rank, size) for size in shape[:2] * 2)
    t1, t2 = (_randn(g, rank, rank, *shape[2:]) for _ in range(2))
    names = ("hada_w1_a", "hada_w1_b", "hada_t1", "hada_w2_a", "hada_w2_b", "hada_t2")
    product = _tucker(t1, a1, b1) * _tucker(t2, a2, b2)
    parts = dict(zip(names, (a1, b1, t1, a2, b2, t2), strict=True)) | {"alpha": torch.tensor(alpha)}
    return parts, lambda w: w + product * alpha / rank


def _split(size):
    """The factor nearest to the root, and the rest."""
    small = max(n for n in range(1, int(size**0.5) + 1) if size % n == 0)
    return small, size // small


def lokr(first, second):
    """first: "whole" or "product"; second also "tucker"."""

    def form(shape, g, alpha=2.0, rank=2):
        (o1, o2), (i1, i2) = _split(shape[0]), _split(shape[1])
        parts = {"alpha": torch.tensor(alpha)}
        if first == "whole":
            parts["lokr_w1"] = _randn(g, o1, i1)
            w1 = _d(parts["lokr_w1"])
        else:
            parts |= {"lokr_w1_a": _randn(g, o1, rank), "lokr_w1_b": _randn(g, rank, i1)}
            w1 = _d(parts["lokr_w1_a"]) @ _d(parts["lokr_w1_b"])
        kernel = shape[2:]
        if second == "whole":
            parts["lokr_w2"] = _randn(g, o2, i2, *kernel)
            w2 = _d(parts["lokr_w2"])
        elif second == "tucker" and kernel:
            parts |= {"lokr_w2_a": _randn(g, rank, o2), "lokr_w2_b": _randn(g, rank, i2)}
            parts["lokr_t2"] = _randn(g, rank, rank, *kernel)
            w2 = _tucker(parts["lokr_t2"], parts["lokr_w2_a"], parts["lokr_w2_b"])
        else:
            parts |= {"lokr_w2_a": _randn(g, o2, rank), "lokr_w2_b": _randn(g, rank, i2 * int(np.prod(kernel)))}
            w2 = (_d(parts["lokr_w2_a"]) @ _d(parts["lokr_w2_b"])).reshape(o2, i2, *kernel)
        product = torch.einsum("ab,cd...->acbd...", w1, w2).reshape(shape)
        scale = 1.0 if (first, second) == ("whole", "whole") else alpha / rank
        return parts, lambda w: w + product * scale

    return form


def glora(shape, g, alpha=2.0, rank=3, old=False):
    a1, a2 = _randn(g, shape[1], rank), _randn(g, rank, shape[1])
    b2, b1, product = _low(shape, g, rank)
    a = _d(a1) @ _d(a2)
    if len(shape) == 4:
        a1, a2 = a1[:, :, None, None], a2[:, :, None, None]
    names = ("a2", "a1", "b2", "b1") if old else ("a1", "a2", "b1", "b2")
    parts = {f"{name}.weight": part for name, part in zip(names, (a1, a2, b1, b2), strict=True)}
    parts["alpha"] = torch.tensor(alpha)
    return parts, lambda w: w + (torch.einsum("oi...,ij->oj...", w, a) + product) * alpha / rank


def old_glora(shape, g):
    return glora(shape, g, old=True)


def ia3(on_input):
    def form(shape, g):
        size = shape[1] if on_input else shape[0]
        scale = _randn(g, size)
        kernel = (1,) * (len(shape) - 2)
        wide = _d(scale).reshape((1, -1, *kernel) if on_input else (-1, 1, *kernel))
        stored = scale if len(shape) == 2 else scale.reshape(1, size, 1, 1)
        return {"weight": stored, "on_input": torch.tensor(int(on_input))}, lambda w: w * (1 + wide)

    return form


def _cayley(blocks, bound):
    q = _d(blocks) - _d(blocks).transpose(-1, -2)
    if 0 < bound < q.norm():
        q = q * bound / q.norm()
    eye = torch.eye(q.shape[-1]).double()
    return (eye + q) @ torch.linalg.inv(eye - q)


def oft(rescaled, alpha=0.0):
    def form(shape, g, size=4):
        blocks = _randn(g, shape[0] // size, size, size)
        parts = {"oft_blocks": blocks, "alpha": torch.tensor(alpha)}
        turn = torch.block_diag(*_cayley(blocks, alpha * shape[0])).T
        scale = torch.ones(shape[0])
        if rescaled:
            scale = 1 + _randn(g, shape[0])
            parts["rescale"] = scale.reshape(-1, *(1,) * (len(shape) - 1))
        return parts, lambda w: ((turn * _d(scale)[:, None]) @ w.flatten(1)).reshape(shape)

    return form


def boft(shape, g, size=4):
    """BOFT, arXiv 2311.06243: block k of stage i turns the rows that differ in the digits of place i."""
    stages = 3
    blocks = _randn(g, stages, shape[0] // size, size, size)
    whole = torch.eye(shape[0]).double()
    for stage in range(stages):
        apart, turns = 2**stage * size // 2, _cayley(blocks, 0)[stage]
        order = [
            first + side * apart + at
            for first in range(0, shape[0], 2 * apart)
            for at in range(apart)
            for side in (0, 1)
        ]
        matrix = torch.zeros(shape[0], shape[0]).double()
        for k in range(len(turns)):
            rows = order[k * size : (k + 1) * size]
            for n, row in enumerate(rows):
                for m, column in enumerate(rows):
                    matrix[row, column] = turns[k, n, m]
        whole = matrix @ whole
    return {"oft_blocks": blocks, "alpha": torch.tensor(0.0)}, lambda w: (whole @ w.flatten(1)).reshape(shape)


def full(shape, g):
    diff = _randn(g, *shape)
    return {"diff": diff}, lambda w: w + _d(diff)


def set_weight(shape, g):
    new = _randn(g, *shape)
    return {"set_weight": new}, lambda w: _d(new)


def dora(of_rows, inner=lora, peft=False):
    def form(shape, g):
        parts, after = inner(shape, g)
        size, kernel = shape[0 if of_rows else 1], (1,) * (len(shape) - 2)
        magnitude = 1 + _randn(g, size)
        if peft:
            parts["lora_magnitude_vector"] = magnitude if len(shape) == 2 else magnitude.reshape(1, size, 1, 1)
        else:
            parts["dora_scale"] = magnitude.reshape((size, 1, *kernel) if of_rows else (1, size, *kernel))
        axis = 0 if of_rows else 1

        def merged(w):
            moved = after(w).movedim(axis, 0)
            lengths = torch.stack([row.norm() for row in moved])
            return torch.stack([row * _d(m) / n for row, m, n in zip(moved, magnitude, lengths, strict=True)]).movedim(
                0, axis
            )

        return parts, merged

    return form


FORMS = {
    "lora": lora,
    "lora without alpha": lora_without_alpha,
    "lora mid": lora_mid,
    "loha": loha,
    "loha tucker": loha_tucker,
    "lokr whole": lokr("whole", "whole"),
    "lokr w2 product": lokr("whole", "product"),
    "lokr w1 product": lokr("product", "whole"),
    "lokr both products": lokr("product", "product"),
    "lokr tucker": lokr("whole", "tucker"),
    "glora": glora,
    "glora of old": old_glora,
    "ia3 on outputs": ia3(False),
    "ia3 on inputs": ia3(True),
    "oft": oft(False),
    "oft bounded": oft(False, 0.01),
    "oft rescaled": oft(True),
    "boft": boft,
    "full": full,
    "set_weight": set_weight,
    "dora of rows": dora(True),
    "dora of columns": dora(False),
    "dora of peft": dora(True, peft=True),
    "dora of a conv mid": dora(True, lora_mid),
    "doha": dora(True, loha),
    "dokr": dora(False, lokr("whole", "product")),
}
