"""All graphs of a model, into a folder.

| file                | in                                     | out                     | weights of     |
|---------------------|----------------------------------------|-------------------------|----------------|
| text_encoder.onnx   | ids_BL int64                           | text_1_BLD, text_2_BLD  | text_encoder   |
| text_encoder_2.onnx | ids_BL, ends_B int64                   | the same, pooled_BD     | text_encoder_2 |
| text_kv.onnx        | text_BLD                               | text_kv_BLK             | unet           |
| unet.onnx           | z_BCHW, timestep_B, text_kv_BLK        | output_BCHW             | unet           |
|                     | SDXL: pooled_BD, time_ids_B6           |                         |                |
|                     | guidance embedding: guidance_BD        |                         |                |
| vae_decoder.onnx    | z_BCHW                                 | image_BCHW in [-1, 1]   | vae            |
| vae_encoder.onnx    | image_BCHW in [-1, 1]                  | z_BCHW                  | vae            |

unet.winograd.onnx is the same as unet.onnx with fewer products and larger weights, for OpenVINO (`channels_last`); only
wide networks have it. Where the model has a tiny autoencoder, tiny_vae_decoder.onnx and tiny_vae_encoder.onnx likewise.

`weights.json` says for each graph which weights it wants in which shapes. They are all the checkpoint's own: its
safetensors are the one set of weights, for torch and for every runtime.
"""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import onnx

from fewstep.errors import GraphError, OutputError
from fewstep.graphs.graph import Shapes, weight_shapes
from fewstep.graphs.text_graph import text_graph
from fewstep.graphs.tiny_graph import TinyGraph
from fewstep.graphs.unet_graph import text_kv_graph, unet_graph, winograd_unet_graph
from fewstep.graphs.vae_graph import VaeGraph

_VAE = {"in_channels": 3, "out_channels": 3, "norm_num_groups": 32, "layers_per_block": 1, "scaling_factor": 0.18215}
"""Of diffusers' `AutoencoderKL`, where a config does not say."""

_IGNORED = ("embeddings.position_ids", "text_projection.weight")


def model_graphs(configs: Mapping[str, Any], shapes: Mapping[str, Shapes]) -> dict[str, onnx.ModelProto]:
    """The graphs of a model from its parts' configs and weights' shapes ("unet", "vae", "text_encoder", ...).

    Raises GraphError when one of its networks is not known here.
    """
    texts = [part for part in ("text_encoder", "text_encoder_2") if part in shapes]
    graphs = {part: text_graph(configs[part], shapes[part], one_of_two=len(texts) > 1) for part in texts}
    graphs |= {
        "text_kv": text_kv_graph(configs["unet"], shapes["unet"]),
        "unet": unet_graph(configs["unet"], shapes["unet"]),
    }
    for part in ("vae", "tiny_vae"):
        if part in shapes:
            graphs |= {f"{part}_{side}": graph for side, graph in _autoencoder(configs[part], shapes[part]).items()}
    wanted = {name: weight_shapes(graph) for name, graph in graphs.items()}
    _check_all_used("tiny VAE", shapes.get("tiny_vae", {}), [wanted[name] for name in wanted if "tiny" in name])
    _check_all_used("UNet", shapes["unet"], [wanted["text_kv"], wanted["unet"]])
    _check_all_used("VAE", shapes["vae"], [wanted["vae_decoder"], wanted["vae_encoder"]])
    for part in texts if len(texts) == 1 else texts[1:]:  # of SDXL's first encoder the last layer is not used
        _check_all_used("text encoder", shapes[part], [wanted[part]])
    wide = winograd_unet_graph(configs["unet"], shapes["unet"])
    return graphs if wide is None else graphs | {"unet.winograd": wide}


def _autoencoder(config: Mapping[str, Any], shapes: Shapes) -> dict[str, onnx.ModelProto]:
    """Its two halves, diffusers' `AutoencoderKL` or `AutoencoderTiny`: a model's only one may be the tiny one."""
    if "num_decoder_blocks" in config:
        return {"decoder": TinyGraph(config, shapes).decoder(), "encoder": TinyGraph(config, shapes).encoder()}
    if "down_block_types" not in config:
        raise GraphError(f"There is no ONNX graph of the autoencoder {config.get('_class_name')}.")
    config = _VAE | dict(config)
    return {"decoder": VaeGraph(config, shapes).decoder(), "encoder": VaeGraph(config, shapes).encoder()}


def _check_all_used(what: str, shapes: Shapes, graphs: Iterable[Mapping[str, list[int]]]) -> None:
    """A weight that no graph wants means that the network is not the one written down here."""
    used = {name for graph in graphs for name in graph}
    unused = sorted(name for name in set(shapes) - used if not name.endswith(_IGNORED))
    if unused:
        raise GraphError(
            f"The {what} has {len(unused)} weights that its ONNX graph does not know, such as '{unused[0]}'."
        )


def write_graphs(graphs: Mapping[str, onnx.ModelProto], folder: Path) -> Path:
    """Writes `<name>.onnx` and weights.json into a folder, the same bytes each time; raises OutputError.

    A name with a dot is another way to compute the graph of the name before it, from the same weights.
    """
    wanted = {name: weight_shapes(graph) for name, graph in graphs.items() if "." not in name}
    try:
        folder.mkdir(exist_ok=True)
        for name, graph in graphs.items():
            (folder / f"{name}.onnx").write_bytes(graph.SerializeToString(deterministic=True))
        (folder / "weights.json").write_text(json.dumps(wanted, separators=(",", ":")) + "\n", encoding="utf-8")
    except OSError as error:
        raise OutputError(f"The graphs cannot be written to '{folder}' ({error.strerror}).") from None
    return folder
