"""The samplers by name, and the loop.

A sampler is a table of timesteps, where the last step ends, and either a pure step, for one model evaluation each, or a
walk (`walk.py`), which asks as it likes. The loop is a generator: it yields after every model evaluation, so progress,
preview and interruption are the caller's. An inpainting mask belongs in the denoiser (mix the known picture into z0);
then it holds for every sampler.
"""

from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import count, pairwise
from math import sqrt
from typing import Protocol

from fewstep.errors import RequestError
from fewstep.sampling.arrays import Array, Timesteps, float32, same_timestep
from fewstep.sampling.consistency import advance_lcm, advance_phased, advance_tcd
from fewstep.sampling.dpm_solver import (
    dpm_adaptive,
    dpm_fast,
    dpmpp_2m_sde,
    dpmpp_2m_sde_heun,
    dpmpp_2s_a,
    dpmpp_3m_sde,
    dpmpp_sde,
)
from fewstep.sampling.ode import Past, advance_ddim, advance_dpmpp_2m, advance_euler, advance_unipc
from fewstep.sampling.schedule import Schedule
from fewstep.sampling.stochastic import advance_euler_a
from fewstep.sampling.timesteps import LABELS
from fewstep.sampling.walk import Noise, Walk, dpm_2, dpm_2_a, heun, lms, plms, restart

CLEAN = -1


class Denoiser(Protocol):
    """A network with everything inside it: text, guidance, LoRA, precision. The one thing samplers see."""

    def __call__(self, z_BCHW: Array, timestep_B: Array, /) -> Array:
        """The clean latents predicted for `z_BCHW`, each item at its own timestep: (B, C, H, W).

        Timesteps are int64, or float32 between the trained ones; below 0 the network is asked at 0.
        """
        ...


class Advance(Protocol):
    """One step from t to t_next, per item. Pure; `noise` may be None where it has no weight; `past` newest last."""

    def __call__(
        self,
        schedule: Schedule,
        z: Array,
        z0: Array,
        t_B: Timesteps,
        t_next_B: Timesteps,
        noise: Array | None = None,
        past: Sequence[Past] = (),
    ) -> Array:
        """The latents at t_next, float32, of the shape of `z`."""
        ...


@dataclass(frozen=True)
class Sampler:
    """A way to go from noise to an image.

    `label` is its name in A1111's metadata, `table` its usual timesteps, `last` where its final step ends (-1 clean,
    0 the least noise of the schedule), `history` how many `Past` it looks at, `noisy` whether it wants fresh noise.
    `automatic` is what A1111 takes for the schedule type Automatic, if that is another table; `discard` as in
    `timesteps`; `alone` says that its steps follow the picture, so that pictures must not share a batch; `noise_at`
    are the numbers of steps at which it paints noise.
    """

    name: str
    label: str
    advance: Advance | None
    table: str
    last: int
    history: int = 0
    noisy: bool = False
    automatic: str = ""
    discard: bool = False
    alone: bool = False
    walk: Callable[[Array, Sequence[float], Noise], Walk] | None = None
    noise_at: range = range(0)


@dataclass(frozen=True)
class Step:
    """What one model evaluation led to: z is the latent after it, z0 the prediction it was made from.

    `count` is how many there will be; a sampler that chooses its own steps may have more, until its last one.
    """

    index: int
    count: int
    t: float
    t_next: float
    z: Array
    z0: Array


_noisy = partial(Sampler, advance=None, table="trailing", last=CLEAN, noisy=True)
_solver = partial(Sampler, advance=None, table="trailing", last=0, noisy=True, automatic="uniform")

SAMPLERS: dict[str, Sampler] = {
    sampler.name: sampler
    for sampler in (
        Sampler("lcm", "LCM", advance_lcm, "linspace-lcm", CLEAN, noisy=True, automatic="a1111"),
        Sampler("tcd", "TCD", advance_tcd, "linspace-lcm", 0, noisy=True),
        Sampler("pcm", "PCM", advance_phased, "trailing", 0),
        Sampler("ddim", "DDIM", advance_ddim, "trailing", 0, automatic="ddim"),
        Sampler("euler", "Euler", advance_euler, "trailing", CLEAN, automatic="uniform"),
        Sampler("euler_a", "Euler a", advance_euler_a, "trailing", CLEAN, noisy=True, automatic="uniform"),
        Sampler("dpmpp_2m", "DPM++ 2M", advance_dpmpp_2m, "linspace", CLEAN, history=1, automatic="karras"),
        Sampler("unipc", "UniPC", advance_unipc, "linspace", CLEAN, history=2, automatic="sgm_uniform"),
        Sampler("lms", "LMS", None, "trailing", CLEAN, automatic="uniform", walk=lms),
        Sampler("plms", "PLMS", None, "trailing", 0, automatic="ddim", walk=plms),
        Sampler("heun", "Heun", None, "trailing", CLEAN, automatic="uniform", walk=heun),
        Sampler("dpm2", "DPM2", None, "trailing", CLEAN, automatic="karras", discard=True, walk=dpm_2),
        _solver("dpm_fast", "DPM fast", walk=dpm_fast, noise_at=range(2, 6)),
        _solver("dpm_adaptive", "DPM adaptive", alone=True, walk=dpm_adaptive),
        _noisy("restart", "Restart", automatic="karras", walk=restart),
        _noisy("dpm2_a", "DPM2 a", automatic="karras", discard=True, walk=dpm_2_a),
        _noisy("dpmpp_2s_a", "DPM++ 2S a", automatic="karras", walk=dpmpp_2s_a),
        _noisy("dpmpp_sde", "DPM++ SDE", automatic="karras", walk=dpmpp_sde),
        _noisy("dpmpp_2m_sde", "DPM++ 2M SDE", automatic="exponential", walk=dpmpp_2m_sde),
        _noisy("dpmpp_2m_sde_heun", "DPM++ 2M SDE Heun", automatic="exponential", walk=dpmpp_2m_sde_heun),
        _noisy("dpmpp_3m_sde", "DPM++ 3M SDE", automatic="exponential", discard=True, walk=dpmpp_3m_sde),
    )
}


def sampler_named(name: str, *, gamma: float | None = None) -> Sampler:
    """The sampler with this name or label, in any case. `gamma` in 0..1 is TCD's share of noise (usual: 0.3).

    A label may end in that of a schedule type, as A1111 wrote it before 1.9, and the sampler then has that table.

    >>> sampler_named("dpm++ 2m").name, sampler_named("DPM++ 2M Karras").table
    ('dpmpp_2m', 'karras')

    Raises `RequestError` for an unknown name, a gamma out of range, or a gamma for another sampler than TCD.
    """
    found = _known(str(name).strip().lower())
    if found is None:
        known = ", ".join(s.label for s in SAMPLERS.values())
        raise RequestError(f"There is no sampler '{name}'. Choose one of: {known}.")
    if gamma is None:
        return found
    if found.name != "tcd":
        raise RequestError(f"gamma belongs to the TCD sampler, but {found.label} was asked for. Leave gamma out.")
    if not 0 <= gamma <= 1:
        raise RequestError(f"gamma must be from 0 (no noise) to 1, not {gamma}.")
    return replace(found, advance=partial(advance_tcd, gamma=gamma))


def _known(wanted: str) -> Sampler | None:
    """By its name or label, or by that and the label of one schedule type behind it."""
    names = {name: sampler for sampler in SAMPLERS.values() for name in (sampler.name, sampler.label.lower())}
    if wanted in names:
        return names[wanted]
    for table, label in LABELS.items():
        bare = wanted.removesuffix(f" {label.lower()}")
        if bare != wanted and bare in names:
            return replace(names[bare], table=table)
    return None


def sample(
    denoiser: Denoiser,
    z: Array,
    timesteps: Sequence[float],
    *,
    sampler: Sampler,
    schedule: Schedule,
    noise: Callable[[int], Array],
) -> Iterator[Step]:
    """Run `sampler` from `z` (B, C, H, W), noised to timesteps[0], yielding after each model evaluation.

    `noise(k)` gives unit noise of the shape of `z`, the k-th; it is called only by a noisy sampler, and only where it
    has weight. The latent keeps float32 throughout; the denoiser casts for itself. The result is the last step's z.
    """
    walk = questions(sampler, schedule, z, timesteps, noise)
    expected = evaluations(sampler, schedule, timesteps)
    z, t = next(walk)
    for index in count():
        z0 = float32(denoiser(z, same_timestep(t, like=z)))
        try:
            z, t_next = walk.send(z0)
        except StopIteration as end:
            yield Step(index, index + 1, t, sampler.last, end.value, z0)
            return
        yield Step(index, max(expected, index + 2), t, t_next, z, z0)
        t = t_next


def evaluations(sampler: Sampler, schedule: Schedule, timesteps: Sequence[float]) -> int:
    """How many model evaluations a run takes, at least: the same walk, of one number that is always 0.

    >>> evaluations(SAMPLERS["heun"], Schedule((0.9, 0.5, 0.1)), (2, 1, 0))
    5
    """
    if sampler.walk is None:
        return len(timesteps)
    walk, asked = sampler.walk(0.0, _levels(sampler, schedule, timesteps), lambda: 0.0), 1
    next(walk)
    try:
        while True:
            walk.send(0.0)
            asked += 1
    except StopIteration:
        return asked


def _levels(sampler: Sampler, schedule: Schedule, timesteps: Sequence[float]) -> list[float]:
    return [schedule.level(t) for t in (*timesteps, sampler.last)]


def questions(
    sampler: Sampler, schedule: Schedule, z: Array, timesteps: Sequence[float], noise: Callable[[int], Array]
) -> Generator[tuple[Array, float], Array, Array]:
    """`sample` turned inside out: yields (z, t), wants to be sent the clean latents predicted for it in float32, and
    returns the last z. So somebody else may answer the questions of many pictures together.
    """
    z = float32(z)
    if sampler.walk is None:
        return (yield from _stepwise(sampler, schedule, z, timesteps, noise))
    levels, drawn = _levels(sampler, schedule, timesteps), count()
    walk = sampler.walk(z * sqrt(1 + levels[0] ** 2), levels, lambda: float32(noise(next(drawn))))
    x, k = next(walk)
    try:
        while True:
            x, k = walk.send((yield x / sqrt(1 + k**2), schedule.timestep(k)))
    except StopIteration as end:
        return end.value / sqrt(1 + levels[-1] ** 2)


def _stepwise(
    sampler: Sampler, schedule: Schedule, z: Array, timesteps: Sequence[float], noise: Callable[[int], Array]
) -> Generator[tuple[Array, float], Array, Array]:
    """One question for each timestep, and the sampler's step after each answer."""
    assert sampler.advance is not None
    past: tuple[Past, ...] = ()
    for index, (t, t_next) in enumerate(pairwise((*timesteps, sampler.last))):
        z0 = yield z, t
        t_B, t_next_B = same_timestep(t, like=z), same_timestep(t_next, like=z)
        drawn = noise(index) if sampler.noisy and index + 1 < len(timesteps) else None
        after = sampler.advance(schedule, z, z0, t_B, t_next_B, drawn, past)
        past = (*past, Past(t_B, z, z0))[-sampler.history :] if sampler.history else ()
        z = after
    return z
