"""stable-diffusion.cpp by its Python package, from one file of the same weights.

pip install stable-diffusion-cpp-python builds it (cmake, a C++ compiler, some minutes). It knows the published
architectures by their widths, so it cannot load the embedded model, and it draws its own noise: its pictures are not
compared.
"""

from __future__ import annotations

from functools import partial
from importlib.util import find_spec
from typing import Any

import torch
from PIL import Image
from race import cores
from weights import cache, made


def stable_diffusion_cpp(job: Any) -> Any:
    """Raises Absent where it is not installed, or does not know the model."""
    from contestants import Absent, embedded_model

    if find_spec("stable_diffusion_cpp") is None:
        raise Absent("not installed: pip install stable-diffusion-cpp-python (needs cmake and a C++ compiler)")
    if job.folder == embedded_model() or job.xl or job.lora is not None or "small" in job.folder.name:
        raise Absent("here for Stable Diffusion 1.5's own shape without a LoRA.")
    if job.device != "cpu":
        raise Absent("here for the CPU.")
    job.check_memory(1.3)
    from stable_diffusion_cpp import StableDiffusion

    files = one_file(job)
    tiny = {"taesd_path": str(files / "tiny.safetensors")} if (files / "tiny.safetensors").exists() else {}
    model = StableDiffusion(
        model_path=str(files / "model.safetensors"), n_threads=cores(), wtype="f32", verbose=False, **tiny
    )
    return partial(paint, model, job.seed)


def paint(model: Any, seed: int, prompt: str, steps: int, count: int) -> list[Image.Image]:
    """By its LCM sampler; it makes several pictures one after the other."""
    return model.generate_image(
        prompt=prompt,
        width=512,
        height=512,
        seed=seed,
        sample_steps=steps,
        batch_count=count,
        sample_method="lcm",
        cfg_scale=1.0,
    )


def one_file(job: Any) -> Any:
    """The folder's model as one file in the original layout, its tiny autoencoder in another, kept in the cache."""
    from fewstep.checkpoints.load import load_stored
    from fewstep.checkpoints.save_single import save_single

    with made(cache() / f"{job.folder.name}-one-file") as fresh:
        if fresh is not None:
            model = load_stored(job.folder)
            if type(model.vae).__name__ == "AutoencoderTiny":
                write_tiny(model.vae, fresh / "tiny.safetensors")
                model.vae = full_vae()
            save_single(model, fresh / "model.safetensors")
    return cache() / f"{job.folder.name}-one-file"


def full_vae() -> Any:
    """A file without an ordinary autoencoder is not read; it is not used."""
    from weights import full_vae as build
    from weights import seeded

    return seeded(lambda: build("sd15", small=False)).half()


def write_tiny(vae: Any, path: Any) -> None:
    """With TAESD's own names: `decoder.layers.0` is `decoder.1` there, as its first layer is a clamp."""
    from safetensors.torch import save_file

    def name(key: str) -> str:
        part, _, rest = key.partition(".layers.")
        number, _, leaf = rest.partition(".")
        return f"{part}.{int(number) + (part == 'decoder')}.{leaf}"

    save_file({name(key): value.to(torch.float16).contiguous() for key, value in vae.state_dict().items()}, path)
