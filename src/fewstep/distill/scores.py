"""Scores of a look's pictures against their captions, where a judge for them is given: one line of `SCORES` each.

A score is asked with pictures (N, H, W, 3) uint8 and their N captions, and answers with one number, or with None where
it can say nothing of these captions.
"""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fewstep.checkpoints.measures import load_clip
from fewstep.distill.recipes import FIGURES, Recipe
from fewstep.evaluate import preference
from fewstep.evaluate.cases import concept_in
from fewstep.evaluate.judge import Judge, default_folder
from fewstep.evaluate.recognition import top

Score = Callable[[NDArray[np.uint8], Sequence[str]], float | None]


def recognised(folder: str) -> Score:
    """Share of the pictures in which the judge of `folder` ("embedded": the shipped one) sees the caption's concept.

    Captions that name none of the judge's concepts are left out. Raises CheckpointError when there is no judge.
    """
    judge = Judge(default_folder() if folder == "embedded" else Path(folder))

    def score(pictures_NHWC: NDArray[np.uint8], captions: Sequence[str]) -> float | None:
        named = [concept_in(caption, judge.labels) for caption in captions]
        known = [place for place, concept in enumerate(named) if concept is not None]
        if not known:
            return None
        wanted = np.array([judge.labels.concepts.index(named[place] or "") for place in known])
        return top(judge(pictures_NHWC[known]).concepts_NC, wanted).share

    return score


def clip_score(folder: str) -> Score:
    """Mean CLIP score (100 x cosine) by the CLIP model in a local folder. Raises CheckpointError when there is none."""
    rate = preference.clip_score(load_clip(folder)).rate
    return lambda pictures_NHWC, captions: float(rate(pictures_NHWC, captions).mean())


SCORES: dict[str, Callable[[str], Score]] = {"recognised": recognised, "clip": clip_score}
"""Name -> what makes the score of the value of its recipe key (`recipes.FIGURES`)."""


def scores_of(recipe: Recipe) -> dict[str, Score]:
    """The scores that a recipe asks for, ready to be asked. Raises CheckpointError when a judge cannot be loaded."""
    asked = {name: (getattr(recipe, FIGURES[name]), make) for name, make in SCORES.items()}
    return {name: make(value) for name, (value, make) in asked.items() if value}
