"""HTTP/2 straight to the relay, without TLS: many streams on one connection, and the end of one of them."""

from __future__ import annotations

import json
import signal
import socket
from collections.abc import Iterator

import httpx
import pytest

from tests.deploy.h2client import Answer, H2Client
from tests.support.oracle import DONE, PATH, check, frame
from tests.support.processes import RelayProcess
from tests.support.replicas import two_replicas
from tests.support.scripted import Cut, Gate, Head, ScriptedUpstream, Send, json_response, stream
from tests.support.site import Site, one_relay
from tests.support.sseclient import open_stream

AUTH = {"authorization": "Bearer sk-one"}
MANY = 200


@pytest.fixture(scope="module")
def site() -> Iterator[Site]:
    """A relay that forgets a reader at once."""
    streams = {"abandon_after": "0s", "heartbeat": "1s"}
    with one_relay(streams=streams, limits={"streams_per_owner": 4000, "write_timeout": "2s"}) as found:
        yield found


def post(client: H2Client, model: str, *, hold: bool = False) -> Answer:
    return client.send("POST", PATH, AUTH, {"model": model, "stream": True, "messages": []}, hold=hold)


def payload(answer: Answer, count: int) -> bool:
    return answer.body.count(b"data: ") >= count


def test_many_streams_on_one_connection(site: Site) -> None:
    for i in range(MANY):
        site.upstream.on(f"many-{i}", *stream(frame(1), Gate("many"), *(frame(n) for n in range(2, 31)), DONE))
    with H2Client(site.relay.url) as client:
        assert client.allowed_streams >= MANY
        answers = [post(client, f"many-{i}") for i in range(MANY)]
        client.until(lambda: all(payload(a, 1) for a in answers))
        site.upstream.wait_reached("many", connections=MANY)
        assert not any(a.ended for a in answers)
        site.upstream.open("many")
        client.until(lambda: all(a.ended for a in answers))
    for i, answer in enumerate(answers):
        assert (answer.status, answer.ended) == (200, "end")
        assert check(answer.events()) == (30, "done"), f"stream {i}"
    assert len({a.headers["relay-stream-id"] for a in answers}) == MANY


def test_as_many_streams_as_the_settings_allow(site: Site) -> None:
    with H2Client(site.relay.url) as client:
        count = client.allowed_streams
        site.upstream.on("full", *stream(frame(1), Gate("full"), frame(2), DONE))
        answers: list[Answer] = []
        while len(answers) < count:  # it reads as it goes: `limits.write_timeout` is short here
            answers += [post(client, "full") for _ in range(min(50, count - len(answers)))]
            client.until(lambda: all(payload(a, 1) for a in answers), 60)  # noqa: B023
        site.upstream.open("full")
        client.until(lambda: all(a.ended for a in answers), 60)
        assert {(a.status, a.ended, check(a.events())) for a in answers} == {(200, "end", (2, "done"))}


def test_a_connection_outlives_any_number_of_requests(site: Site) -> None:
    """A proxy keeps its few connections for days, and other streams are on them."""
    site.upstream.on("stays", *stream(frame(1), Gate("stays"), frame(2), DONE))
    with H2Client(site.relay.url) as client:
        stays = post(client, "stays")
        client.until(lambda: payload(stays, 1))
        for _ in range(22):
            probes = [client.send("GET", "/livez", {}) for _ in range(50)]
            client.until(lambda: all(p.ended for p in probes))  # noqa: B023
            assert {p.status for p in probes} == {200}
        site.upstream.open("stays")
        client.until(lambda: stays.ended is not None)
        assert (stays.ended, check(stays.events())) == ("end", (2, "done"))
        assert not client.goodbye


def test_a_cancelled_stream_ends_alone(site: Site) -> None:
    for model in ("cancelled", "other"):
        site.upstream.on(model, *stream(frame(1), Gate(model), frame(2), DONE))
    with H2Client(site.relay.url) as client:
        cancelled, other = post(client, "cancelled"), post(client, "other")
        client.until(lambda: payload(cancelled, 1) and payload(other, 1))
        client.cancel(cancelled)
        (call,) = site.upstream.calls_of("cancelled")
        assert call.ended.wait(5), "the relay still reads the upstream for a stream that its client has cancelled"
        assert call.cancelled
        assert not site.upstream.calls_of("other")[0].cancelled
        site.upstream.open("other")
        client.until(lambda: other.ended is not None)
        assert (other.ended, check(other.events())) == ("end", (2, "done"))


def test_a_stream_that_its_client_does_not_read_ends_alone(site: Site) -> None:
    """By `limits.write_timeout`, with RST_STREAM; the connection and its other streams are well."""
    big = b"data: " + b'{"choices":[{"index":0,"delta":{"content":"' + b"x" * 200_000 + b'"}}]}\n\n'
    site.upstream.on("stuck", *stream(frame(1), big, big, Gate("never"), DONE))
    site.upstream.on("lively", *stream(frame(1), Gate("lively"), frame(2), DONE))
    with H2Client(site.relay.url) as client:
        stuck, lively = post(client, "stuck", hold=True), post(client, "lively")
        client.until(lambda: stuck.ended is not None)
        assert stuck.ended == "reset"
        assert 0 < len(stuck.body) < 200_000
        site.upstream.open("lively")
        client.until(lambda: lively.ended is not None)
        assert (lively.ended, check(lively.events())) == ("end", (2, "done"))


def test_an_upload_that_nobody_reads_holds_up_no_other_stream(site: Site) -> None:
    """The upstream takes no more of one request's body; the connection's other streams are read and written."""
    site.upstream.on("beside", *stream(frame(1), Gate("beside"), frame(2), DONE))
    with socket.create_server(("127.0.0.1", 0), backlog=4) as deaf:
        config = {
            "upstreams": [
                {"name": "deaf", "base_url": f"http://127.0.0.1:{deaf.getsockname()[1]}", "apis": ["messages"]},
                {"name": "scripted", "base_url": site.upstream.url, "apis": ["chat"]},
            ]
        }
        with RelayProcess(config) as relay, H2Client(relay.url) as client:
            headers = {**AUTH, "anthropic-version": "2023-06-01", "content-length": str(64 << 20)}
            upload = client.open("POST", "/v1/files", headers)
            with pytest.raises(TimeoutError):  # noqa: PT012
                for _ in range(64):
                    client.give(upload, b"u" * (1 << 20), timeout=1)
            beside = post(client, "beside")
            client.until(lambda: payload(beside, 1))
            site.upstream.open("beside")
            client.until(lambda: beside.ended is not None)
            assert check(beside.events()) == (2, "done")
            assert upload.ended is None


def test_data_after_the_answer_ends_no_other_stream(site: Site) -> None:
    site.upstream.on("calm", *stream(frame(1), Gate("calm"), frame(2), DONE))
    with H2Client(site.relay.url) as client:
        calm = post(client, "calm")
        refused = client.open("GET", "/nowhere", {})
        client.until(lambda: refused.ended is not None and payload(calm, 1))
        assert (refused.status, refused.ended) == (404, "end")
        client.give(refused, b"late")
        site.upstream.open("calm")
        client.until(lambda: calm.ended is not None)
        assert (calm.ended, check(calm.events())) == ("end", (2, "done"))


def test_a_long_prompt_goes_up_whole(site: Site) -> None:
    text = "é" * (1 << 20)
    site.upstream.on("long", *stream(frame(1), DONE))
    with H2Client(site.relay.url) as client:
        body = {"model": "long", "stream": True, "messages": [], "prompt": text}
        answer = client.send("POST", PATH, AUTH, body)
        client.until(lambda: answer.ended is not None)
        assert (answer.status, check(answer.events())) == (200, (1, "done"))
    assert site.upstream.calls_of("long")[0].json["prompt"] == text


def test_a_body_without_a_length_is_no_empty_body(site: Site) -> None:
    """HTTP/2 needs no Content-Length: a proxy that was sent chunks gives none."""
    site.upstream.on_path("POST /v1/files", *json_response(200, {"id": "file-1"}))
    with H2Client(site.relay.url) as client:
        upload = client.open("POST", "/v1/files", AUTH)
        client.give(upload, b"one,", end=False)
        client.give(upload, b"two", end=True)
        client.until(lambda: upload.ended is not None)
        assert (upload.status, json.loads(upload.body)) == (200, {"id": "file-1"})
    (call,) = [c for c in site.upstream.calls if c.path == "/v1/files"]
    assert call.body == b"one,two"


def test_a_json_post_without_a_body_is_passed_on_without_one(site: Site) -> None:
    """SDKs cancel a batch that way; over HTTP/2 nothing in the head says that no body follows."""
    site.upstream.on_path("POST /v1/batches/b1/cancel", *json_response(200, {"id": "b1"}))
    with H2Client(site.relay.url) as client:
        answer = client.send("POST", "/v1/batches/b1/cancel", {**AUTH, "content-type": "application/json"})
        client.until(lambda: answer.ended is not None)
        assert (answer.status, json.loads(answer.body)) == (200, {"id": "b1"})
    (call,) = [c for c in site.upstream.calls if c.path == "/v1/batches/b1/cancel"]
    assert call.body == b""


def test_an_upstream_that_breaks_off_is_no_end(site: Site) -> None:
    """A passed-through answer that is cut upstream: RST_STREAM, for END_STREAM would make it look complete."""
    site.upstream.on_path("GET /v1/cut", Head(200, {"content-type": "text/plain"}), Send(b"half"), Gate("cut"), Cut())
    with H2Client(site.relay.url) as client:
        answer = client.send("GET", "/v1/cut", AUTH)
        client.until(lambda: answer.body == b"half")
        site.upstream.open("cut")
        client.until(lambda: answer.ended is not None)
        assert answer.ended == "reset"


def test_a_draining_replica_resets_the_readers_of_other_replicas() -> None:
    with ScriptedUpstream() as upstream:
        upstream.on("m", *stream(frame(1), Gate("m"), frame(2), DONE))
        config = {"upstreams": [{"name": "scripted", "base_url": upstream.url}], "drain": {"timeout": "60s"}}
        with two_replicas(config) as replicas:
            body = {"model": "m", "stream": True, "messages": []}
            with open_stream(replicas.first.url + PATH, headers=AUTH, body=body) as producer:
                path = f"/streams/{producer.headers['relay-stream-id']}"
                with H2Client(replicas.second.url) as client:
                    answers = [client.send("GET", path, AUTH) for _ in range(3)]
                    client.until(lambda: all(payload(a, 1) for a in answers))
                    replicas.second.signal(signal.SIGTERM)
                    client.until(lambda: all(a.ended for a in answers))
                    assert [a.ended for a in answers] == ["reset"] * 3
                assert replicas.second.wait(20) == 0
                upstream.open("m")
                assert check(producer.events()) == (2, "done")


def test_a_usual_http2_client(site: Site) -> None:
    site.upstream.on("httpx", *stream(frame(1), frame(2), DONE))
    with httpx.Client(http1=False, http2=True, trust_env=False) as client:
        for _ in range(2):
            answer = client.post(
                site.relay.url + PATH, headers=AUTH, json={"model": "httpx", "stream": True, "messages": []}
            )
            assert (answer.status_code, answer.http_version) == (200, "HTTP/2")
            assert answer.text.endswith("data: [DONE]\n\n")
            assert answer.headers["x-accel-buffering"] == "no"
