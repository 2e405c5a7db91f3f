"""A small writer of ONNX graphs whose weights stay outside: every initialiser is a name and a shape.

The usual exporters trace a module into some 2,700 nodes, which ONNX Runtime needs 0.6 to 1 s to load. These graphs are written
by hand from the model's configuration, in ONNX Runtime's own fused operators (domain `com.microsoft`, CPU kernels), so that a
UNet is under 1,000 nodes. A weight's name is its key in the checkpoint, and its layout is the checkpoint's own.

Shape legend: B batch, C channels, H W height and width, L tokens, D features.
"""

from collections.abc import Mapping, Sequence
from zlib import crc32

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from fewstep.errors import CheckpointError

OPSET = 23
#: Named by every external tensor; no such file exists, the caller supplies the values when the session is made.
WEIGHTS = "weights"


Shape = Sequence[int | str]
Signature = tuple[int, Shape]


class Graph:
    """Collects nodes; each method adds one operation and returns the name of its output.

    `shapes` maps every weight of the checkpoint to its shape.
    """

    def __init__(self, name: str, shapes: Mapping[str, Sequence[int]]) -> None:
        self.name, self.shapes = name, shapes
        self.nodes: list[onnx.NodeProto] = []
        self.weights: dict[str, onnx.TensorProto] = {}
        self.constants: dict[str, onnx.TensorProto] = {}
        self.shape_of: dict[str, str] = {}

    def add(self, op: str, *inputs: str, outputs: int = 1, domain: str = "", **attributes: object) -> str:
        """One node; with `outputs` > 1 its outputs are `<returned name>` and `<returned name>.1`, `.2` ..."""
        name = f"{op}_{len(self.nodes)}"
        names = [name] + [f"{name}.{k}" for k in range(1, outputs)]
        self.nodes.append(helper.make_node(op, inputs, names, name=name, domain=domain, **attributes))
        return name

    def fused(self, op: str, *inputs: str, outputs: int = 1, **attributes: object) -> str:
        """One of ONNX Runtime's own operators."""
        return self.add(op, *inputs, outputs=outputs, domain="com.microsoft", **attributes)

    def weight(self, name: str, *, shape: Sequence[int] | None = None) -> str:
        """The weight `name`, given in another `shape` if asked; raises CheckpointError if the checkpoint has none."""
        if name not in self.shapes:
            raise CheckpointError(f"The {self.name} has no weight '{name}', which its config.json asks for; the two do not belong together.")
        if name not in self.weights:
            tensor = TensorProto(name=name, data_type=TensorProto.FLOAT, dims=list(shape or self.shapes[name]))
            tensor.data_location = TensorProto.EXTERNAL
            tensor.external_data.add(key="location", value=WEIGHTS)
            tensor.external_data.add(key="offset", value="0")
            tensor.external_data.add(key="length", value=str(4 * int(np.prod(self.shapes[name]))))
            self.weights[name] = tensor
        return name

    def constant(self, value: np.ndarray) -> str:
        """A small literal, stored once per distinct value."""
        name = f"{value.dtype}_{'x'.join(map(str, value.shape))}_{crc32(value.tobytes()):08x}"
        self.constants.setdefault(name, numpy_helper.from_array(value, name))
        return name

    def integers(self, *values: int) -> str:
        """A vector of int64."""
        return self.constant(np.array(values, np.int64))

    def ones(self, count: int) -> str:
        """A vector of ones."""
        return self.constant(np.ones(count, np.float32))

    def zeros(self, count: int) -> str:
        """A vector of zeros."""
        return self.constant(np.zeros(count, np.float32))

    def reshape(self, x: str, *shape: int) -> str:
        """Reshape; 0 keeps a dimension, -1 takes what is left."""
        return self.add("Reshape", x, self.integers(*shape))

    def reshape_like(self, x: str, like: str) -> str:
        """`x` in the shape of `like`."""
        if like not in self.shape_of:
            self.shape_of[like] = self.add("Shape", like)
        return self.add("Reshape", x, self.shape_of[like])

    def conv(self, x_BCHW: str, name: str, *, stride: int = 1, pads: Sequence[int] | None = None) -> str:
        """A convolution with bias; padded to keep the size unless `pads` (top, left, bottom, right) says otherwise."""
        kernel = list(self.shapes[self.weight(f"{name}.weight")][2:])
        around = [kernel[0] // 2, kernel[1] // 2] * 2 if pads is None else list(pads)
        bias = self.weight(f"{name}.bias")
        return self.add("Conv", x_BCHW, f"{name}.weight", bias, kernel_shape=kernel, pads=around, strides=[stride, stride])

    def matmul(self, x: str, weight: str) -> str:
        """x @ weight.T, without bias."""
        return self.fused("FusedMatMul", x, self.weight(weight), transB=1)

    def tokens(self, x_BCHW: str) -> str:
        """The pixels as tokens, (B, H*W, C)."""
        return self.add("Transpose", self.reshape(x_BCHW, 0, 0, -1), perm=[0, 2, 1])

    def pixels(self, x_BLC: str, like_BCHW: str) -> str:
        """The tokens as pixels again, in the shape of `like`."""
        return self.reshape_like(self.add("Transpose", x_BLC, perm=[0, 2, 1]), like_BCHW)

    def gemm(self, x_BD: str, name: str) -> str:
        """x @ weight.T + bias for a matrix `x`, in one operation."""
        return self.add("Gemm", x_BD, self.weight(f"{name}.weight"), self.weight(f"{name}.bias"), transB=1)

    def linear(self, x: str, name: str) -> str:
        """x @ weight.T + bias, for any number of leading dimensions."""
        return self.add("Add", self.matmul(x, f"{name}.weight"), self.weight(f"{name}.bias"))

    def silu(self, x: str) -> str:
        """x * sigmoid(x)."""
        return self.fused("QuickGelu", x, alpha=1.0)

    def group_norm(self, x_BCHW: str, name: str, *, groups: int, eps: float) -> str:
        """Group normalisation: the groups through InstanceNormalization, then each channel's scale and bias.

        The affine part is a BatchNormalization with mean 0 and variance 1: one pass instead of two.
        """
        channels = self.shapes[self.weight(f"{name}.weight")][0]
        grouped = self.reshape(x_BCHW, 0, groups, -1)
        normal = self.add("InstanceNormalization", grouped, self.ones(groups), self.zeros(groups), epsilon=eps)
        affine = [f"{name}.weight", self.weight(f"{name}.bias"), self.zeros(channels), self.ones(channels)]
        return self.add("BatchNormalization", self.reshape_like(normal, x_BCHW), *affine, epsilon=0.0)

    def layer_norm(self, x: str, name: str, *, eps: float = 1e-5) -> str:
        """Layer normalisation over the last dimension."""
        weight, bias = self.weight(f"{name}.weight"), self.weight(f"{name}.bias")
        return self.add("LayerNormalization", x, weight, bias, epsilon=eps)

    def attention(self, q_BLD: str, k_BLD: str, v_BLD: str, *, heads: int, causal: bool = False) -> str:
        """Scaled dot-product attention."""
        return self.add("Attention", q_BLD, k_BLD, v_BLD, q_num_heads=heads, kv_num_heads=heads, is_causal=int(causal))

    def finish(self, inputs: Mapping[str, Signature], outputs: Mapping[str, tuple[str, Shape]]) -> onnx.ModelProto:
        """The model; `inputs` maps names to (element type, shape), `outputs` maps names to (value, shape)."""
        for name, (value, _) in outputs.items():
            self.nodes.append(helper.make_node("Identity", [value], [name], name=name))
        graph = helper.make_graph(
            self.nodes,
            self.name.replace(" ", "_"),
            [helper.make_tensor_value_info(name, kind, list(shape)) for name, (kind, shape) in inputs.items()],
            [helper.make_tensor_value_info(name, TensorProto.FLOAT, list(shape)) for name, (_, shape) in outputs.items()],
            [*self.weights.values(), *self.constants.values()],
        )
        opsets = [helper.make_opsetid("", OPSET), helper.make_opsetid("com.microsoft", 1)]
        return helper.make_model(graph, opset_imports=opsets, ir_version=11, producer_name="fewstep")
