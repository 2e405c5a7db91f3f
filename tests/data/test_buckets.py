"""Buckets: the published list, the nearest one, and time ids that say the crop that was made."""

from math import log

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from fewstep.data.buckets import Framing, bucket_shapes, framed, nearest
from fewstep.errors import RecipeError

# SDXL (2307.01952), appendix I: heights up to the square; the others are these turned.
PUBLISHED = {
    512: (2048, 1984, 1920, 1856), 576: (1792, 1728, 1664), 640: (1600, 1536), 704: (1472, 1408, 1344),
    768: (1344, 1280), 832: (1216, 1152), 896: (1152, 1088), 960: (1088, 1024), 1024: (1024, 960),
}  # fmt: skip


def test_at_1024_px_it_is_the_published_table():
    wide = {(height, width) for height, widths in PUBLISHED.items() for width in widths}
    assert set(bucket_shapes(1024)) == wide | {(width, height) for height, width in wide}


@given(st.sampled_from([(1024, 64), (512, 64), (256, 32), (64, 16)]), st.integers(1, 9000), st.integers(1, 9000))
def test_no_bucket_is_nearer(choice, height, width):
    size_px, step = choice
    shapes = bucket_shapes(size_px, step=step)
    found = nearest(shapes, (height, width))
    distance = [abs(log(h / w) - log(height / width)) for h, w in shapes]
    assert abs(log(found[0] / found[1]) - log(height / width)) <= min(distance) + 1e-8
    assert found[0] % step == found[1] % step == 0 and 0.9 < found[0] * found[1] / size_px**2 <= 1
    turned = nearest(shapes, (width, height))
    assert turned[0] * turned[1] == found[0] * found[1]


@given(st.integers(1, 90), st.integers(1, 90), st.sampled_from(["centre", "random"]), st.integers(0, 3))
def test_the_crop_lies_inside_and_has_the_shape(height, width, crop, seed):
    framing = Framing(bucket_shapes(32, step=8), crop, seed)
    pixels, ids = framed(Image.new("RGB", (width, height), "red"), framing, name="x")
    assert pixels.shape == (*framing.shape_of((height, width)), 3) and (pixels == (255, 0, 0)).all()
    assert ids[:2] == (height, width) and ids[4:] == pixels.shape[:2] and min(ids[2:4]) >= 0
    scale = max(ids[4] / height, ids[5] / width)
    assert ids[2] + ids[4] <= max(ids[4], round(height * scale))
    assert ids[3] + ids[5] <= max(ids[5], round(width * scale))


@pytest.mark.parametrize("crop", ["centre", "random"])
def test_the_recorded_crop_is_the_real_one(crop):
    """A picture whose pixels say where they are: column in red, row in green (defects of the scripts in common use)."""
    rows, columns = np.mgrid[0:64, 0:200]
    image = Image.fromarray(np.stack([columns, rows, rows * 0], -1).astype(np.uint8))
    seen = set()
    for name in "abcdefgh":
        pixels, (height, width, top, left, *shape) = framed(image, Framing(((64, 64),), crop), name=name)
        assert (height, width, *shape) == (64, 200, 64, 64)
        assert (pixels[0, 0, 1], pixels[0, 0, 0]) == (top, left) and pixels[-1, -1, 0] == left + 63
        seen.add((top, left))
    assert seen == {(0, 68)} if crop == "centre" else len(seen) > 3


def test_a_random_crop_is_made_from_name_seed_and_epoch():
    image = Image.new("RGB", (400, 64))
    crops = {
        (name, seed, epoch): framed(image, Framing(((64, 64),), "random", seed), name=name, epoch=epoch)[1][3]
        for name in "ab" for seed in (0, 1) for epoch in (0, 1)
    }  # fmt: skip
    again = framed(image, Framing(((64, 64),), "random", 1), name="b", epoch=1)[1][3]
    assert again == crops["b", 1, 1] and len(set(crops.values())) > 4


def test_wrong_sizes_and_crops_are_said():
    with pytest.raises(RecipeError, match="multiple of 64 px. Use 512"):
        bucket_shapes(500)
    with pytest.raises(RecipeError, match="centre, random"):
        Framing(((64, 64),), "middle")
