"""Small heads that tell drawn latents from wanted ones by what a frozen UNet sees in them.

Sources: heads on the teacher's own features, in latent space, LADD (Sauer et al. 2024, arXiv:2403.12015); their form,
3x3 convolution, group norm and leaky ReLU twice, then one logit a place, PCM (Wang et al. 2024, arXiv:2405.18407,
section 3.3). Departure: one head a block where PCM has four.

Shapes: B batch, C a block's channels, H, W its height and width, P places of all blocks together.
"""

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from fewstep.models.text import Text
from fewstep.models.unet import predict

GROUPS, SLOPE = 8, 0.2


class Heads(nn.Module):
    """One head a block; float32, on the CPU until moved. `widths` are the channels of the blocks' outputs."""

    def __init__(self, widths: Sequence[int], *, hidden: int = 64, seed: int = 0) -> None:
        """The weights are drawn from `seed` on the CPU."""
        super().__init__()
        self.heads = nn.ModuleList(_head(width, hidden) for width in widths)
        generator = torch.Generator().manual_seed(seed)
        for layer in self.modules():
            if isinstance(layer, nn.Conv2d):
                nn.init.kaiming_uniform_(layer.weight, a=SLOPE, generator=generator)
                nn.init.zeros_(cast(nn.Parameter, layer.bias))

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        """The blocks' outputs [B, C, H, W] each -> logits [B, P]."""
        return torch.cat(
            [head(f_BCHW.float()).flatten(1) for head, f_BCHW in zip(self.heads, features, strict=True)], 1
        )


def block_widths(unet: Any) -> list[int]:
    """The channels of what `block_features` gives."""
    rising = list(unet.config.block_out_channels)
    middle = [] if unet.mid_block is None else rising[-1:]
    return [*rising, *middle, *reversed(rising)]


def block_features(unet: Any, z_BCHW: Tensor, timestep_B: Tensor, text: Text, **how: Any) -> list[Tensor]:
    """The outputs of the UNet's blocks, down, middle and up, [B, C, H, W] each; arguments as of `predict`."""
    found: list[Tensor] = []

    def keep(_module: nn.Module, _inputs: Any, output: Any) -> None:
        found.append(output[0] if isinstance(output, tuple) else output)

    blocks = [*unet.down_blocks, *([] if unet.mid_block is None else [unet.mid_block]), *unet.up_blocks]
    hooks = [block.register_forward_hook(keep) for block in blocks]
    try:
        predict(unet, z_BCHW, timestep_B, text, **how)
    finally:
        for hook in hooks:
            hook.remove()
    return found


def _head(width: int, hidden: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(width, hidden, 3, padding=1),
        nn.GroupNorm(GROUPS, hidden),
        nn.LeakyReLU(SLOPE),
        nn.Conv2d(hidden, hidden, 3, padding=1),
        nn.GroupNorm(GROUPS, hidden),
        nn.LeakyReLU(SLOPE),
        nn.Conv2d(hidden, 1, 1),
    )
