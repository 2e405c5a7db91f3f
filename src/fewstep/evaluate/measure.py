"""Look at pictures batch by batch with several instruments, and make a row of figures of what they saw.

Pictures are let go batch after batch: 30,000 of 512 px are 24 GB. They are kept only where pairs are compared.
Legend: N pictures; H, W pixels; D features.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from fewstep.errors import RequestError
from fewstep.evaluate.cases import Case
from fewstep.evaluate.diversity import groups_by_label, groups_by_prompt, pair_diversity, vendi
from fewstep.evaluate.features import Features, Float32
from fewstep.evaluate.judge import Judge
from fewstep.evaluate.preference import Score
from fewstep.evaluate.reference import Reference, digits, set_distances
from fewstep.evaluate.resize import Pictures
from fewstep.evaluate.score import Seen, score

#: The Vendi score is a matrix of N x N or D x D; above this many pictures only where D is small.
MOST_FOR_VENDI = 10_000


@dataclass(frozen=True, eq=False)
class Gauges:
    """What pictures are looked at with; the judge also recognises, and pairs are compared where it is there."""

    features: tuple[Features, ...]
    scores: tuple[Score, ...] = ()
    judge: Judge | None = None


@dataclass(frozen=True, eq=False)
class Look:
    """What was seen in N pictures: features by key (N, D), scores by key (N,), and the first pictures themselves."""

    features: dict[str, Float32]
    scores: dict[str, Float32]
    first: Pictures
    count: int
    picture_ms: float | None
    seen: Seen | None = None
    cut: dict[str, int] = field(default_factory=dict)

    def reference(self, key: str, name: str) -> Reference:
        """These pictures as what others are measured against."""
        return Reference.of(name, self.features[key])


def look(gauges: Gauges, batches: Iterable[Pictures], prompts: Sequence[str], *, show: int = 32) -> Look:
    """Read batches of uint8 pictures (B, H, W, 3) as they come; `picture_ms` is the time that their maker took.

    Raises:
        RequestError: no picture, or where a score needs prompts, not one prompt for each.
    """
    features: dict[str, list[Float32]] = {f.key: [] for f in gauges.features}
    scores: dict[str, list[Float32]] = {s.key: [] for s in gauges.scores}
    kept: list[Pictures] = []
    count, made_s, started = 0, 0.0, time.perf_counter()
    for part in batches:
        made_s += time.perf_counter() - started
        for read in gauges.features:
            features[read.key].append(read(part))
        for one in gauges.scores:
            scores[one.key].append(one.rate(part, prompts[count : count + len(part)]))
        kept.append(part if gauges.judge is not None else part[: max(0, show - count)])
        count += len(part)
        started = time.perf_counter()
    if not count:
        raise RequestError("There is no picture to measure.")
    if gauges.scores and count != len(prompts):
        raise RequestError(f"{count} pictures need as many prompts; found {len(prompts)}.")
    pictures = np.concatenate([part for part in kept if len(part)])
    return Look(
        {key: np.concatenate(parts) for key, parts in features.items()},
        {key: np.concatenate(parts) for key, parts in scores.items()},
        pictures[:show],
        count,
        round(1000 * made_s / count, 1),
        None if gauges.judge is None else Seen.by(gauges.judge, pictures),
        {s.key: sum(map(s.is_cut, prompts)) for s in gauges.scores if s.is_cut is not None},
    )


def figures(
    gauges: Gauges,
    found: Look,
    cases: Sequence[Case],
    *,
    references: Mapping[str, Reference] | None = None,
    teacher: Look | None = None,
    teacher_other: Look | None = None,
    seed: int = 0,
) -> dict[str, Any]:
    """All figures of one set of pictures, for a row.

    `references` are the data, by key of the features; `teacher` are the teacher's pictures of the same cases (compared
    in pairs); `teacher_other` are its pictures from other seeds, so that the teacher itself has a fair row: its floor.
    """
    row: dict[str, Any] = {"count": found.count}
    if gauges.judge is not None and found.seen is not None:
        row |= score(gauges.judge, found.seen, cases, teacher=None if teacher is None else teacher.seen)
    for read in gauges.features:
        x_ND = found.features[read.key]
        if references is not None and read.key in references:
            row |= set_distances(x_ND, references[read.key], prefix=f"{read.key}_", seed=seed)
        if teacher_other is not None:
            other = teacher_other.reference(read.key, "teacher") if teacher_other.count > 1 else None
            row |= {} if other is None else set_distances(x_ND, other, prefix=f"teacher_{read.key}_", seed=seed)
        row |= {f"{read.key}_{name}": value for name, value in diversity(x_ND, cases).items()}
    for key, values_N in found.scores.items():
        row[key] = {"mean": digits(float(values_N.mean())), "std": digits(float(values_N.std()))}
    if any(found.cut.values()):
        row["cut_prompts"] = max(found.cut.values())
    return row | {"picture_ms": found.picture_ms}


def diversity(features_ND: Float32, cases: Sequence[Case]) -> dict[str, float]:
    """The Vendi score; the distance between seeds of a prompt, or for want of it between cases of one label."""
    found: dict[str, float] = {}
    if len(features_ND) > 1 and min(features_ND.shape) <= MOST_FOR_VENDI and np.linalg.norm(features_ND, axis=1).all():
        found["vendi"] = digits(vendi(features_ND))
    if len(cases) != len(features_ND):
        return found
    for name, groups in (("seed_diversity", groups_by_prompt(cases)), ("label_diversity", groups_by_label(cases))):
        if len(set(groups)) < len(groups):
            return found | {name: digits(pair_diversity(features_ND, groups))}
    return found
