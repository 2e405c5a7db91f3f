"""Prompts to conditioning: one CLIP text encoder (SD 1.5, SD 2.x, pictogram) or two (SDXL, SSD-1B).

Our own, because diffusers' clip_skip is broken with flattened CLIP models (transformers 5.6 and later).
Shapes: B prompts, L positions (77), D text width (for two encoders: both widths side by side).

| families | hidden state taken | final layer norm | pooled | empty negative prompt |
|---|---|---|---|---|
| one encoder | -clip_skip | yes | no | its encoding |
| two encoders | -(clip_skip + 1) of both | no | second encoder's | zeros, where the model says so |
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fewstep.errors import CheckpointError, RequestError


@dataclass(frozen=True, eq=False)
class Text:
    """Encoded prompts: text_BLD, and pooled_BD where the family has a second encoder. `time_ids_B6` is what SDXL is
    told of a training picture: original height and width, crop top and left, target height and width in px.
    """

    text_BLD: Tensor
    pooled_BD: Tensor | None = None
    time_ids_B6: Tensor | None = None

    def __len__(self) -> int:
        """The number of prompts B."""
        return len(self.text_BLD)

    def rows(self, indices: Sequence[int] | Tensor) -> "Text":
        """Some of the prompts, in the order of `indices`; one may come several times."""
        index = torch.as_tensor(indices, dtype=torch.long, device=self.text_BLD.device)
        rest = (None if part is None else part[index] for part in (self.pooled_BD, self.time_ids_B6))
        return Text(self.text_BLD[index], *rest)

    def expand(self, batch: int) -> "Text":
        """These prompts for `batch` items: as they are, or one prompt for all of them."""
        if len(self) == batch:
            return self
        if len(self) != 1:
            raise ValueError(f"{len(self)} prompts for {batch} items")
        return self.rows([0] * batch)

    @staticmethod
    def cat(texts: Sequence["Text"]) -> "Text":
        """Several texts of one model, one after another; time ids are kept where every text has them."""
        pooled = [text.pooled_BD for text in texts if text.pooled_BD is not None]
        sizes = [text.time_ids_B6 for text in texts if text.time_ids_B6 is not None]
        return Text(
            torch.cat([text.text_BLD for text in texts]),
            torch.cat(pooled) if pooled else None,
            torch.cat(sizes) if len(sizes) == len(texts) else None,
        )

    def to(self, *where: Any, **how: Any) -> "Text":
        """The same on another device or in another number format (time ids stay whole); arguments as of `Tensor.to`."""
        text_BLD = self.text_BLD.to(*where, **how)
        pooled = None if self.pooled_BD is None else self.pooled_BD.to(*where, **how)
        sizes = None if self.time_ids_B6 is None else self.time_ids_B6.to(text_BLD.device)
        return Text(text_BLD, pooled, sizes)


class TextEncoder:
    """The text encoders of a model with their tokenizers, first encoder first."""

    def __init__(
        self, encoders: Sequence[Any], tokenizers: Sequence[Any], *, zeros_for_empty_negative: bool = False
    ) -> None:
        """Raises CheckpointError when a tokenizer does not fit its encoder's table of tokens."""
        self.encoders = tuple(encoders)
        self.tokenizers = tuple(tokenizers)
        self.zeros_for_empty_negative = zeros_for_empty_negative
        for encoder, tokenizer in zip(self.encoders, self.tokenizers, strict=True):
            _check_vocabulary(tokenizer, encoder)
        self.length = min(map(_length, self.tokenizers, self.encoders))

    @property
    def max_clip_skip(self) -> int:
        """The largest clip_skip that still leaves one layer."""
        return min(encoder.config.num_hidden_layers for encoder in self.encoders) - (len(self.encoders) - 1)

    def tokens(self, prompt: str) -> tuple[int, str]:
        """(number of tokens without start and end marks, the part of the prompt that does not fit; "" if all does)."""
        ids = self.tokenizers[0](prompt, add_special_tokens=False, verbose=False).input_ids
        beyond = ids[self.length - 2 :]
        return len(ids), self.tokenizers[0].decode(beyond).strip() if beyond else ""

    def encode(self, prompts: Sequence[str], *, clip_skip: int = 1) -> Text:
        """Prompts -> Text on the encoders' device and in their number format; what is longer than 75 tokens is cut.

        clip_skip 1 is the usual last layer (SDXL: its usual one before the last), 2 is one layer earlier, and so on.
        Raises RequestError when the encoder has not so many layers.
        """
        if not 1 <= clip_skip <= self.max_clip_skip:
            raise RequestError(f"clip_skip {clip_skip} is not in 1 to {self.max_clip_skip}, this model's text layers.")
        parts = [
            self._run(encoder, tokenizer, list(prompts), clip_skip)
            for encoder, tokenizer in zip(self.encoders, self.tokenizers, strict=True)
        ]
        return Text(torch.cat([hidden for hidden, _ in parts], dim=-1), parts[-1][1])

    def encode_negative(self, prompts: Sequence[str], *, clip_skip: int = 1) -> Text:
        """As `encode`, by the family's convention for what guidance moves away from: SDXL's empty prompt is zeros."""
        text = self.encode(prompts, clip_skip=clip_skip)
        if not self.zeros_for_empty_negative:
            return text
        keep_B = torch.tensor([prompt != "" for prompt in prompts], device=text.text_BLD.device)
        zero = torch.zeros((), device=keep_B.device, dtype=text.text_BLD.dtype)
        pooled = None if text.pooled_BD is None else torch.where(keep_B[:, None], text.pooled_BD, zero)
        return Text(torch.where(keep_B[:, None, None], text.text_BLD, zero), pooled)

    @torch.no_grad()
    def _run(self, encoder: Any, tokenizer: Any, prompts: list[str], clip_skip: int) -> tuple[Tensor, Tensor | None]:
        ids = tokenizer(prompts, padding="max_length", max_length=self.length, truncation=True, return_tensors="pt")
        out = encoder(ids.input_ids.to(encoder.device), output_hidden_states=True)
        if len(self.encoders) == 1:
            core = getattr(encoder, "text_model", encoder)
            return core.final_layer_norm(out.hidden_states[-clip_skip]), None
        return out.hidden_states[-(clip_skip + 1)], getattr(out, "text_embeds", None)


def _length(tokenizer: Any, encoder: Any) -> int:
    return min(tokenizer.model_max_length, encoder.config.max_position_embeddings)


def _check_vocabulary(tokenizer: Any, encoder: Any) -> None:
    """A tokenizer whose files were not found has 2 or 3 tokens and says nothing."""
    found, rows = len(tokenizer), encoder.config.vocab_size
    if found > rows or 2 * found < rows:
        raise CheckpointError(
            f"The tokenizer has {found} tokens but the text encoder's table has {rows}: tokenizer/vocab.json, "
            "merges.txt or tokenizer.json is missing, damaged or of another model."
        )
