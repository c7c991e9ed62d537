"""One behaviour suite over every proxy: what a client gets through it is what the relay sent, when it sent it."""

from __future__ import annotations

import http.client
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.deploy.proxies import NAMES, SHIPPED, Proxy, proxy
from tests.support.oracle import DONE, PATH, check, frame
from tests.support.processes import RelayProcess
from tests.support.scripted import Gate, Head, ScriptedUpstream, Step, json_response, stream
from tests.support.sseclient import RawStream, open_stream

AUTH = {"authorization": "Bearer sk-one"}


@dataclass(frozen=True)
class Site:
    upstream: ScriptedUpstream
    relay: RelayProcess
    proxies: dict[str, Proxy]


@pytest.fixture(scope="module")
def site() -> Iterator[Site]:
    """One relay that forgets a reader at once, behind every proxy."""
    with ScriptedUpstream() as upstream:
        config = {
            "upstreams": [{"name": "scripted", "base_url": upstream.url}],
            "streams": {"abandon_after": "0s"},
        }
        with RelayProcess(config) as relay:
            proxies = {name: proxy(name, [relay.url]) for name in NAMES}
            started: list[Proxy] = []
            try:
                for each in proxies.values():
                    started.append(each.__enter__())  # noqa: PERF401
                yield Site(upstream, relay, proxies)
            finally:
                for each in started:
                    each.__exit__(None, None, None)


def post(url: str, model: str, after: str | None = None, **more: object) -> RawStream:
    headers = AUTH | ({} if after is None else {"last-event-id": after})
    return open_stream(url + PATH, headers=headers, body={"model": model, "stream": True, "messages": [], **more})


@pytest.mark.parametrize("name", NAMES)
def test_each_event_arrives_before_the_next_is_sent(site: Site, name: str) -> None:
    steps: list[bytes | str | Step] = []
    for n in range(1, 9):
        steps += [frame(n), Gate(f"{name}-{n}")]
    site.upstream.on(f"{name}-gated", *stream(*steps, DONE))
    with post(site.proxies[name].url, f"{name}-gated") as answer:
        assert answer.status == 200
        events = []
        for n in range(1, 9):
            events += answer.events(1)
            site.upstream.open(f"{name}-{n}")
        assert check(events + answer.events()) == (8, "done")
        assert answer.ended == "zero-chunk"
    assert answer.headers["content-type"] == "text/event-stream; charset=utf-8"
    assert answer.headers["relay-resumable"] == "true"


@pytest.mark.parametrize("name", NAMES)
def test_a_client_comes_back_through_the_proxy(site: Site, name: str) -> None:
    model = f"{name}-resumed"
    site.upstream.on(
        model, *stream(*(frame(n) for n in range(1, 7)), Gate(model), *(frame(n) for n in range(7, 10)), DONE)
    )
    url = site.proxies[name].url
    # A reader that stays, straight at the relay, keeps the generation alive.
    with post(url, model) as first:
        stream_id = first.headers["relay-stream-id"]
        with open_stream(f"{site.relay.url}/streams/{stream_id}", "GET", AUTH) as stays:
            events = first.take(4)
            with post(url, "never-sent", after=events[-1].id) as again:
                assert again.status == 200
                site.upstream.open(model)
                assert check(events + again.events()) == (9, "done")
            with open_stream(f"{url}/streams/{stream_id}?last_event_id={stream_id}.7", "GET", AUTH) as by_query:
                assert check(by_query.events(), first=8) == (2, "done")
            assert check(stays.events()) == (9, "done")
    with post(url, "never-sent", after=f"{stream_id}.10") as at_the_end:
        assert (at_the_end.status, at_the_end.read()) == (204, b"")
    assert site.upstream.calls_of("never-sent") == []


@pytest.mark.parametrize("name", NAMES)
def test_refusals_come_through_unchanged(site: Site, name: str) -> None:
    upstream, url = site.upstream, site.proxies[name].url
    error = {"error": {"message": "no", "type": "t", "code": "c"}}
    limits = {"retry-after": "7", "x-ratelimit-remaining-requests": "0"}
    upstream.on("unauthorized", *json_response(401, error))
    upstream.on("limited", *json_response(429, error, limits))
    upstream.on("unavailable", *json_response(503, error, {"retry-after": "9"}))
    upstream.on("done", *stream(frame(1), DONE))
    with post(url, "done") as answer:
        stream_id = answer.headers["relay-stream-id"]
        assert check(answer.events()) == (1, "done")

    def both(model: str, after: str | None = None) -> tuple[RawStream, RawStream]:
        answers = post(url, model, after), post(site.relay.url, model, after)
        assert answers[0].read() == answers[1].read()
        assert answers[0].status == answers[1].status
        assert answers[0].headers["content-type"] == answers[1].headers["content-type"] == "application/json"
        for each in answers:
            each.close()
        return answers

    assert both("unauthorized")[0].status == 401
    limited = both("limited")[0]
    assert limited.status == 429
    assert {k: limited.headers[k] for k in limits} == limits
    before = len(upstream.calls_of("unavailable"))
    unavailable = both("unavailable")[0]
    assert (unavailable.status, unavailable.headers["retry-after"]) == (503, "9")
    assert len(upstream.calls_of("unavailable")) == before + 2, "a refused POST was sent again"
    unknown = both("done", f"st_{'A' * (len(stream_id) - 3)}.1")[0]
    assert (unknown.status, unknown.json["error"]["code"]) == (404, "stream_not_found")
    beyond = both("done", f"{stream_id}.99")[0]
    assert (beyond.status, beyond.json["error"]["code"]) == (410, "position_unknown")


@pytest.mark.parametrize("name", NAMES)
def test_a_client_that_leaves_is_seen_by_the_relay(site: Site, name: str) -> None:
    model = f"{name}-left"
    site.upstream.on(model, *stream(frame(1), Gate(model)))
    with post(site.proxies[name].url, model) as answer:
        answer.take(1)
    (call,) = site.upstream.calls_of(model)
    assert call.ended.wait(5), "the relay still reads the upstream for a client that has left"
    assert call.cancelled


@pytest.mark.parametrize("name", SHIPPED)
def test_a_long_prompt_goes_up_whole(site: Site, name: str) -> None:
    model, text = f"{name}-long", "é" * (1 << 20)
    site.upstream.on(model, *stream(frame(1), DONE))
    with post(site.proxies[name].url, model, prompt=text) as answer:
        assert check(answer.events()) == (1, "done")
    (call,) = site.upstream.calls_of(model)
    assert call.json["prompt"] == text


@pytest.mark.parametrize("name", SHIPPED)
def test_large_heads_go_both_ways(site: Site, name: str) -> None:
    model = f"{name}-heads"
    site.upstream.on(model, *json_response(403, {"error": {"message": "no"}}, {"x-trace": "t" * 12_000}))
    headers = {**AUTH, "x-trace": "u" * 20_000}
    body = {"model": model, "stream": True, "messages": []}
    with open_stream(site.proxies[name].url + PATH, headers=headers, body=body) as answer:
        assert (answer.status, answer.headers["x-trace"]) == (403, "t" * 12_000)
    (call,) = site.upstream.calls_of(model)
    assert call.header("x-trace") == "u" * 20_000


@pytest.mark.parametrize("name", SHIPPED)
def test_the_proxy_adds_nothing_that_the_llm_api_need_not_know(site: Site, name: str) -> None:
    model = f"{name}-quiet"
    site.upstream.on(model, *stream(frame(1), DONE))
    headers = {**AUTH, "x-request-id": "mine-1"}
    with open_stream(site.proxies[name].url + PATH, headers=headers, body={"model": model, "stream": True}) as answer:
        assert check(answer.events()) == (1, "done")
    (call,) = site.upstream.calls_of(model)
    assert call.header("x-request-id") == "mine-1"
    assert [k for k, _ in call.headers if k.startswith(("x-forwarded", "x-envoy", "x-real", "via"))] == []


@pytest.mark.parametrize("name", SHIPPED)
def test_connections_are_kept_on_both_sides(site: Site, name: str) -> None:
    before = connections_to(site.relay)
    site.upstream.on("kept", *stream(frame(1), DONE))
    body = json.dumps({"model": "kept", "stream": True})
    client = http.client.HTTPConnection("127.0.0.1", site.proxies[name].port, timeout=10)
    client.connect()
    client_end = client.sock
    for _ in range(6):
        client.request("POST", PATH, body, AUTH)
        assert client.getresponse().read().count(b"data: ") == 2
        assert client.sock is client_end, "the proxy did not keep the client's connection"
    client.close()
    assert len(connections_to(site.relay) - before) <= 1, "the proxy did not keep its connection to the relay"


def connections_to(relay: RelayProcess) -> set[str]:
    """The client ends of every TCP connection to the relay, those in TIME_WAIT too."""
    port = f":{int(relay.url.rpartition(':')[2]):04X}"
    rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    return {local for _, local, remote, *_ in rows if remote.endswith(port)}


@pytest.mark.parametrize("name", NAMES)
def test_other_requests_pass(site: Site, name: str) -> None:
    site.upstream.on_path("GET /v1/models", *json_response(200, {"data": [{"id": "m"}]}))
    with open_stream(f"{site.proxies[name].url}/v1/models", "GET", AUTH) as answer:
        assert (answer.status, answer.json) == (200, {"data": [{"id": "m"}]})
    site.upstream.on_path("GET /v1/steer", Head(200, {"x-accel-redirect": "/livez"}, framing="length"))
    with open_stream(f"{site.proxies[name].url}/v1/steer", "GET", AUTH) as answer:
        assert answer.read() == b"", "an LLM API's answer steers the proxy"
