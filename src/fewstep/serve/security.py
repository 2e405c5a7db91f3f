"""The door that every HTTP request and every socket passes: who may come in, from where, and how much they may bring.

Hosts are an allow-list (a page of another name that resolves to this machine gets nothing: DNS rebinding). What changes
something, and every socket, must come from this server's own page or from a program, which sends no Origin. With a
key, it is asked for as a bearer token, as the password of Basic, or as the page's cookie.
"""

from __future__ import annotations

import base64
import binascii
import json
import secrets
import time
from collections import deque
from collections.abc import Awaitable, Callable, Collection, Mapping, MutableMapping, Sequence
from http.cookies import CookieError, SimpleCookie
from typing import Any, TypeAlias
from urllib.parse import quote, unquote, urlsplit

from fewstep.errors import RequestError

Scope: TypeAlias = MutableMapping[str, Any]
Message: TypeAlias = MutableMapping[str, Any]
Receive: TypeAlias = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send: TypeAlias = Callable[[MutableMapping[str, Any]], Awaitable[None]]
App: TypeAlias = Callable[[Scope, Receive, Send], Awaitable[None]]

LOOPBACK = frozenset({"localhost", "127.0.0.1", "[::1]", "::1"})
COOKIE = "fewstep_key"
BODY_LIMIT = 32 * 2**20
EMPTY_KEY = "The API key is empty, and everybody would have it. Give one of some length, or leave --api-key out."
SAFE = frozenset({"GET", "HEAD", "OPTIONS"})
OPEN = frozenset({"/", "/healthz", "/readyz", "/api/v1/login"})
OPEN_FOLDER = "/assets/"
"""The page's own files: it has to be there before it can ask for the key."""
FAILURES, WITHIN_S = 10, 60.0
"""Wrong keys from one address, after which it waits."""

INVITATIONS = 64
ADDRESSES = 4096
"""Addresses whose wrong keys are remembered."""

SOCKETS: dict[str, Any] = {"ws_max_size": 4 * 2**20, "ws_max_queue": 2, "ws_per_message_deflate": False}
"""uvicorn's settings: its own queue of 32 messages would make every picture late."""

HEADERS = {
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "no-referrer",
    "cross-origin-resource-policy": "same-origin",
    "content-security-policy": "default-src 'self'; img-src 'self' blob: data:; media-src 'self' blob:; "
    "connect-src 'self'; worker-src 'self' blob:; frame-ancestors 'none'; base-uri 'none'; form-action 'self'",
}


class Door:
    """An ASGI application around another. `hosts` are the names that this server answers to, besides loopback's; `key`
    is one key, or one for each of several owners; `address` is where other devices find it, None where they do not.
    """

    def __init__(
        self,
        app: App,
        *,
        key: str | Sequence[str] | None = None,
        hosts: Collection[str] = (),
        body_limit: int = BODY_LIMIT,
        address: str | None = None,
    ) -> None:
        """Raises RequestError for an empty key, which everybody would have."""
        self.app, self.body_limit, self.address = app, body_limit, address
        self.keys: tuple[str, ...] = (key,) if isinstance(key, str) else tuple(key or ())
        if not all(key.strip() for key in self.keys):
            raise RequestError(EMPTY_KEY)
        self.hosts = LOOPBACK | {host.lower() for host in hosts}
        self.failures: dict[str, deque[float]] = {}
        self.tickets: dict[str, float] = {}
        self.invitations: dict[str, tuple[float, str]] = {}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let it in, or say why not in one JSON sentence; a refused socket is closed before it is accepted."""
        if scope["type"] == "lifespan":
            return await self.app(scope, receive, send)
        headers = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope["headers"]}
        refused = self._refusal(scope, headers)
        if refused is not None:
            return await _refuse(scope, send if scope["type"] == "websocket" else _with_headers(send), *refused)
        scope["fewstep.door"] = self
        if scope["type"] == "websocket":
            return await self.app(scope, receive, send)
        body = _Body(self.body_limit, receive, _with_headers(send))
        try:
            await self.app(scope, body.receive, body.send)
        except Exception:
            if not body.refused:  # else it complains of a body that ended too soon, and the client knows why
                raise
        return None

    def ticket(self, *, seconds: float = 30.0) -> str:
        """A word that opens one socket, once, for those who were let in: browsers cannot send keys with a socket."""
        now = time.monotonic()
        self.tickets = {word: until for word, until in self.tickets.items() if until > now}
        word = secrets.token_urlsafe(24)
        self.tickets[word] = now + seconds
        return word

    def invite(self, scope: Scope, *, seconds: float) -> str | None:
        """A word that another device logs in with, once, as the owner who asks; None where there is no key."""
        if not self.keys:
            return None
        now = time.monotonic()
        self.invitations = {word: entry for word, entry in self.invitations.items() if entry[0] > now}
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        key = self.keys[self._fitting(keys_of(headers)) or 0]
        word = secrets.token_urlsafe(24)
        self.invitations[word] = now + seconds, key
        while len(self.invitations) > INVITATIONS:
            del self.invitations[next(iter(self.invitations))]
        return word

    def login(self, scope: Scope, given: str) -> str | None:
        """The cookie's header for somebody who brings the key, or an invitation; None for a wrong one, which counts as
        elsewhere. Where there is no key, any is right.
        """
        until, key = self.invitations.pop(given, (0.0, ""))
        given = key if until > time.monotonic() else given
        headers = {"authorization": f"Bearer {given}"}
        if self._unknown({**scope, "path": ""}, headers) is not None:
            return None
        return f"{COOKIE}={quote(given) if self.keys else ''}; HttpOnly; SameSite=Strict; Path=/"

    def _refusal(self, scope: Scope, headers: Mapping[str, str]) -> tuple[int, str] | None:
        if _name(headers.get("host", "")) not in self.hosts:
            return 421, "This server does not answer to that host name. Start it with --host, or use localhost."
        unsafe = scope["type"] == "websocket" or scope["method"] not in SAFE
        origin = headers.get("origin")
        if unsafe and origin is not None and _site(origin) != headers["host"].lower():
            return 403, "This was sent by a page of another site. Use this server's own page, or a program."
        try:
            if int(headers.get("content-length", 0)) > self.body_limit:
                return 413, _too_long(self.body_limit)
        except ValueError:
            return 400, "The header Content-Length is not a number."
        return self._unknown(scope, headers)

    def _unknown(self, scope: Scope, headers: Mapping[str, str]) -> tuple[int, str] | None:
        """The refusal of somebody without the key."""
        if not self.keys or (scope["type"] == "http" and _is_open(scope["path"])):
            return None
        if scope["type"] == "websocket" and self._has_ticket(scope):
            return None
        who, now = (scope.get("client") or ("", 0))[0], time.monotonic()
        tries = self.failures.get(who, ())
        if len(tries) == FAILURES and now - tries[0] < WITHIN_S:
            return 429, "Too many wrong keys. Wait a minute."
        given = keys_of(headers)
        if (number := self._fitting(given)) is not None:
            self.failures.pop(who, None)
            if len(self.keys) > 1:
                scope.setdefault("state", {})["owner"] = f"key {number + 1}"
            return None
        if given:
            self._count_failure(who, now)
        return 401, "This server wants its key: as a bearer token, as the password of Basic, or by the page's login."

    def _fitting(self, words: Sequence[str]) -> int | None:
        """The number of the key that one of these words is; every pair is compared, whatever was found."""
        pairs = [(number, key, word) for number, key in enumerate(self.keys) for word in words]
        found = [number for number, key, word in pairs if secrets.compare_digest(word.encode(), key.encode())]
        return found[0] if found else None

    def _count_failure(self, who: str, now: float) -> None:
        """The address that failed last stands last; those that failed long ago, or are too many, are forgotten."""
        tries = self.failures.pop(who, None) or deque(maxlen=FAILURES)
        self.failures[who] = tries
        tries.append(now)
        while len(self.failures) > ADDRESSES or now - next(iter(self.failures.values()))[-1] > WITHIN_S:
            self.failures.pop(next(iter(self.failures)))

    def _has_ticket(self, scope: Scope) -> bool:
        words = dict(part.partition("=")[::2] for part in scope.get("query_string", b"").decode("latin-1").split("&"))
        return self.tickets.pop(words.get("ticket", ""), 0.0) > time.monotonic()


class _Body:
    """A body, cut off where it is longer than it may be, whatever its header said; the answer is then 413."""

    def __init__(self, limit: int, receive: Receive, send: Send) -> None:
        self.limit, self.taken, self.refused = limit, 0, False
        self._receive, self._send = receive, send

    async def receive(self) -> MutableMapping[str, Any]:
        message = await self._receive()
        self.taken += len(message.get("body", b""))
        if self.taken <= self.limit:
            return message
        if not self.refused:
            self.refused = True
            await _refuse({"type": "http", "headers": ()}, self._send, 413, _too_long(self.limit))
        return {"type": "http.disconnect"}

    async def send(self, message: MutableMapping[str, Any]) -> None:
        if not self.refused:
            await self._send(message)


def _too_long(limit: int) -> str:
    return f"The body has more than {limit} bytes. Send smaller pictures."


def owner_of(scope: Scope) -> str:
    """Whose request it is: the key's number where there are several, else the address it comes from."""
    return scope.get("state", {}).get("owner") or (scope.get("client") or ("", 0))[0]


async def gone(http: Any) -> None:
    """Ends when the client of a request, whose body was read, has left."""
    while (await http.receive())["type"] != "http.disconnect":
        pass


def keys_of(headers: Mapping[str, str]) -> list[str]:
    """The keys that a request brings: bearer token, Basic's password, the page's cookie.

    >>> keys_of({"authorization": "Bearer abc"}), keys_of({"authorization": "Basic dXNlcjphYmM="})
    (['abc'], ['abc'])
    """
    found = []
    kind, _, value = headers.get("authorization", "").partition(" ")
    if kind.lower() == "bearer":
        found.append(value.strip())
    elif kind.lower() == "basic":
        try:
            found.append(base64.b64decode(value, validate=True).decode().partition(":")[2])
        except (binascii.Error, UnicodeDecodeError):
            found.append("")
    try:
        cookie = SimpleCookie(headers.get("cookie", "")).get(COOKIE)
    except CookieError:
        cookie = None
    return [*found, unquote(cookie.value)] if cookie else found


def _is_open(path: str) -> bool:
    return path in OPEN or path.startswith(OPEN_FOLDER)


def _name(host: str) -> str:
    """The name without the port.

    >>> _name("LocalHost:80"), _name("[::1]:80"), _name("::1")
    ('localhost', '[::1]', '::1')
    """
    host = host.lower()
    if host.startswith("["):
        return host[: host.find("]") + 1]
    return host.partition(":")[0] if host.count(":") == 1 else host


def _site(origin: str) -> str:
    """Host and port of an origin; "" where it has none.

    >>> _site("http://LocalHost:7860"), _site("null"), _site("http://[")
    ('localhost:7860', '', '')
    """
    try:
        return urlsplit(origin).netloc.lower()
    except ValueError:
        return ""


def _with_headers(send: Send) -> Send:
    async def sending(message: MutableMapping[str, Any]) -> None:
        if message["type"] == "http.response.start":
            have = {name.lower() for name, _ in message["headers"]}
            more = [(name.encode(), value.encode()) for name, value in HEADERS.items() if name.encode() not in have]
            message["headers"] = [*message["headers"], *more]
        await send(message)

    return sending


def _from_page(scope: Scope) -> bool:
    """Whether a script asks: the page has a form of its own for the key, the browser need not ask as well."""
    return any(name == b"sec-fetch-dest" and value == b"empty" for name, value in scope["headers"])


def _openai_error(status: int, sentence: str) -> dict[str, Any]:
    kind = "rate_limit_error" if status == 429 else "invalid_request_error"
    return {"message": sentence, "type": kind, "param": None, "code": "invalid_api_key" if status == 401 else None}


async def _refuse(scope: Scope, send: Send, status: int, sentence: str) -> None:
    if scope["type"] == "websocket":
        await send({"type": "websocket.close", "code": 4000 + status, "reason": sentence[:120]})
        return
    body = json.dumps({"detail": sentence, "error": _openai_error(status, sentence)}).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    if status == 401 and not _from_page(scope):
        headers.append((b"www-authenticate", b'Basic realm="fewstep"'))
    if status == 429:
        headers.append((b"retry-after", b"60"))
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
