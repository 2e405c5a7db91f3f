"""Settings that are one JSON object, or one text for each key."""

from __future__ import annotations

import html
import json
import re
from collections.abc import Iterable, Mapping
from typing import Any

from fewstep.foreign.names import file_name, lora_tag, sampler_names, schedule_name
from fewstep.infotext import COMMENT_KEY, PNG_KEY, Infotext, cleaned, number_text

Document = Mapping[str, Any]
_PAIR = re.compile(r"\D{0,3}([0-9]{1,6})\D{1,3}([0-9]{1,6})\D{0,3}")
_LORA = re.compile(r"(.{1,300}) : (-?[0-9.]{1,20})")


def loaded(text: str | None) -> Document | None:
    """The JSON object that a text is; None for anything else, however deep or damaged."""
    if not text or not text.lstrip().startswith("{"):
        return None
    try:
        found = json.loads(text.strip().rstrip("\0"))
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None


def text_of(value: Any) -> str:
    """A value as the text of a setting: numbers at their shortest, lists and objects as JSON, "" for nothing."""
    if value is None or isinstance(value, str):
        return cleaned(value or "")
    if isinstance(value, float):
        return number_text(value)
    try:
        return cleaned(json.dumps(value, ensure_ascii=False))
    except (ValueError, RecursionError):
        return ""


def number_of(value: Any, default: float = 1.0) -> float:
    """A value as a finite number, from a number or its text."""
    try:
        number = default if isinstance(value, bool) else float(value)
    except (TypeError, ValueError, OverflowError):
        return default
    return number if abs(number) < 1e6 else default


def objects(value: Any) -> list[Document]:
    """The objects in a list; none where it is no list."""
    return [entry for entry in value if isinstance(entry, dict)] if isinstance(value, list) else []


def named(value: Any) -> str:
    """A model's name, given as text or as an object that has one (InvokeAI's, at every version of it)."""
    if isinstance(value, dict):
        value = next((value[key] for key in ("name", "model_name") if isinstance(value.get(key), str)), "")
    return file_name(text_of(value))


def told(
    program: str,
    document: Document,
    keys: Mapping[str, str],
    *,
    ignored: Iterable[str] = (),
    loras: Iterable[str] = (),
    **settings: str,
) -> Infotext:
    """An infotext of a document: `keys` are its names of A1111's settings, "prompt" and "negative_prompt".

    `settings` (underlines for blanks) are added, and win; keys that are neither used nor ignored stay as they are.
    """
    used = {name: text_of(document.get(key)) for key, name in keys.items() if key in document}
    used |= {key.replace("_", " "): value for key, value in settings.items()}
    prompt, negative = used.pop("prompt", ""), used.pop("negative prompt", "")
    label, schedule = sampler_names(used.get("Sampler", ""))
    used["Sampler"] = label
    if schedule == "trailing":
        used |= {"Timestep table": schedule}
    elif schedule or used.get("Schedule type"):
        used["Schedule type"] = schedule or schedule_name(used["Schedule type"])
    for key in ("Model", "VAE"):
        used[key] = file_name(used.get(key, ""))
    rest = {key: text_of(value) for key, value in document.items() if key not in {*keys, *ignored} and _says(value)}
    found = {key: value for key, value in {**used, **rest, "Version": program}.items() if value}
    return Infotext(" ".join([prompt, *filter(None, loras)]), negative, found)


def _says(value: Any) -> bool:
    return value is not None and value is not False and value not in ("", [], {})


def size_of(width: Any, height: Any) -> str:
    """`Size`, "" where a side is missing."""
    return f"{text_of(width)}x{text_of(height)}" if _says(width) and _says(height) else ""


def fooocus(texts: Mapping[str, str]) -> Infotext | None:
    """Fooocus with its own scheme: prompts, `base_model`, `resolution` "(1152, 896)", `loras` or `lora_combined_N`."""
    document = loaded(texts.get(PNG_KEY) or texts.get(COMMENT_KEY))
    if document is None or "base_model" not in document:
        return None
    pair = _PAIR.fullmatch(text_of(document.get("resolution")))
    combined = [text_of(value) for key, value in document.items() if key.startswith("lora_combined_")]
    matches = [match for value in combined if (match := _LORA.fullmatch(value))]
    tags = [lora_tag(match[1].rpartition(" : ")[2] or match[1], number_of(match[2])) for match in matches]
    lists = document.get("loras")
    for entry in lists if isinstance(lists, list) and not tags else ():
        if isinstance(entry, list) and len(entry) > 1:
            tags.append(lora_tag(text_of(entry[0]), number_of(entry[1])))
    keys = {
        **{"prompt": "prompt", "negative_prompt": "negative prompt", "steps": "Steps", "guidance_scale": "CFG scale"},
        **{"sampler": "Sampler", "scheduler": "Schedule type", "seed": "Seed", "clip_skip": "Clip skip"},
        **{"base_model": "Model", "base_model_hash": "Model hash", "vae": "VAE"},
    }
    ignored = {"resolution", "loras", "full_prompt", "full_negative_prompt", "metadata_scheme", "version", "created_by"}
    ignored |= {key for key in document if key.startswith("lora_combined_")}
    size = f"{pair[1]}x{pair[2]}" if pair else ""
    return told("Fooocus", document, keys, ignored=ignored, loras=tags, Size=size, RNG="CPU")


def swarmui(texts: Mapping[str, str]) -> Infotext | None:
    """SwarmUI: `sui_image_params`, with lists `loras` and `loraweights`."""
    outer = loaded(texts.get(PNG_KEY) or texts.get(COMMENT_KEY))
    document = outer.get("sui_image_params") if outer is not None else None
    if not isinstance(document, dict):
        return None
    loras, weights = document.get("loras"), document.get("loraweights")
    loras = loras if isinstance(loras, list) else []
    weights = [*(weights if isinstance(weights, list) else []), *[1] * len(loras)]
    tags = [lora_tag(text_of(name), number_of(weight)) for name, weight in zip(loras, weights, strict=False)]
    keys = {
        **{"prompt": "prompt", "negativeprompt": "negative prompt", "steps": "Steps", "cfgscale": "CFG scale"},
        **{"sampler": "Sampler", "scheduler": "Schedule type", "seed": "Seed", "model": "Model", "vae": "VAE"},
    }
    ignored = {"width", "height", "loras", "loraweights", "swarm_version", "date", "generation_time", "aspectratio"}
    ignored |= {"original_prompt", "images", "imageformat", "nopreviews", "wildcardseed"}
    size = size_of(document.get("width"), document.get("height"))
    return told("SwarmUI", document, keys, ignored=ignored, loras=tags, Size=size, RNG="CPU")


def novelai(texts: Mapping[str, str]) -> Infotext | None:
    """NovelAI: `Comment`, or the EXIF comment, beside `Description` (the prompt) and `Source` (the model).

    Its {emphasis} is another notation than ours; the prompt is given as it is written.
    """
    document = loaded(texts.get("Comment") or texts.get(COMMENT_KEY))
    if document is None or not ({"uc", "noise_schedule", "v4_prompt"} & set(document)) or "c" in document:
        return None
    captions = [_caption(document, "v4_prompt"), _caption(document, "v4_negative_prompt")]
    prompt = captions[0] or text_of(document.get("prompt")) or texts.get("Description", "")
    keys = {
        **{"steps": "Steps", "scale": "CFG scale", "sampler": "Sampler", "noise_schedule": "Schedule type"},
        **{"seed": "Seed"},
    }
    ignored = {"prompt", "uc", "width", "height", "v4_prompt", "v4_negative_prompt", "request_type", "signed_hash"}
    ignored |= {"n_samples", "version"} | ({"strength", "noise"} if "image" not in document else set())
    return told(
        "NovelAI",
        document,
        keys,
        ignored=ignored,
        Size=size_of(document.get("width"), document.get("height")),
        Model=texts.get("Source", ""),
        prompt=prompt,
        negative_prompt=captions[1] or text_of(document.get("uc")),
    )


def _caption(document: Document, key: str) -> str:
    part = document.get(key)
    part = part.get("caption") if isinstance(part, dict) else None
    return text_of(part.get("base_caption")) if isinstance(part, dict) else ""


def draw_things(texts: Mapping[str, str]) -> Infotext | None:
    """Draw Things: JSON in the XMP packet's exif:UserComment, or the EXIF comment; `c` and `uc` are the prompts."""
    packet = texts.get("XML:com.adobe.xmp") or texts.get("xmp") or ""
    document = loaded(_xmp(packet, "exif:UserComment")) or loaded(texts.get(COMMENT_KEY))
    if document is None or "c" not in document:
        return None
    found = [(named(entry.get("model")), number_of(entry.get("weight"))) for entry in objects(document.get("lora"))]
    keys = {
        **{"c": "prompt", "uc": "negative prompt", "steps": "Steps", "scale": "CFG scale", "sampler": "Sampler"},
        **{"seed": "Seed", "size": "Size", "model": "Model", "strength": "Denoising strength"},
    }
    whole = number_of(document.get("strength")) >= 1
    ignored = {"lora", "v2", "profile", "seed_mode", "strength"}
    keys = {key: name for key, name in keys.items() if not (whole and key == "strength")}
    rng = "CPU" if "CPU" in text_of(document.get("seed_mode")) else ""
    return told("Draw Things", document, keys, ignored=ignored, loras=[lora_tag(*entry) for entry in found], RNG=rng)


def _xmp(packet: str, name: str) -> str:
    """The text of an XMP property: its own, or its first list item's; found by plain search, so entities stay inert."""
    inside = packet.partition(f"<{name}>")[2].partition(f"</{name}>")[0]
    item = inside.partition("<rdf:li")[2].partition(">")[2].partition("</rdf:li>")[0] or inside
    try:
        return html.unescape(item)
    except ValueError:
        return ""


def flat(texts: Mapping[str, str]) -> Infotext | None:
    """Easy Diffusion and sd-webui-lcm: one text for each key, the same names in both; the former also as one JSON.

    sd-webui-lcm has one model, and gives it guidance as the papers' w, which is ours less 1.
    """
    document: Document = loaded(texts.get(COMMENT_KEY)) or texts
    if not {"prompt", "seed", "num_inference_steps"} <= set(document):
        return None
    keys = {
        **{"prompt": "prompt", "negative_prompt": "negative prompt", "num_inference_steps": "Steps"},
        **{"sampler_name": "Sampler", "seed": "Seed", "use_stable_diffusion_model": "Model", "use_vae_model": "VAE"},
        **{"guidance_scale": "CFG scale"},
    }
    size = size_of(document.get("width"), document.get("height"))
    if "sampler_name" not in document:
        guidance = number_text(number_of(document.get("guidance_scale"), 8.0) + 1)
        own = {"Model": "LCM_Dreamshaper_v7", "Sampler": "LCM", "Guidance_embedding": guidance, "CFG_scale": ""}
        chosen = {key: text_of(document.get(key)) for key in ("prompt", "seed", "num_inference_steps")}
        return told("sd-webui-lcm", chosen, keys, Size=size, RNG="CPU", **own)
    lora, alpha = document.get("use_lora_model"), document.get("lora_alpha")
    names, weights = (value if isinstance(value, list) else [value] for value in (lora, alpha))
    tags = [lora_tag(text_of(name), number_of(weight)) for name, weight in zip(names, weights, strict=False)]
    skip = "2" if document.get("clip_skip") in (True, "True", "true") else ""
    ignored = {"width", "height", "clip_skip", "use_lora_model", "lora_alpha", COMMENT_KEY, "original_prompt", "xmp"}
    ignored |= {key for key in texts if key not in keys and key[:1].isupper()}
    settings = {"Size": size, "Clip_skip": skip}
    return told("Easy Diffusion", document, keys, ignored=ignored, loras=tags, **settings)
