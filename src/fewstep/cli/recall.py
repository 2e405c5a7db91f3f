"""`--from picture.png`: the settings a picture carries, back into a request, a model and its LoRAs.

What a picture cannot give back is said: notes where the picture can be painted all the same, else an error.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fewstep.errors import CheckpointError, ImageError, RequestError
from fewstep.foreign import settings_of
from fewstep.hires import SECOND_PASS, upscaler_named
from fewstep.infotext import Infotext, fields_of, setting, unrestored
from fewstep.plan import AUTOMATIC
from fewstep.prompt.tags import split_lora_tags
from fewstep.request import SPECS, request_of
from fewstep.sampling.sampler import sampler_named
from fewstep.sampling.timesteps import table_named

if TYPE_CHECKING:
    from fewstep.checkpoints.search import Places
    from fewstep.plan import Plan

EMBEDDED = "pictogram"
_HASHES = {"Model hash": "model", "VAE hash": "VAE", "Lora hashes": "set of LoRAs"}
_OURS = {
    "Init image hash": "start picture",
    "Mask hash": "mask",
    "Device": "device",
    "Precision": "number format",
}


@dataclass(frozen=True)
class Recalled:
    """What a picture says of how it was made: the request's fields, and the rest as it is written.

    `loras` stand beside the prompt's; None where another program wrote it: the model's own. `extra` are LoRAs of its
    prompt that were found elsewhere than a prompt's are looked for; `notes` say what it lacks.
    """

    path: Path
    fields: dict[str, Any]
    settings: Mapping[str, str] = field(default_factory=dict)
    look_in: tuple[Path, ...] = ()
    loras: tuple[tuple[str | Path, float], ...] | None = None
    extra: tuple[Path, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def ours(self) -> bool:
        """Whether this program wrote the picture."""
        return Infotext(settings=self.settings).ours

    def places(self, *more: Path) -> Places:
        """Where its models and LoRAs are looked for."""
        from fewstep.checkpoints.search import Places

        return Places((Path(), *more, self.path.parent), self.look_in)


def recall(
    path: Path, *, look_in: Sequence[Path] = (), model: str | Path | None = None, own_loras: bool = True
) -> Recalled:
    """Reads a picture's settings; `look_in` are more folders for its files.

    `model` stands in for the one that it names; without `own_loras` those beside its prompt are not looked for.

    Raises:
        ImageError: it is not a picture, or carries no settings.
        RequestError: the settings cannot be understood.
        CheckpointError: the model that it names is not there.
    """
    info = settings_of(path)
    if info is None:
        raise ImageError(f"'{path}' carries no settings that are known. Give --from a picture as it was painted.")
    fields, notes = _restored(info)
    recalled = Recalled(path, fields, info.settings, tuple(look_in), notes=notes)
    folder = folder_of(recalled_model(recalled) if model is None else model)
    return _with_prompt_loras(with_loras(recalled, folder) if own_loras and recalled.ours else recalled, folder)


def folder_of(model: str | Path | None) -> Path:
    """Where a model lies, whose LoRAs may lie beside it; None is the embedded model."""
    from fewstep.checkpoints.description import assets_path

    path = assets_path() if model is None else Path(model).expanduser()
    return path if path.is_dir() else path.parent


def _restored(info: Infotext) -> tuple[dict[str, Any], tuple[str, ...]]:
    """The fields of a request that are possible here, and what is not, one sentence each."""
    fields, notes = fields_of(info), []
    for name, value in list(fields.items()):
        try:
            pass_two = {key: fields[key] for key in SECOND_PASS if key in fields} if name.startswith("hires_") else {}
            request_of({"prompt": "", **pass_two, name: value if SPECS[name].kind != "text" else ""})
            _check_name(name, value)
        except RequestError as error:
            del fields[name]
            notes.append(f"Not restored: {str(error)[:200]}")
    lacking = [f"{key}: {value[:60]}" for key, value in unrestored(info).items()]
    notes += [f"Not restored, as there is nothing like it here: {'; '.join(lacking)}."] if lacking else []
    request = request_of(fields | {"prompt": "", "negative_prompt": ""})
    kept = {"prompt": info.prompt, "negative_prompt": info.negative_prompt}
    return {name: getattr(request, name) for name in SPECS} | kept, tuple(notes)


def _check_name(name: str, value: Any) -> None:
    """Raises RequestError for a sampler, a schedule or an upscaler that is not known here."""
    if name in ("sampler", "hires_sampler"):
        sampler_named(value)
    elif name in ("schedule", "hires_schedule") and value.lower() != AUTOMATIC:
        table_named(value)
    elif name == "hires_upscaler":
        upscaler_named(value)


def with_loras(recalled: Recalled, folder: Path) -> Recalled:
    """The LoRAs beside the prompt's found; those that are nowhere are left out, with a note."""
    found, notes = [], list(recalled.notes)
    for name, weight in _entries(recalled.settings.get("Loras", "")):
        number, path = float(setting("Loras", weight, float)), _lora(recalled, name, folder)
        found += [(path, number)] if path else []
        notes += [] if path else [_no_lora(name)]
    return replace(recalled, loras=tuple(found), notes=tuple(notes))


def _with_prompt_loras(recalled: Recalled, folder: Path) -> Recalled:
    """The LoRAs of the prompt found, by name or hash; those that are nowhere are taken out of it, with a note."""
    prompt, extra, notes = recalled.fields["prompt"], [], list(recalled.notes)
    loaded = {Path(path).stem for path, _ in recalled.loras or ()}
    for name in dict.fromkeys(tag.name for tag in split_lora_tags(prompt)[1]):
        found = _lora(recalled, name, folder)
        pattern = rf"<lora:\s*{re.escape(name)}\s*(?=[:>])"
        if found is None:
            prompt = re.sub(rf"{pattern}[^>]*>", "", prompt).strip()
            notes.append(_no_lora(name))
            continue
        if found.stem != name:
            prompt = re.sub(pattern, lambda _, stem=found.stem: f"<lora:{stem}", prompt)
        if found.parent not in (Path(), folder) and found.stem not in loaded:
            extra.append(found)
    fields = {**recalled.fields, "prompt": prompt}
    return replace(recalled, fields=fields, extra=tuple(extra), notes=tuple(notes))


def _no_lora(name: str) -> str:
    return f"The LoRA '{name[:60]}' was not found, so it is left out. Give its folder with --look-in."


def _lora(recalled: Recalled, name: str, folder: Path) -> Path | None:
    hashes = dict(_entries(recalled.settings.get("Lora hashes", "")))
    return recalled.places(folder).lora(name, hashes.get(name, ""))


def _entries(text: str) -> list[tuple[str, str]]:
    """`ink: 0.6, fox: 1` as pairs; a name may have commas and colons, what stands behind it has neither.

    >>> _entries("ink: 0.6, a, b: c: 1")
    [('ink', '0.6'), ('a, b: c', '1')]
    """
    found, waiting = [], ""
    for part in text.split(", ") if text else []:
        name, colon, value = (waiting + part).rpartition(": ")
        waiting = "" if colon else f"{waiting}{part}, "
        found += [(name, value)] if colon else []
    return found


def merged(recalled: Recalled, explicit: Mapping[str, Any]) -> dict[str, Any]:
    """The recalled fields under the explicit ones.

    Raises:
        RequestError: the picture was made from another picture or with a mask, and none is given.
    """
    fields = {**recalled.fields, **explicit}
    settings = recalled.settings
    for name, keys in (("image", ("Init image hash", "Init image")), ("mask", ("Mask hash",))):
        if any(key in settings for key in keys) and fields.get(name) is None:
            raise RequestError(f"'{recalled.path}' was made with --{name}, which is not in it. Give --{name} again.")
    strength = settings.get("Denoising strength")
    if fields.get("image") is not None and "strength" not in explicit and strength is not None:
        fields["strength"] = setting("Denoising strength", strength, float)
    if "sampler" in explicit and "schedule" not in explicit:
        fields["schedule"] = None
    return fields


def recalled_model(recalled: Recalled) -> Path | str | None:
    """The model that the picture names, by its name or hash, or its Hub name; None stands for the embedded model.

    Raises:
        CheckpointError: it is not there.
    """
    from fewstep.checkpoints.hub import is_hub_id

    settings = recalled.settings
    name, digest = settings.get("Model", ""), settings.get("Model hash", "")
    if name == EMBEDDED or not (name or digest):
        return None
    found = recalled.places().model(name, digest.lower())
    if found is not None:
        return found
    if is_hub_id(name):
        return name
    raise CheckpointError(
        f"'{recalled.path}' was made with the model '{name or '?'}' (hash {digest or 'unknown'}), which is neither "
        "here nor beside it. Give it with --model, or its folder with --look-in."
    )


def recalled_loras(recalled: Recalled, explicit: Any = None) -> Any:
    """The LoRAs as `fewstep.load` takes them: `explicit` (a list, or False for none), else those of the picture.

    Those of its prompt that were found elsewhere are there at weight 0, so that their tags find them.
    """
    chosen = recalled.loras if explicit is None else explicit
    extra: list[tuple[str | Path, float]] = [(path, 0.0) for path in recalled.extra]
    if not extra:
        return chosen if chosen is None or chosen is False else list(chosen)
    return [*(chosen or ()), *extra]


def recalled_vae(recalled: Recalled) -> Path | None:
    """The VAE that the picture names, where it is found."""
    return recalled.places().file(recalled.settings.get("VAE", ""))


def recalled_dtype(recalled: Recalled, device: str) -> str | None:
    """The number format that the picture was computed in, if it was on the same kind of device."""
    same = recalled.settings.get("Device") == device.split(":")[0]
    return recalled.settings.get("Precision") if same else None


def differences(recalled: Recalled, plan: Plan, facts: Mapping[str, str]) -> list[str]:
    """Sentences on what could not be restored, and on what is not as it was when the picture was made."""
    now, then = {**plan.hashes, **facts}, recalled.settings
    labels = _HASHES | (_OURS if recalled.ours else {})
    others = [
        f"'{recalled.path}' had another {label} (then {then[key]}, now {now.get(key) or 'none'})."
        for key, label in labels.items()
        if key in then and _differ(key, then[key], now.get(key, ""))
    ]
    return [*recalled.notes, *_lacks(recalled, plan), *others]


def _differ(key: str, then: str, now: str) -> bool:
    """Of hashes with names only the hashes count; a model's, only such as are made alike, which have one length."""
    if key == "Lora hashes":
        return {value.lower() for _, value in _entries(then)} != {value for _, value in _entries(now)}
    return then.lower() != now.lower() and ("hash" not in key or len(then) == len(now))


def _lacks(recalled: Recalled, plan: Plan) -> list[str]:
    """What the picture was made with and does not hold."""
    then, notes = recalled.settings, []
    if not recalled.ours and not (then.get("Model") or then.get("Model hash")):
        notes.append(f"'{recalled.path}' does not say which model it was made with. Give it with --model.")
    hires = plan.hires is not None or any(key.startswith("Hires") for key in then)
    if "Denoising strength" in then and not hires and plan.image is None:
        notes.append("It was probably made from another picture, which is not in it. Give that with --image.")
    if "Mask blur" in then and plan.mask is None:
        notes.append("It was made with a mask, which is not in it. Give that with --mask.")
    vae = then.get("VAE", "")
    if vae.lower() not in ("", "none", "automatic") and recalled_vae(recalled) is None:
        notes.append(f"Its VAE '{vae}' was not found. Give it with --vae, or its folder with --look-in.")
    return notes
