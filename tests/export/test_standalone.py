"""Exported folders, run as their README says, without this package."""

import json
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("onnx")

from fewstep.cli.main import main
from tests.tiny import tiny_folder

FORMATS = ["onnx", pytest.param("openvino", marks=pytest.mark.slow)]


def paint(folder):
    """What the README's program paints, in a Python that has no fewstep."""
    text = (folder / "README.md").read_text(encoding="utf-8")
    program = text.partition("```python\n")[2].partition("```")[0]
    done = subprocess.run(
        [sys.executable, "-I", "-c", program], cwd=folder, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return np.asarray(Image.open(folder / "example.png"))


@pytest.mark.parametrize("kind", ["sdxl", pytest.param("lcm", marks=pytest.mark.slow)])
@pytest.mark.parametrize("to", FORMATS)
def test_the_program_of_its_readme_paints(tmp_path, capsys, to, kind):
    pytest.importorskip(to if to == "openvino" else "onnxruntime")
    out = tmp_path / "out"
    assert main(["export", str(tiny_folder(kind)), "--to", to, "-o", str(out), "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["files"] == {
        str(path.relative_to(out)): path.stat().st_size for path in sorted(out.rglob("*")) if path.is_file()
    }
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert not any(str(tmp_path).encode() in (out / name).read_bytes() for name in said["files"])
    painted = paint(out)
    assert painted.shape == (64, 64, 3) and painted.std() > 1


@pytest.mark.embedded
def test_the_embedded_model_with_its_two_autoencoders(tmp_path):
    out = tmp_path / "out"
    assert main(["export", "--to", "onnx", "-o", str(out), "-q"]) == 0
    assert {"vae_decoder.onnx", "tiny_vae_decoder.onnx"} <= {path.name for path in out.iterdir()}
    assert paint(out).shape == (128, 128, 3)


def test_nothing_of_the_users_is_overwritten(tmp_path, capsys):
    (tmp_path / "notes.txt").write_text("mine")
    how = ["export", str(tiny_folder("pictogram")), "--to", "onnx", "-o", str(tmp_path), "-q"]
    assert main(how) == 2 and "--force" in capsys.readouterr().err
    to_web = [*how[:3], "web", "-o", str(tmp_path / "new"), "--int8"]
    assert main(to_web) == 2 and "--to onnx" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]
    assert main([*how, "--force"]) == 0
    assert (tmp_path / "notes.txt").read_text() == "mine" and (tmp_path / "unet.onnx.data").stat().st_size > 100_000


@pytest.mark.slow
@pytest.mark.parametrize(
    ("to", "needs", "file"), [("openvino", "nncf", "unet.bin"), ("onnx", "onnx", "unet.onnx.data")]
)
def test_int8_is_smaller_and_near(tmp_path, monkeypatch, to, needs, file):
    pytest.importorskip(needs)
    from fewstep.export import int8

    monkeypatch.setattr(int8, "PROMPTS", ("a cat", "a dog"))
    pictures, sizes = [], []
    for extra in ([], ["--int8"]):
        out = tmp_path / f"out{len(extra)}"
        assert main(["export", str(tiny_folder("pictogram")), "--to", to, "-o", str(out), "-q", *extra]) == 0
        pictures.append(paint(out).astype(float))
        sizes.append((out / file).stat().st_size)
    assert sizes[1] < 0.5 * sizes[0]
    assert np.sqrt(((pictures[0] - pictures[1]) ** 2).mean()) < 0.2 * pictures[0].std() + 5
