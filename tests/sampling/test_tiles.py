"""Windows, their shares, and that what is blended is what the whole would be."""

from itertools import pairwise

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from fewstep.sampling.resize import KERNELS, NEAREST, cover, matrix, resize
from fewstep.sampling.tiles import blended, shares, tiled, windows

x_1CHW = torch.linspace(-3, 3, 4 * 40 * 33).sin().reshape(1, 4, 40, 33)


@pytest.mark.parametrize("length", [1, 15, 16, 17, 23, 24, 31, 64, 65, 200])
@pytest.mark.parametrize("overlap", [0, 1, 4, 8, 15])
def test_windows_cover_and_overlap(length, overlap):
    starts = windows(length, 16, overlap)
    assert starts[0] == 0
    assert starts[-1] == max(0, length - 16)
    assert all(0 < after - before <= 16 - overlap for before, after in pairwise(starts))


@pytest.mark.parametrize("scale", [1, 8])
@pytest.mark.parametrize("overlap", [0, 3, 8])
def test_shares_add_up_to_one_and_vanish_at_a_window_s_border(overlap, scale):
    total = np.zeros(50 * scale)
    for start, row in shares(50, 16, overlap, scale):
        total[start * scale : start * scale + len(row)] += row
        if overlap == 8:
            assert start == 0 or not any(row[: 2 * scale])
            assert start == 34 or not any(row[-2 * scale :])
    assert np.allclose(total, 1, atol=1e-12)


def test_bad_windows():
    for overlap in (-1, 16):
        with pytest.raises(ValueError, match="cannot overlap"):
            windows(32, 16, overlap)


@pytest.mark.parametrize("batch", [1, 3, 100])
@pytest.mark.parametrize("library", ["torch", "numpy"])
def test_what_looks_no_further_than_the_overlap_is_exact(batch, library):
    weight = torch.linspace(-1, 1, 3 * 4 * 9).cos().reshape(3, 4, 3, 3)

    def sharpened(x):
        return F.interpolate(F.conv2d(torch.as_tensor(x), weight, padding=1), scale_factor=2, mode="nearest")

    def run(x):
        assert x.shape[-2:] == (16, 16)
        return sharpened(x) if library == "torch" else sharpened(x).numpy()

    x = x_1CHW if library == "torch" else x_1CHW.numpy()
    found = blended(run, x, size=16, overlap=4, scale=2, batch=batch)
    assert type(found) is type(x)
    assert float(np.abs(np.asarray(found) - sharpened(x).numpy()).max()) < 1e-5


def test_pixels_to_cells():
    x = x_1CHW[..., :32].repeat_interleave(8, -1).repeat_interleave(8, -2)
    found = blended(lambda part: F.avg_pool2d(part, 8), x, size=16, overlap=4, cell=8)
    assert torch.allclose(found, x_1CHW[..., :32], atol=1e-6)


def test_a_denoiser_in_one_window_is_itself():
    calls = []

    def denoiser(z, t):
        calls.append(z)
        return z * 0.3 + t.reshape(-1, 1, 1, 1)

    z = torch.randn(2, 4, 16, 12, generator=torch.Generator().manual_seed(0))
    assert torch.equal(tiled(denoiser, size=16, overlap=8)(z, torch.tensor([5, 7])), denoiser(z, torch.tensor([5, 7])))
    assert calls[0] is z


@pytest.mark.parametrize("batch", [1, 2, 8])
@pytest.mark.parametrize("count", [1, 3])
def test_each_item_keeps_its_timestep_in_every_window(batch, count):
    z, t = torch.zeros(count, 4, 24, 40), torch.arange(count) + 1.0
    found = tiled(lambda z, t: z + t.reshape(-1, 1, 1, 1), size=16, overlap=8, batch=batch)(z, t)
    assert torch.allclose(found, t.reshape(-1, 1, 1, 1).expand_as(z), atol=1e-6)


@pytest.mark.parametrize("size", [(80, 66), (53, 41), (40, 33), (20, 12)])
@pytest.mark.parametrize("kind", [*KERNELS, *NEAREST])
def test_resizes_are_pytorch_s(kind, size):
    mode = kind.removesuffix("-antialiased")
    how = {} if kind in NEAREST else {"align_corners": False, "antialias": kind.endswith("antialiased")}
    wanted = F.interpolate(x_1CHW, size=size, mode=mode, **how)
    for found in (resize(x_1CHW, size, kind), torch.from_numpy(resize(x_1CHW.numpy(), size, kind))):
        assert (found - wanted).abs().max() < 1e-5
    assert all(abs(sum(row) - 1) < 1e-12 for row in matrix(kind, 40, size[0]))


def test_cover_keeps_the_proportions_and_the_middle():
    found = cover(x_1CHW, (80, 80), "nearest-exact")
    assert found.shape == (1, 4, 80, 80)
    whole = resize(x_1CHW, (97, 80), "nearest-exact")
    assert torch.equal(found, whole[..., 8:88, :])
