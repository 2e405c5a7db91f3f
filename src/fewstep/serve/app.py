"""The application: doors of other programs' clients, health, figures, and errors in each client's own form."""

from __future__ import annotations

import math
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, PlainTextResponse, Response
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.exceptions import HTTPException

from fewstep import __version__
from fewstep.errors import FewstepError
from fewstep.serve import a1111, a1111_extras, history_routes, live, openai, page, share
from fewstep.serve.answers import Answer, sentence_of
from fewstep.serve.docs import describe
from fewstep.serve.figures import Counted
from fewstep.serve.jobs import Studio


def application(studio: Studio) -> FastAPI:
    """The whole server of one studio, without its door (`security.Door`)."""
    room = live.Room(studio)

    @asynccontextmanager
    async def life(_app: FastAPI) -> AsyncIterator[None]:
        studio.models.hash_all()
        yield
        room.close()
        studio.close()  # nobody is connected any more, so nobody waits

    app = FastAPI(
        title="fewstep",
        version=__version__,
        lifespan=life,
        default_response_class=Answer,
        docs_url=None,  # FastAPI's pages want scripts from elsewhere
        redoc_url=None,
    )
    app.include_router(a1111.router(studio))
    app.include_router(a1111_extras.router(studio.limits))
    app.include_router(openai.router(studio))
    app.include_router(live.router(studio, room))
    app.include_router(share.router())
    if studio.history is not None:
        app.include_router(history_routes.router(studio.history))
    app.add_middleware(Counted, figures=studio.figures)
    page.mount(app)
    _watching(app, studio)
    app.add_exception_handler(Exception, _failed)
    app.add_exception_handler(FewstepError, _failed)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(HTTPException, _refused)
    describe(app)
    return app


def _watching(app: FastAPI, studio: Studio) -> None:
    @app.get("/healthz")
    async def health() -> dict[str, str]:
        """Whether the process lives."""
        return {"status": "ok"}

    @app.get("/readyz", responses={503: {"description": "It is shutting down."}})
    async def ready() -> JSONResponse:
        """Whether it takes work."""
        if studio.leaving:
            return JSONResponse({"status": "leaving"}, 503)
        return JSONResponse({"status": "ready", "model": studio.models.first.name})

    @app.get("/metrics", response_class=PlainTextResponse)
    async def metrics() -> Response:
        """Counters and histograms, as Prometheus reads them."""
        return Response(studio.figures.text(), media_type=CONTENT_TYPE_LATEST)


async def _failed(http: Request, error: Exception) -> JSONResponse:
    answer = _said(http, getattr(error, "http_status", 500), sentence_of(error))
    if (seconds := getattr(error, "retry_after_s", None)) is not None:
        answer.headers["retry-after"] = str(math.ceil(seconds))
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
