"""The browser that pages are raced and tested in: nothing of its own on the network, drawing by software."""

from __future__ import annotations

import shutil

FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-sync",
]
FOUND = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
"""Chromium's or Chrome's program, where there is one."""


def program() -> str:
    """The same; ends the script where there is none."""
    if FOUND is None:
        raise SystemExit("There is no Chromium on this machine.")
    return FOUND
