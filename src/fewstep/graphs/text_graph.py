"""CLIP's text encoder (transformers' `CLIPTextModel`) as an ONNX graph.

Radford et al. 2021, section 2.4. Shapes: B prompts, L tokens, D features.
"""

from collections.abc import Mapping
from typing import Any

import onnx
from onnx import TensorProto

from fewstep.errors import GraphError
from fewstep.graphs.graph import Graph, Shapes

TABLE = "embeddings.token_embedding.weight"


DEFAULTS = {"hidden_act": "quick_gelu", "layer_norm_eps": 1e-5, "max_position_embeddings": 77}
"""Of transformers' `CLIPTextConfig`, where a config does not say."""


def text_graph(config: Mapping[str, Any], shapes: Shapes, *, one_of_two: bool = False) -> onnx.ModelProto:
    """(ids_BL) -> text_1_BLD, text_2_BLD, ...: what clip_skip 1, 2, ... takes, each through the final layer norm.

    one_of_two: SDXL's encoders, whose text is the layer before without that norm; the second one has also
    (ends_B) -> pooled_BD, the projected state at the end mark, which is row ends_B of all prompts' positions.

    Raises GraphError for an activation that CLIP does not have.
    """
    config = DEFAULTS | dict(config)
    if config["hidden_act"] not in ("quick_gelu", "gelu"):
        found = config["hidden_act"]
        raise GraphError(f"The text encoder has the activation {found!r}; CLIP has quick_gelu or gelu.")
    graph = Graph("text encoder", shapes)
    root = next((name.removesuffix(TABLE) for name in shapes if name.endswith(TABLE)), "")
    rows = graph.add("Gather", graph.weight(root + TABLE), "ids_BL")
    x = graph.add("Add", rows, graph.weight(f"{root}embeddings.position_embedding.weight"))
    states = []
    pooled = one_of_two and "text_projection.weight" in shapes
    for layer in range(config["num_hidden_layers"] - (one_of_two and not pooled)):
        x = _layer(graph, x, f"{root}encoder.layers.{layer}", config)
        states.append(x)
    length, width = config["max_position_embeddings"], config["hidden_size"]
    inputs = {"ids_BL": (TensorProto.INT64, ["B", length])}
    norm, eps = f"{root}final_layer_norm", config["layer_norm_eps"]
    last = states[::-1][pooled:] if one_of_two else [graph.layer_norm(x, norm, eps=eps) for x in reversed(states)]
    outputs: dict[str, Any] = {f"text_{skip}_BLD": (x, ["B", length, width]) for skip, x in enumerate(last, 1)}
    if pooled:
        normal = graph.reshape(graph.layer_norm(states[-1], norm, eps=eps), -1, width)
        ended = graph.add("Gather", normal, "ends_B")
        inputs["ends_B"] = (TensorProto.INT64, ["B"])
        projected = graph.matmul(ended, "text_projection.weight")
        outputs["pooled_BD"] = (projected, ["B", shapes["text_projection.weight"][0]])
    return graph.finish(inputs, outputs)


def _layer(graph: Graph, x: str, name: str, config: Mapping[str, Any]) -> str:
    """Attention to what came before, then a feed-forward, each on a normalised input and added."""
    eps = config["layer_norm_eps"]
    normal = graph.layer_norm(x, f"{name}.layer_norm1", eps=eps)
    q, k, v = (graph.linear(normal, f"{name}.self_attn.{part}_proj") for part in "qkv")
    out = graph.attention(q, k, v, heads=config["num_attention_heads"], causal=True)
    x = graph.add("Add", x, graph.linear(out, f"{name}.self_attn.out_proj"))
    hidden = graph.linear(graph.layer_norm(x, f"{name}.layer_norm2", eps=eps), f"{name}.mlp.fc1")
    hidden = graph.silu(hidden, alpha=1.702) if config["hidden_act"] == "quick_gelu" else graph.gelu(hidden)
    return graph.add("Add", x, graph.linear(hidden, f"{name}.mlp.fc2"))
