"""Pictures made larger: names, ONNX graphs made here, spandrel's layouts, tiles, and every file that is refused."""

import sys
import types

import numpy as np
import pytest
import torch
from PIL import Image

pytest.importorskip("onnx")

import onnx
from onnx import TensorProto, helper, numpy_helper

from fewstep.errors import CheckpointError, RequestError
from fewstep.hires import LATENT, hires_fields, target_size, upscaler_named
from fewstep.upscale import UpscalerModel, open_upscaler

NOISE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (48, 72, 3), np.uint8))


def graph(path, *, scale=4, channels=3, side=None, kind=TensorProto.FLOAT, radius=2):
    """A model that enlarges by `scale` and blurs: every value depends on `radius` places around."""
    sides = ["H", "W"] if side is None else list(side)
    width = 2 * radius + 1
    weight = np.full((3, channels, width, width), 1 / channels / width**2)
    weight = numpy_helper.from_array(weight.astype(helper.tensor_dtype_to_np_dtype(kind)), "weight")
    scales = numpy_helper.from_array(np.array([1, 1, scale, scale], np.float32), "scales")
    nodes = [
        helper.make_node("Conv", ["x", "weight"], ["blurred"], pads=[radius] * 4),
        helper.make_node("Resize", ["blurred", "", "scales"], ["y"], mode="nearest"),
    ]
    model = helper.make_graph(
        nodes,
        "upscaler",
        [helper.make_tensor_value_info("x", kind, [1, channels, *sides])],
        [helper.make_tensor_value_info("y", kind, [1, 3, "h", "w"])],
        [weight, scales],
    )
    onnx.save(helper.make_model(model, opset_imports=[helper.make_opsetid("", 18)], ir_version=9), path)
    return str(path)


def furthest(one, other):
    return int(np.abs(np.asarray(one, int) - np.asarray(other, int)).max())


# ---- names and sizes


@pytest.mark.parametrize("name", ["Lanczos", "lanczos", "NEAREST", "None"])
def test_pillow_s_resizes(name):
    how = Image.Resampling.NEAREST if name == "NEAREST" else Image.Resampling.LANCZOS
    assert furthest(open_upscaler(name)(NOISE, (100, 60)), NOISE.resize((100, 60), how)) == 0


def test_names():
    assert upscaler_named("latent (NEAREST-exact)") == "Latent (nearest-exact)"
    assert all(upscaler_named(label.upper()) == label for label in LATENT)
    with pytest.raises(RequestError, match=r"no upscaler 'R-ESRGAN 4x\+'.*or give the file"):
        upscaler_named("R-ESRGAN 4x+")
    with pytest.raises(RequestError, match="works among latents"):
        open_upscaler("Latent")


@pytest.mark.parametrize(
    ("size", "asked", "wanted"),
    [
        ((64, 72), (1, None, None), (64, 72)),
        ((64, 72), (1.5, None, None), (96, 112)),
        ((64, 72), (4, None, None), (256, 288)),
        ((64, 128), (None, 96, None), (96, 192)),
        ((64, 128), (None, None, 96), (48, 96)),
        ((64, 128), (None, 96, 96), (96, 96)),
    ],
)
def test_targets(size, asked, wanted):
    assert target_size(size, *asked) == wanted


def test_too_large_a_target_names_the_limit():
    with pytest.raises(RequestError, match="2048x2048 pixels enlarged to 16384x16384 are more than 8192"):
        target_size((2048, 2048), 8, None, None)


def test_settings_of_other_programs():
    a1111 = {"Hires upscale": "1.5", "Hires upscaler": "Latent", "Denoising strength": "0.7", "Steps": "20"}
    assert hires_fields(a1111) == {"hires_scale": 1.5, "hires_upscaler": "Latent", "hires_strength": 0.7}
    forge = {"Hires resize": "0x1024", "Hires sampler": "Use same sampler", "Hires CFG Scale": "2"}
    assert hires_fields(forge) == {"hires_height": 1024, "hires_guidance": 2.0}
    assert hires_fields({"Denoising strength": "0.7"}) == {}
    with pytest.raises(RequestError, match="Hires steps: four"):
        hires_fields({"Hires upscale": "2", "Hires steps": "four"})


# ---- ONNX


@pytest.mark.parametrize("scale", [1, 2, 4])
def test_a_graph_s_scale_is_found_and_any_size_reached(tmp_path, scale):
    enlarge = open_upscaler(graph(tmp_path / "a.onnx", scale=scale))
    assert enlarge.scale == scale
    for size in ((72, 48), (144, 96), (100, 60), (300, 200)):
        assert enlarge(NOISE, size).size == size
    assert enlarge.enlarge(NOISE).size == (72 * scale, 48 * scale)


def test_half_precision(tmp_path):
    whole, half = (
        open_upscaler(graph(tmp_path / f"{kind}.onnx", kind=kind)) for kind in (TensorProto.FLOAT, TensorProto.FLOAT16)
    )
    assert furthest(whole.enlarge(NOISE), half.enlarge(NOISE)) <= 1


@pytest.mark.parametrize("radius", [1, 4])
def test_tiles_are_the_whole_where_the_network_sees_no_further_than_the_overlap(tmp_path, radius):
    enlarge = open_upscaler(graph(tmp_path / "a.onnx", scale=2, radius=radius))
    picture = NOISE.resize((176, 144))
    assert furthest(enlarge.enlarge(picture, tile=64), enlarge.enlarge(picture, tile=4096)) == 0


def test_a_size_that_is_fixed(tmp_path):
    fixed = open_upscaler(graph(tmp_path / "a.onnx", side=(64, 64), scale=2, radius=1))
    free = open_upscaler(graph(tmp_path / "b.onnx", scale=2, radius=1))
    large = NOISE.resize((160, 96))
    assert furthest(fixed.enlarge(large), free.enlarge(large)) == 0
    assert furthest(np.asarray(fixed.enlarge(NOISE))[:90, :140], np.asarray(free.enlarge(NOISE))[:90, :140]) == 0
    white = np.asarray(fixed.enlarge(Image.new("RGB", (20, 12), "white")))
    assert white[4:, 4:].min() == 255
    with pytest.raises(CheckpointError, match="takes pictures of 64x32 only"):
        open_upscaler(graph(tmp_path / "c.onnx", side=(32, 64)))


def test_files_that_are_refused(tmp_path, capfd):
    good = graph(tmp_path / "good.onnx")
    (tmp_path / "cut.onnx").write_bytes((tmp_path / "good.onnx").read_bytes()[:150])
    (tmp_path / "empty.onnx").write_bytes(b"")
    (tmp_path / "a.pth").write_bytes(b"pickle")
    (tmp_path / "folder.onnx").mkdir()
    cases = {
        "absent.onnx": "does not exist",
        "cut.onnx": "no graph that can be read",
        "empty.onnx": "no graph that can be read",
        "a.pth": "is a pickle.*save_file",
        "folder.onnx": "is a folder",
    }
    for name, reason in cases.items():
        with pytest.raises(CheckpointError, match=reason) as found:
            open_upscaler(str(tmp_path / name))
        assert "\n" not in str(found.value)
    with pytest.raises(CheckpointError, match=r"takes x tensor\(float\) \[1, 4,"):
        open_upscaler(graph(tmp_path / "four.onnx", channels=4))
    with pytest.raises(CheckpointError, match="makes an array"):
        open_upscaler(graph(tmp_path / "down.onnx", scale=0.5))
    assert open_upscaler(good).scale == 4
    assert capfd.readouterr() == ("", "")


@pytest.mark.embedded
def test_beside_the_embedded_model_s_own_sessions(tmp_path):
    import fewstep

    how = {"seed": 0, "steps": 1, "hires_scale": 1.5, "hires_steps": 1}
    image = fewstep.load()("a red apple", **how, hires_upscaler=graph(tmp_path / "a.onnx", scale=2))
    assert image.size == (192, 192)


def test_a_network_that_fails_says_so():
    def run(x):
        raise RuntimeError("out of memory\nand more")

    with pytest.raises(CheckpointError, match="cannot enlarge a picture of 64x64 \\(out of memory and more\\)"):
        UpscalerModel(run, "x4")


# ---- spandrel


def srvgg(path, width=8, blocks=1, scale=4):
    """Random weights as `realesr-general-x4v3` and its kin name them."""
    from safetensors.torch import save_file

    generator = torch.Generator().manual_seed(0)
    layers = {"body.0": (width, 3)} | {f"body.{2 * i}": (width, width) for i in range(1, blocks + 1)}
    layers[f"body.{2 * blocks + 2}"] = (3 * scale**2, width)
    weights = {f"{name}.weight": torch.randn(*shape, 3, 3, generator=generator) / 9 for name, shape in layers.items()}
    weights |= {f"{name}.bias": torch.zeros(shape[0]) for name, shape in layers.items()}
    weights |= {f"body.{2 * i + 1}.weight": torch.full((width,), 0.2) for i in range(blocks + 1)}
    save_file(weights, path)
    return str(path)


def rrdb(path, width=8, growth=32):
    """Random weights as `RealESRGAN_x4plus` names them, with one block."""
    from safetensors.torch import save_file

    generator, layers = torch.Generator().manual_seed(0), {"conv_first": (width, 3), "conv_last": (3, width)}
    layers |= dict.fromkeys(("conv_body", "conv_up1", "conv_up2", "conv_hr"), (width, width))
    for part in (1, 2, 3):
        for conv in range(1, 6):
            wide = width if conv == 5 else growth
            layers[f"body.0.rdb{part}.conv{conv}"] = (wide, width + (conv - 1) * growth)
    weights = {f"{name}.weight": torch.randn(*shape, 3, 3, generator=generator) / 20 for name, shape in layers.items()}
    save_file(weights | {f"{name}.bias": torch.zeros(shape[0]) for name, shape in layers.items()}, path)
    return str(path)


@pytest.mark.parametrize("layout", [srvgg, rrdb])
def test_real_layouts_by_spandrel(tmp_path, layout):
    pytest.importorskip("spandrel", reason="the extra `upscale` is not installed")
    enlarge = open_upscaler(layout(tmp_path / "x4.safetensors"))
    assert enlarge.scale == 4
    assert enlarge(NOISE, (144, 96)).size == (144, 96)
    large = NOISE.resize((112, 80), Image.Resampling.BICUBIC)
    assert furthest(enlarge.enlarge(large, tile=80), enlarge.enlarge(large, tile=4096)) <= 1
    torch.save({"a": torch.zeros(1)}, tmp_path / "b.safetensors")
    with pytest.raises(CheckpointError, match="no model that spandrel knows"):
        open_upscaler(str(tmp_path / "b.safetensors"))


class StandIn:
    """What is asked of spandrel's `ImageModelDescriptor`."""

    input_channels = output_channels = 3

    def eval(self):
        return self

    def __call__(self, x):
        return x.repeat_interleave(2, -1).repeat_interleave(2, -2)


def test_a_stand_in_for_spandrel(tmp_path, monkeypatch):
    asked = []
    stand_in = types.ModuleType("spandrel")
    stand_in.ImageModelDescriptor = StandIn
    stand_in.ModelLoader = lambda device: types.SimpleNamespace(
        load_from_file=lambda path: asked.append((device, path)) or StandIn()
    )
    monkeypatch.setitem(sys.modules, "spandrel", stand_in)
    (tmp_path / "x2.safetensors").write_bytes(b"")
    enlarge = open_upscaler(str(tmp_path / "x2.safetensors"))
    assert asked[0][1] == tmp_path / "x2.safetensors"
    assert furthest(enlarge(NOISE, (144, 96)), NOISE.resize((144, 96), Image.Resampling.NEAREST)) == 0
    monkeypatch.setattr(StandIn, "output_channels", 1)
    (tmp_path / "grey.safetensors").write_bytes(b"")
    with pytest.raises(CheckpointError, match="does not enlarge RGB pictures"):
        open_upscaler(str(tmp_path / "grey.safetensors"))


def test_without_spandrel(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "spandrel", None)
    monkeypatch.setattr("fewstep.upscale.find_spec", lambda name: None)
    with pytest.raises(CheckpointError, match=r"not installed\). Install them with: pip install 'fewstep\[upscale\]'"):
        open_upscaler(srvgg(tmp_path / "x4.safetensors"))
