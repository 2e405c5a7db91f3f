"""Prompts to conditioning: one CLIP text encoder (SD 1.5, SD 2.x, pictogram) or two (SDXL, SSD-1B).

Two ways in: `encode` takes prompts as plain text, cut where one chunk ends, for training; `encode_prompt` reads one
prompt with its weights, embeddings and as many chunks as it has (`chunks.py`), for drawing.
Our own, because diffusers' clip_skip is broken with flattened CLIP models (transformers 5.6 and later).
Shapes: B prompts, K chunks, L positions (77, or 77 K), D text width (for two encoders: both widths side by side).

| families | hidden state taken | final layer norm | pooled | empty negative prompt |
|---|---|---|---|---|
| one encoder | -clip_skip | yes | no | its encoding |
| two encoders | -(clip_skip + 1) of both | no | second encoder's | zeros, where the model says so |
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fewstep.errors import CheckpointError, RequestError
from fewstep.models.chunks import Chunk, Vectors, chunks, emphasised

NAMES = ("text_encoder", "text_encoder_2")


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

    def chunks(
        self, prompt: str, emphasis: str = "original", embeddings: Mapping[str, Vectors] | None = None
    ) -> list[Chunk]:
        """The prompt as the first encoder's tokens; raises RequestError as `models.chunks.chunks`."""
        return self._chunks(0, prompt, emphasis, embeddings or {})

    def _chunks(self, index: int, prompt: str, emphasis: str, embeddings: Mapping[str, Vectors]) -> list[Chunk]:
        tokenizer, own = self.tokenizers[index], NAMES[index]
        for name, vectors in embeddings.items():
            self._check(name, vectors)
        counts = {name: len(vectors[own]) for name, vectors in embeddings.items()}
        return chunks(
            prompt,
            lambda text: tokenizer(text, add_special_tokens=False, verbose=False).input_ids,
            room=self.length - 2,
            emphasis=emphasis,
            counts=counts,
        )

    def _check(self, name: str, vectors: Vectors) -> None:
        widths = {own: encoder.config.hidden_size for own, encoder in zip(NAMES, self.encoders, strict=False)}
        found = {own: value.shape[-1] for own, value in vectors.items()}
        if found != widths:
            has, wants = (" + ".join(str(width) for _, width in sorted(sizes.items())) for sizes in (found, widths))
            raise RequestError(
                f"The embedding '{name}' has the width {has}, but this model's text has {wants}: it was made for "
                "another family. Leave its word out, or take one made for this model."
            )

    def encode(self, prompts: Sequence[str], *, clip_skip: int = 1) -> Text:
        """Prompts -> Text on the encoders' device and in their number format; what is longer than 75 tokens is cut.

        clip_skip 1 is the usual last layer (SDXL: its usual one before the last), 2 is one layer earlier, and so on.
        Raises RequestError when the encoder has not so many layers.
        """
        ids = [
            tokenizer(list(prompts), padding="max_length", max_length=self.length, truncation=True).input_ids
            for tokenizer in self.tokenizers
        ]
        parts = self._run(ids, clip_skip)
        return Text(torch.cat([hidden for hidden, _ in parts], dim=-1), parts[-1][1])

    def encode_prompt(
        self,
        prompt: str,
        *,
        clip_skip: int = 1,
        emphasis: str = "original",
        embeddings: Mapping[str, Vectors] | None = None,
        negative: bool = False,
    ) -> Text:
        """One prompt with all that may be written in it (`prompt.emphasis`) -> Text of one row, L = 77 K.

        `embeddings` are the textual inversions that the prompt may name; `negative` as in `encode_negative`. The
        pooled text is the first chunk's. Raises RequestError as `encode` and `models.chunks.chunks`.
        """
        found = [self._chunks(index, prompt, emphasis, embeddings or {}) for index in range(len(self.encoders))]
        most = max(map(len, found))
        found = [own + [Chunk()] * (most - len(own)) for own in found]
        ids = [
            [
                chunk.filled(_id(tokenizer, "bos"), _id(tokenizer, "eos"), _id(tokenizer, "pad"), self.length)
                for chunk in own
            ]
            for own, tokenizer in zip(found, self.tokenizers, strict=True)
        ]
        parts = self._run(
            ids, clip_skip, [_places(own, name, embeddings or {}) for own, name in zip(found, NAMES, strict=False)]
        )
        states = [emphasised(hidden, own, emphasis) for (hidden, _), own in zip(parts, found, strict=True)]
        text = Text(torch.cat([state_KLD.flatten(0, 1) for state_KLD in states], dim=-1)[None], _first(parts[-1][1]))
        return self._zeros(text, [prompt]) if negative else text

    def encode_negative(self, prompts: Sequence[str], *, clip_skip: int = 1) -> Text:
        """As `encode`, by the family's convention for what guidance moves away from: SDXL's empty prompt is zeros."""
        text = self.encode(prompts, clip_skip=clip_skip)
        return self._zeros(text, prompts)

    def _zeros(self, text: Text, prompts: Sequence[str]) -> Text:
        if not self.zeros_for_empty_negative:
            return text
        keep_B = torch.tensor([prompt != "" for prompt in prompts], device=text.text_BLD.device)
        zero = torch.zeros((), device=keep_B.device, dtype=text.text_BLD.dtype)
        pooled = None if text.pooled_BD is None else torch.where(keep_B[:, None], text.pooled_BD, zero)
        return Text(torch.where(keep_B[:, None, None], text.text_BLD, zero), pooled)

    @torch.no_grad()
    def _run(
        self, ids: Sequence[Any], clip_skip: int, places: Sequence[Sequence[tuple[int, int, Tensor]]] = ((), ())
    ) -> list[tuple[Tensor, Tensor | None]]:
        """Token ids of each encoder -> its hidden states and pooled text, with vectors put at (row, position)."""
        if not 1 <= clip_skip <= self.max_clip_skip:
            raise RequestError(f"clip_skip {clip_skip} is not in 1 to {self.max_clip_skip}, this model's text layers.")
        parts: list[tuple[Tensor, Tensor | None]] = []
        for encoder, ids_BL, own in zip(self.encoders, ids, places, strict=False):
            with _placed(encoder, own):
                out = encoder(torch.tensor(ids_BL, device=encoder.device), output_hidden_states=True)
            if len(self.encoders) == 1:
                core = getattr(encoder, "text_model", encoder)
                parts.append((core.final_layer_norm(out.hidden_states[-clip_skip]), None))
            else:
                parts.append((out.hidden_states[-(clip_skip + 1)], getattr(out, "text_embeds", None)))
        return parts


def _first(pooled_BD: Tensor | None) -> Tensor | None:
    return None if pooled_BD is None else pooled_BD[:1]


def _id(tokenizer: Any, mark: str) -> int:
    return getattr(tokenizer, f"{mark}_token_id")


def _places(found: Sequence[Chunk], name: str, embeddings: Mapping[str, Vectors]) -> list[tuple[int, int, Tensor]]:
    """(chunk, position, vector) of every embedding; position 0 is the start mark."""
    return [
        (row, at + 1, embeddings[vector.name][name][vector.row])
        for row, chunk in enumerate(found)
        for at, vector in chunk.vectors.items()
    ]


@contextmanager
def _placed(encoder: Any, places: Sequence[tuple[int, int, Tensor]]) -> Iterator[None]:
    """The encoder, while these vectors stand in place of what its table of tokens gives."""

    def put(_table: Any, _ids: Any, x_BLD: Tensor) -> Tensor:
        x_BLD = x_BLD.clone()
        for row, at, vector in places:
            x_BLD[row, at] = vector.to(x_BLD)
        return x_BLD

    handle = encoder.get_input_embeddings().register_forward_hook(put) if places else None
    try:
        yield
    finally:
        if handle is not None:
            handle.remove()


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
