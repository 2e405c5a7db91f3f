"""The settings that a picture carries, in the notation that people's tools share.

Source: AUTOMATIC1111's and Forge's web interfaces. The text is the prompt, a line "Negative prompt: ..." and a last
line "Steps: 4, Sampler: LCM, ..."; a value with a comma, a colon or a line break is a JSON string. It lies in the PNG
text chunk "parameters", and in the EXIF UserComment of JPEG, WebP and AVIF. What other programs write is read by
`fewstep.foreign`.

Departures: prompts that this notation cannot give back (outer spaces, a line that looks like a settings line) are
written a second time, exactly, as `Exact prompt` and `Exact negative prompt`; other readers keep or ignore those. A
last line counts as settings only if one of its keys is known, so that three weighted words stay a prompt. A value that
is bare JSON (`Hashes: {...}`, as extensions write it) is read whole.
"""

from __future__ import annotations

import json
import os
import re
import struct
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image, PngImagePlugin

from fewstep.errors import RequestError
from fewstep.hires import KEYS as HIRES_KEYS
from fewstep.hires import hires_fields
from fewstep.image import EXTENSIONS, Source, open_any
from fewstep.request import Request, request_of

PNG_KEY, COMMENT_KEY = "parameters", "UserComment"
NEGATIVE = "Negative prompt:"
EXACT = {"prompt": "Exact prompt", "negative_prompt": "Exact negative prompt"}
KEYS = (
    *("Steps", "Sampler", "Schedule type", "Schedule max sigma", "Schedule min sigma", "Schedule rho", "CFG scale"),
    *("Distilled CFG Scale", "Image CFG scale", "Seed", "Face restoration", "Size", "Model hash", "Model"),
    *(
        "FP8 weight",
        "Cache FP16 weight for LoRA",
        "VAE hash",
        "VAE",
        "VAE Encoder",
        "VAE Decoder",
        "Variation seed",
        "Variation seed strength",
    ),
    *("Seed resize from", "Denoising strength", "Conditional mask weight", "Clip skip", "ENSD"),
    *("Token merging ratio", "Token merging ratio hr", "Init image hash", "RNG", "Tiling"),
    *("Hires checkpoint", "Hires sampler", "Hires schedule type", "Hires CFG Scale", "Hires prompt"),
    *("Hires negative prompt", "Hires upscale", "Hires resize", "Hires steps", "Hires upscaler"),
    *("Mask blur", "Masked content", "Inpaint area", "Masked area padding", "Noise multiplier", "Eta", "Emphasis"),
    *("Lora hashes", "TI hashes"),
    *("Mask hash", "Timestep table", "LCM origin steps", "Guidance embedding", "Loras", "Device", "Precision"),
    *("", *EXACT.values(), "Version", "User"),
)
"""The order of the settings, A1111's and then our own; "" is the place of all others, in the order they come in."""

FIELDS: tuple[tuple[str, str, type[int] | type[float] | type[str]], ...] = (
    ("steps", "Steps", int),
    ("guidance", "CFG scale", float),
    ("guidance", "Guidance embedding", float),
    ("seed", "Seed", int),
    ("clip_skip", "Clip skip", int),
    ("ensd", "ENSD", int),
    ("tile", "Tile", int),
    ("sampler", "Sampler", str),
    ("emphasis", "Emphasis", str),
)
"""Field of `Request`, key, what its text is; Size, Schedule type, Timestep table and RNG are rules of their own."""

AUTOENCODERS: Mapping[str, dict[str, str]] = {"taesd": {"autoencoder": "tiny"}, "full": {"autoencoder": "full"}}
"""A1111's word for what decoded a picture -> the field of `Request`."""

RECORDS = {
    *("Size", "Schedule type", "Timestep table", "RNG", "Denoising strength", "Init image hash", "Mask hash"),
    *("VAE Encoder", "VAE Decoder"),
    *("Model hash", "Model", "VAE hash", "VAE", "Lora hashes", "TI hashes", "Loras", "LCM origin steps", "Hashes"),
    *("Device", "Precision", "Version", "User", "App", "Batch size", "Batch pos", "Created by", "Civitai metadata"),
    *("Civitai resources", "Init image", "First pass size", "Template", "Negative Template", "Script"),
    *HIRES_KEYS,
}
"""Keys that are restored by other rules than `FIELDS`, or that describe and set nothing."""

_NEUTRAL = {"", "none", "false", "0", "0.0", "1.0", "original", "use same sampler", "null", "[]", "{}"}
_PLACES = {key: place for place, key in enumerate(KEYS) if key}
_KEY = re.compile(r"[\w \-/]+(:?)")
_VALUE = re.compile(r'\s*("(?:[^"\\]|\\.)*+"(?=,|$)|[^,]*),?')
_SPACE = re.compile(r"\s*")
_SIZE = re.compile(r"([0-9]{1,6})x([0-9]{1,6})")
_EXIF_FOLDER, _USER_COMMENT = 0x8769, 0x9286
_EXIF_LIMIT = {"JPEG": 65_000}
_EXIF_TEXTS = {0x010E: "ImageDescription", 0x010F: "Make", 0x0110: "Model"}
_SURROGATE = re.compile(r"[\ud800-\udfff]")


@dataclass(frozen=True)
class Infotext:
    """What is written in a picture: the prompts and, in their order, the settings as text."""

    prompt: str = ""
    negative_prompt: str = ""
    settings: Mapping[str, str] = field(default_factory=dict)

    @property
    def ours(self) -> bool:
        """Whether this program wrote it."""
        return self.settings.get("Version", "").startswith("fewstep")


def write(info: Infotext) -> str:
    """The text of these settings in the order of `KEYS`, such that `parse` gives them back exactly.

    >>> print(write(Infotext("a cat", "", {"Loras": "a: 0.6, b: 1", "Seed": "7", "Steps": "4"})))
    a cat
    Steps: 4, Seed: 7, Loras: "a: 0.6, b: 1"
    """
    text = _written(info)
    if _parsed(text) == info:
        return text
    exact = {key: getattr(info, name) for name, key in EXACT.items()}
    return _written(Infotext(info.prompt, info.negative_prompt, {**info.settings, **exact}))


def _written(info: Infotext) -> str:
    ordered = sorted(info.settings.items(), key=lambda pair: _PLACES.get(pair[0], KEYS.index("")))
    pairs = ", ".join(f"{key}: {_quoted(value)}" for key, value in ordered)
    negative = [f"{NEGATIVE} {info.negative_prompt}"] if info.negative_prompt else []
    return "\n".join([info.prompt, *negative, pairs])


def _quoted(value: str) -> str:
    plain = value and value == value.strip() and value[0] != '"' and not re.search(r"[,:\n]", value)
    return value if plain else json.dumps(value, ensure_ascii=False)


def parse(text: str) -> Infotext:
    """The prompts and settings of an infotext, ours or another program's; what is not known stays in `settings`."""
    found = _parsed(text)
    settings = dict(found.settings)
    exact = {name: settings.pop(key) for name, key in EXACT.items() if key in settings}
    return Infotext(**{"prompt": found.prompt, "negative_prompt": found.negative_prompt, **exact}, settings=settings)


def _parsed(text: str) -> Infotext:
    lines = text.strip().split("\n")
    pairs = list(_pairs(lines[-1]))
    known = any(key in _PLACES for key, _ in pairs)
    if known and (len(pairs) >= 3 or any(key in EXACT.values() for key, _ in pairs)):
        lines.pop()
    else:
        pairs = []
    parts: tuple[list[str], list[str]] = ([], [])
    side = 0
    for line in (line.strip() for line in lines):
        if line.startswith(NEGATIVE):
            side, line = 1, line.removeprefix(NEGATIVE).strip()
        parts[side].append(line)
    return Infotext("\n".join(parts[0]).lstrip("\n"), "\n".join(parts[1]).lstrip("\n"), dict(pairs))


def _pairs(line: str) -> Iterator[tuple[str, str]]:
    """The settings of a line. Every character is looked at a bounded number of times, whatever the line holds.

    >>> list(_pairs('Steps: 4, Note: "a, b", Hashes: {"vae": "x, y"}, Size: 8x8'))
    [('Steps', '4'), ('Note', 'a, b'), ('Hashes', '{"vae": "x, y"}'), ('Size', '8x8')]
    """
    place = 0
    while (match := _KEY.search(line, place)) is not None:
        place = match.end()
        key = match[0].rstrip(":").lstrip(" -/")
        if not match[1] or len(key) < 2:
            continue
        end = _json_end(line, place)
        if end is None:
            value = _VALUE.match(line, place)
            assert value is not None
            place, text = value.end(), _unquoted(value[1])
        else:
            text, place = line[place:end].strip(), end + 1
        yield key, text


def _json_end(line: str, place: int) -> int | None:
    """Where a bare JSON object or list ends that begins here, if a comma or the end follows it."""
    start = _SPACE.match(line, place).end()  # pyright: ignore[reportOptionalMemberAccess]
    if line[start : start + 1] not in ("{", "["):
        return None
    try:
        end = json.JSONDecoder().raw_decode(line, start)[1]
    except (ValueError, RecursionError):
        return None
    return end if line[end : end + 1] in ("", ",") else None


def _unquoted(value: str) -> str:
    value = value.strip()
    if len(value) < 2 or value[0] != '"' or value[-1] != '"':
        return value
    try:
        return cleaned(str(json.loads(value, strict=False)))
    except ValueError:
        return value


def cleaned(text: str) -> str:
    """The text without what is not text: half a surrogate pair, a zero byte.

    >>> cleaned("a" + chr(0xD800) + "b" + chr(0))
    'a?b'
    """
    return _SURROGATE.sub("?", text).replace("\0", "")


def number_text(value: float) -> str:
    """The shortest text that reads back as the same number.

    >>> number_text(4.0), number_text(0.1)
    ('4', '0.1')
    """
    return str(int(value)) if float(value).is_integer() else repr(float(value))


class Picture(Image.Image):
    """A Pillow image that takes its settings with it into every PNG, JPEG, WebP and AVIF file it is saved to."""

    @classmethod
    def of(cls, image: Image.Image, text: str) -> Picture:
        """A copy of `image` that carries `text`: as `info["parameters"]`, and ready for PNG as `info["pnginfo"]`."""
        picture = cls()
        vars(picture).update(vars(image.copy()))  # the pixels copied once
        chunks = PngImagePlugin.PngInfo()
        chunks.add_text(PNG_KEY, text)
        picture.info = {PNG_KEY: text, "pnginfo": chunks}
        return picture

    def save(self, fp: Any, format: str | None = None, **params: Any) -> None:
        """As Pillow's own `save`, with the settings; a UserWarning where the format has no room for them."""
        text, kind = self.info.get(PNG_KEY), _format(fp, format)
        if text and kind == "PNG":
            params.setdefault("pnginfo", self.info.get("pnginfo"))
        elif text and (note := no_room(text, kind)):
            warnings.warn(note, UserWarning, stacklevel=2)
        elif text:
            params.setdefault("exif", exif_of(text))
        super().save(fp, format, **params)


def _format(fp: Any, format: str | None) -> str:
    name = os.fspath(fp) if isinstance(fp, (str, os.PathLike)) else str(getattr(fp, "name", ""))
    return (format or EXTENSIONS.get(Path(str(name)).suffix.lower(), "")).upper()


def no_room(text: str, kind: str) -> str:
    """Why a picture of this format, such as "JPEG", cannot carry the settings; "" where it can."""
    size, limit = len(exif_of(text)), _EXIF_LIMIT.get(kind)
    if limit is None or size <= limit:
        return ""
    return f"The picture does not carry its settings: {kind} has room for {limit} bytes, they take {size}. Write a PNG."


def exif_of(text: str) -> bytes:
    """An EXIF block whose UserComment is the text, in UTF-16 with the mark that the EXIF standard gives it."""
    exif = Image.Exif()
    exif.get_ifd(_EXIF_FOLDER)[_USER_COMMENT] = b"UNICODE\0" + text.encode("utf-16-be")
    return exif.tobytes()


def read(source: Source) -> str | None:
    """The infotext in a picture (PNG text, or the EXIF comment of the others); None where there is none.

    Raises:
        ImageError: the file is missing or not a picture.
    """
    texts = read_texts(source)
    return texts.get(PNG_KEY) or texts.get(COMMENT_KEY)


def read_texts(source: Source) -> dict[str, str]:
    """Every text that a picture carries, by its PNG key or EXIF name; "xmp" is the whole packet.

    Raises:
        ImageError: the file is missing or not a picture.
    """
    image = open_any(source, "picture")
    found = {key: value for key, value in image.info.items() if isinstance(value, str)}
    if isinstance(packet := image.info.get("xmp"), bytes):
        found["xmp"] = packet.decode("utf-8", "replace")
    try:
        exif = image.getexif()
        comment = exif.get_ifd(_EXIF_FOLDER).get(_USER_COMMENT) or exif.get(_USER_COMMENT)  # Fooocus: outside
        found |= {name: exif[tag] for tag, name in _EXIF_TEXTS.items() if isinstance(exif.get(tag), str)}
    except (OSError, SyntaxError, ValueError, KeyError, TypeError, struct.error):  # the block is damaged
        comment = None
    found[COMMENT_KEY] = _comment_text(comment)
    return {str(key): cleaned(text) for key, text in found.items() if text}


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
    return request_of(fields_of(parse(info) if isinstance(info, str) else info))


def fields_of(info: Infotext) -> dict[str, Any]:
    """The same as names and values of `Request`, their limits not yet looked at.

    Where another program says nothing of it, the schedule type is Automatic and the noise the GPU's, as in A1111.

    Raises:
        RequestError: a setting is not a number.
    """
    settings = info.settings
    fields: dict[str, Any] = {"prompt": info.prompt, "negative_prompt": info.negative_prompt}
    fields |= {name: setting(key, settings[key], kind) for name, key, kind in FIELDS if settings.get(key) is not None}
    if (size := settings.get("Size")) is not None:
        match = _SIZE.fullmatch(size)
        if match is None:
            said = _shown(size)
            raise RequestError(f"The picture's settings say Size: {said}, which is not two numbers such as 512x768.")
        fields |= {"width": int(match[1]), "height": int(match[2])}
    absent, rng = ("", "CPU") if info.ours else ("Automatic", "GPU")
    schedule = settings.get("Timestep table") or settings.get("Schedule type", absent)
    fields |= {"schedule": schedule} if schedule else {}
    fields |= AUTOENCODERS.get(settings.get("VAE Decoder", "").lower(), {})
    return fields | {"rng": "cpu" if settings.get("RNG", rng).upper() == "CPU" else "nv"} | hires_fields(settings)


def unrestored(info: Infotext) -> dict[str, str]:
    """The settings that have no counterpart here and are not at rest.

    >>> unrestored(Infotext("", "", {"Steps": "4", "Face restoration": "CodeFormer", "Tiling": "False"}))
    {'Face restoration': 'CodeFormer'}
    """
    known = RECORDS | {key for _, key, _ in FIELDS}
    return {key: value for key, value in info.settings.items() if key not in known and value.lower() not in _NEUTRAL}


def setting(key: str, value: str, kind: type[int] | type[float] | type[str]) -> int | float | str:
    """A setting's text as the number it should be; raises RequestError where it is none."""
    try:
        return kind(value)
    except ValueError:
        raise RequestError(f"The picture's settings say {key}: {_shown(value)}, which is not a number.") from None


def _shown(value: str) -> str:
    return value if len(value) <= 60 else value[:60] + "..."
