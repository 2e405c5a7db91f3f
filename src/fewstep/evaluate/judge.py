"""The judge: a small network that says which concept and style a picture shows, and describes it by 128 numbers.

It is trained apart from the generator, on the same cut-outs with strong augmentation, and shipped with the package, so
that every figure of the evaluation can be had offline. Its Fréchet distances are never to be compared with real FIDs.

Legend: B, N pictures; H, W pixels; C concepts; S styles; D features.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from fewstep.checkpoints.files import read_json, read_tensors, write_json, write_safetensors
from fewstep.errors import CheckpointError

WEIGHTS, LABELS = "judge.safetensors", "judge.json"


@dataclass(frozen=True)
class Background:
    """What a caption says of a background, and its colour where it is plain."""

    phrase: str
    rgb: tuple[int, int, int] | None = None


@dataclass(frozen=True)
class Labels:
    """All that the judge can tell apart and all that the fixed prompts are made of.

    `phrases` are the concepts with their articles; `held_out_styles` are (concept, style) pairs and
    `held_out_backgrounds` (concept, background) pairs that no training has seen.
    """

    concepts: tuple[str, ...]
    phrases: tuple[str, ...]
    styles: tuple[str, ...]
    backgrounds: dict[str, Background]
    held_out_styles: tuple[tuple[str, str], ...] = ()
    held_out_backgrounds: tuple[tuple[str, str], ...] = ()

    @property
    def colours(self) -> dict[str, tuple[int, int, int]]:
        """The plain backgrounds by name."""
        return {name: b.rgb for name, b in self.backgrounds.items() if b.rgb is not None}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Labels:
        """The labels as they stand in judge.json."""
        return cls(
            concepts=tuple(value["concepts"]),
            phrases=tuple(value["phrases"]),
            styles=tuple(value["styles"]),
            backgrounds={
                name: Background(b["phrase"], tuple(b["rgb"]) if b["rgb"] else None)
                for name, b in value["backgrounds"].items()
            },
            held_out_styles=tuple((a, b) for a, b in value["held_out_styles"]),
            held_out_backgrounds=tuple((a, b) for a, b in value["held_out_backgrounds"]),
        )


@dataclass(frozen=True)
class Shape:
    """The network's size."""

    size_px: int = 64
    widths: tuple[int, ...] = (32, 64, 128, 192)
    features: int = 128


@dataclass(frozen=True, eq=False)
class Reading:
    """What the judge says of N pictures: features (N, D), logits (N, C) and (N, S), float32."""

    features_ND: NDArray[np.float32]
    concepts_NC: NDArray[np.float32]
    styles_NS: NDArray[np.float32]


class Residual(nn.Module):
    """Two 3x3 convolutions around which the input is added."""

    def __init__(self, width: int, norm: Callable[[int], nn.Module]) -> None:
        """Build for one width."""
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(width, width, 3, padding=1), norm(width))
        self.second = nn.Sequential(nn.Conv2d(width, width, 3, padding=1), norm(width))

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Same shape out as in."""
        return F.relu(x_BCHW + self.second(F.relu(self.first(x_BCHW))))


class Network(nn.Module):
    """A convolutional stem, then per width a strided convolution and (from the third width) a residual; two heads.

    `norm` is the normalisation used in training; at rest it is folded into the convolutions and is nothing.
    """

    def __init__(
        self, shape: Shape, *, concepts: int, styles: int, norm: Callable[[int], nn.Module] = nn.Identity
    ) -> None:
        """Build with random weights."""
        super().__init__()
        layers: list[nn.Module] = []
        width = 3
        for level, wider in enumerate(shape.widths):
            size = 5 if level == 0 else 3
            layers += [nn.Sequential(nn.Conv2d(width, wider, size, 2, size // 2), norm(wider)), nn.ReLU()]
            if level >= 1:
                layers.append(Residual(wider, norm))
            width = wider
        self.trunk = nn.Sequential(*layers)
        self.features = nn.Linear(width, shape.features)
        self.concepts = nn.Linear(shape.features, concepts)
        self.styles = nn.Linear(shape.features, styles)

    def forward(self, x_BCHW: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Pictures in [-1, 1] to features (B, D), concept logits (B, C) and style logits (B, S)."""
        features_BD = self.features(self.trunk(x_BCHW).mean((2, 3)))
        return features_BD, self.concepts(features_BD), self.styles(features_BD)


def to_input(pictures_NHWC: NDArray[np.uint8], size_px: int) -> Tensor:
    """uint8 pictures of any size to the network's own: float (N, 3, size_px, size_px) in [-1, 1]."""
    x_BCHW = torch.from_numpy(np.ascontiguousarray(pictures_NHWC)).permute(0, 3, 1, 2).float() / 127.5 - 1
    if x_BCHW.shape[-2:] != (size_px, size_px):
        x_BCHW = F.interpolate(x_BCHW, size=(size_px, size_px), mode="bilinear", antialias=True, align_corners=False)
    return x_BCHW


class Judge:
    """The trained network of a folder; `judge(pictures)` reads pictures.

    Raises:
        CheckpointError: a file is missing, damaged or does not fit the labels.
    """

    def __init__(self, folder: str | Path, *, device: str = "cpu") -> None:
        """Load `judge.json` and `judge.safetensors`."""
        self.folder, self.device = Path(folder), device
        if not (self.folder / LABELS).exists():
            raise CheckpointError(
                f"There is no judge in '{self.folder}' (no {LABELS}); name another folder, or train one with "
                "`python -m pictogram.judge`."
            )
        description = read_json(self.folder / LABELS)
        try:
            self.labels = Labels.from_json(description["labels"])
            self.shape = Shape(**{**description["shape"], "widths": tuple(description["shape"]["widths"])})
        except (KeyError, TypeError, ValueError) as error:
            raise CheckpointError(
                f"'{self.folder / LABELS}' does not describe a judge ({error}); train it again."
            ) from None
        self.ceilings: dict[str, Any] = description.get("ceilings", {})
        self.network = self._read_network().to(device)

    def _read_network(self) -> Network:
        path = self.folder / WEIGHTS
        network = Network(self.shape, concepts=len(self.labels.concepts), styles=len(self.labels.styles))
        weights = {key: value.float() for key, value in read_tensors(path).items()}
        try:
            network.load_state_dict(weights)
        except RuntimeError as error:
            raise CheckpointError(
                f"'{path}' does not fit its labels ({str(error).splitlines()[0]}); train it again."
            ) from None
        return network.eval().requires_grad_(False)

    @torch.inference_mode()
    def __call__(self, pictures_NHWC: NDArray[np.uint8], *, batch: int = 128) -> Reading:
        """Read N uint8 RGB pictures of any one size."""
        parts: list[tuple[Tensor, ...]] = []
        for at in range(0, len(pictures_NHWC), batch):
            x_BCHW = to_input(pictures_NHWC[at : at + batch], self.shape.size_px).to(self.device)
            parts.append(self.network(x_BCHW))
        return Reading(*(torch.cat(column).float().cpu().numpy() for column in zip(*parts, strict=True)))


def default_folder() -> Path:
    """Where the judge lies that is shipped with the package."""
    return Path(__file__).parents[1] / "assets" / "judge"


def save_judge(
    network: Network, folder: str | Path, *, shape: Shape, labels: Labels, ceilings: Mapping[str, Any] | None = None
) -> None:
    """Write a network without normalisation layers as fp16 weights beside its labels."""
    weights = {key: value.detach().half() for key, value in network.state_dict().items()}
    write_safetensors(Path(folder) / WEIGHTS, weights)
    description = {"shape": asdict(shape), "labels": asdict(labels), "ceilings": dict(ceilings or {})}
    write_json(Path(folder) / LABELS, description)
