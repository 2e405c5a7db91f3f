"""stable-diffusion.cpp by its Python package, from one file of the same weights.

pip install stable-diffusion-cpp-python builds it (cmake, a C++ compiler, some minutes). It knows the published
architectures by their widths, so it cannot load the embedded model, and it draws its own noise: its pictures are not
compared.
"""

from __future__ import annotations

from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from PIL import Image
from race import threads
from weights import cache, full_vae, made, seeded


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

    vae = job.folder / "vae" / "diffusion_pytorch_model.safetensors"
    tiny = {"taesd_path": str(vae)} if "tiny" in job.folder.name else {}
    model = StableDiffusion(model_path=str(one_file(job)), n_threads=threads(), wtype="f32", verbose=False, **tiny)
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


def one_file(job: Any) -> Path:
    """The folder's model in the original layout, kept in the cache; such a file has an ordinary autoencoder in it."""
    from fewstep.checkpoints.load import load_stored
    from fewstep.checkpoints.save_single import save_single

    folder = cache() / f"{job.folder.name}-one-file"
    with made(folder) as fresh:
        if fresh is not None:
            model = load_stored(job.folder)
            if type(model.vae).__name__ == "AutoencoderTiny":
                model.vae = seeded(lambda: full_vae("sd15", small=False)).half()
            save_single(model, fresh / "model.safetensors")
    return folder / "model.safetensors"
