"""The autoencoder (diffusers' `AutoencoderKL`) as two ONNX graphs: pictures to latents and back.

Rombach et al. 2022, appendix D.1. Shapes: B batch, C channels, H and W height and width.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto

from fewstep.errors import GraphError
from fewstep.graphs.graph import Graph, Shapes

EPS = 1e-6
"""Of every group norm here; it is not in the config."""


class VaeGraph:
    """Writes the nodes of one of the two graphs."""

    def __init__(self, config: Mapping[str, Any], shapes: Shapes) -> None:
        """Raises GraphError for another autoencoder than AutoencoderKL."""
        kinds = {*config["down_block_types"], *config["up_block_types"]} - {"DownEncoderBlock2D", "UpDecoderBlock2D"}
        if kinds or config.get("act_fn", "silu") != "silu" or config.get("shift_factor"):
            raise GraphError("The ONNX graphs know the autoencoder of Stable Diffusion only, not this one.")
        self.graph, self.config = Graph("VAE", shapes), config
        self.levels, self.groups = len(config["block_out_channels"]), config["norm_num_groups"]

    def decoder(self) -> onnx.ModelProto:
        """(z_BCHW) -> image_BCHW in [-1, 1]; z scaled as the UNet has it."""
        graph, config = self.graph, self.config
        x = graph.scaled("z_BCHW", 1 / config["scaling_factor"])
        x = graph.conv(x, "post_quant_conv") if config.get("use_post_quant_conv", True) else x
        x = self.middle(graph.conv(x, "decoder.conv_in"), "decoder.mid_block")
        for level in range(self.levels):
            block = f"decoder.up_blocks.{level}"
            for layer in range(config["layers_per_block"] + 1):
                x = self.residual(x, f"{block}.resnets.{layer}")
            if level + 1 < self.levels:
                twice = graph.constant(np.array([1, 1, 2, 2], np.float32))
                x = graph.conv(graph.resize(x, scales=twice), f"{block}.upsamplers.0.conv")
        x = graph.conv(self.normal(x, "decoder.conv_norm_out"), "decoder.conv_out")
        image = graph.add("Clip", x, *(graph.constant(np.array(side, np.float32)) for side in (-1, 1)))
        inputs = {"z_BCHW": (TensorProto.FLOAT, ["B", config["latent_channels"], "H", "W"])}
        return graph.finish(inputs, {"image_BCHW": (image, ["B", config["out_channels"], "8H", "8W"])})

    def encoder(self) -> onnx.ModelProto:
        """(image_BCHW in [-1, 1]) -> z_BCHW: the mean of the posterior, scaled as the UNet has it."""
        graph, config = self.graph, self.config
        x = graph.conv("image_BCHW", "encoder.conv_in")
        for level in range(self.levels):
            block = f"encoder.down_blocks.{level}"
            for layer in range(config["layers_per_block"]):
                x = self.residual(x, f"{block}.resnets.{layer}")
            if level + 1 < self.levels:
                x = graph.conv(x, f"{block}.downsamplers.0.conv", stride=2, pads=[0, 0, 1, 1])
        x = self.normal(self.middle(x, "encoder.mid_block"), "encoder.conv_norm_out")
        x = graph.conv(x, "encoder.conv_out")
        x = graph.conv(x, "quant_conv") if config.get("use_quant_conv", True) else x
        mean = graph.scaled(graph.add("Split", x, outputs=2, axis=1, num_outputs=2), config["scaling_factor"])
        inputs = {"image_BCHW": (TensorProto.FLOAT, ["B", config["in_channels"], "8H", "8W"])}
        return graph.finish(inputs, {"z_BCHW": (mean, ["B", config["latent_channels"], "H", "W"])})

    def normal(self, x: str, name: str) -> str:
        """Group norm and SiLU."""
        return self.graph.silu(self.graph.group_norm(x, name, groups=self.groups, eps=EPS))

    def residual(self, x: str, name: str) -> str:
        """A residual block without timestep."""
        return self.graph.residual(x, name, groups=self.groups, eps=EPS)

    def middle(self, x: str, name: str) -> str:
        """Residual block, attention, residual block at the coarsest resolution."""
        x = self.residual(x, f"{name}.resnets.0")
        x = self.attend(x, f"{name}.attentions.0") if self.config.get("mid_block_add_attention", True) else x
        return self.residual(x, f"{name}.resnets.1")

    def attend(self, x_BCHW: str, name: str) -> str:
        """Attention of every pixel to every other, with one head."""
        graph = self.graph
        normal = graph.tokens(graph.group_norm(x_BCHW, f"{name}.group_norm", groups=self.groups, eps=EPS))
        q, k, v = (graph.linear(normal, f"{name}.to_{part}") for part in "qkv")
        out = graph.linear(graph.attention(q, k, v, heads=1), f"{name}.to_out.0")
        return graph.add("Add", graph.pixels(out, x_BCHW), x_BCHW)
