"""Latents as colours: the closed form, and which families have one."""

import numpy as np
import pytest

from fewstep.models.family import Family
from fewstep.models.preview import COLOURS, latent_colours


@pytest.mark.parametrize("name", COLOURS)
def test_a_latent_is_a_square_of_its_colour(name):
    z = np.random.default_rng(0).normal(size=(2, 4, 2, 3))
    pixels = latent_colours(Family(name, name, 768, 512, 1), z)
    assert (pixels.shape, pixels.dtype) == ((2, 16, 24, 3), np.uint8)
    for item, row, column in np.ndindex(2, 2, 3):
        square = pixels[item, 8 * row : 8 * row + 8, 8 * column : 8 * column + 8].reshape(-1, 3)
        assert (square == square[0]).all()
        colour = [sum(z[item, c, row, column] * COLOURS[name][c][part] for c in range(4)) for part in range(3)]
        assert np.abs(square[0] - ((np.clip(colour, -1, 1) + 1) * 127.5)).max() <= 0.51


def test_another_family_has_none():
    with pytest.raises(KeyError):
        latent_colours(Family("pictogram", "pictogram", 160, 128, 1), np.zeros((1, 4, 1, 1)))
