"""Traces as a collector gets them: one span for a stream, in its client's trace, and one for each reader who comes
back, on whatever replica, with a link to it. Off, nothing of it is even imported."""

from __future__ import annotations

import gzip
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from relay.tracing import setup as tracing
from relay.tracing.spans import Ended
from tests.conftest import Relays
from tests.support.processes import RelayProcess, needs
from tests.support.scripted import Gate, ScriptedUpstream, json_response, stream
from tests.support.sseclient import RawStream, open_stream
from tests.support.stores import Store, valkey_server
from tests.support.streams import PATHS, chat, data
from tests.support.waiting import wait_until

TOKEN = chat({"content": "canary-of-an-answer"})
USAGE = data('{"id":"chatcmpl-1","choices":[],"usage":{"prompt_tokens":7,"completion_tokens":2}}')
END = (chat({}, "stop"), USAGE, data("[DONE]"))
TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
PARENT = "00f067aa0ba902b7"
LATER_TRACE, LATER_PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
WAIT = 20.0


class Collector:
    """Takes spans by OTLP over HTTP, as protobuf; what it is given is decoded by OpenTelemetry's own definitions."""

    def __init__(self) -> None:
        self.spans: list[Any] = []
        self.resources: list[dict[str, Any]] = []
        collector = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

                body = self.rfile.read(int(self.headers["content-length"]))
                if self.headers.get("content-encoding") == "gzip":
                    body = gzip.decompress(body)
                assert (self.path, self.headers["content-type"]) == ("/v1/traces", "application/x-protobuf")
                request = ExportTraceServiceRequest.FromString(body)
                for of_resource in request.resource_spans:
                    collector.resources.append(attributes(of_resource.resource))
                    for scope in of_resource.scope_spans:
                        collector.spans += scope.spans
                self.send_response(200)
                self.send_header("content-length", "0")
                self.end_headers()

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    def named(self, name: str) -> list[Any]:
        return [span for span in self.spans if span.name.startswith(name)]

    def wait(self, name: str, count: int = 1) -> list[Any]:
        wait_until(lambda: len(self.named(name)) >= count, WAIT, f"{count} spans: {name}")
        return self.named(name)


def attributes(of: Any) -> dict[str, Any]:
    return {item.key: getattr(item.value, item.value.WhichOneof("value")) for item in of.attributes}


def events(span: Any) -> list[str]:
    return [event.name for event in span.events]


@pytest.fixture
def collector() -> Iterator[Collector]:
    needs(find_spec("opentelemetry"), "the extra `otel`: pip install '.[otel]'")
    found = Collector()
    yield found
    found.close()


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with valkey_server(tmp_path / "store") as server:
        yield server


def environment(collector: Collector, **more: str) -> dict[str, str]:
    return {"OTEL_EXPORTER_OTLP_ENDPOINT": collector.url, "OTEL_BSP_SCHEDULE_DELAY": "100", **more}


def settings(upstream: ScriptedUpstream, store: Store, **more: Any) -> dict[str, Any]:
    return {
        "upstreams": [{"name": "up", "base_url": upstream.url}],
        "store": {"url": store.url},
        "drain": {"timeout": "0s"},
        **more,
    }


def ask(relay: RelayProcess, headers: dict[str, str] | None = None, model: str = "m") -> RawStream:
    body = {"model": model, "stream": True, "messages": [{"role": "user", "content": "canary-of-a-prompt"}]}
    said = {"authorization": "Bearer canary-of-a-credential", **(headers or {})}
    return open_stream(relay.url + PATHS["chat"], headers=said, body=body)


def resume(relay: RelayProcess, name: str, after: int, traceparent: str) -> RawStream:
    headers = {
        "authorization": "Bearer canary-of-a-credential",
        "last-event-id": f"{name}.{after}",
        "traceparent": traceparent,
    }
    return open_stream(f"{relay.url}/streams/{name}", "GET", headers)


def test_a_stream_with_one_resume_on_another_replica(
    upstream: ScriptedUpstream, collector: Collector, store: Store, relays: Relays
) -> None:
    upstream.on("m", *stream(TOKEN, TOKEN, Gate("on"), TOKEN, *END))
    one, two = (relays.start(settings(upstream, store), environment(collector)) for _ in range(2))
    with ask(one, {"traceparent": f"00-{TRACE}-{PARENT}-01", "tracestate": "vendor=1"}) as answer:
        name = answer.headers["relay-stream-id"]
        answer.events(2)
    wait_until(lambda: "reader gone" in one.log(), WAIT, "the cut to be noticed")
    with resume(two, name, 1, f"00-{LATER_TRACE}-{LATER_PARENT}-01") as again:
        again.events(1)
        upstream.open("on")
        again.read()
    (span,) = collector.wait("chat")
    (reader,) = collector.wait("resume")

    assert (span.trace_id.hex(), span.parent_span_id.hex(), span.name) == (TRACE, PARENT, "chat m")
    told = attributes(span)
    assert (
        told
        | {
            "gen_ai.operation.name": "chat",
            "gen_ai.provider.name": "openai",
            "gen_ai.request.model": "m",
            "gen_ai.response.id": "chatcmpl-1",
            "gen_ai.usage.input_tokens": 7,
            "gen_ai.usage.output_tokens": 2,
            "server.address": "127.0.0.1",
            "relay.api": "chat",
            "relay.upstream": "up",
            "relay.outcome": "completed",
            "relay.stream.id": name,
            "relay.events": 6,
        }
        == told
    )
    assert events(span) == ["first_token", "cut", "end"]
    assert span.status.code == 0

    # In its own request's trace, on the other replica, and linked to the stream.
    assert (reader.trace_id.hex(), reader.parent_span_id.hex()) == (LATER_TRACE, LATER_PARENT)
    ((link),) = reader.links
    assert (link.trace_id, link.span_id) == (span.trace_id, span.span_id)
    seen = attributes(reader)
    assert (seen["relay.after"], seen["relay.result"], seen["relay.why"]) == (1, "live", "finished")
    assert seen["relay.stream.id"] == name
    assert seen["relay.replica"] != told["relay.replica"]
    assert span.start_time_unix_nano < reader.start_time_unix_nano < reader.end_time_unix_nano
    assert {resource["service.name"] for resource in collector.resources} == {"relay"}
    assert len({resource["service.instance.id"] for resource in collector.resources}) == 2

    # What is upstream is a child of the relay's span, and the vendor's own words go on.
    (call,) = upstream.calls
    assert call.header("traceparent") == f"00-{TRACE}-{span.span_id.hex()}-01"
    assert call.header("tracestate") == "vendor=1"
    assert "canary" not in str(collector.spans)


def test_a_reader_that_comes_back_here_and_a_stop_are_told_in_the_span(
    upstream: ScriptedUpstream, collector: Collector, store: Store, relays: Relays
) -> None:
    upstream.on("m", *stream(TOKEN, Gate("never")))
    relay = relays.start(settings(upstream, store), environment(collector, OTEL_SERVICE_NAME="of-ours"))
    with ask(relay) as answer:
        name = answer.headers["relay-stream-id"]
        answer.events(1)
    wait_until(lambda: "reader gone" in relay.log(), WAIT, "the cut to be noticed")
    with resume(relay, name, 1, f"00-{LATER_TRACE}-{LATER_PARENT}-01") as again:
        headers = {"authorization": "Bearer canary-of-a-credential"}
        with open_stream(f"{relay.url}/streams/{name}", "DELETE", headers) as stopped:
            assert stopped.status == 204
        again.read()
    (span,) = collector.wait("chat")
    (reader,) = collector.wait("resume")
    assert {"first_token", "cut", "resume", "end"} <= set(events(span))
    assert attributes(span)["relay.outcome"] == "stopped"
    assert [(link.trace_id, link.span_id) for link in reader.links] == [(span.trace_id, span.span_id)]
    assert collector.resources[0]["service.name"] == "of-ours"
    # Who sent no trace has none of the relay's sent on.
    assert upstream.calls[0].header("traceparent") is None


def test_failures_and_refusals(upstream: ScriptedUpstream, collector: Collector, store: Store, relays: Relays) -> None:
    upstream.on("cut", *stream(TOKEN))
    upstream.on("refused", *json_response(429, {"error": {"message": "canary"}}))
    relay = relays.start(settings(upstream, store), environment(collector))
    for model in ("cut", "refused"):
        with ask(relay, model=model) as answer:
            answer.read()
    (cut,), (refused,) = collector.wait("chat cut"), collector.wait("chat refused")
    assert (attributes(cut)["error.type"], cut.status.code) == ("upstream_disconnected", 2)
    assert (attributes(refused)["error.type"], refused.status.code) == ("refused", 2)
    assert "relay.stream.id" not in attributes(refused)


def test_a_trace_that_is_not_sampled_stays_so(
    upstream: ScriptedUpstream, collector: Collector, store: Store, relays: Relays
) -> None:
    upstream.on("m", *stream(TOKEN, *END))
    relay = relays.start(settings(upstream, store), environment(collector))
    with ask(relay, {"traceparent": f"00-{TRACE}-{PARENT}-00"}) as answer:
        answer.read()
    with ask(relay) as answer:
        answer.read()
    (span,) = collector.wait("chat")
    assert span.trace_id.hex() != TRACE
    assert str(upstream.calls[0].header("traceparent")).startswith(f"00-{TRACE}-")
    assert str(upstream.calls[0].header("traceparent")).endswith("-00")


def test_a_collector_that_is_away_holds_nothing_up(upstream: ScriptedUpstream, store: Store, relays: Relays) -> None:
    needs(find_spec("opentelemetry"), "the extra `otel`: pip install '.[otel]'")
    upstream.on("m", *stream(TOKEN, *END))
    env = {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:1", "OTEL_BSP_SCHEDULE_DELAY": "100"}
    relay = relays.start(settings(upstream, store), env)
    with ask(relay) as answer:
        assert len(answer.events()) == 4
    assert relay.stop_for_restart(30) == 0
    assert "canary" not in relay.log()


def test_what_is_no_models_answer_says_nothing_of_a_model(
    collector: Collector, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in environment(collector).items():
        monkeypatch.setenv(name, value)
    traces = tracing.from_environment({"OTEL_TRACES_EXPORTER": "otlp"}, "r")
    for api in ("messages", "feed"):
        ended = Ended("st_1", "completed", "", "m", "up", "https://up.example/v1", None, 3, None, None)
        traces.stream([], api, "m", 0.0).end(ended, "")
    traces.close()
    answer, feed = collector.named("chat m"), collector.named("stream feed")
    assert attributes(answer[0])["gen_ai.provider.name"] == "anthropic"
    assert [name for name in attributes(feed[0]) if name.startswith("gen_ai")] == []
    assert (attributes(feed[0])["server.address"], attributes(feed[0])["server.port"]) == ("up.example", 443)


ASKED = {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:4318"}


@pytest.mark.parametrize(
    ("environ", "asked"),
    [
        ({}, False),
        (ASKED, True),
        ({"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://h:4318/v1/traces"}, True),
        ({"OTEL_TRACES_EXPORTER": "otlp"}, True),
        ({"OTEL_TRACES_EXPORTER": "none", **ASKED}, False),
        ({"OTEL_TRACES_EXPORTER": "console", **ASKED}, False),
        ({"OTEL_SDK_DISABLED": "TRUE", **ASKED}, False),
        ({"OTEL_SERVICE_NAME": "relay"}, False),
    ],
)
def test_what_asks_for_traces(environ: dict[str, str], asked: bool) -> None:
    assert tracing.is_asked_for(environ) == asked


def test_another_protocol_is_told(caplog: pytest.LogCaptureFixture) -> None:
    assert not tracing.from_environment({**ASKED, "OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"}, "r").on
    assert "4318" in caplog.text


def test_a_missing_extra_is_told_and_the_relay_runs(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setitem(sys.modules, "opentelemetry", None)
    monkeypatch.delitem(sys.modules, "relay.tracing.otel", raising=False)
    monkeypatch.delattr("relay.tracing.otel", raising=False)
    assert not tracing.from_environment(ASKED, "r").on
    assert "relay-streams[otel]" in caplog.text


def test_off_nothing_of_it_is_imported() -> None:
    """redis-py takes OpenTelemetry's metrics in by itself, where it is installed."""
    program = (
        "import sys; from relay import cli, server; from relay.tracing.setup import from_environment;"
        "from_environment({}, 'r');"
        "ours = {'relay.tracing.otel', 'opentelemetry.sdk.trace', 'opentelemetry.exporter', 'google'};"
        "print(sorted(ours & sys.modules.keys()))"
    )
    found = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True)
    assert found.stdout == "[]\n"
