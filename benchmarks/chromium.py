"""The browser that the races in a page are run in: nothing of its own on the network, drawing by software."""

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


def program() -> str:
    """Chromium's or Chrome's; ends the script where there is none."""
    found = shutil.which("chromium") or shutil.which("google-chrome")
    if found is None:
        raise SystemExit("There is no Chromium on this machine.")
    return found
