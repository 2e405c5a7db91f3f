"""A server on a free port, on a thread of its own."""

import asyncio
import socket
import sys
import threading
import time
import traceback
from contextlib import contextmanager


@contextmanager
def running(studio, *, around=lambda app: app, grace_s=5, how=None, **door):
    """The port of a studio's server; `around` wraps its door, `door` are the door's own keywords, `how` uvicorn's."""
    from fewstep.serve.app import application
    from fewstep.serve.security import Door
    from fewstep.serve.server import Server

    with socket.socket(proto=socket.IPPROTO_TCP) as listening:  # else asyncio leaves Nagle on
        listening.bind(("127.0.0.1", 0))
        server = Server(around(Door(application(studio), **door)), studio, grace_s=grace_s, **how or {})
        server.config.log_level = "error"
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, daemon=True)
        thread.start()
        wait_until(lambda: server.started, within_s=20)
        yield listening.getsockname()[1]
        server.should_exit = True
        thread.join(30)  # on a busy machine
        assert not thread.is_alive(), f"{tasks(server)}\n{stacks()}"


def tasks(server):
    """What the server's loop still waits for."""
    found = [] if server._loop is None else asyncio.all_tasks(server._loop)
    left = f"{len(server.server_state.connections)} connections, {len(server.server_state.tasks)} requests"
    return "\n".join([left, *(f"{task.get_name()}: {task.get_coro()} {task.get_stack()}" for task in found)])


def stacks():
    """Where every thread is."""
    names = {thread.ident: thread.name for thread in threading.enumerate()}
    found = sys._current_frames().items()
    return "\n".join(f"{names.get(ident)}:\n{''.join(traceback.format_stack(frame))}" for ident, frame in found)


def wait_until(true, within_s=10.0):
    """Whatever `true` gives, once it is something; it fails where it stays nothing."""
    until = time.monotonic() + within_s
    while time.monotonic() < until:
        if found := true():
            return found
        time.sleep(0.005)
    raise AssertionError("it did not come true")


@contextmanager
def asking(port):
    """An HTTP client of the server at this port."""
    import httpx

    with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60) as client:
        yield client


def painting_away(kind):
    """Pictures are painted by one "process", or by one actor on "ray"."""
    from fewstep.engine.fleet import Fleet
    from fewstep.engine.painting import Away
    from fewstep.engine.process import hire_process
    from fewstep.engine.ray import hire_ray

    return Away(Fleet(hire_process() if kind == "process" else hire_ray()))
