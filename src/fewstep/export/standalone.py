"""A model as graphs with their weights inside, LoRAs merged, in a folder that needs nothing of this package.

Beside the graphs: `tokenizer/` (CLIP's files), `model.json` (how it is sampled, with the numbers of every step and an
example's token ids) and `README.md` (what the graphs take and give, and a program that paints with them).
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from fewstep.backends.onnx_model import OnnxModel, open_onnx
from fewstep.backends.sessions import check_runtime
from fewstep.errors import DeviceError, OutputError
from fewstep.export.int8 import for_int8, quantise_file, quantised, trajectories
from fewstep.export.readme import readme
from fewstep.pipeline import Pipeline, own_loras
from fewstep.request import Request
from fewstep.sampling.guidance import guidance_embedding, w_of
from fewstep.sampling.schedule import to_z0

EXAMPLE = "a red apple"
_ALIGNED = 4096
"""Where each weight begins in its file, so that it can be mapped into memory: a multiple of this many bytes."""

_BIG = 1 << 16
"""Bytes from which a weight is worth that."""


def open_exported(path: str | Path | None, *, lora: Sequence[tuple[str, float]] | None, **parts: Any) -> Pipeline:
    """The model whose graphs are written, with these LoRAs, or its own where none are given.

    Raises CheckpointError for the model, LoraError for a LoRA.
    """
    model = open_onnx(path, **{name: value for name, value in parts.items() if value is not None})
    return Pipeline(model, own_loras(path) if lora is None else list(lora))


def _model(pipe: Pipeline) -> OnnxModel:
    assert isinstance(pipe.model, OnnxModel)
    return pipe.model


def write_folder(pipe: Pipeline, out: Path, kind: str, files: Callable[[Pipeline, Path], None]) -> dict[str, Any]:
    """Everything into a folder beside `out` and then into place; returns what `--json` says.

    Only files of the same names are replaced in a folder that is there. Raises OutputError.
    """
    try:
        part = Path(tempfile.mkdtemp(dir=out.absolute().parent, prefix=f".{out.name}."))
    except OSError as error:
        raise OutputError(f"'{out}' cannot be written ({error.strerror}).") from None
    try:
        part.chmod(0o755)
        files(pipe, part)
        _write_tokenizers(_model(pipe), part)
        facts = _facts(pipe, kind)
        (part / "model.json").write_text(json.dumps(facts, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        (part / "README.md").write_text(readme(facts, list(_model(pipe).sessions.wanted)), encoding="utf-8")
        written = {
            str(path.relative_to(part)): path.stat().st_size for path in sorted(part.rglob("*")) if path.is_file()
        }
        _move(part, out, written)
    except OSError as error:
        raise OutputError(f"'{out}' cannot be written ({error.strerror}).") from None
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return {"folder": str(out), "format": kind, "model": pipe.model.name, "loras": facts["loras"], "files": written}


def _move(part: Path, out: Path, names: Sequence[str] | dict[str, int]) -> None:
    if not out.exists():
        part.replace(out)
        return
    for name in names:
        (out / name).parent.mkdir(parents=True, exist_ok=True)
        (part / name).replace(out / name)


def onnx_files(pipe: Pipeline, folder: Path, *, int8: bool = False) -> None:
    """`<graph>.onnx` with its weights in `<graph>.onnx.data`, float32 or (UNet and decoders) int8; one graph's weights
    in memory at a time.
    """
    import onnx

    sessions = _model(pipe).sessions
    seen = trajectories(pipe) if int8 else {}
    for name in sessions.wanted:
        model = onnx.load(sessions.graphs / f"{name}.onnx", load_external_data=False)
        weights, end = sessions.merged_weights(name), 0
        if name in seen:
            for_int8(model, weights)
        with (folder / f"{name}.onnx.data").open("wb") as file:
            for tensor in model.graph.initializer:
                if tensor.data_location != onnx.TensorProto.EXTERNAL:
                    continue
                weight = weights.pop(tensor.name)
                begin = -(-end // _ALIGNED) * _ALIGNED if weight.nbytes >= _BIG else end
                file.write(bytes(begin - end))
                file.write(np.ascontiguousarray(weight).data)
                end = begin + weight.nbytes
                place = {"location": f"{name}.onnx.data", "offset": begin, "length": weight.nbytes}
                del tensor.external_data[:]
                for key, value in place.items():
                    tensor.external_data.add(key=key, value=str(value))
        (folder / f"{name}.onnx").write_bytes(model.SerializeToString())
        if name in seen:
            quantise_file(folder / f"{name}.onnx", seen[name])


def openvino_files(pipe: Pipeline, folder: Path, *, int8: bool = False) -> None:
    """`<graph>.xml` and `.bin`, float32 or (UNet and decoders) int8. Raises DeviceError without OpenVINO, or NNCF."""
    check_runtime("openvino")
    if int8 and find_spec("nncf") is None:
        raise DeviceError("int8 needs NNCF, which is not installed: pip install 'fewstep[int8]'")
    from fewstep.backends.openvino_session import read_network, silent_openvino

    sessions = _model(pipe).sessions
    seen = trajectories(pipe) if int8 else {}
    for name in sessions.wanted:
        network = read_network(sessions.graphs / f"{name}.onnx", sessions.merged_weights(name))
        if name in seen:
            network = quantised(network, seen[name])
        silent_openvino().save_model(network, folder / f"{name}.xml", compress_to_fp16=False)


def _write_tokenizers(model: OnnxModel, folder: Path) -> None:
    for name, files in model.text.tokenizer_files().items():
        (folder / name).mkdir()
        for file, content in files.items():
            (folder / name / file).write_text(content, encoding="utf-8")


def _facts(pipe: Pipeline, kind: str) -> dict[str, Any]:
    """How the model is sampled, with numbers: z0 = z x `z` + output x `output`, the next z = z0 x `keep` + noise x
    `add`, where the noise is new, or for other samplers than LCM (z - z0 x `alpha`) / `sigma`.
    """
    model, plan = _model(pipe), pipe.plan(Request(EXAMPLE))
    abar, rows = model.schedule.alphas_cumprod, []
    one = np.ones((1, 1), np.float32)
    for index, t in enumerate(plan.timesteps):
        t, then = int(t), int(plan.timesteps[index + 1]) if index + 1 < len(plan.timesteps) else None
        of_z = float(to_z0(model.schedule, one, one * 0, np.array([t]))[0, 0])
        of_output = float(to_z0(model.schedule, one * 0, one, np.array([t]))[0, 0])
        keep, add = (abar[then] ** 0.5, (1 - abar[then]) ** 0.5) if then is not None else (1.0, 0.0)
        row = {"timestep": t, "z": of_z, "output": of_output, "keep": keep, "add": add}
        rows.append(row | {"alpha": abar[t] ** 0.5, "sigma": (1 - abar[t]) ** 0.5})
    tokens = {
        name: {key: value.tolist() for key, value in given.items()}
        for name, given in model.text.tokens(EXAMPLE).items()
    }
    return {
        "model": model.name,
        "family": model.family.label,
        "format": kind,
        "loras": [{"name": lora.name, "weight": weight} for lora, weight in pipe.loras],
        "prediction": model.schedule.prediction,
        "sampler": plan.sampler.name,
        "guidance": plan.guidance,
        "size_px": model.family.size_px,
        "steps": rows,
        "prompt": EXAMPLE,
        "tokens": tokens,
        "given": _given(model, plan.guidance),
    }


def _given(model: OnnxModel, guidance: float) -> dict[str, Any]:
    """What the UNet is told beside latents, timestep and text, the same at every step."""
    given: dict[str, Any] = {}
    if len(model.text.names) > 1:
        given["time_ids_B6"] = [[model.family.size_px] * 2 + [0, 0] + [model.family.size_px] * 2]
    if model.guidance_width is not None:
        like = np.zeros(1, np.float32)
        given["guidance_BD"] = guidance_embedding(w_of(guidance), dim=model.guidance_width, like=like).tolist()
    return given
