"""The settings that a picture carries, in the notation that people's tools share.

Source: AUTOMATIC1111's and Forge's web interfaces. The text is the prompt, a line "Negative prompt: ..." and a last
line "Steps: 4, Sampler: LCM, ..."; a value with a comma, a colon or a line break is a JSON string. It lies in the PNG
text chunk "parameters", and in the EXIF UserComment of JPEG and WebP.

Departures: prompts that this notation cannot give back (outer spaces, a line that looks like a settings line) are
written a second time, exactly, as `Exact prompt` and `Exact negative prompt`; other readers keep or ignore those.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from PIL import Image, PngImagePlugin

from fewstep.errors import RequestError
from fewstep.hires import hires_fields
from fewstep.image import Source, open_any
from fewstep.request import Request, request_of

NEGATIVE = "Negative prompt:"
EXACT = {"prompt": "Exact prompt", "negative_prompt": "Exact negative prompt"}
PNG_KEY = "parameters"
_PAIR = re.compile(r'\s*(\w[\w \-/]+):\s*("(?:[^"\\]|\\.)*"|[^,]*)(?:,|$)')
_SIZE = re.compile(r"(\d+)x(\d+)")
_EXIF_FOLDER, _USER_COMMENT = 0x8769, 0x9286
_COMMENT_LIMIT = 65_000


@dataclass(frozen=True)
class Infotext:
    """What is written in a picture: the prompts and, in their order, the settings as text."""

    prompt: str = ""
    negative_prompt: str = ""
    settings: Mapping[str, str] = field(default_factory=dict)


def write(info: Infotext) -> str:
    """The text of these settings, such that `parse` gives them back exactly.

    >>> print(write(Infotext("a cat", "", {"Steps": "4", "Seed": "7", "Loras": "a: 0.6, b: 1"})))
    a cat
    Steps: 4, Seed: 7, Loras: "a: 0.6, b: 1"
    """
    text = _written(info)
    if _parsed(text) == info:
        return text
    exact = {key: getattr(info, name) for name, key in EXACT.items()}
    return _written(Infotext(info.prompt, info.negative_prompt, {**info.settings, **exact}))


def _written(info: Infotext) -> str:
    pairs = ", ".join(f"{key}: {_quoted(value)}" for key, value in info.settings.items())
    negative = [f"{NEGATIVE} {info.negative_prompt}"] if info.negative_prompt else []
    return "\n".join([info.prompt, *negative, pairs])


def _quoted(value: str) -> str:
    plain = value and value == value.strip() and not re.search(r'[,:\n"]', value)
    return value if plain else json.dumps(value, ensure_ascii=False)


def parse(text: str) -> Infotext:
    """The prompts and settings of an infotext, ours or another program's; what is not known stays in `settings`."""
    found = _parsed(text)
    settings = dict(found.settings)
    exact = {name: settings.pop(key) for name, key in EXACT.items() if key in settings}
    return Infotext(**{"prompt": found.prompt, "negative_prompt": found.negative_prompt, **exact}, settings=settings)


def _parsed(text: str) -> Infotext:
    lines = text.strip().split("\n")
    settings = {match[1]: _unquoted(match[2]) for match in _PAIR.finditer(lines[-1])}
    if len(settings) >= 3 or any(key in settings for key in EXACT.values()):
        lines.pop()
    else:
        settings = {}
    parts: tuple[list[str], list[str]] = ([], [])
    side = 0
    for line in (line.strip() for line in lines):
        if line.startswith(NEGATIVE):
            side, line = 1, line.removeprefix(NEGATIVE).strip()
        parts[side].append(line)
    return Infotext("\n".join(parts[0]).lstrip("\n"), "\n".join(parts[1]).lstrip("\n"), settings)


def _unquoted(value: str) -> str:
    value = value.strip()
    if len(value) < 2 or value[0] != '"' or value[-1] != '"':
        return value
    try:
        return str(json.loads(value, strict=False))
    except ValueError:
        return value


class Picture(Image.Image):
    """A Pillow image that takes its settings with it into every PNG, JPEG and WebP file it is saved to."""

    @classmethod
    def of(cls, image: Image.Image, text: str) -> Picture:
        """A copy of `image` that carries `text`: as `info["parameters"]`, and ready for PNG as `info["pnginfo"]`."""
        picture = cls()
        picture.__setstate__(image.__getstate__())
        chunks = PngImagePlugin.PngInfo()
        chunks.add_text(PNG_KEY, text)
        picture.info = {PNG_KEY: text, "pnginfo": chunks}
        return picture

    def save(self, fp: Any, format: str | None = None, **params: Any) -> None:
        """As Pillow's own `save`, with the settings; JPEG cannot hold more than 64 KB of them and then goes without."""
        text = self.info.get(PNG_KEY)
        if text and _is_png(fp, format):
            params.setdefault("pnginfo", self.info.get("pnginfo"))
        elif text and len(comment := exif_of(text)) <= _COMMENT_LIMIT:
            params.setdefault("exif", comment)
        super().save(fp, format, **params)


def _is_png(fp: Any, format: str | None) -> bool:
    name = os.fspath(fp) if isinstance(fp, (str, os.PathLike)) else str(getattr(fp, "name", ""))
    return (format or "").upper() == "PNG" or (format is None and str(name).lower().endswith(".png"))


def exif_of(text: str) -> bytes:
    """An EXIF block whose UserComment is the text, in UTF-16 with the mark that the EXIF standard gives it."""
    exif = Image.Exif()
    exif.get_ifd(_EXIF_FOLDER)[_USER_COMMENT] = b"UNICODE\0" + text.encode("utf-16-be")
    return exif.tobytes()


def read(source: Source) -> str | None:
    """The infotext in a picture (PNG text, or the EXIF comment of JPEG and WebP); None where there is none.

    Raises:
        ImageError: the file is missing or not a picture.
    """
    image = open_any(source, "picture")
    text = image.info.get(PNG_KEY)
    if isinstance(text, str):
        return str(text)
    comment = image.getexif().get_ifd(_EXIF_FOLDER).get(_USER_COMMENT)
    return _comment_text(comment) or None


def _comment_text(comment: object) -> str:
    if isinstance(comment, str):
        return comment.removeprefix("UNICODE\0").removeprefix("ASCII\0\0\0").strip("\0")
    if not isinstance(comment, bytes):
        return ""
    mark, body = comment[:8], comment[8:]
    if mark != b"UNICODE\0":
        return (body if mark.startswith(b"ASCII\0") else comment).decode("utf-8", "replace").strip("\0")
    little = body[1::2].count(0) > body[::2].count(0)
    return body.decode("utf-16-le" if little else "utf-16-be", "replace")


def request_from_infotext(info: str | Infotext) -> Request:
    """The request that a picture's settings describe; sampler names as written. Its input pictures are not in the text.

    Raises:
        RequestError: a setting is not a number, or outside the limits.
    """
    info = parse(info) if isinstance(info, str) else info
    settings = info.settings
    fields: dict[str, Any] = {"prompt": info.prompt, "negative_prompt": info.negative_prompt}
    for name, key, kind in _NUMBERS:
        if key in settings:
            fields[name] = _number(key, settings[key], kind)
    if (size := settings.get("Size")) is not None:
        match = _SIZE.fullmatch(size)
        if match is None:
            raise RequestError(f"The picture's settings say Size: {size}, which is not two numbers such as 512x768.")
        fields |= {"width": int(match[1]), "height": int(match[2])}
    absent, rng = ("Automatic", "GPU") if _is_foreign(settings) else ("", "CPU")
    names = {
        "sampler": settings.get("Sampler"),
        "schedule": settings.get("Timestep table") or settings.get("Schedule type", absent),
        "rng": "cpu" if settings.get("RNG", rng).upper() == "CPU" else "nv",
    }
    return request_of(fields | {name: value for name, value in names.items() if value} | hires_fields(settings))


def _is_foreign(settings: Mapping[str, str]) -> bool:
    """Whether a web interface wrote them: there a missing schedule type is Automatic and a missing RNG the GPU's."""
    return not settings.get("Version", "fewstep").startswith("fewstep")


_NUMBERS = (
    ("steps", "Steps", int),
    ("guidance", "CFG scale", float),
    ("guidance", "Guidance embedding", float),
    ("seed", "Seed", int),
    ("clip_skip", "Clip skip", int),
    ("ensd", "ENSD", int),
    ("tile", "Tile", int),
)


def _number(key: str, value: str, kind: type[int] | type[float]) -> int | float:
    try:
        return kind(value)
    except ValueError:
        raise RequestError(f"The picture's settings say {key}: {value}, which is not a number.") from None
