"""Moving pictures in and out: video files, webcams and screens by PyAV (FFmpeg's own library). No torch.

Sizes are (width, height) in pixels.
"""

from __future__ import annotations

import contextlib
import math
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw

from fewstep.errors import ImageError, OutputError
from fewstep.image import round_to_cell

CODECS = {".mp4": ("libx264", {"crf": "18", "preset": "veryfast"}), ".mkv": ("libx264", {"crf": "18"})}
CODECS |= {".webm": ("libvpx-vp9", {"crf": "28", "b:v": "0", "deadline": "realtime", "cpu-used": "8"})}
DEVICES = {
    "linux": {"webcam": ("v4l2", "/dev/video{}"), "screen": ("x11grab", "{display}")},
    "darwin": {"webcam": ("avfoundation", "{}:none"), "screen": ("avfoundation", "Capture screen {}:none")},
    "win32": {"webcam": ("dshow", "video={}"), "screen": ("gdigrab", "desktop")},
}
"""What FFmpeg calls them on each system."""


@dataclass(frozen=True)
class Source:
    """Pictures that come one after the other; `count` is 0 where nobody knows how many, `path` the file's."""

    name: str
    size: tuple[int, int]
    fps: float
    count: int
    frames: Callable[[], Iterator[Image.Image]]
    path: Path | None = None


def video(path: str | Path) -> Source:
    """A video file. Raises ImageError where it is none that can be read."""
    path = Path(path)
    if not path.is_file():
        raise ImageError(f"The video '{path}' does not exist. Check the path.")
    return _opened(str(path), None, f"the video '{path}'", path=path)


def device(kind: str, number: int | str = 0) -> Source:
    """A "webcam" by its number (on Windows its name), or the "screen". Raises ImageError where there is none."""
    known = DEVICES.get(sys.platform)
    if known is None:
        raise ImageError(f"There is no way to a {kind} on {sys.platform} here. Give a video file.")
    style, place = known[kind]
    place = place.format(number, display=os.environ.get("DISPLAY", ":0"))
    return _opened(place, style, f"the {kind} '{place}'")


def pattern(size: tuple[int, int] = (256, 256), fps: float = 30.0) -> Source:
    """A test pattern that needs no camera: a disk that goes round and changes its colour, at its pace."""

    def frames() -> Iterator[Image.Image]:
        begun = time.monotonic()
        index = 0
        while True:
            yield _disk(size, index / fps)
            index += 1
            time.sleep(max(0.0, begun + index / fps - time.monotonic()))

    return Source("the test pattern", size, fps, 0, frames)


def fitting(size: tuple[int, int], side_px: int) -> tuple[int, int]:
    """About as many pixels as a square of `side_px`, in the shape of `size`, in multiples of 8.

    >>> fitting((1920, 1080), 512), fitting((100, 100), 128)
    ((680, 384), (128, 128))
    """
    scale = side_px / math.sqrt(size[0] * size[1])
    width, height = (max(64, round_to_cell(side * scale)) for side in size)
    return width, height


class Recording:
    """A video file in the making; it has its name when it is closed, and is no file at all if something went wrong.

    `sound` is a video whose sound is taken over as it is. Raises OutputError for a name without a known ending.
    """

    def __init__(self, path: str | Path, *, fps: float, sound: Path | None = None) -> None:
        self.path, self.fps, self.sound = Path(path), fps, sound
        if self.path.suffix.lower() not in CODECS:
            raise OutputError(f"'{self.path}' is no video. Give a name that ends in {', '.join(CODECS)}.")
        if not self.path.parent.is_dir():
            raise OutputError(f"The folder '{self.path.parent}' does not exist. Make it first.")
        handle, name = tempfile.mkstemp(suffix=self.path.suffix, dir=self.path.parent, prefix=".fewstep-")
        os.close(handle)
        self._part = Path(name)
        self._file = _av().open(name, "w")
        self._stream: Any = None
        self._sound = _Sound(None, self._file)
        self._written = 0

    def __enter__(self) -> Recording:
        """Itself."""
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        """Finish the file, or remove it after an error."""
        if kind is None or kind is KeyboardInterrupt:
            self.close()
        else:
            self._sound.close()
            self._file.close()
            self._part.unlink(missing_ok=True)

    def write(self, picture: Image.Image) -> None:
        """The next frame; all have the first one's size."""
        if self._stream is None:
            codec, options = CODECS[self.path.suffix.lower()]
            self._stream = self._file.add_stream(codec, rate=Fraction(self.fps).limit_denominator(1001))
            self._stream.width, self._stream.height = (side - side % 2 for side in picture.size)
            self._stream.pix_fmt, self._stream.options = "yuv420p", dict(options)
            self._sound = _Sound(self.sound, self._file)
        self._written += 1
        self._sound.until(self._written / self.fps)
        self._file.mux(self._stream.encode(_av().VideoFrame.from_image(picture.convert("RGB"))))

    def close(self) -> None:
        """Write what is left, and the sound; the file gets its name."""
        if self._stream is not None:
            self._file.mux(self._stream.encode(None))
        self._sound.close()
        self._file.close()
        if self._stream is None:
            self._part.unlink(missing_ok=True)
        else:
            os.replace(self._part, self.path)


def _opened(place: str, style: str | None, name: str, *, path: Path | None = None) -> Source:
    av = _av()
    try:
        with av.open(place, format=style) as file:
            stream = file.streams.video[0]
            fps = float(stream.average_rate or stream.guessed_rate or 25)
            size, count = (stream.width, stream.height), stream.frames
    except (av.FFmpegError, OSError, IndexError, ValueError):
        hint = "Give a file with pictures in it" if path else "Is it there, and free, and may this program use it"
        raise ImageError(f"{name[:1].upper()}{name[1:]} cannot be opened. {hint}{'.' if path else '?'}") from None

    def frames() -> Iterator[Image.Image]:
        with av.open(place, format=style) as file:
            file.streams.video[0].thread_type = "AUTO"
            for frame in file.decode(video=0):
                yield frame.to_image()

    return Source(name, size, fps, count, frames, path)


class _Sound:
    """The sound of one video on its way into another as it is; one that this kind of file cannot have is left out."""

    def __init__(self, path: Path | None, file: Any) -> None:
        av, self._file, self._packets = _av(), file, iter(())
        self._source = None if path is None else av.open(str(path))
        if self._source is None or not self._source.streams.audio:
            return
        given = self._source.streams.audio[0]
        with contextlib.suppress(av.FFmpegError, ValueError):
            self._stream = file.add_stream_from_template(given)
            self._packets = (packet for packet in self._source.demux(given) if packet.dts is not None)

    def until(self, seconds: float) -> None:
        """What sounds up to this time."""
        for packet in self._packets:
            late = packet.dts * packet.time_base >= seconds
            packet.stream = self._stream
            self._file.mux(packet)
            if late:
                return

    def close(self) -> None:
        """What is left of it sounds after the last picture, and is left out."""
        if self._source is not None:
            self._source.close()


def _disk(size: tuple[int, int], seconds: float) -> Image.Image:
    width, height = size
    picture = Image.new("RGB", size, "white")
    angle, radius = 2 * math.pi * seconds / 6, min(size) / 5
    x, y = width / 2 + width / 4 * math.cos(angle), height / 2 + height / 4 * math.sin(angle)
    colour = f"hsl({int(60 * seconds) % 360}, 90%, 50%)"
    ImageDraw.Draw(picture).ellipse((x - radius, y - radius, x + radius, y + radius), fill=colour)
    return picture


def _av() -> Any:
    try:
        import av
        import av.logging
    except ImportError:
        raise ImageError("Video needs one more library: pip install 'fewstep[live]'") from None
    av.logging.set_level(None)
    return av
