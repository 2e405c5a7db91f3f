"""Which back end runs a model: by name, or the one that is best here, and why.

| back end | what runs the networks | where |
|---|---|---|
| eager | PyTorch | any device, every request |
| compiled, graphs, tensorrt | PyTorch, by region; from CUDA graphs; by TensorRT | as their modules say |
| onnx | ONNX Runtime | CPU, float32 |
| openvino | OpenVINO | CPU, float32 or bfloat16 |
| both | ONNX Runtime; live frames by OpenVINO, when it has compiled | CPU; these frames in bfloat16 too |

What a back end cannot run (textual inversions, inpainting networks, networks that no graph knows) goes to eager, and a
note says so. Nothing here imports a runtime before it is chosen.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from fewstep.errors import DeviceError, GraphError, RequestError

if TYPE_CHECKING:
    from fewstep.backends.measured import Measured
    from fewstep.backends.onnx_model import OnnxModel
    from fewstep.checkpoints.load import Model

_FLOAT32 = (None, "auto", "fp32", "float32", "torch.float32")
_BFLOAT16 = ("bf16", "bfloat16", "torch.bfloat16")


class Asked(NamedTuple):
    """What a model is opened with; `parts` are `load_model`'s base, vae, tiny_vae and prediction; `memory` is a plan's
    name, `memory_limit` GB.
    """

    path: str | Path | None
    device: str | None
    dtype: str | None
    parts: dict[str, Any]
    memory: str = "auto"
    memory_limit: float | None = None

    @property
    def managed(self) -> bool:
        """Whether a memory plan was asked for."""
        return self.memory != "auto" or self.memory_limit is not None


def _eager(asked: Asked, why: str) -> Model:
    return _torch(asked, why, lambda model: model)


def _compiled(asked: Asked, why: str) -> Model:
    from fewstep.backends.compiled import compiled

    return _torch(asked, why, compiled)


def _tensorrt(asked: Asked, why: str) -> Model:
    from fewstep.backends.compiled import tensorrt

    return _torch(asked, why, tensorrt)


def _cuda_graphs(asked: Asked, why: str) -> Model:
    from fewstep.backends.graphs import graphed

    return _torch(asked, why, graphed)


def _torch(asked: Asked, why: str, faster: Callable[[Model], Model]) -> Model:
    """Loaded, made faster, and put under a memory plan, on a GPU or where one is asked for."""
    from fewstep.device import choose
    from fewstep.memory import plan_named

    if asked.memory_limit is not None and asked.memory_limit <= 0:
        raise RequestError(f"A memory limit of {asked.memory_limit:g} GB holds nothing. Give one above 0.")
    plan_named(asked.memory)
    limit = None if asked.memory_limit is None else int(asked.memory_limit * 1e9)
    where = choose(asked.device, asked.dtype).device
    from fewstep.checkpoints.load import load_model

    def loaded(home: str | None) -> Model:
        model = load_model(asked.path, device=asked.device, dtype=asked.dtype, home=home, **asked.parts)
        model.notes = (*model.notes, why) if why else model.notes
        return faster(model)

    if not asked.managed and not where.startswith("cuda"):
        return loaded(None)
    from fewstep.backends.placement import first_home, place

    model = loaded(first_home(where, asked.memory, limit))
    place(model, asked.memory, limit)
    return model


def _onnx(asked: Asked, why: str) -> OnnxModel:
    return _graphs("onnx", asked, why, ("float32",))


def _openvino(asked: Asked, why: str) -> OnnxModel:
    return _graphs("openvino", asked, why, ("float32", "bfloat16"))


def _both(asked: Asked, why: str) -> OnnxModel:
    return _graphs("both", asked, why, ("float32", "bfloat16"))


def _graphs(runtime: str, asked: Asked, why: str, dtypes: tuple[str, ...]) -> OnnxModel:
    from fewstep.backends.onnx_model import open_onnx
    from fewstep.backends.sessions import check_runtime

    check_runtime(runtime)
    if asked.device not in (None, "auto", "cpu"):
        raise DeviceError(f"The back end {runtime} runs on the CPU, and {asked.device} was asked for. Use eager there.")
    dtype = "float32" if asked.dtype in _FLOAT32 else "bfloat16" if asked.dtype in _BFLOAT16 else str(asked.dtype)
    if dtype not in dtypes:
        raise DeviceError(f"The back end {runtime} computes in {' or '.join(dtypes)}, and {dtype} was asked for.")
    return open_onnx(asked.path, runtime=runtime, dtype=dtype, reason=why, **asked.parts)


BACKENDS: dict[str, Callable[[Asked, str], Model | OnnxModel]] = {
    "eager": _eager,
    "compiled": _compiled,
    "graphs": _cuda_graphs,
    "tensorrt": _tensorrt,
    "onnx": _onnx,
    "openvino": _openvino,
    "both": _both,
}
"""Name -> what opens a model for it, with why it was chosen. It raises GraphError for a model that it cannot run."""

NAMES = ("auto", *BACKENDS)
ON_GRAPHS = ("onnx", "openvino", "both")
SINGLE = tuple(name for name in BACKENDS if name != "both")
"""Those that are worth measuring."""


def open_with(asked: Asked, backend: str | None = None, *, embeddings: bool = False) -> Model | OnnxModel:
    """A model for the back end of this name; for the best one here where the name is None or "auto".

    Raises CheckpointError for the model's files, DeviceError for device, dtype and a runtime that is not installed,
    RequestError for another name.
    """
    name, why = (backend or "auto"), "asked for"
    if name not in NAMES:
        raise RequestError(f"There is no back end called {name!r}. Use {', '.join(NAMES)}.")
    if name == "auto":
        name, why = ("eager", "") if embeddings or asked.managed else _best(asked)
    elif embeddings and name in ON_GRAPHS:
        return _eager(asked, f"eager and not {name}, which cannot read textual inversions")
    elif asked.managed and name in ON_GRAPHS:
        return _eager(asked, f"eager and not {name}, which has no memory plans")
    try:
        return BACKENDS[name](asked, why)
    except GraphError as error:
        return _eager(asked, f"eager and not {name}: {error}")


def _best(asked: Asked) -> tuple[str, str]:
    """(name, why): what was measured to be best; else ONNX Runtime where a model brings its graphs; else PyTorch.

    The embedded model goes to ONNX Runtime also where a GPU might be there, because that paints a picture in less time
    than torch takes to look for one.
    """
    own = _brings_graphs(asked)
    cpu = asked.device in (None, "auto", "cpu") and asked.dtype in _FLOAT32
    if cpu and (measured := _measured(asked)) is not None and (own or asked.device == "cpu" or not _has_gpu()):
        return measured.best, measured.why
    if cpu and own and find_spec("onnxruntime") is not None and (asked.path is None or asked.device == "cpu"):
        return "onnx", "it answers before torch could be imported"
    return "eager", ""


def _brings_graphs(asked: Asked) -> bool:
    from fewstep.checkpoints.description import assets_path

    folder = assets_path() if asked.path is None else Path(asked.path).expanduser()
    return not any(asked.parts.values()) and (folder / "onnx" / "weights.json").is_file()


def _measured(asked: Asked) -> Measured | None:
    """What was measured here, of the back ends that are still there."""
    from fewstep.backends.cache import cache_folder

    if not (cache_folder() / "backends.json").is_file():
        return None
    from fewstep.backends.measured import Measured, recall
    from fewstep.checkpoints.complete import describe_model

    found = recall(describe_model(asked.path, **asked.parts))
    ms = {name: value for name, value in found.ms.items() if name in BACKENDS} if found else {}
    return Measured(ms, found.date) if found and ms else None


def _has_gpu() -> bool:
    from fewstep.device import choose

    return choose().device != "cpu"
