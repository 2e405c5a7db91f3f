"""The application: doors of other programs' clients, health, figures, and errors in each client's own form."""

from __future__ import annotations

import math
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, PlainTextResponse
from starlette.exceptions import HTTPException

from fewstep import __version__
from fewstep.engine.work import BusyError
from fewstep.errors import FewstepError
from fewstep.serve import a1111, a1111_extras, openai
from fewstep.serve.answers import Answer, OpenaiRefusal, Refusal, refusals, sentence_of
from fewstep.serve.jobs import Studio


def application(studio: Studio) -> FastAPI:
    """The whole server of one studio, without its door (`security.Door`)."""

    @asynccontextmanager
    async def life(_app: FastAPI) -> AsyncIterator[None]:
        yield
        studio.close()

    app = FastAPI(
        title="fewstep",
        version=__version__,
        lifespan=life,
        default_response_class=Answer,
        docs_url=None,  # FastAPI's pages want scripts from elsewhere
        redoc_url=None,
    )
    app.include_router(a1111.router(studio), responses=refusals(Refusal))
    app.include_router(a1111_extras.router(), responses=refusals(Refusal))
    app.include_router(openai.router(studio), responses=refusals(OpenaiRefusal))
    app.add_exception_handler(Exception, _failed)
    app.add_exception_handler(FewstepError, _failed)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(HTTPException, _refused)

    @app.get("/healthz", include_in_schema=False)
    async def health() -> dict[str, str]:
        return {"status": "ok"}

    @app.get("/readyz", include_in_schema=False)
    async def ready() -> dict[str, str]:
        return {"status": "ready", "model": studio.pipe.model.name}

    @app.get("/metrics", include_in_schema=False)
    async def metrics() -> PlainTextResponse:
        return PlainTextResponse(_metrics(studio), media_type="text/plain; version=0.0.4")

    return app


async def _failed(http: Request, error: Exception) -> JSONResponse:
    answer = _said(http, getattr(error, "http_status", 500), sentence_of(error))
    if isinstance(error, BusyError):
        answer.headers["retry-after"] = str(math.ceil(error.retry_after_s))
    return answer


async def _refused(http: Request, error: Exception) -> JSONResponse:
    """What the framework refuses: no such place, not by that method, a body that cannot be read."""
    assert isinstance(error, HTTPException)
    answer = _said(http, error.status_code, str(error.detail))
    answer.headers.update(error.headers or {})
    return answer


async def _invalid(http: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestValidationError)
    kind = http.headers.get("content-type", "").partition(";")[0].strip().lower()
    if isinstance(error.body, bytes) and not kind.endswith("json"):
        return _said(
            http, 415, f"The body came as {kind or 'nothing'}. Send JSON, with Content-Type: application/json."
        )
    first = error.errors()[0]
    place = ".".join(str(part) for part in first["loc"] if part != "body")
    return _said(http, 400 if _is_openais(http) else 422, f"{place or 'The body'}: {first['msg']}.")


def _said(http: Request, status: int, sentence: str) -> JSONResponse:
    """In OpenAI's form under /v1, in FastAPI's and A1111's elsewhere."""
    return openai.failure(status, sentence) if _is_openais(http) else Answer({"detail": sentence}, status)


def _is_openais(http: Request) -> bool:
    return http.url.path.startswith("/v1/")


def _metrics(studio: Studio) -> str:
    stats = studio.engine.stats
    values: dict[str, Any] = {
        "fewstep_evaluations_total": stats.asks,
        "fewstep_network_calls_total": stats.ticks,
        "fewstep_works_ended_total": stats.ended,
        "fewstep_turned_away_total": stats.turned_away,
        "fewstep_jobs_active": sum(job.active for job in studio.jobs.values()),
        "fewstep_network_call_seconds": stats.call_s,
    }
    kinds = {name: "counter" if name.endswith("_total") else "gauge" for name in values}
    return "".join(f"# TYPE {name} {kinds[name]}\n{name} {value}\n" for name, value in values.items())
