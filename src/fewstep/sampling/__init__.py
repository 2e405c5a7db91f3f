"""Sampling as arithmetic: schedules, timesteps, steps. Runs on torch tensors and numpy arrays, imports neither."""

from fewstep.sampling.consistency import boundary_scalings, consistency_function, phase_edges
from fewstep.sampling.guidance import guidance_embedding, guide, w_of
from fewstep.sampling.ode import Past, ddim_map
from fewstep.sampling.sampler import SAMPLERS, Advance, Denoiser, Sampler, Step, evaluations, sample, sampler_named
from fewstep.sampling.schedule import (
    Prediction,
    Schedule,
    add_noise,
    eps_from_z0,
    linear,
    scaled_linear,
    target,
    to_eps,
    to_z0,
    zero_terminal_snr,
)
from fewstep.sampling.timesteps import TABLES, timesteps

__all__ = [
    "SAMPLERS",
    "TABLES",
    "Advance",
    "Denoiser",
    "Past",
    "Prediction",
    "Sampler",
    "Schedule",
    "Step",
    "add_noise",
    "boundary_scalings",
    "consistency_function",
    "ddim_map",
    "eps_from_z0",
    "evaluations",
    "guidance_embedding",
    "guide",
    "linear",
    "phase_edges",
    "sample",
    "sampler_named",
    "scaled_linear",
    "target",
    "timesteps",
    "to_eps",
    "to_z0",
    "w_of",
    "zero_terminal_snr",
]
