"""`--from picture.png`: the settings a picture carries, back into a request, a model and its LoRAs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fewstep.errors import CheckpointError, ImageError, RequestError
from fewstep.infotext import parse, read, request_from_infotext
from fewstep.request import SPECS

if TYPE_CHECKING:
    from fewstep.plan import Plan

EMBEDDED = "pictogram"


@dataclass(frozen=True)
class Recalled:
    """What a picture says of how it was made: the request's fields, and the rest as it is written."""

    path: Path
    fields: dict[str, Any]
    settings: Mapping[str, str] = field(default_factory=dict)

    @property
    def ours(self) -> bool:
        """Whether this program wrote the picture."""
        return self.settings.get("Version", "").startswith("fewstep")


def recall(path: Path) -> Recalled:
    """Reads a picture's settings.

    Raises:
        ImageError: it is not a picture, or carries no settings.
        RequestError: the settings cannot be understood.
    """
    text = read(path)
    if text is None:
        raise ImageError(f"'{path}' carries no settings. Give --from a picture as fewstep or A1111 wrote it.")
    info = parse(text)
    request = request_from_infotext(info)
    return Recalled(path, {name: getattr(request, name) for name in SPECS}, info.settings)


def merged(recalled: Recalled, explicit: Mapping[str, Any]) -> dict[str, Any]:
    """The recalled fields under the explicit ones.

    Raises:
        RequestError: the picture was made from another picture or with a mask, and none is given.
    """
    fields = {**recalled.fields, **explicit}
    for name, key in (("image", "Init image hash"), ("mask", "Mask hash")):
        if key in recalled.settings and fields.get(name) is None:
            raise RequestError(f"'{recalled.path}' was made with --{name}, which is not in it. Give --{name} again.")
    strength = recalled.settings.get("Denoising strength")
    if fields.get("image") is not None and "strength" not in explicit and strength is not None:
        fields["strength"] = _number("Denoising strength", strength)
    if "sampler" in explicit and "schedule" not in explicit:
        fields["schedule"] = None
    return fields


def recalled_model(recalled: Recalled) -> Path | str | None:
    """The model folder that the picture names, here or beside the picture, or its Hub name; None stands for the
    embedded model.

    Raises:
        CheckpointError: it is not there.
    """
    from fewstep.checkpoints.hub import is_hub_id

    name = recalled.settings.get("Model", EMBEDDED)
    if name == EMBEDDED:
        return None
    for folder in (Path(), recalled.path.parent):
        for path in (folder / name, folder / f"{name}.safetensors"):
            if path.is_dir() or (path.is_file() and path.suffix == ".safetensors"):
                return path
    if is_hub_id(name):
        return name
    found = recalled.settings.get("Model hash", "unknown")
    raise CheckpointError(f"'{recalled.path}' was made with the model '{name}' (hash {found}). Give it with --model.")


def recalled_loras(recalled: Recalled) -> list[tuple[str | Path, float]] | None:
    """The LoRAs that the picture names; None, for the model's own, where another program wrote it."""
    if not recalled.ours:
        return None
    entries = [entry.rpartition(": ") for entry in recalled.settings.get("Loras", "").split(", ") if entry]
    return [(name, _number("Loras", weight)) for name, _, weight in entries]


def recalled_dtype(recalled: Recalled, device: str) -> str | None:
    """The number format that the picture was computed in, if it was on the same kind of device."""
    same = recalled.settings.get("Device") == device.split(":")[0]
    return recalled.settings.get("Precision") if same else None


def differences(recalled: Recalled, plan: Plan, facts: Mapping[str, str]) -> list[str]:
    """Sentences on what is not as it was when the picture was made."""
    now = {**plan.hashes, **facts}
    labels = {
        "Model hash": "model",
        "Lora hashes": "set of LoRAs",
        "Init image hash": "start picture",
        "Mask hash": "mask",
        "Device": "device",
        "Precision": "number format",
    }
    return [
        f"'{recalled.path}' had another {label} (then {recalled.settings[key]}, now {now.get(key) or 'none'})."
        for key, label in labels.items()
        if recalled.ours and key in recalled.settings and now.get(key) != recalled.settings[key]
    ]


def _number(key: str, value: str) -> float:
    try:
        return float(value)
    except ValueError:
        raise RequestError(f"The picture's settings say {key}: {value}, which is not a number.") from None
