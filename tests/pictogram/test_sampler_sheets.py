"""Every sampler with every schedule at 1 to 8 steps on the embedded model: no crash, no NaN; the page is of today."""

from pathlib import Path

import pytest
from PIL import Image

import fewstep
from fewstep.sampling import SAMPLERS
from fewstep.sampling.timesteps import TABLES
from pictogram.samplers import REFERENCES, REMARKS, SMOOTH, STEPS, Easel, product, remarks, samplers_table

DOCS = Path(__file__).parents[2] / "docs"
SAMPLE = tuple(product())[5::197]
COSTLY = {"dpm_adaptive"}


@pytest.fixture(scope="module")
def easel():
    return Easel(fewstep.load())


def check(drawn):
    assert not drawn.fault, drawn.row
    assert drawn.picture is not None and drawn.picture.size == (128, 128)
    if drawn.sampler != "dpm_fast":
        assert drawn.roughness < 5 * SMOOTH


@pytest.mark.embedded
@pytest.mark.parametrize(("sampler", "table", "steps"), [key for key in SAMPLE if key[0] not in COSTLY])
def test_a_sample_of_the_product(sampler, table, steps, easel):
    check(easel.draw(sampler, table, steps))


@pytest.mark.slow
@pytest.mark.embedded
@pytest.mark.timeout(7200)
def test_the_whole_product(easel):
    keys = list(product())
    assert len(keys) == len(SAMPLERS) * (len(TABLES) + 1) * len(STEPS)
    for key in keys:
        check(easel.draw(*key))


def test_what_goes_wrong_is_kept(easel):
    found = easel.draw("lcm", "karras", 0)
    assert found.picture is None and found.fault.startswith("RequestError: steps is 0")


def test_the_page_says_what_the_registry_says():
    page = (DOCS / "samplers.md").read_text(encoding="utf-8")
    assert samplers_table() in page and remarks() in page
    assert not {*REMARKS, *REFERENCES} - {*SAMPLERS}


def test_the_sheets_are_there_and_small():
    sheets = sorted((DOCS / "pictures").glob("samplers-*.webp"))
    assert [path.stem for path in sheets] == ["samplers-schedules-4", "samplers-schedules-8", "samplers-steps"]
    assert sum(path.stat().st_size for path in sheets) < 600_000
    for path in sheets:
        with Image.open(path) as sheet:
            assert sheet.width > 600 and sheet.height > 1000


@pytest.mark.embedded
@pytest.mark.parametrize(("steps", "noted"), [(1, False), (2, True), (5, True), (6, False)])
def test_dpm_fast_is_noise_at_two_to_five_steps_and_says_so(steps, noted, easel):
    plan = easel.pipe.plan(fewstep.Request("a cat", sampler="DPM fast", steps=steps))
    assert any("DPM fast paints noise at 2 to 5 steps" in note for note in plan.notes) == noted


@pytest.mark.embedded
@pytest.mark.parametrize(("table", "steps", "noted"), [("ddim", 1, True), ("leading", 2, False), ("karras", 1, False)])
def test_a_schedule_that_begins_at_the_end_is_noise_and_says_so(table, steps, noted, easel):
    plan = easel.pipe.plan(fewstep.Request("a cat", schedule=table, steps=steps))
    assert any("begins at timestep 1" in note for note in plan.notes) == noted
