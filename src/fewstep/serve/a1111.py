"""AUTOMATIC1111's HTTP interface, as far as its clients use it: text and image to image, progress, options, lists.

Formats are facts taken from the public interface and its clients; nothing is copied. Bodies are taken leniently: what
is not known is ignored, null stands for the default, lists of pictures may bring data: prefixes.

A model of few steps is asked for 20 steps and a guidance of 7 by clients that know no better. Unless
`override_settings.fewstep_policy` is "respect", such a request is clamped to what the model is made for, which `info`
says under `extra_generation_params`, and so does a Warning header.
"""

from __future__ import annotations

import asyncio
import json
import re
from datetime import UTC, datetime
from functools import partial
from typing import Any

from fastapi import APIRouter, Body, HTTPException, Request, Response

from fewstep.foreign import settings_of
from fewstep.hires import LATENT, PIXEL
from fewstep.infotext import PNG_KEY
from fewstep.sampling.sampler import SAMPLERS
from fewstep.sampling.timesteps import LABELS
from fewstep.serve.a1111_options import HASH, MODEL, Options
from fewstep.serve.a1111_orders import info_of, request_of, start_of, unserved
from fewstep.serve.a1111_schemas import Answer, Info, ModelItem, Pending, Progress, TaskProgress, body_of, options_body
from fewstep.serve.answers import answering, plain
from fewstep.serve.jobs import Studio
from fewstep.serve.models import UnknownModelError
from fewstep.serve.orders import Job
from fewstep.serve.security import gone, owner_of
from fewstep.serve.uploads import aside, from_base64, to_base64

Values = dict[str, Any]
_TASK = re.compile(r"[!-~]{1,100}")
_ANYTHING = Body(default_factory=dict)


def router(studio: Studio) -> APIRouter:
    """The routes, for one studio."""
    routes, options = APIRouter(tags=["a1111"]), Options()
    _painting(routes, studio, options)
    _watching(routes, studio)
    _interrupting(routes, studio)
    _options(routes, studio, options)
    _models(routes, studio, options)
    _lists(routes, studio)
    return routes


def _painting(routes: APIRouter, studio: Studio, options: Options) -> None:
    @routes.post("/sdapi/v1/txt2img", response_model=Answer, openapi_extra=body_of(started=False))
    @routes.post("/controlnet/txt2img", include_in_schema=False)
    async def txt2img(http: Request, response: Response, body: Values = _ANYTHING) -> Values:
        """Pictures from words. What is left out is the model's own way; what is not known is ignored."""
        return await _paint(studio, options, http, response, body, {})

    @routes.post("/sdapi/v1/img2img", response_model=Answer, openapi_extra=body_of(started=True))
    @routes.post("/controlnet/img2img", include_in_schema=False)
    async def img2img(http: Request, response: Response, body: Values = _ANYTHING) -> Values:
        """Pictures from a picture, as a whole or where a mask is white."""
        images = body.get("init_images")
        if not isinstance(images, list) or not images or images[0] is None:
            raise HTTPException(404, "Init image not found")
        return await _paint(studio, options, http, response, body, await aside(lambda: start_of(body)))

    @routes.post("/sdapi/v1/png-info", response_model=Info)
    async def png_info(body: Values = _ANYTHING) -> Values:
        """The settings that a picture carries: `image`, in base64."""
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
    @routes.get("/sdapi/v1/progress", response_model=Progress)
    async def progress(skip_current_image: bool = False, id_task: str | None = None) -> Values:
        """How far a task is; the first one that is active where none is named."""
        job = studio.job(id_task)
        return {
            "progress": job.progress if job is not None and job.active else 0.0,
            "eta_relative": job.eta_s if job is not None and job.active else 0.0,
            "state": _state(job),
            "current_image": None if skip_current_image else await _preview(job),
            "textinfo": None,
        }

    @routes.post("/internal/progress", response_model=TaskProgress)
    async def internal_progress(body: Values = _ANYTHING) -> Values:
        """How far the task `id_task` is; with `live_preview` false without its preview."""
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

    @routes.get("/internal/pending-tasks", response_model=Pending)
    async def pending() -> Values:
        """The tasks that have not ended."""
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
        """End a task, or the first one; it is answered with what is done."""
        job = studio.job(id_task)
        if job is not None and job.active:
            studio.cancel(job)
        return {}

    @routes.post("/sdapi/v1/skip")
    async def skip() -> None:
        """End the first task."""
        if (job := studio.current) is not None:
            studio.cancel(job)


def _state(job: Job | None) -> Values:
    active = job is not None and job.active
    steps = job.total // job.count if job is not None else 0
    return {
        "skipped": False,
        "interrupted": bool(job is not None and job.cancelled),
        "stopping_generation": False,
        "job": job.id if active and job is not None else "",
        "job_count": job.count if active and job is not None else 0,
        "job_timestamp": datetime.now(UTC).strftime("%Y%m%d%H%M%S"),
        "job_no": job.done // steps if active and job is not None and steps else 0,
        "sampling_step": job.done % steps if active and job is not None and steps else 0,
        "sampling_steps": steps,
    }


def _options(routes: APIRouter, studio: Studio, options: Options) -> None:
    @routes.get("/sdapi/v1/options")
    async def get_options() -> Values:
        """The options that hold for orders without settings of their own."""
        try:
            entry = await studio.models.find(options.kept.get(MODEL) or studio.models.first.name)
        except UnknownModelError:  # it is not in the folder any more
            entry = studio.models.first
        return {**options.kept, MODEL: entry.title, HASH: entry.digest}

    @routes.post("/sdapi/v1/options", openapi_extra=options_body())
    async def set_options(body: Values = _ANYTHING) -> None:
        """Set options; a model is loaded at once. Those that are not known here are kept and change nothing."""
        options.check(body)
        if wanted := body.get(MODEL):
            entry = await studio.models.find(wanted)
            await studio.pipe_of(entry.name)
            body = {**body, MODEL: entry.name}
        options.keep(body)


def _models(routes: APIRouter, studio: Studio, options: Options) -> None:
    @routes.get("/sdapi/v1/sd-models", response_model=list[ModelItem])
    async def models() -> list[Values]:
        """The models that can be chosen."""
        return [
            {"title": one.title, "model_name": one.name, "filename": one.file, "hash": one.digest or None}
            | {"sha256": None, "config": None}
            for one in studio.models.list()
        ]

    @routes.post("/sdapi/v1/refresh-checkpoints")
    async def refresh_checkpoints() -> None:
        """Look for models again."""
        await asyncio.to_thread(studio.models.scan)
        studio.models.hash_all()

    @routes.post("/sdapi/v1/unload-checkpoint")
    async def unload_checkpoint() -> None:
        """Models that are not in use leave memory, but for the first one."""
        await studio.models.unload()

    @routes.post("/sdapi/v1/reload-checkpoint")
    async def reload_checkpoint() -> None:
        """Load the model of the options."""
        await studio.pipe_of(options.kept.get(MODEL))

    for name in ("refresh-loras", "refresh-vae"):
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
        kind = list[Values] if isinstance(value, list) else Values
        routes.add_api_route(f"/sdapi/v1/{name}", answering(value), methods=["GET"], name=name, response_model=kind)

    @routes.get("/sdapi/v1/loras")
    async def loras() -> list[Values]:
        """What `<lora:name:weight>` may name."""
        found = await asyncio.to_thread(studio.pipe.lora_names)
        return [{"name": name, "alias": alias, "path": name, "metadata": {}} for name, alias in found.items()]

    @routes.get("/sdapi/v1/cmd-flags")
    async def flags() -> Values:
        """How the server was started, as far as clients ask."""
        return {"api": True, "listen": False}


async def _paint(
    studio: Studio, options: Options, http: Request, response: Response, body: Values, start: Values
) -> Values:
    settings = options.heeded(body)
    pipe = await studio.pipe_of(settings.get(MODEL))
    request, changes = request_of(body, start, settings, pipe)
    changes |= unserved(body)
    order = await studio.open(request, owner=owner_of(http.scope), pipe=pipe, job_id=_id(body.get("force_task_id")))
    http.state.task = order.job.id
    if changes:
        response.headers["warning"] = f'299 fewstep "{"; ".join(changes.values())}"'
    job = order.job
    await studio.pictures(order, wanted=lambda step, steps: job.watched, gone=gone(http))
    kept = order.painted if body.get("send_images", True) else []
    images = [await aside(partial(to_base64, picture)) for picture in kept]
    return {"images": images, "parameters": _echo(body), "info": json.dumps(info_of(order, changes))}


def _id(given: Any) -> str | None:
    """The client's name for a task, where it can stand in a header."""
    return given if isinstance(given, str) and _TASK.fullmatch(given) else None


def _echo(body: Values) -> Values:
    """The order as it came, without its pictures."""
    return plain({key: value for key, value in body.items() if key not in ("init_images", "mask", "alwayson_scripts")})
