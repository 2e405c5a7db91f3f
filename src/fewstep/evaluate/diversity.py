"""How different are the pictures from one another? A few-step student often draws one picture for every seed.

Legend: N pictures; D features; groups are any labels, e.g. the prompt or its (concept, style).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Sequence

import numpy as np
from numpy.typing import ArrayLike

from fewstep.errors import RequestError
from fewstep.evaluate.cases import Case
from fewstep.evaluate.frechet import Float64


def _rows(features_ND: ArrayLike) -> Float64:
    x_ND = np.asarray(features_ND, dtype=np.float64)
    if x_ND.ndim != 2 or len(x_ND) < 1:
        raise RequestError(f"Diversity needs feature vectors as an (N, D) array; found shape {x_ND.shape}.")
    return x_ND


def pair_diversity(features_ND: ArrayLike, groups_N: Sequence[Hashable]) -> float:
    """Mean Euclidean distance between two different pictures of one group, averaged over the groups; 0 all equal.

    With the prompt as the group and several seeds a prompt, this is how much the seed decides. In the features' own
    units: compare with the same figure of the teacher. Groups of one picture do not count.

    Raises:
        RequestError: not one group for each vector, or no group of two.

    >>> pair_diversity([[0.0, 0.0], [3.0, 4.0], [9.0, 9.0]], ["a", "a", "b"])
    5.0
    """
    x_ND = _rows(features_ND)
    if len(groups_N) != len(x_ND):
        raise RequestError(f"There are {len(x_ND)} pictures but {len(groups_N)} groups; give one for each.")
    members: dict[Hashable, list[int]] = defaultdict(list)
    for index, group in enumerate(groups_N):
        members[group].append(index)
    means = [_mean_distance(x_ND[rows]) for rows in members.values() if len(rows) > 1]
    if not means:
        raise RequestError("Diversity needs at least two pictures of one prompt; draw more seeds a prompt.")
    return float(np.mean(means))


def _mean_distance(x_KD: Float64) -> float:
    """Over all pairs of different rows; by differences, so that equal rows are at exactly 0."""
    apart = [np.linalg.norm(x_KD[at + 1 :] - row, axis=1) for at, row in enumerate(x_KD[:-1])]
    return float(np.concatenate(apart).mean())


def vendi(features_ND: ArrayLike) -> float:
    """The Vendi score: the effective number of different pictures, from 1 (all alike) to N (no two alike).

    Source: Friedman and Dieng 2022, the exponential of the entropy of the eigenvalues of K / N with the cosine kernel.
    Taken from the D x D matrix where that is the smaller one: both have the same eigenvalues but for zeros.

    Raises:
        RequestError: no vector, or one of length zero, which has no direction.

    >>> round(vendi([[1.0, 0.0], [0.0, 2.0]]), 6), round(vendi([[1.0, 2.0], [2.0, 4.0]]), 6)
    (2.0, 1.0)
    """
    x_ND = _rows(features_ND)
    length_N1 = np.linalg.norm(x_ND, axis=1, keepdims=True)
    if not (length_N1 > 0).all():
        raise RequestError("The Vendi score needs vectors with a direction; one of them is zero.")
    x_ND = x_ND / length_N1
    n, d = x_ND.shape
    values = np.linalg.eigvalsh((x_ND @ x_ND.T if n <= d else x_ND.T @ x_ND) / n)
    values = values[values > 1e-12]
    return float(np.exp(-(values * np.log(values)).sum()))


def groups_by_prompt(cases: Sequence[Case]) -> list[Hashable]:
    """The prompt of each case: pictures of one group differ by their seed alone."""
    return [case.prompt for case in cases]


def groups_by_label(cases: Sequence[Case]) -> list[Hashable]:
    """(concept, style) of each case: a stand-in where a fixed list has one seed a prompt; the prompt where unknown."""
    return [(case.concept, case.style) if case.concept else case.prompt for case in cases]
