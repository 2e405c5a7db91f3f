"""The reference implementations' resizes, from their definitions."""

import numpy as np
import pytest
import torch
from PIL import Image

from fewstep.evaluate.resize import CONVENTIONS, patch, pillow_bicubic, squared, tf1_bilinear


def noise(height, width, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (2, height, width, 3), dtype=np.uint8)


def slow_tf1(plane, size):
    """TensorFlow 1's kernel, pixel by pixel: scale in float32, clamped neighbours."""
    height, width = plane.shape
    out = np.zeros((size, size))
    for y in range(size):
        for x in range(size):
            at_y, at_x = np.float32(y) * np.float32(height / size), np.float32(x) * np.float32(width / size)
            y0, x0 = int(at_y), int(at_x)
            y1, x1 = min(y0 + 1, height - 1), min(x0 + 1, width - 1)
            top = plane[y0, x0] + (plane[y0, x1] - plane[y0, x0]) * (at_x - x0)
            bottom = plane[y1, x0] + (plane[y1, x1] - plane[y1, x0]) * (at_x - x0)
            out[y, x] = top + (bottom - top) * (at_y - y0)
    return out


@pytest.mark.parametrize(("shape", "size"), [((5, 8), 11), ((16, 12), 7), ((6, 6), 6)])
def test_tf1_bilinear_equals_the_kernel(shape, size):
    plane = np.random.default_rng(1).random(shape).astype(np.float32) * 255
    found = tf1_bilinear(torch.from_numpy(plane)[None, None], size)[0, 0].numpy()
    np.testing.assert_allclose(found, slow_tf1(plane, size), atol=1e-3)


def test_tf1_bilinear_does_not_shift_by_half_a_pixel():
    ramp = torch.arange(4.0).expand(4, 4)[None, None]
    assert tf1_bilinear(ramp, 8)[0, 0, 0].tolist() == [0, 0.5, 1, 1.5, 2, 2.5, 3, 3]


def test_clean_keeps_what_lies_outside_bytes():
    edge = np.zeros((1, 64, 64, 3), np.uint8)
    edge[:, :, 32:] = 255
    found = pillow_bicubic(edge, 299)
    assert found.min() < -1
    assert found.max() > 256
    rounded = np.asarray(Image.fromarray(edge[0]).resize((299, 299), Image.Resampling.BICUBIC), float)
    assert np.abs(found[0].permute(1, 2, 0).clamp(0, 255).numpy() - rounded).max() <= 1


def test_clean_averages_and_the_others_do_not():
    checks = np.indices((598, 598)).sum(0) % 2 * 255
    picture = np.repeat(checks[None, ..., None], 3, -1).astype(np.uint8)
    spread = {name: float(way(picture).std()) for name, way in CONVENTIONS.items()}
    assert spread["clean"] < 0.02
    assert spread["torch-fidelity"] < 0.02  # every second pixel is black
    assert float(CONVENTIONS["torch-fidelity"](picture).mean()) == pytest.approx(-1)
    assert float(CONVENTIONS["clean"](picture).mean()) == pytest.approx(-0.004, abs=0.01)


@pytest.mark.parametrize(
    ("name", "black", "white"), [("clean", -1, 127 / 128), ("torch-fidelity", -1, 127 / 128), ("pytorch-fid", -1, 1)]
)
def test_scales(name, black, white):
    pictures = np.stack([np.zeros((20, 30, 3), np.uint8), np.full((20, 30, 3), 255, np.uint8)])
    found = CONVENTIONS[name](pictures)
    assert found.shape == (2, 3, 299, 299)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.mean((1, 2, 3)), torch.tensor([float(black), white]), atol=1e-5, rtol=0)


def test_a_picture_of_299_px_is_left_alone_by_all():
    pictures = noise(299, 299)
    x = torch.from_numpy(pictures).permute(0, 3, 1, 2).float()
    for name in ("clean", "torch-fidelity"):
        torch.testing.assert_close(CONVENTIONS[name](pictures), (x - 128) / 128, atol=1e-4, rtol=0)
    torch.testing.assert_close(CONVENTIONS["pytorch-fid"](pictures), 2 * x / 255 - 1, atol=1e-4, rtol=0)


def test_pytorch_fid_has_half_pixel_centres():
    ramp = np.repeat(np.arange(0, 200, 2, dtype=np.uint8)[None, None, :, None], 3, -1).repeat(100, 1)
    row = (CONVENTIONS["pytorch-fid"](ramp)[0, 0, 150] + 1) / 2 * 255
    at = (np.arange(299) + 0.5) * 100 / 299 - 0.5
    np.testing.assert_allclose(row.numpy(), 2 * at.clip(0, 99), atol=1e-3)


def test_squares_and_patches():
    wide = noise(40, 64)[0]
    np.testing.assert_array_equal(squared(wide, 40), wide[:, 12:52])
    assert squared(wide, 16).shape == (16, 16, 3)
    np.testing.assert_array_equal(patch(wide, 20), wide[10:30, 22:42])
    assert patch(wide, 41) is wide
