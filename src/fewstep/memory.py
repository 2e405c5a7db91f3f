"""Which parts of a model a GPU holds at once: plans from everything to one layer at a time, and who chooses.

The words are those of A1111's users: `medium` is its --medvram, `low` its --lowvram. All but `fp8` give the same
picture, `tiled` and `low` within what tiles of the autoencoder change. `fp8` rounds weights, so nobody but the user
chooses it. Bytes throughout. Nothing here imports torch.
"""

from dataclasses import dataclass

from fewstep.errors import DeviceError

RESERVE = 512 << 20
"""Left free: what libraries take for themselves, and what allocation in blocks wastes. A choice, not a measurement."""

UNET_WIDTHS = 40
"""Working memory of a UNet, as arrays of its first width at the latents' size, for each item. Counted on the real
shapes of SD 1.5 and SDXL (tests/test_memory.py), and rounded up.
"""

VAE_WIDTHS = 5
"""Working memory of a decoder, as arrays of its second width at the picture's size. Counted likewise."""


@dataclass(frozen=True)
class Needs:
    """Bytes of a model's parts, of its UNet in 8 bits and of the UNet's largest layer; and of the work with them: one
    guided picture through the UNet, one picture or one tile through the decoder.
    """

    text: int
    unet: int
    vae: int
    unet_eight: int
    layer: int
    unet_work: int
    vae_work: int
    tile_work: int


@dataclass(frozen=True)
class MemoryPlan:
    """What is on the device when.

    `text_leaves`: text encoders come for a prompt and go. `turns`: so do UNet and autoencoder. `tiles`: pictures are
    decoded in tiles. `streams`: the UNet's layers come one by one. `eight`: the UNet's weights stay, in 8 bits.
    """

    name: str
    does: str
    text_leaves: bool = False
    turns: bool = False
    tiles: bool = False
    streams: bool = False
    eight: bool = False

    def peak(self, needs: Needs) -> int:
        """The most that is held at any time."""
        unet = needs.unet_eight + needs.layer if self.eight else 2 * needs.layer if self.streams else needs.unet
        decoding = needs.tile_work if self.tiles else needs.vae_work
        if self.turns:
            staying = unet if self.eight else 0
            return max(unet + needs.unet_work, staying + max(needs.text, needs.vae + decoding))
        working = max(needs.unet_work, decoding)
        return unet + needs.vae + (max(needs.text, working) if self.text_leaves else needs.text + working)


LADDER = (
    MemoryPlan("full", "everything stays on the GPU"),
    MemoryPlan("high", "text encoders leave after encoding", text_leaves=True),
    MemoryPlan("medium", "text encoders, UNet and autoencoder take turns", text_leaves=True, turns=True),
    MemoryPlan("tiled", "the same, and pictures are decoded in tiles", text_leaves=True, turns=True, tiles=True),
    MemoryPlan("low", "the UNet's layers come one by one", text_leaves=True, turns=True, tiles=True, streams=True),
)
"""From fastest to smallest."""

FP8 = MemoryPlan(
    "fp8",
    "the UNet stays, its weights kept in 8 bits, and the others take turns",
    text_leaves=True,
    turns=True,
    tiles=True,
    eight=True,
)
PLANS = {plan.name: plan for plan in (*LADDER, FP8)}
SPELLINGS = {"medvram": "medium", "lowvram": "low", "med": "medium"}


def plan_named(name: str) -> MemoryPlan | None:
    """The plan that a user means; None for auto.

    >>> plan_named("medvram").name, plan_named("auto")
    ('medium', None)

    Raises DeviceError for another word.
    """
    word = str(name).strip().lower().lstrip("-")
    if word == "auto":
        return None
    found = PLANS.get(SPELLINGS.get(word, word))
    if found is None:
        raise DeviceError(f"There is no memory plan called {name!r}. Use auto, {', '.join(PLANS)}.")
    return found


def choose_plan(needs: Needs, free: int) -> MemoryPlan:
    """The fastest plan that fits into what is free with `RESERVE` left; the smallest where none does."""
    return next((plan for plan in LADDER if plan.peak(needs) + RESERVE <= free), LADDER[-1])


def step_down(plan: MemoryPlan) -> MemoryPlan | None:
    """The next smaller plan; None below the smallest.

    >>> step_down(LADDER[0]).name, step_down(FP8).name, step_down(LADDER[-1])
    ('high', 'low', None)
    """
    at = LADDER.index(plan) + 1 if plan in LADDER else len(LADDER) - 1
    return LADDER[at] if at < len(LADDER) else None


def gigabytes(count: int) -> str:
    """As a note writes it.

    >>> gigabytes(7_040_000_000)
    '7.0 GB'
    """
    return f"{count / 1e9:.1f} GB"
