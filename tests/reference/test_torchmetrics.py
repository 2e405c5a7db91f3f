"""Distances and scores against torchmetrics, on features that are given to both.

torch-fidelity is not run: it needs torchvision, whose builds break the libraries beside it. torchmetrics' own formulas
are its; the resize and scaling that torch-fidelity documents are tested in tests/evaluate/test_resize.py.
"""

import numpy as np
import pytest
import torch

from fewstep.checkpoints.measures import load_clip
from fewstep.evaluate.frechet import frechet_distance, kernel_distance, kernel_distance_subsets, moments
from fewstep.evaluate.preference import clip_score
from fewstep.models.clip import Sight
from tests.evaluate.networks import write_clip

torchmetrics = pytest.importorskip("torchmetrics")


class Given(torch.nn.Module):
    """Passes (N, D, 1, 1) "pictures" on as their own features."""

    num_features = 12

    def forward(self, x):
        return x.flatten(1).float()


def feature_sets():
    generator = torch.Generator().manual_seed(0)
    a = torch.randn(60, 12, generator=generator)
    b = 0.7 * torch.randn(50, 12, generator=generator) + 0.4
    return a, b


def shown(metric, a, b):
    metric.update(a[:, :, None, None], real=True)
    metric.update(b[:, :, None, None], real=False)
    return metric.compute()


def test_frechet_distance_is_theirs():
    from torchmetrics.image.fid import FrechetInceptionDistance

    a, b = feature_sets()
    metric = FrechetInceptionDistance(feature=Given(), input_img_size=(12, 1, 1)).set_dtype(torch.float64)
    assert frechet_distance(moments(a), moments(b)) == pytest.approx(float(shown(metric, a, b)), rel=1e-6)


def test_kernel_distance_is_theirs():
    from torchmetrics.image.kid import KernelInceptionDistance

    a, b = feature_sets()
    a = a[:50]
    whole = shown(KernelInceptionDistance(feature=Given(), subsets=2, subset_size=50), a, b)
    assert kernel_distance(a, b) == pytest.approx(float(whole[0]), rel=1e-4)
    mean, deviation = kernel_distance_subsets(a, b, size=50, subsets=3)
    assert (mean, deviation) == (pytest.approx(float(whole[0]), rel=1e-4), pytest.approx(0, abs=1e-9))


def test_kernel_distance_over_subsets_agrees_with_theirs():
    from torchmetrics.image.kid import KernelInceptionDistance

    a, b = feature_sets()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        theirs = shown(KernelInceptionDistance(feature=Given(), subsets=400, subset_size=20), a, b)
    mean, deviation = kernel_distance_subsets(a, b, subsets=400, size=20)
    assert mean == pytest.approx(float(theirs[0]), abs=5 * deviation / 20)
    assert deviation == pytest.approx(float(theirs[1]), rel=0.2)
    assert kernel_distance_subsets(a, b, seed=3) == kernel_distance_subsets(a, b, seed=3)


@pytest.fixture(scope="module")
def clip_folder(tmp_path_factory):
    return write_clip(tmp_path_factory.mktemp("clip") / "tiny-clip")


def pictures(count=3, height=40, width=48):
    return np.random.default_rng(0).integers(0, 256, (count, height, width, 3), dtype=np.uint8)


def test_pictures_are_prepared_as_by_transformers(clip_folder):
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    theirs = CLIPImageProcessorPil.from_pretrained(clip_folder)
    for shape in ((40, 48), (32, 32), (51, 35), (16, 20)):
        x = pictures(2, *shape)
        expected = theirs([torch.from_numpy(p).permute(2, 0, 1) for p in x], return_tensors="pt").pixel_values
        torch.testing.assert_close(Sight(32, 32)(x), expected, atol=1e-5, rtol=0)


def test_clip_score_is_theirs(clip_folder):
    from torchmetrics.functional.multimodal.clip_score import _clip_score_update
    from transformers import CLIPModel, CLIPProcessor, CLIPTokenizer
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    class Tensors(CLIPModel):
        """transformers 5 answers with an object where torchmetrics 1.9 wants the tensor in it."""

        def get_image_features(self, *args):
            return super().get_image_features(*args).pooler_output

        def get_text_features(self, *args):
            return super().get_text_features(*args).pooler_output

    model = Tensors.from_pretrained(clip_folder).eval()
    sight = CLIPImageProcessorPil.from_pretrained(clip_folder)
    processor = CLIPProcessor(sight, CLIPTokenizer.from_pretrained(clip_folder))
    x, prompts = pictures(), ["a cat", "a photo of a dog", "the red moon on the apple"]
    with torch.no_grad():
        theirs, _ = _clip_score_update([torch.from_numpy(p).permute(2, 0, 1) for p in x], prompts, model, processor)
    ours = clip_score(load_clip(clip_folder)).rate(x, prompts)
    np.testing.assert_allclose(ours, theirs.numpy(), atol=1e-3)
    assert np.ptp(ours) > 0.1
