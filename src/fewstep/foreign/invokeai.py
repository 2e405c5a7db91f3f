"""InvokeAI's three formats: `invokeai_metadata` (3.0 and later), `sd-metadata` (2.x) and `Dream` (the oldest).

Its names of samplers end in _k where the schedule is Karras'; without it the steps are even. In the two old formats
negative prompts are written in [brackets] inside the prompt. Its own emphasis (word++, (words)1.2) is kept as it is.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from fewstep.foreign.documents import Document, loaded, named, number_of, objects, size_of, text_of, told
from fewstep.foreign.names import lora_tag, sampler_names
from fewstep.infotext import Infotext

_HEX = re.compile(r"(?:sha256:)?([0-9a-f]{8,64})")
_ARGUMENT = re.compile(r"-([A-Za-z]) ?([^\s-]\S{0,80}|-[0-9]\S{0,80})")
_NEGATIVE = re.compile(r"\[([^\[\]]*)\]")
_DREAM = {"s": "Steps", "S": "Seed", "C": "CFG scale", "A": "Sampler", "f": "Denoising strength", "I": "Init image"}


def metadata(texts: Mapping[str, str]) -> Infotext | None:
    """`invokeai_metadata`: models and LoRAs are objects, `clip_skip` counts the layers left out."""
    document = loaded(texts.get("invokeai_metadata"))
    if document is None:
        return None
    loras = [
        lora_tag(named(entry.get("model") or entry.get("lora")), number_of(entry.get("weight")))
        for entry in objects(document.get("loras"))
    ]
    model = document.get("model")
    hashed = _HEX.fullmatch(text_of(model.get("hash")) if isinstance(model, dict) else "")
    started = _says_image(document)
    return told(
        "InvokeAI",
        document,
        {"positive_prompt": "prompt", "negative_prompt": "negative prompt", "cfg_scale": "CFG scale"}
        | {"seed": "Seed", "steps": "Steps", "scheduler": "Sampler"},
        ignored={"model", "vae", "loras", "width", "height", "rand_device", "clip_skip", "app_version", "canvas_v2"}
        | {"generation_mode", "strength", "init_image", "positive_style_prompt", "negative_style_prompt"}
        | {"ref_images", "regions"},
        loras=loras,
        Model=named(model),
        VAE=named(document.get("vae")),
        Model_hash=hashed[1] if hashed else "",
        Size=size_of(document.get("width"), document.get("height")),
        Schedule_type=_schedule(text_of(document.get("scheduler"))),
        Clip_skip=str(int(number_of(document.get("clip_skip"), 0)) + 1),
        RNG="CPU" if document.get("rand_device", "cpu") == "cpu" else "GPU",
        Init_image=text_of(document.get("init_image")) if started else "",
        Denoising_strength=text_of(document.get("strength")) if started else "",
    )


def _says_image(document: Document) -> bool:
    return bool(document.get("init_image")) or "img2img" in text_of(document.get("generation_mode"))


def _schedule(scheduler: str) -> str:
    return sampler_names(scheduler)[1] or ("" if scheduler.lower() in ("lcm", "tcd", "") else "Normal")


def sd_metadata(texts: Mapping[str, str]) -> Infotext | None:
    """`sd-metadata`: the settings stand under `image`, the model beside it; a prompt is a text or weighted texts."""
    outer = loaded(texts.get("sd-metadata"))
    document = outer.get("image") if outer is not None else None
    if outer is None or not isinstance(document, dict):
        return None
    written: Any = document.get("prompt")
    if not isinstance(written, str):
        written = ", ".join(text_of(entry.get("prompt")) for entry in objects(written))
    prompt, negative = _split(text_of(written))
    started = "img2img" in text_of(document.get("type"))
    return told(
        "InvokeAI",
        document,
        {"steps": "Steps", "cfg_scale": "CFG scale", "seed": "Seed", "sampler": "Sampler"},
        ignored={"prompt", "width", "height", "type", "strength", "init_image_path", "postprocessing", "orig_hash"},
        prompt=prompt,
        negative_prompt=negative,
        Model=named(outer.get("model_weights")),
        Size=size_of(document.get("width"), document.get("height")),
        Schedule_type=_schedule(text_of(document.get("sampler"))),
        RNG="CPU",
        Init_image="its start picture" if started else "",
        Denoising_strength=text_of(document.get("strength")) if started else "",
    )


def dream(texts: Mapping[str, str]) -> Infotext | None:
    """`Dream`: the command itself, `"a cat [blurry]" -s 50 -S 7 -W 512 -H 512 -C 7.5 -A k_lms`."""
    text = texts.get("Dream", "").strip()
    if not text.startswith('"'):
        return None
    end = max(text.rfind('" -'), text.rfind('"') if text.endswith('"') else 0)
    if end <= 0:
        return None
    prompt, negative = _split(text[1:end])
    found = dict(_ARGUMENT.findall(text[end + 1 :]))
    keys = {flag: name for flag, name in _DREAM.items() if flag in found}
    return told(
        "InvokeAI",
        found,
        keys,
        ignored={"W", "H"},
        prompt=prompt,
        negative_prompt=negative,
        Size=size_of(found.get("W"), found.get("H")),
        Schedule_type=_schedule(found.get("A", "")),
        RNG="CPU",
    )


def _split(text: str) -> tuple[str, str]:
    """The prompt without its [negative parts], and those.

    >>> _split("a cat [blurry], red [dark]")
    ('a cat, red', 'blurry, dark')
    """
    return _NEGATIVE.sub("", text).replace(" ,", ",").strip(), ", ".join(
        part for part in _NEGATIVE.findall(text) if part
    )
