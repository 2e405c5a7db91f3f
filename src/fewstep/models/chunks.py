"""Prompts longer than a text encoder reads at once, with words that count more or less: chunks of tokens.

Each chunk (75 tokens with CLIP) is read by itself, between its own start and end marks; the chunks' states stand one
after the other. Source: AUTOMATIC1111's web interface, so that its prompts mean here what they mean there: a chunk that
is full goes back to its last comma, if that is at most 20 tokens ago; weights multiply the states, whose mean is then
restored. Shapes: K chunks, L positions of a chunk (77), D text width. Nothing here imports torch.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import zip_longest

from fewstep.errors import RequestError
from fewstep.prompt.emphasis import passages
from fewstep.sampling.arrays import Array, constant, float32, namespace, where_not_zero

BACK_TO_COMMA = 20
NO_MEAN = 1e-4
"""Of the standard deviation."""

Vectors = Mapping[str, Array]
"""An embedding: text encoder ("text_encoder", "text_encoder_2") -> [count, D]."""


@dataclass(frozen=True)
class Vector:
    """A token's place that is taken by row `row` of the embedding `name`."""

    name: str
    row: int


@dataclass
class Chunk:
    """Tokens that are read at once, without marks and padding; how strongly each counts; and embeddings by position."""

    ids: list[int | Vector] = field(default_factory=list)
    weights: list[float] = field(default_factory=list)

    @property
    def vectors(self) -> dict[int, Vector]:
        """Position -> embedding, counted from the chunk's first token."""
        return {at: token for at, token in enumerate(self.ids) if isinstance(token, Vector)}

    def filled(self, start: int, end: int, pad: int, length: int) -> list[int]:
        """The token ids of all `length` positions; an embedding's place has the end mark's."""
        ids = [end if isinstance(token, Vector) else token for token in self.ids]
        return [start, *ids, end, *[pad] * (length - 2 - len(ids))]


def chunks(
    prompt: str,
    tokenize: Callable[[str], Sequence[int]],
    *,
    room: int,
    emphasis: str = "original",
    counts: Mapping[str, int] | None = None,
) -> list[Chunk]:
    """The prompt as chunks of at most `room` tokens; at least one.

    `tokenize` gives a text's ids without marks; `counts` says how many vectors each embedding has that the prompt may
    name. Raises RequestError for weights that are absurd, and for an embedding that is longer than a chunk.
    """
    comma = list(tokenize(","))[-1]
    done: list[Chunk] = []
    for passage in passages(prompt, emphasis):
        chunk = Chunk()
        for span in passage:
            for word in _words(span.text, tokenize, counts or {}):
                while len(chunk.ids) + len(word) > room:
                    chunk, full = _after(chunk, comma, room, word), chunk
                    done.append(full)
                chunk.ids += word
                chunk.weights += [span.weight] * len(word)
        done.append(chunk)
    return done[:-1] if len(done) > 1 and not done[-1].ids else done


def _after(full: Chunk, comma: int, room: int, word: Sequence[int | Vector]) -> Chunk:
    """What is taken over from a full chunk into the next: what follows its last comma, if that is near."""
    if len(word) > room:
        raise RequestError(f"An embedding of {len(word)} vectors does not fit into the {room} tokens read at once.")
    last = next((at for at in range(len(full.ids) - 1, -1, -1) if full.ids[at] == comma), None)
    if last is None or word[0] == comma or len(full.ids) < room or len(full.ids) - last > BACK_TO_COMMA:
        return Chunk()
    rest = Chunk(full.ids[last + 1 :], full.weights[last + 1 :])
    del full.ids[last + 1 :], full.weights[last + 1 :]
    return rest


def _words(
    text: str, tokenize: Callable[[str], Sequence[int]], counts: Mapping[str, int]
) -> Iterator[Sequence[int | Vector]]:
    """What must not be torn apart: single tokens, and the vectors of an embedding."""
    known = {name.lower(): name for name in counts}
    names = "|".join(re.escape(name) for name in sorted(known, key=len, reverse=True))
    pieces = re.split(rf"(?<!\w)({names})(?!\w)", text, flags=re.IGNORECASE) if names else [text]
    for plain, named in zip_longest(pieces[::2], pieces[1::2]):
        yield from ([token] for token in tokenize(plain))
        if named is not None:
            name = known[named.lower()]
            yield [Vector(name, row) for row in range(counts[name])]


def emphasised(z_KLD: Array, found: Sequence[Chunk], emphasis: str = "original") -> Array:
    """The states, each token's times its weight, in their own number format; the marks count 1.

    With "original" the mean of each chunk's states is restored; without any weight nothing is touched.
    Departure: a mean that is as good as 0, by which A1111 would divide, is left alone.
    """
    if all(weight == 1 for chunk in found for weight in chunk.weights):
        return z_KLD
    length = z_KLD.shape[1]
    rows = [[1.0, *chunk.weights, *[1.0] * (length - 1 - len(chunk.weights))] for chunk in found]
    before_KLD = float32(z_KLD)
    after_KLD = before_KLD * constant([weight for row in rows for weight in row], like=z_KLD).reshape(-1, length, 1)
    if emphasis == "original":
        after_KLD = after_KLD * _restoring(before_KLD, after_KLD).reshape(-1, 1, 1)
    return after_KLD.to(z_KLD.dtype) if hasattr(z_KLD, "to") else after_KLD.astype(z_KLD.dtype)


def _restoring(before_KLD: Array, after_KLD: Array) -> Array:
    """What each chunk's states are multiplied with (K,)."""
    before_KN, after_KN = (x.reshape(len(x), -1) for x in (before_KLD, after_KLD))
    ratio_K = before_KN.mean(-1) / where_not_zero(after_KN.mean(-1))
    has_mean_K = abs(before_KN.mean(-1)) > NO_MEAN * before_KN.std(-1)
    return namespace(ratio_K).where(has_mean_K, ratio_K, ratio_K * 0 + 1)
