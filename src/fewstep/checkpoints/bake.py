"""A guidance-embedded LCM made an ordinary checkpoint of one guidance, which every program can run.

A full LCM (arXiv 2310.04378, section 4.2) adds P emb(w) to the timestep's sinusoids before the first linear layer,
h = W (t + P emb(w)) + b. For one w the sum is W t + (b + W P emb(w)): its second part is a bias, so nothing is lost.
"""

from dataclasses import replace

import torch

from fewstep.checkpoints.load import Model
from fewstep.errors import RequestError
from fewstep.models.unet import has_guidance_embedding
from fewstep.sampling.guidance import guidance_embedding


@torch.no_grad()
def bake_guidance(model: Model, w: float) -> None:
    """Fixes the papers' w = guidance - 1 into the bias, in place; the model is sampled at guidance 1 from then on.

    Raises RequestError when the model has no guidance embedding, or w is not a finite number from 0.
    """
    unet = model.unet
    if not has_guidance_embedding(unet):
        raise RequestError(
            f"'{model.name}' has no guidance embedding, so there is nothing to bake. Leave --bake-w out."
        )
    if not 0 <= w < float("inf"):
        raise RequestError(f"w {w} is not a number from 0: it is guidance - 1, such as 7 for guidance 8.")
    first, dim = unet.time_embedding.linear_1, unet.config.time_cond_proj_dim
    embedded = guidance_embedding(w, dim=dim, like=torch.zeros(1)).double()
    shift = first.weight.double() @ unet.time_embedding.cond_proj.weight.double() @ embedded[0].to(first.weight.device)
    first.bias.copy_(first.bias.double() + shift)
    unet.time_embedding.cond_proj = None
    unet.register_to_config(time_cond_proj_dim=None)
    model.sampling = replace(model.sampling, guidance=1.0, embedded_guidance=False)
