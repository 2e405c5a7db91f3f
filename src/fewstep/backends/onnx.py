"""The UNet as a runtime runs its graph, as a Denoiser: numpy in, numpy out, torch is never imported.

Shapes: B items (pictures), each with its own timestep, prompt and guidance; C, H, W latent channels, height, width;
L text positions.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from copy import copy
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from fewstep.sampling.guidance import guidance_embedding, guide, w_of
from fewstep.sampling.rotation import slerp
from fewstep.sampling.schedule import to_z0

if TYPE_CHECKING:
    from fewstep.backends.onnx_model import OnnxModel
    from fewstep.backends.onnx_text import OnnxText


class OnnxDenoiser:
    """(z_BCHW, timestep_B) -> z0_BCHW float32, with text and guidance inside; the twin of `EagerDenoiser`.

    Guidance s gives uncond + s (cond - uncond) from one batch: B items with their prompts, then those of the items
    whose guidance is not exactly 1 with their negative prompts. A UNet with guidance embedding is told w = s - 1
    instead, in one prediction.
    """

    def __init__(
        self,
        model: OnnxModel,
        text: OnnxText,
        negative: OnnxText | None = None,
        guidance: float | Sequence[float] = 1.0,
        *,
        draft: bool = False,
    ) -> None:
        """Text and negative: one row for all items, or one for each; guidance: one number, or one for each item.

        negative None stands for the empty prompt; draft as in `Sessions.draft`. The text's keys and values are computed
        here, once for all steps.
        """
        self.model, self.draft = model, draft
        self.guidance = (float(guidance),) if isinstance(guidance, (int, float)) else tuple(map(float, guidance))
        guided = model.guidance_width is None and any(value != 1 for value in self.guidance)
        if negative is None and guided:
            negative = model.text.encode_negative([""])
        self.text, self.negative = text, negative
        self.told = model.conditions(text)
        self.untold = None if negative is None else model.conditions(negative)

    @property
    def kind(self) -> Hashable:
        """Denoisers of one kind can be `joined`: of one model and precision, with texts of the same lengths."""
        negative = None if self.untold is None else _length(self.untold)
        return id(self.model), self.draft, _length(self.told), negative

    @staticmethod
    def joined(denoisers: Sequence[OnnxDenoiser]) -> OnnxDenoiser:
        """One denoiser for as many items, each with its own text and guidance; each given has one row of text."""
        found, rest = copy(denoisers[0]), [one.untold for one in denoisers if one.untold is not None]
        found.guidance = tuple(one.guidance[0] for one in denoisers)
        found.told = _joined([one.told for one in denoisers])
        found.untold = _joined(rest) if rest else None
        return found

    def nearer(self, start: OnnxDenoiser, share: float) -> OnnxDenoiser:
        """This one with texts that are `share` of the way from those of `start`, of the same `kind`, to its own."""
        text, negative = _between(start.text, self.text, share), self.negative
        if negative is not None and start.negative is not None:
            negative = _between(start.negative, negative, share)
        return OnnxDenoiser(self.model, text, negative, self.guidance, draft=self.draft)

    def __call__(self, z_BCHW: Any, timestep_B: Any) -> np.ndarray:
        """The clean latents predicted for z_BCHW, each item at its own timestep; one timestep serves all."""
        z_BCHW = np.asarray(z_BCHW, np.float32)
        timestep_B = np.asarray(timestep_B).reshape(-1)
        if len(timestep_B) != len(z_BCHW):
            timestep_B = np.broadcast_to(timestep_B, (len(z_BCHW),))
        return to_z0(self.model.schedule, z_BCHW, self._output(z_BCHW, np.maximum(timestep_B, 0)), timestep_B)

    def _unet(self, z_BCHW: np.ndarray, timestep_B: np.ndarray, **conditions: np.ndarray) -> np.ndarray:
        return self.model.unet(z_BCHW, timestep_B, draft=self.draft, **conditions)

    def _output(self, z_BCHW: np.ndarray, timestep_B: np.ndarray) -> np.ndarray:
        count = len(z_BCHW)
        guidance = self.guidance * count if len(self.guidance) == 1 else self.guidance
        if len(guidance) != count:
            raise ValueError(f"{len(guidance)} guidances for {count} items")
        told, guided = _rows(self.told, count), [item for item, value in enumerate(guidance) if value != 1]
        if (width := self.model.guidance_width) is not None:
            w_BD = guidance_embedding([w_of(value) for value in guidance], dim=width, like=z_BCHW)
            return self._unet(z_BCHW, timestep_B, **told, guidance_BD=w_BD)
        if not guided or self.untold is None:
            return self._unet(z_BCHW, timestep_B, **told)
        untold = {name: rows[guided] for name, rows in _rows(self.untold, count).items()}
        if _length(untold) == _length(told):
            both = self._unet(
                np.concatenate([z_BCHW, z_BCHW[guided]]),
                np.concatenate([timestep_B, timestep_B[guided]]),
                **_joined([told, untold]),
            )
            out_BCHW, uncond = both[:count].copy(), both[count:]
        else:  # of another number of chunks
            out_BCHW = self._unet(z_BCHW, timestep_B, **told).copy()
            uncond = self._unet(z_BCHW[guided], timestep_B[guided], **untold)
        out_BCHW[guided] = guide(out_BCHW[guided], uncond, [guidance[item] for item in guided])
        return out_BCHW


def _between(start: OnnxText, end: OnnxText, share: float) -> OnnxText:
    pooled = None
    if start.pooled_BD is not None and end.pooled_BD is not None:
        pooled = slerp(start.pooled_BD, end.pooled_BD, share)
    return replace(end, text_BLD=slerp(start.text_BLD, end.text_BLD, share), pooled_BD=pooled)


def _length(conditions: Mapping[str, np.ndarray]) -> int:
    return conditions["text_kv_BLK"].shape[1]


def _joined(conditions: Sequence[Mapping[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """All rows, one after another."""
    return {name: np.concatenate([one[name] for one in conditions]) for name in conditions[0]}


def _rows(conditions: Mapping[str, np.ndarray], count: int) -> dict[str, np.ndarray]:
    """As they are, or one row for all items."""
    found = len(conditions["text_kv_BLK"])
    if found == count:
        return dict(conditions)
    if found != 1:
        raise ValueError(f"{found} prompts for {count} items")
    return {name: np.repeat(rows, count, axis=0) for name, rows in conditions.items()}
