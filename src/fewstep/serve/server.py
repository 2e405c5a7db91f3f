"""The server's process: told to stop, it first lets the work end that has begun."""

from __future__ import annotations

import asyncio
from types import FrameType
from typing import Any

import uvicorn

from fewstep.serve.jobs import Studio
from fewstep.serve.security import SOCKETS, App

SOCKETS_S = 3
"""Seconds that open connections have to end, once there is no work any more."""


class Server(uvicorn.Server):
    """uvicorn, which at the first SIGTERM or SIGINT takes no more work for up to `grace_s`, and at the second one ends.

    Meanwhile it still answers: /readyz and whatever would be work with 503.
    """

    def __init__(self, app: App, studio: Studio, *, grace_s: float, **how: Any) -> None:
        quiet = {"log_config": None, "log_level": "warning", "access_log": False, "server_header": False}
        config = uvicorn.Config(app, **quiet, **SOCKETS, **how)
        config.timeout_graceful_shutdown = SOCKETS_S
        super().__init__(config)
        self.studio, self.grace_s = studio, grace_s
        self._loop: asyncio.AbstractEventLoop | None = None
        self._leaving: asyncio.Task[None] | None = None

    async def serve(self, sockets: Any = None) -> None:
        """Until it is stopped."""
        self._loop = asyncio.get_running_loop()
        await super().serve(sockets)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """What the operating system's signal does."""
        if self._loop is None or self.studio.leaving:
            return super().handle_exit(sig, frame)
        self.studio.leaving = True
        self._loop.call_soon_threadsafe(self._begin_leaving)
        return None

    def _begin_leaving(self) -> None:
        self._leaving = asyncio.create_task(self._leave())

    async def _leave(self) -> None:
        try:
            await self.studio.leave(self.grace_s)
            await asyncio.sleep(0.1)  # the last answers go out
        finally:
            self.should_exit = True
