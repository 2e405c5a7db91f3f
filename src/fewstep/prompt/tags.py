"""What is written inside a prompt besides the words: LoRA tags in the notation that people share.

Source: the extra-network notation of AUTOMATIC1111's web interface, `<lora:name:weight>`, `<lora:name:text:unet>` and
`<lora:name:te=0.5:unet=0.8>`; of its LoRA Block Weight extension, `<lora:name:1:lbw=OUTALL>` or numbers with commas.
Ours is `te2=`, for SDXL's second text encoder.
Departure: an argument that is not a number is an error, not ignored.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

from fewstep.errors import RequestError

_TAG = re.compile(r"<lora:([^>:]+)((?::[^>:]*)*)>")


@dataclass(frozen=True)
class LoraTag:
    """One `<lora:...>` in a prompt: which LoRA, and how much of it in the UNet and in the text encoders.

    `blocks` are a preset's name or numbers, not looked at here, as they depend on the model.
    """

    name: str
    weight_unet: float
    weight_text: float
    weight_text_2: float | None = None
    blocks: str = ""


def split_lora_tags(prompt: str) -> tuple[str, tuple[LoraTag, ...]]:
    """The prompt without its LoRA tags, and the tags in their order.

    Raises:
        RequestError: a weight is not a number.

    >>> split_lora_tags("a red fox <lora:ink:0.6>")
    ('a red fox', (LoraTag(name='ink', weight_unet=0.6, weight_text=0.6, weight_text_2=None, blocks=''),))
    """
    tags = tuple(_tag(match) for match in _TAG.finditer(prompt))
    return (_TAG.sub("", prompt).strip() if tags else prompt), tags


def _tag(match: re.Match[str]) -> LoraTag:
    positional: list[float] = []
    named: dict[str, float] = {}
    blocks = ""
    for part in match[2].split(":")[1:]:
        key, equals, value = part.partition("=")
        if equals and key.strip() == "lbw":
            blocks = value.strip()
        elif equals:
            named[key.strip()] = _weight(value, match[0])
        else:
            positional.append(_weight(part, match[0]))
    if unknown := sorted(set(named) - {"te", "te2", "unet"}):
        raise RequestError(f"{match[0]} has the argument {unknown[0]!r}; known are te, te2, unet and lbw.")
    text = named.get("te", positional[0] if positional else 1.0)
    unet = named.get("unet", positional[1] if len(positional) > 1 else text)
    return LoraTag(match[1].strip(), unet, text, named.get("te2"), blocks)


def _weight(text: str, tag: str) -> float:
    try:
        weight = float(text)
    except ValueError:
        weight = math.nan
    if not math.isfinite(weight):
        raise RequestError(f"{tag} has the weight {text!r}, which is not a number. Write <lora:name:0.8>.")
    return weight
