"""A model as a static page that draws in the browser: any web server can give it, and none computes anything.

| in the folder | what |
|---|---|
| index.html, assets/, sw.js | the page (source in web/, `make page`) |
| model.json | what the page must know of the model (`web/src/model/manifest.ts`) |
| model/weights.bin | every weight in half precision, the LoRAs merged; the page widens them to float32 |
| model/*.onnx | the graphs; a weight names its place in the widened file |
| model/tokenizer.json | CLIP's tokenizer |
| runtime/ | ONNX Runtime Web |
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fewstep.backends.onnx_model import OnnxModel
from fewstep.backends.sessions import PART_OF
from fewstep.checkpoints.description import assets_path
from fewstep.errors import CheckpointError, OutputError, RequestError
from fewstep.export.runtime import ENGINES
from fewstep.image import CELL_PX
from fewstep.plan import IMAGE_STRENGTH
from fewstep.sampling.timesteps import available, timesteps

if TYPE_CHECKING:
    from fewstep.pipeline import Pipeline

STATIC = Path(__file__).parent / "static"
SAMPLERS = ("lcm", "tcd", "pcm", "ddim")
"""That the page knows (`web/src/model/samplers.ts`)."""

MOST_STEPS = 8
MOST_PARTS = 8
MOST_WEIGHTS = 250_000_000
"""Numbers: above it, what a browser gives a page (4 GB, of which weights take a part twice) does not suffice."""

PROMPT = "a red apple, 3d"
OWN_STRENGTH = 0.2
"""Of a drawing on the embedded model, which composes anew far earlier than others."""


@dataclass(frozen=True)
class Exported:
    """What was written."""

    folder: Path
    bytes: int
    files: int
    model: str
    steps: int


def export_web(
    pipe: Pipeline, out: Path, *, runtime: Path, title: str = "", steps: int | None = None, force: bool = False
) -> Exported:
    """Writes the page of this pipeline's model with its LoRAs; the folder is there whole or not at all.

    `runtime` holds ONNX Runtime Web (`fewstep.export.runtime`); force replaces an earlier export, and nothing else.

    Raises:
        CheckpointError: the model is too large, or not one that ONNX Runtime runs.
        RequestError: it is sampled in a way that the page does not know.
        OutputError: something else is there, or the folder cannot be written.
    """
    model = pipe.model
    if not isinstance(model, OnnxModel):
        raise CheckpointError(f"'{model.name}' was not opened for ONNX Runtime, so it cannot be exported to the web.")
    if model.family.text_encoders != 1 or model.guidance_width is not None:
        raise CheckpointError(f"'{model.name}' is {model.family}: the page knows models of SD 1.x and 2.x only.")
    check_free(out, force=force)
    try:
        with tempfile.TemporaryDirectory(dir=out.absolute().parent, prefix=f".{out.name}-") as there:
            folder = Path(there) / "page"
            shutil.copytree(STATIC, folder)
            manifest = _manifest(pipe, model, title=title, steps=steps)
            manifest |= _write_model(model, folder / "model")
            manifest |= {"runtime": _copy_runtime(runtime, folder / "runtime")}
            (folder / "model.json").write_bytes(
                json.dumps(manifest, ensure_ascii=False, separators=(",", ":")).encode()
            )
            _stamp(folder)
            sizes = [file.stat().st_size for file in folder.rglob("*") if file.is_file()]
            _replace(folder, out)
    except OSError as error:
        raise OutputError(f"The page cannot be written to '{out}' ({error.strerror}).") from None
    return Exported(out, sum(sizes), len(sizes), model.name, manifest["steps"])


def check_free(out: Path, *, force: bool) -> None:
    """Raises OutputError unless the page may be written here."""
    if not out.absolute().parent.is_dir():
        raise OutputError(f"The folder '{out.absolute().parent}' does not exist. Create it first, or choose another.")
    taken = any(out.iterdir()) if out.is_dir() else out.exists()
    if taken and not force:
        raise OutputError(f"'{out}' is there already. Choose another name, or replace an earlier page with --force.")
    if taken and not (out / "model.json").is_file():
        raise OutputError(f"'{out}' is there and no page of ours, so --force leaves it alone. Choose another name.")


def _replace(folder: Path, out: Path) -> None:
    """Puts the finished folder in its place; an earlier one goes only then."""
    if not out.exists():
        os.replace(folder, out)
        return
    before = folder.with_name("before")
    os.replace(out, before)
    os.replace(folder, out)


def _manifest(pipe: Pipeline, model: OnnxModel, *, title: str, steps: int | None) -> dict[str, Any]:
    """What the page must know of the model, but its files."""
    sampling = pipe.sampling
    if sampling.sampler not in SAMPLERS:
        raise RequestError(
            f"'{model.name}' is sampled with {sampling.sampler}, and the page knows {', '.join(SAMPLERS)}. Give a "
            f"few-step LoRA with --lora, such as an LCM-LoRA."
        )
    steps = min(sampling.steps, MOST_STEPS) if steps is None else steps
    if not 1 <= steps <= MOST_STEPS:
        raise RequestError(f"steps is {steps}. The page draws in 1 to {MOST_STEPS} steps.")
    size = model.family.size_px
    return {
        "title": title or model.name,
        "prompt": PROMPT,
        "steps": steps,
        "guidance": sampling.guidance,
        "strength": OWN_STRENGTH if model.path == assets_path() else IMAGE_STRENGTH,
        "size_px": size,
        "cell_px": CELL_PX,
        "channels": 4,
        "prediction": model.schedule.prediction,
        "alphas_cumprod": model.schedule.alphas_cumprod,
        "sampler": sampling.sampler,
        "timesteps": _tables(pipe, model),
        "settings": _settings(pipe, size),
    }


def _tables(pipe: Pipeline, model: OnnxModel) -> list[list[list[float]]]:
    """Every run's timesteps: [hundredths of strength - 1][steps - 1], empty where there are too few."""
    sampling = pipe.sampling
    rows = []
    for strength in (hundredths / 100 for hundredths in range(1, 101)):
        among: Any = {"strength": strength, "schedule": model.schedule, "origin_steps": sampling.origin_steps}
        most = available(sampling.table, **among)
        found = [timesteps(sampling.table, steps, **among) if steps <= most else () for steps in range(1, 9)]
        rows.append([list(row) for row in found])
    if any(not isinstance(t, int) for row in rows for times in row for t in times):
        raise RequestError(f"The page knows whole timesteps only, and table '{sampling.table}' has others.")
    return rows


def _settings(pipe: Pipeline, size_px: int) -> list[tuple[str, str | None]]:
    """What a picture records, in order; None is filled in by the page."""
    from PIL import Image

    from fewstep.infotext import KEYS
    from fewstep.request import Request

    plan = pipe.plan(Request(PROMPT, seed=0, image=Image.new("RGB", (size_px, size_px)), strength=0.5))
    own = dict.fromkeys(("Steps", "CFG scale", "Seed", "Denoising strength", "Device"))
    found = {**plan.infotext(0, pipe.facts()).settings, **own}
    found |= {"VAE Encoder": None} if "VAE Encoder" in found else {}
    found.pop("Init image hash")
    places = {key: place for place, key in enumerate(KEYS)}
    return sorted(found.items(), key=lambda pair: places.get(pair[0], KEYS.index("")))


def _write_model(model: OnnxModel, folder: Path) -> dict[str, Any]:
    """Weights, graphs and tokenizer; returns what the manifest says of them. The smaller autoencoder, where there is
    one, is taken.
    """
    folder.mkdir()
    wanted = model.sessions.wanted
    graphs = {name: name for name in ("text_encoder", "text_kv", "unet")}
    for name in ("decoder", "encoder"):
        graphs[name] = f"tiny_vae_{name}" if f"tiny_vae_{name}" in wanted else f"vae_{name}"
    count = sum(int(np.prod(shape)) for graph in graphs.values() for shape in wanted[graph].values())
    if count > MOST_WEIGHTS:
        raise CheckpointError(
            f"'{model.name}' has {count:,} weights, a browser has room for {MOST_WEIGHTS:,}. Choose a smaller model."
        )
    places = _write_weights(model, list(graphs.values()), folder / "weights.bin")
    for graph in graphs.values():
        placed = _placed(model.sessions.graphs / f"{graph}.onnx", places, PART_OF[graph])
        (folder / f"{graph}.onnx").write_bytes(placed)
    (folder / "tokenizer.json").write_text(model.text.words.to_str(), encoding="utf-8")
    start, end, pad = model.text.marks
    return {
        "graphs": {name: f"model/{graph}.onnx" for name, graph in graphs.items()},
        "weights": {"file": "model/weights.bin", "bytes": (folder / "weights.bin").stat().st_size},
        "tokenizer": {
            "file": "model/tokenizer.json",
            **{"start": start, "end": end, "pad": pad, "length": model.text.length},
        },
    }


def _write_weights(model: OnnxModel, graphs: list[str], path: Path) -> dict[tuple[str, str], int]:
    """One file of all weights in half precision; returns the first number of each (part, weight)."""
    places: dict[tuple[str, str], int] = {}
    at = 0
    with path.open("wb") as file:
        for graph in graphs:
            for name, weight in model.sessions.merged_weights(graph).items():
                if (PART_OF[graph], name) in places:
                    continue
                with np.errstate(over="ignore"):
                    half = weight.astype("<f2")
                if not np.isfinite(half).all():
                    raise CheckpointError(f"'{name}' of '{model.name}' holds numbers too large for half precision.")
                file.write(half.tobytes())
                places[PART_OF[graph], name] = at
                at += half.size
    return places


def _placed(graph: Path, places: Mapping[tuple[str, str], int], part: str) -> bytes:
    """The graph, whose weights say where in the widened file they lie."""
    import onnx

    model = onnx.load(str(graph), load_external_data=False)
    for tensor in model.graph.initializer:
        if tensor.data_location == onnx.TensorProto.EXTERNAL:
            size = 4 * int(np.prod(tensor.dims))
            tensor.external_data.add(key="offset", value=str(4 * places[part, tensor.name]))
            tensor.external_data.add(key="length", value=str(size))
    _without_wide_splits(model.graph)
    return model.SerializeToString(deterministic=True)


def _without_wide_splits(graph: Any) -> None:
    """Splits into many parts as as many slices: WebGPU binds at most ten tensors to one operation."""
    from onnx import numpy_helper

    wide = {node.name: node for node in graph.node if node.op_type == "Split" and len(node.output) > MOST_PARTS}
    sizes = {node.input[1] for node in wide.values()}
    stored = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer if tensor.name in sizes}
    numbers: dict[str, Any] = {}
    nodes = [
        new
        for node in graph.node
        for new in (_slices(node, stored[node.input[1]], numbers) if node.name in wide else [node])
    ]
    kept = [tensor for tensor in graph.initializer if tensor.name not in sizes]
    del graph.node[:], graph.initializer[:]
    graph.node.extend(nodes)
    graph.initializer.extend([*kept, *numbers.values()])


def _slices(split: Any, sizes: np.ndarray, numbers: dict[str, Any]) -> Iterator[Any]:
    """One Slice for each part; `numbers` gathers the limits as initialisers."""
    from onnx import helper, numpy_helper

    axis = next(attribute.i for attribute in split.attribute if attribute.name == "axis")
    ends = np.cumsum(sizes).tolist()
    for output, start, end in zip(split.output, [0, *ends[:-1]], ends, strict=True):
        names = [f"{split.name}_{value}" for value in (start, end, axis)]
        for name, value in zip(names, (start, end, axis), strict=True):
            numbers[name] = numpy_helper.from_array(np.array([value], np.int64), name)
        yield helper.make_node("Slice", [split.input[0], *names], [output], name=output)


def _copy_runtime(runtime: Path, folder: Path) -> dict[str, dict[str, Any]]:
    """ONNX Runtime Web's files; returns what the manifest says of them."""
    folder.mkdir()
    for name in (name for names in ENGINES.values() for name in names):
        shutil.copyfile(runtime / name, folder / name)
    return {
        engine: {
            **dict(zip(("script", "loader", "wasm"), (f"runtime/{name}" for name in names), strict=True)),
            "bytes": (folder / names[-1]).stat().st_size,
        }
        for engine, names in ENGINES.items()
    }


def _stamp(folder: Path) -> None:
    """Tells the service worker its version, which changes with any file, and what the page itself is made of."""
    digest = hashlib.sha256()
    names = sorted(file.relative_to(folder).as_posix() for file in folder.rglob("*") if file.is_file())
    for name in names:
        digest.update(name.encode() + b"\0" + (folder / name).read_bytes())
    shell = ["./", *(name for name in names if name == "index.html" or name.startswith("assets/"))]
    facts = json.dumps({"version": digest.hexdigest()[:12], "shell": shell})
    script = folder / "sw.js"
    script.write_bytes(f"self.FEWSTEP = {facts};\n".encode() + script.read_bytes())
