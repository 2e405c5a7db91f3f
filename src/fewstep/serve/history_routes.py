"""The history over HTTP: browse, search, restore, delete. Whoever may come in sees all of it."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated, Any

from fastapi import APIRouter, HTTPException, Query
from fastapi.responses import FileResponse, Response
from pydantic import BaseModel, Field

from fewstep.serve.history import History, Kept

_MISSING: Any = {404: {"description": "There is no such picture."}}
_PNG: Any = {200: {"content": {"image/png": {}}, "description": "The picture, with its settings."}, **_MISSING}


class Summary(BaseModel):
    """A picture in a list."""

    id: str
    made: datetime
    job: str = Field(description="the X-Task-Id of the answer that it came with; live: of a live session")
    model: str
    prompt: str
    width: int
    height: int
    bytes: int
    picture: str = Field(description="where it is on this server")


class Entry(Summary):
    """A picture with what it takes to paint it again."""

    request: dict[str, Any] = Field(description="prompt, seed and whatever else was asked for")
    from_picture: bool = Field(description="whether it began with a picture, which is not kept")
    infotext: str = Field(description="its settings in A1111's form")


class Listed(BaseModel):
    """Pictures, the newest first; `next` is the `before` of the following ones, null at the end."""

    pictures: list[Summary]
    next: int | None


def router(history: History) -> APIRouter:
    """The routes, for one history."""
    routes = APIRouter(prefix="/api/v1/history", tags=["history"])

    @routes.get("")
    async def browse(
        q: Annotated[str, Query(max_length=1000, description="words that the prompt has, or begins a word with")] = "",
        before: Annotated[int | None, Query(ge=0, lt=2**63, description="`next` of the list before")] = None,
        limit: Annotated[int, Query(ge=1, le=200)] = 50,
    ) -> Listed:
        """The pictures that were painted, the newest first."""
        found = await history.list(words=q, before=before, limit=limit)
        return Listed(pictures=[Summary(**_facts(one)) for one in found], next=_next(found, limit))

    @routes.get("/{name}.png", responses=_PNG, response_class=FileResponse)
    async def picture(name: str) -> FileResponse:
        """The picture itself."""
        kept = await _one(history, name)
        return FileResponse(history.path(kept), media_type="image/png", headers={"cache-control": "private, immutable"})

    @routes.get("/{name}", responses=_MISSING)
    async def restore(name: str) -> Entry:
        """What it takes to paint it again."""
        kept = await _one(history, name)
        more = {"request": kept.request, "from_picture": kept.from_picture, "infotext": kept.infotext}
        return Entry(**_facts(kept), **more)

    @routes.delete("/{name}", status_code=204, responses=_MISSING)
    async def delete(name: str) -> Response:
        """Remove it for good."""
        if not await history.delete(name):
            raise _missing()
        return Response(status_code=204)

    return routes


async def _one(history: History, name: str) -> Kept:
    kept = await history.get(name)
    if kept is None:
        raise _missing()
    return kept


def _missing() -> HTTPException:
    return HTTPException(404, "There is no such picture in the history. It may have been deleted, or be too old.")


def _next(found: list[Kept], limit: int) -> int | None:
    return found[-1].number if len(found) == limit else None


def _facts(kept: Kept) -> dict[str, Any]:
    plain = {name: getattr(kept, name) for name in ("id", "job", "model", "prompt", "width", "height", "bytes")}
    made = datetime.fromtimestamp(kept.made, UTC)
    return {**plain, "made": made, "picture": f"/api/v1/history/{kept.id}.png"}
