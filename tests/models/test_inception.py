"""The FID Inception by its published layout, and its departures from the paper one by one."""

import pytest
import torch
import torch.nn.functional as F

from fewstep.checkpoints.measures import load_inception
from fewstep.errors import CheckpointError
from fewstep.models.inception import Inception, average, largest
from tests.evaluate.networks import inception_weights

#: name -> shape in the published state dict, one of each kind of block and its odd ones.
PUBLISHED = {
    "Conv2d_1a_3x3.conv.weight": (32, 3, 3, 3),
    "Conv2d_3b_1x1.conv.weight": (80, 64, 1, 1),
    "Conv2d_4a_3x3.bn.running_var": (192,),
    "Mixed_5b.branch1x1.bn.running_mean": (64,),
    "Mixed_5b.branch5x5_2.conv.weight": (64, 48, 5, 5),
    "Mixed_5b.branch_pool.conv.weight": (32, 192, 1, 1),
    "Mixed_5d.branch3x3dbl_3.conv.weight": (96, 96, 3, 3),
    "Mixed_6a.branch3x3.conv.weight": (384, 288, 3, 3),
    "Mixed_6b.branch7x7_2.conv.weight": (128, 128, 1, 7),
    "Mixed_6d.branch7x7dbl_2.conv.weight": (160, 160, 7, 1),
    "Mixed_6e.branch7x7dbl_5.conv.weight": (192, 192, 1, 7),
    "Mixed_7a.branch7x7x3_4.conv.weight": (192, 192, 3, 3),
    "Mixed_7b.branch3x3_2a.conv.weight": (384, 384, 1, 3),
    "Mixed_7c.branch3x3dbl_3b.conv.weight": (384, 384, 3, 1),
    "Mixed_7c.branch_pool.conv.weight": (192, 2048, 1, 1),
    "fc.weight": (1008, 2048),
}


@pytest.fixture(scope="module")
def weights():
    return inception_weights()


@pytest.fixture(scope="module")
def network(weights, tmp_path_factory):
    path = tmp_path_factory.mktemp("inception") / "pt_inception.pth"
    torch.save(weights, path)
    return load_inception(path)


def test_the_layout_is_the_published_one():
    with torch.device("meta"):
        network = Inception()
        shapes = {}
        for name, module in network.named_modules():
            module.register_forward_hook(lambda _m, _i, out, name=name: shapes.update({name: tuple(out.shape)}))
        network.eval()(torch.zeros(1, 3, 299, 299))
    state = {name: tuple(value.shape) for name, value in network.state_dict().items()}
    assert {name: state[name] for name in PUBLISHED} == PUBLISHED
    assert sum(p.numel() for p in network.parameters()) == 23_850_960
    assert len([name for name in state if not name.endswith("num_batches_tracked")]) == 94 * 5 + 2
    sides = {"Conv2d_1a_3x3": 149, "Conv2d_2b_3x3": 147, "Conv2d_4a_3x3": 71, "Mixed_5d": 35, "Mixed_6e": 17}
    assert {name: shapes[name][2] for name in sides} == sides
    assert (shapes["Mixed_7c"], shapes[""]) == ((1, 2048, 8, 8), (1, 2048))


def test_averages_leave_out_the_padding():
    assert torch.equal(average(torch.ones(1, 1, 4, 4)), torch.ones(1, 1, 4, 4))
    x = torch.arange(9.0).view(1, 1, 3, 3)
    assert average(x)[0, 0, 0, 0] == x[0, 0, :2, :2].mean()
    assert largest(x)[0, 0, 0, 0] == 4


def unit(weights, name, x, **how):
    """A unit from its definition."""
    x = F.conv2d(x, weights[f"{name}.conv.weight"], **how)
    parts = [weights[f"{name}.bn.{part}"].view(1, -1, 1, 1) for part in ("running_mean", "running_var")]
    gain, shift = (weights[f"{name}.bn.{part}"].view(1, -1, 1, 1) for part in ("weight", "bias"))
    return F.relu((x - parts[0]) / (parts[1] + 0.001).sqrt() * gain + shift)


@pytest.mark.parametrize(("block", "width", "pool"), [("Mixed_7b", 1280, "mean"), ("Mixed_7c", 2048, "max")])
def test_the_last_blocks_from_their_definition(network, weights, block, width, pool):
    x = torch.randn(1, width, 4, 4, generator=torch.Generator().manual_seed(1))

    def u(name, y, padding=0):
        return unit(weights, f"{block}.{name}", y, padding=padding)

    single, double = u("branch3x3_1", x), u("branch3x3dbl_2", u("branch3x3dbl_1", x), 1)
    row, column = (0, 1), (1, 0)
    if pool == "max":
        pooled = F.max_pool2d(x, 3, 1, 1)
    else:
        pooled = F.avg_pool2d(x, 3, 1, 1) / F.avg_pool2d(torch.ones_like(x), 3, 1, 1)
    expected = torch.cat(
        [
            u("branch1x1", x),
            u("branch3x3_2a", single, row),
            u("branch3x3_2b", single, column),
            u("branch3x3dbl_3a", double, row),
            u("branch3x3dbl_3b", double, column),
            u("branch_pool", pooled),
        ],
        1,
    )
    torch.testing.assert_close(network.get_submodule(block)(x), expected, rtol=1e-4, atol=1e-5)


def test_a_block_that_halves(network, weights):
    x = torch.randn(1, 288, 9, 9, generator=torch.Generator().manual_seed(2))
    straight = unit(weights, "Mixed_6a.branch3x3", x, stride=2)
    first = unit(weights, "Mixed_6a.branch3x3dbl_1", x)
    double = unit(weights, "Mixed_6a.branch3x3dbl_2", first, padding=1)
    double = unit(weights, "Mixed_6a.branch3x3dbl_3", double, stride=2)
    expected = torch.cat([straight, double, F.max_pool2d(x, 3, 2)], 1)
    torch.testing.assert_close(network.Mixed_6a(x), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*torch.jit")
def test_every_kind_of_file_gives_the_same_features(network, weights, tmp_path):
    class Script(torch.nn.Module):
        """What the TorchScript archive offers: `layers`, the trunk on scaled pictures."""

        def __init__(self, layers):
            super().__init__()
            self.layers = layers

        def forward(self, x):
            return self.layers(x)

    x = torch.rand(1, 3, 299, 299, generator=torch.Generator().manual_seed(3)) * 2 - 1
    with torch.no_grad():
        expected = network(x)
        assert expected.std() > 1e-3
        torch.jit.trace(Script(network), x, check_trace=False).save(str(tmp_path / "inception.pt"))
    full = weights | {n: torch.tensor(3) for n in network.state_dict() if n.endswith("num_batches_tracked")}
    torch.save(full, tmp_path / "new.pth")
    torch.save(weights, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    for name in ("inception.pt", "new.pth", "old.pth"):
        with torch.no_grad():
            torch.testing.assert_close(load_inception(tmp_path / name)(x), expected, rtol=1e-4, atol=1e-5)


class Trap:
    """An object whose reading would run code."""

    def __reduce__(self):
        import os

        return os.mkdir, ("trap-was-sprung",)


@pytest.mark.filterwarnings("ignore:.*torch.jit")
def test_files_that_are_no_fid_inception_are_said(weights, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"a": Trap()}, tmp_path / "trap.pth")
    torch.save([1, 2], tmp_path / "list.pth")
    torch.save({**weights, "fc.weight": torch.zeros(1000, 2048)}, tmp_path / "imagenet.pth")
    torch.save({k: v for k, v in weights.items() if "Mixed_7c" not in k}, tmp_path / "short.pth")
    torch.save({**weights, "Conv2d_1a_3x3.conv.weight": torch.full((32, 3, 3, 3), torch.nan)}, tmp_path / "nan.pth")
    (tmp_path / "text.pth").write_text("no weights")
    torch.jit.script(torch.nn.ReLU()).save(str(tmp_path / "other.pt"))
    said = {
        "absent.pth": "does not exist",
        "trap.pth": "cannot be read as weights",
        "list.pth": "something else than named weights",
        "imagenet.pth": "of 1000 classes",
        "short.pth": "45 of 566 weights are missing",
        "nan.pth": "not numbers",
        "text.pth": "cannot be read as weights",
        "other.pt": "not the TorchScript Inception",
    }
    for name, sentence in said.items():
        with pytest.raises(CheckpointError, match=sentence):
            load_inception(tmp_path / name)
    assert not (tmp_path / "trap-was-sprung").exists()
