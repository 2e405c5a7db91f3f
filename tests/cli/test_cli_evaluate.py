"""`fewstep evaluate` from its arguments to its files, and what it says of bad input."""

import json
import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from fewstep.cli.main import main
from fewstep.errors import CheckpointError
from fewstep.evaluate import gauges, protocols, reference, suite
from tests.evaluate.networks import write_clip
from tests.evaluate.worlds import write_judge
from tests.tiny import tiny_folder


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A judge, an Inception, a CLIP, prompts, and folders of pictures: drawn (10), real (12), odd (2 sizes)."""
    root = tmp_path_factory.mktemp("evaluate")
    write_judge(root / "judge")
    (root / "inception.pth").write_bytes(b"stands for the weights")
    write_clip(root / "clip")
    rng = np.random.default_rng(0)
    for name, count, size in (("drawn", 10, (24, 24)), ("real", 12, (24, 30)), ("few", 3, (24, 24))):
        (root / name).mkdir()
        for i in range(count):
            Image.fromarray(rng.integers(0, 256, (*size, 3), dtype=np.uint8)).save(root / name / f"{i:02}.png")
    (root / "odd").mkdir()
    for i, side in enumerate((24, 25)):
        Image.new("RGB", (side, 24)).save(root / "odd" / f"{i}.png")
    (root / "empty").mkdir()
    (root / "broken").mkdir()
    (root / "broken" / "a.png").write_bytes(b"no picture")
    (root / "prompts.txt").write_text("\n".join(["a cat", "a red apple", "dog " * 90] + ["the moon"] * 7))
    (root / "two.txt").write_text("a cat\na dog\n")
    (root / "text.npz").write_text("no archive")
    np.savez(root / "bare.npz", mean=np.zeros(3))
    np.savez(root / "narrow.npz", mu=np.zeros(64), sigma=np.eye(64))
    return root


@pytest.fixture(autouse=True)
def quick_inception(monkeypatch):
    """A network of 48 features in the Inception's place, which takes a second a picture; itself: test_inception.py."""

    def load(path, *, device):
        if not path.is_file():
            raise CheckpointError(f"'{path}' does not exist.")
        return lambda x_BCHW: torch.nn.functional.adaptive_avg_pool2d(x_BCHW, 4).flatten(1)

    monkeypatch.setattr(gauges, "load_inception", load)
    monkeypatch.setattr(reference, "FEATURES", 48)


def evaluate(capsys, place, *words):
    """Exit code, what was printed, what was said on stderr; {} is the place."""
    code = main(["evaluate", "--judge", str(place / "judge"), "--device", "cpu", *(str(w) for w in words)])
    out = capsys.readouterr()
    return code, out.out, out.err


def test_a_folder_against_a_folder_in_every_network(place, capsys, tmp_path):
    code, text, _ = evaluate(
        capsys, place, "--pictures", place / "drawn", "--reference", place / "real", "--inception",
        place / "inception.pth", "--clip", place / "clip", "--prompts", place / "prompts.txt",
        "--write-stats", tmp_path / "real.npz", "--json",
    )  # fmt: skip
    document = json.loads(text)
    (row,) = document["rows"]
    assert (code, row["cell"], row["count"], row["protocol"]) == (0, "drawn", 10, None)
    for key in ("fd_judge", "fid_clean", "fd_clip"):
        assert row[f"{key}_frechet"] > 0
        assert {f"{key}_{name}" for name in ("kernel_subsets", "precision", "recall", "density", "coverage")} <= set(
            row
        )
    assert row["cut_prompts"] == 1
    assert -100 <= row["clip_score"]["mean"] <= 100
    assert {f["frechet"] for f in document["features"]} == {"FD-judge", "FID (clean)", "FD-CLIP"}
    again = evaluate(
        capsys, place, "--pictures", place / "drawn", "--reference", tmp_path / "real.npz", "--inception",
        place / "inception.pth", "--json",
    )  # fmt: skip
    (other,) = json.loads(again[1])["rows"]
    assert other["fid_clean_frechet"] == pytest.approx(row["fid_clean_frechet"], rel=1e-4)
    assert "fd_judge_frechet" not in other
    wrong = evaluate(
        capsys, place, "--pictures", place / "drawn", "--reference", tmp_path / "real.npz", "--inception",
        place / "inception.pth", "--resize", "pytorch-fid",
    )  # fmt: skip
    assert wrong[0] == 2
    assert "made with the features 'FID (clean)', not 'FID (pytorch-fid)'" in wrong[2]


def test_a_folder_against_itself(place, capsys):
    code, text, _ = evaluate(capsys, place, "--pictures", place / "drawn", "--reference", place / "drawn")
    assert code == 0
    assert text.startswith("No published protocol. Compare only within this table. FD-judge = judge")
    cells = dict(
        zip(*(line.strip("| ").split(" | ") for line in (text.splitlines()[2], text.splitlines()[4])), strict=True)
    )
    assert cells["FD-judge ↓"] == "0.00"
    assert cells["recall (judge)"] == "1.00"
    assert "FID" not in text


def test_seeds_teacher_and_plots(place, capsys, tmp_path, monkeypatch):
    monkeypatch.setattr(suite, "teacher_cell", lambda guidance: suite.Cell("teacher", "dpmpp_2m", 4, guidance))
    folder = tiny_folder("pictogram")
    code, text, _ = evaluate(
        capsys, place, folder, "--steps", "1,2", "--count", 4, "--seeds-per-prompt", 2, "--json", "--out", tmp_path
    )
    document = json.loads(text)
    teacher, one, *_ = document["rows"]
    assert (code, document["seeds_per_prompt"], one["count"]) == (0, 2, 8)
    assert one["fd_judge_seed_diversity"] > 0
    assert teacher["teacher_fd_judge_frechet"] > 0, "the teacher's floor is against other seeds, so not 0"
    assert "teacher_rms" not in teacher
    assert one["teacher_rms"] > 0
    assert (tmp_path / "teacher_rms.svg").read_text().startswith("<svg")
    assert (tmp_path / "teacher_fd_judge_frechet.svg").read_text().count("<polyline") == 2
    assert "FD-judge to teacher ↓" in (tmp_path / "evaluation.md").read_text()


@pytest.fixture
def small_protocols(monkeypatch):
    """The protocols at a test's size."""
    known = protocols.PROTOCOLS
    coco = replace(known["coco30k-2014"], count=10, size_px=24, resize_px=16, reference_count=12)
    sdxl = replace(known["coco10k-sdxl"], count=10, size_px=24, resize_px=16, reference_count=12)
    monkeypatch.setattr(
        protocols, "PROTOCOLS", {p.name: p for p in (coco, sdxl)} | {"fid-teacher": known["fid-teacher"]}
    )


def test_a_protocol_from_end_to_end(place, capsys, tmp_path, small_protocols):
    words = ["--pictures", place / "drawn", "--inception", place / "inception.pth", "--reference", place / "real"]
    code, text, _ = evaluate(capsys, place, "--protocol", "coco10k-sdxl", *words, "--json")
    (row,) = json.loads(text)["rows"]
    assert (code, row["protocol"]) == (0, "coco10k-sdxl")
    assert {"fid_clean_frechet", "patch_fid_clean_frechet"} <= set(row)
    assert row["fid_clean_frechet"] != row["patch_fid_clean_frechet"]
    assert "fd_judge_frechet" not in row
    stats = ["--write-stats", tmp_path / "stats.npz"]
    code, text, _ = evaluate(capsys, place, "--protocol", "coco30k-2014", *words, *stats)
    assert code == 0
    assert text.startswith("Protocol coco30k-2014: 10 pictures, 24 px, middle square, Lanczos to 16 px")
    words[-1] = tmp_path / "stats.npz"
    assert evaluate(capsys, place, "--protocol", "coco30k-2014", *words)[0] == 0
    code, _, said = evaluate(capsys, place, "--protocol", "coco10k-sdxl", *words)
    assert (code, "the protocol 'coco30k-2014', not 'coco10k-sdxl'" in said) == (2, True)


BAD = {
    "missing folder": (["--pictures", "{}/absent"], "is no folder"),
    "empty folder": (["--pictures", "{}/empty"], "holds no picture"),
    "broken picture": (["--pictures", "{}/broken"], "cannot be read as a picture"),
    "unequal sizes": (["--pictures", "{}/odd"], "'0.png' has 24 x 24 and '1.png' 25 x 24"),
    "too few real": (["--pictures", "{}/drawn", "--reference", "{}/few"], "at least 8 pictures"),
    "real missing": (["--pictures", "{}/drawn", "--reference", "{}/absent"], "is no folder"),
    "npz missing": (["--pictures", "{}/drawn", "--reference", "{}/absent.npz"], "does not exist"),
    "npz text": (["--pictures", "{}/drawn", "--reference", "{}/text.npz"], "cannot be read as .npz"),
    "npz layout": (["--pictures", "{}/drawn", "--reference", "{}/bare.npz"], "found mean [3]"),
    "npz width": (["--pictures", "{}/drawn", "--reference", "{}/narrow.npz"], "64 and 6 features|6 and 64 features"),
    "prompts": (["--pictures", "{}/drawn", "--prompts", "{}/two.txt"], "10 pictures, but there are 2 prompts"),
    "no prompts": (["--pictures", "{}/drawn", "--clip", "{}/clip"], "CLIP score needs the pictures' prompts"),
    "clip missing": (["--pictures", "{}/drawn", "--clip", "{}/absent"], "is no folder"),
    "clip wrong": (["--pictures", "{}/drawn", "--clip", "{}/judge"], "config.json' is missing"),
    "inception missing": (["--pictures", "{}/drawn", "--inception", "{}/absent.pth"], "does not exist"),
    "reward missing": (["--pictures", "{}/drawn", "--image-reward", "{}/absent.pt"], "does not exist"),
    "resize alone": (["--resize", "clean"], "give its file with --inception"),
    "stats alone": (["--write-stats", "{}/x.npz"], "name it with --reference"),
    "both": (["somewhere", "--pictures", "{}/drawn"], "leave out the model"),
    "seeds": (["--seeds-per-prompt", "0"], "at least 1"),
    "protocol": (["--protocol", "coco"], "choose among coco30k-2014"),
    "protocol bare": (["--protocol", "mjhq30k"], "give it with --inception"),
    "protocol reference": (["--protocol", "mjhq30k", "--inception", "{}/inception.pth"], "30,000 pictures of MJHQ"),
    "protocol resize": (
        ["--protocol", "fid-teacher", "--inception", "{}/inception.pth", "--resize", "pytorch-fid"],
        "resizes by 'clean', not by 'pytorch-fid'",
    ),
    "protocol count": (
        ["--protocol", "coco5k-2017", "--inception", "{}/inception.pth", "--pictures", "{}/drawn",
         "--reference", "{}/narrow.npz"],
        "64 features where the FID's Inception has 48",
    ),
    "reference count": (
        ["--protocol", "coco5k-2017", "--inception", "{}/inception.pth", "--pictures", "{}/drawn",
         "--reference", "{}/real"],
        "must be 5000 pictures, but .* holds 12",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_one_sentence(name, place, capsys):
    words, sentence = BAD[name]
    code, out, said = evaluate(capsys, place, *(word.replace("{}", str(place)) for word in words))
    assert (code, out) == (2, "")
    assert said.count("\n") == 1
    assert re.search(sentence.replace("[", r"\["), said), said


def test_a_protocol_of_another_number_or_size_is_refused(place, capsys, small_protocols, monkeypatch):
    words = ["--inception", place / "inception.pth", "--reference", place / "real", "--protocol", "coco30k-2014"]
    code, _, said = evaluate(capsys, place, *words, "--pictures", place / "few")
    assert (code, "is of 10 pictures, not 3" in said) == (2, True)
    known = protocols.PROTOCOLS["coco30k-2014"]
    monkeypatch.setitem(protocols.PROTOCOLS, "coco30k-2014", replace(known, size_px=512))
    code, _, said = evaluate(capsys, place, *words, "--pictures", place / "drawn")
    assert (code, "of 512 x 512 px; these have 24 x 24" in said) == (2, True)
    code, _, said = evaluate(capsys, place, *words, "--prompts", place / "two.txt")
    assert (code, "is of 10 pictures, not 2" in said) == (2, True)
