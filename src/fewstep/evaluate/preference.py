"""Does the picture show the prompt, and would people like it? Scores of pairs by the user's own models.

Scores of different models are different scales: each is reported under its model's name. Models that were trained to
please a score inflate it; read it beside a distance between sets.
Legend: N pictures; H, W pixels; D features.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from torch.nn.functional import cosine_similarity

from fewstep.errors import CheckpointError, RequestError
from fewstep.evaluate.resize import Pictures

if TYPE_CHECKING:
    from fewstep.models.clip import Clip

Float32 = NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class Score:
    """One figure for each (picture, prompt) pair: `rate(pictures, prompts)` -> (N,). `key` is its place in a row."""

    key: str
    heading: str
    model: str
    rate: Callable[[Pictures, Sequence[str]], Float32]
    is_cut: Callable[[str], bool] | None = None


def _cosines(clip: Clip, pictures_NHWC: Pictures, prompts: Sequence[str]) -> Float32:
    if len(pictures_NHWC) != len(prompts):
        raise RequestError(f"{len(pictures_NHWC)} pictures need as many prompts; found {len(prompts)}.")
    return cosine_similarity(clip.pictures(pictures_NHWC), clip.prompts(prompts)).numpy()


def clip_score(clip: Clip, *, prefix: str = "", scale: float = 100.0) -> Score:
    """100 x the cosine of picture and prompt; state the model beside it.

    Source: Hessel et al. 2021, without its clipping at 0 and with the usual factor 100 in place of 2.5. DMD2 and
    SiD-LSG put "A photo depicts " before every prompt (`prefix`) and give the bare cosine.
    """

    def rate(pictures_NHWC: Pictures, prompts: Sequence[str]) -> Float32:
        return scale * _cosines(clip, pictures_NHWC, [prefix + prompt for prompt in prompts])

    return Score("clip_score", "CLIP score", clip.name, rate, lambda prompt: clip.is_cut(prefix + prompt))


def pick_score(clip: Clip) -> Score:
    """PickScore from its folder (a CLIP ViT-H): the cosine times the trained scale, about 100. Kirstain et al. 2023."""

    def rate(pictures_NHWC: Pictures, prompts: Sequence[str]) -> Float32:
        return clip.logit_scale * _cosines(clip, pictures_NHWC, prompts)

    return Score("pick_score", "PickScore", clip.name, rate, clip.is_cut)


def hps_score(clip: Clip) -> Score:
    """HPSv2 from a folder in the layout of transformers: the bare cosine, as its authors report it. Wu et al. 2023.

    Departure: a picture that is not square is cropped, where HPSv2 pads it; ours are square.
    """
    return Score("hps", "HPSv2", clip.name, lambda x, prompts: _cosines(clip, x, prompts), clip.is_cut)


def image_reward(weights: Path, config: Path, *, device: str = "cpu") -> Score:
    """ImageReward by its authors' package, from local files: ImageReward.pt and med_config.json. Xu et al. 2023.

    Raises:
        RequestError: the package `image-reward` is not installed.
        CheckpointError: a file is missing, or the package cannot load it.
    """
    for path in (weights, config):
        if not path.is_file():
            raise CheckpointError(f"'{path}' does not exist; ImageReward needs ImageReward.pt and med_config.json.")
    try:
        package: Any = importlib.import_module("ImageReward")
    except ImportError as error:
        raise RequestError(
            f"ImageReward needs the package of its authors, which is not there ({error}): pip install image-reward"
        ) from None
    try:
        model = package.load(str(weights), device=device, med_config=str(config))
    except Exception as error:  # noqa: BLE001 - a foreign package on foreign files
        raise CheckpointError(f"ImageReward cannot load '{weights}' ({str(error)[:160]}).") from None

    def rate(pictures_NHWC: Pictures, prompts: Sequence[str]) -> Float32:
        pairs = zip(pictures_NHWC, prompts, strict=True)
        return np.array([model.score(prompt, Image.fromarray(picture)) for picture, prompt in pairs], np.float32)

    return Score("image_reward", "ImageReward", weights.name, rate)
