"""The UNet as PyTorch runs it, as a Denoiser: the reference that every faster back end must equal.

Shapes: B items (pictures), each with its own timestep, prompt and guidance; C, H, W latent channels, height, width.
"""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fewstep.checkpoints.load import Model
from fewstep.models.text import Text
from fewstep.models.unet import conditions, evaluate, has_guidance_embedding
from fewstep.sampling.guidance import guide, w_of
from fewstep.sampling.rotation import slerp
from fewstep.sampling.schedule import to_z0


class EagerDenoiser:
    """(z_BCHW, timestep_B) -> z0_BCHW float32, with text and guidance inside.

    Guidance s gives uncond + s (cond - uncond) from one batch: B items with their prompts, then those of the items
    whose guidance is not exactly 1 with their negative prompts. So guidance 1 costs half of any other.
    A UNet with guidance embedding is told w = s - 1 instead, in one prediction: it has no use for a negative prompt.
    """

    def __init__(
        self,
        model: Model,
        text: Text,
        negative: Text | None = None,
        guidance: float | Sequence[float] = 1.0,
        beside_BCHW: Tensor | None = None,
    ) -> None:
        """Text and negative: one row for all items, or one for each; guidance: one number, or one for each item.

        negative None stands for the empty prompt by the family's convention. beside_BCHW is what an inpainting UNet
        sees beside the latents (`models.unet.predict`).
        """
        self.model = model
        self.beside_BCHW = beside_BCHW
        self.text = text
        self.guidance = (float(guidance),) if isinstance(guidance, (int, float)) else tuple(map(float, guidance))
        self.embedded = has_guidance_embedding(model.unet)
        guided = not self.embedded and any(value != 1 for value in self.guidance)
        self.negative = model.text.encode_negative([""]) if guided and negative is None else negative
        self._told: dict[Hashable, _Told] = {}

    @property
    def kind(self) -> Hashable:
        """Denoisers of one kind can be `joined`: of one model, with texts of the same lengths."""
        negative = None if self.negative is None else self.negative.text_BLD.shape[1]
        alone = None if self.beside_BCHW is None else id(self)
        return id(self.model), alone, self.text.text_BLD.shape[1], negative

    @staticmethod
    def joined(denoisers: Sequence["EagerDenoiser"]) -> "EagerDenoiser":
        """One denoiser for as many items, each with its own text and guidance; each given has one row of text."""
        first, negatives = denoisers[0], [one.negative for one in denoisers if one.negative is not None]
        text, guidance = Text.cat([one.text for one in denoisers]), [one.guidance[0] for one in denoisers]
        return EagerDenoiser(first.model, text, Text.cat(negatives) if negatives else None, guidance)

    def nearer(self, start: "EagerDenoiser", share: float) -> "EagerDenoiser":
        """This one with texts that are `share` of the way from those of `start`, of the same `kind`, to its own."""
        text, negative = _between(start.text, self.text, share), self.negative
        if negative is not None and start.negative is not None:
            negative = _between(start.negative, negative, share)
        return EagerDenoiser(self.model, text, negative, self.guidance, self.beside_BCHW)

    @torch.no_grad()
    def __call__(self, z_BCHW: Tensor, timestep_B: Tensor | Sequence[int] | int) -> Tensor:
        """The clean latents predicted for z_BCHW, each item at its own timestep; one timestep serves all."""
        timestep_B = torch.as_tensor(timestep_B, device=z_BCHW.device).reshape(-1).expand(len(z_BCHW))
        out_BCHW = self._output(z_BCHW, timestep_B.clip(0)).float()
        return to_z0(self.model.schedule, z_BCHW.float(), out_BCHW, timestep_B)

    def _output(self, z_BCHW: Tensor, timestep_B: Tensor) -> Tensor:
        key = tuple(z_BCHW.shape), z_BCHW.device
        if key not in self._told:
            self._told[key] = self._tell(z_BCHW)
        told = self._told[key]
        if told.index is None:
            return self._evaluate(z_BCHW, timestep_B, told.first)
        return self._guided(z_BCHW, timestep_B, told)

    def _evaluate(self, z_BCHW: Tensor, timestep_B: Tensor, told: dict[str, Any]) -> Tensor:
        return evaluate(self.model.unet, z_BCHW, timestep_B, told, beside_BCHW=self.beside_BCHW)

    def _tell(self, z_BCHW: Tensor) -> "_Told":
        """Everything that does not change from step to step, on the device: inside the loop nothing waits for it."""
        count, unet, text = len(z_BCHW), self.model.unet, self.text.expand(len(z_BCHW))
        guidance = self.guidance * count if len(self.guidance) == 1 else self.guidance
        if len(guidance) != count:
            raise ValueError(f"{len(guidance)} guidances for {count} items")
        if self.embedded:
            w_B = torch.tensor([w_of(value) for value in guidance], device=z_BCHW.device)
            return _Told(conditions(unet, text, z_BCHW, w_B=w_B))
        guided = [item for item, value in enumerate(guidance) if value != 1]
        if not guided or self.negative is None:
            return _Told(conditions(unet, text, z_BCHW))
        index = torch.tensor(guided, device=z_BCHW.device)
        s_B = torch.tensor([guidance[item] for item in guided], device=z_BCHW.device)
        negative, away = self.negative.expand(count).rows(guided), z_BCHW[index]
        if negative.text_BLD.shape[1] == text.text_BLD.shape[1]:
            return _Told(conditions(unet, Text.cat([text, negative]), torch.cat([z_BCHW, away])), index, s_B)
        return _Told(conditions(unet, text, z_BCHW), index, s_B, conditions(unet, negative, away))

    def _guided(self, z_BCHW: Tensor, timestep_B: Tensor, told: "_Told") -> Tensor:
        """One evaluation for all items with their prompts and for the guided ones without; two, if lengths differ."""
        count, index = len(z_BCHW), told.index
        assert index is not None and told.s_B is not None
        away_BCHW, timestep_G = z_BCHW[index], timestep_B[index]
        if told.second is None:
            z_BCHW, timestep_B = torch.cat([z_BCHW, away_BCHW]), torch.cat([timestep_B, timestep_G])
            both = self._evaluate(z_BCHW, timestep_B, told.first).float()
            cond_BCHW, uncond = both[:count], both[count:]
        else:  # of another number of chunks
            cond_BCHW = self._evaluate(z_BCHW, timestep_B, told.first).float()
            uncond = self._evaluate(away_BCHW, timestep_G, told.second).float()
        if len(index) == count:
            return guide(cond_BCHW, uncond, told.s_B)
        return cond_BCHW.index_copy(0, index, guide(cond_BCHW[index], uncond, told.s_B))


@dataclass(frozen=True, eq=False)
class _Told:
    """What the UNet is told at every step: for all items, with the `index` of the guided ones and their guidance;
    the `second` for the latter alone, where the lengths of their texts differ.
    """

    first: dict[str, Any]
    index: Tensor | None = None
    s_B: Tensor | None = None
    second: dict[str, Any] | None = None


def _between(start: Text, end: Text, share: float) -> Text:
    """Every vector `share` of the way, in the number format of `end`."""
    pooled = None
    if start.pooled_BD is not None and end.pooled_BD is not None:
        pooled = slerp(start.pooled_BD, end.pooled_BD, share).to(end.pooled_BD)
    return Text(slerp(start.text_BLD, end.text_BLD, share).to(end.text_BLD), pooled, end.time_ids_B6)
