"""A server on a free port, on a thread of its own."""

import socket
import threading
import time
from contextlib import contextmanager


@contextmanager
def running(studio, *, around=lambda app: app, grace_s=5, **door):
    """The port of a studio's server; `around` wraps its door, `door` are the door's own keywords."""
    from fewstep.serve.app import application
    from fewstep.serve.security import Door
    from fewstep.serve.server import Server

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    app = around(Door(application(studio), **door))
    server = Server(app, studio, grace_s=grace_s, host="127.0.0.1", port=port)
    server.config.log_level = "error"
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    until = time.monotonic() + 20
    while not server.started and time.monotonic() < until:
        time.sleep(0.02)
    assert server.started
    yield port
    server.should_exit = True
    thread.join(10)
    assert not thread.is_alive()


def wait_until(true, within_s=10.0):
    """Whatever `true` gives, once it is something; it fails where it stays nothing."""
    until = time.monotonic() + within_s
    while time.monotonic() < until:
        if found := true():
            return found
        time.sleep(0.005)
    raise AssertionError("it did not come true")
