"""The pipeline's back ends: how text, noise, network and autoencoder are asked for in PyTorch and of graphs.

Shapes: B pictures, C 4 latent channels, H and W latent height and width (pixels / 8).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias, cast

from fewstep.backends.choice import Asked, open_with
from fewstep.image import CELL_PX, mask_cells
from fewstep.models.chunks import Vectors
from fewstep.sampling.sampler import Denoiser
from fewstep.sampling.tiles import blended

if TYPE_CHECKING:
    import numpy as np
    from PIL import Image

    from fewstep.backends.onnx_model import OnnxModel
    from fewstep.checkpoints.load import Model
    from fewstep.checkpoints.lora_apply import Merge
    from fewstep.checkpoints.lora_read import Lora
    from fewstep.checkpoints.outline import Outline

Array: TypeAlias = Any
ACCELERATOR_BATCH = 8


class Runner(Protocol):
    """What a pipeline asks of a back end: arrays of its own kind; pictures as uint8 (B, height, width, 3)."""

    @property
    def model(self) -> Model | OnnxModel:
        """The model that it runs."""
        ...

    @property
    def at_once(self) -> int:
        """How many pictures a call holds, unless told otherwise."""
        ...

    @property
    def decodes_aside(self) -> bool:
        """Whether one thread may decode while another runs the network."""
        ...

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

    def encode(self, pixels_BHWC: np.ndarray, *, tiny: bool = False) -> Array:
        """Pictures to latents, the same each time; `tiny`: by the tiny autoencoder, which must be there."""
        ...

    def decode(self, z_BCHW: Array, *, tiny: bool = False) -> np.ndarray:
        """Latents to pictures; `tiny` likewise."""
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
    draft: bool = False
    """Whether a back end may predict in less precision than it does otherwise."""


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

    decodes_aside = False
    """A memory plan, or an overflow in half precision, moves the autoencoder about."""

    def __init__(self, model: Model) -> None:
        from fewstep.checkpoints.lora import stack_of

        self.model = model
        self._stack = stack_of(model)

    @property
    def at_once(self) -> int:
        """One on a CPU and under every memory plan but the largest."""
        narrow = self.model.placement is not None and self.model.placement.plan.name != "full"
        return 1 if self.model.device == "cpu" or narrow else ACCELERATOR_BATCH

    def _working(self, part: str, run: Callable[[], Array]) -> Array:
        """`run` with a part of the model ("text", "vae") where it works."""
        return run() if self.model.placement is None else self.model.placement.working(part, run)

    def read_lora(self, path: Path) -> Lora:
        """As torch tensors."""
        from fewstep.checkpoints.lora_read import read_lora

        return read_lora(path, family=self.model.family)

    def set_loras(self, loras: Sequence[Merge]) -> None:
        """Merged in place; taken out again to the last bit."""
        from fewstep.checkpoints.lora import state_of

        if self.model.placement is not None and state_of(loras) != self._stack.state:
            self.model.placement.home()
        self._stack.set(loras)

    def denoiser(self, words: str, negative: str | None, guidance: float, reading: Reading) -> Denoiser:
        """Text is encoded once and serves every picture."""
        from fewstep.backends.eager import EagerDenoiser

        text, away = self._working("text", lambda: _texts(self.model.text, words, negative, reading))
        return EagerDenoiser(self.model, text, away, guidance, reading.beside)

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
            return lambda: self._sent(torch.from_numpy(draw()))
        generators = [torch.Generator("cpu").manual_seed(seed) for seed in seeds]
        shape = (1, 4, size[1] // CELL_PX, size[0] // CELL_PX)
        return lambda: self._sent(torch.cat([torch.randn(shape, generator=g) for g in generators]))

    def _sent(self, x: Array) -> Array:
        """To the model's device; a GPU goes on with its work meanwhile."""
        on_gpu = self.model.device.startswith("cuda")
        return x.pin_memory().to(self.model.device, non_blocking=True) if on_gpu else x.to(self.model.device)

    def encode(self, pixels_BHWC: np.ndarray, *, tiny: bool = False) -> Array:
        """The mode of the posterior, not a draw from it."""
        import torch

        from fewstep.models.vae import encode

        image_BCHW = torch.from_numpy(pixels_BHWC.copy()).permute(0, 3, 1, 2).float() / 127.5 - 1
        with torch.no_grad():
            if tiny:
                return encode(self.model.tiny_vae, image_BCHW.to(self.model.device))
            return self._working("vae", lambda: encode(self.model.vae, image_BCHW.to(self.model.device)))

    def decode(self, z_BCHW: Array, *, tiny: bool = False) -> np.ndarray:
        """One picture at a time: the decoder is the hungriest part, and batches gain it little."""
        import torch

        with torch.no_grad():
            image_BCHW = torch.cat([self._decoded(z_1CHW, tiny) for z_1CHW in z_BCHW.split(1)])
        return ((image_BCHW + 1) * 127.5).round().clamp(0, 255).byte().permute(0, 2, 3, 1).cpu().numpy()

    def _decoded(self, z_1CHW: Array, tiny: bool) -> Array:
        from fewstep.models.vae import decode

        def whole(z_1CHW: Array) -> Array:
            return decode(self.model.vae, z_1CHW)

        if tiny:
            return decode(self.model.tiny_vae, z_1CHW)
        if self.model.placement is None or not self.model.placement.plan.tiles:
            return self._working("vae", lambda: whole(z_1CHW))
        from fewstep.backends.placement import OVERLAP, TILE

        return self._working("vae", lambda: blended(whole, z_1CHW, size=TILE, overlap=OVERLAP, scale=CELL_PX))

    def weights(self, cells_HW: np.ndarray) -> Array:
        """On the model's device, float32."""
        import torch

        return torch.from_numpy(cells_HW).float()[None, None].to(self.model.device)


class OnnxRunner:
    """ONNX Runtime or OpenVINO on the CPU: numpy arrays, torch is never imported."""

    at_once = 1
    decodes_aside = True

    def __init__(self, model: OnnxModel) -> None:
        """Begins to make the sessions that no LoRA is likely to change."""
        self.model = model
        model.sessions.start("text_encoder", "text_encoder_2", model.finisher)

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

        text, untold = _texts(self.model.text, words, negative, reading)
        return OnnxDenoiser(self.model, text, untold, guidance, draft=reading.draft)

    def beside(self, image: Image.Image | None, mask: Image.Image | None, size: tuple[int, int]) -> Array | None:
        """Graphs are of ordinary networks."""
        return None

    def noise(self, seeds: Sequence[int], size: tuple[int, int], rng: str = "cpu") -> Callable[[], Array]:
        """The same numbers as torch's, to about 1e-6."""
        return _numpy_noise(seeds, size, rng)

    def encode(self, pixels_BHWC: np.ndarray, *, tiny: bool = False) -> Array:
        """The mode of the posterior, not a draw from it."""
        return self.model.encode(pixels_BHWC, tiny=tiny)

    def decode(self, z_BCHW: Array, *, tiny: bool = False) -> np.ndarray:
        """One picture at a time."""
        return self.model.decode(z_BCHW, tiny=tiny)

    def weights(self, cells_HW: np.ndarray) -> Array:
        """As float32."""
        return cells_HW.astype("float32")[None, None]


class OutlineRunner:
    """No back end: reads LoRAs, which a plan depends on, and leaves the painting to others."""

    at_once = 1
    decodes_aside = False

    def __init__(self, model: Outline) -> None:
        self.model = model

    def read_lora(self, path: Path) -> Lora:
        """As `OnnxRunner`."""
        from fewstep.checkpoints.files import has_numpy_formats
        from fewstep.checkpoints.lora_read import read_lora

        return read_lora(path, family=self.model.family, numpy=has_numpy_formats(path))

    def set_loras(self, loras: Sequence[Merge]) -> None:
        """Nothing: there are no weights to carry them."""

    def __getattr__(self, name: str) -> Any:
        raise RuntimeError(f"The model '{self.model.name}' has no weights here, so nothing can {name}: it only plans.")


def runner_of(model: Model | OnnxModel | Outline) -> Runner:
    """The back end that a model was opened for."""
    from fewstep.backends.onnx_model import OnnxModel
    from fewstep.checkpoints.outline import Outline

    if isinstance(model, Outline):
        return cast("Runner", OutlineRunner(model))
    return OnnxRunner(model) if isinstance(model, OnnxModel) else TorchRunner(model)


def open_model(
    path: str | Path | None,
    *,
    device: str | None,
    dtype: str | None,
    backend: str | None = None,
    by_torch: bool = False,
    memory: str = "auto",
    memory_limit: float | None = None,
    **parts: Any,
) -> Model | OnnxModel:
    """A model for a back end (`backends.choice.NAMES`); None or "auto" takes the one that is best here.

    `parts` are `load_model`'s base, vae, tiny_vae and prediction; `by_torch` says that embeddings are asked for, which
    torch alone serves, as it does memory plans. Raises CheckpointError for the model's files, DeviceError for device,
    dtype, back end and memory.
    """
    parts = {name: value for name, value in parts.items() if value is not None}
    return open_with(Asked(path, device, dtype, parts, memory, memory_limit), backend, embeddings=by_torch)
