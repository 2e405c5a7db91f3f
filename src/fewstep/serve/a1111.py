"""AUTOMATIC1111's HTTP interface, as far as its clients use it: text and image to image, progress, options, lists.

Formats are facts taken from the public interface and its clients; nothing is copied. Bodies are taken leniently: what
is not known is ignored, null stands for the default, lists of pictures may bring data: prefixes.

A model of few steps is asked for 20 steps and a guidance of 7 by clients that know no better. Unless
`override_settings.fewstep_policy` is "respect", such a request is clamped to what the model is made for, which `info`
says under `extra_generation_params`, and so does a Warning header.
"""

from __future__ import annotations

import json
import re
from contextlib import suppress
from datetime import UTC, datetime
from functools import partial
from typing import Any

from fastapi import APIRouter, Body, HTTPException, Request, Response

from fewstep.engine.work import CancelledError
from fewstep.foreign import settings_of
from fewstep.hires import LATENT, PIXEL
from fewstep.infotext import PNG_KEY
from fewstep.sampling.sampler import SAMPLERS
from fewstep.sampling.timesteps import LABELS
from fewstep.serve.a1111_orders import info_of, request_of, start_of, unserved
from fewstep.serve.answers import plain
from fewstep.serve.jobs import Job, Stepped, Studio
from fewstep.serve.uploads import aside, from_base64, to_base64

POLICIES = ("clamp", "respect")
Values = dict[str, Any]
_ANYTHING = Body(default_factory=dict)


def router(studio: Studio) -> APIRouter:
    """The routes, for one studio."""
    routes = APIRouter(tags=["a1111"])
    _painting(routes, studio)
    _watching(routes, studio)
    _interrupting(routes, studio)
    _options(routes, studio)
    _lists(routes, studio)
    return routes


def _painting(routes: APIRouter, studio: Studio) -> None:
    @routes.post("/sdapi/v1/txt2img")
    @routes.post("/controlnet/txt2img", include_in_schema=False)
    async def txt2img(http: Request, response: Response, body: Values = _ANYTHING) -> Values:
        return await _paint(studio, http, response, body, {})

    @routes.post("/sdapi/v1/img2img")
    @routes.post("/controlnet/img2img", include_in_schema=False)
    async def img2img(http: Request, response: Response, body: Values = _ANYTHING) -> Values:
        images = body.get("init_images")
        if not isinstance(images, list) or not images or images[0] is None:
            raise HTTPException(404, "Init image not found")
        return await _paint(studio, http, response, body, await aside(lambda: start_of(body)))

    @routes.post("/sdapi/v1/png-info")
    async def png_info(body: Values = _ANYTHING) -> Values:
        if not body.get("image"):
            return {"info": "", "items": {}, "parameters": {}}
        return await aside(lambda: _said_in(from_base64(body["image"])))


def _said_in(image: Any) -> Values:
    """The settings that a picture carries."""
    info = settings_of(image)
    items = {key: value for key, value in image.info.items() if isinstance(value, str)}
    flat = {} if info is None else {"Prompt": info.prompt, "Negative prompt": info.negative_prompt, **info.settings}
    return {"info": str(image.info.get(PNG_KEY, "")), "items": items, "parameters": flat}


def _watching(routes: APIRouter, studio: Studio) -> None:
    @routes.get("/sdapi/v1/progress")
    async def progress(skip_current_image: bool = False, id_task: str | None = None) -> Values:
        job = studio.job(id_task)
        return {
            "progress": job.progress if job is not None and job.active else 0.0,
            "eta_relative": job.eta_s if job is not None and job.active else 0.0,
            "state": _state(job),
            "current_image": None if skip_current_image else await _preview(job),
            "textinfo": None,
        }

    @routes.post("/internal/progress")
    async def internal_progress(body: Values = _ANYTHING) -> Values:
        job = studio.jobs.get(str(body.get("id_task")))
        active = job is not None and job.active
        preview = await _preview(job) if body.get("live_preview", True) else None
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


async def _preview(job: Job | None) -> str | None:
    """The newest preview; they are made from the first time that somebody asks for one, as each costs a decoding."""
    if job is None:
        return None
    job.watched = True
    preview = job.preview
    return None if preview is None else await aside(lambda: to_base64(preview))


def _interrupting(routes: APIRouter, studio: Studio) -> None:
    @routes.post("/sdapi/v1/interrupt")
    async def interrupt(id_task: str | None = None) -> Values:
        job = studio.job(id_task)
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


def _fixed() -> Values:
    """The lists that do not depend on the model."""
    samplers = [{"name": one.label, "aliases": [one.name], "options": {}} for one in SAMPLERS.values()]
    labels = dict.fromkeys(LABELS.items())
    schedules = [
        {"name": name, "label": label, "aliases": [], "default_rho": -1.0, "need_inner_model": False}
        for name, label in (("automatic", "Automatic"), *labels)
    ]
    upscalers = [
        {"name": name, "model_name": None, "model_path": None, "model_url": None, "scale": 4.0}
        for name in sorted(PIXEL, key=lambda name: name != "None")  # clients take the first for none
    ]
    return {
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


def _lists(routes: APIRouter, studio: Studio) -> None:
    for name, value in _fixed().items():
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


async def _paint(studio: Studio, http: Request, response: Response, body: Values, start: Values) -> Values:
    owner = http.client.host if http.client else ""
    request, changes = request_of(body, start, studio)
    changes |= unserved(body)
    job = await studio.open(request, job_id=_id(body.get("force_task_id")))
    response.headers["x-task-id"] = job.id
    if changes:
        response.headers["warning"] = f'299 fewstep "{"; ".join(changes.values())}"'
    with suppress(CancelledError):  # interrupted: what is done by then is the answer, as in A1111
        async for event in studio.run(job, owner=owner, wanted=lambda step, steps: job.watched):
            if isinstance(event, Stepped) and await http.is_disconnected():
                studio.cancel(job)
    pictures = [picture for picture in job.pictures if picture is not None]
    wanted = pictures if body.get("send_images", True) else []
    images = [await aside(partial(to_base64, picture)) for picture in wanted]
    job.forget()
    return {"images": images, "parameters": _echo(body), "info": json.dumps(info_of(studio, job, pictures, changes))}


def _id(given: Any) -> str | None:
    """A client's own name of its task: letters and few signs, as it goes into a header."""
    return given if isinstance(given, str) and re.fullmatch(r"[\w().:-]{1,100}", given, re.ASCII) else None


def _echo(body: Values) -> Values:
    """The order as it came, without its pictures."""
    return plain({key: value for key, value in body.items() if key not in ("init_images", "mask", "alwayson_scripts")})
