"""A grid before it is painted: which cells there are, what each is made with, and in which order that is cheapest."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from typing import Any

from fewstep.errors import FewstepError, RequestError
from fewstep.grid.axes import SEARCH, WEIGHT, Axis, setting_of
from fewstep.grid.setting import PICKED, Setting

MOST_CELLS = 256
_SIZE = {"size", "width", "height"}


@dataclass(frozen=True)
class Cell:
    """One place of the sheet: its number from 1 (z by z, row by row), its (x, y, z) from 0, and a value of each axis.

    `setting` is None where that cannot be done; then `refusal` says why.
    """

    number: int
    place: tuple[int, int, int]
    labels: tuple[str, ...]
    setting: Setting | None
    refusal: str = ""


@dataclass(frozen=True)
class Grid:
    """What is the same in every picture, and at least one axis.

    Raises:
        RequestError: the axes contradict one another, there are more than `most` cells, or none can be painted.
    """

    base: Setting
    x: Axis | None = None
    y: Axis | None = None
    z: Axis | None = None
    most: int = MOST_CELLS

    def __post_init__(self) -> None:
        if not self.axes:
            raise RequestError("No axis was given. Give one, such as --x steps=1-8.")
        _check_axes(self.axes)
        count = math.prod(self.shape)
        if count > self.most:
            product = " x ".join(str(len(axis.values)) for axis in self.axes)
            raise RequestError(
                f"{product} values are {count} pictures, and more than {self.most} are probably a slip. Take fewer "
                f"values, or say --most {count}."
            )
        cells = self.cells()
        if all(cell.setting is None for cell in cells):
            raise RequestError(cells[0].refusal)

    @property
    def axes(self) -> tuple[Axis, ...]:
        """Those that there are, x first."""
        return tuple(axis for axis in (self.x, self.y, self.z) if axis is not None)

    @property
    def shape(self) -> tuple[int, int, int]:
        """How many columns, rows and sheets."""
        columns, rows, sheets = (1 if axis is None else len(axis.values) for axis in (self.x, self.y, self.z))
        return columns, rows, sheets

    def cells(self) -> list[Cell]:
        """All cells in the order of the sheet."""
        columns, rows, sheets = (range(length) for length in self.shape)
        places = [(x, y, z) for z in sheets for y in rows for x in columns]
        return [self._cell(number, place) for number, place in enumerate(places, 1)]

    def painting_order(self) -> list[Cell]:
        """The same cells, ordered so that what is dear to change (a model, then a LoRA, then words) changes least."""
        dear = sorted(range(3), key=lambda side: -self._costs[side])
        return sorted(self.cells(), key=lambda cell: [cell.place[side] for side in dear])

    @property
    def _costs(self) -> tuple[int, ...]:
        return tuple(-1 if axis is None else axis.kind.cost for axis in (self.x, self.y, self.z))

    def _cell(self, number: int, place: tuple[int, int, int]) -> Cell:
        at = [(axis, i) for axis, i in zip((self.x, self.y, self.z), place, strict=True) if axis is not None]
        values: list[Any] = [axis.values[i] for axis, i in at]
        labels = tuple(axis.labels[i] for axis, i in at)
        try:
            setting = setting_of(self.base, [axis for axis, _ in at], values)
            setting.request.validated()
        except FewstepError as error:
            return Cell(number, place, labels, None, str(error))
        return Cell(number, place, labels, setting)


def _check_axes(axes: tuple[Axis, ...]) -> None:
    for one, other in itertools.combinations(axes, 2):
        same_search = one.name == other.name == SEARCH and one.values[0] != other.values[0]
        sizes = {one.name, other.name} <= _SIZE and "size" in (one.name, other.name)
        if (one.name == other.name and not same_search) or sizes:
            both = one.name if one.name == other.name else f"{one.name} and {other.name}"
            raise RequestError(f"{both} stands on two axes that would undo each other. Put its values on one.")
    names = [axis.name for axis in axes]
    if WEIGHT + PICKED in names and "lora" not in names:
        raise RequestError("lora:* weighs the LoRA of an axis lora, and there is none. Add one, or name the LoRA.")
