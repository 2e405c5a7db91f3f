"""Prompts to conditioning by ONNX Runtime: CLIP's tokenizer by the tokenizers library, CLIP's text encoder as a graph.

The same tokens and the same states as `models.text.TextEncoder` with one encoder, without transformers and torch.
Shapes: B prompts, L positions (77), D text width.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from fewstep.backends.onnx_session import Sessions
from fewstep.errors import CheckpointError, RequestError

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

    def tokens(self, prompt: str) -> tuple[int, str]:
        """(number of tokens without start and end marks, the part of the prompt that does not fit; "" if all does)."""
        ids = self.tokenizer.encode(prompt, add_special_tokens=False).ids
        beyond = ids[self.length - 2 :]
        return len(ids), self.tokenizer.decode(beyond, skip_special_tokens=False).replace(_WORD_END, " ").strip()

    def ids(self, prompts: Sequence[str]) -> np.ndarray:
        """Prompts -> ids_BL int64: start mark, at most L - 2 tokens, end mark, padding."""
        rows = [self.tokenizer.encode(prompt, add_special_tokens=False).ids for prompt in prompts]
        start, end, pad = (self.tokenizer.token_to_id(mark) for mark in _marks(self.folder / "tokenizer"))
        filled = [[start, *row[: self.length - 2], end] for row in rows]
        return np.array([row + [pad] * (self.length - len(row)) for row in filled], np.int64)

    def encode(self, prompts: Sequence[str], *, clip_skip: int = 1) -> OnnxText:
        """Prompts -> text; clip_skip 1 is the last layer, 2 is one earlier, and so on.

        Raises RequestError when the encoder has not so many layers.
        """
        if not 1 <= clip_skip <= self.max_clip_skip:
            raise RequestError(f"clip_skip {clip_skip} is not in 1 to {self.max_clip_skip}, this model's text layers.")
        return OnnxText(self.sessions.run("text_encoder", f"text_{clip_skip}_BLD", ids_BL=self.ids(prompts)))

    def encode_negative(self, prompts: Sequence[str], *, clip_skip: int = 1) -> OnnxText:
        """The same: with one encoder, guidance moves away from the encoding of the empty prompt."""
        return self.encode(prompts, clip_skip=clip_skip)


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
