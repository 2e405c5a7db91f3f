"""Who paints in the races: fewstep by each of its back ends, and diffusers, from the same weights, noise and prompts.

A contestant is a function of (prompt, steps, count) that gives `count` pictures with the seeds that follow the job's.
Text, network and autoencoder are inside. `Absent` says in one sentence why one cannot take part here.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from race import memory_gb
from weights import KINDS, random_folder
from weights import cache as cache_folder

import fewstep

Paint = Callable[[str, int, int], list[Image.Image]]
BACK_ENDS = ("eager", "compiled", "graphs", "onnx", "openvino")
ON_DEVICE = ("eager", "compiled", "graphs")
PLAIN, TUNED, PLAIN_HALF = "diffusers", "diffusers compiled", "diffusers bf16"
PLAIN_FULL = "diffusers, full autoencoder"
"""With the one that Stable Diffusion comes with, where everybody else has the tiny one."""

BY_HAND = "OpenVINO by hand"
OWN, FULL, HALF = "fewstep", "fewstep full", "fewstep openvino bf16"
"""As it comes, with the autoencoder that a model finds good enough; with everybody's; in bfloat16 by OpenVINO."""


class Absent(Exception):  # noqa: N818 - a reason, not a fault
    """Why a contestant does not take part."""


@dataclass(frozen=True)
class Job:
    """What all contestants paint with: a diffusers folder (None: the embedded model) and a LoRA beside it."""

    model: Path | None
    lora: Path | None = None
    device: str = "cpu"
    dtype: str = "float32"
    seed: int = 7

    @property
    def folder(self) -> Path:
        """The model's folder."""
        return self.model or embedded_model()

    @property
    def lora_file(self) -> Path | None:
        """The LoRA that was named, or the embedded model's own."""
        return self.lora or (self.folder / "lcm-lora.safetensors" if self.model is None else None)

    @property
    def xl(self) -> bool:
        """Whether it has two text encoders."""
        return (self.folder / "text_encoder_2").is_dir()

    def check_memory(self, copies: float) -> None:
        """Raise Absent where so many copies of the weights, in the job's number format, have no room on a CPU."""
        files = self.folder.rglob("*.safetensors")
        stored = sum(file.stat().st_size for file in files)  # folders here are fp16
        need = copies * stored * (1 if self.device != "cpu" or self.dtype != "float32" else 2) / 2**30
        free = memory_gb()
        if self.device == "cpu" and free is not None and need + 1 > free:
            raise Absent(f"it needs some {need + 1:.1f} GB of memory, and {free:g} GB are free.")


def embedded_model() -> Path:
    """Where the package's own model lies."""
    return Path(fewstep.__file__).parent / "assets" / "pictogram"


def autoencoder_of(job: Job) -> str:
    """What every contestant decodes with."""
    config = json.loads((job.folder / "vae" / "config.json").read_text(encoding="utf-8"))
    tiny = config["_class_name"] == "AutoencoderTiny"
    widths = config["decoder_block_out_channels" if tiny else "block_out_channels"]
    return f"{config['_class_name']}, {'-'.join(map(str, widths))} channels"


# ---------------------------------------------------------------- fewstep


def ours(back_end: str | None, job: Job, autoencoder: str = "full", **how: Any) -> Paint:
    """fewstep by one back end, or (None) by the one that `load` takes unasked."""
    return partial(paint_ours, loaded(back_end, job, **how), job.seed, autoencoder)


def loaded(back_end: str | None, job: Job, **more: Any) -> Any:
    """The pipeline; raises Absent where this back end is not to be had."""
    chosen = "backend" in inspect.signature(fewstep.load).parameters
    if back_end not in (None, "eager") and not chosen:
        raise Absent("this fewstep.load() has no backend=.")
    if job.device != "cpu" and back_end not in (None, *ON_DEVICE):
        raise Absent(f"it runs on the CPU, and the race is on {job.device}.")
    job.check_memory(1.3 if back_end in (None, "eager", "compiled") else 2.2)
    model, lora = (job.model, job.lora) if back_end is None else (job.folder, job.lora_file)
    how: dict[str, Any] = {"backend": back_end} if back_end and chosen else {}
    if model is not None and (chosen or job.device != "cpu"):  # without backend=, a folder and no device mean PyTorch
        how |= {"device": job.device, "dtype": job.dtype}
    try:
        pipe = fewstep.load(model, lora=lora, **(how | more))
    except (fewstep.FewstepError, ImportError) as error:
        raise Absent(first_sentence(error)) from None
    for note in pipe.model.notes:
        if note.startswith(f"eager and not {back_end}"):
            raise Absent(note)
    return pipe


def paint_ours(pipe: Any, seed: int, autoencoder: str, prompt: str, steps: int, count: int) -> list[Image.Image]:
    """As a user does, `count` of them in one batch."""
    pipe.batch = count
    how = {"guidance": 1.0, "sampler": "lcm", "autoencoder": autoencoder}
    found = pipe(prompt, steps=steps, seed=seed, count=count, **how)
    return found if isinstance(found, list) else [found]


def first_sentence(error: BaseException) -> str:
    """Of what went wrong."""
    return str(error).strip().splitlines()[0][:200] if str(error).strip() else type(error).__name__


# ---------------------------------------------------------------- diffusers


def theirs(job: Job, *, tuned: bool = False, dtype: str | None = None) -> Paint:
    """diffusers as its documentation shows for an LCM-LoRA; tuned: the LoRA fused, channels last, UNet and decoder
    compiled, on CUDA with "max-autotune-no-cudagraphs" and fused projections. `dtype`: another than the job's.
    """
    job = job if dtype is None else replace(job, dtype=dtype)
    job.check_memory(1.3)
    pipe = pipeline(job)
    if tuned:
        tune(pipe, job.device)
    return partial(paint_theirs, pipe, job.seed)


def theirs_full(job: Job) -> Paint:
    """diffusers with random weights' full autoencoder."""
    if job.model is None or (kind := job.model.name.partition("-tiny")[0]) not in KINDS:
        raise Absent("only models of random weights have two autoencoders, and this one's folder has one.")
    return theirs(replace(job, model=random_folder(kind, small=job.model.name.endswith("small"), vae="full")))


def pipeline(job: Job, *, fused: bool = False) -> Any:
    """diffusers' own pipeline with its own LoRA loader."""
    from diffusers import DiffusionPipeline, LCMScheduler

    options = {} if job.xl else {"safety_checker": None}
    pipe = DiffusionPipeline.from_pretrained(job.folder, torch_dtype=getattr(torch, job.dtype), **options)
    pipe.scheduler = LCMScheduler.from_config(pipe.scheduler.config)
    if job.lora_file:
        pipe.load_lora_weights(job.lora_file.parent, weight_name=job.lora_file.name)
        if fused:
            pipe.fuse_lora()
            pipe.unload_lora_weights()
    pipe.to(job.device).set_progress_bar_config(disable=True)
    return pipe


def tune(pipe: Any, device: str) -> None:
    """What diffusers' own pages on speed advise."""
    if pipe.get_active_adapters():
        pipe.fuse_lora()
        pipe.unload_lora_weights()
    if device != "cpu":
        pipe.fuse_qkv_projections()
    pipe.unet.to(memory_format=torch.channels_last)
    pipe.vae.to(memory_format=torch.channels_last)
    mode = "default" if device == "cpu" else "max-autotune-no-cudagraphs"
    pipe.unet = torch.compile(pipe.unet, mode=mode)
    pipe.vae.decode = torch.compile(pipe.vae.decode, mode=mode)


def paint_theirs(pipe: Any, seed: int, prompt: str, steps: int, count: int) -> list[Image.Image]:
    """One call, a generator for each picture."""
    generators = [torch.Generator().manual_seed(seed + index) for index in range(count)]
    return pipe(
        prompt,
        num_inference_steps=steps,
        guidance_scale=1.0,
        generator=generators,
        num_images_per_prompt=count,
    ).images


# ---------------------------------------------------------------- all of them


@cache
def builders() -> dict[str, Callable[[Job], Paint]]:
    """Every contestant by name; those of fewstep first."""
    from by_hand import onnx_by_hand, openvino_by_hand
    from cpp import stable_diffusion_cpp

    found: dict[str, Callable[[Job], Paint]] = {OWN: partial(ours, None, autoencoder="auto")}
    found |= {FULL: partial(ours, None), HALF: partial(ours, "openvino", autoencoder="auto", dtype="bf16")}
    found |= {f"fewstep {name}": partial(ours, name) for name in BACK_ENDS}
    found |= {PLAIN: theirs, TUNED: partial(theirs, tuned=True), PLAIN_HALF: partial(theirs, dtype="bfloat16")}
    found |= {PLAIN_FULL: theirs_full}
    found |= {"ONNX Runtime by hand": onnx_by_hand, BY_HAND: openvino_by_hand}
    return found | {"stable-diffusion.cpp": stable_diffusion_cpp}


def gathered(names: Sequence[str], job: Job) -> tuple[dict[str, Paint], dict[str, str]]:
    """Those who take part, and why the others do not; ends the script where none of fewstep does."""
    found: dict[str, Paint] = {}
    skipped: dict[str, str] = {}
    for name in names:
        try:
            found[name] = builders()[name](job)
        except Absent as reason:
            skipped[name] = str(reason)
        except Exception as error:  # noqa: BLE001 - one who fails does not spoil the race for the others
            skipped[name] = f"failed: {type(error).__name__}: {first_sentence(error)}"
    if not any(name.startswith("fewstep") for name in found):
        reasons = "; ".join(f"{name}: {reason}" for name, reason in skipped.items())
        raise SystemExit(f"None of fewstep takes part in this race ({reasons}). Name another one with --contestants.")
    return found, skipped


def difference(a: Image.Image, b: Image.Image) -> dict[str, float]:
    """Largest and mean absolute difference, 0 to 255."""
    delta = np.abs(np.asarray(a, np.int16) - np.asarray(b, np.int16))
    return {"largest": float(delta.max()), "mean": round(float(delta.mean()), 3)}


def exports() -> Path:
    """Where graphs written by hand are kept."""
    return cache_folder() / "by-hand"
