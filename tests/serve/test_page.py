"""The page's files as the server gives them; tests/browser drives it."""

import gzip
import json
import re
import urllib.request
from html.parser import HTMLParser

import pytest

pytest.importorskip("fastapi")

from fewstep.serve.page import STATIC
from fewstep.serve.security import Door


def get(server, path, **headers):
    return urllib.request.urlopen(urllib.request.Request(f"http://127.0.0.1:{server}{path}", headers=headers))


class Tags(HTMLParser):
    def __init__(self, text):
        super().__init__()
        self.tags = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))


def addresses(text):
    return [value for _, attrs in Tags(text).tags for name, value in attrs.items() if name in ("src", "href")]


def test_the_page_and_all_it_names_are_served_with_their_types(server):
    index = get(server, "/")
    assert index.headers["cache-control"] == "no-cache"
    assert index.headers["content-type"].startswith("text/html")
    assert "default-src 'self'" in index.headers["content-security-policy"]
    found = addresses(index.read().decode())
    types = {"js": "text/javascript", "css": "text/css", "svg": "image/svg+xml"}
    assert {one.rsplit(".", 1)[1] for one in found} == set(types)
    for one in found:
        answer = get(server, one.removeprefix("."))
        assert answer.headers["content-type"].startswith(types[one.rsplit(".", 1)[1]])
        assert "immutable" in answer.headers["cache-control"]


def test_nothing_is_inline_and_nothing_comes_from_elsewhere():
    tags = Tags((STATIC / "index.html").read_text()).tags
    assert not [attrs for _, attrs in tags if "style" in attrs or any(name.startswith("on") for name in attrs)]
    assert all(attrs.get("src") for tag, attrs in tags if tag == "script")
    assert not [tag for tag, _ in tags if tag == "style"]
    for file in STATIC.rglob("*.*"):
        found = set(re.findall(r"https?://[\w.]+", file.read_text())) - {"http://www.w3.org"}
        assert not found, file.name


def test_the_page_is_small():
    size = sum(len(gzip.compress(file.read_bytes(), 9)) for file in STATIC.rglob("*.*"))
    assert 10_000 < size <= 60_000


def test_unknown_addresses_are_still_json(server):
    with pytest.raises(urllib.error.HTTPError) as refused:
        get(server, "/sdapi/v1/nothing")
    assert json.load(refused.value) == {"detail": "Not Found"}
    with pytest.raises(urllib.error.HTTPError, match="404"):
        get(server, "/assets/..%2findex.html")


def test_a_locked_door_shows_the_page_and_asks_a_script_without_the_browsers_own_box():
    async def inside(scope, receive, send):
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    door = Door(inside, key="k")
    assert answer(door, "/") == answer(door, "/assets/index.js") == (200, False)
    assert answer(door, "/api/v1/live/schema") == (401, True)
    assert answer(door, "/api/v1/live/schema", (b"sec-fetch-dest", b"empty")) == (401, False)
    assert answer(door, "/assetsx") == (401, True)


def answer(door, path, *headers):
    """Status, and whether the browser would show its own form."""
    import asyncio

    sent = []

    async def send(message):
        sent.append(message)

    scope = {"type": "http", "method": "GET", "path": path, "headers": [(b"host", b"localhost"), *headers]}
    asyncio.run(door(scope, None, send))
    return sent[0]["status"], any(name == b"www-authenticate" for name, _ in sent[0]["headers"])
