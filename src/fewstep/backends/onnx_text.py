"""Prompts to conditioning by ONNX Runtime: CLIP's tokenizer by the tokenizers library, CLIP's text encoder as a graph.

The same tokens and the same states as `models.text.TextEncoder` with one encoder, without transformers and torch.
Shapes: B prompts, K chunks, L positions (77, or 77 K), D text width.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from fewstep.backends.onnx_session import Sessions
from fewstep.errors import CheckpointError, RequestError
from fewstep.models.chunks import Chunk, Vectors, chunks, emphasised

_WORD_END = "</w>"
_SPLIT = r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
"""Where CLIP cuts a text into words (Radford et al. 2021, OpenAI's simple_tokenizer.py)."""


@dataclass(frozen=True, eq=False)
class OnnxText:
    """Encoded prompts."""

    text_BLD: np.ndarray

    def __len__(self) -> int:
        """The number of prompts B."""
        return len(self.text_BLD)


class OnnxTextEncoder:
    """The text encoder of a model folder with its tokenizer."""

    def __init__(self, folder: Path, sessions: Sessions) -> None:
        """Nothing is read before the first prompt."""
        self.folder, self.sessions = folder, sessions
        shapes = sessions.shapes("text_encoder")
        self.length = next(shape[0] for name, shape in shapes.items() if "position_embedding" in name)
        layers = {name.partition(".layers.")[2].partition(".")[0] for name in shapes if ".layers." in name}
        self.max_clip_skip = len(layers)

    @cached_property
    def tokenizer(self) -> Any:
        """CLIP's byte-level BPE; raises CheckpointError when its files are missing or damaged."""
        return _tokenizer(self.folder / "tokenizer")

    def chunks(
        self, prompt: str, emphasis: str = "original", embeddings: Mapping[str, Vectors] | None = None
    ) -> list[Chunk]:
        """The prompt as tokens; raises RequestError as `models.chunks.chunks`."""
        counts = {name: len(vectors["text_encoder"]) for name, vectors in (embeddings or {}).items()}
        return chunks(prompt, self._ids, room=self.length - 2, emphasis=emphasis, counts=counts)

    def _ids(self, text: str) -> list[int]:
        return self.tokenizer.encode(text, add_special_tokens=False).ids

    def ids(self, prompts: Sequence[str]) -> np.ndarray:
        """Plain prompts -> ids_BL int64: start mark, at most L - 2 tokens, end mark, padding."""
        return self._filled([Chunk(list(self._ids(prompt)[: self.length - 2])) for prompt in prompts])

    @property
    def marks(self) -> tuple[int, int, int]:
        """The ids of the start mark, the end mark and the padding."""
        start, end, pad = (self.tokenizer.token_to_id(mark) for mark in _marks(self.folder / "tokenizer"))
        return start, end, pad

    def _filled(self, found: Sequence[Chunk]) -> np.ndarray:
        start, end, pad = self.marks
        return np.array([chunk.filled(start, end, pad, self.length) for chunk in found], np.int64)

    def encode(self, prompts: Sequence[str], *, clip_skip: int = 1) -> OnnxText:
        """Plain prompts -> text, each cut where a chunk ends; clip_skip 1 is the last layer, 2 is one earlier.

        Raises RequestError when the encoder has not so many layers.
        """
        return OnnxText(self._run(self.ids(prompts), clip_skip))

    def encode_negative(self, prompts: Sequence[str], *, clip_skip: int = 1) -> OnnxText:
        """The same: with one encoder, guidance moves away from the encoding of the empty prompt."""
        return self.encode(prompts, clip_skip=clip_skip)

    def encode_prompt(
        self,
        prompt: str,
        *,
        clip_skip: int = 1,
        emphasis: str = "original",
        embeddings: Mapping[str, Vectors] | None = None,
        negative: bool = False,
    ) -> OnnxText:
        """One prompt with all that may be written in it -> text of one row, L = 77 K.

        Raises RequestError as `encode`, for an embedding, which this back end cannot place, and as
        `models.chunks.chunks`.
        """
        found = self.chunks(prompt, emphasis, embeddings)
        if named := sorted({vector.name for chunk in found for vector in chunk.vectors.values()}):
            raise RequestError(f"The embedding '{named[0]}' needs the PyTorch back end: give it as embeddings.")
        z_KLD = emphasised(self._run(self._filled(found), clip_skip), found, emphasis)
        return OnnxText(z_KLD.reshape(1, -1, z_KLD.shape[-1]))

    def _run(self, ids_BL: np.ndarray, clip_skip: int) -> np.ndarray:
        if not 1 <= clip_skip <= self.max_clip_skip:
            raise RequestError(f"clip_skip {clip_skip} is not in 1 to {self.max_clip_skip}, this model's text layers.")
        return self.sessions.run("text_encoder", f"text_{clip_skip}_BLD", ids_BL=ids_BL)


def _marks(folder: Path) -> tuple[str, str, str]:
    """The start, end and padding tokens."""
    path = folder / "tokenizer_config.json"
    config = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    found = [config.get(f"{kind}_token") for kind in ("bos", "eos", "pad")]
    usual = ("<|startoftext|>", "<|endoftext|>", "<|endoftext|>")
    named = [mark.get("content") if isinstance(mark, dict) else mark for mark in found]
    return tuple(mark or default for mark, default in zip(named, usual, strict=True))  # pyright: ignore[reportReturnType]


def _tokenizer(folder: Path) -> Any:
    from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

    try:
        start, end, pad = _marks(folder)
        vocab, merges = models.BPE.read_file(str(folder / "vocab.json"), str(folder / "merges.txt"))
        tokenizer = Tokenizer(models.BPE(vocab, merges, end_of_word_suffix=_WORD_END, unk_token=end))
    except Exception as error:  # noqa: BLE001 - the tokenizers library raises bare Exception
        raise CheckpointError(f"The tokenizer in '{folder}' cannot be read ({error}).") from None
    spaces = normalizers.Replace(Regex(r"\s+"), " ")
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFC(), spaces, normalizers.Lowercase()])
    words = pre_tokenizers.Split(Regex(_SPLIT), behavior="removed", invert=True)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([words, pre_tokenizers.ByteLevel(add_prefix_space=False)])
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(list(dict.fromkeys((start, end, pad))))
    return tokenizer
