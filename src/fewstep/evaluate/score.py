"""The figures of one cell: recognition, backgrounds, set distances, distance to the teacher, nearest training picture.

Legend: N, M, K pictures; H, W pixels; D features.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fewstep.evaluate.background import RGB, obeyed
from fewstep.evaluate.cases import Case
from fewstep.evaluate.distance import nearest_rms, pixel_rms, precision_recall, relative_distance
from fewstep.evaluate.frechet import frechet_distance, kernel_distance, moments
from fewstep.evaluate.judge import Judge, Reading
from fewstep.evaluate.recognition import Rate, top
from fewstep.evaluate.suite import Cell

Pictures = NDArray[np.uint8]


@dataclass(frozen=True, eq=False)
class Seen:
    """Pictures and what the judge reads in them."""

    pictures_NHWC: Pictures
    reading: Reading

    @classmethod
    def by(cls, judge: Judge, pictures_NHWC: Pictures) -> Seen:
        """Let the judge look."""
        return cls(pictures_NHWC, judge(pictures_NHWC))

    def rows(self, keep: NDArray[np.integer]) -> Seen:
        """Some of the pictures."""
        reading = self.reading
        part = Reading(reading.features_ND[keep], reading.concepts_NC[keep], reading.styles_NS[keep])
        return Seen(self.pictures_NHWC[keep], part)


def rate(value: Rate) -> dict[str, Any]:
    """A rate for a JSON document: share, 95 % interval, count."""
    low, high = value.interval
    return {"share": round(value.share, 4), "low": round(low, 4), "high": round(high, 4), "count": value.count}


def recognition(judge: Judge, seen: Seen, cases: Sequence[Case]) -> dict[str, Any]:
    """Top-1 and top-5 concept, and style, over the cases whose label the judge knows."""
    labels, reading, found = judge.labels, seen.reading, {}
    known = np.array([i for i, case in enumerate(cases) if case.concept in labels.concepts], dtype=int)
    if len(known):
        wanted = np.array([labels.concepts.index(cases[i].concept or "") for i in known])
        found["top1"] = rate(top(reading.concepts_NC[known], wanted))
        found["top5"] = rate(top(reading.concepts_NC[known], wanted, k=5))
    styled = np.array([i for i, case in enumerate(cases) if case.style in labels.styles], dtype=int)
    if len(styled):
        wanted = np.array([labels.styles.index(cases[i].style or "") for i in styled])
        found["style"] = rate(top(reading.styles_NS[styled], wanted))
    return found


def backgrounds(pictures_NHWC: Pictures, cases: Sequence[Case], colours: Mapping[str, RGB]) -> dict[str, Any]:
    """How often the border has the colour asked for ("background"), and stays white where none is ("white")."""

    def share(chosen: Callable[[Case], bool]) -> dict[str, Any] | None:
        hits = [
            obeyed(picture, case.background or "", colours)
            for picture, case in zip(pictures_NHWC, cases, strict=True)
            if case.background in colours and chosen(case)
        ]
        return rate(Rate(sum(hits), len(hits))) if hits else None

    found = {"background": share(lambda c: c.background != "white"), "white": share(lambda c: c.background == "white")}
    return {key: value for key, value in found.items() if value is not None}


def against_real(seen: Seen, real: Seen) -> dict[str, Any]:
    """Fréchet and kernel distance, precision and recall against real pictures, all in the judge's features."""
    a, b = seen.reading.features_ND, real.reading.features_ND
    if min(len(a), len(b)) < 8:
        return {}
    precision, recall = precision_recall(b, a)
    return {
        "frechet": round(frechet_distance(moments(a), moments(b)), 4),
        "kernel": round(kernel_distance(a, b), 5),
        "precision": round(precision, 4),
        "recall": round(recall, 4),
    }


def against_teacher(seen: Seen, teacher: Seen) -> dict[str, Any]:
    """Mean distance to the teacher's picture of the same prompt and noise: pixels (0 to 255) and judge features."""
    pixels = float(pixel_rms(seen.pictures_NHWC, teacher.pictures_NHWC).mean())
    found = {"teacher_rms": round(pixels, 2)}
    if len(seen.pictures_NHWC) > 1:
        found["teacher_features"] = round(relative_distance(seen.reading.features_ND, teacher.reading.features_ND), 4)
    return found


def memorised(pictures_NHWC: Pictures, training_KHWC: Pictures) -> dict[str, Any]:
    """Median and 5th percentile of the RMS (0 to 255, at 32 px) to the nearest training picture."""
    distance = nearest_rms(pictures_NHWC, training_KHWC)
    return {
        "nearest_median": round(float(np.median(distance)), 2),
        "nearest_p5": round(float(np.percentile(distance, 5)), 2),
    }


def score(
    judge: Judge,
    seen: Seen,
    cases: Sequence[Case],
    *,
    real: Seen | None = None,
    teacher: Seen | None = None,
    training_KHWC: Pictures | None = None,
) -> dict[str, Any]:
    """All figures that can be had of one cell's pictures; what is missing is left out."""
    found: dict[str, Any] = {"count": len(cases)}
    found |= recognition(judge, seen, cases) | backgrounds(seen.pictures_NHWC, cases, judge.labels.colours)
    if real is not None:
        found |= against_real(seen, real)
    if teacher is not None:
        found |= against_teacher(seen, teacher)
    if training_KHWC is not None:
        found |= memorised(seen.pictures_NHWC, training_KHWC)
    return found


def row(cell: Cell, group: str, found: Mapping[str, Any]) -> dict[str, Any]:
    """A cell's figures with what they are figures of, as one row of the table."""
    facts = {"cell": cell.name, "group": group, "sampler": cell.sampler, "steps": cell.steps, "guidance": cell.guidance}
    return facts | {"evaluations": cell.evaluations} | dict(found)
