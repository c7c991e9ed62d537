"""Everything that Prometheus is told, and the address where it asks.

Promises: no label is ever a client's or an upstream's string (`api`, the configured `upstream`, the `model` as
`relay.model_labels` has it, and the relay's own words), so the number of series is bounded by the settings; a
counter never goes back while the relay runs, whichever of its workers die; an event costs two additions, not two
metrics.

With several workers prometheus-client's multiprocess mode is used, which has no exemplars and no process metrics.
The server runs in a thread, or in the parent of the workers: a scrape does not stand in the event loop's way.
"""

from __future__ import annotations

import functools
import platform
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from socketserver import ThreadingMixIn
from typing import TYPE_CHECKING, Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    Metric,
    ProcessCollector,
    disable_created_metrics,
    make_wsgi_app,
)
from prometheus_client.multiprocess import MultiProcessCollector
from prometheus_client.registry import Collector

from relay import __version__
from relay.histograms import UncheckedHistogram
from relay.model_labels import ModelLabels
from relay.protocol import guard
from relay.protocol.errors import ApiError
from relay.protocol.outcomes import Cause, Ending, Outcome

if TYPE_CHECKING:
    from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment

_FIRST_TOKEN = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 0.75, 1.0, 1.5, 2.5, 5.0, 10.0, 20.0, 30.0, 60.0, 120.0)
_DURATION = (0.01, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 20.0, 30.0, 60.0, 120.0, 300.0, 600.0, 1800.0, 3600.0)
_INTER_TOKEN = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
_APPEND = (0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5)
_BATCH = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000)
_GENERATION = ("api", "upstream", "model")
_FAILED, _TRIES = "failed", 5


class Meter:
    """The metrics of one `api`, `upstream` and `model`."""

    def __init__(self, metrics: Metrics, api: str, upstream: str, model: str) -> None:
        self.api, self.upstream, self.model = labels = (api, upstream, model)
        self.streams_active = metrics.streams_active.labels(*labels)
        self.readers_active = metrics.readers_active.labels(*labels)
        self.heartbeats = metrics.heartbeats.labels(*labels)
        self.replayed_events = metrics.replayed_events.labels(*labels)
        self.events = 0
        self._labels = labels
        self._metrics = metrics
        self._first_token = metrics.first_token.labels(*labels)
        self._inter_token = metrics.inter_token.labels(*labels)
        self._events = metrics.events.labels(*labels)
        self.gap = self._inter_token.count
        """Between two tokens, in seconds."""
        self._of: Callable[..., Any] = functools.cache(lambda metric, word: metric.labels(*labels, word))
        # A series that begins with its first increment hides that increment from rate() and increase().
        metrics.degraded.labels(*labels)
        metrics.malformed.labels(*labels)
        for result in ("resumed", "continued", "lost", "taken_over", "unclaimed"):
            metrics.upstream_resumes.labels(*labels, result)
        for outcome in (*Ending, _FAILED):
            metrics.streams.labels(*labels, outcome)
        for cause in Cause:
            metrics.failures.labels(*labels, cause)

    def flush(self) -> None:
        """Hand on what was counted per event."""
        if self.events:
            self._events.inc(self.events)
            self.events = 0
        self._inter_token.flush()

    def first_token(self, seconds: float, stream: str) -> None:
        self._first_token.observe(seconds, {"stream_id": stream})

    def ended(self, outcome: Outcome, seconds: float, stream: str) -> None:
        """A stream's one end."""
        word = _FAILED if isinstance(outcome, Cause) else outcome.value
        self.flush()
        self._of(self._metrics.streams, word).inc()
        self._of(self._metrics.duration, word).observe(seconds, {"stream_id": stream})
        if isinstance(outcome, Cause):
            self._of(self._metrics.failures, outcome.value).inc()

    def degraded(self) -> None:
        """A stream that should have had a log goes on without."""
        self._metrics.degraded.labels(*self._labels).inc()

    def malformed(self, n: int) -> None:
        """Events of the upstream that were forwarded and are not of its API's format."""
        self._metrics.malformed.labels(*self._labels).inc(n)

    def upstream_resumed(self, resumed: bool | str) -> None:
        """An upstream's answer that broke off has been gone on with (how, where that has a word), or is given up."""
        result = resumed if isinstance(resumed, str) else "resumed" if resumed else "lost"
        self._metrics.upstream_resumes.labels(*self._labels, result).inc()

    def tokens(self, kind: str, n: int) -> None:
        self._of(self._metrics.tokens, kind).inc(n)

    def upstream_answered(self, status: int | str) -> None:
        """`status` is the HTTP status, or a word where there was none."""
        known = isinstance(status, str) or 100 <= status < 600
        self._of(self._metrics.upstream_responses, status if known else "other").inc()


class Metrics:
    """All metrics of one replica; `registry` is what `serve` serves."""

    def __init__(self, models: ModelLabels | None = None) -> None:
        self.models = ModelLabels() if models is None else models
        disable_created_metrics()  # type: ignore[no-untyped-call]  # a second series for every counter, of which nothing is asked
        self.registry = registry = CollectorRegistry()
        self.first_token = UncheckedHistogram(
            "relay_time_to_first_token_seconds",
            "From the last byte of the request to the first token in the log, or shown ahead of it.",
            _GENERATION,
            buckets=_FIRST_TOKEN,
            registry=registry,
        )
        self.duration = UncheckedHistogram(
            "relay_stream_duration_seconds",
            "From the last byte of the request to the end of the stream in the log, or shown ahead of it.",
            (*_GENERATION, "outcome"),
            buckets=_DURATION,
            registry=registry,
        )
        self.inter_token = UncheckedHistogram(
            "relay_inter_token_seconds",
            "Between two events that carry tokens, as they come from the upstream.",
            _GENERATION,
            buckets=_INTER_TOKEN,
            registry=registry,
        )
        self.streams = Counter(
            "relay_streams_total",
            "Streams that ended: completed, stopped, abandoned or failed.",
            (*_GENERATION, "outcome"),
            registry=registry,
        )
        self.failures = Counter(
            "relay_mid_stream_failures_total",
            "Streams that ended with an error, by its code.",
            (*_GENERATION, "cause"),
            registry=registry,
        )
        self.degraded = Counter(
            "relay_streams_degraded_total",
            "Streams that cannot be resumed because the store was away at their start.",
            _GENERATION,
            registry=registry,
        )
        self.malformed = Counter(
            "relay_malformed_events_total",
            "Events that are not of their API's format, forwarded as they are.",
            _GENERATION,
            registry=registry,
        )
        self.webhooks = Counter(
            "relay_webhooks_total",
            "Attempts to tell the webhook of an end: delivered, failed (to be tried again) or given_up.",
            ("result",),
            registry=registry,
        )
        self.upstream_resumes = Counter(
            "relay_upstream_resumes_total",
            "Answers that broke off, where the upstream can go on: resumed, continued (by a billed call), lost; "
            "taken_over from a lost replica, or unclaimed, for no other replica went on with it.",
            (*_GENERATION, "result"),
            registry=registry,
        )
        self.streams_active = Gauge(
            "relay_streams_active",
            "Generations in flight, and those whose end is still to be written.",
            _GENERATION,
            registry=registry,
            multiprocess_mode="livesum",
        )
        self.readers_active = Gauge(
            "relay_readers_active",
            "Connections that read a stream.",
            _GENERATION,
            registry=registry,
            multiprocess_mode="livesum",
        )
        self.events = Counter(
            "relay_events_total",
            "Events of streams as readers can be given them: in the log, or shown ahead of it.",
            _GENERATION,
            registry=registry,
        )
        self.heartbeats = Counter(
            "relay_heartbeats_total", "Signs of life sent on silent streams.", _GENERATION, registry=registry
        )
        self.resumes = Counter(
            "relay_resumes_total",
            "Requests for a stream that is already there: live, replay (it had ended), complete (nothing was missing), "
            "joined (a retry, with an Idempotency-Key or without), or the refusal's code.",
            ("api", "result"),
            registry=registry,
        )
        self.replayed_events = Counter(
            "relay_replayed_events_total",
            "Events that were there after the position of a resume.",
            _GENERATION,
            registry=registry,
        )
        self.tokens = Counter(
            "relay_tokens_total", "Tokens by the upstream's own count.", (*_GENERATION, "kind"), registry=registry
        )
        self.upstream_responses = Counter(
            "relay_upstream_responses_total",
            "Answers of upstreams, by HTTP status, or unreachable (no connection was had), disconnected or timeout.",
            (*_GENERATION, "status"),
            registry=registry,
        )
        self.refusals = Counter(
            "relay_refusals_total",
            "Requests that the relay itself refused, by code.",
            ("api", "code"),
            registry=registry,
        )
        self.append = UncheckedHistogram(
            "relay_append_seconds", "One flush of events to the store.", buckets=_APPEND, registry=registry
        )
        self.append_batch = UncheckedHistogram(
            "relay_append_batch_events", "Events in one flush.", buckets=_BATCH, registry=registry
        )
        self.append_failures = Counter(
            "relay_append_failures_total", "Flushes that the store did not take.", registry=registry
        )
        self.store_up = Gauge(
            "relay_store_up",
            "1 while every server of the store answers.",
            registry=registry,
            multiprocess_mode="livemin",
        )
        self.store_memory_used = Gauge(
            "relay_store_memory_used_bytes",
            "Memory in use by the fullest server of the store.",
            registry=registry,
            multiprocess_mode="livemax",
        )
        self.store_memory_limit = Gauge(
            "relay_store_memory_limit_bytes",
            "What that server may use: its maxmemory, else its machine's memory.",
            registry=registry,
            multiprocess_mode="livemax",
        )
        self.draining = Gauge("relay_draining", "1 from SIGTERM on.", registry=registry, multiprocess_mode="livemax")
        self.build_info = Gauge(
            "relay_build_info", "What runs here.", ("version", "python"), registry=registry, multiprocess_mode="livemax"
        )
        self.build_info.labels(__version__, platform.python_version()).set(1)
        ProcessCollector(registry=registry)
        self._meters: dict[tuple[str, str, str], Meter] = {}

    def expect(self, apis: Iterable[str], upstream: str, models: Iterable[str]) -> None:
        """Have the gauges of what may come at 0 before it comes: to an autoscaler a replica without the metric is
        one that cannot be judged, and then none is scaled down."""
        for api in apis:
            for model in models:
                for gauge in (self.streams_active, self.readers_active):
                    gauge.labels(api, upstream, model)

    def meter(self, api: str, upstream: str, model: str) -> Meter:
        """`upstream` is a word of the settings, `model` what `models` says; never a client's."""
        key = (api, upstream, model)
        if key not in self._meters:
            self._meters[key] = Meter(self, *key)
        return self._meters[key]

    def flush(self) -> None:
        """Hand on what was only counted, of events and of flushes to the store."""
        self.append.flush()
        self.append_batch.flush()
        for meter in self._meters.values():
            meter.flush()


class _Workers(Collector):
    """A worker that has just started has a file that is still empty, of which prometheus-client dies: for a moment."""

    def collect(self) -> Iterable[Metric]:
        collector: Any = MultiProcessCollector(None)  # type: ignore[no-untyped-call]
        for attempt in range(1, _TRIES):
            with suppress(struct.error):
                return list(collector.collect())
            time.sleep(0.01 * attempt)
        return list(collector.collect())


def of_workers() -> CollectorRegistry:
    """What all workers have counted, the dead ones too; for their parent."""
    registry = CollectorRegistry()
    registry.register(_Workers())
    return registry


class _Handler(WSGIRequestHandler):
    def log_message(self, *args: object) -> None:
        """Scrapes are not logged."""


def serve(address: str, registry: CollectorRegistry, hosts: Sequence[str] = ()) -> Callable[[], None]:
    """Answer scrapes on `host:port` in a thread, and no page of another origin: a browser on this machine reaches it,
    too. `hosts` are further names under which it may be asked. What ends it. Raises OSError."""
    host, _, port = address.rpartition(":")
    host = host.strip("[]")
    pages = guard.Guard([*guard.hosts_of(address, ()), *hosts])
    scrape: WSGIApplication = make_wsgi_app(registry)

    def answer(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        keys = {name: f"HTTP_{name.upper().replace('-', '_')}" for name in guard.READS}
        head = [(name.encode(), environ[key].encode("latin-1")) for name, key in keys.items() if key in environ]
        try:
            pages.check(head, navigates=True)
        except ApiError as error:
            start_response(f"{error.status} {error.code}", [("content-type", "text/plain; charset=utf-8")])
            return [f"{error.message}\n".encode()]
        return scrape(environ, start_response)

    class Server(ThreadingMixIn, WSGIServer):
        daemon_threads = True
        address_family = socket.AF_INET6 if ":" in host else socket.AF_INET

    try:
        server = make_server(host, int(port), answer, Server, handler_class=_Handler)
    except OSError as error:
        raise OSError(f"metrics_bind {address}: {error.strerror}; free the address or set another") from None
    threading.Thread(target=server.serve_forever, daemon=True).start()

    def close() -> None:
        with suppress(OSError):
            server.socket.shutdown(socket.SHUT_RDWR)  # wakes it: by itself it looks twice a second whether it is to end
        server.shutdown()
        server.server_close()

    return close


def reference() -> str:
    """All metrics as a Markdown table."""
    rows = ["| metric | type | labels | meaning |", "|---|---|---|---|"]
    for metric in vars(Metrics()).values():
        if isinstance(metric, Counter | Gauge | Histogram):
            (family,) = metric.describe()
            labels = ", ".join(f"`{name}`" for name in metric._labelnames)
            name = family.name + ("_total" if family.type == "counter" else "")
            rows.append(f"| `{name}` | {family.type} | {labels} | {family.documentation} |")
    return "\n".join(rows)


if __name__ == "__main__":
    print(reference())
