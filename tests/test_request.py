"""What may be asked, and what is said when it may not."""

import dataclasses
import subprocess
import sys

import pytest
from PIL import Image

from fewstep.errors import ImageError, OutputError, RequestError
from fewstep.image import content_hash, default_size, fit, fit_mask, mask_cells, open_image, open_mask, save_image
from fewstep.prompt.tags import LoraTag, split_lora_tags
from fewstep.request import DEFAULTS, SPECS, Request, request_of, schema

PICTURE = Image.new("RGB", (8, 8))

BAD = [
    ({"steps": 0}, "steps is 0"),
    ({"steps": 1001}, "from 1 to 1000"),
    ({"steps": 1.5}, "not a whole number"),
    ({"steps": True}, "not a whole number"),
    ({"steps": "4"}, "not a whole number"),
    ({"guidance": -0.1}, "guidance"),
    ({"guidance": 30.5}, "from 0 to 30"),
    ({"guidance": float("nan")}, "guidance is nan"),
    ({"guidance": float("inf")}, "guidance is inf"),
    ({"seed": -1}, "seed"),
    ({"seed": 2**32}, "4294967295"),
    ({"width": 100}, "multiples of 8"),
    ({"width": 56}, "from 64"),
    ({"height": 2056}, "to 2048"),
    ({"count": 0}, "count"),
    ({"count": 65}, "count"),
    ({"count": None}, "count"),
    ({"clip_skip": 0}, "clip_skip"),
    ({"image": PICTURE, "strength": 0}, "above 0"),
    ({"image": PICTURE, "strength": 1.01}, "up to 1"),
    ({"strength": 0.5}, "without an image"),
    ({"mask": PICTURE}, "without an image"),
    ({"prompt": "x" * 10_001}, "10001 characters"),
    ({"prompt": None}, "not text"),
    ({"prompt": "a\0b"}, "not text"),
    ({"prompt": "\ud800"}, "not text"),
    ({"negative_prompt": 3}, "not text"),
    ({"sampler": 3}, "not text"),
    ({"stepz": 4}, "Did you mean steps"),
    ({"cfg": 4}, "Known are"),
]


@pytest.mark.parametrize(("fields", "said"), BAD)
def test_bad_requests_are_told_in_one_sentence(fields, said):
    with pytest.raises(RequestError, match=said) as error:
        request_of({"prompt": "a cat"} | fields)
    assert "\n" not in str(error.value)
    assert str(error.value).endswith((".", "?"))


def test_no_prompt():
    with pytest.raises(RequestError, match="No prompt"):
        request_of({"steps": 4})


@pytest.mark.parametrize(
    "fields",
    [
        {"prompt": ""},
        {"prompt": "x" * 10_000},
        {"seed": 0},
        {"seed": 2**32 - 1},
        {"steps": 1},
        {"steps": 1000},
        {"guidance": 1},
        {"guidance": 0},
        {"strength": 0.01, "image": PICTURE},
        {"strength": 1, "image": PICTURE},
        {"width": 64, "height": 2048},
    ],
)
def test_the_edges_are_allowed_and_kept(fields):
    request = request_of({"prompt": "a"} | fields)
    assert {name: getattr(request, name) for name in fields} == fields


def test_the_request_is_frozen_and_every_field_is_described():
    with pytest.raises(dataclasses.FrozenInstanceError):
        Request("a").steps = 3  # type: ignore[misc]
    assert all(spec.help for spec in SPECS.values())
    assert set(DEFAULTS) == set(SPECS) - {"prompt"}
    with pytest.raises(RequestError, match="nonsense"):
        Request("a").replaced(nonsense=1)


def test_the_schema_tells_the_same_limits():
    properties = schema()["properties"]
    assert properties["steps"] == {"type": "integer", "description": SPECS["steps"].help, "minimum": 1, "maximum": 1000}
    assert properties["width"]["multipleOf"] == 8
    assert properties["strength"]["exclusiveMinimum"] == 0
    assert "image" not in properties


@pytest.mark.parametrize(
    ("prompt", "words", "tags"),
    [
        ("a fox", "a fox", ()),
        (" a fox ", " a fox ", ()),
        ("a fox <lora:ink:0.6>", "a fox", (LoraTag("ink", 0.6, 0.6),)),
        ("<lora:ink>a", "a", (LoraTag("ink", 1, 1),)),
        ("<lora:ink:0.5:te2=0.1:lbw=1,0, 0.5>a", "a", (LoraTag("ink", 0.5, 0.5, 0.1, "1,0, 0.5"),)),
        ("<lora:a b:0.5:0.8>x<lora:c:te=0:unet=2>", "x", (LoraTag("a b", 0.8, 0.5), LoraTag("c", 2, 0))),
        ("1 < 2 > 0", "1 < 2 > 0", ()),
    ],
)
def test_lora_tags(prompt, words, tags):
    assert split_lora_tags(prompt) == (words, tags)


@pytest.mark.parametrize("tag", ["<lora:ink:heavy>", "<lora:ink:nan>", "<lora:ink:tea=1>", "<lora:ink:>"])
def test_bad_lora_tags(tag):
    with pytest.raises(RequestError, match="lora:ink"):
        split_lora_tags(f"a {tag}")


def test_importing_fewstep_does_not_import_torch():
    code = "import sys, fewstep, fewstep.request, fewstep.plan; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


# ---- pictures


@pytest.mark.parametrize("size", [(64, 64), (512, 512), (40, 96), (2000, 1000), (8, 8), (512, 8)])
@pytest.mark.parametrize("spot", [(0, 0), (-1, -1), (-1, 0)])
def test_one_white_pixel_survives_every_resizing(size, spot):
    mask = Image.new("L", size)
    mask.putpixel((spot[0] % size[0], spot[1] % size[1]), 255)
    for target in ((64, 64), (128, 64), (512, 512)):
        fitted = fit_mask(mask, target, target)  # stretched over its picture
        assert fitted.size == target
        assert fitted.getextrema() == (0, 255)
        assert mask_cells(fitted).any()


def test_a_mask_is_cropped_like_its_picture():
    picture, mask = Image.new("RGB", (256, 128)), Image.new("L", (256, 128))
    box = (96, 32, 160, 96)
    picture.paste("white", box)
    mask.paste(255, box)
    painted = fit(picture, (64, 64)).convert("L").point(lambda grey: 255 * (grey > 127))
    assert painted.tobytes() == fit_mask(mask, picture.size, (64, 64)).tobytes()


def test_fitting_keeps_a_picture_of_the_right_size():
    noise = Image.effect_noise((64, 64), 50).convert("RGB")
    assert fit(noise, (64, 64)).tobytes() == noise.tobytes()


@pytest.mark.parametrize(
    ("size", "expected"),
    [((512, 512), (512, 512)), ((1, 1), (64, 64)), ((4096, 1024), (2048, 512)), ((100, 61), (104, 64))],
)
def test_default_sizes(size, expected):
    assert default_size(Image.new("RGB", size)) == expected


def test_transparency_is_white_in_pictures_and_black_in_masks():
    clear = Image.new("RGBA", (8, 8), (255, 0, 0, 0))
    assert open_image(clear).getpixel((0, 0)) == (255, 255, 255)
    with pytest.raises(ImageError, match="black everywhere"):
        open_mask(clear)


def test_bad_pictures(tmp_path):
    text, cut = tmp_path / "text.png", tmp_path / "cut.png"
    text.write_text("no picture")
    Image.effect_noise((64, 64), 50).save(cut)
    cut.write_bytes(cut.read_bytes()[:1000])
    cases = {tmp_path / "none.png": "does not exist", tmp_path: "a folder", text: "not a picture", cut: "damaged"}
    for path, said in cases.items():
        with pytest.raises(ImageError, match=said):
            open_image(path)
    with pytest.raises(ImageError, match="PIL image"):
        open_image(3)  # type: ignore[arg-type]


def test_content_hashes_tell_pictures_apart():
    one, other = Image.new("RGB", (8, 8)), Image.new("RGB", (16, 4))
    assert content_hash(one) == content_hash(one.copy()) != content_hash(other)


def test_files_are_written_whole_or_not_at_all(tmp_path):
    path = tmp_path / "a.png"
    save_image(PICTURE, path)
    before = path.read_bytes()
    with pytest.raises(ValueError, match="bad"):

        class Broken(Image.Image):
            def save(self, fp, format=None, **params):
                fp.write(b"half")
                raise ValueError("bad")

        save_image(Broken(), path)
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["a.png"]
    with pytest.raises(OutputError, match="'.gif'"):
        save_image(PICTURE, tmp_path / "a.gif")
    with pytest.raises(OutputError, match="cannot be written"):
        save_image(PICTURE, tmp_path / "none" / "a.png")
