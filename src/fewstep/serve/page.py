"""The page "draw and see": its built files (source in web/, `make page`), with nothing from elsewhere."""

from __future__ import annotations

import mimetypes
import os
from pathlib import Path

from fastapi import FastAPI
from fastapi.responses import FileResponse, Response
from fastapi.staticfiles import StaticFiles

STATIC = Path(__file__).parent / "static"
FOREVER = "public, max-age=31536000, immutable"

# Some systems know these endings by other types, with which browsers refuse scripts and pictures.
mimetypes.add_type("text/javascript", ".js")
mimetypes.add_type("image/svg+xml", ".svg")


class Assets(StaticFiles):
    """Files whose names change with what is in them: kept by browsers for good."""

    def file_response(self, full_path: str | os.PathLike[str], *args: object, **more: object) -> Response:
        """The file, with leave to keep it."""
        answer = super().file_response(full_path, *args, **more)  # pyright: ignore[reportArgumentType]
        answer.headers["cache-control"] = FOREVER
        return answer


def mount(app: FastAPI) -> None:
    """The page at `/`, asked for anew each time, and its files under `/assets`."""
    app.mount("/assets", Assets(directory=STATIC / "assets"), name="assets")

    @app.get("/", include_in_schema=False)
    async def index() -> FileResponse:
        return FileResponse(STATIC / "index.html", headers={"cache-control": "no-cache"})
