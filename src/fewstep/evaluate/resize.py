"""The resizes of the reference implementations, each under its name: the same pictures give other FIDs by each.

| name | resize to 299 | scaling | used by |
|---|---|---|---|
| clean | Pillow bicubic with antialiasing, in float, not rounded | (x - 128) / 128 | clean-fid, DMD2, SiD-LSG |
| torch-fidelity | TensorFlow 1 bilinear: no half-pixel shift, no antialiasing | (x - 128) / 128 | also torchmetrics |
| pytorch-fid | PyTorch bilinear: half-pixel centres, no antialiasing | 2 x / 255 - 1 | pytorch-fid |

Source: Parmar et al. 2022 (on aliased resizing). Legend: N, B pictures; H, W pixels; C = 3 channels.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

Pictures = NDArray[np.uint8]
SIZE_PX = 299


def _floats(pictures_NHWC: Pictures) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(pictures_NHWC)).permute(0, 3, 1, 2).float()


def tf1_bilinear(x_BCHW: Tensor, size_px: int) -> Tensor:
    """TensorFlow 1's `resize_bilinear`: output pixel i lies at i * old / new; no half-pixel shift, no antialiasing."""
    for axis in (2, 3):
        old = x_BCHW.shape[axis]
        at = torch.arange(size_px, dtype=torch.float32) * torch.tensor(old / size_px, dtype=torch.float32)
        low = at.long()
        share = (at - low).view(-1, 1) if axis == 2 else at - low
        below, above = x_BCHW.index_select(axis, low), x_BCHW.index_select(axis, (low + 1).clamp(max=old - 1))
        x_BCHW = below + (above - below) * share
    return x_BCHW


def pillow_bicubic(pictures_NHWC: Pictures, size_px: int) -> Tensor:
    """Pillow's antialiased bicubic on each channel in 32-bit float: neither rounded nor clipped; (B, 3, size, size)."""

    def channel(plane_HW: NDArray[np.uint8]) -> NDArray[np.float32]:
        image = Image.fromarray(plane_HW.astype(np.float32))
        return np.asarray(image.resize((size_px, size_px), Image.Resampling.BICUBIC))

    rows = [np.stack([channel(picture[..., c]) for c in range(3)]) for picture in pictures_NHWC]
    return torch.from_numpy(np.stack(rows))


def _clean(pictures_NHWC: Pictures) -> Tensor:
    return (pillow_bicubic(pictures_NHWC, SIZE_PX) - 128) / 128


def _torch_fidelity(pictures_NHWC: Pictures) -> Tensor:
    return (tf1_bilinear(_floats(pictures_NHWC), SIZE_PX) - 128) / 128


def _pytorch_fid(pictures_NHWC: Pictures) -> Tensor:
    x_BCHW = _floats(pictures_NHWC) / 255
    return 2 * F.interpolate(x_BCHW, size=(SIZE_PX, SIZE_PX), mode="bilinear", align_corners=False) - 1


#: name -> uint8 pictures (N, H, W, 3) of one size to the Inception's input (N, 3, 299, 299).
CONVENTIONS: dict[str, Callable[[Pictures], Tensor]] = {
    "clean": _clean,
    "torch-fidelity": _torch_fidelity,
    "pytorch-fid": _pytorch_fid,
}


def _middle(image: Image.Image, side: int) -> Image.Image:
    """The middle square; half a pixel left over goes by Python's rounding, as in torchvision."""
    left, top = round((image.width - side) / 2), round((image.height - side) / 2)
    return image.crop((left, top, left + side, top + side))


def squared(picture_HWC: Pictures, size_px: int) -> Pictures:
    """The middle square, the shorter side whole, then Pillow's Lanczos to `size_px`; (size_px, size_px, 3)."""
    image = Image.fromarray(picture_HWC)
    image = _middle(image, min(image.size))
    return np.asarray(image.resize((size_px, size_px), Image.Resampling.LANCZOS))


def patch(picture_HWC: Pictures, size_px: int = SIZE_PX) -> Pictures:
    """The middle `size_px` square, not resized; a picture that is smaller on a side is left as it is."""
    image = Image.fromarray(picture_HWC)
    return np.asarray(_middle(image, size_px)) if min(image.size) >= size_px else picture_HWC
