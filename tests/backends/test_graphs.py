"""The buffers of CUDA graphs, on a CPU: a recorder takes down every operation and replays them on the same tensors."""

import pytest
import torch
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from fewstep.backends.eager import EagerDenoiser
from fewstep.backends.graphs import Graphed, graphed
from fewstep.checkpoints.lora import LoraLayer, stack_of
from tests.tiny import tiny_model


class Tape(TorchDispatchMode):
    """Every operation with its arguments and results, as a GPU's graph has them: no Python runs again."""

    def __init__(self):
        super().__init__()
        self.calls = []

    def __torch_dispatch__(self, op, types, args=(), kwargs=None):
        out = op(*args, **(kwargs or {}))
        self.calls.append((op, args, kwargs or {}, out))
        return out


class Recorder:
    """Stands for `CudaCapture`; counts recordings and replays."""

    def __init__(self):
        self.recordings = self.replays = 0

    def __call__(self, run):
        self.recordings += 1
        with Tape() as tape:
            run()

        def replay():
            self.replays += 1
            made = {}

            def known(x):
                return made.get(id(x), x)

            for op, args, kwargs, out in tape.calls:
                again = op(*pytree.tree_map(known, args), **pytree.tree_map(known, kwargs))
                old, new = pytree.tree_leaves(out), pytree.tree_leaves(again)
                made |= {id(a): b for a, b in zip(old, new, strict=True)}

        return replay


def noise(seed, *shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def pair():
    recorder = Recorder()
    return tiny_model("sd15"), graphed(tiny_model("sd15"), recorder), recorder


def both(pair, z_BCHW, timestep, guidance=1.0, words="a cat"):
    return [EagerDenoiser(model, model.text.encode([words]), None, guidance)(z_BCHW, timestep) for model in pair[:2]]


def test_one_recording_for_each_shape_and_the_eager_answer_every_time(pair):
    recorder, shapes = pair[2], ((1, 8, 8), (2, 8, 8), (1, 8, 16), (1, 8, 8))
    before = recorder.recordings
    for seed, (batch, height, width) in enumerate(shapes):
        z_BCHW = noise(seed, batch, 4, height, width)
        for timestep, guidance in ((999, 1.0), (499, 1.0), (19, 7.5)):
            eager, replayed = both(pair, z_BCHW, timestep, guidance, "a dog" if seed else "a cat")
            assert torch.equal(eager, replayed)
    # 1, 2 (also one picture with guidance), 4 pictures of one size; 1 and 2 of the other
    assert recorder.recordings - before == 5
    assert recorder.replays > 10


def test_a_result_is_not_overwritten_by_the_next(pair):
    z_BCHW, denoiser = noise(0, 1, 4, 8, 8), EagerDenoiser(pair[1], pair[1].text.encode(["a cat"]))
    first = denoiser(z_BCHW, 999)
    kept = first.clone()
    assert not torch.equal(denoiser(noise(1, 1, 4, 8, 8), 999), kept)
    assert torch.equal(first, kept)


def test_what_no_graph_stands_for_runs_as_before():
    recorder, model = Recorder(), tiny_model("sd15")
    forward = Graphed(model.unet, recorder, most=1)
    text = model.text.encode(["a cat"]).text_BLD
    asked = {"encoder_hidden_states": text, "return_dict": False}
    with torch.no_grad():
        for size in (8, 16, 8):
            z_BCHW = noise(size, 1, 4, size, size)
            assert torch.equal(forward(z_BCHW, torch.tensor([9]), **asked)[0], model.unet(z_BCHW, 9, **asked)[0])
        assert (recorder.recordings, recorder.replays, forward.shapes) == (1, 2, 1)
    forward(noise(0, 1, 4, 8, 8), torch.tensor([9]), **asked)  # with gradients
    assert recorder.replays == 2
    assert forward._key([text], "a form") is not None and forward._key([text, object()], "a form") is None


def test_weights_that_change_in_place_are_followed(pair):
    """As a LoRA on a GPU is merged; here by `copy_`, because on a CPU the stack exchanges the memory."""
    z_BCHW = noise(3, 1, 4, 8, 8)
    before = both(pair, z_BCHW, 499)[1]
    with torch.no_grad():
        for model in pair[:2]:
            model.unet.mid_block.resnets[0].conv1.weight.mul_(1.5)
    eager, replayed = both(pair, z_BCHW, 499)
    assert torch.equal(eager, replayed) and not torch.equal(before, replayed)


def test_a_device_without_graphs_is_noted():
    model = tiny_model("sd15")
    noted = graphed(model)
    assert noted.unet is model.unet and "CUDA graphs need a CUDA device" in noted.notes[-1]


def test_a_lora_merges_into_channels_last_weights():
    """What a GPU's weights are: a product that went into a flat copy of them would be lost."""
    plain, last = tiny_model("sd15"), tiny_model("sd15")
    last.unet.to(memory_format=torch.channels_last)
    layer = LoraLayer(noise(1, 4, 32, 3, 3), noise(2, 32, 4, 1, 1), 4.0)
    lora = fake_lora({"mid_block.resnets.0.conv1": layer})
    for model in (plain, last):
        stack_of(model).set([(lora, 1.0, 1.0)])
    one, other = (model.unet.mid_block.resnets[0].conv1.weight for model in (plain, last))
    assert not other.is_contiguous()
    torch.testing.assert_close(one, other)
    assert not torch.allclose(other, tiny_model("sd15").unet.mid_block.resnets[0].conv1.weight)


def fake_lora(layers):
    from types import SimpleNamespace

    named = {f"unet.{name}": layer for name, layer in layers.items()}
    return SimpleNamespace(fingerprint="x", all_layers=named, lenient=False, name="x", notes=())
