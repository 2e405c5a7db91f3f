"""The settings in pictures of other programs, told in A1111's words.

Each format is read for the facts that it records, by code of our own; what has no counterpart stays in the settings
under the name that the other program gives it. Nothing that a picture holds can make reading it fail or take long: a
document that is not what it should be is as good as none.

| program                | where                                               | reader    |
|------------------------|-----------------------------------------------------|-----------|
| A1111, Forge, SD.Next  | `parameters`, UserComment: text                     | infotext  |
| ComfyUI                | `prompt`; EXIF Make or Model "prompt:...": a graph  | comfyui   |
| InvokeAI               | `invokeai_metadata`, `sd-metadata`, `Dream`         | invokeai  |
| Fooocus, SwarmUI       | `parameters`, UserComment: JSON                     | documents |
| NovelAI                | `Comment`: JSON                                     | documents |
| Draw Things            | XMP exif:UserComment: JSON                          | documents |
| Easy Diffusion, sd-webui-lcm | one chunk for each key; UserComment: JSON     | documents |
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from fewstep.foreign import comfyui, documents, invokeai
from fewstep.image import Source
from fewstep.infotext import COMMENT_KEY, PNG_KEY, Infotext, parse, read_texts

Reader = Callable[[Mapping[str, str]], Infotext | None]
READERS: tuple[Reader, ...] = (
    documents.swarmui,
    documents.fooocus,
    documents.draw_things,
    invokeai.metadata,
    invokeai.sd_metadata,
    invokeai.dream,
    documents.novelai,
    documents.flat,
    comfyui.graph,
)


def settings_of(source: Source) -> Infotext | None:
    """The settings in a picture of this program or another; None where there are none that are known.

    Raises:
        ImageError: the file is missing or not a picture.
    """
    return settings_in(read_texts(source))


def settings_in(texts: Mapping[str, str]) -> Infotext | None:
    """The same from the picture's texts (`fewstep.infotext.read_texts`)."""
    for key in (PNG_KEY, COMMENT_KEY):
        if (text := texts.get(key)) and (info := parse(text)).settings:
            return info
    for reader in READERS:
        if (info := reader(texts)) is not None:
            return info
    return parse(texts[PNG_KEY]) if texts.get(PNG_KEY) else None
