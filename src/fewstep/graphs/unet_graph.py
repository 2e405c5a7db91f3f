"""The UNet of Stable Diffusion 1, 2 and XL and their kin (diffusers' `UNet2DConditionModel`) as two ONNX graphs.

Rombach et al. 2022, section 3; size conditions: SDXL (arXiv:2307.01952, section 2.2); guidance embedding: LCM
(arXiv:2310.04378, section 4.2). Which blocks have attention, and of how many layers, is read from the weights.
The cross-attention's keys and values depend on the text only, so they are a graph of
their own, run once per prompt and not at every step.
Shapes: B batch, C channels, H and W height and width, L tokens, D features, K all blocks' keys and values side by side.
"""

from collections.abc import Callable, Mapping
from functools import partial
from itertools import count
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto

from fewstep.errors import GraphError
from fewstep.graphs.channels_last import ChannelsLast
from fewstep.graphs.graph import Graph, Shapes
from fewstep.graphs.winograd import DOMAIN

_BLOCKS = {"CrossAttnDownBlock2D", "DownBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"}
_MIDDLES = {"UNetMidBlock2DCrossAttn", "UNetMidBlock2D", None}
DEFAULTS: dict[str, Any] = {
    "attention_head_dim": 8,
    "flip_sin_to_cos": True,
    "freq_shift": 0,
    "layers_per_block": 2,
    "mid_block_type": "UNetMidBlock2DCrossAttn",
    "norm_eps": 1e-5,
    "norm_num_groups": 32,
}
"""Of diffusers' `UNet2DConditionModel`, where a config does not say."""

#: Settings that would add or change layers, and the values under which they do not.
_PLAIN: dict[str, tuple[Any, ...]] = {
    "act_fn": ("silu",),
    "addition_embed_type": (None, "text_time"),
    "attention_type": ("default",),
    "class_embed_type": (None,),
    "downsample_padding": (1,),
    "dual_cross_attention": (False,),
    "encoder_hid_dim_type": (None,),
    "mid_block_scale_factor": (1,),
    "only_cross_attention": (False,),
    "resnet_time_scale_shift": ("default",),
    "time_embedding_type": ("positional",),
}


def unet_graph(
    config: Mapping[str, Any], shapes: Shapes, writer: Callable[[str, Shapes], Graph] = Graph
) -> onnx.ModelProto:
    """(z_BCHW, timestep_B float32, text_kv_BLK) -> output_BCHW, any H and W; SDXL's also pooled_BD and time_ids_B6,
    one with guidance embedding also guidance_BD (`sampling.guidance.guidance_embedding`).

    `writer` is what writes the nodes.
    Raises GraphError for a UNet that this graph does not know.
    """
    config = DEFAULTS | dict(config)
    kinds = {*config["down_block_types"], *config["up_block_types"]} - _BLOCKS | {config["mid_block_type"]} - _MIDDLES
    strange = [key for key, values in _PLAIN.items() if config.get(key, values[0]) not in values]
    if kinds or strange:
        found = ", ".join([*sorted(kinds), *strange])
        raise GraphError(f"The ONNX graph knows the UNets of SD 1, 2 and XL only; this one differs in {found}.")
    return _UNet(config, writer("UNet", shapes)).build()


def winograd_unet_graph(config: Mapping[str, Any], shapes: Shapes) -> onnx.ModelProto | None:
    """The same with Winograd's convolutions (`ChannelsLast`), which want larger weights; None where none is wide."""
    side = config.get("sample_size")
    writer = partial(ChannelsLast, z="z_BCHW", side=side if isinstance(side, int) else 64)
    graph = unet_graph(config, shapes, writer)
    return graph if any(node.domain == DOMAIN for node in graph.graph.node) else None


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

    def __init__(self, config: Mapping[str, Any], graph: Graph) -> None:
        self.config, self.graph = config, graph
        self.groups, self.eps = config["norm_num_groups"], config["norm_eps"]
        self.inputs: dict[str, Any] = {
            "z_BCHW": (TensorProto.FLOAT, ["B", config["in_channels"], "H", "W"]),
            "timestep_B": (TensorProto.FLOAT, ["B"]),
        }
        self.temb_BD = self.time_embedding()
        self.text_kv: dict[str, tuple[str, str]] = {}

    def build(self) -> onnx.ModelProto:
        """The whole graph."""
        graph, text_width = self.graph, self.split_text()
        x = graph.conv(graph.enter("z_BCHW"), "conv_in")
        skips = [x]
        x = self.up(self.middle(self.down(x, skips)), skips)
        x = graph.silu(graph.group_norm(x, "conv_norm_out", groups=self.groups, eps=self.eps))
        out = graph.leave(graph.conv(x, "conv_out"))
        inputs = self.inputs | {"text_kv_BLK": (TensorProto.FLOAT, ["B", "L", text_width])}
        return graph.finish(inputs, {"output_BCHW": (out, ["B", self.config["out_channels"], "H", "W"])})

    def heads(self) -> list[int]:
        """Of each resolution, from fine to coarse. What diffusers calls attention_head_dim is the number of heads."""
        value = self.config.get("num_attention_heads") or self.config["attention_head_dim"]
        return list(value) if isinstance(value, (list, tuple)) else [value] * len(self.config["block_out_channels"])

    def time_embedding(self) -> str:
        """Of timestep, guidance and sizes, through the SiLU with which every block begins."""
        config, width = self.config, self.config["block_out_channels"][0]
        embedded = self.waves("timestep_B", width)
        if config.get("time_cond_proj_dim") is not None:
            self.inputs["guidance_BD"] = (TensorProto.FLOAT, ["B", config["time_cond_proj_dim"]])
            told = self.graph.matmul("guidance_BD", "time_embedding.cond_proj.weight")
            embedded = self.graph.add("Add", embedded, told)
        time_BD = self.two_layers(embedded, "time_embedding")
        if config.get("addition_embed_type") is not None:
            time_BD = self.graph.add("Add", time_BD, self.two_layers(self.sizes(), "add_embedding"))
        return self.graph.silu(time_BD)

    def waves(self, number: str, width: int) -> str:
        """Numbers as sinusoids, (N,) -> (N, width)."""
        graph, half = self.graph, width // 2
        exponent = np.arange(half, dtype=np.float32) / np.float32(half - self.config["freq_shift"])
        rates = np.exp(np.float32(-np.log(10000)) * exponent)[None]
        angle = graph.add("Mul", graph.reshape(number, -1, 1), graph.constant(rates))
        waves = [graph.add("Sin", angle), graph.add("Cos", angle)]
        return graph.add("Concat", *(waves[::-1] if self.config["flip_sin_to_cos"] else waves), axis=-1)

    def sizes(self) -> str:
        """The pooled text beside the six sizes, each as sinusoids."""
        width = self.config["addition_time_embed_dim"]
        pooled = self.graph.shapes["add_embedding.linear_1.weight"][1] - 6 * width
        self.inputs["pooled_BD"] = (TensorProto.FLOAT, ["B", pooled])
        self.inputs["time_ids_B6"] = (TensorProto.FLOAT, ["B", 6])
        sizes = self.graph.reshape(self.waves("time_ids_B6", width), -1, 6 * width)
        return self.graph.add("Concat", "pooled_BD", sizes, axis=-1)

    def two_layers(self, x_BD: str, name: str) -> str:
        """A linear layer, SiLU, and another."""
        hidden = self.graph.silu(self.graph.gemm(x_BD, f"{name}.linear_1"))
        return self.graph.gemm(hidden, f"{name}.linear_2")

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
        levels = self.heads()
        for index, heads in enumerate(levels):
            block = f"down_blocks.{index}"
            for layer in range(self.config["layers_per_block"]):
                x = self.residual(x, f"{block}.resnets.{layer}", index)
                x = self.transformer(x, f"{block}.attentions.{layer}", heads)
                skips.append(x)
            if index + 1 < len(levels):
                x = self.graph.conv(x, f"{block}.downsamplers.0.conv", level=index, stride=2)
                skips.append(x)
        return x

    def middle(self, x: str) -> str:
        """Residual block, transformer, residual block at the coarsest resolution; SSD-1B has the first alone."""
        layer = 0
        while f"mid_block.resnets.{layer}.conv1.weight" in self.graph.shapes:
            x = self.residual(x, f"mid_block.resnets.{layer}", len(self.heads()) - 1)
            x = self.transformer(x, f"mid_block.attentions.{layer}", self.heads()[-1])
            layer += 1
        return x

    def up(self, x: str, skips: list[str]) -> str:
        """From coarse to fine, with the skips from the last to the first."""
        levels = self.heads()[::-1]
        for index, heads in enumerate(levels):
            block, level = f"up_blocks.{index}", len(levels) - 1 - index
            for layer in range(self.config["layers_per_block"] + 1):
                x = self.graph.add("Concat", x, skips.pop(), axis=self.graph.channels)
                x = self.residual(x, f"{block}.resnets.{layer}", level)
                x = self.transformer(x, f"{block}.attentions.{layer}", heads)
            if index + 1 < len(levels):
                x = self.graph.resize_like(x, skips[-1], level - 1)
                x = self.graph.conv(x, f"{block}.upsamplers.0.conv", level=level - 1)
        return x

    def residual(self, x: str, name: str, level: int) -> str:
        """A residual block with the timestep."""
        return self.graph.residual(x, name, groups=self.groups, eps=self.eps, temb_BD=self.temb_BD, level=level)

    def transformer(self, x_BCHW: str, name: str, heads: int) -> str:
        """Self-attention, attention to the text and feed-forward over the pixels as tokens, each added; nothing where
        the model has no such layers.
        """
        graph = self.graph
        if f"{name}.norm.weight" not in graph.shapes:
            return x_BCHW
        normal_BCHW = graph.group_norm(x_BCHW, f"{name}.norm", groups=self.groups, eps=1e-6)
        x = self.project(graph.tokens(normal_BCHW), f"{name}.proj_in")
        for index in count():
            block = f"{name}.transformer_blocks.{index}"
            if f"{block}.norm1.weight" not in graph.shapes:
                break
            normal = graph.layer_norm(x, f"{block}.norm1")
            x = graph.add("Add", self.attend(normal, f"{block}.attn1", heads), x)
            normal = graph.layer_norm(x, f"{block}.norm2")
            x = graph.add("Add", self.attend(normal, f"{block}.attn2", heads), x)
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
        value, gate = graph.halves(x_BLD, f"{name}.net.0.proj")
        return graph.linear(graph.add("Mul", value, graph.gelu(gate)), f"{name}.net.2")
