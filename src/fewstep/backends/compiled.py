"""The UNet's repeated blocks and the decoder, compiled by torch.compile; the model is otherwise the same.

By region (diffusers' `compile_repeated_blocks`): the blocks of one kind share their code, so that the compiler sees a
few of them and not the hundreds that a UNet is made of. Sizes are dynamic, so another picture size or batch compiles
nothing anew; torch treats a batch of exactly one as a case of its own. Weights are inputs of the compiled code: merging
a LoRA changes numbers and no code.
"""

from importlib import import_module
from importlib.util import find_spec
from typing import Any

import torch

from fewstep.checkpoints.load import Model


def compiled(model: Model, **how: Any) -> Model:
    """The same model, compiled in place when it is first called; `how` goes to torch.compile (backend, mode, options).

    Where nothing can be compiled (no C++ compiler, no Triton) the model is as it was, and a note says so.
    """
    failed = why_not(**how)
    if failed:
        return noted(model, f"not compiled, so it runs as eager: {failed}")
    if model.device.startswith("cuda"):
        channels_last(model)
    _keep_code()
    model.unet.compile_repeated_blocks(**{"dynamic": True, **how})
    model.vae.decoder.compile(**{"dynamic": True, **how})
    return noted(model, "compiled by torch.compile: the first picture waits for the compiler")


def tensorrt(model: Model) -> Model:
    """The same by TensorRT, through torch-tensorrt's back end of torch.compile. Unmeasured: no GPU was at hand.

    Its engines hold their own copies of the weights, so a LoRA that is merged later makes it compile anew.
    """
    if find_spec("torch_tensorrt") is None:
        return noted(model, "torch-tensorrt is not installed, so the model runs as eager. pip install torch-tensorrt")
    import_module("torch_tensorrt")  # which registers the back end
    return compiled(model, backend="torch_tensorrt", dynamic=False)


def _keep_code() -> None:
    """For this process: sizes that happen to be equal (a square picture) are not taken to be so for ever, and the
    widths of a UNet's levels, each for one picture and for several, may all have code of their own.
    """
    from torch._dynamo import config
    from torch.fx.experimental import _config as shapes

    shapes.use_duck_shape = False
    config.recompile_limit = max(config.recompile_limit, 32)


def channels_last(model: Model) -> None:
    """Convolutions of a GPU in half precision want their weights in this order."""
    for module in (model.unet, model.vae):
        module.to(memory_format=torch.channels_last)


def why_not(**how: Any) -> str:
    """What stands in the way of compiling here, in words; empty if a small function compiles and runs."""
    try:
        torch.compile(_probe, **how)(torch.ones(3))
    except Exception as error:  # noqa: BLE001 - each back end of the compiler has exceptions of its own
        return f"torch.compile failed here ({' '.join(str(error).split())[:160]})"
    return ""


def _probe(x: torch.Tensor) -> torch.Tensor:
    return torch.tanh(x) + 1


def noted(model: Model, note: str) -> Model:
    """The model, with one more note."""
    model.notes = (*model.notes, note)
    return model
