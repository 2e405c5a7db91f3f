"""A model folder's networks as ONNX graphs without weights, in `<folder>/onnx`.

    export_graphs(Path("pictogram"))     needs the `onnx` package (pip install "fewstep[export]"), not torch

| file              | in                              | out                     | weights of   |
|-------------------|---------------------------------|-------------------------|--------------|
| text_encoder.onnx | ids_BL int64                    | text_1_BLD, text_2_BLD  | text_encoder |
| text_kv.onnx      | text_BLD                        | text_kv_BLK             | unet         |
| unet.onnx         | z_BCHW, timestep_B, text_kv_BLK | output_BCHW             | unet         |
| vae_decoder.onnx  | z_BCHW                          | image_BCHW in [-1, 1]   | vae          |
| vae_encoder.onnx  | image_BCHW in [-1, 1]           | z_BCHW                  | vae          |

Where the model has a tiny autoencoder, tiny_vae_decoder.onnx and tiny_vae_encoder.onnx likewise.

`weights.json` says for each graph which weights it wants in which shapes. They are all the folder's own: the
safetensors beside are the one set of weights, for torch and for ONNX Runtime.
"""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import onnx

from fewstep.errors import CheckpointError, OutputError
from fewstep.export.graph import Shapes, weight_shapes
from fewstep.export.text_graph import text_graph
from fewstep.export.tiny_graph import TinyGraph
from fewstep.export.unet_graph import text_kv_graph, unet_graph
from fewstep.export.vae_graph import VaeGraph

_IGNORED = ("embeddings.position_ids",)


def export_graphs(folder: Path) -> Path:
    """Writes the graphs of a diffusers folder into its sub-folder `onnx` and returns that.

    Raises:
        CheckpointError: the folder is incomplete, or one of its networks is not of Stable Diffusion 1 or 2.
        OutputError: the files cannot be written.
    """
    (unet, unet_shapes), (vae, vae_shapes) = _part(folder, "unet"), _part(folder, "vae")
    text, text_shapes = _part(folder, "text_encoder")
    graphs = {
        "text_encoder": text_graph(text, text_shapes),
        "text_kv": text_kv_graph(unet, unet_shapes),
        "unet": unet_graph(unet, unet_shapes),
        "vae_decoder": VaeGraph(vae, vae_shapes).decoder(),
        "vae_encoder": VaeGraph(vae, vae_shapes).encoder(),
    }
    tiny_shapes: dict[str, list[int]] = {}
    if (folder / "tiny_vae" / "config.json").is_file():
        tiny, tiny_shapes = _part(folder, "tiny_vae")
        graphs["tiny_vae_decoder"] = TinyGraph(tiny, tiny_shapes).decoder()
        graphs["tiny_vae_encoder"] = TinyGraph(tiny, tiny_shapes).encoder()
    wanted = {name: weight_shapes(graph) for name, graph in graphs.items()}
    _check_all_used("text encoder", text_shapes, [wanted["text_encoder"]])
    _check_all_used("UNet", unet_shapes, [wanted["text_kv"], wanted["unet"]])
    _check_all_used("VAE", vae_shapes, [wanted["vae_decoder"], wanted["vae_encoder"]])
    _check_all_used("tiny VAE", tiny_shapes, [wanted[name] for name in wanted if name.startswith("tiny")])
    return _write(folder / "onnx", graphs, wanted)


def _part(folder: Path, part: str) -> tuple[dict[str, Any], dict[str, list[int]]]:
    """(config, weight -> shape) of one network."""
    from safetensors import SafetensorError, safe_open

    names = ("model.safetensors", "diffusion_pytorch_model.safetensors")
    file = next((folder / part / name for name in names if (folder / part / name).is_file()), folder / part / names[0])
    try:
        config = json.loads((folder / part / "config.json").read_text(encoding="utf-8"))
        with safe_open(file, framework="np") as weights:
            return config, {key: weights.get_slice(key).get_shape() for key in weights.keys()}  # noqa: SIM118
    except (OSError, ValueError, SafetensorError) as error:
        raise CheckpointError(f"'{folder / part}' cannot be exported: {error}") from None


def _check_all_used(what: str, shapes: Shapes, graphs: Iterable[Mapping[str, list[int]]]) -> None:
    """A weight that no graph wants means that the network is not the one written down here."""
    used = {name for graph in graphs for name in graph}
    unused = sorted(name for name in set(shapes) - used if not name.endswith(_IGNORED))
    if unused:
        raise CheckpointError(
            f"The {what} has {len(unused)} weights that its ONNX graph does not know, such as '{unused[0]}'."
        )


def _write(folder: Path, graphs: Mapping[str, onnx.ModelProto], wanted: Mapping[str, Mapping[str, list[int]]]) -> Path:
    try:
        folder.mkdir(exist_ok=True)
        for name, graph in graphs.items():
            (folder / f"{name}.onnx").write_bytes(graph.SerializeToString(deterministic=True))
        (folder / "weights.json").write_text(json.dumps(wanted, separators=(",", ":")) + "\n", encoding="utf-8")
    except OSError as error:
        raise OutputError(f"The graphs cannot be written to '{folder}' ({error.strerror}).") from None
    return folder
