"""The adversarial plug-in: what the student lands on shall look to a critic like what it should have landed on.

The critic is small heads on the frozen teacher's features (`models/critic.py`); no second network is trained. Both
sides are noised with the same noise to one time before it looks at them, and it is taught by the hinge loss.

With consistency the real side is the target's own landing, not data: a student that lands where its target does has
nothing to gain by lying (PCM, Wang et al. 2024, arXiv:2405.18407, section 3.3 and theorem 6). With distribution
matching it is data (DMD2, Yin et al. 2024, arXiv:2405.14867, section 4.3). Departures: critic and student learn in the
same step, not in turns; consistency's noising time is drawn between the landing time and t, not over the phase.

Shapes: B batch, C channels, H, W latent height and width, P logits of one item.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch.func import functional_call

from fewstep.sampling.schedule import Schedule, fade_and_added


@dataclass(frozen=True)
class Critic:
    """`features`: (z_BCHW, t_B) -> what the frozen teacher sees, with gradient to z; `heads`: features -> logits_BP;
    `weight`: how much the student minds.
    """

    features: Callable[[torch.Tensor, torch.Tensor], Any]
    heads: torch.nn.Module
    weight: float


def hinge(critic: Critic, drawn: torch.Tensor, real: torch.Tensor, t_B: torch.Tensor) -> dict[str, torch.Tensor]:
    """{"adversarial": the student's part, weighted, "critic": the heads' part}, [B] each, of noised latents at t_B.

    One backward pass serves both: the student's part leaves the heads alone, and the heads' part the student.
    """
    seen, kept = critic.features(drawn, t_B), dict(critic.heads.named_parameters())
    with torch.no_grad():
        wanted = critic.features(real, t_B)
    frozen = {name: value.detach() for name, value in kept.items()}
    fooled_BP = functional_call(critic.heads, frozen, (seen,))
    fake_BP, real_BP = critic.heads([f.detach() for f in seen]), critic.heads(wanted)
    return {
        "adversarial": -critic.weight * fooled_BP.mean(1),
        "critic": torch.relu(1 - real_BP).mean(1) + torch.relu(1 + fake_BP).mean(1),
    }


def hinge_between(
    critic: Critic,
    schedule: Schedule,
    drawn_BCHW: torch.Tensor,
    real_BCHW: torch.Tensor,
    noise_BCHW: torch.Tensor,
    *,
    s_B: torch.Tensor,
    t_B: torch.Tensor,
    chance_B: torch.Tensor,
) -> dict[str, torch.Tensor]:
    """`hinge` of latents that stand at timestep s, noised on to a time between s and t: at the share `chance_B`."""
    judged_B = s_B + (chance_B * (t_B - s_B)).long()
    fade, added = fade_and_added(schedule, s_B, judged_B, drawn_BCHW)
    return hinge(critic, fade * drawn_BCHW + added * noise_BCHW, fade * real_BCHW + added * noise_BCHW, judged_B)
