"""Pictures made larger: Pillow's resizes, and upscaling models (Real-ESRGAN and its kin) from files.

A model is an ONNX graph, run by ONNX Runtime, or a .safetensors file in any layout that spandrel knows (ESRGAN, SRVGG
and others), run by torch; spandrel is the extra `upscale`. Networks see RGB in 0..1 and answer with RGB in 0..1 on a
grid some whole times finer, which is found by asking. Large pictures go through in overlapping tiles.

Shapes: B pictures, C 3 colours, H and W height and width.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from PIL import Image

from fewstep.backends.onnx_session import session_options
from fewstep.errors import CheckpointError, RequestError
from fewstep.hires import LATENT, upscaler_named
from fewstep.sampling.tiles import blended

Run: TypeAlias = Callable[[np.ndarray], np.ndarray]
Enlarge: TypeAlias = Callable[[Image.Image, tuple[int, int]], Image.Image]
TILE_PX, OVERLAP_PX = 256, 32
EVEN_PX = 16
"""Some networks fold pixels or have windows: what they get is a multiple of this."""

FINEST = 16
"""Times: above it an answer is no enlarged picture."""

MOST_TURNS = 3
_RESIZES = {
    "Lanczos": Image.Resampling.LANCZOS,
    "Nearest": Image.Resampling.NEAREST,
    "None": Image.Resampling.LANCZOS,
}


def open_upscaler(name: str) -> Enlarge:
    """A function (picture, (width, height)) -> the picture, as RGB, in that size.

    Raises:
        RequestError: no such upscaler, or one of latents, which has no picture to enlarge.
        CheckpointError: the model's file is missing, damaged, unsafe, or of another kind.
    """
    label = upscaler_named(name)
    if label in LATENT:
        raise RequestError(f"The upscaler {label} works among latents, not on pictures. Use Lanczos or a model's file.")
    if label in _RESIZES:
        return lambda picture, size: picture.convert("RGB").resize(size, _RESIZES[label])
    path = Path(label).expanduser()
    _check_file(path)
    return _model(path, path.stat().st_mtime_ns)


def _check_file(path: Path) -> None:
    if not path.is_file():
        what = "is a folder" if path.is_dir() else "does not exist"
        raise CheckpointError(f"The upscaler '{path}' {what}. Give the model's .onnx or .safetensors file.")
    if path.suffix.lower() in (".pth", ".pt"):
        raise CheckpointError(
            f"The upscaler '{path}' is a pickle, which can run code, so it is not read. Convert it where you trust it: "
            "safetensors.torch.save_file(torch.load(file, weights_only=True)['params_ema'], 'model.safetensors')."
        )


@lru_cache(maxsize=2)
def _model(path: Path, _time: int) -> Enlarge:
    run, side = _onnx(path) if path.suffix.lower() == ".onnx" else _spandrel(path)
    return UpscalerModel(run, str(path), side)


class UpscalerModel:
    """A network as an upscaler of any picture to any size: as often as needed, at most three times, then Lanczos."""

    def __init__(self, run: Run, name: str, side: int | None = None) -> None:
        """`run` takes and gives (1, 3, H, W) in 0..1; `side` is the one size in pixels that it takes, None for any.

        Raises CheckpointError where it does not answer to a small picture with a larger one.
        """
        self.run, self.name, self.side = run, name, side
        grey_BCHW = np.full((1, 3, side or 64, side or 64), 0.5, np.float32)
        self.scale = self._scale(self._asked(grey_BCHW).shape, grey_BCHW.shape)

    def __call__(self, picture: Image.Image, size: tuple[int, int]) -> Image.Image:
        """The picture as RGB in `size` (width, height)."""
        picture = picture.convert("RGB")
        for _ in range(MOST_TURNS):
            if self.scale > 1 and (picture.width < size[0] or picture.height < size[1]):
                picture = self.enlarge(picture)
        return picture if picture.size == size else picture.resize(size, Image.Resampling.LANCZOS)

    def enlarge(self, picture: Image.Image, *, tile: int | None = None) -> Image.Image:
        """The picture `scale` times as large; `tile` pixels a side at a time."""
        x_BCHW = np.asarray(picture, np.float32).transpose(2, 0, 1)[None] / np.float32(255)
        height, width = x_BCHW.shape[2:]
        least = self.side or EVEN_PX
        wanted = [max(side, least) if self.side else -(-side // EVEN_PX) * EVEN_PX for side in (height, width)]
        more = [(0, 0), (0, 0), (0, wanted[0] - height), (0, wanted[1] - width)]
        x_BCHW = np.pad(x_BCHW, more, mode="edge")
        tile = self.side or tile or TILE_PX
        y_BCHW = blended(self._asked, x_BCHW, size=tile, overlap=min(OVERLAP_PX, tile // 2), scale=self.scale)
        pixels_HWC = np.rint(y_BCHW[0].clip(0, 1) * 255).astype(np.uint8).transpose(1, 2, 0)
        return Image.fromarray(pixels_HWC[: height * self.scale, : width * self.scale])

    def _asked(self, x_BCHW: np.ndarray) -> np.ndarray:
        try:
            return self.run(np.ascontiguousarray(x_BCHW))
        except Exception as error:  # noqa: BLE001 - ONNX Runtime's exceptions have no common class
            reason = " ".join(str(error).split())[:200]
            raise CheckpointError(
                f"The upscaler '{self.name}' cannot enlarge a picture of {x_BCHW.shape[3]}x{x_BCHW.shape[2]} "
                f"({reason}). Use another model."
            ) from None

    def _scale(self, found: tuple[int, ...], asked: tuple[int, ...]) -> int:
        scale = found[-1] // asked[-1] if len(found) == 4 else 0
        if not 1 <= scale <= FINEST or found != (1, 3, asked[2] * scale, asked[3] * scale):
            raise CheckpointError(
                f"The upscaler '{self.name}' makes an array {found} of a picture {asked}, but a picture some whole "
                "times as large was expected. Use a model that enlarges RGB pictures."
            )
        return scale


def _onnx(path: Path) -> tuple[Run, int | None]:
    """A graph as a function, and the one size it takes, if any."""
    import onnxruntime as ort

    options = session_options(ort)
    options.enable_mem_reuse = True
    try:
        session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"], enable_fallback=0)
    except Exception as error:  # noqa: BLE001 - ONNX Runtime's exceptions have no common class
        reason = " ".join(str(error).split())[:200]
        raise CheckpointError(f"The upscaler '{path}' is no graph that can be read ({reason}). Get it anew.") from None
    inputs = session.get_inputs()
    types = {"tensor(float)": np.float32, "tensor(float16)": np.float16}
    shape = inputs[0].shape if inputs else []
    if len(inputs) != 1 or inputs[0].type not in types or len(shape) != 4 or shape[1] not in (3, None, "C"):
        found = ", ".join(f"{entry.name} {entry.type} {entry.shape}" for entry in inputs)
        raise CheckpointError(f"The upscaler '{path}' takes {found or 'nothing'}, not a picture (B, 3, H, W).")
    name, kind = inputs[0].name, types[inputs[0].type]

    def run(x_BCHW: np.ndarray) -> np.ndarray:
        return np.asarray(session.run(None, {name: x_BCHW.astype(kind)})[0], np.float32)

    fixed = [side for side in shape[2:] if isinstance(side, int)]
    if fixed and (len(fixed) == 1 or fixed[0] != fixed[1]):
        raise CheckpointError(f"The upscaler '{path}' takes pictures of {shape[3]}x{shape[2]} only. Use another model.")
    return run, fixed[0] if fixed else None


def _spandrel(path: Path) -> tuple[Run, None]:
    """A .safetensors file as a function, on the device that torch would choose."""
    spandrel = _import_spandrel(path)
    import torch

    from fewstep.device import choose

    device = choose(None, "float32").device
    try:
        model = spandrel.ModelLoader(device).load_from_file(path)
    except Exception as error:  # noqa: BLE001 - spandrel's and safetensors' exceptions have no common class
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise CheckpointError(f"The upscaler '{path}' is no model that spandrel knows ({reason}).") from None
    if not isinstance(model, spandrel.ImageModelDescriptor) or (model.input_channels, model.output_channels) != (3, 3):
        raise CheckpointError(f"The upscaler '{path}' does not enlarge RGB pictures. Use another model.")
    network: Any = model.eval()

    def run(x_BCHW: np.ndarray) -> np.ndarray:
        with torch.no_grad():
            return network(torch.from_numpy(x_BCHW).to(device)).float().cpu().numpy()

    return run, None


def _import_spandrel(path: Path) -> Any:
    try:
        return importlib.import_module("spandrel")
    except (ImportError, RuntimeError) as error:
        missing = [name for name in ("spandrel", "torchvision") if find_spec(name) is None]
        reason = f"{' and '.join(missing)} are not installed" if missing else " ".join(str(error).split())[:200]
        raise CheckpointError(
            f"The upscaler '{path}' needs spandrel, and torchvision built for this torch ({reason}). "
            "Install them with: pip install 'fewstep[upscale]'; or use an .onnx model."
        ) from None
