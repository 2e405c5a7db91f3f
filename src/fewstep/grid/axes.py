"""The axes of a grid: what each is called, which values it takes, what a change costs, what it changes.

    Axis.parse("steps=1-8")                  a field of `Request`, whatever fields there are
    Axis.parse('sampler="LCM,Euler a"')
    Axis("guidance", (1, 1.5, 2))
    Axis.parse("prompt-sr=apple,banana")     the first value is what is searched for
    Axis.parse("lora:ink=0-1 (+0.25)")       a LoRA's weight

Beside the fields: model, vae, lora, lora:NAME, size, prompt-sr, prompt-order.
"""

from __future__ import annotations

import difflib
import itertools
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from fewstep.errors import RequestError
from fewstep.grid.setting import Setting
from fewstep.grid.values import MOST_VALUES, joined, numbers, split_values
from fewstep.plan import AUTOMATIC, number_text
from fewstep.request import SPECS, Spec, checked, lora_choice
from fewstep.sampling.sampler import SAMPLERS, sampler_named
from fewstep.sampling.timesteps import LABELS as TABLE_LABELS
from fewstep.sampling.timesteps import TABLES, table_named

MODEL_COST, VAE_COST, LORA_COST, WEIGHT_COST, TEXT_COST, FREE = 5, 4, 3, 2, 1, 0
EMBEDDED, NONE = "pictogram", "none"
SEARCH, ORDER, WEIGHT = "prompt-sr", "prompt-order", "lora:"
#: Applied after everything else, in this order: they change what the others have put there.
_LAST = (ORDER, SEARCH, WEIGHT)
FILES = ("model", "vae", "lora", "image", "mask")
ALIASES = {"cfg": "guidance", "cfg-scale": "guidance", "checkpoint": "model", "denoising": "strength"}
#: A1111's names of the axes, where it has them.
FOREIGN = {
    "steps": "Steps", "guidance": "CFG Scale", "seed": "Seed", "sampler": "Sampler", "schedule": "Schedule type",
    "strength": "Denoising", "clip-skip": "Clip skip", "rng": "RNG source", "size": "Size", "model": "Checkpoint name",
    "vae": "VAE", SEARCH: "Prompt S/R", ORDER: "Prompt order",
}  # fmt: skip


@dataclass(frozen=True)
class Kind:
    """What is known of an axis: `read` makes values of text, `check` makes them sound, `put` sets one.

    `cost` orders the painting: what is dear to change is changed least often.
    """

    cost: int
    read: Callable[[str], Sequence[Any]]
    put: Callable[[Setting, Any], Setting]
    check: Callable[[Any], Any] = lambda value: value


@dataclass(frozen=True)
class Axis:
    """One axis: its name, and its values in the order of the sheet, each once.

    Raises:
        RequestError: there is no such axis, or a value is not allowed.
    """

    name: str
    values: tuple[Any, ...]
    kind: Kind = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        name = axis_name(self.name)
        kind = kind_of(name)
        values = tuple(dict.fromkeys(kind.check(value) for value in self.values))
        if not values:
            raise RequestError(f"The axis {name} has no values. Write {name}= and values with commas between them.")
        if name == SEARCH and not values[0]:
            raise RequestError(f"The first value of {SEARCH} is what is searched for, and it is empty. Write a word.")
        for key, value in (("name", name), ("kind", kind), ("values", values)):
            object.__setattr__(self, key, value)

    @classmethod
    def parse(cls, text: str) -> Axis:
        """An axis from `name=values`, as the command line has it; see `fewstep.grid.values` for the values.

        >>> Axis.parse("steps=1-4").values, Axis.parse("timesteps=Karras").name
        ((1, 2, 3, 4), 'schedule')
        """
        name, equals, values = text.partition("=")
        if not equals:
            raise RequestError(f"{text!r} is no axis. Write its name and its values, such as steps=1-8.")
        name = axis_name(name)
        try:
            return cls(name, tuple(kind_of(name).read(values)))
        except RequestError as error:
            raise RequestError(f"Axis {name}: {error}") from None

    @cached_property
    def labels(self) -> tuple[str, ...]:
        """The values as people read them, each another one: files by their names where these differ."""
        short, long = ([name(self.name, value) for value in self.values] for name in (_label, _text))
        return tuple(short if len(set(short)) == len(short) else long)

    @property
    def foreign_type(self) -> str:
        """The axis in A1111's infotext."""
        return FOREIGN.get(self.name, self.name[:1].upper() + self.name[1:])

    @property
    def text(self) -> str:
        """The values as text that `parse` takes (of an order: its words)."""
        values = self.values[0] if self.name == ORDER else self.values
        return joined([_text(self.name, value) for value in values])

    @property
    def rank(self) -> int:
        """The place in which the axes change a setting: the model before its LoRAs, words after the prompt."""
        late = next((place for place, name in enumerate(_LAST, 1) if self.name.startswith(name)), 0)
        return late * 10 if late else -self.kind.cost


def setting_of(base: Setting, axes: Sequence[Axis], values: Sequence[Any]) -> Setting:
    """The setting with one value of each axis; the order of the axes has no meaning.

    Raises:
        RequestError: a value contradicts another, or the prompt lacks what is to be replaced.
    """
    swaps = {axis.values[0]: value for axis, value in zip(axes, values, strict=True) if axis.name == SEARCH}
    setting, done = base, False
    for axis, value in sorted(zip(axes, values, strict=True), key=lambda pair: pair[0].rank):
        if axis.name != SEARCH:
            setting = axis.kind.put(setting, (axis.values[0], value) if axis.name == ORDER else value)
        elif not done:
            setting, done = setting.with_words(swaps), True
    return setting


def axis_name(name: str) -> str:
    """The name as we write it, for that, the command line's spelling, or a usual other name."""
    plain = name.strip()
    if plain.lower().startswith(WEIGHT):
        return WEIGHT + plain[len(WEIGHT) :].strip()
    plain = plain.lower().replace("_", "-").lstrip("-")
    flags = {flag.lstrip("-"): field_name for field_name, spec in SPECS.items() for flag in spec.flags}
    return (ALIASES | flags).get(plain, plain).replace("_", "-")


def kind_of(name: str) -> Kind:
    """The kind of the axis with this name.

    Raises:
        RequestError: there is none; says which is near.
    """
    if name.startswith(WEIGHT) and len(name) > len(WEIGHT):
        lora = name[len(WEIGHT) :]
        return Kind(WEIGHT_COST, _weights, lambda setting, weight: setting.with_weight(lora, weight), _weight)
    if name in KINDS:
        return KINDS[name]
    near = difflib.get_close_matches(name, KINDS, n=1)
    meant = f"Did you mean {near[0]}?" if near else f"Known are: {', '.join(KINDS)}, lora:NAME."
    raise RequestError(f"There is no axis {name!r}. {meant}")


# ---------------------------------------------------------------- fields of Request


def _field(name: str, spec: Spec) -> Kind:
    cost = TEXT_COST if spec.kind == "text" or name == "clip_skip" else FREE
    number = spec.kind in ("whole", "number")
    read: Any = (lambda text: numbers(text, whole=spec.kind == "whole")) if number else split_values
    return Kind(
        cost, read, lambda setting, value: setting.with_fields(**{name: value}), lambda value: _checked(name, value)
    )


def _checked(name: str, value: Any) -> Any:
    value = checked(name, value)
    if SPECS[name].kind == "picture":
        from fewstep.image import open_image, open_mask

        if not isinstance(value, (str, Path)):
            raise RequestError(f"{name} is {value!r}. Give a path; a picture in memory cannot be an axis.")
        (open_mask if name == "mask" else open_image)(value)
    elif name == "sampler":
        _near(lambda: sampler_named(value), value, [sampler.label for sampler in SAMPLERS.values()])
    elif name == "schedule" and value.lower() != AUTOMATIC:
        _near(lambda: table_named(value), value, [*TABLES, *TABLE_LABELS.values()])
    return value


def _near(check: Callable[[], Any], value: str, known: Sequence[str]) -> None:
    """Runs the check; its error also names the choices that look like the value."""
    try:
        check()
    except RequestError as error:
        lower = {choice.lower(): choice for choice in known}
        near = [lower[match] for match in difflib.get_close_matches(value.lower(), lower, n=3)]
        raise RequestError(f"{error} Did you mean {' or '.join(near)}?" if near else str(error)) from None


# ---------------------------------------------------------------- the others


def _weights(text: str) -> list[int | float]:
    return numbers(text, whole=False)


def _weight(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise RequestError(f"A LoRA's weight is {value!r}. Give a finite number such as 0.8.")
    return float(value)


def _lora(value: Any) -> Any:
    if value is None or (isinstance(value, str) and value.lower() == NONE):
        return None
    path, weight = lora_choice(value) if isinstance(value, str) else value if isinstance(value, tuple) else (value, 1.0)
    return str(path), _weight(weight)


def _file(none: str) -> Callable[[Any], str | None]:
    """A path as text; None for the word that stands for the usual one."""
    return lambda value: None if value is None or str(value).lower() == none else str(value)


def _size(value: Any) -> tuple[int, int]:
    match = re.fullmatch(r"(\d{1,5})\s*[xX×]\s*(\d{1,5})", value) if isinstance(value, str) else None
    width, height = (int(match[1]), int(match[2])) if match else value if isinstance(value, tuple) else (None, None)
    if width is None:
        raise RequestError(f"{value!r} is no size. Write width and height, such as 512x768.")
    return checked("width", width), checked("height", height)


def _orders(text: str) -> list[tuple[str, ...]]:
    """Every order of the words, the one that was given first."""
    words = list(dict.fromkeys(split_values(text)))
    if math.factorial(min(len(words), 20)) > MOST_VALUES:
        raise RequestError(f"{len(words)} words have more than {MOST_VALUES} orders. Take at most 7.")
    if len(words) < 2:
        raise RequestError(f"{text!r} has one order. Write the words that are to change places, such as fox,snow.")
    return list(itertools.permutations(words))


def _ordered(setting: Setting, value: tuple[tuple[str, ...], tuple[str, ...]]) -> Setting:
    words, order = value
    return setting.with_words(dict(zip(words, order, strict=True)))


def _word(value: Any) -> Any:
    if not isinstance(value, str):
        raise RequestError(f"{value!r} is not text. Give words of the prompt.")
    return value


_OTHERS = {
    "model": Kind(MODEL_COST, split_values, lambda setting, value: replace(setting, model=value), _file(EMBEDDED)),
    "vae": Kind(VAE_COST, split_values, lambda setting, value: replace(setting, vae=value), _file(NONE)),
    "lora": Kind(LORA_COST, split_values, lambda setting, value: replace(setting, picked=value), _lora),
    "size": Kind(
        FREE, split_values, lambda setting, value: setting.with_fields(width=value[0], height=value[1]), _size
    ),
    SEARCH: Kind(TEXT_COST, split_values, lambda setting, value: setting, _word),
    ORDER: Kind(TEXT_COST, _orders, _ordered),
}
KINDS: dict[str, Kind] = {
    name.replace("_", "-"): _field(name, spec) for name, spec in SPECS.items() if name != "count"
} | _OTHERS


def _text(name: str, value: Any) -> str:
    """One value as it is written; sizes and LoRAs are pairs."""
    if value is None:
        return EMBEDDED if name == "model" else NONE
    if name == "lora":
        return value[0] if value[1] == 1 else f"{value[0]}:{number_text(value[1])}"
    if isinstance(value, tuple):
        return "x".join(map(str, value)) if name == "size" else ", ".join(value)
    return number_text(value) if isinstance(value, float) else str(value)


def _label(name: str, value: Any) -> str:
    """As `_text`; files by their names alone."""
    text = _text(name, value)
    path = Path(text)
    if name not in FILES or value is None:
        return text or "(nothing)"
    short = path.stem if path.suffix in (".safetensors", ".png", ".jpg", ".jpeg", ".webp") else path.name
    return short if name != "lora" or value[1] == 1 else f"{Path(value[0]).stem}:{number_text(value[1])}"
