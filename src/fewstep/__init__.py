"""fewstep: pictures from text in one to eight steps.

    import fewstep

    pipe = fewstep.load()
    pipe("a red apple, 3d", steps=4, seed=7).save("apple.png")

Importing this does not import torch; `load` does.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from fewstep.errors import FewstepError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from fewstep.pipeline import LoraChoice, Pipeline
    from fewstep.request import Request

__version__ = "0.1.0"
__all__ = ["FewstepError", "Pipeline", "Request", "__version__", "load"]

_LATER = {"Pipeline": "fewstep.pipeline", "Request": "fewstep.request"}


def load(
    path: str | Path | None = None,
    *,
    lora: LoraChoice = None,
    device: str | None = None,
    dtype: str | None = None,
    backend: str | None = None,
    base: str | Path | None = None,
    vae: str | Path | None = None,
    tiny_vae: str | Path | None = None,
    prediction: str | None = None,
    lora_folder: str | Path | None = None,
    embeddings: str | Path | Sequence[str | Path] | None = None,
    memory: str = "auto",
    memory_limit: float | None = None,
) -> Pipeline:
    """A pipeline from a .safetensors file, a model folder or a Hub name; from the embedded model when there is no path.

    lora is a path, a (path, weight) pair, or a list of them; False or () for none. The embedded model brings its own
    few-step LoRA unless told otherwise. device and dtype are chosen when not given; `pipe.notes` says what and why.
    backend is "eager", "compiled", "graphs" or "tensorrt" (PyTorch), "onnx" (ONNX Runtime) or "openvino"; "auto", the
    default, takes the one that was measured to be best (`fewstep info --backends`), else ONNX Runtime for the embedded
    model and PyTorch for others.
    base is a model that lends what the file lacks (a UNet alone has no text encoder and no VAE), vae another VAE's file
    or model, tiny_vae a tiny one (TAESD) for previews and live pictures, prediction ("eps", "v") what the UNet predicts
    where its file does not say. lora_folder is where the names in prompts are looked up, embeddings are textual
    inversions: files, or folders of them. memory is a plan for a GPU's ("auto", "full", "high", "medium", "tiled",
    "low", "fp8"), memory_limit what of it may be used, in GB.

    Raises:
        CheckpointError: the model cannot be loaded. LoraError: a LoRA cannot. DeviceError: no such device or back end.
    """
    from fewstep.pipeline import load as load_pipeline

    parts = {"base": base, "vae": vae, "tiny_vae": tiny_vae, "prediction": prediction}
    shelves = {"lora_folder": lora_folder, "embeddings": embeddings}
    how = {"backend": backend, "memory": memory, "memory_limit": memory_limit}
    return load_pipeline(path, lora=lora, device=device, dtype=dtype, **parts, **shelves, **how)


def __getattr__(name: str) -> Any:
    if name not in _LATER:
        raise AttributeError(f"module 'fewstep' has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(_LATER[name]), name)
