"""Where this server is found by other devices, and its QR code, which a phone's camera reads.

The address ends in #key=..., which browsers do not send: the page reads it, and logs in. The code of the page is an
invitation, good for one device within ten minutes, since the page's scripts do not know the key.
"""

from __future__ import annotations

import contextlib
import io
import socket
import sys
from typing import Any
from urllib.parse import quote

from fastapi import APIRouter, Request
from pydantic import BaseModel

from fewstep.errors import FewstepError, RequestError

EVERYWHERE = {"0.0.0.0": "127.0.0.1", "::": "::1"}
"""What a server listens at that listens at every address of a kind -> this machine's own of that kind."""

INVITED_S = 600.0
_ELSEWHERE = {"0.0.0.0": (socket.AF_INET, "192.0.2.1"), "::": (socket.AF_INET6, "2001:db8::1")}
"""Addresses for documentation (RFC 5737, RFC 3849): nothing is sent there."""


class AloneError(FewstepError):
    """No other device can come here."""

    http_status = 409


class Shared(BaseModel):
    """The address for another device, its QR code as SVG, and how many seconds it is good for; null: always."""

    address: str
    qr: str
    seconds: float | None


def lan_addresses(everywhere: str) -> list[str]:
    """This machine's addresses of a kind, a key of `EVERYWHERE`; the one first by which it reaches others."""
    import psutil

    kind, elsewhere = _ELSEWHERE[everywhere]
    entries = [entry.address for entries in psutil.net_if_addrs().values() for entry in entries if entry.family == kind]
    found = [address for address in entries if not address.startswith(("127.", "169.254.", "::1", "fe80:"))]
    with contextlib.suppress(OSError), socket.socket(kind, socket.SOCK_DGRAM) as line:  # there may be no way out
        line.connect((elsewhere, 9))
        found.insert(0, line.getsockname()[0])
    return list(dict.fromkeys(found))


def bracketed(host: str) -> str:
    """As an address writes it.

    >>> bracketed("::1"), bracketed("10.0.0.5")
    ('[::1]', '10.0.0.5')
    """
    return f"[{host}]" if ":" in host and not host.startswith("[") else host


def with_key(address: str, key: str | None) -> str:
    """The page's address, which logs in by itself.

    >>> with_key("https://10.0.0.5:7860", "a b"), with_key("http://10.0.0.5:7860", None)
    ('https://10.0.0.5:7860/#key=a%20b', 'http://10.0.0.5:7860/')
    """
    return f"{address}/" if key is None else f"{address}/#key={quote(key, safe='')}"


def qr_svg(text: str) -> str:
    """A QR code as SVG. Raises RequestError where the library is missing."""
    stream = io.BytesIO()
    _code(text).save(stream, kind="svg", scale=8, border=4, light="white", xmldecl=False)
    return stream.getvalue().decode()


def say_qr(text: str, stream: Any = None) -> None:
    """A QR code on the terminal. Raises RequestError where the library is missing."""
    _code(text).terminal(out=stream or sys.stderr, compact=True)


def _code(text: str) -> Any:
    try:
        import segno
    except ImportError:
        raise RequestError("QR codes need one more library: pip install 'fewstep[https]'") from None
    return segno.make(text, micro=False)


def router() -> APIRouter:
    """The route."""
    routes = APIRouter(tags=["live"])

    @routes.post("/api/v1/share", responses={409: {"description": "It listens to this machine alone."}})
    async def share(http: Request) -> Shared:
        """The page's address for another device, with an invitation in place of the key."""
        door = http.scope["fewstep.door"]
        if door.address is None:
            raise AloneError("This server listens to this machine alone. Start it with --host 0.0.0.0, and --https.")
        word = door.invite(http.scope, seconds=INVITED_S)
        address = with_key(door.address, word)
        return Shared(address=address, qr=qr_svg(address), seconds=None if word is None else INVITED_S)

    return routes
