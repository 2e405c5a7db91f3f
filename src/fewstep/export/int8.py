"""Networks in 8 bits after training: activations calibrated on the inputs that the model's own sampling gives them.

Jacob et al. 2018 (arXiv:1712.05877); Xiao et al. 2023 (SmoothQuant, arXiv:2211.10438), by NNCF.
"""

# An extra that need not be there.
# pyright: reportMissingImports=false

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from contextlib import redirect_stdout
from typing import Any

import numpy as np

from fewstep.request import Request

NETWORKS = ("unet", "vae_decoder")
PROMPTS = (
    *("a red apple", "a green tree on a hill", "a cat on a beach", "a rocket at night", "a yellow house"),
    *("a blue car in the rain", "a bird in a winter forest", "a portrait of an old woman", "a bowl of fruit"),
    *("a lighthouse at dusk", "a dog, 3d", "a flower, oil painting"),
)
"""Each painted once, so that every timestep is seen with twelve texts."""

Inputs = dict[str, np.ndarray]


class _Watched:
    """The sessions of a model, which keep what the networks are given."""

    def __init__(self, sessions: Any) -> None:
        self.sessions, self.seen = sessions, {name: list[Inputs]() for name in NETWORKS}

    def run(self, graph: str, output: str, **inputs: np.ndarray) -> np.ndarray:
        """As `Sessions.run`."""
        if graph in self.seen:
            self.seen[graph].append(inputs)
        return self.sessions.run(graph, output, **inputs)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.sessions, name)


def trajectories(pipe: Any, prompts: Sequence[str] = PROMPTS) -> dict[str, list[Inputs]]:
    """What UNet and decoder are given while these prompts are painted as the model wants to be sampled, by a
    pipeline of graphs.
    """
    watched = pipe.model.sessions = _Watched(pipe.model.sessions)
    try:
        for seed, prompt in enumerate(prompts):
            pipe(Request(prompt, seed=seed))
    finally:
        pipe.model.sessions = watched.sessions
    return watched.seen


def quantised(network: Any, inputs: Sequence[Inputs]) -> Any:
    """An OpenVINO model with weights and activations in 8 bits; the progress is shown on stderr."""
    os.environ.setdefault("NNCF_CI", "1")  # or it would report its use to its makers
    import nncf

    how = {"preset": nncf.QuantizationPreset.MIXED, "model_type": nncf.ModelType.TRANSFORMER}
    with redirect_stdout(sys.stderr):
        return nncf.quantize(network, nncf.Dataset(list(inputs)), subset_size=len(inputs), **how)
