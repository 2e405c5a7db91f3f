"""What a stack of LoRAs adds to which weight of a model, and how strongly: the same for torch and for numpy.

Block weights are those of the LoRA Block Weight extension (github.com/hako-mikan/sd-webui-lora-block-weight): a number
for BASE (the text encoders) and for each block of the UNet that has attention, 17 for SD 1.x and 2.x, 12 for SDXL, or
for all blocks, 26 and 20. A block without a number weighs 1, and so do the layers outside of blocks (time embedding,
`conv_out`).
"""

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import TypeAlias

from fewstep.checkpoints.lora_families import Layer, Shape
from fewstep.checkpoints.lora_read import Lora
from fewstep.errors import LoraError, RequestError
from fewstep.sampling.arrays import Array

Additions: TypeAlias = dict[str, list[tuple[Layer, float]]]
"""Weight ("unet.mid_block...", "text_encoder....bias") -> the layers to add to it, each with its strength."""

Merge: TypeAlias = "tuple[Lora, float, float] | tuple[Lora, Strength]"
"""A LoRA with its weight for the UNet and for the text encoders, or with all there is to say."""


def _numbered(kind: str, count: int) -> list[str]:
    return [f"{kind}{number:02}" for number in range(count)]


_SD_ALL = ["BASE", *_numbered("IN", 12), "M00", *_numbered("OUT", 12)]
_XL_ALL = ["BASE", *_numbered("IN", 9), "M00", *_numbered("OUT", 9)]
_SD_BARE = {"IN00", "IN03", "IN06", "IN09", "IN10", "IN11", "OUT00", "OUT01", "OUT02"}
_XL_BARE = {"IN00", "IN01", "IN02", "IN03", "IN06", "OUT06", "OUT07", "OUT08"}
_SD = [name for name in _SD_ALL if name not in _SD_BARE]
_XL = [name for name in _XL_ALL if name not in _XL_BARE]
BLOCK_NAMES = {"SD": (_SD, _SD_ALL), "XL": (_XL, _XL_ALL)}
"""The blocks that have a number, for families of one and of two text encoders: those with attention, or all."""

_DEPTHS = {
    # shallow and deep blocks going down, the middle, deep and shallow ones going up
    "SD": {
        "i": "IN01 IN02 IN04",
        "I": "IN05 IN07 IN08",
        "m": "M00",
        "O": "OUT03 OUT04 OUT05 OUT06",
        "o": "OUT07 OUT08 OUT09 OUT10 OUT11",
    },
    "XL": {"i": "IN04 IN05", "I": "IN07 IN08", "m": "M00", "O": "OUT00 OUT01 OUT02", "o": "OUT03 OUT04 OUT05"},
}
_PRESETS = dict(ALL="iImOo", INS="i", IND="I", INALL="iI", MIDD="ImO", OUTD="O", OUTS="o", OUTALL="Oo")
"""The extension's names, each with the depths it keeps, and BASE."""


def block_weights(text: str, text_encoders: int) -> dict[str, float]:
    """Block -> weight, from a preset's name or from numbers with commas between, for a family of so many encoders.

    >>> block_weights("OUTD", 2) == block_weights("1,0,0,0,0,0,1,1,1,0,0,0", 2)
    True
    >>> block_weights("ALL0.5", 1)["IN01"]
    0.5

    Raises:
        RequestError: no such preset, another count of numbers, or something that is no number.
    """
    kind = "XL" if text_encoders == 2 else "SD"
    few, every = BLOCK_NAMES[kind]
    word = text.strip().upper()
    if word == "NONE":
        return dict.fromkeys(few, 0.0)
    if word in _PRESETS:
        chosen = {"BASE", *(name for depth in _PRESETS[word] for name in _DEPTHS[kind][depth].split())}
        return {name: float(name in chosen) for name in few}
    try:
        numbers = [float(word[3:])] * len(few) if word.startswith("ALL") else [float(part) for part in word.split(",")]
    except ValueError:
        numbers = []
    names = {len(few): few, len(every): every}.get(len(numbers))
    if names is None or not all(abs(number) < float("inf") for number in numbers):
        raise RequestError(
            f"The block weights '{text}' are neither {len(few)} nor {len(every)} numbers, as this model's family has "
            f"({few[0]}, {few[1]} ... {few[-1]}), nor one of NONE, {', '.join(_PRESETS)}."
        )
    return dict(zip(names, numbers, strict=True))


def block_of(module: str) -> str | None:
    """The block of a module of the UNet; None outside of blocks.

    >>> block_of("down_blocks.1.attentions.0.proj_in"), block_of("up_blocks.0.upsamplers.0.conv"), block_of("conv_in")
    ('IN04', 'OUT02', 'IN00')
    >>> block_of("time_embedding.linear_1")
    """
    head, _, rest = module.partition(".")
    if head in ("conv_in", "mid_block"):
        return {"conv_in": "IN00", "mid_block": "M00"}[head]
    if head not in ("down_blocks", "up_blocks"):
        return None
    level, kind, index = rest.split(".")[:3]
    place = 3 * int(level) + (2 if kind in ("downsamplers", "upsamplers") else int(index))
    return f"IN{place + 1:02}" if head == "down_blocks" else f"OUT{place:02}"


@dataclass(frozen=True)
class Strength:
    """How strongly a LoRA is applied: to the UNet, the text encoders (SDXL's second as the first, unless it is said),
    and `blocks`, as `block_weights` reads them, which multiply the others.
    """

    unet: float = 1.0
    text: float = 1.0
    text_2: float | None = None
    blocks: str = ""

    def __bool__(self) -> bool:
        """Whether the UNet is changed at all."""
        return bool(self.unet)

    def by_weight(self, text_encoders: int) -> Callable[[str], float]:
        """The function from the name of a weight to its strength; raises RequestError for wrong `blocks`."""
        blocks = block_weights(self.blocks, text_encoders) if self.blocks else {}
        second = self.text if self.text_2 is None else self.text_2

        def strength(name: str) -> float:
            component, _, module = name.partition(".")
            if component == "unet":
                return self.unet * blocks.get(block_of(module) or "", 1.0)
            return (second if component == "text_encoder_2" else self.text) * blocks.get("BASE", 1.0)

        return strength


def strength_of(merge: Merge) -> tuple[Lora, Strength]:
    """Both ways of saying it as one.

    Raises:
        RequestError: a weight is not a finite number.
    """
    lora, strength = merge if len(merge) == 2 else (merge[0], Strength(merge[1], merge[2]))
    for weight in (strength.unet, strength.text, strength.text_2 or 0.0):
        if not abs(weight) < float("inf"):
            raise RequestError(
                f"The weight {weight} of the LoRA '{lora.name}' is not a finite number. Use one like 0.8."
            )
    return lora, strength


def additions(
    merges: Iterable[Merge], shapes: Mapping[str, Sequence[int]], *, label: str, text_encoders: int
) -> tuple[Additions, list[str]]:
    """What a stack adds to which weight, and notes on what lenient LoRAs have that the model lacks.

    `shapes` are those of the model's weights, by name; `label` is the family's, for messages.

    Raises:
        LoraError: a LoRA has modules that the model lacks, or of another shape.
        RequestError: a weight or block weight is not what it should be.
    """
    found: Additions = {}
    notes: list[str] = []
    for lora, strength in map(strength_of, merges):
        strength_at = strength.by_weight(text_encoders)
        layers = {
            name: layer
            for name, layer in lora.all_layers.items()
            if name in shapes or not getattr(layer, "optional", False)
        }
        wrong = _misfits(layers, shapes)
        if wrong and not lora.lenient:
            raise _misfit(lora, layers, wrong, shapes, label)
        notes += [f"'{lora.path.name}': not applied, as this {label} model lacks it: '{name}'." for name in wrong]
        for name in [name for name in layers if name not in wrong]:
            if weight := strength_at(name):
                found.setdefault(name, []).append((layers[name], weight))
    return found, notes


def _misfits(layers: Mapping[str, Layer], shapes: Mapping[str, Sequence[int]]) -> list[str]:
    return [name for name, layer in layers.items() if name not in shapes or not _fits(layer.shape, shapes[name], name)]


def _fits(shape: Shape | None, wanted: Sequence[int], name: str) -> bool:
    """A 1x1 convolution and a linear layer are the same numbers: either may carry the other's LoRA. The inputs of an
    inpainting model's first layer begin with those of an ordinary one.
    """
    if shape is None:
        return False
    if None in shape:
        return all(found in (None, size) for found, size in zip(shape, wanted, strict=False))
    if name == "unet.conv_in" and wanted[1] > 4 and _numbers(shape[1:]) == 4 * prod(wanted[2:]):
        wanted = (wanted[0], 4, *wanted[2:])
    same = _numbers(shape) == prod(wanted) and wanted[0] == shape[0]
    return same and (len(shape) < 3 or tuple(wanted[:2]) == shape[:2])


def _numbers(shape: Shape) -> int:
    return prod(size or 0 for size in shape)


def _misfit(
    lora: Lora, layers: Collection[str], wrong: Sequence[str], shapes: Mapping[str, Sequence[int]], label: str
) -> LoraError:
    missing = [name for name in wrong if name not in shapes]
    if missing:
        return LoraError(
            f"'{lora.path.name}' does not fit this {label} model: {len(missing)} of its {len(layers)} "
            f"modules are not there, first '{missing[0]}'. Use a LoRA made for {label}."
        )
    shape = _layer(lora, wrong[0]).shape or ()
    return LoraError(
        f"'{lora.path.name}' does not fit this {label} model: '{wrong[0]}' has shape {list(shapes[wrong[0]])}, "
        f"the LoRA's is {['any' if size is None else size for size in shape]}. Use a LoRA made for this model."
    )


def _layer(lora: Lora, name: str) -> Layer:
    return lora.text_layers[name] if name in lora.text_layers else lora.layers[name.removeprefix("unet.")]


def add(total: Array, base: Array, layer: Layer, strength: float) -> None:
    """`total` += strength times what the layer adds to `base`, both float32; in place."""
    part = part_of(layer, base)
    target = total if part is base else total[:, : part.shape[1]]
    target += strength * layer.delta(part).reshape(part.shape)


def part_of(layer: Layer, base: Array) -> Array:
    """What of a weight a layer is for: the first four inputs of an inpainting model's nine, else all of it."""
    shape = layer.shape or ()
    if base.ndim < 4 or None in shape or _numbers(shape) == prod(base.shape):
        return base
    return base[:, : _numbers(shape[1:]) // prod(base.shape[2:])]


def merged(base: Array, parts: Iterable[tuple[Layer, float]]) -> Array:
    """The weight with all layers added, each to the untouched `base`, which is float32."""
    total = base + 0
    for layer, strength in parts:
        add(total, base, layer, strength)
    return total
