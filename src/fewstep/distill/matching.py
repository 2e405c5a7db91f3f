"""Distribution matching: the student draws by its own steps, and what it drew is moved towards the teacher's density.

The student samples deterministically in a few segments. In each, its result is noised to a time inside the segment,
and two scores are asked which way the density rises: the guided teacher's, and that of a `fake` network which learns,
at the same time, what the student draws. No pictures are needed, only prompts.

Sources: DMD2 (Yin et al. 2024, 2405.14867) section 4.3 for drawing from the student's own steps, TDM (Luo et al. 2025,
2503.06674) section 3 for deterministic segments. Departure: the fake network learns by plain denoising score matching
of the noise that was added last, which has no bias, in place of TDM's weighted regression of the clean latent.

Shapes: B batch, C channels, H, W latent height and width.
"""

from itertools import pairwise

import torch

from fewstep.distill.adversarial import hinge
from fewstep.distill.terms import Distance, Draw, Networks, guided, per_item, z0_of
from fewstep.errors import RecipeError
from fewstep.sampling.ode import ddim_map
from fewstep.sampling.schedule import Schedule, add_noise, fade_and_added, to_eps

LEAST_SCALE = 1e-3


def walk(networks: Networks, schedule: Schedule, z_BCHW: torch.Tensor, path: tuple[int, ...]) -> torch.Tensor:
    """From pure noise at path[0] to path[-1] by the student's own deterministic steps, without gradient."""
    with torch.no_grad():
        for t, t_next in pairwise(path):
            t_B, t_next_B = (torch.full((len(z_BCHW),), at, device=z_BCHW.device) for at in (t, t_next))
            z0_BCHW = z0_of(networks.target, schedule, z_BCHW, t_B)
            z_BCHW = ddim_map(schedule, z_BCHW, z0_BCHW, t_B, t_next_B)
    return z_BCHW


def trajectory_matching(
    networks: Networks, schedule: Schedule, draw: Draw, *, distance: Distance
) -> dict[str, torch.Tensor]:
    """Trajectory distribution matching: {"matching": the student's loss_B, "fake": the fake network's}.

    The student's gradient is (fake - teacher) in the clean latent, over the mean distance to the teacher (DMD2). A
    critic compares with data, so then pictures are needed.
    """
    if networks.fake is None:
        raise RecipeError("Distribution matching needs a second network; only a LoRA student brings one.")
    t_B, tau_B, s_B = draw.times.t_B, draw.times.t_next_B, draw.times.s_B
    z_BCHW = walk(networks, schedule, draw.noise_BCHW, draw.times.path)
    z0_BCHW = z0_of(networks.student, schedule, z_BCHW, t_B)
    landed_BCHW = ddim_map(schedule, z_BCHW, z0_BCHW, t_B, s_B)

    fade, added = fade_and_added(schedule, s_B, tau_B, z_BCHW)
    judged_BCHW = fade * landed_BCHW + added * draw.again_BCHW
    noised_BCHW, sigma = judged_BCHW.detach(), schedule.alpha_sigma(tau_B, z_BCHW)[1]

    output_BCHW = networks.fake(noised_BCHW, tau_B).float()
    # The score of what was noised is -E[added noise] / added, and a network's eps is -sigma times the score.
    guess_BCHW = to_eps(schedule, noised_BCHW, output_BCHW, tau_B) * added / sigma
    fake_B = per_item((guess_BCHW - draw.again_BCHW).square())

    with torch.no_grad():
        real_BCHW = z0_of(guided(networks.teacher, 1 + draw.w_B), schedule, noised_BCHW, tau_B)
        seen_BCHW = z0_of(lambda z, t: output_BCHW, schedule, noised_BCHW, tau_B)
        scale_B = per_item((z0_BCHW - real_BCHW).abs()).clamp(min=LEAST_SCALE)
        away_BCHW = (seen_BCHW - real_BCHW) / scale_B.view(-1, *[1] * (z_BCHW.ndim - 1))
        aim_BCHW = z0_BCHW - away_BCHW
    losses = {"matching": per_item(distance(z0_BCHW - aim_BCHW)), "fake": fake_B}
    if networks.critic is None:
        return losses
    real_BCHW = add_noise(schedule, draw.z0_BCHW, draw.again_BCHW, tau_B)
    return losses | hinge(networks.critic, judged_BCHW, real_BCHW, tau_B)
