"""Spans by OpenTelemetry's SDK, sent to a collector by OTLP over HTTP from a thread of the SDK's own.

A stream's span has the attributes of the GenAI semantic conventions and is a child of the request's `traceparent`. A
reader who comes back, on whatever replica, has a span of its own, in its own request's trace, with a link to the
stream's. Sampling, addresses, headers and limits are the SDK's, by its own OTEL_* variables.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from relay import __version__
from relay.tracing.spans import NO_READER, NO_STREAM, Ended, Headers, ReaderSpan, StreamSpan, Tracing, Value

# By whose form of an API it is. What else is streamed is no model's answer for all that the relay knows.
_PROVIDERS = {"chat": "openai", "responses": "openai", "messages": "anthropic"}
_PROPAGATOR = TraceContextTextMapPropagator()


class OpenTelemetry(Tracing):
    """One per replica."""

    on = True

    def __init__(self, environ: Mapping[str, str], replica: str) -> None:
        attributes = {"service.version": __version__, "service.instance.id": replica}
        if "service.name" not in environ.get("OTEL_RESOURCE_ATTRIBUTES", "") and not environ.get("OTEL_SERVICE_NAME"):
            attributes["service.name"] = "relay"
        self._provider = TracerProvider(resource=Resource.create(attributes), shutdown_on_exit=False)
        self._provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
        self._tracer = self._provider.get_tracer("relay", __version__)
        self._replica = replica

    def stream(self, headers: Headers, api: str, model: str, age: float) -> StreamSpan:
        provider = _PROVIDERS.get(api)
        of_model: dict[str, Value] = {}
        if provider is not None:
            of_model = {
                "gen_ai.operation.name": "chat",
                "gen_ai.provider.name": provider,
                "gen_ai.request.model": model[:200],
            }
        span = self._tracer.start_span(
            _name(api, model),
            context=_parent(headers),
            kind=trace.SpanKind.CLIENT,
            start_time=time.time_ns() - int(age * 1e9),
            attributes={**of_model, "relay.api": api, "relay.replica": self._replica},
        )
        return _Stream(span, api) if span.get_span_context().is_valid else NO_STREAM

    def reader(self, headers: Headers, api: str, stream: str, **attributes: Value) -> ReaderSpan:
        span = self._tracer.start_span(
            f"resume {api}",
            context=_parent(headers),
            kind=trace.SpanKind.SERVER,
            attributes={
                "relay.api": api,
                "relay.stream.id": stream,
                "relay.replica": self._replica,
                **_named(attributes),
            },
        )
        return _Reader(span) if span.is_recording() else NO_READER

    def close(self) -> None:
        self._provider.shutdown()


class _Stream(StreamSpan):
    def __init__(self, span: Any, api: str) -> None:
        self._span = span
        self._api = api
        carrier: dict[str, str] = {}
        _PROPAGATOR.inject(carrier, context=trace.set_span_in_context(span, Context()))
        self.traceparent = carrier["traceparent"]
        self.trace_id = self.traceparent.split("-")[1]

    def event(self, name: str, **attributes: Value) -> None:
        self._span.add_event(name, _named(attributes))

    def end(self, ended: Ended, owner: str) -> None:
        if not self._span.is_recording():
            return
        address = urlsplit(ended.address)
        told: dict[str, Value | None] = {
            "gen_ai.request.model": ended.model[:200] if self._api in _PROVIDERS else None,
            "gen_ai.response.id": ended.response_id,
            "gen_ai.usage.input_tokens": ended.input_tokens,
            "gen_ai.usage.output_tokens": ended.output_tokens,
            "server.address": address.hostname,
            "server.port": address.port or (443 if address.scheme == "https" else 80),
            "error.type": ended.error or None,
            "relay.stream.id": ended.stream or None,
            "relay.outcome": ended.outcome or None,
            "relay.upstream": ended.upstream,
            "relay.owner": owner or None,
            "relay.events": ended.events,
        }
        self._span.set_attributes({name: value for name, value in told.items() if value is not None})
        self._span.update_name(_name(self._api, ended.model))
        self.event("end", outcome=ended.outcome)
        if ended.error:
            self._span.set_status(trace.Status(trace.StatusCode.ERROR, ended.error))
        self._span.end()


class _Reader(ReaderSpan):
    def __init__(self, span: Any) -> None:
        self._span = span

    def link(self, traceparent: str) -> None:
        context = trace.get_current_span(
            _PROPAGATOR.extract({"traceparent": traceparent}, Context())
        ).get_span_context()
        if context.is_valid:
            self._span.add_link(context)

    def end(self, **attributes: Value) -> None:
        self._span.set_attributes(_named(attributes))
        self._span.end()


def _name(api: str, model: str) -> str:
    """As the conventions have it: the operation, and the model."""
    return f"chat {model[:200]}" if api in _PROVIDERS else f"stream {api}"


def _named(attributes: Mapping[str, Value]) -> dict[str, Value]:
    return {f"relay.{name}": value for name, value in attributes.items()}


def _parent(headers: Headers) -> Any:
    """Of a request; an empty context, and not this thread's, where it has none."""
    carrier = {
        name.decode("latin-1"): value.decode("latin-1")
        for name, value in headers
        if name in (b"traceparent", b"tracestate")
    }
    return _PROPAGATOR.extract(carrier, Context())
