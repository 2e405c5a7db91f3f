"""Shared by the sampling tests: Stable Diffusion's schedule, in the three prediction types, and a made-up network."""

from collections.abc import Callable
from typing import Any, get_args

import numpy as np
import pytest

from fewstep.sampling.schedule import Prediction, Schedule, scaled_linear

SD = scaled_linear()


@pytest.fixture(params=get_args(Prediction))
def schedule(request: pytest.FixtureRequest) -> Schedule:
    return Schedule(SD, prediction=request.param)


@pytest.fixture
def sd() -> Schedule:
    return Schedule(SD)


@pytest.fixture
def normal() -> Callable[..., Any]:
    """normal(seed, shape) -> float32 numpy."""

    def draw(seed: int, shape: tuple[int, ...] = (3, 4, 8, 8)) -> np.ndarray:
        return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)

    return draw
