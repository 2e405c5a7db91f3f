"""AUTOMATIC1111's HTTP interface, as far as its clients use it: text and image to image, progress, options, lists.

Formats are facts taken from the public interface and its clients; nothing is copied. Bodies are taken leniently: what
is not known is ignored, null stands for the default, lists of pictures may bring data: prefixes.

A model of few steps is asked for 20 steps and a guidance of 7 by clients that know no better. Unless
`override_settings.fewstep_policy` is "respect", such a request is clamped to what the model is made for, which `info`
says under `extra_generation_params`, and so does a Warning header.
"""

from __future__ import annotations

import base64
import io
import json
import platform
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from fastapi import APIRouter, Body, HTTPException, Request, Response
from PIL import Image

from fewstep import __version__
from fewstep import request as asked
from fewstep.errors import RequestError
from fewstep.foreign import settings_of
from fewstep.hires import LATENT, PIXEL
from fewstep.infotext import PNG_KEY, Picture
from fewstep.sampling.sampler import SAMPLERS, sampler_named
from fewstep.sampling.timesteps import LABELS, table_named
from fewstep.serve.jobs import Job, Stepped, Studio
from fewstep.serve.uploads import from_base64

CLAMP_STEPS, CLAMP_GUIDANCE = 8, 2.0
POLICIES = ("clamp", "respect")
Values = dict[str, Any]
_ANYTHING = Body(default_factory=dict)


def router(studio: Studio) -> APIRouter:
    """The routes, for one studio."""
    routes = APIRouter(tags=["a1111"])
    _painting(routes, studio)
    _watching(routes, studio)
    _options(routes, studio)
    _lists(routes, studio)
    return routes


def _painting(routes: APIRouter, studio: Studio) -> None:
    @routes.post("/sdapi/v1/txt2img")
    async def txt2img(http: Request, response: Response, body: Values = _ANYTHING) -> Values:
        return await _paint(studio, http, response, body, {})

    @routes.post("/sdapi/v1/img2img")
    async def img2img(http: Request, response: Response, body: Values = _ANYTHING) -> Values:
        images = body.get("init_images")
        if not isinstance(images, list) or not images or images[0] is None:
            raise HTTPException(404, "Init image not found")
        return await _paint(studio, http, response, body, start_of(body))

    @routes.post("/sdapi/v1/png-info")
    async def png_info(body: Values = _ANYTHING) -> Values:
        if not body.get("image"):
            return {"info": "", "items": {}, "parameters": {}}
        image = from_base64(body["image"])
        info = settings_of(image)
        items = {key: value for key, value in image.info.items() if isinstance(value, str)}
        return {"info": str(image.info.get(PNG_KEY, "")), "items": items, "parameters": _flat(info)}


def _flat(info: Any) -> Values:
    return {} if info is None else {"Prompt": info.prompt, "Negative prompt": info.negative_prompt, **info.settings}


def _watching(routes: APIRouter, studio: Studio) -> None:
    @routes.get("/sdapi/v1/progress")
    async def progress(skip_current_image: bool = False, id_task: str | None = None) -> Values:
        job = studio.jobs.get(id_task) if id_task else studio.current
        preview = None if skip_current_image or job is None or job.preview is None else _base64(job.preview)
        return {
            "progress": job.progress if job is not None and job.active else 0.0,
            "eta_relative": job.eta_s if job is not None and job.active else 0.0,
            "state": _state(job),
            "current_image": preview,
            "textinfo": None,
        }

    @routes.post("/internal/progress")
    async def internal_progress(body: Values = _ANYTHING) -> Values:
        job = studio.jobs.get(str(body.get("id_task")))
        active = job is not None and job.active
        preview = _base64(job.preview) if job is not None and job.preview and body.get("live_preview", True) else None
        return {
            "active": active,
            "queued": bool(active and job and not job.done),
            "completed": job is not None and not job.active,
            "progress": job.progress if job is not None else None,
            "eta": job.eta_s if active and job is not None else None,
            "live_preview": preview and f"data:image/png;base64,{preview}",
            "textinfo": job.error if job is not None and job.error else None,
        }

    @routes.get("/internal/pending-tasks")
    async def pending() -> Values:
        active = [job.id for job in studio.jobs.values() if job.active]
        return {"size": len(active), "tasks": active}

    @routes.post("/sdapi/v1/interrupt")
    async def interrupt(id_task: str | None = None) -> Values:
        job = studio.jobs.get(id_task) if id_task else studio.current
        if job is not None and job.active:
            studio.cancel(job)
        return {}

    @routes.post("/sdapi/v1/skip")
    async def skip() -> None:
        if (job := studio.current) is not None:
            studio.cancel(job)


def _state(job: Job | None) -> Values:
    active = job is not None and job.active
    steps = job.total // len(job.pictures) if job is not None else 0
    return {
        "skipped": False,
        "interrupted": bool(job is not None and job.cancelled),
        "stopping_generation": False,
        "job": job.id if active and job is not None else "",
        "job_count": len(job.pictures) if active and job is not None else 0,
        "job_timestamp": datetime.now(UTC).strftime("%Y%m%d%H%M%S"),
        "job_no": job.done // steps if active and job is not None and steps else 0,
        "sampling_step": job.done % steps if active and job is not None and steps else 0,
        "sampling_steps": steps,
    }


def _options(routes: APIRouter, studio: Studio) -> None:
    kept: Values = {}

    @routes.get("/sdapi/v1/options")
    async def options() -> Values:
        model = studio.pipe.model
        return {
            "samples_format": "png",
            "sd_model_checkpoint": _title(studio),
            "sd_checkpoint_hash": model.content_hash,
            "sd_vae": "Automatic",
            "CLIP_stop_at_last_layers": 1,
            "eta_noise_seed_delta": 0,
            "fewstep_policy": "clamp",
            **kept,
        }

    @routes.post("/sdapi/v1/options")
    async def set_options(body: Values = _ANYTHING) -> None:
        if (wanted := body.get("sd_model_checkpoint")) and not _is_ours(studio, str(wanted)):
            raise HTTPException(404, f"There is no model '{str(wanted)[:80]}' here. There is '{_title(studio)}'.")
        if body.get("fewstep_policy", "clamp") not in POLICIES:
            raise HTTPException(422, f"fewstep_policy is one of: {', '.join(POLICIES)}.")
        known = ("CLIP_stop_at_last_layers", "eta_noise_seed_delta", "fewstep_policy")
        kept.update({key: body[key] for key in known if key in body})

    @routes.get("/sdapi/v1/cmd-flags")
    async def flags() -> Values:
        return {"api": True, "listen": False}

    for name in ("unload-checkpoint", "reload-checkpoint", "refresh-checkpoints", "refresh-loras", "refresh-vae"):
        routes.add_api_route(f"/sdapi/v1/{name}", _nothing, methods=["POST"])
    routes.add_api_route("/sdapi/v1/refresh-embeddings", _nothing, methods=["POST"])


async def _nothing() -> None:
    """There is nothing to do."""


def _lists(routes: APIRouter, studio: Studio) -> None:
    samplers = [{"name": one.label, "aliases": [one.name], "options": {}} for one in SAMPLERS.values()]
    labels = dict.fromkeys(LABELS.items())
    schedules = [
        {"name": name, "label": label, "aliases": [], "default_rho": -1.0, "need_inner_model": False}
        for name, label in (("automatic", "Automatic"), *labels)
    ]
    upscalers = [
        {"name": name, "model_name": None, "model_path": None, "model_url": None, "scale": 4.0} for name in PIXEL
    ]
    fixed: Values = {
        "samplers": samplers,
        "schedulers": schedules,
        "upscalers": upscalers,
        "latent-upscale-modes": [{"name": name} for name in LATENT],
        "sd-vae": [],
        "hypernetworks": [],
        "face-restorers": [],
        "realesrgan-models": [],
        "prompt-styles": [],
        "embeddings": {"loaded": {}, "skipped": {}},
        "scripts": {"txt2img": [], "img2img": []},
        "script-info": [],
        "extensions": [],
    }
    for name, value in fixed.items():
        routes.add_api_route(f"/sdapi/v1/{name}", _answering(value), methods=["GET"], name=name)

    @routes.get("/sdapi/v1/sd-models")
    async def models() -> list[Values]:
        model = studio.pipe.model
        names = {"title": _title(studio), "model_name": model.name, "filename": model.name}
        return [{**names, "hash": model.content_hash, "sha256": None, "config": None}]

    @routes.get("/sdapi/v1/loras")
    async def loras() -> list[Values]:
        return [
            {"name": lora.name, "alias": lora.name, "path": lora.name, "metadata": {}} for lora, _ in studio.pipe.loras
        ]

    @routes.get("/sdapi/v1/memory")
    async def memory() -> Values:
        return {"ram": {"free": 0, "used": 0, "total": 0}, "cuda": {"error": f"not measured on {platform.system()}"}}

    @routes.get("/controlnet/version")
    async def controlnet_version() -> Values:
        return {"version": 3}

    routes.add_api_route("/controlnet/model_list", _answering({"model_list": []}), methods=["GET"])
    none = {"module_list": ["none"], "module_detail": {}}
    routes.add_api_route("/controlnet/module_list", _answering(none), methods=["GET"])

    @routes.post("/controlnet/detect")
    async def controlnet_detect() -> None:
        raise HTTPException(422, "ControlNet is not served yet: there are no modules and no models.")


def _answering(value: Any) -> Any:
    async def answer() -> Any:
        return value

    return answer


def _title(studio: Studio) -> str:
    return f"{studio.pipe.model.name} [{studio.pipe.model.content_hash}]"


def _is_ours(studio: Studio, wanted: str) -> bool:
    """By title, name, file name or hash, as clients know a model."""
    model = studio.pipe.model
    names = {_title(studio), model.name, f"{model.name}.safetensors", model.content_hash}
    return wanted in names or (len(wanted) >= 8 and model.content_hash.startswith(wanted))


# ---- one order


async def _paint(studio: Studio, http: Request, response: Response, body: Values, start: Values) -> Values:
    owner = http.client.host if http.client else ""
    request, changes = request_of(body, start, studio)
    job = await studio.open(request, job_id=_id(body.get("force_task_id")))
    response.headers["x-task-id"] = job.id
    if changes:
        response.headers["warning"] = f'299 fewstep "{"; ".join(changes.values())}"'
    async for event in studio.run(job, owner=owner, wanted=lambda step, steps: True):
        if isinstance(event, Stepped) and await http.is_disconnected():
            studio.cancel(job)
    pictures = [picture for picture in job.pictures if picture is not None]
    images = [_base64(picture) for picture in pictures] if body.get("send_images", True) else []
    return {"images": images, "parameters": _echo(body), "info": json.dumps(_info(studio, job, pictures, changes))}


def _id(given: Any) -> str | None:
    return given if isinstance(given, str) and 0 < len(given) <= 100 else None


def _echo(body: Values) -> Values:
    """The order as it came, without its pictures."""
    return {key: value for key, value in body.items() if key not in ("init_images", "mask", "alwayson_scripts")}


def _base64(picture: Image.Image) -> str:
    stream = io.BytesIO()
    picture.save(stream, "PNG")
    return base64.b64encode(stream.getvalue()).decode()


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
    "denoising_strength": "hires_strength",
}


def request_of(body: Values, start: Values, studio: Studio) -> tuple[asked.Request, dict[str, str]]:
    """The order as a request of ours, and what the policy changed: key -> sentence.

    Raises:
        RequestError: a value that is not allowed, or a name that is not known.
    """
    fields = {ours: body[name] for name, ours in NAMES.items() if body.get(name) is not None}
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
        fields |= {ours: body[name] for name, ours in SECOND.items() if body.get(name) not in (None, "", 0)}
        if "hires_width" in fields or "hires_height" in fields:
            fields.pop("hires_scale", None)
        fields = {name: value for name, value in fields.items() if not str(value).lower().startswith("use same")}
    sampler = body.get("sampler_name") or body.get("sampler_index")
    if isinstance(sampler, str):
        fields["sampler"] = _sampler(sampler)
        fields["schedule"] = _schedule(body.get("scheduler"))
    settings = body.get("override_settings")
    settings = settings if isinstance(settings, dict) else {}
    if settings.get("CLIP_stop_at_last_layers"):
        fields["clip_skip"] = settings["CLIP_stop_at_last_layers"]
    changes = {} if settings.get("fewstep_policy") == "respect" else _clamp(fields, studio)
    return asked.request_of({name: value for name, value in fields.items() if value is not None}), changes


def _sampler(name: str) -> str:
    try:
        sampler_named(name)
    except RequestError:
        raise HTTPException(404, "Sampler not found") from None
    return name


def _schedule(name: Any) -> str:
    """A1111's name of a schedule; Automatic where none is given. Joined names ("DPM++ 2M Karras") bring their own."""
    if not isinstance(name, str) or name.lower() in ("", "automatic"):
        return "automatic"
    return table_named(name)


def _clamp(fields: Values, studio: Studio) -> dict[str, str]:
    """Bring an ordinary order down to what a model of few steps is made for; says what was changed."""
    own = studio.pipe.plan(asked.Request("")).sampler
    sampling = studio.pipe.sampling
    changes: dict[str, str] = {}
    if sampling.steps > CLAMP_STEPS:  # an ordinary model
        return changes
    if _number(fields.get("steps")) > CLAMP_STEPS:
        changes["steps"] = f"steps {fields['steps']} became {sampling.steps}"
        fields["steps"] = sampling.steps
    if _number(fields.get("guidance")) > CLAMP_GUIDANCE and not studio.pipe.model.sampling.embedded_guidance:
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


def _info(studio: Studio, job: Job, pictures: list[Picture], changes: Mapping[str, str]) -> Values:
    """What A1111 calls `info`: everything that was used, with all prompts and seeds."""
    plan, count = job.plan, len(job.pictures)
    request, model = plan.request, studio.pipe.model
    seeds = [plan.seed_of(index) for index in range(count)]
    texts = [str(picture.info[PNG_KEY]) for picture in pictures]
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
