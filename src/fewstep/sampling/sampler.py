"""The samplers by name, and the loop.

A sampler is a pure step, a table of timesteps and where the last step ends. The loop is a generator: it yields after
every model evaluation, so progress, preview and interruption are the caller's. An inpainting mask belongs in the
denoiser (mix the known picture into z0); then it holds for every sampler.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Protocol

from fewstep.errors import RequestError
from fewstep.sampling.arrays import Array, Timesteps, float32, same_timestep
from fewstep.sampling.consistency import advance_lcm, advance_phased, advance_tcd
from fewstep.sampling.ode import Past, advance_ddim, advance_dpmpp_2m, advance_euler, advance_unipc
from fewstep.sampling.schedule import Schedule
from fewstep.sampling.stochastic import advance_euler_a

CLEAN = -1


class Denoiser(Protocol):
    """A network with everything inside it: text, guidance, LoRA, precision. The one thing samplers see."""

    def __call__(self, z_BCHW: Array, timestep_B: Array, /) -> Array:
        """The clean latents predicted for `z_BCHW`, each item at its own timestep (int64): (B, C, H, W)."""
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
    """

    name: str
    label: str
    advance: Advance
    table: str
    last: int
    history: int = 0
    noisy: bool = False


@dataclass(frozen=True)
class Step:
    """What one model evaluation led to: z is the latent after the step, z0 the prediction it was made from."""

    index: int
    count: int
    t: int
    t_next: int
    z: Array
    z0: Array


SAMPLERS: dict[str, Sampler] = {
    sampler.name: sampler
    for sampler in (
        Sampler("lcm", "LCM", advance_lcm, "linspace-lcm", CLEAN, noisy=True),
        Sampler("tcd", "TCD", advance_tcd, "linspace-lcm", 0, noisy=True),
        Sampler("pcm", "PCM", advance_phased, "trailing", 0),
        Sampler("ddim", "DDIM", advance_ddim, "trailing", 0),
        Sampler("euler", "Euler", advance_euler, "trailing", CLEAN),
        Sampler("euler_a", "Euler a", advance_euler_a, "trailing", CLEAN, noisy=True),
        Sampler("dpmpp_2m", "DPM++ 2M", advance_dpmpp_2m, "linspace", CLEAN, history=1),
        Sampler("unipc", "UniPC", advance_unipc, "linspace", CLEAN, history=2),
    )
}


def sampler_named(name: str, *, gamma: float | None = None) -> Sampler:
    """The sampler with this name or label, in any case. `gamma` in 0..1 is TCD's share of noise (usual: 0.3).

    >>> sampler_named("dpm++ 2m").name
    'dpmpp_2m'

    Raises `RequestError` for an unknown name, a gamma out of range, or a gamma for another sampler than TCD.
    """
    wanted = str(name).strip().lower()
    found = next((s for s in SAMPLERS.values() if wanted in (s.name, s.label.lower())), None)
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


def sample(
    denoiser: Denoiser,
    z: Array,
    timesteps: Sequence[int],
    *,
    sampler: Sampler,
    schedule: Schedule,
    noise: Callable[[int], Array],
) -> Iterator[Step]:
    """Run `sampler` from `z` (B, C, H, W), noised to timesteps[0], yielding after each model evaluation.

    `noise(k)` gives unit noise of the shape of `z` for step k; it is called only by a noisy sampler, and not for the
    last step. The latent keeps float32 throughout; the denoiser casts for itself. The result is the last step's z.
    """
    z = float32(z)
    past: tuple[Past, ...] = ()
    for index, (t, t_next) in enumerate(zip(timesteps, (*timesteps[1:], sampler.last), strict=True)):
        t_B, t_next_B = same_timestep(t, like=z), same_timestep(t_next, like=z)
        z0 = float32(denoiser(z, t_B))
        drawn = noise(index) if sampler.noisy and index + 1 < len(timesteps) else None
        after = sampler.advance(schedule, z, z0, t_B, t_next_B, drawn, past)
        past = (*past, Past(t_B, z, z0))[-sampler.history :] if sampler.history else ()
        z = after
        yield Step(index, len(timesteps), int(t), int(t_next), z, z0)
