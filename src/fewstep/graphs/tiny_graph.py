"""The tiny autoencoder (diffusers' `AutoencoderTiny`, TAESD's layout) as two ONNX graphs.

Source: github.com/madebyollin/taesd. Shapes: B batch, C channels, H and W height and width.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto

from fewstep.errors import GraphError
from fewstep.graphs.graph import Graph, Shapes

LIMIT = 3
"""Latents are squashed to this size: tanh(z / 3) 3."""


class TinyGraph:
    """Writes the nodes of one of the two graphs."""

    def __init__(self, config: Mapping[str, Any], shapes: Shapes) -> None:
        """Raises GraphError for an activation that TAESD does not have."""
        if config.get("act_fn", "relu") != "relu" or config.get("upsample_fn", "nearest") != "nearest":
            raise GraphError("The ONNX graphs know the tiny autoencoder of TAESD only, not this one.")
        self.graph, self.config = Graph("tiny VAE", shapes), config

    def decoder(self) -> onnx.ModelProto:
        """(z_BCHW) -> image_BCHW in [-1, 1]; z scaled as the UNet has it."""
        graph, config, place = self.graph, self.config, 2
        z = graph.scaled("z_BCHW", 1 / config.get("scaling_factor", 1.0))
        x = graph.scaled(graph.add("Tanh", graph.scaled(z, 1 / LIMIT)), LIMIT)
        x = graph.add("Relu", self.conv(x, "decoder", 0))
        counts = config["num_decoder_blocks"]
        for level, count in enumerate(counts):
            x, place = self.blocks(x, "decoder", place, count)
            if level + 1 < len(counts):
                twice = graph.constant(np.array([1, 1, 2, 2], np.float32))
                x, place = graph.resize(x, scales=twice), place + 1
            x, place = self.conv(x, "decoder", place), place + 1
        image = graph.add("Sub", graph.scaled(x, 2), graph.full(1, 1))
        image = graph.add("Clip", image, *(graph.constant(np.array(side, np.float32)) for side in (-1, 1)))
        inputs = {"z_BCHW": (TensorProto.FLOAT, ["B", config["latent_channels"], "H", "W"])}
        return graph.finish(inputs, {"image_BCHW": (image, ["B", 3, "8H", "8W"])})

    def encoder(self) -> onnx.ModelProto:
        """(image_BCHW in [-1, 1]) -> z_BCHW, scaled as the UNet has it."""
        graph, config, place = self.graph, self.config, 0
        x = graph.scaled(graph.add("Add", "image_BCHW", graph.full(1, 1)), 0.5)
        for level, count in enumerate(config["num_encoder_blocks"]):
            x, place = self.conv(x, "encoder", place, stride=1 if level == 0 else 2), place + 1
            x, place = self.blocks(x, "encoder", place, count)
        z = graph.scaled(self.conv(x, "encoder", place), config.get("scaling_factor", 1.0))
        inputs = {"image_BCHW": (TensorProto.FLOAT, ["B", 3, "8H", "8W"])}
        return graph.finish(inputs, {"z_BCHW": (z, ["B", config["latent_channels"], "H", "W"])})

    def conv(self, x: str, side: str, place: int, *, stride: int = 1) -> str:
        """The convolution of 3 x 3 at a place in the row of layers, which need not have a bias."""
        return self.graph.conv(x, f"{side}.layers.{place}", stride=stride)

    def blocks(self, x: str, side: str, place: int, count: int) -> tuple[str, int]:
        """Residual blocks of three convolutions; the place after them."""
        for number in range(place, place + count):
            hidden, name = x, f"{side}.layers.{number}.conv"
            for layer in (0, 2):
                hidden = self.graph.add("Relu", self.graph.conv(hidden, f"{name}.{layer}"))
            x = self.graph.add("Relu", self.graph.add("Add", self.graph.conv(hidden, f"{name}.4"), x))
        return x, place + count
