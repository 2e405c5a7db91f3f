"""A model whose graphs a runtime runs: what the pipeline asks of `checkpoints.load.Model`, without torch.

Shapes: B pictures, C 4 latent channels, H and W latent height and width (pixels / 8), L text positions.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from fewstep.backends.graph_folder import graph_folder
from fewstep.backends.onnx_text import OnnxText, OnnxTextEncoder
from fewstep.backends.sessions import RUNTIMES, Sessions
from fewstep.checkpoints.arrays import part_arrays
from fewstep.checkpoints.complete import describe_model
from fewstep.checkpoints.description import Description
from fewstep.checkpoints.lora_apply import Merge, additions, strength_of
from fewstep.checkpoints.search import model_hash
from fewstep.errors import GraphError
from fewstep.image import CELL_PX
from fewstep.models.family import INPAINTING


class OnnxModel:
    """A described model; weights are read when they are first needed.

    Raises GraphError when there are no graphs for it.
    """

    device = "cpu"

    def __init__(
        self, found: Description, *, runtime: str = "onnx", dtype: str = "float32", notes: tuple[str, ...] = ()
    ) -> None:
        unet = found.configs["unet"]
        if unet.get("in_channels") == INPAINTING:
            raise GraphError("graphs are of ordinary networks, and this is an inpainting one")
        self.name, self.path, self.family = found.name, found.path, found.family
        self.schedule, self.sampling, self.notes = found.schedule, found.sampling, notes
        self.dtype = "float32" if runtime == "both" else dtype
        """Of all but drafts."""
        self.guidance_width: int | None = unet.get("time_cond_proj_dim")
        source = found.sources.get("vae", found.path)
        lent = source if isinstance(source, Path) else source.path
        self.vae_path = None if lent == found.path else lent
        graphs, shapes = graph_folder(found)

        def weights(part: str, wanted: Mapping[str, Sequence[int]]) -> dict[str, np.ndarray]:
            return part_arrays(found.sources.get(part, found.path), part, wanted)

        self.sessions = Sessions(graphs, weights, runtime=runtime, dtype=dtype, shapes=shapes)
        self.text = OnnxTextEncoder(found, self.sessions)
        self.tiny = found.tiny if "tiny_vae_decoder" in self.sessions.wanted else ""
        self._loras: tuple[tuple[Any, ...], ...] = ()

    @cached_property
    def content_hash(self) -> str:
        """First 10 hexadecimal digits of the SHA-256 of the UNet's files, or of the single file."""
        return model_hash(self.path)

    def warm(self) -> None:
        """Begin to make the sessions of a picture from text, in the order of their use, in the background."""
        self.sessions.start("unet", "text_encoder", "text_encoder_2", "text_kv", self.finisher)

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

    def conditions(self, text: OnnxText) -> dict[str, np.ndarray]:
        """What the network is told of the text, a row for each prompt: every block's keys and values (B, L, K), and
        the pooled text where the family has that.
        """
        kv_BLK = self.sessions.run("text_kv", "text_kv_BLK", text_BLD=text.text_BLD)
        return {"text_kv_BLK": kv_BLK} | ({} if text.pooled_BD is None else {"pooled_BD": text.pooled_BD})

    def unet(
        self, z_BCHW: np.ndarray, timestep_B: np.ndarray, *, draft: bool = False, **conditions: np.ndarray
    ) -> np.ndarray:
        """The network's output, of the shape of z_BCHW; `conditions`, and guidance_BD where it takes that."""
        if "pooled_BD" in conditions:
            height, width = (side * CELL_PX for side in z_BCHW.shape[-2:])
            sizes = np.array([[height, width, 0, 0, height, width]], np.float32)
            conditions["time_ids_B6"] = np.repeat(sizes, len(z_BCHW), axis=0)
        inputs = {"z_BCHW": z_BCHW, "timestep_B": timestep_B.astype(np.float32), **conditions}
        run = self.sessions.draft if draft else self.sessions.run
        return run("unet", "output_BCHW", **inputs)

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


def open_onnx(
    path: str | Path | None = None, *, runtime: str = "onnx", dtype: str = "float32", reason: str = "", **parts: Any
) -> OnnxModel:
    """A single file, a diffusers folder, a Hub name or (None) the embedded model; of the weights it reads headers only.

    `reason` is why this runtime; `parts` are `load_model`'s base, vae and prediction. Raises CheckpointError in one
    sentence for whatever is wrong with the files.
    """
    found = describe_model(path, **parts)
    why = f"cpu, {dtype}, {RUNTIMES[runtime].label}: {reason}" if reason else f"cpu, {dtype}, {RUNTIMES[runtime].label}"
    notes = (f"{found.family}, {found.family.size_px} px", why, *found.notes, found.why)
    return OnnxModel(found, runtime=runtime, dtype=dtype, notes=notes)
