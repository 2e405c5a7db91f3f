"""A worker on a Ray cluster: an actor, with a GPU of its own where there are any, restarted elsewhere when it is lost.

The server stays the one that clients speak to, and the one that knows the sessions; the cluster only paints. Ray itself
pickles what it sends and opens ports on every address: for networks that are trusted as a whole.
"""

# An extra that need not be there.
# pyright: reportMissingImports=false

from __future__ import annotations

import os
import queue
import threading
from collections.abc import Callable
from typing import Any

from fewstep.engine.wire import Letter, unpacked
from fewstep.errors import RequestError


def connect(address: str | None = None) -> Any:
    """Ray, connected to the cluster at this address; None: to one of this machine alone, started here.

    Raises RequestError where Ray is not installed, or does not answer.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    try:
        import ray
    except ImportError:
        raise RequestError("Ray is not installed: pip install 'fewstep[ray]'") from None
    if not ray.is_initialized():
        here = {"include_dashboard": False, "_node_ip_address": "127.0.0.1"} if address is None else {}
        try:
            ray.init(address=address, log_to_driver=False, configure_logging=False, **here)
        except (ConnectionError, OSError, RuntimeError, ValueError) as error:
            raise RequestError(f"The Ray cluster at '{address}' does not answer: {type(error).__name__}.") from None
    return ray


class Far:
    """The actor: a `Workshop`, whose letters go out by a stream."""

    def __init__(self) -> None:
        from fewstep.engine.errands import Workshop

        self._letters: queue.SimpleQueue[Letter] = queue.SimpleQueue()
        self._workshop = Workshop(self._letters.put)

    def take(self, data: bytes) -> None:
        """A letter to the worker; in the order they were sent."""
        self._workshop.take(unpacked(data))

    def listen(self) -> Any:
        """The worker's letters, as they come."""
        while True:
            yield self._letters.get().packed()


class Actor:
    """The near end (`fleet.Worker`)."""

    def __init__(self, ray: Any, heard: Callable[[Letter], None], lost: Callable[[], None], gpus: float) -> None:
        groups = {"take": ray.method(concurrency_group="in")(Far.take)}
        groups["listen"] = ray.method(concurrency_group="out")(Far.listen)
        kind = ray.remote(concurrency_groups={"in": 1, "out": 1})(type("Far", (Far,), groups))
        self._ray, self._heard, self._lost = ray, heard, lost
        self._actor = kind.options(num_gpus=gpus, num_cpus=1, max_restarts=0).remote()
        threading.Thread(target=self._read, name="fewstep-ray", daemon=True).start()

    def send(self, letter: Letter) -> None:
        """Put into the actor's queue."""
        self._actor.take.remote(letter.packed())

    def close(self) -> None:
        """End the actor."""
        self._lost = lambda: None
        self._ray.kill(self._actor)

    def _read(self) -> None:
        try:
            for answer in self._actor.listen.options(num_returns="streaming").remote():
                self._heard(unpacked(self._ray.get(answer)))
        except Exception:  # noqa: BLE001 - whatever Ray raises when an actor or its machine is gone
            self._lost()


def hire_ray(
    address: str | None = None, *, gpus: float = 0
) -> Callable[[int, Callable[[Letter], None], Callable[[], None]], Actor]:
    """Starts actors on a cluster, each with so many GPUs. Raises RequestError as `connect`."""
    ray = connect(address)

    def hire(_index: int, heard: Callable[[Letter], None], lost: Callable[[], None]) -> Actor:
        return Actor(ray, heard, lost, gpus)

    return hire
