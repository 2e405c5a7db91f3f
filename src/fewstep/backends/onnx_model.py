"""A model that ONNX Runtime runs: what the pipeline asks of `checkpoints.load.Model`, without torch.

Shapes: B pictures, C 4 latent channels, H and W latent height and width (pixels / 8), L text positions.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from fewstep.backends.onnx_session import FILES, Sessions
from fewstep.backends.onnx_text import OnnxText, OnnxTextEncoder
from fewstep.checkpoints.description import Sampling, describe
from fewstep.checkpoints.lora_apply import Merge, additions, strength_of
from fewstep.models.family import Family
from fewstep.sampling.schedule import Schedule


@dataclass(eq=False)
class OnnxModel:
    """A model folder with an `onnx` sub-folder (`fewstep.export.onnx`).

    Raises CheckpointError when the folder has no graphs; weights are read when they are first needed.
    """

    name: str
    path: Path
    family: Family
    schedule: Schedule
    sampling: Sampling
    notes: tuple[str, ...] = ()
    tiny: str = ""
    """What its tiny autoencoder is good for: "" where there is none, else "previews" or "pictures"."""

    device: str = field(default="cpu", init=False)
    dtype: str = field(default="float32", init=False)
    vae_path: None = field(default=None, init=False)

    def __post_init__(self) -> None:
        self.sessions = Sessions(self.path)
        self.text = OnnxTextEncoder(self.path, self.sessions)
        self._loras: tuple[tuple[Any, ...], ...] = ()

    @cached_property
    def content_hash(self) -> str:
        """First 10 hexadecimal digits of the SHA-256 of the UNet's file."""
        with (self.path / FILES["unet"]).open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()[:10]

    def warm(self) -> None:
        """Begin to make the sessions of a picture from text, in the order of their use, in the background."""
        self.sessions.start("unet", "text_encoder", "text_kv", self.finisher)

    @property
    def finisher(self) -> str:
        """The graph that decodes finished pictures, when nothing else is asked for."""
        return "tiny_vae_decoder" if self.tiny == "pictures" else "vae_decoder"

    def set_loras(self, loras: Sequence[Merge]) -> None:
        """Make the model carry exactly these (LoRA, weight for the UNet, weight for the text encoder), or (LoRA,
        `Strength`).

        Raises LoraError when one does not fit, RequestError for a weight that is not finite; nothing changes then.
        """
        state = tuple((lora.fingerprint, strength) for lora, strength in map(strength_of, loras))
        if state == self._loras:
            return
        shapes, family = self.sessions.modules(), self.family
        found, _ = additions(loras, shapes, label=family.label, text_encoders=family.text_encoders)
        self.sessions.set_additions(found)
        self._loras = state

    def text_kv(self, text: OnnxText) -> np.ndarray:
        """Every UNet block's keys and values of the text, (B, L, K)."""
        return self.sessions.run("text_kv", "text_kv_BLK", text_BLD=text.text_BLD)

    def unet(self, z_BCHW: np.ndarray, timestep_B: np.ndarray, text_kv_BLK: np.ndarray) -> np.ndarray:
        """The network's output, of the shape of z_BCHW."""
        inputs = {"z_BCHW": z_BCHW, "timestep_B": timestep_B.astype(np.float32), "text_kv_BLK": text_kv_BLK}
        return self.sessions.run("unet", "output_BCHW", **inputs)

    def encode(self, pixels_BHWC: np.ndarray, *, tiny: bool = False) -> np.ndarray:
        """Pictures of uint8 to scaled latents: the mean of the posterior, the same each time."""
        image_BCHW = np.ascontiguousarray(pixels_BHWC.transpose(0, 3, 1, 2), np.float32) / np.float32(127.5) - 1
        return self.sessions.run("tiny_vae_encoder" if tiny else "vae_encoder", "z_BCHW", image_BCHW=image_BCHW)

    def decode(self, z_BCHW: np.ndarray, *, tiny: bool = False) -> np.ndarray:
        """Scaled latents to pictures of uint8, (B, 8H, 8W, 3); one at a time, as batches gain the decoder nothing."""
        parts = [np.ascontiguousarray(z_BCHW[index : index + 1], np.float32) for index in range(len(z_BCHW))]
        graph = "tiny_vae_decoder" if tiny else "vae_decoder"
        images = [self.sessions.run(graph, "image_BCHW", z_BCHW=part) for part in parts]
        image_BHWC = np.concatenate(images).transpose(0, 2, 3, 1)
        return np.rint((image_BHWC + 1) * np.float32(127.5)).clip(0, 255).astype(np.uint8)


def open_onnx(path: str | Path | None = None) -> OnnxModel:
    """A diffusers folder with an `onnx` sub-folder, or (None) the embedded model; reads json only.

    Raises CheckpointError in one sentence for whatever is wrong with the files.
    """
    found = describe(path)
    reason = "cpu: ONNX Runtime answers before torch could be imported; float32: a CPU is slower in half precision"
    notes = (f"{found.family}, {found.family.size_px} px", reason, found.why)
    return OnnxModel(found.name, found.path, found.family, found.schedule, found.sampling, notes, tiny=found.tiny)
