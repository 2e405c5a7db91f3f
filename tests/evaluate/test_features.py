"""Features under their names, references, protocols and plots."""

from dataclasses import replace
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image

from fewstep.checkpoints.measures import load_clip
from fewstep.errors import RequestError
from fewstep.evaluate.cases import Case, with_other_seeds, with_seeds
from fewstep.evaluate.distance import density_coverage
from fewstep.evaluate.features import Features, clip_features, inception_features, judge_features
from fewstep.evaluate.frechet import frechet_distance, moments
from fewstep.evaluate.gauges import Files, open_gauges
from fewstep.evaluate.judge import Judge
from fewstep.evaluate.measure import Gauges, figures, look
from fewstep.evaluate.plot import lines, quality_plots
from fewstep.evaluate.protocols import PROTOCOLS, protocol_named
from fewstep.evaluate.reference import Reference, open_picture, read_reference, set_distances, write_moments
from fewstep.evaluate.resize import patch
from fewstep.evaluate.table import all_columns, markdown
from tests.evaluate.networks import write_clip

MEANS = Features("means", "none", "FD-means", "KD-means", lambda x: x.mean((1, 2)))


def pictures(count, height=16, width=16, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (count, height, width, 3), dtype=np.uint8)


def test_pictures_of_several_sizes_keep_their_order():
    x = [*pictures(3), *pictures(2, 8, 20, seed=1), *pictures(2, seed=2)]
    expected = np.stack([picture.mean((0, 1)) for picture in x])
    np.testing.assert_allclose(MEANS(x, batch=2), expected, rtol=1e-5)
    with pytest.raises(RequestError, match="no picture"):
        MEANS([])


def test_only_the_inception_makes_a_fid(judge_folder, tmp_path):
    judge, clip = judge_features(Judge(judge_folder)), clip_features(load_clip(write_clip(tmp_path / "clip")))
    inception = inception_features(lambda x: x.mean((2, 3)), convention="pytorch-fid")
    assert {f.frechet for f in (judge, clip)} == {"FD-judge", "FD-CLIP"}
    assert (inception.frechet, inception.kernel) == ("FID (pytorch-fid)", "KID (pytorch-fid)")
    assert inception.through(patch, prefix="patch ").key == "patch_fid_pytorch_fid"
    headings = all_columns([judge, clip]).values()
    assert not [heading for heading in headings if "FID" in heading or "KID" in heading]
    np.testing.assert_allclose(np.linalg.norm(clip(pictures(3)), axis=1), 1, rtol=1e-5)
    assert (judge(pictures(3)).shape, inception(pictures(1)).shape) == ((3, 6), (1, 3))
    with pytest.raises(RequestError, match="choose among clean, torch-fidelity, pytorch-fid"):
        inception_features(lambda x: x, convention="bilinear")


def test_density_and_coverage_in_closed_form():
    """Reals 0, 1, 2, 10 with k = 1: radii 1, 1, 1, 8."""
    real = np.array([[0.0], [1.0], [2.0], [10.0]])
    density, coverage = density_coverage(real, np.array([[0.5], [3.0], [-5.0]]), neighbours=1)
    assert density == pytest.approx((2 + 2 + 0) / 3)
    assert coverage == 1
    assert density_coverage(real, np.array([[0.5]]), neighbours=1) == (2, 0.5)
    assert density_coverage(real, np.array([[99.0]]), neighbours=2) == (0, 0)
    same = np.random.default_rng(0).normal(size=(40, 3))
    assert density_coverage(same, same)[1] == 1
    with pytest.raises(RequestError, match="more than 5"):
        density_coverage(real, real)


def test_a_reference_and_its_file_say_the_same(tmp_path):
    x = np.random.default_rng(1).normal(size=(20, 3)).astype(np.float32)
    fake = x[:12] + 0.5
    reference = Reference.of("real", x)
    write_moments(tmp_path / "real.npz", reference, MEANS, protocol="p")
    again = read_reference(tmp_path / "real.npz", MEANS, count=20, protocol="p")
    whole, part = set_distances(fake, reference, prefix="a_"), set_distances(fake, again, prefix="a_")
    assert (
        whole["a_frechet"] == part["a_frechet"] == pytest.approx(frechet_distance(moments(fake), moments(x)), rel=1e-5)
    )
    assert set(part) == {"a_frechet"}
    for how in ({"count": 21, "protocol": "p"}, {"count": 20}):
        with pytest.raises(RequestError):
            read_reference(tmp_path / "real.npz", MEANS, **how)
    assert set_distances(fake[:7], reference) == {}


def test_the_common_layout_of_moments_is_read(tmp_path):
    np.savez(tmp_path / "theirs.npz", mu=np.ones(3), sigma=2 * np.eye(3))
    found = read_reference(tmp_path / "theirs.npz", MEANS, count=5, protocol="p").moments
    assert (found.mean_D.tolist(), found.covariance_DD.trace(), found.count) == ([1, 1, 1], 6, 0)


def test_transparency_lies_on_white(tmp_path):
    Image.new("RGBA", (4, 4), (0, 0, 0, 0)).save(tmp_path / "clear.png")
    Image.new("L", (4, 4), 7).save(tmp_path / "grey.png")
    assert open_picture(tmp_path / "clear.png").min() == 255
    assert open_picture(tmp_path / "grey.png").shape == (4, 4, 3)


def test_every_protocol_says_what_it_is_and_refuses_others():
    for name, protocol in PROTOCOLS.items():
        assert protocol_named(name).line.startswith(f"Protocol {name}: ")
        assert protocol.source
        if protocol.count is not None:
            protocol.check(count=protocol.count, size_px=(protocol.size_px, protocol.size_px))
            for wrong in ({"count": protocol.count - 1}, {"count": protocol.count, "size_px": (protocol.size_px, 8)}):
                with pytest.raises(RequestError, match=name):
                    protocol.check(**wrong)
    sdxl = PROTOCOLS["coco10k-sdxl"].features(lambda convention: replace(MEANS, frechet="FID"))
    big = pictures(1, 1024, 1024)[0]
    assert [read.frechet for read in sdxl] == ["FID", "patch FID"]
    assert [read.before(big).shape[0] for read in sdxl] == [512, 299]
    np.testing.assert_array_equal(sdxl[1].before(big), big[362:661, 362:661])


def test_a_protocol_needs_its_network(judge_folder):
    judge = Judge(judge_folder)
    with pytest.raises(RequestError, match="defined by the FID's Inception"):
        open_gauges(Files(), judge=judge, protocol=PROTOCOLS["mjhq30k"])
    assert [read.frechet for read in open_gauges(Files(), judge=judge).features] == ["FD-judge"]


def test_seeds_do_not_meet():
    cases = [Case("a", seed) for seed in (0, 1, 299_999)]
    drawn, other = with_seeds(cases, 4), with_other_seeds(with_seeds(cases, 4))
    seeds = [case.seed for case in (*drawn, *other)]
    assert len(set(seeds)) == len(seeds) == 24
    assert [case.prompt for case in drawn] == [case.prompt for case in other]
    assert with_seeds(cases, 1) == tuple(cases)


def test_a_look_in_batches_is_a_look_at_all():
    x = pictures(12)
    gauges, cases = Gauges((MEANS,)), [Case("a", i) for i in range(12)]
    found = look(gauges, iter([x[:5], x[5:]]), ["a"] * 12, show=7)
    np.testing.assert_allclose(found.features["fd_means"], x.mean((1, 2)), rtol=1e-5)
    np.testing.assert_array_equal(found.first, x[:7])
    row = figures(gauges, found, cases, teacher_other=found)
    assert row["teacher_fd_means_frechet"] == pytest.approx(0, abs=1e-6)
    assert (row["count"], row["teacher_fd_means_recall"]) == (12, 1)
    assert row["fd_means_seed_diversity"] > 0
    assert "fd_means_frechet" not in row
    with pytest.raises(RequestError, match="no picture"):
        look(gauges, iter([]), [])


def test_a_table_names_its_networks():
    row = {"cell": "a", "fd_means_frechet": 0.01234, "teacher_fd_means_recall": 0.5}
    row["fd_means_kernel_subsets"] = {"mean": 0.0123, "std": 0.001}
    head, _, line = markdown([row], columns=all_columns([MEANS])).splitlines()
    assert head == "| drawn by | FD-means ↓ | KD-means ×1000 ↓ | recall to teacher (means) |"
    assert line == "| a | 0.0123 | 12.3 ± 1.0 | 0.50 |"


def test_a_plot_puts_points_where_they_belong():
    svg = lines({"a<b": [(1, 0.0), (4, 10.0)], "c": [(2, 5.0)]}, title="t & u", y_label="y", levels={"teacher": 2.5})
    root = ElementTree.fromstring(svg)
    name = "{http://www.w3.org/2000/svg}"
    dots = [(float(c.get("cx")), float(c.get("cy"))) for c in root.iter(f"{name}circle")]
    (x1, y1), (x4, y4), (x2, y2) = dots
    assert x2 == pytest.approx((x1 + x4) / 2)
    assert y2 == pytest.approx((y1 + y4) / 2)
    assert y4 < y1
    (dashed,) = [p for p in root.iter(f"{name}polyline") if p.get("stroke-dasharray")]
    assert float(dashed.get("points").split(",")[-1]) == pytest.approx(y1 + 0.25 * (y4 - y1))
    assert {"a<b", "c", "teacher", "t & u"} <= {text.text for text in root.iter(f"{name}text")}
    assert len({p.get("stroke") for p in root.iter(f"{name}polyline")}) == 3


def test_a_plot_of_one_level_and_of_nothing():
    ElementTree.fromstring(lines({"a": [(1, 3.0), (2, 3.0)]}, title="t", y_label="y"))
    with pytest.raises(ValueError, match="at least one point"):
        lines({}, title="t", y_label="y")


def test_plots_are_of_what_changes_with_the_evaluations():
    rows = [{"cell": "teacher", "evaluations": 100, "q": 1.0}]
    rows += [{"cell": "s", "evaluations": n, "q": 2.0 / n, "r": {"share": 0.5}} for n in (1, 2)]
    found = quality_plots(rows, {"q": "Q ↓", "r": "R %", "absent": "A"}, title="t")
    assert set(found) == {"q", "r"}
    assert "teacher (100)" in found["q"]
    assert "teacher" not in found["r"]
