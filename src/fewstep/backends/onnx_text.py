"""Prompts to conditioning by a runtime: CLIP's tokenizer by the tokenizers library, CLIP's text encoder as a graph.

The same tokens and the same states as `models.text.TextEncoder`, without transformers and torch.
Shapes: B prompts, K chunks, L positions (77, or 77 K), D text width (of two encoders both side by side).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from fewstep.backends.sessions import Sessions
from fewstep.checkpoints.description import Description
from fewstep.checkpoints.single import MERGES, PADS, SingleFile
from fewstep.checkpoints.vocabulary import LENGTH, MARKS, clip_merges, vocabulary
from fewstep.errors import CheckpointError, RequestError
from fewstep.models.chunks import Chunk, Vectors, chunks, emphasised

_WORD_END = "</w>"
_SPLIT = r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
"""Where CLIP cuts a text into words (Radford et al. 2021, OpenAI's simple_tokenizer.py)."""


@dataclass(frozen=True, eq=False)
class OnnxText:
    """Encoded prompts: text_BLD, and pooled_BD where the family has a second encoder."""

    text_BLD: np.ndarray
    pooled_BD: np.ndarray | None = None

    def __len__(self) -> int:
        """The number of prompts B."""
        return len(self.text_BLD)


class _Tokens:
    """One encoder's tokenizer, read when it is first needed."""

    def __init__(self, source: Path | SingleFile, part: str) -> None:
        self.source, self.part = source, part

    @cached_property
    def words(self) -> Any:
        """CLIP's byte-level BPE; raises CheckpointError when its files are missing or damaged."""
        source = self.source
        return _own_tokenizer(source, self.marks) if isinstance(source, SingleFile) else _tokenizer(source / self.part)

    @cached_property
    def marks(self) -> tuple[str, str, str]:
        """The start, end and padding tokens."""
        if isinstance(self.source, Path):
            return _marks(self.source / self.part)
        number = int(self.part.endswith("_2"))
        said = self.source.metadata.get(PADS, "").split(" ")
        usual = "!" if self.source.open_clip(self.part.replace("tokenizer", "text_encoder")) else MARKS[1]
        return (*MARKS, said[number] if number < len(said) and said[number] else usual)

    def files(self) -> dict[str, str]:
        """vocab.json, merges.txt and tokenizer_config.json."""
        found = json.loads(self.words.to_str())["model"]
        merges = [pair if isinstance(pair, str) else " ".join(pair) for pair in found["merges"]]
        start, end, pad = self.marks
        config = {"tokenizer_class": "CLIPTokenizer", "model_max_length": LENGTH, "bos_token": start}
        return {
            "vocab.json": json.dumps(found["vocab"], ensure_ascii=False),
            "merges.txt": "\n".join(["#version: 0.2", *merges]) + "\n",
            "tokenizer_config.json": json.dumps(
                config | {"eos_token": end, "unk_token": end, "pad_token": pad}, indent=2
            ),
        }

    def ids(self, text: str) -> list[int]:
        """Without marks."""
        return self.words.encode(text, add_special_tokens=False).ids

    def filled(self, found: Sequence[Chunk], length: int) -> tuple[np.ndarray, np.ndarray]:
        """(ids, of length `length` each; where each one's end mark is, counted through all of them)."""
        start, end, pad = (self.words.token_to_id(mark) for mark in self.marks)
        ids_BL = np.array([chunk.filled(start, end, pad, length) for chunk in found], np.int64)
        ends_B = np.arange(len(ids_BL)) * length + (ids_BL == end).argmax(-1)
        return ids_BL, ends_B


class OnnxTextEncoder:
    """The text encoders of a model with their tokenizers, first encoder first."""

    def __init__(self, found: Description, sessions: Sessions) -> None:
        """Nothing is read before the first prompt."""
        self.sessions = sessions
        self.names = [name for name in ("text_encoder", "text_encoder_2") if name in sessions.wanted]
        source = found.sources.get("tokenizer", found.sources.get("text_encoder", found.path))
        self._tokens = [_Tokens(source, name.replace("text_encoder", "tokenizer")) for name in self.names]
        self._zeros = len(self.names) == 2 and found.configs["model_index"].get("force_zeros_for_empty_prompt", True)
        shapes = sessions.shapes(self.names[0])
        self.length = next(shape[0] for name, shape in shapes.items() if "position_embedding" in name)
        layers = [found.configs[name]["num_hidden_layers"] for name in self.names]
        self.max_clip_skip = min(layers) - (len(layers) - 1)

    def chunks(
        self, prompt: str, emphasis: str = "original", embeddings: Mapping[str, Vectors] | None = None
    ) -> list[Chunk]:
        """The prompt as the first encoder's tokens; raises RequestError as `models.chunks.chunks`."""
        return self._chunks(0, prompt, emphasis, embeddings or {})

    def _chunks(self, index: int, prompt: str, emphasis: str, embeddings: Mapping[str, Vectors]) -> list[Chunk]:
        counts = {name: len(vectors[self.names[index]]) for name, vectors in embeddings.items()}
        return chunks(prompt, self._tokens[index].ids, room=self.length - 2, emphasis=emphasis, counts=counts)

    def ids(self, prompts: Sequence[str]) -> np.ndarray:
        """Plain prompts -> the first encoder's ids_BL int64: start mark, at most L - 2 tokens, end mark, padding."""
        return self._plain(self._tokens[0], prompts)[0]

    @property
    def words(self) -> Any:
        """The first encoder's tokenizer, of the tokenizers library."""
        return self._tokens[0].words

    @property
    def marks(self) -> tuple[int, int, int]:
        """The first encoder's ids of the start mark, the end mark and the padding."""
        start, end, pad = (self.words.token_to_id(mark) for mark in self._tokens[0].marks)
        return start, end, pad

    def _plain(self, tokens: _Tokens, prompts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        return tokens.filled([Chunk(list(tokens.ids(prompt)[: self.length - 2])) for prompt in prompts], self.length)

    def tokens(self, prompt: str) -> dict[str, dict[str, np.ndarray]]:
        """What every encoder's graph is given for a plain prompt."""
        found = {name: self._plain(own, [prompt]) for name, own in zip(self.names, self._tokens, strict=True)}
        return {name: _given(name, *filled) for name, filled in found.items()}

    def tokenizer_files(self) -> dict[str, dict[str, str]]:
        """`tokenizer`, `tokenizer_2` -> the files that every program reads a CLIP tokenizer from."""
        return {own.part: own.files() for own in self._tokens}

    def encode(self, prompts: Sequence[str], *, clip_skip: int = 1) -> OnnxText:
        """Plain prompts -> text, each cut where a chunk ends; clip_skip 1 is the last layer, 2 is one earlier.

        Raises RequestError when the encoder has not so many layers.
        """
        parts = self._run([self._plain(tokens, prompts) for tokens in self._tokens], clip_skip)
        return OnnxText(np.concatenate([text_BLD for text_BLD, _ in parts], -1), parts[-1][1])

    def encode_negative(self, prompts: Sequence[str], *, clip_skip: int = 1) -> OnnxText:
        """As `encode`, by the family's convention for what guidance moves away from: SDXL's empty prompt is zeros."""
        return self._zeroed(self.encode(prompts, clip_skip=clip_skip), prompts)

    def _zeroed(self, text: OnnxText, prompts: Sequence[str]) -> OnnxText:
        if not self._zeros:
            return text
        keep_B = np.array([prompt != "" for prompt in prompts])
        pooled = None if text.pooled_BD is None else text.pooled_BD * keep_B[:, None]
        return OnnxText(text.text_BLD * keep_B[:, None, None], pooled)

    def encode_prompt(
        self,
        prompt: str,
        *,
        clip_skip: int = 1,
        emphasis: str = "original",
        embeddings: Mapping[str, Vectors] | None = None,
        negative: bool = False,
    ) -> OnnxText:
        """One prompt with all that may be written in it -> text of one row, L = 77 K; the pooled text is the first
        chunk's.

        Raises RequestError as `encode`, for an embedding, which this back end cannot place, and as
        `models.chunks.chunks`.
        """
        found = [self._chunks(index, prompt, emphasis, embeddings or {}) for index in range(len(self.names))]
        if named := sorted({vector.name for chunk in found[0] for vector in chunk.vectors.values()}):
            raise RequestError(f"The embedding '{named[0]}' needs the PyTorch back end: give it as embeddings.")
        most = max(map(len, found))
        found = [own + [Chunk()] * (most - len(own)) for own in found]
        filled = [tokens.filled(own, self.length) for tokens, own in zip(self._tokens, found, strict=True)]
        parts = self._run(filled, clip_skip)
        states = [emphasised(text_KLD, own, emphasis) for (text_KLD, _), own in zip(parts, found, strict=True)]
        text_BLD = np.concatenate([state.reshape(1, -1, state.shape[-1]) for state in states], -1)
        pooled = parts[-1][1]
        text = OnnxText(text_BLD, None if pooled is None else pooled[:1])
        return self._zeroed(text, [prompt]) if negative else text

    def _run(
        self, filled: Sequence[tuple[np.ndarray, np.ndarray]], clip_skip: int
    ) -> list[tuple[np.ndarray, np.ndarray | None]]:
        """Every encoder's states, and the last one's pooled text where it has that."""
        if not 1 <= clip_skip <= self.max_clip_skip:
            raise RequestError(f"clip_skip {clip_skip} is not in 1 to {self.max_clip_skip}, this model's text layers.")
        output, parts = f"text_{clip_skip}_BLD", []
        for name, (ids_BL, ends_B) in zip(self.names, filled, strict=True):
            outputs = (output,) if name == "text_encoder" else (output, "pooled_BD")
            found = self.sessions.run_all(name, outputs, **_given(name, ids_BL, ends_B))
            parts.append((found[0], found[1] if len(found) > 1 else None))
        return parts


def _given(name: str, ids_BL: np.ndarray, ends_B: np.ndarray) -> dict[str, np.ndarray]:
    return {"ids_BL": ids_BL} if name == "text_encoder" else {"ids_BL": ids_BL, "ends_B": ends_B}


def _marks(folder: Path) -> tuple[str, str, str]:
    """The start, end and padding tokens."""
    path = folder / "tokenizer_config.json"
    config = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    found = [config.get(f"{kind}_token") for kind in ("bos", "eos", "pad")]
    usual = ("<|startoftext|>", "<|endoftext|>", "<|endoftext|>")
    named = [mark.get("content") if isinstance(mark, dict) else mark for mark in found]
    return tuple(mark or default for mark, default in zip(named, usual, strict=True))  # pyright: ignore[reportReturnType]


def _tokenizer(folder: Path) -> Any:
    try:
        start, end, pad = _marks(folder)
        vocab, merges = _files(folder)
        return _made(vocab, merges, (start, end, pad))
    except Exception as error:  # noqa: BLE001 - the tokenizers library raises bare Exception
        raise CheckpointError(f"The tokenizer in '{folder}' cannot be read ({error}).") from None


def _files(folder: Path) -> tuple[dict[str, int], list[tuple[str, str]]]:
    """From vocab.json and merges.txt, or from tokenizer.json."""
    from tokenizers import models

    if (folder / "vocab.json").is_file() or not (folder / "tokenizer.json").is_file():
        return models.BPE.read_file(str(folder / "vocab.json"), str(folder / "merges.txt"))
    found = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))["model"]
    pairs = (pair.split(" ") if isinstance(pair, str) else pair for pair in found["merges"])
    return found["vocab"], [(first, second) for first, second in pairs]


def _own_tokenizer(file: SingleFile, marks: tuple[str, str, str]) -> Any:
    """Of what the file recorded, else CLIP's."""
    merges = tuple(file.metadata[MERGES].split("\n")) if MERGES in file.metadata else clip_merges()
    pairs = [(first, second) for first, _, second in (merge.partition(" ") for merge in merges)]
    return _made(vocabulary(merges), pairs, marks)


def _made(vocab: dict[str, int], merges: list[tuple[str, str]], marks: tuple[str, str, str]) -> Any:
    from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

    tokenizer = Tokenizer(models.BPE(vocab, merges, end_of_word_suffix=_WORD_END, unk_token=marks[1]))
    spaces = normalizers.Replace(Regex(r"\s+"), " ")
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFC(), spaces, normalizers.Lowercase()])
    words = pre_tokenizers.Split(Regex(_SPLIT), behavior="removed", invert=True)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([words, pre_tokenizers.ByteLevel(add_prefix_space=False)])
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(list(dict.fromkeys(marks)))
    return tokenizer
