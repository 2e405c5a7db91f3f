"""What latents look like, for nothing: each latent's four numbers as a colour. No network, no torch.

The matrices are fits of latents to the pictures they stand for. Shapes: B pictures, C 4 latent channels, H and W latent
height and width (pixels / 8).
"""

import numpy as np

from fewstep.image import CELL_PX
from fewstep.models.family import Family

_SD = ((0.298, 0.207, 0.208), (0.187, 0.286, 0.173), (-0.158, 0.189, 0.264), (-0.184, -0.271, -0.473))
_XL = ((0.3816, 0.4930, 0.5320), (-0.3753, 0.1631, 0.1739), (0.1770, 0.3588, -0.2048), (-0.4350, -0.2644, -0.4289))
COLOURS = {"sd15": _SD, "sd2": _SD, "sdxl": _XL, "ssd1b": _XL, "vega": _XL}
"""Red, green and blue in [-1, 1] for each latent channel, by family; SD 1.x and 2.x have one autoencoder, and so have
SDXL and what was distilled from it. Sources: K. Turnbull (discuss.huggingface.co/t/23204) and A. Birch, as InvokeAI has
them."""


def latent_colours(family: Family, z_BCHW: np.ndarray) -> np.ndarray:
    """Latents as pictures of their size in pixels: uint8 (B, 8H, 8W, 3). Raises KeyError for a family without a fit."""
    colour_BHWC = np.tensordot(np.asarray(z_BCHW, np.float32), np.array(COLOURS[family.name], np.float32), (1, 0))
    pixels_BHWC = np.rint((colour_BHWC + 1) * 127.5).clip(0, 255).astype(np.uint8)
    return pixels_BHWC.repeat(CELL_PX, axis=1).repeat(CELL_PX, axis=2)
