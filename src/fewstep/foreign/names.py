"""What other programs call the samplers and schedules that A1111 and we know."""

from __future__ import annotations

import re
from pathlib import PurePosixPath

SAMPLERS = {
    "euler": "Euler",
    "euler a": "Euler a",
    "heun": "Heun",
    "dpm2": "DPM2",
    "dpm2 a": "DPM2 a",
    "lms": "LMS",
    "plms": "PLMS",
    "dpm fast": "DPM fast",
    "dpm adaptive": "DPM adaptive",
    "dpmpp 2s a": "DPM++ 2S a",
    "dpmpp sde": "DPM++ SDE",
    "dpmpp 2m": "DPM++ 2M",
    "dpmpp 2m sde": "DPM++ 2M SDE",
    "dpmpp 2m sde heun": "DPM++ 2M SDE Heun",
    "dpmpp 3m sde": "DPM++ 3M SDE",
    "ddim": "DDIM",
    "unipc": "UniPC",
    "restart": "Restart",
    "lcm": "LCM",
    "tcd": "TCD",
}
"""Spelt as `_plain` spells -> A1111's label."""

_OTHER = {
    "eulera": "euler a",
    "eulerancestral": "euler a",
    "kdpm 2": "dpm2",
    "kdpm 2 a": "dpm2 a",
    "dpm 2": "dpm2",
    "dpm 2 a": "dpm2 a",
    "dpmpp 2 a": "dpmpp 2s a",
    "dpmadaptative": "dpm adaptive",
    "dpmpp 2": "dpmpp 2m",
    "uni pc": "unipc",
    "uni pc bh2": "unipc",
    "unipc snr": "unipc",
    "unipc tu": "unipc",
    "unipc tq": "unipc",
    "unipc snr 2": "unipc",
    "pndm": "plms",
    "ddim v3": "ddim",
}
SCHEDULES = {
    "normal": "Normal",
    "karras": "Karras",
    "exponential": "Exponential",
    "polyexponential": "Polyexponential",
    "sgm uniform": "SGM Uniform",
    "lcm": "SGM Uniform",
    "tcd": "SGM Uniform",
    "simple": "Simple",
    "ddim uniform": "DDIM",
    "ddim": "DDIM",
    "beta": "Beta",
    "betasampling": "Beta",
    "kl optimal": "KL Optimal",
    "align your steps": "Align Your Steps",
    "alignyoursteps": "Align Your Steps",
    "ays": "Align Your Steps",
    "ays sdxl": "Align Your Steps",
    "ays sd15": "Align Your Steps",
    "uniform": "Uniform",
    "native": "Normal",
}
_TRAILING = {"karras": "Karras", "k": "Karras", "ays": "Align Your Steps", "trailing": "trailing"}
_WEIGHTS = (".safetensors", ".ckpt", ".pt", ".pth", ".bin", ".gguf")


def sampler_names(name: str) -> tuple[str, str]:
    """A1111's label of a sampler, and of the schedule that its name includes, "" for none; unknown names as they are.

    >>> sampler_names("dpmpp_2m_sde_gpu"), sampler_names("k_euler_ancestral"), sampler_names("dpmpp_2m_k")
    (('DPM++ 2M SDE', ''), ('Euler a', ''), ('DPM++ 2M', 'Karras'))
    >>> sampler_names("DPM++ 2M AYS"), sampler_names("euler_cfg_pp")
    (('DPM++ 2M', 'Align Your Steps'), ('euler_cfg_pp', ''))
    """
    plain = _plain(name)
    if (label := SAMPLERS.get(_OTHER.get(plain, plain))) is not None:
        return label, ""
    bare, _, last = plain.rpartition(" ")
    label = SAMPLERS.get(_OTHER.get(bare, bare))
    return (label, _TRAILING[last]) if label is not None and last in _TRAILING else (name, "")


def schedule_name(name: str) -> str:
    """A1111's label of a schedule; unknown names as they are.

    >>> schedule_name("sgm_uniform"), schedule_name("ddim_uniform"), schedule_name("linear_quadratic")
    ('SGM Uniform', 'DDIM', 'linear_quadratic')
    """
    return SCHEDULES.get(_plain(name), name)


def _plain(name: str) -> str:
    text = re.sub(r"[_\s]+", " ", name[:80].strip().lower()).replace("dpm++", "dpmpp").removeprefix("k ")
    return text.removesuffix(" gpu").replace("ancestral", "a")


def file_name(path: str) -> str:
    r"""A model's name as A1111 writes it: without folders of any system and without the extension of weights.

    >>> file_name("sd\\v1.5\\dream.v8.safetensors"), file_name("owner/name")
    ('dream.v8', 'name')
    """
    name = PurePosixPath(path.replace("\\", "/")).name
    ending = next((ending for ending in _WEIGHTS if name.lower().endswith(ending)), "")
    return name[: len(name) - len(ending)]


def lora_tag(name: str, unet: float, text: float | None = None) -> str:
    """A LoRA in A1111's notation, "" where its name cannot be written in it.

    >>> lora_tag("styles/ink.safetensors", 0.8), lora_tag("ink", 1, 0.5), lora_tag("a:b", 1)
    ('<lora:ink:0.8>', '<lora:ink:0.5:1>', '')
    """
    name = file_name(name)
    if not name or name.startswith(".") or set(name) & set("<>:/\\"):
        return ""
    return f"<lora:{name}:{unet:g}>" if text in (None, unet) else f"<lora:{name}:{text:g}:{unet:g}>"
