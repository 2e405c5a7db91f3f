"""The UNet of Stable Diffusion 1 and 2 (diffusers' `UNet2DConditionModel`) as two ONNX graphs.

Rombach et al. 2022, section 3. The cross-attention's keys and values depend on the text only, so they are a graph of
their own, run once per prompt and not at every step.
Shapes: B batch, C channels, H and W height and width, L tokens, D features, K all blocks' keys and values side by side.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto

from fewstep.errors import CheckpointError
from fewstep.export.graph import Graph, Shapes

_BLOCKS = {"CrossAttnDownBlock2D", "DownBlock2D", "CrossAttnUpBlock2D", "UpBlock2D", "UNetMidBlock2DCrossAttn"}
#: Settings that would add or change layers, and the values under which they do not.
_PLAIN: dict[str, tuple[Any, ...]] = {
    "act_fn": ("silu",),
    "addition_embed_type": (None,),
    "attention_type": ("default",),
    "class_embed_type": (None,),
    "downsample_padding": (1,),
    "dual_cross_attention": (False,),
    "encoder_hid_dim_type": (None,),
    "mid_block_scale_factor": (1,),
    "only_cross_attention": (False,),
    "resnet_time_scale_shift": ("default",),
    "reverse_transformer_layers_per_block": (None,),
    "time_cond_proj_dim": (None,),
    "time_embedding_type": ("positional",),
}


@dataclass(frozen=True)
class Level:
    """What the blocks of one resolution share: attention or not, its heads, its transformer layers."""

    attends: bool
    heads: int
    depth: int


def unet_graph(config: Mapping[str, Any], shapes: Shapes) -> onnx.ModelProto:
    """(z_BCHW, timestep_B float32, text_kv_BLK) -> output_BCHW, any H and W.

    Raises CheckpointError for a UNet that this graph does not know: SDXL's, one with guidance embedding and others.
    """
    middle = config.get("mid_block_type", "UNetMidBlock2DCrossAttn")
    kinds = {*config["down_block_types"], *config["up_block_types"], middle}
    strange = [key for key, values in _PLAIN.items() if config.get(key, values[0]) not in values]
    if kinds - _BLOCKS or strange:
        found = ", ".join([*sorted(kinds - _BLOCKS), *strange])
        raise CheckpointError(f"The ONNX graph knows the UNets of SD 1 and 2 only; this one differs in {found}.")
    return _UNet(config, shapes).build()


def text_kv_graph(config: Mapping[str, Any], shapes: Shapes) -> onnx.ModelProto:
    """(text_BLD) -> text_kv_BLK: the keys and values of the text for every block, the same at all steps."""
    graph, names = Graph("UNet", shapes), text_projections(shapes)
    out = graph.add("Concat", *(graph.matmul("text_BLD", name) for name in names), axis=-1)
    inputs = {"text_BLD": (TensorProto.FLOAT, ["B", "L", config["cross_attention_dim"]])}
    return graph.finish(inputs, {"text_kv_BLK": (out, ["B", "L", sum(shapes[name][0] for name in names)])})


def text_projections(shapes: Shapes) -> list[str]:
    """The weights of the cross-attention's keys and values, in the order of `text_kv_BLK`: key, value, key ..."""
    keys = sorted(name for name in shapes if name.endswith(".attn2.to_k.weight"))
    return [name.replace("to_k", f"to_{part}") for name in keys for part in "kv"]


class _UNet:
    """Writes the nodes; `build` is the way in."""

    def __init__(self, config: Mapping[str, Any], shapes: Shapes) -> None:
        self.config, self.graph = config, Graph("UNet", shapes)
        self.groups, self.eps = config["norm_num_groups"], config["norm_eps"]
        self.temb_BD = self.time_embedding("timestep_B")
        self.text_kv: dict[str, tuple[str, str]] = {}

    def build(self) -> onnx.ModelProto:
        """The whole graph."""
        graph, text_width = self.graph, self.split_text()
        x = graph.conv("z_BCHW", "conv_in")
        skips = [x]
        x = self.up(self.middle(self.down(x, skips)), skips)
        x = graph.silu(graph.group_norm(x, "conv_norm_out", groups=self.groups, eps=self.eps))
        out = graph.conv(x, "conv_out")
        inputs = {
            "z_BCHW": (TensorProto.FLOAT, ["B", self.config["in_channels"], "H", "W"]),
            "timestep_B": (TensorProto.FLOAT, ["B"]),
            "text_kv_BLK": (TensorProto.FLOAT, ["B", "L", text_width]),
        }
        return graph.finish(inputs, {"output_BCHW": (out, ["B", self.config["out_channels"], "H", "W"])})

    def levels(self) -> list[Level]:
        """One per resolution, from fine to coarse. What diffusers calls attention_head_dim is the number of heads."""
        count = len(self.config["block_out_channels"])

        def spread(value: Any) -> list[int]:
            return list(value) if isinstance(value, (list, tuple)) else [value] * count

        heads = spread(self.config.get("num_attention_heads") or self.config["attention_head_dim"])
        depth = spread(self.config.get("transformer_layers_per_block", 1))
        attends = [kind.startswith("CrossAttn") for kind in self.config["down_block_types"]]
        return [Level(*row) for row in zip(attends, heads, depth, strict=True)]

    def time_embedding(self, timestep_B: str) -> str:
        """Sinusoids through two linear layers, and through the SiLU with which every block begins."""
        graph, half = self.graph, self.config["block_out_channels"][0] // 2
        exponent = np.arange(half, dtype=np.float32) / np.float32(half - self.config["freq_shift"])
        rates = np.exp(np.float32(-np.log(10000)) * exponent)[None]
        angle_BD = graph.add("Mul", graph.reshape(timestep_B, -1, 1), graph.constant(rates))
        waves = [graph.add("Sin", angle_BD), graph.add("Cos", angle_BD)]
        embedded = graph.add("Concat", *(waves[::-1] if self.config["flip_sin_to_cos"] else waves), axis=-1)
        hidden = graph.silu(graph.gemm(embedded, "time_embedding.linear_1"))
        return graph.silu(graph.gemm(hidden, "time_embedding.linear_2"))

    def split_text(self) -> int:
        """Cuts the input text_kv_BLK into every block's keys and values; returns its width."""
        names = text_projections(self.graph.shapes)
        widths = [self.graph.shapes[name][0] for name in names]
        first = self.graph.add("Split", "text_kv_BLK", self.graph.integers(*widths), outputs=len(names), axis=-1)
        parts = [first, *(f"{first}.{index}" for index in range(1, len(names)))]
        blocks = [name.removesuffix(".to_k.weight") for name in names[::2]]
        self.text_kv = dict(zip(blocks, zip(parts[::2], parts[1::2], strict=True), strict=True))
        return sum(widths)

    def down(self, x: str, skips: list[str]) -> str:
        """From fine to coarse; every intermediate result joins `skips`."""
        levels = self.levels()
        for index, level in enumerate(levels):
            block = f"down_blocks.{index}"
            for layer in range(self.config["layers_per_block"]):
                x = self.residual(x, f"{block}.resnets.{layer}")
                x = self.transformer(x, f"{block}.attentions.{layer}", level) if level.attends else x
                skips.append(x)
            if index + 1 < len(levels):
                x = self.graph.conv(x, f"{block}.downsamplers.0.conv", stride=2)
                skips.append(x)
        return x

    def middle(self, x: str) -> str:
        """Residual block, transformer, residual block at the coarsest resolution."""
        x = self.transformer(self.residual(x, "mid_block.resnets.0"), "mid_block.attentions.0", self.levels()[-1])
        return self.residual(x, "mid_block.resnets.1")

    def up(self, x: str, skips: list[str]) -> str:
        """From coarse to fine, with the skips from the last to the first."""
        levels = self.levels()[::-1]
        for index, level in enumerate(levels):
            block = f"up_blocks.{index}"
            for layer in range(self.config["layers_per_block"] + 1):
                x = self.residual(self.graph.add("Concat", x, skips.pop(), axis=1), f"{block}.resnets.{layer}")
                x = self.transformer(x, f"{block}.attentions.{layer}", level) if level.attends else x
            if index + 1 < len(levels):
                x = self.upsample(x, skips[-1], f"{block}.upsamplers.0.conv")
        return x

    def upsample(self, x: str, like: str, name: str) -> str:
        """To the size of the skip that comes next (twice as large, or one less where the size was odd)."""
        graph = self.graph
        size = graph.add("Concat", graph.add("Shape", x, end=2), graph.add("Shape", like, start=2), axis=0)
        return graph.conv(graph.resize(x, size=size), name)

    def residual(self, x: str, name: str) -> str:
        """A residual block with the timestep."""
        return self.graph.residual(x, name, groups=self.groups, eps=self.eps, temb_BD=self.temb_BD)

    def transformer(self, x_BCHW: str, name: str, level: Level) -> str:
        """Self-attention, attention to the text and feed-forward over the pixels as tokens, each added."""
        graph = self.graph
        normal_BCHW = graph.group_norm(x_BCHW, f"{name}.norm", groups=self.groups, eps=1e-6)
        x = self.project(graph.tokens(normal_BCHW), f"{name}.proj_in")
        for index in range(level.depth):
            block = f"{name}.transformer_blocks.{index}"
            normal = graph.layer_norm(x, f"{block}.norm1")
            x = graph.add("Add", self.attend(normal, f"{block}.attn1", level.heads), x)
            normal = graph.layer_norm(x, f"{block}.norm2")
            x = graph.add("Add", self.attend(normal, f"{block}.attn2", level.heads), x)
            x = graph.add("Add", self.feed_forward(graph.layer_norm(x, f"{block}.norm3"), f"{block}.ff"), x)
        return graph.add("Add", graph.pixels(self.project(x, f"{name}.proj_out"), x_BCHW), x_BCHW)

    def project(self, x_BLD: str, name: str) -> str:
        """A linear layer; where the checkpoint has a convolution of one pixel, its weight is taken as a matrix."""
        self.graph.weight(f"{name}.weight", shape=self.graph.shapes[f"{name}.weight"][:2])
        return self.graph.linear(x_BLD, name)

    def attend(self, x_BLD: str, name: str, heads: int) -> str:
        """Attention of the tokens to the text where it has keys for this layer, else to one another."""
        graph = self.graph
        q = graph.matmul(x_BLD, f"{name}.to_q.weight")
        own = name not in self.text_kv
        k, v = (graph.matmul(x_BLD, f"{name}.to_{p}.weight") for p in "kv") if own else self.text_kv[name]
        return graph.linear(graph.attention(q, k, v, heads=heads), f"{name}.to_out.0")

    def feed_forward(self, x_BLD: str, name: str) -> str:
        """GEGLU (Shazeer 2020, arXiv:2002.05202), then back to the width of the tokens."""
        graph = self.graph
        value = graph.add("Split", graph.linear(x_BLD, f"{name}.net.0.proj"), outputs=2, axis=-1, num_outputs=2)
        return graph.linear(graph.add("Mul", value, graph.gelu(f"{value}.1")), f"{name}.net.2")
