"""The command `fewstep live`: a film is painted frame by frame; what cannot be is one sentence and no file."""

import pytest
from PIL import Image

pytest.importorskip("av")
pytest.importorskip("fastapi")

from fewstep.cli.main import main
from fewstep.video import Recording, video
from tests.tiny import tiny_folder


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with Recording("in.mp4", fps=10) as record:
        for colour in ("red", "red", "green", "blue"):
            record.write(Image.new("RGB", (96, 64), colour))
    return tmp_path


def test_a_film_becomes_a_film_of_as_many_frames_in_the_models_size(capsys):
    how = ["--model", str(tiny_folder("sd15")), "--steps", "1", "--seed", "1"]
    assert main(["live", "a cat", "--video", "in.mp4", "-o", "out.mp4", *how]) == 0
    said = capsys.readouterr()
    assert said.out == "out.mp4\n" and "4 frames" in said.err
    found = video("out.mp4")
    assert found.size == (80, 64) and found.fps == pytest.approx(10)
    assert len(list(found.frames())) == 4


def test_the_pattern_is_painted_as_it_moves(capsys):
    how = ["--model", str(tiny_folder("sd15")), "--steps", "1", "--seconds", "0.5"]
    assert main(["live", "a cat", "--pattern", "-o", "out.webm", *how]) == 0
    frames = len(list(video("out.webm").frames()))
    assert 8 <= frames <= 40  # half a second of 30 frames a second, and the last one's waiting


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--video", "no.mp4", "-o", "out.mp4"], "does not exist"),
        (["--video", "in.mp4"], "Give its name with -o"),
        (["--video", "in.mp4", "-o", "out.gif"], "no video"),
        (["--video", "in.mp4", "-o", "in.mp4"], "--force"),
        (["--pattern", "--seconds", "0"], "--seconds"),
        (["--pattern", "--server", "http://127.0.0.1:9"], "cannot be reached"),
        (["--webcam", "97"], "webcam"),
        ([], "required"),
        (["--pattern", "--screen"], "not allowed"),
    ],
)
def test_what_cannot_be_is_one_sentence(arguments, said, capsys, here):
    before = (here / "in.mp4").read_bytes()
    assert main(["live", "a cat", *arguments]) == 2
    error = capsys.readouterr().err
    assert said in error and len(error.strip().splitlines()) == 1
    assert (here / "in.mp4").read_bytes() == before and {path.name for path in here.iterdir()} == {"in.mp4"}
