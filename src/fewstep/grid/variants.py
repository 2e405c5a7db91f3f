"""Many pictures of one prompt, numbered, of which some are then refined: a folder and what it remembers.

`variants.json` holds, for each picture by its name ("3", "3-refined"), the file and the fields of its request, and
once for all which model and LoRAs painted them.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any

from fewstep.checkpoints.files import write_json
from fewstep.errors import OutputError, RequestError
from fewstep.request import Request, request_of

STATE, SHEET, REFINED = "variants.json", "sheet.png", "refined"
COUNT = 16
_PICTURES = ("image", "mask")
_RANGE = re.compile(r"(\d{1,9})\s*-\s*(\d{1,9})")


@dataclass
class Variants:
    """A folder of variants. `load` are the keywords of `fewstep.load`, `pictures` the fields of each by its name."""

    path: Path
    load: Mapping[str, Any]
    pictures: dict[str, dict[str, Any]] = field(default_factory=dict)

    @classmethod
    def open(cls, path: Path) -> Variants:
        """The variants in a folder.

        Raises:
            RequestError: there are none, or what it remembers is damaged.
        """
        file = path / STATE
        if not file.is_file():
            raise RequestError(f"'{path}' holds no variants. Paint some first: fewstep variants \"a red apple\".")
        try:
            found = json.loads(file.read_text(encoding="utf-8"))
            load = {**found["load"], "lora": _pairs(found["load"]["lora"])}
            pictures = {str(name): dict(fields) for name, fields in found["pictures"].items()}
            for fields in pictures.values():
                request_of(fields)
        except (ValueError, KeyError, TypeError, AttributeError, OSError, RecursionError, RequestError):
            raise RequestError(f"'{file}' is damaged. Paint the variants again.") from None
        return cls(path, load, pictures)

    def add(self, name: str, request: Request) -> None:
        """Remembers a picture that was saved, with the request (count 1, its own seed) that paints it."""
        fields = {key: value for key, value in dataclasses.asdict(_alone(request)).items() if value is not None}
        self.pictures[name] = {key: value for key, value in fields.items() if key not in (*_PICTURES, "strength")}
        write_json(self.path / STATE, {"load": _remembered(self.load), "pictures": self.pictures})

    def file(self, name: str) -> Path:
        """Where the picture of that name lies."""
        return self.path / f"{name}.png"

    def chosen(self, text: str) -> list[str]:
        """The names in `3,7-9,3-refined`, each once.

        Raises:
            RequestError: there is no such picture, or its file is gone.
        """
        names: dict[str, None] = {}
        for part in (part.strip() for part in text.split(",")):
            match = _RANGE.fullmatch(part)
            if match is not None and abs(int(match[2]) - int(match[1])) < len(self.pictures):
                first, last = int(match[1]), int(match[2])
                way = 1 if last >= first else -1
                names |= dict.fromkeys(str(number) for number in range(first, last + way, way))
            elif part or "," not in text:
                names[part] = None
        wrong = next((name for name in names if name not in self.pictures), None)
        if wrong is not None or not names:
            known = ", ".join(sorted(self.pictures, key=_natural))
            raise RequestError(f"There is no picture {wrong or text!r} in '{self.path}'. It has: {known}.")
        gone = next((name for name in names if not self.file(name).is_file()), None)
        if gone is not None:
            raise RequestError(f"'{self.file(gone)}' is gone. Choose another picture.")
        return list(names)

    def refined_name(self, name: str) -> str:
        """A name for what is made of a picture, that no picture and no file has."""
        stem = f"{name}-refined"
        return next(name for name in _numbered(stem) if name not in self.pictures and not self.file(name).exists())

    def sheet_file(self) -> Path:
        """A file for the next sheet of before and after."""
        return next(self.file(name) for name in _numbered(REFINED) if not self.file(name).exists())

    def refinement(self, name: str, explicit: Mapping[str, Any]) -> Request:
        """The request that refines a picture: image to image with its own settings, under the explicit ones.

        Raises:
            RequestError: a value is not allowed.
        """
        fields = {**self.pictures[name], "image": self.file(name), **explicit}
        if "sampler" in explicit and "schedule" not in explicit:
            fields.pop("schedule", None)
        return request_of(fields)


def newest(folder: Path) -> Path:
    """The folder under this one whose variants were painted or refined last; this one itself where it holds some.

    Raises:
        RequestError: there is none.
    """
    found = [path for path in (folder / STATE, *folder.glob(f"*/{STATE}")) if path.is_file()]
    if not found:
        raise RequestError('There are no variants here. Paint some first: fewstep variants "a red apple".')
    return max(found, key=lambda path: path.stat().st_mtime_ns).parent


def check_empty(path: Path) -> None:
    """Raises OutputError where a folder for variants would mix with something else."""
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise OutputError(f"'{path}' holds something else. Choose another name, or an empty folder, with -o.")


def _numbered(stem: str) -> Iterable[str]:
    yield stem
    yield from (f"{stem}-{number}" for number in count(2))


def _natural(name: str) -> tuple[int, str]:
    number, _, rest = name.partition("-")
    return int(number) if number.isdecimal() else 0, rest


def _alone(request: Request) -> Request:
    return dataclasses.replace(request, count=1, image=None, mask=None)


def _remembered(load: Mapping[str, Any]) -> dict[str, Any]:
    """As JSON, with whole paths, so that another folder can be the current one."""
    found = {key: _whole(value) if key in ("path", "base", "vae") else value for key, value in load.items()}
    loras = load.get("lora")
    return found | {"lora": loras and [[_whole(path), weight] for path, weight in loras]}


def _whole(path: Any) -> str | None:
    if path is None:
        return None
    local = Path(path).expanduser()
    return str(local.absolute()) if local.exists() else str(path)


def _pairs(loras: Any) -> Any:
    """What `fewstep.load` takes as lora: None (the model's own), False, or pairs."""
    return loras if loras is None or loras is False else [(str(path), float(weight)) for path, weight in loras]
