"""The pipeline's back ends: how text, noise, network and autoencoder are asked for in PyTorch and of graphs.

Shapes: B pictures, C 4 latent channels, H and W latent height and width (pixels / 8).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

from fewstep.backends.choice import Asked, open_with
from fewstep.image import CELL_PX, mask_cells
from fewstep.models.chunks import Vectors
from fewstep.sampling.sampler import Denoiser

if TYPE_CHECKING:
    import numpy as np
    from PIL import Image

    from fewstep.backends.onnx_model import OnnxModel
    from fewstep.checkpoints.load import Model
    from fewstep.checkpoints.lora_apply import Merge
    from fewstep.checkpoints.lora_read import Lora

Array: TypeAlias = Any


class Runner(Protocol):
    """What a pipeline asks of a back end: arrays of its own kind; pictures as uint8 (B, height, width, 3)."""

    def read_lora(self, path: Path) -> Lora:
        """A LoRA made for this model's family; raises LoraError."""
        ...

    def set_loras(self, loras: Sequence[Merge]) -> None:
        """Make the model carry exactly these (LoRA, weight for the UNet, weight for the text encoders), or (LoRA,
        `Strength`).
        """
        ...

    def denoiser(self, words: str, negative: str | None, guidance: float, reading: Reading) -> Denoiser:
        """The network with a prompt and guidance inside, for any number of pictures.

        The negative prompt is None where guidance has no use for one. Raises RequestError for a prompt that cannot be
        read.
        """
        ...

    def beside(self, image: Image.Image | None, mask: Image.Image | None, size: tuple[int, int]) -> Array | None:
        """What an inpainting network sees beside the latents of a picture of this (width, height); None for others."""
        ...

    def noise(self, seeds: Sequence[int], size: tuple[int, int], rng: str = "cpu") -> Callable[[], Array]:
        """A function whose every call draws the next unit noise (B, 4, height / 8, width / 8), one generator a seed."""
        ...

    def encode(self, pixels_BHWC: np.ndarray) -> Array:
        """Pictures to latents, the same each time."""
        ...

    def decode(self, z_BCHW: Array) -> np.ndarray:
        """Latents to pictures."""
        ...

    def weights(self, cells_HW: np.ndarray) -> Array:
        """A map of booleans as ones and zeros that multiply latents: (1, 1, H, W)."""
        ...


@dataclass(frozen=True)
class Reading:
    """How prompts are read: which layer of the text encoder, what weights do, which embeddings may be named."""

    clip_skip: int = 1
    emphasis: str = "original"
    embeddings: Mapping[str, Vectors] = field(default_factory=dict)
    beside: Array | None = None
    """What `Runner.beside` gave: for an inpainting UNet."""


def _texts(encoder: Any, words: str, negative: str | None, reading: Reading) -> tuple[Any, Any]:
    """The encoded prompt, and the encoded negative prompt where there is one."""
    how = {"clip_skip": reading.clip_skip, "emphasis": reading.emphasis, "embeddings": reading.embeddings}
    text = encoder.encode_prompt(words, **how)
    return text, None if negative is None else encoder.encode_prompt(negative, negative=True, **how)


def _whole(level: int) -> int:
    """A mask's level as all or nothing."""
    return 255 if level else 0


def _numpy_noise(seeds: Sequence[int], size: tuple[int, int], rng: str) -> Callable[[], np.ndarray]:
    import numpy as np

    from fewstep.noise import STREAMS

    streams = [STREAMS[rng](seed) for seed in seeds]
    shape = (1, 4, size[1] // CELL_PX, size[0] // CELL_PX)
    return lambda: np.concatenate([stream.normal(shape) for stream in streams])


class TorchRunner:
    """The eager PyTorch back end, on the model's own device."""

    def __init__(self, model: Model) -> None:
        from fewstep.checkpoints.lora import stack_of

        self.model = model
        self._stack = stack_of(model)

    def read_lora(self, path: Path) -> Lora:
        """As torch tensors."""
        from fewstep.checkpoints.lora_read import read_lora

        return read_lora(path, family=self.model.family)

    def set_loras(self, loras: Sequence[Merge]) -> None:
        """Merged in place; taken out again to the last bit."""
        self._stack.set(loras)

    def denoiser(self, words: str, negative: str | None, guidance: float, reading: Reading) -> Denoiser:
        """Text is encoded once and serves every picture."""
        from fewstep.backends.eager import EagerDenoiser

        return EagerDenoiser(self.model, *_texts(self.model.text, words, negative, reading), guidance, reading.beside)

    def beside(self, image: Image.Image | None, mask: Image.Image | None, size: tuple[int, int]) -> Array | None:
        """The mask (1: repaint) and the latents of the picture with grey in its place, as it was trained (Rombach et
        al. 2022, arXiv:2112.10752, section 4.5; the 9 channels are CompVis' and runwayml's). Without a mask all is
        repainted.
        """
        if self.model.unet.config.in_channels == self.model.unet.config.out_channels:
            return None
        import numpy as np
        import torch
        from PIL import Image

        hole = mask or Image.new("L", size, 255)
        grey = Image.composite(
            Image.new("RGB", size, (127, 127, 127)), image or Image.new("RGB", size), hole.point(_whole)
        )
        kept_BCHW = self.encode(np.asarray(grey)[None])
        cells_BCHW = self.weights(mask_cells(hole)).to(kept_BCHW)
        return torch.cat([cells_BCHW, kept_BCHW], dim=1)

    def noise(self, seeds: Sequence[int], size: tuple[int, int], rng: str = "cpu") -> Callable[[], Array]:
        """Drawn on the CPU in float32, so a seed means the same noise on every device and in every batch."""
        import torch

        if rng != "cpu":
            draw = _numpy_noise(seeds, size, rng)
            return lambda: torch.from_numpy(draw()).to(self.model.device)
        generators = [torch.Generator("cpu").manual_seed(seed) for seed in seeds]
        shape = (1, 4, size[1] // CELL_PX, size[0] // CELL_PX)
        return lambda: torch.cat([torch.randn(shape, generator=g) for g in generators]).to(self.model.device)

    def encode(self, pixels_BHWC: np.ndarray) -> Array:
        """The mode of the posterior, not a draw from it."""
        import torch

        from fewstep.models.vae import encode

        image_BCHW = torch.from_numpy(pixels_BHWC.copy()).permute(0, 3, 1, 2).float() / 127.5 - 1
        with torch.no_grad():
            return encode(self.model.vae, image_BCHW.to(self.model.device))

    def decode(self, z_BCHW: Array) -> np.ndarray:
        """One picture at a time: the decoder is the hungriest part, and batches gain it little."""
        import torch

        from fewstep.models.vae import decode

        with torch.no_grad():
            image_BCHW = torch.cat([decode(self.model.vae, z_1CHW) for z_1CHW in z_BCHW.split(1)])
        return ((image_BCHW + 1) * 127.5).round().clamp(0, 255).byte().permute(0, 2, 3, 1).cpu().numpy()

    def weights(self, cells_HW: np.ndarray) -> Array:
        """On the model's device, float32."""
        import torch

        return torch.from_numpy(cells_HW).float()[None, None].to(self.model.device)


class OnnxRunner:
    """ONNX Runtime or OpenVINO on the CPU: numpy arrays, torch is never imported."""

    def __init__(self, model: OnnxModel) -> None:
        """Begins to make the sessions that no LoRA is likely to change."""
        self.model = model
        model.sessions.start("text_encoder", "text_encoder_2", "vae_decoder")

    def read_lora(self, path: Path) -> Lora:
        """As numpy arrays; by torch only where numpy lacks the number format (bfloat16)."""
        from fewstep.checkpoints.files import has_numpy_formats
        from fewstep.checkpoints.lora_read import read_lora

        return read_lora(path, family=self.model.family, numpy=has_numpy_formats(path))

    def set_loras(self, loras: Sequence[Merge]) -> None:
        """Merged when the networks are next loaded, which begins here, in the background."""
        self.model.set_loras(loras)
        self.model.warm()

    def denoiser(self, words: str, negative: str | None, guidance: float, reading: Reading) -> Denoiser:
        """Text is encoded once and serves every picture."""
        from fewstep.backends.onnx import OnnxDenoiser

        return OnnxDenoiser(self.model, *_texts(self.model.text, words, negative, reading), guidance)

    def beside(self, image: Image.Image | None, mask: Image.Image | None, size: tuple[int, int]) -> Array | None:
        """Graphs are of ordinary networks."""
        return None

    def noise(self, seeds: Sequence[int], size: tuple[int, int], rng: str = "cpu") -> Callable[[], Array]:
        """The same numbers as torch's, to about 1e-6."""
        return _numpy_noise(seeds, size, rng)

    def encode(self, pixels_BHWC: np.ndarray) -> Array:
        """The mode of the posterior, not a draw from it."""
        return self.model.encode(pixels_BHWC)

    def decode(self, z_BCHW: Array) -> np.ndarray:
        """One picture at a time."""
        return self.model.decode(z_BCHW)

    def weights(self, cells_HW: np.ndarray) -> Array:
        """As float32."""
        return cells_HW.astype("float32")[None, None]


def runner_of(model: Model | OnnxModel) -> Runner:
    """The back end that a model was opened for."""
    from fewstep.backends.onnx_model import OnnxModel

    return OnnxRunner(model) if isinstance(model, OnnxModel) else TorchRunner(model)


def open_model(
    path: str | Path | None,
    *,
    device: str | None,
    dtype: str | None,
    backend: str | None = None,
    by_torch: bool = False,
    **parts: Any,
) -> Model | OnnxModel:
    """A model for a back end (`backends.choice.NAMES`); None or "auto" takes the one that is best here.

    `parts` are `load_model`'s base, vae and prediction; `by_torch` says that embeddings are asked for, which torch
    alone serves. Raises CheckpointError for the model's files, DeviceError for device, dtype and back end.
    """
    asked = Asked(path, device, dtype, {name: value for name, value in parts.items() if value is not None})
    return open_with(asked, backend, embeddings=by_torch)
