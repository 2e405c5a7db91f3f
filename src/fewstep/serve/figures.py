"""What `/metrics` tells: counters, gauges and histograms in Prometheus' form."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from prometheus_client import CollectorRegistry, Counter, Histogram, disable_created_metrics, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector

from fewstep.serve.security import App, Message, Receive, Scope, Send

if TYPE_CHECKING:
    from fewstep.serve.jobs import Studio

disable_created_metrics()  # when each series began is of no use here
METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
SECONDS = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)


class Figures:
    """The figures of one studio."""

    def __init__(self, studio: Studio) -> None:
        self.registry = registry = CollectorRegistry()
        self._jobs = Counter("fewstep_jobs", "jobs that ended, by how", ["outcome"], registry=registry)
        self._pictures = Counter("fewstep_pictures", "pictures that were painted", registry=registry)
        seconds: Any = {"buckets": SECONDS, "registry": registry}
        self._waited = Histogram("fewstep_job_queue_seconds", "how long jobs waited before they began", **seconds)
        self._took = Histogram("fewstep_job_seconds", "from asking to the end of a job", **seconds)
        labels = ["method", "route", "status"]
        self._requests = Counter("fewstep_requests", "requests that were answered", labels, registry=registry)
        self._answered = Histogram("fewstep_request_seconds", "how long answers took", ["route"], **seconds)
        registry.register(_Now(studio))

    def job(self, outcome: str, pictures: int, waited_s: float, took_s: float) -> None:
        """A job has ended."""
        self._jobs.labels(outcome).inc()
        self._pictures.inc(pictures)
        self._waited.observe(waited_s)
        self._took.observe(took_s)

    def request(self, method: str, route: str, status: int, seconds: float) -> None:
        """A request is answered; `route` is a path of ours: no label is anything that a client says."""
        method = method if method in METHODS else "other"
        self._requests.labels(method, route, str(status)).inc()
        self._answered.labels(route).observe(seconds)

    def text(self) -> bytes:
        """All of them, as Prometheus reads them."""
        return generate_latest(self.registry)


class _Now(Collector):
    """What the engine, the queue and the models say when they are asked."""

    def __init__(self, studio: Studio) -> None:
        self.studio = studio

    def collect(self) -> Iterator[Any]:
        """Called for each answer."""
        stats, loaded = self.studio.engine.stats, self.studio.models.loaded
        yield CounterMetricFamily("fewstep_evaluations", "evaluations of the network", stats.asks)
        yield CounterMetricFamily("fewstep_network_calls", "calls of the network, each for one or more", stats.ticks)
        yield CounterMetricFamily("fewstep_works_ended", "pictures and frames that ended", stats.ended)
        yield CounterMetricFamily("fewstep_turned_away", "pictures that found the queue full", stats.turned_away)
        yield GaugeMetricFamily("fewstep_network_call_seconds", "median of the last calls", stats.call_s)
        yield GaugeMetricFamily("fewstep_jobs_active", "jobs that have not ended", len(self.studio.active))
        yield GaugeMetricFamily("fewstep_models_loaded", "models in memory", len(loaded))
        yield GaugeMetricFamily("fewstep_models_bytes", "what they take", sum(entry.size for entry in loaded))


class Counted:
    """An ASGI application around the routes: counts answers by route, and says the job's id in a header."""

    def __init__(self, app: App, figures: Figures) -> None:
        self.app, self.figures = app, figures

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass it on."""
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        began, state = time.monotonic(), scope.setdefault("state", {})
        status = 500

        async def sending(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                if task := state.get("task"):
                    message["headers"] = [*message["headers"], (b"x-task-id", task.encode("latin-1", "replace"))]
            await send(message)

        try:
            await self.app(scope, receive, sending)
        finally:
            route = getattr(scope.get("route"), "path", "other")
            self.figures.request(scope["method"], route, status, time.monotonic() - began)
