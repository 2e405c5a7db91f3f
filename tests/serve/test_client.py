"""The Python live client against a real server."""

import time

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("fastapi")
pytest.importorskip("websockets")

from fewstep.client import Live, LiveError
from tests.serve.line import Line
from tests.serve.null import NullStudio
from tests.serve.running import running

VALUES = {"prompt": "a cat", "steps": 2, "width": 64, "height": 64, "refine": False, "seed": 5}


@pytest.fixture(scope="module")
def address(server):
    return f"http://127.0.0.1:{server}"


@pytest.fixture
def live(address):
    with Live(address, every=True, **VALUES) as made:
        yield made


def test_painting_one_picture_is_what_the_pipeline_paints(live, studio):
    grey = Image.new("RGB", (64, 64), (128, 128, 128))  # which JPEG keeps exactly
    painted = live.paint(grey)
    wanted = studio.pipe("a cat", steps=2, seed=5, image=grey)
    assert painted.final and painted.source == 1
    assert np.abs(np.asarray(painted.picture, int) - np.asarray(wanted, int)).mean() < 8  # JPEG of what is mostly noise
    picture, infotext = live.snapshot()
    assert "Seed: 5" in infotext
    assert np.abs(np.asarray(picture, int) - np.asarray(wanted, int)).max() <= 2


def test_every_frame_of_a_film_is_painted_also_equal_ones(live):
    frames = [Image.new("RGB", (64, 64), colour) for colour in ("red", "red", "blue", "blue")]
    assert [live.paint(frame).source for frame in frames] == [1, 2, 3, 4]


def test_a_stream_ends_with_the_last_frame(live):
    painted = list(live.stream(Image.new("RGB", (64, 64), (shade, 0, 0)) for shade in range(0, 250, 25)))
    assert painted[-1].source == live.sent and painted[-1].final
    assert [one.source for one in painted] == sorted(one.source for one in painted)


def test_parameters_change_and_bad_ones_are_refused(live):
    first = live.paint(Image.new("RGB", (64, 64), "red"))
    assert live.change(prompt="a dog", steps=1)["steps"] == 1
    assert live.paint(Image.new("RGB", (64, 64), "red")).revision == 1
    with pytest.raises(LiveError, match="steps"):
        live.change(steps=0)
    assert live.paint(Image.new("RGB", (64, 64), "red")).revision == 1 and first.revision == 0


def test_a_mask_and_its_end(live):
    left = Image.new("L", (64, 64))
    left.paste(255, (0, 0, 32, 64))
    live.mask(left)
    kept = np.asarray(live.paint(Image.new("RGB", (64, 64), "red")).picture, int)[:, 48:]
    live.mask(None)
    everywhere = np.asarray(live.paint(Image.new("RGB", (64, 64), "red")).picture, int)[:, 48:]
    assert np.abs(kept - [255, 0, 0]).mean() < 10 < np.abs(everywhere - [255, 0, 0]).mean()


def test_a_server_that_is_not_there_and_a_missing_key_are_sentences(studio):
    with pytest.raises(LiveError, match="cannot be reached"):
        Live("http://127.0.0.1:9")
    with pytest.raises(LiveError, match="no address"):
        Live("nowhere")
    with running(NullStudio(studio.pipe), key="secret") as port:
        with pytest.raises(LiveError, match="key"):
            Live(f"http://127.0.0.1:{port}")
        with Live(f"http://127.0.0.1:{port}", key="secret", **VALUES) as live:
            assert live.paint(Image.new("RGB", (64, 64), "red")).final


def test_a_server_that_goes_away_is_one_sentence(studio):
    with running(NullStudio(studio.pipe)) as port:
        live = Live(f"http://127.0.0.1:{port}", **VALUES)
    with pytest.raises(LiveError):
        live.paint(Image.new("RGB", (64, 64), "red"))
        live.paint(Image.new("RGB", (64, 64), "blue"))
    live.close()


def test_a_distant_client_gets_more_frames_on_their_way_and_the_last_one_painted(address):
    port, how = int(address.rpartition(":")[2]), VALUES | {"fps": 30, "every": True}
    with Line(port, round_trip_s=0.12) as line, Live(f"http://127.0.0.1:{line.port}", **how) as live:
        shades = (Image.new("RGB", (64, 64), (shade, 0, 0)) for shade in range(0, 240, 8))
        painted = list(live.stream(_paced(shades, 0.02)))
        assert 4 <= live._credit <= 6
    assert painted[-1].source == live.sent and painted[-1].final
    assert min(one.late_ms for one in painted) >= 120


def _paced(pictures, seconds):
    for picture in pictures:
        yield picture
        time.sleep(seconds)
