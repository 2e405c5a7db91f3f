"""What a careful user writes without fewstep: plain torch.onnx exports of diffusers' modules, run in a lean loop.

Text encoder, UNet and decoder are exported once (kept in the cache) with a free batch, at one size, with the LoRA
fused; ONNX Runtime and OpenVINO run the same three files. Tokens by transformers' tokenizer, noise by torch, the LCM
step (arXiv:2310.04378, eq. 9 and algorithm 1) by numpy on diffusers' own table of timesteps.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from race import threads
from weights import made

from fewstep.backends.openvino_session import silent_openvino

Run = Callable[[Mapping[str, np.ndarray]], np.ndarray]
GRAPHS = ("text", "unet", "decoder")


def onnx_by_hand(job: Any) -> Any:
    """ONNX Runtime with its defaults and one thread a core."""
    check(job, "onnxruntime")
    import onnxruntime as ort

    def load(path: Path) -> Run:
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads()
        options.log_severity_level = 3
        try:
            session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        except RuntimeError:  # fewstep has made the process' one pool of as many threads, which all must share
            options.use_per_session_threads = False
            session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        return lambda inputs: session.run(None, dict(inputs))[0]

    return lean(job, load)


def openvino_by_hand(job: Any) -> Any:
    """OpenVINO in float32 with its latency hint."""
    check(job, "openvino")
    core = silent_openvino().Core()
    settings = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": threads()}

    def load(path: Path) -> Run:
        request = core.compile_model(core.read_model(path), "CPU", settings).create_infer_request()
        return lambda inputs: request.infer(dict(inputs))[0].copy()

    return lean(job, load)


def check(job: Any, library: str) -> None:
    """Raise Absent where it cannot take part."""
    from importlib.util import find_spec

    from contestants import Absent

    if missing := [name for name in (library, "onnx", "onnxscript") if find_spec(name) is None]:
        raise Absent(f"{missing[0]} is not installed: pip install {missing[0]}")
    if job.device != "cpu" or job.dtype != "float32":
        raise Absent("written for float32 on the CPU.")
    if job.xl:
        raise Absent("written for one text encoder.")
    job.check_memory(2.2)


def lean(job: Any, load: Callable[[Path], Run]) -> Any:
    """The three graphs in a loop."""
    from diffusers import LCMScheduler
    from transformers import CLIPTokenizer

    folder = exported(job)
    runs = {name: load(folder / f"{name}.onnx") for name in GRAPHS}
    tokenizer = CLIPTokenizer.from_pretrained(job.folder / "tokenizer")
    scheduler = LCMScheduler.from_pretrained(job.folder / "scheduler")
    return partial(paint, runs, tokenizer, scheduler, facts_of(job), job.seed)


def facts_of(job: Any) -> dict[str, Any]:
    """Side of the latents and scale of the autoencoder."""
    unet, vae = (json.loads((job.folder / part / "config.json").read_text()) for part in ("unet", "vae"))
    return {"side": unet["sample_size"], "scale": vae.get("scaling_factor", 1.0)}


def paint(
    runs: Mapping[str, Run], tokenizer: Any, scheduler: Any, facts: Mapping[str, Any], seed: int, *asked: Any
) -> list[Image.Image]:
    """Text to pictures."""
    prompt, steps, count = asked
    tokens = tokenizer(prompt, padding="max_length", max_length=77, truncation=True, return_tensors="np").input_ids
    text = np.repeat(runs["text"]({"tokens": tokens.astype(np.int64)}), count, axis=0)
    generators = [torch.Generator().manual_seed(seed + index) for index in range(count)]
    shape = (1, 4, facts["side"], facts["side"])

    def noise() -> np.ndarray:
        return torch.cat([torch.randn(shape, generator=generator) for generator in generators]).numpy()

    z = denoise(lambda z, t: runs["unet"]({"z": z, "t": t, "text": text}), noise, scheduler, steps)
    found = [runs["decoder"]({"z": one[None] / np.float32(facts["scale"])}) for one in z]
    pixels = np.rint((np.concatenate(found) + 1) * 127.5).clip(0, 255).astype(np.uint8).transpose(0, 2, 3, 1)
    return [Image.fromarray(one) for one in pixels]


def denoise(network: Any, noise: Callable[[], np.ndarray], scheduler: Any, steps: int) -> np.ndarray:
    """LCM sampling: predict, come to the clean latents, noise them anew."""
    scheduler.set_timesteps(steps)
    times = scheduler.timesteps.tolist()
    abar = scheduler.alphas_cumprod.numpy().astype(np.float64)
    velocity, z = scheduler.config.prediction_type == "v_prediction", noise()
    for index, t in enumerate(times):
        alpha, sigma = np.float32(abar[t] ** 0.5), np.float32((1 - abar[t]) ** 0.5)
        out = network(z, np.full(len(z), t, np.int64))
        z0 = alpha * z - sigma * out if velocity else (z - sigma * out) / alpha
        skip, keep = scheduler.get_scalings_for_boundary_condition_discrete(t)
        z = np.float32(keep) * z0 + np.float32(skip) * z
        if index + 1 < len(times):
            after = abar[times[index + 1]]
            z = np.float32(after**0.5) * z + np.float32((1 - after) ** 0.5) * noise()
    return z


# ---------------------------------------------------------------- export


class Text(torch.nn.Module):
    """Tokens in, the last layer out."""

    def __init__(self, encoder: Any) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """See the class."""
        return self.encoder(tokens).last_hidden_state


class Unet(torch.nn.Module):
    """Latents, timesteps and text in, the prediction out."""

    def __init__(self, unet: Any) -> None:
        super().__init__()
        self.unet = unet

    def forward(self, z: torch.Tensor, t: torch.Tensor, text: torch.Tensor) -> torch.Tensor:
        """See the class."""
        return self.unet(z, t, encoder_hidden_states=text, return_dict=False)[0]


class Decoder(torch.nn.Module):
    """Latents as the autoencoder has them in, a picture in [-1, 1] out."""

    def __init__(self, vae: Any) -> None:
        super().__init__()
        self.vae = vae

    def forward(self, z: torch.Tensor) -> torch.Tensor:
        """See the class."""
        return self.vae.decode(z, return_dict=False)[0]


def exported(job: Any) -> Path:
    """The folder of the three graphs, written where they are not there yet."""
    from contestants import exports, pipeline

    weights = job.folder / "unet" / "diffusion_pytorch_model.safetensors"
    stamp = f"{weights.stat().st_size} {job.folder.name} {job.lora} {torch.__version__}"
    folder = exports() / f"{job.folder.name}-{hashlib.sha256(stamp.encode()).hexdigest()[:8]}"
    with made(folder) as fresh:
        if fresh is not None:
            write_graphs(pipeline(job, fused=True), fresh)
    return folder


def write_graphs(pipe: Any, folder: Path) -> None:
    """By torch.onnx.export, with a free batch."""
    side, width = pipe.unet.config.sample_size, pipe.unet.config.cross_attention_dim
    z, batch = torch.randn(2, 4, side, side), torch.export.Dim("batch", min=1, max=64)
    inputs = {
        "text": (Text(pipe.text_encoder), {"tokens": torch.ones(2, 77, dtype=torch.int64)}),
        "unet": (Unet(pipe.unet), {"z": z, "t": torch.tensor([999, 1]), "text": torch.randn(2, 77, width)}),
        "decoder": (Decoder(pipe.vae), {"z": z}),
    }
    for name, (module, kwargs) in inputs.items():
        program = torch.onnx.export(
            module.eval(),
            kwargs=kwargs,
            input_names=list(kwargs),
            dynamic_shapes={key: {0: batch} for key in kwargs},
            dynamo=True,
            verbose=False,
        )
        program.save(folder / f"{name}.onnx", external_data=name == "unet")
