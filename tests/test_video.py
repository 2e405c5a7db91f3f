"""Video files in and out, read back by PyAV itself."""

import itertools
import shutil
import subprocess
from fractions import Fraction

import numpy as np
import pytest
from PIL import Image

av = pytest.importorskip("av")

from fewstep.errors import ImageError, OutputError  # noqa: E402
from fewstep.video import Recording, device, fitting, pattern, video  # noqa: E402

COLOURS = [(200, 30, 30), (30, 200, 30), (30, 30, 200), (200, 200, 30)]


def film(path, *, fps=12, size=(64, 48), colours=COLOURS, **options):
    with Recording(path, fps=fps, **options) as record:
        for colour in colours:
            record.write(Image.new("RGB", size, colour))
    return path


@pytest.mark.parametrize("ending", [".mp4", ".mkv", ".webm"])
def test_what_is_recorded_is_read_again(tmp_path, ending):
    found = video(film(tmp_path / f"film{ending}"))
    assert found.size == (64, 48) and found.fps == pytest.approx(12, rel=0.01)
    frames = list(found.frames())
    assert len(frames) == len(COLOURS)
    for frame, colour in zip(frames, COLOURS, strict=True):
        assert np.abs(np.asarray(frame, int).mean((0, 1)) - colour).max() < 12


def test_the_sound_of_another_film_is_taken_over(tmp_path):
    sounding = tmp_path / "sound.mp4"
    with av.open(str(sounding), "w") as file:
        picture, sound = file.add_stream("libx264", rate=12), file.add_stream("aac", rate=44100)
        picture.width, picture.height, picture.pix_fmt = 64, 48, "yuv420p"
        for _ in range(6):
            file.mux(picture.encode(av.VideoFrame.from_image(Image.new("RGB", (64, 48)))))
        samples = (np.sin(np.arange(22050) / 20) * 2**14).astype(np.int16)[None]
        frame = av.AudioFrame.from_ndarray(samples, format="s16", layout="mono")
        frame.sample_rate, frame.time_base = 44100, Fraction(1, 44100)
        file.mux(sound.encode(frame))
        file.mux(picture.encode(None))
        file.mux(sound.encode(None))
    with av.open(str(film(tmp_path / "with.mp4", sound=sounding))) as file:
        samples = sum(frame.samples for frame in file.decode(audio=0))
    assert samples == pytest.approx(len(COLOURS) / 12 * 44100, abs=2048)


def test_after_an_error_there_is_no_file_and_nothing_is_overwritten(tmp_path):
    path = tmp_path / "film.mp4"
    path.write_bytes(b"mine")
    with pytest.raises(RuntimeError), Recording(path, fps=12) as record:
        record.write(Image.new("RGB", (64, 48)))
        raise RuntimeError
    assert path.read_bytes() == b"mine" and list(tmp_path.iterdir()) == [path]


def test_odd_sizes_are_recorded(tmp_path):
    assert video(film(tmp_path / "odd.mp4", size=(67, 51))).size == (66, 50)


@pytest.mark.parametrize("name", ["film.gif", "film", "no/film.mp4"])
def test_names_that_cannot_be_are_refused(tmp_path, name):
    with pytest.raises(OutputError):
        Recording(tmp_path / name, fps=12)


@pytest.mark.parametrize("content", [None, b"", b"no film at all", b"\x89PNG"])
def test_what_is_no_video_is_refused_with_a_sentence(tmp_path, content):
    path = tmp_path / "film.mp4"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ImageError, match=r"film.mp4.*\.$"):
        video(path)


def test_a_camera_that_is_not_there_is_one_sentence():
    with pytest.raises(ImageError, match="webcam"):
        device("webcam", 97)


@pytest.mark.skipif(not shutil.which("Xvfb"), reason="needs Xvfb")
def test_the_screen_is_read(monkeypatch):
    screen = subprocess.Popen(["Xvfb", ":97", "-screen", "0", "320x240x24"], stderr=subprocess.DEVNULL)
    try:
        monkeypatch.setenv("DISPLAY", ":97")
        for _ in range(50):
            try:
                found = device("screen")
                break
            except ImageError:
                screen.poll()
                import time

                time.sleep(0.1)
        assert found.size == (320, 240)
        assert next(iter(found.frames())).size == (320, 240)
    finally:
        screen.kill()
        screen.wait()


def test_the_pattern_moves():
    one, _, other = itertools.islice(pattern((64, 64), fps=100).frames(), 3)
    assert np.abs(np.asarray(one, int) - np.asarray(other, int)).max() > 50


def test_fitting_keeps_shape_and_pixels():
    for size in [(1920, 1080), (1080, 1920), (640, 480), (100, 100)]:
        width, height = fitting(size, 512)
        assert width % 8 == height % 8 == 0
        assert width * height == pytest.approx(512**2, rel=0.03)
        assert width / height == pytest.approx(size[0] / size[1], rel=0.03)
