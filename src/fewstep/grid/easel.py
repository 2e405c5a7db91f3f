"""Cells become pictures: one pipeline, changed only as far as the next cell needs it."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import fewstep
from fewstep.errors import FewstepError
from fewstep.grid.cells import Cell
from fewstep.grid.setting import Setting

if TYPE_CHECKING:
    from fewstep.infotext import Picture
    from fewstep.pipeline import Pipeline

Load = Callable[..., "Pipeline"]


@dataclass(frozen=True)
class Painted:
    """A cell with its picture, or None and a sentence on why there is none; `ms` without the loading of models."""

    cell: Cell
    picture: Picture | None
    ms: float
    refusal: str = ""
    notes: tuple[str, ...] = ()


def paint(cells: Iterable[Cell], load: Load | None = None) -> Iterator[Painted]:
    """Paints cells in the order they are given in; `load` is `fewstep.load`, or one with some keywords filled in.

    A cell that cannot be painted (a size, a sampler, a LoRA of another family, no memory) does not end the others.
    """
    easel = Easel(load or fewstep.load)
    for cell in cells:
        started = time.perf_counter()
        try:
            if cell.setting is None:
                yield Painted(cell, None, 0, cell.refusal)
                continue
            pipe = easel.pipeline(cell.setting)
            started = time.perf_counter()
            picture, notes = _picture(pipe, cell.setting)
        except Exception as error:  # noqa: BLE001 - only what `_refusal` knows is a refusal, the rest goes on
            yield Painted(cell, None, 0, _refusal(error))
        else:
            yield Painted(cell, picture, 1000 * (time.perf_counter() - started), notes=notes)


def check(cells: Iterable[Cell], *, lora_folder: str | Path | None = None, **parts: Any) -> None:
    """Looks for every model, VAE and LoRA before the first is loaded; `parts` are base and prediction.

    What lies on the Hub is not asked for here.

    Raises:
        CheckpointError: one of them is missing or of another kind.
    """
    from fewstep.checkpoints.complete import describe_model
    from fewstep.checkpoints.hub import is_hub_id
    from fewstep.checkpoints.shelves import LoraShelf, find_lora
    from fewstep.pipeline import lora_pairs

    shelf = None if lora_folder is None else LoraShelf(lora_folder)
    settings = [cell.setting for cell in cells if cell.setting is not None]
    for model, vae in dict.fromkeys((setting.model, setting.vae) for setting in settings):
        if any(is_hub_id(str(name)) and not Path(name).exists() for name in (model, vae) if name is not None):
            continue
        found = describe_model(model, vae=vae, **parts)
        of_model = [setting.all_loras for setting in settings if (setting.model, setting.vae) == (model, vae)]
        for path, _ in dict.fromkeys(pair for loras in of_model for pair in lora_pairs(list(loras))):
            find_lora(path, found.path, shelf)


def _picture(pipe: Pipeline, setting: Setting) -> tuple[Picture, tuple[str, ...]]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        plan = pipe.plan(setting.request)
        *_, last = pipe.run(plan)
    return last.pictures()[0], plan.notes


def _refusal(error: Exception) -> str:
    """Why a cell stays empty; raises the error where it is not about what was asked."""
    if isinstance(error, FewstepError):
        return str(error)
    if isinstance(error, MemoryError) or "out of memory" in str(error).lower():
        return "There is not enough memory for this picture. Take a smaller size, or another device."
    raise error


class Easel:
    """The one pipeline that is loaded, and of which model and VAE it is."""

    def __init__(self, load: Load) -> None:
        self.load = load
        self._pipe: Pipeline | None = None
        self._loaded: tuple[Any, Any] | None = None
        self._broken: dict[tuple[Any, Any], FewstepError] = {}

    def pipeline(self, setting: Setting) -> Pipeline:
        """One with this setting's model, VAE and LoRAs; another model is loaded only where these ask for it.

        Raises:
            FewstepError: something of it cannot be loaded; what failed once is not tried again.
        """
        wanted = setting.model, setting.vae
        if wanted in self._broken:
            raise self._broken[wanted]
        if self._pipe is None or self._loaded != wanted:
            self._pipe = None  # two models at once may not fit
            self._pipe, self._loaded = self._open(*wanted), wanted
        self._pipe.set_loras(setting.all_loras)
        return self._pipe

    def _open(self, model: Any, vae: Any) -> Pipeline:
        try:
            return self.load(model, vae=vae, lora=False)
        except FewstepError as error:
            self._broken[model, vae] = error
            raise
