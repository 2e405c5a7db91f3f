"""The UNet of the Stable Diffusion 1 and 2 families (diffusers' `UNet2DConditionModel`) as an ONNX graph.

Rombach et al. 2022, section 3; the names are the checkpoint's own. Shape legend: see `graph.py`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto

from fewstep.errors import CheckpointError
from fewstep.export.graph import Graph


@dataclass(frozen=True)
class Level:
    """What the blocks of one resolution share: attention or not, its heads, its transformer depth."""

    attends: bool
    heads: int
    depth: int


class UNetGraph:
    """Writes the nodes; `build` is the way in."""

    def __init__(self, config: Mapping[str, Any], shapes: Mapping[str, Sequence[int]]) -> None:
        self.config, self.graph = config, Graph("UNet", shapes)
        self.groups, self.eps = config["norm_num_groups"], config["norm_eps"]
        self.temb_B = ""
        self.text_kv: dict[str, tuple[str, str]] = {}

    def split_text(self) -> int:
        """Cut the input `text_kv_BLK` into the keys and values of every block; returns its width."""
        names = text_projections(self.graph.shapes)
        widths = [self.graph.shapes[name][0] for name in names]
        parts = self.graph.add("Split", "text_kv_BLK", self.graph.integers(*widths), outputs=len(names), axis=-1)
        pieces = [parts] + [f"{parts}.{k}" for k in range(1, len(names))]
        blocks = [name.removesuffix(".to_k.weight") for name in names[::2]]
        self.text_kv = dict(zip(blocks, zip(pieces[::2], pieces[1::2], strict=True), strict=True))
        return sum(widths)

    def levels(self) -> list[Level]:
        """One per resolution, from fine to coarse."""
        count = len(self.config["block_out_channels"])

        def spread(value: Any) -> list[int]:
            return list(value) if isinstance(value, (list, tuple)) else [value] * count

        heads = spread(self.config.get("num_attention_heads") or self.config["attention_head_dim"])
        depth = spread(self.config.get("transformer_layers_per_block", 1))
        kinds = [kind.startswith("CrossAttn") for kind in self.config["down_block_types"]]
        return [Level(*row) for row in zip(kinds, heads, depth, strict=True)]

    def time_embedding(self, timestep_B: str) -> str:
        """Sinusoids of the timestep through two linear layers, already through the SiLU that every block starts with."""
        graph, width = self.graph, self.config["block_out_channels"][0]
        half = width // 2
        exponent = np.arange(half, dtype=np.float32) / np.float32(half - self.config["freq_shift"])
        frequency = np.exp(np.float32(-np.log(10000)) * exponent).reshape(1, half)
        angle = graph.add("Mul", graph.reshape(timestep_B, -1, 1), graph.constant(frequency))
        waves = [graph.add("Sin", angle), graph.add("Cos", angle)]
        embedded = graph.add("Concat", *(waves[::-1] if self.config["flip_sin_to_cos"] else waves), axis=-1)
        hidden = graph.silu(graph.gemm(embedded, "time_embedding.linear_1"))
        return graph.silu(graph.gemm(hidden, "time_embedding.linear_2"))

    def resnet(self, x: str, name: str) -> str:
        """Two normalised convolutions with the timestep added between, beside a shortcut."""
        graph = self.graph
        hidden = graph.silu(graph.group_norm(x, f"{name}.norm1", groups=self.groups, eps=self.eps))
        hidden = graph.conv(hidden, f"{name}.conv1")
        shift = graph.gemm(self.temb_B, f"{name}.time_emb_proj")
        hidden = graph.add("Add", hidden, graph.reshape(shift, 0, -1, 1, 1))
        hidden = graph.silu(graph.group_norm(hidden, f"{name}.norm2", groups=self.groups, eps=self.eps))
        hidden = graph.conv(hidden, f"{name}.conv2")
        shortcut = graph.conv(x, f"{name}.conv_shortcut") if f"{name}.conv_shortcut.weight" in graph.shapes else x
        return graph.add("Add", hidden, shortcut)

    def attend(self, x_BLD: str, name: str, heads: int, *, text: bool = False) -> str:
        """Attention of `x` to itself or to the text."""
        graph = self.graph
        q = graph.matmul(x_BLD, f"{name}.to_q.weight")
        if text:
            k, v = self.text_kv[name]
        else:
            k, v = (graph.matmul(x_BLD, f"{name}.to_{part}.weight") for part in "kv")
        return graph.linear(graph.attention(q, k, v, heads=heads), f"{name}.to_out.0")

    def feed_forward(self, x_BLD: str, name: str) -> str:
        """GEGLU (Shazeer 2020) and a projection."""
        graph = self.graph
        both = graph.linear(x_BLD, f"{name}.net.0.proj")
        halves = graph.add("Split", both, outputs=2, axis=-1, num_outputs=2)
        gated = graph.add("Mul", halves, graph.fused("Gelu", f"{halves}.1"))
        return graph.linear(gated, f"{name}.net.2")

    def transformer(self, x_BCHW: str, name: str, level: Level) -> str:
        """Self-attention, attention to the text, feed-forward; over the pixels as tokens."""
        graph = self.graph
        normal_BCHW = graph.group_norm(x_BCHW, f"{name}.norm", groups=self.groups, eps=1e-6)
        x = self.project(graph.tokens(normal_BCHW), f"{name}.proj_in")
        for index in range(level.depth):
            block = f"{name}.transformer_blocks.{index}"
            out = self.attend(graph.layer_norm(x, f"{block}.norm1"), f"{block}.attn1", level.heads)
            x = graph.add("Add", out, x)
            out = self.attend(graph.layer_norm(x, f"{block}.norm2"), f"{block}.attn2", level.heads, text=True)
            x = graph.add("Add", out, x)
            out = self.feed_forward(graph.layer_norm(x, f"{block}.norm3"), f"{block}.ff")
            x = graph.add("Add", out, x)
        return graph.add("Add", graph.pixels(self.project(x, f"{name}.proj_out"), x_BCHW), x_BCHW)

    def project(self, x_BLD: str, name: str) -> str:
        """A linear layer; where the checkpoint has a 1x1 convolution, its weight is taken as a matrix."""
        graph = self.graph
        graph.weight(f"{name}.weight", shape=graph.shapes[f"{name}.weight"][:2])
        return graph.linear(x_BLD, name)

    def down(self, x: str, skips: list[str]) -> str:
        """From fine to coarse; appends every intermediate result to `skips`."""
        levels = self.levels()
        for index, level in enumerate(levels):
            block = f"down_blocks.{index}"
            for layer in range(self.config["layers_per_block"]):
                x = self.resnet(x, f"{block}.resnets.{layer}")
                x = self.transformer(x, f"{block}.attentions.{layer}", level) if level.attends else x
                skips.append(x)
            if index + 1 < len(levels):
                x = self.graph.conv(x, f"{block}.downsamplers.0.conv", stride=2)
                skips.append(x)
        return x

    def middle(self, x: str) -> str:
        """Residual block, transformer, residual block at the coarsest resolution."""
        last = self.levels()[-1]
        x = self.resnet(x, "mid_block.resnets.0")
        x = self.transformer(x, "mid_block.attentions.0", last)
        return self.resnet(x, "mid_block.resnets.1")

    def up(self, x: str, skips: list[str]) -> str:
        """From coarse to fine, taking the skips from the end."""
        levels = self.levels()[::-1]
        for index, level in enumerate(levels):
            block = f"up_blocks.{index}"
            for layer in range(self.config["layers_per_block"] + 1):
                x = self.resnet(self.graph.add("Concat", x, skips.pop(), axis=1), f"{block}.resnets.{layer}")
                x = self.transformer(x, f"{block}.attentions.{layer}", level) if level.attends else x
            if index + 1 < len(levels):
                x = self.upsample(x, skips[-1], f"{block}.upsamplers.0.conv")
        return x

    def upsample(self, x: str, like: str, name: str) -> str:
        """Nearest neighbour to the size of `like` (twice as large, or one less where the size was odd), then a convolution."""
        graph = self.graph
        size = graph.add("Concat", graph.add("Shape", x, end=2), graph.add("Shape", like, start=2), axis=0)
        modes = {"mode": "nearest", "nearest_mode": "floor", "coordinate_transformation_mode": "asymmetric"}
        return graph.conv(graph.add("Resize", x, "", "", size, **modes), name)

    def build(self) -> onnx.ModelProto:
        """The whole graph: (z_BCHW, timestep_B, text_kv_BLK) -> output_BCHW."""
        graph, skips = self.graph, []
        self.temb_B, text_width = self.time_embedding("timestep_B"), self.split_text()
        x = graph.conv("z_BCHW", "conv_in")
        skips.append(x)
        x = self.up(self.middle(self.down(x, skips)), skips)
        x = graph.silu(graph.group_norm(x, "conv_norm_out", groups=self.groups, eps=self.eps))
        out = graph.conv(x, "conv_out")
        inputs = {
            "z_BCHW": (TensorProto.FLOAT, ["B", self.config["in_channels"], "H", "W"]),
            "timestep_B": (TensorProto.FLOAT, ["B"]),
            "text_kv_BLK": (TensorProto.FLOAT, ["B", "L", text_width]),
        }
        return graph.finish(inputs, {"output_BCHW": (out, ["B", self.config["out_channels"], "H", "W"])})


def text_projections(shapes: Mapping[str, Sequence[int]]) -> list[str]:
    """The weights of the cross-attention's keys and values, in the order of `text_kv_BLK`: key, value, key, value ..."""
    keys = sorted(name for name in shapes if name.endswith(".attn2.to_k.weight"))
    return [name.replace("to_k", f"to_{part}") for name in keys for part in "kv"]


def text_kv_graph(config: Mapping[str, Any], shapes: Mapping[str, Sequence[int]]) -> onnx.ModelProto:
    """(text_BLD) -> text_kv_BLK: every block's keys and values of the text, which are the same at all steps of a picture."""
    graph = Graph("UNet", shapes)
    names = text_projections(shapes)
    out = graph.add("Concat", *(graph.matmul("text_BLD", name) for name in names), axis=-1)
    inputs = {"text_BLD": (TensorProto.FLOAT, ["B", "L", config["cross_attention_dim"]])}
    return graph.finish(inputs, {"text_kv_BLK": (out, ["B", "L", sum(shapes[name][0] for name in names)])})


def unet_graph(config: Mapping[str, Any], shapes: Mapping[str, Sequence[int]]) -> onnx.ModelProto:
    """The graph of a UNet from its `config.json` and the shapes of its weights; raises CheckpointError for other networks."""
    known = {"CrossAttnDownBlock2D", "DownBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"}
    strange = {*config["down_block_types"], *config["up_block_types"]} - known
    if strange or config.get("act_fn", "silu") != "silu" or config.get("addition_embed_type"):
        raise CheckpointError(f"The ONNX graph knows the UNets of SD 1 and 2, not this one ({', '.join(sorted(strange)) or 'SDXL'}).")
    return UNetGraph(config, shapes).build()
