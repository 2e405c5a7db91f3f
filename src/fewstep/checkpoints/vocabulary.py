"""CLIP's tokenizer without a file beside the model: its 48 894 merges are in the package (OpenAI's, MIT licence).

Every published Stable Diffusion has this one. All of it follows from the merges: the 256 bytes, the same at a word's
end, what each merge makes, the two marks (github.com/openai/CLIP, clip/simple_tokenizer.py). A model with merges of
its own says them in its single file's metadata.
"""

import bz2
import json
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

MARKS = ("<|startoftext|>", "<|endoftext|>")
LENGTH = 77


@lru_cache
def clip_merges() -> tuple[str, ...]:
    """CLIP's merges, the most frequent first, each two pieces with a space between."""
    packed = (Path(__file__).parent.parent / "assets" / "clip" / "merges.txt.bz2").read_bytes()
    return tuple(bz2.decompress(packed).decode("utf-8").splitlines())


def vocabulary(merges: Sequence[str]) -> dict[str, int]:
    """Every token -> its number.

    >>> [vocabulary(["a t</w>"])[token] for token in ("!", "at</w>", "<|endoftext|>")]
    [0, 512, 514]
    """
    from tokenizers.pre_tokenizers import ByteLevel

    letters = sorted(ByteLevel.alphabet())
    tokens = [*letters, *(f"{letter}</w>" for letter in letters), *(merge.replace(" ", "") for merge in merges)]
    return {token: number for number, token in enumerate([*tokens, *MARKS])}


@lru_cache(maxsize=4)
def tokenizer_of(merges: tuple[str, ...], *, pad: str = MARKS[1]) -> Any:
    """A CLIP tokenizer; OpenCLIP's encoders (SD 2.x, SDXL's second) were trained with `pad` "!", which is number 0.

    Made once (it takes a second or two) and shared by the models that have it.
    """
    from transformers import CLIPTokenizer

    pairs: Any = [tuple(merge.split(" ")) for merge in merges]
    return CLIPTokenizer(vocab=vocabulary(merges), merges=pairs, pad_token=pad, model_max_length=LENGTH)


def merges_of(tokenizer: Any) -> tuple[str, ...] | None:
    """A tokenizer's merges; None when it is not made of its merges alone, so that they would not bring it back."""
    found = json.loads(tokenizer.backend_tokenizer.to_str())["model"]
    merges = tuple(pair if isinstance(pair, str) else " ".join(pair) for pair in found["merges"])
    return merges if vocabulary(merges) == found["vocab"] else None


def tokenizer_files(tokenizer: Any) -> dict[str, str] | None:
    """The files that every program reads a CLIP tokenizer from, by name; None as in `merges_of`."""
    merges = merges_of(tokenizer)
    if merges is None:
        return None
    marks = {"bos_token": MARKS[0], "eos_token": MARKS[1], "unk_token": MARKS[1], "pad_token": tokenizer.pad_token}
    settings = {"tokenizer_class": "CLIPTokenizer", "model_max_length": tokenizer.model_max_length} | marks
    return {
        "vocab.json": json.dumps(vocabulary(merges), ensure_ascii=False),
        "merges.txt": "\n".join(["#version: 0.2", *merges]) + "\n",
        "tokenizer_config.json": json.dumps(settings, indent=2),
    }
