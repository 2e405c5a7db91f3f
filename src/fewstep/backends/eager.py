"""The UNet as PyTorch runs it, as a Denoiser: the reference that every faster back end must equal.

Shapes: B items (pictures), each with its own timestep, prompt and guidance; C, H, W latent channels, height, width.
"""

from collections.abc import Hashable, Sequence
from typing import Any

import torch
from torch import Tensor

from fewstep.checkpoints.load import Model
from fewstep.models.text import Text
from fewstep.models.unet import has_guidance_embedding, predict
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
        guidance = self.guidance * len(z_BCHW) if len(self.guidance) == 1 else self.guidance
        if len(guidance) != len(z_BCHW):
            raise ValueError(f"{len(guidance)} guidances for {len(z_BCHW)} items")
        text = self.text.expand(len(z_BCHW))
        if self.embedded:
            w_B = torch.tensor([w_of(value) for value in guidance], device=z_BCHW.device)
            return self._predict(z_BCHW, timestep_B, text, w_B=w_B)
        guided = [item for item, value in enumerate(guidance) if value != 1]
        if not guided or self.negative is None:
            return self._predict(z_BCHW, timestep_B, text)
        return self._guided(z_BCHW, timestep_B, text, guidance, guided)

    def _predict(self, z_BCHW: Tensor, timestep_B: Tensor, text: Text, **how: Any) -> Tensor:
        return predict(self.model.unet, z_BCHW, timestep_B, text, beside_BCHW=self.beside_BCHW, **how)

    def _guided(
        self, z_BCHW: Tensor, timestep_B: Tensor, text: Text, guidance: Sequence[float], guided: Sequence[int]
    ) -> Tensor:
        """One prediction for all items with their prompts and for the `guided` ones without; two, if lengths differ."""
        assert self.negative is not None
        count, index = len(z_BCHW), torch.tensor(guided, device=z_BCHW.device)
        negative = self.negative.expand(count).rows(guided)
        if negative.text_BLD.shape[1] == text.text_BLD.shape[1]:
            both = self._predict(
                torch.cat([z_BCHW, z_BCHW[index]]),
                torch.cat([timestep_B, timestep_B[index]]),
                Text.cat([text, negative]),
            ).float()
            cond_BCHW, uncond = both[:count], both[count:]
        else:  # of another number of chunks
            cond_BCHW = self._predict(z_BCHW, timestep_B, text).float()
            uncond = self._predict(z_BCHW[index], timestep_B[index], negative).float()
        mixed = guide(cond_BCHW[index], uncond, [guidance[item] for item in guided])
        return cond_BCHW.index_copy(0, index, mixed)


def _between(start: Text, end: Text, share: float) -> Text:
    """Every vector `share` of the way, in the number format of `end`."""
    pooled = None
    if start.pooled_BD is not None and end.pooled_BD is not None:
        pooled = slerp(start.pooled_BD, end.pooled_BD, share).to(end.pooled_BD)
    return Text(slerp(start.text_BLD, end.text_BLD, share).to(end.text_BLD), pooled, end.time_ids_B6)
