"""A server in a process of its own, whose every import, unpickling and connection is heard: prints what it heard.

Run by test_watched.py.
"""

# ruff: noqa: E402 - what is imported is to be heard
import sys

seen = []
PICKLES = ("pickle", "_pickle", "marshal", "shelve", "dill", "cloudpickle")
CALLS = ("socket.connect", "socket.getaddrinfo", "socket.gethostbyname", "socket.sendto")


def hear(event, args):
    if event == "pickle.find_class" or event in CALLS:
        seen.append((event, args))
    elif event == "import" and args[0] in PICKLES:
        frame = sys._getframe(1)
        while frame is not None and "importlib" in frame.f_code.co_filename:
            frame = frame.f_back
        if frame is not None and frame.f_globals.get("__name__", "").startswith("fewstep"):
            seen.append((event, frame.f_globals["__name__"]))


sys.addaudithook(hear)

import base64
import io
import json
import pickle
import socket
from collections import OrderedDict
from contextlib import suppress
from pathlib import Path

from PIL import Image
from starlette.testclient import TestClient

from fewstep.serve.app import application
from fewstep.serve.jobs import Studio
from fewstep.serve.security import Door
from tests.serve.null import NullPipeline

EVIL = b"cposix\nsystem\n(S'true'\ntR."


def text_of(data):
    return base64.b64encode(data).decode()


def orders(one):
    """The statuses of all kinds of orders."""
    stream = io.BytesIO()
    Image.new("RGB", (64, 64), "red").save(stream, "PNG")
    image, few = stream.getvalue(), {"prompt": "x"}
    posts = (
        ("/sdapi/v1/txt2img", {"json": few}),
        ("/sdapi/v1/img2img", {"json": {**few, "init_images": [text_of(image)], "mask": text_of(image)}}),
        ("/sdapi/v1/img2img", {"json": {**few, "init_images": [text_of(EVIL)]}}),
        ("/v1/images/edits", {"data": few, "files": {"image": image}}),
        ("/v1/images/edits", {"data": few, "files": {"image": ("a.pkl", EVIL)}}),
        ("/v1/images/generations", {"json": {**few, "stream": True, "partial_images": 3}}),
        ("/sdapi/v1/extra-single-image", {"json": {"image": text_of(image)}}),
    )
    return [one.post(path, **how).status_code for path, how in posts] + [one.get("/sdapi/v1/memory").status_code]


def holders():
    """Modules of ours that hold pickle, and torch, which a server of graphs does without."""
    ours = [name for name in sys.modules if name.startswith("fewstep.")]
    return [name for name in ours if "pickle" in vars(sys.modules[name])] + [*{"torch"} & set(sys.modules)]


def provoke():
    """What the hook should hear."""
    pickle.loads(pickle.dumps(OrderedDict()))
    with suppress(OSError):
        socket.create_connection(("127.0.0.1", 9), timeout=0.1)


if __name__ == "__main__":
    door = Door(application(Studio(NullPipeline(Path(__file__).parent))))
    with TestClient(door, base_url="http://localhost") as client:
        found = {"codes": orders(client), "holders": holders(), "before": list(seen)}
    provoke()
    found["after"] = [event for event, _ in seen[len(found["before"]) :]]
    print(json.dumps(found, default=str))
