"""A small writer of ONNX graphs whose weights stay outside: every initialiser is a name and a shape.

The usual exporters trace a module into some 2,700 nodes, which ONNX Runtime needs most of a second to load. These
graphs are written by hand from the model's configuration, partly in ONNX Runtime's own operators (domain
`com.microsoft`), so that a UNet is about 1,000 nodes. A weight's name is its key in the checkpoint.

Shapes: B batch, C channels, H and W height and width, L tokens, D features.
"""

from collections.abc import Mapping, Sequence
from typing import Any
from zlib import crc32

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from fewstep.errors import CheckpointError

OPSET, IR_VERSION = 23, 11
WEIGHTS = "weights"
"""The file that every weight names as its place. There is none: the values are given when a session is made."""

Shape = Sequence[int | str]
Shapes = Mapping[str, Sequence[int]]


class Graph:
    """Collects nodes; each method adds an operation and returns the name of its output.

    `what` names the network in errors; `shapes` maps every weight of its checkpoint to its shape.
    """

    channels = 1
    """Which dimension of the inner values has the channels."""

    def __init__(self, what: str, shapes: Shapes) -> None:
        self.what, self.shapes = what, shapes
        self.nodes: list[onnx.NodeProto] = []
        self.weights: dict[str, onnx.TensorProto] = {}
        self.constants: dict[str, onnx.TensorProto] = {}
        self._shape_of: dict[str, str] = {}

    def add(self, op: str, *inputs: str, outputs: int = 1, domain: str = "", **attributes: Any) -> str:
        """One node; with more outputs than one they are `<returned name>`, `<returned name>.1`, `.2` ..."""
        name = f"{op}_{len(self.nodes)}"
        names = [name, *(f"{name}.{index}" for index in range(1, outputs))]
        self.nodes.append(helper.make_node(op, inputs, names, name=name, domain=domain, **attributes))
        return name

    def weight(self, name: str, *, shape: Sequence[int] | None = None) -> str:
        """A weight of the checkpoint, if asked in another shape; raises CheckpointError if it is not there."""
        if name not in self.shapes:
            raise CheckpointError(f"The {self.what} has no weight '{name}', which its config.json asks for.")
        if name not in self.weights:
            dims = list(self.shapes[name] if shape is None else shape)
            tensor = TensorProto(name=name, data_type=TensorProto.FLOAT, dims=dims)
            tensor.data_location = TensorProto.EXTERNAL
            tensor.external_data.add(key="location", value=WEIGHTS)
            self.weights[name] = tensor
        return name

    def constant(self, value: np.ndarray) -> str:
        """A small literal, stored once."""
        name = f"{value.dtype}_{'x'.join(map(str, value.shape))}_{crc32(value.tobytes()):08x}"
        self.constants.setdefault(name, numpy_helper.from_array(value, name))
        return name

    def integers(self, *values: int) -> str:
        """A vector of int64."""
        return self.constant(np.array(values, np.int64))

    def full(self, count: int, value: float) -> str:
        """A vector of `count` times the same number."""
        return self.constant(np.full(count, value, np.float32))

    def scaled(self, x: str, factor: float) -> str:
        """x times a number; x itself where that is 1."""
        return x if factor == 1 else self.add("Mul", x, self.full(1, factor))

    def reshape(self, x: str, *shape: int) -> str:
        """0 keeps a dimension, -1 takes what is left."""
        return self.add("Reshape", x, self.integers(*shape))

    def reshape_like(self, x: str, like: str) -> str:
        """`x` in the shape of `like`."""
        if like not in self._shape_of:
            self._shape_of[like] = self.add("Shape", like)
        return self.add("Reshape", x, self._shape_of[like])

    def enter(self, x_BCHW: str, /) -> str:
        """From the layout of the graph's inputs to that of its inner values: the same here."""
        return x_BCHW

    def leave(self, x_BCHW: str, /) -> str:
        """To the layout of the graph's outputs."""
        return x_BCHW

    def tokens(self, x_BCHW: str, /) -> str:
        """The pixels as tokens: (B, H*W, C)."""
        return self.add("Transpose", self.reshape(x_BCHW, 0, 0, -1), perm=[0, 2, 1])

    def pixels(self, x_BLC: str, like_BCHW: str, /) -> str:
        """The tokens as pixels again."""
        return self.reshape_like(self.add("Transpose", x_BLC, perm=[0, 2, 1]), like_BCHW)

    def conv(
        self, x_BCHW: str, name: str, /, *, level: int = 0, stride: int = 1, pads: Sequence[int] | None = None
    ) -> str:
        """A convolution, with bias where it has one; padded to keep the size unless `pads` (top, left, bottom, right)
        says otherwise. `level` is how often the picture was halved.
        """
        kernel = list(self.shapes[self.weight(f"{name}.weight")][2:])
        around = [side // 2 for side in kernel * 2] if pads is None else list(pads)
        bias = (self.weight(f"{name}.bias"),) if f"{name}.bias" in self.shapes else ()
        inputs = (x_BCHW, f"{name}.weight", *bias)
        return self.add("Conv", *inputs, kernel_shape=kernel, pads=around, strides=[stride, stride])

    def gemm(self, x_BD: str, name: str) -> str:
        """A linear layer of a matrix, in one operation."""
        return self.add("Gemm", x_BD, self.weight(f"{name}.weight"), self.weight(f"{name}.bias"), transB=1)

    def matmul(self, x: str, weight: str) -> str:
        """x @ weight.T, for any number of leading dimensions."""
        return self.add("FusedMatMul", x, self.weight(weight), domain="com.microsoft", transB=1)

    def linear(self, x: str, name: str) -> str:
        """x @ weight.T + bias, for any number of leading dimensions."""
        return self.add("Add", self.matmul(x, f"{name}.weight"), self.weight(f"{name}.bias"))

    def silu(self, x: str, *, alpha: float = 1.0) -> str:
        """x * sigmoid(alpha x); CLIP's quick_gelu with alpha 1.702."""
        return self.add("QuickGelu", x, domain="com.microsoft", alpha=alpha)

    def gelu(self, x: str) -> str:
        """The exact one, by the error function."""
        return self.add("Gelu", x, domain="com.microsoft")

    def group_norm(self, x_BCHW: str, name: str, /, *, groups: int, eps: float) -> str:
        """Each group as one instance, then each channel's scale and bias.

        The second half is a BatchNormalization of mean 0 and variance 1, which is one pass where Mul and Add are two.
        ONNX's own GroupNormalization takes twice the time: ONNX Runtime spells it out in ten operations.
        """
        channels = self.shapes[self.weight(f"{name}.weight")][0]
        grouped = self.reshape(x_BCHW, 0, groups, -1)
        normal = self.add("InstanceNormalization", grouped, self.full(groups, 1), self.full(groups, 0), epsilon=eps)
        affine = (f"{name}.weight", self.weight(f"{name}.bias"), self.full(channels, 0), self.full(channels, 1))
        return self.add("BatchNormalization", self.reshape_like(normal, x_BCHW), *affine, epsilon=0.0)

    def halves(self, x: str, name: str, /) -> tuple[str, str]:
        """A linear layer's first and last half."""
        first = self.add("Split", self.linear(x, name), outputs=2, axis=-1, num_outputs=2)
        return first, f"{first}.1"

    def layer_norm(self, x: str, name: str, *, eps: float = 1e-5) -> str:
        """Over the last dimension."""
        weight, bias = self.weight(f"{name}.weight"), self.weight(f"{name}.bias")
        return self.add("LayerNormalization", x, weight, bias, epsilon=eps)

    def attention(self, q_BLD: str, k_BLD: str, v_BLD: str, *, heads: int, causal: bool = False) -> str:
        """Scaled dot-product attention."""
        return self.add("Attention", q_BLD, k_BLD, v_BLD, q_num_heads=heads, kv_num_heads=heads, is_causal=int(causal))

    def residual(
        self,
        x_BCHW: str,
        name: str,
        *,
        groups: int,
        eps: float,
        temb_BD: str | None = None,
        level: int = 0,
    ) -> str:
        """Two normalised convolutions beside a shortcut, the timestep added between them (He et al. 2016; DDPM)."""
        normal = self.silu(self.group_norm(x_BCHW, f"{name}.norm1", groups=groups, eps=eps))
        hidden = self.conv(normal, f"{name}.conv1", level=level)
        if temb_BD is not None:
            hidden = self.shifted(hidden, self.gemm(temb_BD, f"{name}.time_emb_proj"))
        normal = self.silu(self.group_norm(hidden, f"{name}.norm2", groups=groups, eps=eps))
        hidden = self.conv(normal, f"{name}.conv2", level=level)
        shortcut = (
            self.conv(x_BCHW, f"{name}.conv_shortcut") if f"{name}.conv_shortcut.weight" in self.shapes else x_BCHW
        )
        return self.add("Add", hidden, shortcut)

    def shifted(self, x_BCHW: str, shift_BC: str, /) -> str:
        """x with a number added to each channel."""
        return self.add("Add", x_BCHW, self.reshape(shift_BC, 0, -1, 1, 1))

    def resize_like(self, x_BCHW: str, like_BCHW: str, level: int, /) -> str:
        """Nearest neighbour, to the height and width of another."""
        size = [self.add("Shape", x_BCHW, end=2), self.add("Shape", like_BCHW, start=2)]
        return self.resize(x_BCHW, size=self.add("Concat", *size, axis=0))

    def resize(self, x_BCHW: str, *, size: str = "", scales: str = "") -> str:
        """Nearest neighbour, as torch has it."""
        how = {"mode": "nearest", "nearest_mode": "floor", "coordinate_transformation_mode": "asymmetric"}
        given = (scales,) if scales else ("", size)
        return self.add("Resize", x_BCHW, "", *given, outputs=1, **how)

    def finish(
        self, inputs: Mapping[str, tuple[int, Shape]], outputs: Mapping[str, tuple[str, Shape]]
    ) -> onnx.ModelProto:
        """The model; `inputs` maps names to (element type, shape), `outputs` maps names to (value, shape)."""
        for name, (value, _) in outputs.items():
            self.nodes.append(helper.make_node("Identity", [value], [name], name=name))
        domains = sorted({"com.microsoft", *(node.domain for node in self.nodes if node.domain)})
        graph = helper.make_graph(
            self.nodes,
            "fewstep",
            [helper.make_tensor_value_info(name, kind, list(shape)) for name, (kind, shape) in inputs.items()],
            [
                helper.make_tensor_value_info(name, TensorProto.FLOAT, list(shape))
                for name, (_, shape) in outputs.items()
            ],
            [*self.weights.values(), *self.constants.values()],
        )
        opsets = [helper.make_opsetid("", OPSET), *(helper.make_opsetid(name, 1) for name in domains)]
        return helper.make_model(graph, opset_imports=opsets, ir_version=IR_VERSION, producer_name="fewstep")


def weight_shapes(model: onnx.ModelProto) -> dict[str, list[int]]:
    """The weights that a graph wants, and in which shapes."""
    return {
        tensor.name: list(tensor.dims)
        for tensor in model.graph.initializer
        if tensor.data_location == TensorProto.EXTERNAL
    }
