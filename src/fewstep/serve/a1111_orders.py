"""A1111's orders as requests of ours, and what its `info` says of a job.

Formats are facts taken from the public interface and its clients; nothing is copied.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from fewstep import __version__
from fewstep import request as asked
from fewstep.errors import RequestError
from fewstep.infotext import PNG_KEY
from fewstep.pipeline import Pipeline
from fewstep.sampling.sampler import sampler_named
from fewstep.sampling.timesteps import table_named
from fewstep.serve.a1111_options import fields_of
from fewstep.serve.fields import typed
from fewstep.serve.orders import Order
from fewstep.serve.uploads import from_base64

CLAMP_STEPS, CLAMP_GUIDANCE = 8, 2.0
Values = dict[str, Any]


class UnknownSamplerError(RequestError):
    """Clients look for this sentence."""

    http_status = 404


def start_of(body: Values) -> Values:
    """The fields that an image to image order adds: picture, mask (white repaints; inverted on request), strength."""
    found: Values = {"image": from_base64(body["init_images"][0]), "strength": body.get("denoising_strength")}
    if body.get("mask"):
        mask = from_base64(body["mask"], what="mask").convert("L")
        inverted = str(body.get("inpainting_mask_invert") or 0) in ("1", "True", "true")
        found["mask"] = mask.point(lambda level: 255 - level) if inverted else mask
    return found


NAMES = {
    "prompt": "prompt",
    "negative_prompt": "negative_prompt",
    "steps": "steps",
    "cfg_scale": "guidance",
    "seed": "seed",
    "width": "width",
    "height": "height",
}
# Text to image has one strength, the second pass's; image to image, which has no second pass in A1111, has two.
SECOND = {
    "hr_scale": "hires_scale",
    "hr_resize_x": "hires_width",
    "hr_resize_y": "hires_height",
    "hr_upscaler": "hires_upscaler",
    "hr_second_pass_steps": "hires_steps",
    "hr_sampler_name": "hires_sampler",
    "hr_scheduler": "hires_schedule",
    "hr_cfg": "hires_guidance",
    "hr_prompt": "hires_prompt",
    "hr_negative_prompt": "hires_negative_prompt",
}


def request_of(body: Values, start: Values, settings: Values, pipe: Pipeline) -> tuple[asked.Request, dict[str, str]]:
    """The order as a request of ours, and what the policy changed: key -> sentence. `settings` are the options that
    hold for it, `pipe` is what will paint it.

    Raises:
        RequestError: a value that is not allowed, or a name that is not known.
    """
    fields = {ours: body[name] for name, ours in NAMES.items() if body.get(name) is not None}
    fields = {name: typed(name, value) for name, value in fields.items()}
    fields = {"prompt": "", **fields, **{name: value for name, value in start.items() if value is not None}}
    if fields.get("strength") == 0:
        fields["strength"] = 0.01
    for side in ("width", "height"):
        if side in fields:
            fields[side] = _whole(side, fields[side]) // 8 * 8
    if fields.get("seed", -1) == -1:
        fields.pop("seed", None)
    fields["count"] = _whole("batch_size", body.get("batch_size") or 1) * _whole("n_iter", body.get("n_iter") or 1)
    if body.get("enable_hr"):
        second = {**SECOND, "hr_denoising_strength" if start else "denoising_strength": "hires_strength"}
        given = {name: ours for name, ours in second.items() if body.get(name) not in (None, "", 0)}
        fields |= {ours: typed(ours, body[name]) for name, ours in given.items()}
        if "hires_width" in fields or "hires_height" in fields:
            fields.pop("hires_scale", None)
        fields = {name: value for name, value in fields.items() if not str(value).lower().startswith("use same")}
    sampler = body.get("sampler_name") or body.get("sampler_index")
    if isinstance(sampler, str):
        fields["sampler"] = _sampler(sampler)
        fields["schedule"] = _schedule(body.get("scheduler"))
    fields |= fields_of(settings)
    changes = {} if settings.get("fewstep_policy") == "respect" else _clamp(fields, pipe)
    return asked.request_of({name: value for name, value in fields.items() if value is not None}), changes


UNSERVED = {
    "restore_faces": "faces are not restored",
    "tiling": "edges are not made to meet",
    "styles": "there are no styles",
    "script_name": "there are no scripts",
    "inpaint_full_res": "the whole picture is painted, not the masked part alone",
    "refiner_checkpoint": "there is no refiner",
    "subseed_strength": "seeds are not mixed",
    "controlnet_units": "ControlNet is not served",
}
"""What an order may ask for and does not get, which it is told."""


def unserved(body: Values) -> dict[str, str]:
    """What of an order is left out: key -> sentence.

    >>> unserved({"tiling": True, "alwayson_scripts": {"ControlNet": {"args": []}, "ADetailer": {"args": [True]}}})
    {'tiling': 'edges are not made to meet', 'ADetailer': 'the script ADetailer is not served'}
    """
    found = {key: said for key, said in UNSERVED.items() if body.get(key) not in (None, False, 0, -1, "", "None", [])}
    scripts = body.get("alwayson_scripts")
    for name, script in list(scripts.items() if isinstance(scripts, dict) else ())[:16]:
        units = script.get("args") if isinstance(script, dict) else None
        units = units if isinstance(units, list) else []
        if any(unit for unit in units if not (isinstance(unit, dict) and unit.get("enabled") is False)):
            label = "".join(letter for letter in str(name)[:40] if letter.isascii() and letter.isprintable())
            found[label] = f"the script {label} is not served"
    return found


def _sampler(name: str) -> str:
    try:
        sampler_named(name)
    except RequestError:
        raise UnknownSamplerError("Sampler not found") from None
    return name


def _schedule(name: Any) -> str:
    """A1111's name of a schedule; Automatic where none is given. Joined names ("DPM++ 2M Karras") bring their own."""
    if not isinstance(name, str) or name.lower() in ("", "automatic"):
        return "automatic"
    return table_named(name)


def _clamp(fields: Values, pipe: Pipeline) -> dict[str, str]:
    """Bring an ordinary order down to what a model of few steps is made for; says what was changed."""
    sampling = pipe.sampling
    own = sampler_named(sampling.sampler)
    changes: dict[str, str] = {}
    if sampling.steps > CLAMP_STEPS:  # an ordinary model
        return changes
    if _number(fields.get("steps")) > CLAMP_STEPS:
        changes["steps"] = f"steps {fields['steps']} became {sampling.steps}"
        fields["steps"] = sampling.steps
    if _number(fields.get("guidance")) > CLAMP_GUIDANCE and not pipe.model.sampling.embedded_guidance:
        changes["guidance"] = f"CFG {fields['guidance']} became {sampling.guidance:g}"
        fields["guidance"] = sampling.guidance
    if changes and "sampler" in fields and sampler_named(fields["sampler"]).name != own.name:
        changes["sampler"] = f"sampler {fields['sampler']} became {own.label}"
        del fields["sampler"], fields["schedule"]
    return changes


def _whole(name: str, value: Any) -> int:
    try:
        return int(value)
    except (TypeError, ValueError, OverflowError):
        raise RequestError(f"{name} is {str(value)[:40]!r}, which is not a whole number.") from None


def _number(value: Any) -> float:
    return float(value) if isinstance(value, (int, float)) else 0.0


def info_of(order: Order, changes: Mapping[str, str]) -> Values:
    """What A1111 calls `info`: everything that was used, with all prompts and seeds."""
    plan, count = order.plan, order.job.count
    request, model = plan.request, order.pipe.model
    seeds = [plan.seed_of(index) for index in range(count)]
    texts = [str(picture.info[PNG_KEY]) for picture in order.painted]
    return {
        "prompt": request.prompt,
        "all_prompts": [request.prompt] * count,
        "negative_prompt": request.negative_prompt,
        "all_negative_prompts": [request.negative_prompt] * count,
        "seed": seeds[0],
        "all_seeds": seeds,
        "subseed": seeds[0],
        "all_subseeds": seeds,
        "subseed_strength": 0,
        "width": plan.size[0],
        "height": plan.size[1],
        "sampler_name": plan.sampler.label,
        "cfg_scale": plan.guidance,
        "steps": len(plan.timesteps),
        "batch_size": count,
        "restore_faces": False,
        "face_restoration_model": None,
        "sd_model_name": model.name,
        "sd_model_hash": model.content_hash,
        "sd_vae_name": None,
        "sd_vae_hash": None,
        "seed_resize_from_w": -1,
        "seed_resize_from_h": -1,
        "denoising_strength": plan.strength if plan.image else None,
        "extra_generation_params": {f"fewstep {key}": value for key, value in changes.items()},
        "index_of_first_image": 0,
        "infotexts": texts,
        "styles": [],
        "job_timestamp": datetime.now(UTC).strftime("%Y%m%d%H%M%S"),
        "clip_skip": request.clip_skip,
        "is_using_inpainting_conditioning": False,
        "version": f"fewstep {__version__}",
    }
