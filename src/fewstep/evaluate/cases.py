"""The fixed prompts: what is asked for, and with which noise."""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from fewstep.errors import RequestError
from fewstep.evaluate.judge import Labels

GROUPS = ("seen", "held-out style", "held-out background")


@dataclass(frozen=True)
class Case:
    """One prompt with its seed; what it asks for where that is known (names of the judge's labels)."""

    prompt: str
    seed: int
    concept: str | None = None
    style: str | None = None
    background: str | None = None
    group: str = "seen"


def words(labels: Labels, concept: str, style: str, background: str | None) -> str:
    """A prompt in the training captions' plainest wording; white backgrounds go unsaid.

    `a red apple, 3d` or `a red apple, 3d on a blue background`.
    """
    text = f"{labels.phrases[labels.concepts.index(concept)]}, {style}"
    return text if background in (None, "white") else f"{text} {labels.backgrounds[background].phrase}"


def _case(labels: Labels, index: int, concept: str, style: str, background: str | None, group: str) -> Case:
    seed = index + 100_000 * GROUPS.index(group) if group in GROUPS else index
    return Case(words(labels, concept, style, background), seed, concept, style, background or "white", group)


def _shuffled(items: Iterable[tuple[str, str]]) -> list[tuple[str, str]]:
    """One fixed order, whatever was drawn before."""
    order = list(items)
    random.Random(0).shuffle(order)
    return order


def _cycle(items: Sequence[tuple[str, str]], count: int) -> list[tuple[str, str, int]]:
    """`count` entries going round the items, with the number of the round."""
    return [(*items[i % len(items)], i // len(items)) for i in range(count if items else 0)]


def seen_cases(labels: Labels, count: int, *, styles: Sequence[str] | None = None) -> tuple[Case, ...]:
    """Balanced over all trained (concept, style) pairs; every other prompt asks for a background.

    `styles` replaces the judge's own, e.g. by a fine-tuned model's one style; then only the concept is judged.
    """
    held = set(labels.held_out_styles)
    pairs = _shuffled((c, s) for c in labels.concepts for s in styles or labels.styles if (c, s) not in held)
    cases: list[Case] = []
    for index, (concept, style, lap) in enumerate(_cycle(pairs, count)):
        wanted = (index + lap * (len(pairs) + 1)) % 2  # the second round asks where the first did not
        background = _trained_background(labels, concept, turn=index // 2) if wanted else None
        cases.append(_case(labels, index, concept, style, background, "seen"))
    return tuple(cases)


def _trained_background(labels: Labels, concept: str, *, turn: int) -> str | None:
    """The next background but white that the concept was trained on; None where there is none."""
    barred = {background for name, background in labels.held_out_backgrounds if name == concept}
    pool = [name for name in labels.backgrounds if name != "white" and name not in barred]
    return pool[turn % len(pool)] if pool else None


def held_out_style_cases(labels: Labels, count: int) -> tuple[Case, ...]:
    """(concept, style) pairs that no training has seen, on white."""
    rounds = _cycle(_shuffled(labels.held_out_styles), count)
    return tuple(_case(labels, i, c, s, None, "held-out style") for i, (c, s, _) in enumerate(rounds))


def held_out_background_cases(labels: Labels, count: int) -> tuple[Case, ...]:
    """(concept, background) pairs that no training has seen, going round the styles."""
    unseen = set(labels.held_out_styles)
    cases: list[Case] = []
    for index, (concept, background, lap) in enumerate(_cycle(_shuffled(labels.held_out_backgrounds), count)):
        styles = [s for s in labels.styles if (concept, s) not in unseen]
        cases.append(
            _case(labels, index, concept, styles[(index + lap) % len(styles)], background, "held-out background")
        )
    return tuple(cases)


#: How far apart the seeds of one case are; the fixed lists use seeds below 300,000.
SEED_STRIDE, OTHER_SEEDS = 1_000_000, 500_000


def with_seeds(cases: Sequence[Case], count: int) -> tuple[Case, ...]:
    """Every case `count` times, each with a seed of its own; the first is the case itself.

    >>> [case.seed for case in with_seeds([Case("a cat", 7)], 2)]
    [7, 1000007]
    """
    return tuple(replace(case, seed=case.seed + SEED_STRIDE * turn) for case in cases for turn in range(count))


def with_other_seeds(cases: Sequence[Case]) -> tuple[Case, ...]:
    """The same prompts with seeds that no case of `with_seeds` has: a second, independent set."""
    return tuple(replace(case, seed=case.seed + OTHER_SEEDS) for case in cases)


def concept_in(prompt: str, labels: Labels) -> str | None:
    """The concept a free prompt names: the longest of the judge's words that stands in it whole."""
    text = f" {prompt.lower().replace(',', ' ')} "
    found = [concept for concept in labels.concepts if f" {concept} " in text]
    return max(found, key=len) if found else None


def read_cases(path: Path, labels: Labels, *, count: int | None = None) -> tuple[Case, ...]:
    """One prompt a line, lines beginning with # left out; seeds 0, 1, 2 ...

    Raises:
        RequestError: the file cannot be read or has no prompt.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise RequestError(
            f"The prompts file '{path}' cannot be read ({error}); give a text file with one prompt a line."
        ) from None
    prompts = [line.strip() for line in lines if line.strip() and not line.lstrip().startswith("#")][:count]
    if not prompts:
        raise RequestError(f"The prompts file '{path}' has no prompt; write one a line.")
    styles = {s: s for s in labels.styles}
    return tuple(
        Case(
            text,
            seed,
            concept_in(text, labels),
            next((s for s in styles if s in text.lower().split()), None),
            None,
            "prompts",
        )
        for seed, text in enumerate(prompts)
    )
