"""`fewstep live`: a webcam, the screen or a video, painted as it comes; on this machine or by a server."""

from __future__ import annotations

import argparse
import contextlib
import itertools
import socket
import sys
import threading
import time
import webbrowser
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fewstep.cli.options import add_field, add_loading_options, check_new, loading_asked
from fewstep.cli.quickest import quickest
from fewstep.errors import RequestError
from fewstep.request import SPECS

if TYPE_CHECKING:
    from fewstep.client import Live, Painted
    from fewstep.video import Recording, Source

ASKED = ("negative_prompt", "steps", "guidance", "strength", "seed", "width", "height", "sampler", "schedule")
START_S = 120.0


def register(subparsers: Any) -> None:
    """Add `live` to the command line."""
    parser = subparsers.add_parser(
        "live",
        help="paint a webcam, the screen or a video as it comes",
        description="Paint a webcam, the screen or a video as it comes, here or by a server; watch it in a browser.",
        allow_abbrev=False,
    )
    parser.add_argument("prompt", help=SPECS["prompt"].help)
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--webcam", nargs="?", const="0", metavar="N", help="a camera by its number [0]")
    source.add_argument("--screen", action="store_true", help="what is on the screen")
    source.add_argument("--video", metavar="FILE", help="a video; every frame of it is painted")
    source.add_argument("--pattern", action="store_true", help="a moving disk: no camera needed")
    parser.add_argument("-o", "--output", type=Path, metavar="FILE", help="record to .mp4, .mkv or .webm")
    parser.add_argument("--force", action="store_true", help="overwrite the output")
    parser.add_argument("--seconds", type=float, metavar="S", help="stop after so long")
    parser.add_argument("--open", action="store_true", help="show it in the browser")
    parser.add_argument("--server", metavar="URL", help="a running `fewstep serve`; one is started here if not given")
    parser.add_argument("--api-key", metavar="KEY", help="the server's key")
    for name in ASKED:
        add_field(parser, name, SPECS[name])
    add_loading_options(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Paints until the source ends, the time is over, or Ctrl-C; returns the exit code."""
    from fewstep.video import Recording

    if arguments.seconds is not None and not 0 < arguments.seconds < 1e6:
        raise RequestError(f"--seconds is {arguments.seconds:g}. Give how long to paint, above 0.")
    if arguments.video and arguments.output is None:
        raise RequestError("A video is painted into a file. Give its name with -o, such as painted.mp4.")
    source = _source(arguments)
    with contextlib.ExitStack() as closing:
        record = None
        if arguments.output is not None:
            check_new(arguments.output, force=arguments.force)
            record = closing.enter_context(Recording(arguments.output, fps=source.fps, sound=source.path))
        live = closing.enter_context(_session(arguments, source, closing))
        print(f"fewstep: {source.name}, painted by {live.welcome['model']}: {live.watch_address}", file=sys.stderr)
        if arguments.open:
            webbrowser.open(live.watch_address)
        with contextlib.suppress(KeyboardInterrupt):
            painted = (_film if arguments.video else _stream)(live, source, record, arguments.seconds)
            print(f"fewstep: {painted}", file=sys.stderr)
    if arguments.output is not None:
        print(arguments.output)
    return 0


def _source(arguments: argparse.Namespace) -> Source:
    from fewstep import video

    if arguments.video:
        return video.video(arguments.video)
    if arguments.pattern:
        return video.pattern()
    return video.device("webcam", arguments.webcam) if arguments.webcam else video.device("screen")


def _session(arguments: argparse.Namespace, source: Source, closing: contextlib.ExitStack) -> Live:
    from fewstep.client import Live
    from fewstep.video import fitting

    address = arguments.server or closing.enter_context(_served(arguments))
    asked = {name: getattr(arguments, name) for name in ASKED if getattr(arguments, name) is not None}
    mode = "video" if arguments.video else "screen" if arguments.screen else "camera"
    fixed = {"mode": mode, "every": bool(arguments.video), "fps": min(120.0, source.fps), "key": arguments.api_key}
    live = Live(address, prompt=arguments.prompt, refine=False, **fixed, **asked)
    if "width" not in asked and "height" not in asked:
        width, height = fitting(source.size, live.welcome["limits"]["size_px"])
        live.change(width=width, height=height)
    return live


@contextlib.contextmanager
def _served(arguments: argparse.Namespace) -> Iterator[str]:
    """A server of our own on a free port of this machine; its address."""
    import uvicorn

    import fewstep
    from fewstep.serve.app import application
    from fewstep.serve.jobs import Studio
    from fewstep.serve.security import SOCKETS, Door

    asked = loading_asked(arguments, None)
    door = Door(application(Studio(fewstep.load(**asked | quickest(asked)))))
    with socket.socket(proto=socket.IPPROTO_TCP) as listening:  # else asyncio leaves Nagle on
        listening.bind(("127.0.0.1", 0))
        server = uvicorn.Server(uvicorn.Config(door, log_config=None, log_level="warning", **SOCKETS))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, daemon=True)
        thread.start()
        until = time.monotonic() + START_S
        while not server.started and thread.is_alive() and time.monotonic() < until:
            time.sleep(0.01)
        try:
            yield f"http://127.0.0.1:{listening.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join(10)


def _film(live: Live, source: Source, record: Recording | None, seconds: float | None) -> str:
    """Every frame, one after the other."""
    from rich.console import Console
    from rich.progress import Progress

    count = int(seconds * source.fps) if seconds else None
    done, begun = 0, time.monotonic()
    with Progress(console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("painting", total=count or source.count or None)
        for frame in itertools.islice(source.frames(), count):
            painted = live.paint(frame)
            if record is not None:
                record.write(painted.picture)
            done += 1
            bar.advance(task)
    return f"{done} frames, {done / (time.monotonic() - begun):.1f} a second"


def _stream(live: Live, source: Source, record: Recording | None, seconds: float | None) -> str:
    """The newest frames at the pace of the source; a recording shows each picture as long as it stood."""
    begun, count, late = time.monotonic(), 0, 0.0
    written = 0
    frames = itertools.takewhile(lambda _: not seconds or time.monotonic() - begun < seconds, source.frames())
    for painted in live.stream(frames):
        count, late = count + 1, late + painted.late_ms
        _say(live, painted)
        if record is not None:
            until = max(written + 1, round((time.monotonic() - begun) * source.fps))
            for _ in range(until - written):
                record.write(painted.picture)
            written = until
    took = time.monotonic() - begun
    print(file=sys.stderr)
    return f"{count} pictures, {count / took:.1f} a second, {late / max(1, count):.0f} ms after their frames"


def _say(live: Live, painted: Painted) -> None:
    if sys.stderr.isatty():
        rate = live.stats.get("fps_out", 0.0)
        print(f"\r{rate:5.1f} pictures a second, {painted.late_ms:4.0f} ms late ", end="", file=sys.stderr, flush=True)
