"""The models of a server: an index of names over a folder, and those that are loaded, within a budget of memory.

A client names a model by its title ("file [hash10]"), its name, its file's name or the beginning of its hash; never by
a path. Only whole .safetensors models and diffusers folders are listed. Hashes of big files take a while, so a thread
of their own makes them, and titles are without a hash until then.
"""

from __future__ import annotations

import asyncio
import gc
import itertools
import os
import re
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fewstep.checkpoints.outline import Outline
from fewstep.checkpoints.search import model_hash
from fewstep.checkpoints.single import open_single
from fewstep.errors import CheckpointError, FewstepError, RequestError
from fewstep.pipeline import Pipeline
from fewstep.serve.journal import say

SHARE = 0.5
"""Of the memory that is free at the start: what models may take besides the first one."""

WAIT_S, POLL_S = 30.0, 0.05
"""How long a request waits for the memory of models that are in use, and how often it looks."""

_PARTS = {"unet", "vae", "text_encoder"}
_DIGEST = re.compile(r"[0-9a-f]{8,64}")
_TITLE = re.compile(r"(.*) \[([0-9a-f]{8,64})\]")


class UnknownModelError(RequestError):
    """There is no model of that name."""

    http_status = 404


class NoRoomError(FewstepError):
    """The models that are in use leave no memory for another."""

    http_status = 503
    retry_after_s = 10.0


@dataclass(eq=False)
class Entry:
    """One model: `name` is unique, `file` its file's or folder's own name, `digest` its hash or "" until it is made;
    `stored` and `stamp` are its bytes on disk and their last change, `size` its bytes in memory, or a guess.
    """

    name: str
    path: Path
    stored: int = 0
    stamp: int = 0
    digest: str = ""
    pipe: Pipeline | None = None
    size: int = 0
    used: int = 0
    holders: int = 0

    @property
    def file(self) -> str:
        """The name of its file or folder."""
        return self.path.name

    @property
    def title(self) -> str:
        """As A1111 writes it."""
        return f"{self.file} [{self.digest}]" if self.digest else self.file


class Models:
    """`first` is the model that the server was started with, which `again` loads again: without that it stays. Others
    are those of `folder`, which `load` opens on demand; all together take at most `budget` bytes, and the one whose use
    is longest ago leaves first. `outline` is the first model as far as it is known without its weights.
    """

    def __init__(
        self,
        first: Pipeline,
        folder: Path | None = None,
        *,
        load: Callable[[Path], Pipeline] | None = None,
        again: Callable[[], Pipeline] | None = None,
        budget: int | None = None,
    ) -> None:
        self.first = Entry(first.model.name, first.model.path, pipe=first, size=bytes_of(first))
        self.outline = first if again is None else first.outline()
        self.folder, self.load, self.again = folder, load, again
        free = 0 if budget is not None or folder is None else free_bytes(first.model.device)
        self.budget = self.first.size + int(SHARE * free) if budget is None else budget
        self.entries: dict[str, Entry] = {self.first.name: self.first}
        self.wait_s = WAIT_S
        self._uses = itertools.count(1)
        self._loading = asyncio.Lock()
        self._hashing = threading.Lock()
        self.scan()

    def scan(self) -> None:
        """Read the folder anew. Files that changed count as new ones; those that are in use stay loaded until then."""
        known = {(entry.path, entry.stored, entry.stamp): entry for entry in self.entries.values()}
        found = {self.first.name: self.first}
        for path in _models_in(self.folder) if self.folder is not None else ():
            if not _same(path, self.first.path):
                name, (stored, stamp) = _free_name(path, found), _on_disk(path)
                entry = known.get((path, stored, stamp)) or Entry(name, path, stored, stamp, size=stored)
                entry.name, found[name] = name, entry
        self.entries = found

    def hash_all(self) -> None:
        """Make the hashes that are missing, in a thread that nobody waits for."""
        threading.Thread(target=lambda: [self._hash(entry) for entry in self.list()], daemon=True).start()

    def list(self) -> list[Entry]:
        """All of them, the first one first."""
        return [*self.entries.values()]

    @property
    def loaded(self) -> list[Entry]:
        """Those that are in memory."""
        return [entry for entry in self.entries.values() if entry.pipe is not None]

    async def find(self, wanted: str) -> Entry:
        """By title, name, file name or hash prefix.

        Raises:
            UnknownModelError: there is none.
        """
        name, digest = match.groups() if (match := _TITLE.fullmatch(wanted)) else (wanted, "")
        for entry in self.list():
            fits = not digest or not entry.digest or entry.digest.startswith(digest[:10])
            if fits and name in (entry.name, entry.file):
                return entry
        if _DIGEST.fullmatch(wanted):
            for entry in self.list():
                if (await asyncio.to_thread(self._hash, entry)).startswith(wanted[:10]):
                    return entry
        names = ", ".join(f"'{entry.name}'" for entry in self.list()[:20])
        raise UnknownModelError(f"There is no model '{wanted[:80]}' here. There is {names}.")

    async def pipe_of(self, name: str | None = None) -> Pipeline:
        """The pipeline of a model, loaded where it is not; of the first one where there is no name.

        Raises:
            UnknownModelError, NoRoomError, CheckpointError, RequestError: it cannot be had.
        """
        entry = self.first if name is None else await self.find(name)
        if entry.pipe is None:
            async with self._loading:
                if entry.pipe is None:
                    await self._room_for(entry)
                    entry.pipe = await asyncio.to_thread(self._opened, entry)
                    entry.size = max(entry.size, bytes_of(entry.pipe))
        entry.used = next(self._uses)
        return entry.pipe

    @contextmanager
    def holding(self, pipe: Pipeline) -> Iterator[None]:
        """While this lasts, the model of `pipe` does not leave."""
        entry = next((entry for entry in self.loaded if entry.pipe is pipe), None)
        if entry is None:  # it has left, or was never listed: whoever holds it keeps it
            yield
            return
        entry.holders += 1
        try:
            yield
        finally:
            entry.holders -= 1

    async def unload(self) -> None:
        """Every model that is not in use, and can come back, leaves."""
        for entry in self._idle():
            entry.pipe = None
        await asyncio.to_thread(_free_cache)

    def _idle(self) -> list[Entry]:
        """Those that may leave, the one whose use is longest ago first."""
        may_leave = [entry for entry in self.loaded if entry is not self.first or self.again is not None]
        idle = [entry for entry in may_leave if not entry.holders]
        return sorted(idle, key=lambda entry: entry.used)

    async def _room_for(self, entry: Entry) -> None:
        """Let idle models leave, and wait a while for those that are in use."""
        needed = entry.size + (self.first.size if self.again is None else 0)
        if needed > self.budget and entry is not self.first:
            need, have = (f"{size / 1e9:.3g} GB" for size in (needed, self.budget))
            who = "and the first one take" if self.again is None else "takes"
            text = f"The model '{entry.name}' {who} {need}, but models may take {have}."
            raise RequestError(f"{text} Start the server with more --models-memory.")
        until = time.monotonic() + self.wait_s
        while not self._made_room(entry):
            if time.monotonic() > until:
                raise NoRoomError(f"There is no memory for '{entry.name}' while other models are in use. Try again.")
            await asyncio.sleep(POLL_S)

    def _made_room(self, entry: Entry) -> bool:
        """The first model comes back to an empty place however large it is: it was there when the server began."""
        for idle in self._idle():
            if self._taken() + entry.size > self.budget:
                idle.pipe = None
        return self._taken() + entry.size <= self.budget or (entry is self.first and not self.loaded)

    def _taken(self) -> int:
        return sum(entry.size for entry in self.loaded)

    def _opened(self, entry: Entry) -> Pipeline:
        """On a thread. What is wrong with a file is for the log: it names paths, which are not for strangers."""
        _free_cache()
        assert self.load is not None and (self.again is not None or entry is not self.first)
        try:
            pipe = self.again() if entry is self.first and self.again is not None else self.load(entry.path)
            entry.digest = pipe.model.content_hash
        except Exception as error:  # noqa: BLE001 - whatever it is, the others go on
            say("model", name=entry.name, error=str(error))
            raise CheckpointError(f"The model '{entry.name}' cannot be loaded; the server's log says why.") from None
        say("model", name=entry.name, bytes=bytes_of(pipe))
        return pipe

    def _hash(self, entry: Entry) -> str:
        with self._hashing:
            if not entry.digest:
                try:
                    first = entry.pipe
                    entry.digest = first.model.content_hash if first is not None else model_hash(entry.path)
                except OSError as error:
                    say("model", name=entry.name, error=str(error))
        return entry.digest


def _models_in(folder: Path) -> Iterator[Path]:
    """Files that hold a whole model and diffusers folders, in and below a folder; hidden ones are left out."""
    for place, folders, files in os.walk(folder):
        here = Path(place)
        if "model_index.json" in files and here != folder:
            folders.clear()
            yield here
            continue
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(files):
            if name.endswith(".safetensors") and not name.startswith(".") and _is_whole(here / name):
                yield here / name


def _is_whole(path: Path) -> bool:
    try:
        return set(open_single(path).parts) >= _PARTS
    except (FewstepError, OSError):  # a LoRA, an upscaler, a damaged file
        return False


def _free_name(path: Path, taken: dict[str, Entry]) -> str:
    """The file's name without its ending; with its folder's where another has that already."""
    stem = path.name.removesuffix(".safetensors")
    names = itertools.chain(
        (stem, f"{stem} ({path.parent.name})"), (f"{stem} {number}" for number in itertools.count(2))
    )
    return next(name for name in names if name not in taken)


def _same(one: Path, other: Path) -> bool:
    return one.resolve() == other.resolve()


def _on_disk(path: Path) -> tuple[int, int]:
    """A model's bytes, a guess at its memory before it is loaded; and when they changed last."""
    found = [file.stat() for file in ([path] if path.is_file() else path.rglob("*.safetensors"))]
    return sum(one.st_size for one in found), max((one.st_mtime_ns for one in found), default=0)


def bytes_of(pipe: Pipeline) -> int:
    """What a loaded model's weights take; as on disk for ONNX Runtime, which reads them when they are needed; 0 for one
    that others paint with.
    """
    model: Any = pipe.model
    if isinstance(model, Outline):
        return 0
    if not hasattr(model, "vae"):
        return _on_disk(model.path)[0]
    modules = (model.unet, model.vae, *model.text.encoders, *filter(None, [model.tiny_vae]))
    return sum(weight.nbytes for module in modules for weight in (*module.parameters(), *module.buffers()))


def free_bytes(device: str) -> int:
    """Memory that is free where a model of this device lies."""
    if device.startswith("cuda"):
        import torch

        return torch.cuda.mem_get_info(device)[0]
    import psutil

    return psutil.virtual_memory().available


def _free_cache() -> None:
    """A GPU's memory of models that left is given back; one under a memory plan is a cycle to be found."""
    if (torch := sys.modules.get("torch")) is not None and torch.cuda.is_available():
        gc.collect()
        torch.cuda.empty_cache()
