"""The judge as a file and as a function."""

import json
import shutil

import numpy as np
import pytest
import torch

from fewstep.errors import CheckpointError
from fewstep.evaluate.judge import LABELS, WEIGHTS, Judge, Network, Shape, default_folder, to_input
from tests.evaluate import worlds


def pictures(count, side=32, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (count, side, side, 3)).astype(np.uint8)


def test_what_was_saved_is_read(judge_folder):
    judge = Judge(judge_folder)
    assert judge.labels == worlds.LABELS
    assert judge.shape == worlds.SHAPE
    assert judge.ceilings == {"x": {"top1": 0.5}}
    assert judge.labels.colours == {"white": (255, 255, 255), "red": (214, 45, 50), "blue": (55, 110, 220)}


def test_a_reading_depends_on_neither_batch_nor_neighbours(judge_folder):
    judge, x = Judge(judge_folder), pictures(7)
    whole, parts = judge(x), judge(x, batch=2)
    assert whole.features_ND.shape == (7, 6)
    assert whole.concepts_NC.shape == (7, 3)
    assert whole.styles_NS.shape == (7, 2)
    np.testing.assert_allclose(whole.features_ND, parts.features_ND, atol=1e-5)
    np.testing.assert_allclose(judge(x[3:4]).concepts_NC, whole.concepts_NC[3:4], atol=1e-5)


@pytest.mark.parametrize("side", [8, 16, 64])
def test_pictures_of_any_size_are_read(judge_folder, side):
    assert Judge(judge_folder)(np.full((1, side, side, 3), 128, np.uint8)).features_ND.shape == (1, 6)


def test_input_is_scaled_to_plus_and_minus_one_and_flat_colours_stay():
    x = np.zeros((1, 128, 128, 3), np.uint8)
    x[..., 0] = 255
    found = to_input(x, 64)
    assert found.shape == (1, 3, 64, 64)
    torch.testing.assert_close(found[0, :, 5, 9], torch.tensor([1.0, -1.0, -1.0]))


def test_the_shipped_size_stays_under_three_megabytes():
    network = Network(Shape(), concepts=110, styles=4)
    assert 2 * sum(p.numel() for p in network.parameters()) < 3e6


def test_a_missing_judge_is_said_in_one_sentence(tmp_path):
    with pytest.raises(CheckpointError, match="no judge in"):
        Judge(tmp_path)


def test_damaged_files_are_said_by_name(judge_folder, tmp_path):
    folder = shutil.copytree(judge_folder, tmp_path / "judge")
    (folder / WEIGHTS).write_bytes((folder / WEIGHTS).read_bytes()[:200])
    with pytest.raises(CheckpointError, match=WEIGHTS):
        Judge(folder)
    (folder / LABELS).write_text("{}")
    with pytest.raises(CheckpointError, match="does not describe a judge"):
        Judge(folder)


def test_weights_of_another_size_are_refused(judge_folder, tmp_path):
    folder = shutil.copytree(judge_folder, tmp_path / "judge")
    description = json.loads((folder / LABELS).read_text())
    description["shape"]["features"] = 7
    (folder / LABELS).write_text(json.dumps(description))
    with pytest.raises(CheckpointError, match="does not fit its labels"):
        Judge(folder)


@pytest.mark.skipif(not (default_folder() / WEIGHTS).exists(), reason="the judge is not in this checkout")
def test_the_shipped_judge_reads_plain_colours_without_failing():
    judge = Judge(default_folder())
    assert len(judge.labels.concepts) == len(judge.labels.phrases)
    assert len(set(judge.labels.concepts)) == len(judge.labels.concepts)
    assert np.isfinite(judge(np.full((2, 128, 128, 3), 200, np.uint8)).features_ND).all()
