"""What was painted: pictures in a folder, and what is known of them in an SQLite file beside it.

One thread owns the database and does all that touches the disk; the loop never waits for it. Files come before their
rows and go after them, so that a crash leaves at most a file that nobody knows, which the next start removes.
"""

from __future__ import annotations

import asyncio
import json
import re
import secrets
import sqlite3
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from fewstep.errors import OutputError
from fewstep.image import write_atomically
from fewstep.infotext import PNG_KEY, Picture
from fewstep.request import DEFAULTS, Request
from fewstep.serve.journal import say

if TYPE_CHECKING:
    from fewstep.serve.orders import Order

T = TypeVar("T")
LIMIT = 2 * 10**9
WAITING = 64
"""Pictures that may wait for the disk; others are painted, but not kept."""

VERSION, MOST_WORDS = 1, 32
_ID = re.compile(r"[0-9a-f]{32}")
_WORD = re.compile(r"[^\W_]+")
_FILE = re.compile(r"[0-9a-f]{32}\.png|\.[0-9a-f]{32}\.png\..*\.part")
_TABLE = """CREATE TABLE IF NOT EXISTS pictures (
    number INTEGER PRIMARY KEY AUTOINCREMENT, id TEXT UNIQUE NOT NULL, made REAL NOT NULL, job TEXT NOT NULL,
    model TEXT NOT NULL, prompt TEXT NOT NULL, infotext TEXT NOT NULL, request TEXT NOT NULL,
    from_picture INTEGER NOT NULL, width INTEGER NOT NULL, height INTEGER NOT NULL, bytes INTEGER NOT NULL)"""
_WORDS = "CREATE VIRTUAL TABLE IF NOT EXISTS words USING fts5(prompt)"
_UNREAD = "SELECT number, prompt FROM pictures WHERE number NOT IN (SELECT rowid FROM words)"


@dataclass(frozen=True)
class Kept:
    """One picture: `request` is what it takes to paint it again, but for a start picture; `number` counts up."""

    number: int
    id: str
    made: float
    job: str
    model: str
    prompt: str
    infotext: str
    request: dict[str, Any]
    from_picture: bool
    width: int
    height: int
    bytes: int


_COLUMNS = ", ".join(field.name for field in fields(Kept))


class History:
    """A folder with pictures of at most `limit` bytes; the oldest leave first. `full_text` False searches without
    SQLite's FTS5.

    Raises:
        OutputError: the folder cannot be used, or another server uses it.
    """

    def __init__(self, folder: Path, *, limit: int = LIMIT, full_text: bool = True) -> None:
        self.folder, self.limit = folder / "pictures", limit
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="fewstep-history")
        self._room, self._closed = threading.Semaphore(WAITING), False
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._thread.submit(self._open, folder / "history.sqlite", full_text).result()
        except (OSError, sqlite3.Error) as error:
            self._thread.shutdown()
            text = f"'{folder}' cannot hold the history ({error}). Give a folder that no other server uses."
            raise OutputError(text) from None

    def close(self) -> None:
        """Write what is left, and let go."""
        if not self._closed:
            self._closed = True
            self._thread.submit(self._database.close)
            self._thread.shutdown()

    def keep(self, order: Order) -> None:
        """The pictures of an order that are done, soon."""
        for index, picture in enumerate(order.pictures):
            if picture is not None:
                asked = order.plan.request.replaced(seed=order.plan.seed_of(index))
                self.add(picture, order.job.id, order.pipe.model.name, asked)

    def add(self, picture: Picture, job: str, model: str, request: Request) -> None:
        """One picture, soon: `request` is what it was painted from, with its own seed."""
        if self._closed:
            return
        if not self._room.acquire(blocking=False):
            say("history", job=job, error=f"{WAITING} pictures wait for the disk: this one is not kept")
            return
        row = {"job": job, "model": model, "prompt": request.prompt, "request": json.dumps(again(request))}
        self._thread.submit(self._keep, picture, row | {"from_picture": request.image is not None})

    async def list(self, *, words: str = "", before: int | None = None, limit: int = 50) -> list[Kept]:
        """The newest first, of those numbered below `before`; with words, those whose prompts have all of them."""
        return await self._do(lambda: self._list(words, before, limit))

    async def get(self, name: str) -> Kept | None:
        """One of them, by its id."""
        return await self._do(lambda: self._get(name))

    async def delete(self, name: str) -> bool:
        """Whether it was there; now it is not."""
        return await self._do(lambda: self._delete(name))

    def path(self, kept: Kept) -> Path:
        """Where its picture lies."""
        return self.folder / f"{kept.id}.png"

    async def _do(self, act: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._thread, act)

    # ---- on the thread

    def _open(self, path: Path, full_text: bool) -> None:
        self._database = sqlite3.connect(path, timeout=0.3)
        run = self._database.execute
        run("PRAGMA locking_mode = EXCLUSIVE")
        run("PRAGMA journal_mode = WAL")
        if (found := run("PRAGMA user_version").fetchone()[0]) not in (0, VERSION):
            raise sqlite3.DatabaseError(f"it has version {found}, not {VERSION}")
        with self._database:
            run(f"PRAGMA user_version = {VERSION}")
            run(_TABLE)
        self.full_text = full_text and self._can_search()
        if self.full_text:
            with self._database:
                run(f"INSERT INTO words(rowid, prompt) {_UNREAD}")
        self._sweep()
        self._total = run("SELECT coalesce(sum(bytes), 0) FROM pictures").fetchone()[0]
        self._shrink()

    def _can_search(self) -> bool:
        try:
            self._database.execute(_WORDS)
        except sqlite3.OperationalError:  # this SQLite was built without FTS5
            return False
        return True

    def _sweep(self) -> None:
        """What a crash left: files without a row, rows without a file."""
        rows = {f"{name}.png" for (name,) in self._database.execute("SELECT id FROM pictures")}
        files = {path.name for path in self.folder.iterdir() if _FILE.fullmatch(path.name)}
        for name in files - rows:
            (self.folder / name).unlink(missing_ok=True)
        for name in rows - files:
            self._forget(name.removesuffix(".png"))

    def _keep(self, picture: Picture, row: Mapping[str, Any]) -> None:
        try:
            name = secrets.token_hex(16)
            path = self.folder / f"{name}.png"
            write_atomically(path, lambda stream: picture.save(stream, format="PNG"))
            size, (width, height) = path.stat().st_size, picture.size
            more = {"id": name, "made": time.time(), "infotext": str(picture.info.get(PNG_KEY, ""))}
            self._insert({**row, **more, "width": width, "height": height, "bytes": size})
            self._total += size
            self._shrink()
        except (OutputError, OSError, sqlite3.Error) as error:  # a full disk, say: painting goes on
            say("history", job=row["job"], error=str(error))
        finally:
            self._room.release()

    def _insert(self, row: Mapping[str, Any]) -> None:
        marks = ", ".join(f":{name}" for name in row)
        with self._database as database:
            number = database.execute(f"INSERT INTO pictures ({', '.join(row)}) VALUES ({marks})", row).lastrowid
            if self.full_text:
                database.execute("INSERT INTO words(rowid, prompt) VALUES (?, ?)", (number, row["prompt"]))

    def _shrink(self) -> None:
        while self._total > self.limit:
            oldest = self._database.execute("SELECT id FROM pictures ORDER BY number LIMIT 1").fetchone()
            if oldest is None or not self._delete(oldest[0]):
                return

    def _delete(self, name: str) -> bool:
        kept = self._get(name)
        if kept is None:
            return False
        self._forget(name)
        self._total -= kept.bytes
        self.path(kept).unlink(missing_ok=True)
        return True

    def _forget(self, name: str) -> None:
        with self._database as database:
            if self.full_text:
                database.execute("DELETE FROM words WHERE rowid = (SELECT number FROM pictures WHERE id = ?)", (name,))
            database.execute("DELETE FROM pictures WHERE id = ?", (name,))

    def _get(self, name: str) -> Kept | None:
        if not _ID.fullmatch(name):
            return None
        row = self._database.execute(f"SELECT {_COLUMNS} FROM pictures WHERE id = ?", (name,)).fetchone()
        return None if row is None else _kept(row)

    def _list(self, text: str, before: int | None, limit: int) -> list[Kept]:
        words = _WORD.findall(text)[:MOST_WORDS]
        if text.strip() and not words:
            return []
        wheres: list[str] = [] if before is None else ["number < ?"]
        values: list[Any] = [] if before is None else [before]
        if words and self.full_text:
            wheres.append("number IN (SELECT rowid FROM words WHERE words MATCH ?)")
            values.append(" ".join(f'"{word}"*' for word in words))
        elif words:
            wheres += ["prompt LIKE ?"] * len(words)
            values += [f"%{word}%" for word in words]
        where = f"WHERE {' AND '.join(wheres)}" if wheres else ""
        query = f"SELECT {_COLUMNS} FROM pictures {where} ORDER BY number DESC LIMIT ?"
        return [_kept(row) for row in self._database.execute(query, (*values, limit))]


def _kept(row: tuple[Any, ...]) -> Kept:
    found = dict(zip((field.name for field in fields(Kept)), row, strict=True))
    found |= {"request": json.loads(found["request"]), "from_picture": bool(found["from_picture"])}
    return Kept(**found)


def again(request: Request) -> dict[str, Any]:
    """What was asked for one picture, as `fewstep.request.request_of` takes it: without pictures and defaults.

    >>> again(Request("a fox", seed=0, count=3))
    {'prompt': 'a fox', 'seed': 0}
    """
    asked = {field.name: getattr(request, field.name) for field in fields(request)}
    left_out = ("image", "mask", "count")
    mine = {name: value for name, value in asked.items() if name not in left_out and value != DEFAULTS.get(name, "")}
    return {"prompt": request.prompt, **mine, "seed": request.seed}
