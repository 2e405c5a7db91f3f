"""A1111's options: what clients set once and later orders heed, unless their own override_settings say otherwise.

An option that is not known here is kept and given back, and changes nothing: some clients post all of them back.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from fewstep.errors import RequestError
from fewstep.infotext import AUTOENCODERS
from fewstep.request import checked

Values = dict[str, Any]
POLICIES = ("clamp", "respect")
FIELDS = {"CLIP_stop_at_last_layers": "clip_skip", "eta_noise_seed_delta": "ensd"}
"""Option -> the field of a request that it sets."""

DEFAULTS: Values = {
    "samples_format": "png",
    "sd_vae": "Automatic",
    "CLIP_stop_at_last_layers": 1,
    "eta_noise_seed_delta": 0,
    "fewstep_policy": "clamp",
}
MODEL, HASH = "sd_model_checkpoint", "sd_checkpoint_hash"
DECODE = "sd_vae_decode_method"
ROOM = 2**18
"""Characters of JSON that all options may take together."""


class Options:
    """The options of one server, the same for all its clients, as in A1111."""

    def __init__(self) -> None:
        self.kept: Values = dict(DEFAULTS)

    def keep(self, given: Mapping[str, Any]) -> None:
        """Set what is given, all of it or nothing; null is the default again.

        Raises:
            RequestError: a value that is not allowed, or more than there is room for.
        """
        kept = {**self.kept, **self.check(given)}
        kept = {key: DEFAULTS.get(key) if value is None else value for key, value in kept.items()}
        if len(json.dumps(kept)) > ROOM:
            raise RequestError(f"The options together have more than {ROOM} characters. Send fewer.")
        self.kept = kept

    def check(self, given: Mapping[str, Any]) -> Values:
        """The same with plain numbers, without what only the server sets; raises RequestError."""
        return {key: _checked(key, value) for key, value in given.items() if key != HASH}

    def heeded(self, order: Mapping[str, Any]) -> Values:
        """What holds for this order: its override_settings, else the options.

        With override_settings_restore_afterwards false they become the options, as in A1111.
        """
        own = order.get("override_settings")
        own = own if isinstance(own, dict) else {}
        if order.get("override_settings_restore_afterwards") is False:
            self.keep(own)
        given = {key: value for key, value in self.check(own).items() if value is not None}
        return {**self.kept, **given}


def fields_of(settings: Mapping[str, Any]) -> Values:
    """The fields of a request that these settings say.

    >>> fields_of({"CLIP_stop_at_last_layers": 2, "sd_vae": "Automatic", "sd_vae_decode_method": "TAESD"})
    {'clip_skip': 2, 'autoencoder': 'tiny'}
    """
    found = {field: settings[key] for key, field in FIELDS.items() if settings.get(key) is not None}
    return found | AUTOENCODERS.get(str(settings.get(DECODE, "")).lower(), {})


def _checked(key: str, value: Any) -> Any:
    if value is None:
        return None
    if key == "fewstep_policy" and value not in POLICIES:
        raise RequestError(f"fewstep_policy is {str(value)[:40]!r}. Give one of: {', '.join(POLICIES)}.")
    if key == DECODE and str(value).lower() not in AUTOENCODERS:
        raise RequestError(f"{DECODE} is {str(value)[:40]!r}. Give one of: Full, TAESD.")
    if key == MODEL and not isinstance(value, str):
        raise RequestError(f"{MODEL} is {str(value)[:40]!r}, which is not text. Give a model's name or title.")
    if key not in FIELDS:
        return value
    whole = int(value) if isinstance(value, float) and value.is_integer() else value
    try:
        return checked(FIELDS[key], whole)
    except RequestError as error:
        raise RequestError(f"{key}: {error}") from None
