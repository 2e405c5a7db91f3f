"""CLIP's two towers side by side: pictures and prompts to vectors of one space.

Sources: Radford et al. 2021. PickScore (Kirstain et al. 2023) and HPSv2 (Wu et al. 2023) are fine-tuned CLIPs of the
same layout. Legend: B pictures or prompts; C, H, W pixels; D features.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from fewstep.errors import CheckpointError

MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


@dataclass(frozen=True)
class Sight:
    """How pictures become the tower's input: shorter side to `size_px` (bicubic), middle square, mean and deviation."""

    size_px: int = 224
    crop_px: int = 224
    mean: tuple[float, ...] = MEAN
    std: tuple[float, ...] = STD

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Sight:
        """From preprocessor_config.json in either of its spellings; raises CheckpointError for another recipe.

        >>> Sight.from_json({"size": 336, "crop_size": {"height": 336, "width": 336}}).crop_px
        336
        """
        size, crop = value.get("size", 224), value.get("crop_size", 224)
        size = size.get("shortest_edge") if isinstance(size, Mapping) else size
        crop = crop.get("height") if isinstance(crop, Mapping) else crop
        known = value.get("resample", 3) == 3 and value.get("do_center_crop", True) and value.get("do_normalize", True)
        if not isinstance(size, int) or not isinstance(crop, int) or crop > size or not known:
            raise CheckpointError("preprocessor_config.json does not describe CLIP's bicubic resize and centre crop.")
        return cls(size, crop, tuple(value.get("image_mean", MEAN)), tuple(value.get("image_std", STD)))

    def __call__(self, pictures_NHWC: NDArray[np.uint8]) -> Tensor:
        """uint8 pictures of one size to float (N, 3, crop_px, crop_px); resized as Pillow does, in whole numbers."""
        rows = np.stack([np.asarray(self._fitted(Image.fromarray(picture))) for picture in pictures_NHWC])
        x_BCHW = torch.from_numpy(rows).permute(0, 3, 1, 2).float() / 255
        return (x_BCHW - torch.tensor(self.mean).view(3, 1, 1)) / torch.tensor(self.std).view(3, 1, 1)

    def _fitted(self, image: Image.Image) -> Image.Image:
        short = min(image.size)
        width, height = (self.size_px if side == short else int(self.size_px * side / short) for side in image.size)
        image = image.resize((width, height), Image.Resampling.BICUBIC)
        left, top = (width - self.crop_px) // 2, (height - self.crop_px) // 2
        return image.crop((left, top, left + self.crop_px, top + self.crop_px))


class Clip:
    """A CLIP model with its tokenizer and its way of seeing."""

    def __init__(self, model: Any, tokenizer: Any, sight: Sight, *, name: str) -> None:
        """`model` is a `transformers.CLIPModel` in eval mode; `name` is what tables call it."""
        self.model, self.tokenizer, self.sight, self.name = model, tokenizer, sight, name
        self.length = min(tokenizer.model_max_length, model.config.text_config.max_position_embeddings)

    @property
    def logit_scale(self) -> float:
        """What the training multiplied cosines with (100 in the published models)."""
        return float(self.model.logit_scale.detach().exp())

    @torch.inference_mode()
    def pictures(self, pictures_NHWC: NDArray[np.uint8], *, batch: int = 32) -> Tensor:
        """Projected features (N, D) on the CPU, not normalised."""
        parts: list[Tensor] = []
        for at in range(0, len(pictures_NHWC), batch):
            x_BCHW = self.sight(pictures_NHWC[at : at + batch]).to(self.model.device)
            pooled = self.model.vision_model(pixel_values=x_BCHW).pooler_output
            parts.append(self.model.visual_projection(pooled).float().cpu())
        return torch.cat(parts)

    @torch.inference_mode()
    def prompts(self, prompts: Sequence[str], *, batch: int = 128) -> Tensor:
        """Projected features (N, D) on the CPU, not normalised; what is longer than 75 tokens is cut."""
        parts: list[Tensor] = []
        for at in range(0, len(prompts), batch):
            ids = self.tokenizer(
                list(prompts[at : at + batch]),
                padding="max_length",
                max_length=self.length,
                truncation=True,
                return_tensors="pt",
            ).to(self.model.device)
            out = self.model.text_model(input_ids=ids.input_ids, attention_mask=ids.attention_mask)
            parts.append(self.model.text_projection(out.pooler_output).float().cpu())
        return torch.cat(parts)

    def is_cut(self, prompt: str) -> bool:
        """Is the prompt longer than the text tower reads?"""
        return len(self.tokenizer(prompt, verbose=False).input_ids) > self.length
