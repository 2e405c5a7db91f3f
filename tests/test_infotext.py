"""Settings in pictures: what is written is read back, and what others wrote is understood."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from fewstep.errors import RequestError
from fewstep.image import save_image
from fewstep.infotext import Infotext, Picture, number_text, parse, read, request_from_infotext, write

WORDS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=60)
NASTY = st.text(st.sampled_from('a ",:\n\\{}é龍\u2028\x85\r\t'), max_size=30)
LINES = st.sampled_from(["Negative prompt: x", "Steps: 4, Seed: 1, Size: 8x8", "a, b: c", "", " ", "Exact prompt: x"])
PROMPTS = WORDS | NASTY | st.lists(LINES | NASTY, max_size=4).map("\n".join)
KEYS = st.from_regex(r"[A-Za-z][A-Za-z0-9 /-]{0,10}[A-Za-z0-9]", fullmatch=True).filter(lambda key: "Exact" not in key)

FORGE = """masterpiece, (a cat:1.2), "quoted"
on two lines
Negative prompt: blurry, low quality,
watermark
Steps: 6, Sampler: LCM, Schedule type: Automatic, CFG scale: 1.5, Seed: 123, Size: 512x768, Model hash: 31e35c80fc, \
Model: dreamshaper, Denoising strength: 0.4, Clip skip: 2, Lora hashes: "ink: 0123456789ab, fox: ba9876543210", \
Version: f2"""


@settings(max_examples=150, deadline=None)
@given(PROMPTS, PROMPTS, st.dictionaries(KEYS, WORDS | NASTY, max_size=6))
def test_round_trip(prompt, negative, others):
    info = Infotext(prompt, negative, others)
    assert parse(write(info)) == info


@settings(max_examples=50, deadline=None)
@given(PROMPTS)
def test_anything_can_be_parsed(text):
    parse(text)


@given(st.floats(0, 30))
def test_numbers_come_back(value):
    assert float(number_text(value)) == value


def test_the_grammar_is_theirs():
    info = Infotext("a cat", "dog", {"Steps": "4", "Sampler": "LCM", "Loras": 'say "hi", you', "Note": "a: b"})
    last = 'Steps: 4, Sampler: LCM, Loras: "say \\"hi\\", you", Note: "a: b"'
    assert write(info) == f"a cat\nNegative prompt: dog\n{last}"


def test_a_forge_text():
    info = parse(FORGE)
    assert info.prompt == 'masterpiece, (a cat:1.2), "quoted"\non two lines'
    assert info.negative_prompt == "blurry, low quality,\nwatermark"
    assert info.settings["Lora hashes"] == "ink: 0123456789ab, fox: ba9876543210"
    request = request_from_infotext(FORGE)
    assert (request.steps, request.sampler, request.guidance, request.seed) == (6, "LCM", 1.5, 123)
    assert (request.width, request.height, request.clip_skip) == (512, 768, 2)
    assert (request.schedule, request.rng, request.ensd) == ("Automatic", "nv", 0)
    assert write(info) == FORGE


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ("Schedule type: Karras, RNG: CPU, ENSD: 31337, Version: v1.10.1", ("Karras", "cpu", 31337)),
        ("Schedule type: Karras, RNG: NV, Version: fewstep 0.1.0", ("Karras", "nv", 0)),
        ("Timestep table: trailing, RNG: CPU, Version: fewstep 0.1.0", ("trailing", "cpu", 0)),
        ("Model: x, Version: v1.6.0", ("Automatic", "nv", 0)),
        ("Model: x, RNG: GPU, Version: v1.6.0", ("Automatic", "nv", 0)),
        ("Model: x", ("Automatic", "nv", 0)),
    ],
)
def test_the_schedule_and_the_noise_of_a_picture(settings, expected):
    request = request_from_infotext(f"a\nSteps: 4, Sampler: DPM++ 2M, Seed: 1, {settings}")
    assert (request.schedule, request.rng, request.ensd) == expected


def test_a_last_line_with_few_settings_belongs_to_the_prompt():
    assert parse("a cat\nat 3: noon") == Infotext("a cat\nat 3: noon")
    assert parse("") == Infotext()


@pytest.mark.parametrize("bad", ["Steps: four", "Seed: x", "CFG scale: ", "Size: 512", "Steps: 0"])
def test_settings_that_are_no_numbers(bad):
    with pytest.raises(RequestError):
        request_from_infotext(f"a\n{bad}, Model: x, Version: y, RNG: CPU")


@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.webp"])
@pytest.mark.parametrize("prompt", ["a cat", 'ein "Füchslein"\n龍, 🦊', ""])
def test_files_carry_their_settings(tmp_path, name, prompt):
    text = write(Infotext(prompt, "", {"Steps": "4", "Seed": "0", "Size": "8x8"}))
    picture = Picture.of(Image.new("RGB", (8, 8), "red"), text)
    assert picture.info["parameters"] == text
    picture.save(tmp_path / name)
    save_image(picture, tmp_path / f"b{name}")
    for path in (tmp_path / name, tmp_path / f"b{name}"):
        assert read(path) == text
        assert parse(read(path) or "").prompt == prompt
    with Image.open(tmp_path / name) as plain:
        assert plain.size == (8, 8)


def test_other_writers_of_comments(tmp_path):
    exif = Image.Exif()
    exif.get_ifd(0x8769)[0x9286] = b"UNICODE\0" + "a cat".encode("utf-16-le")
    Image.new("RGB", (8, 8)).save(tmp_path / "le.jpg", exif=exif)
    exif.get_ifd(0x8769)[0x9286] = b"ASCII\0\0\0a cat"
    Image.new("RGB", (8, 8)).save(tmp_path / "ascii.jpg", exif=exif)
    Image.new("RGB", (8, 8)).save(tmp_path / "none.jpg")
    assert [read(tmp_path / f"{name}.jpg") for name in ("le", "ascii", "none")] == ["a cat", "a cat", None]


def test_a_jpeg_without_room_goes_without(tmp_path):
    Picture.of(Image.new("RGB", (8, 8)), "龍" * 40_000).save(tmp_path / "a.jpg")
    assert read(tmp_path / "a.jpg") is None
