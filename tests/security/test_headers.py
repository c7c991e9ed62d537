"""Headers: only what is listed crosses, either way, and none tells the relay or its upstream who the client is.

The lists name by name, hop-by-hop headers and credentials are in `tests/protocol/test_headers.py`; here they are seen
from outside, over both protocols.
"""

from __future__ import annotations

from collections.abc import Iterator
from email.utils import parsedate_to_datetime
from urllib.parse import urlsplit

import pytest

from relay.protocol.cors import _EXPOSED as EXPOSED
from tests.security.wire import AUTH, H2, request
from tests.support.processes import RelayProcess
from tests.support.scripted import Call, Cut, Head, ScriptedUpstream, Send, json_response, stream
from tests.support.site import Site
from tests.support.sseclient import RawStream, open_stream

CLAIM = "203.0.113.77"
CLAIMS = {
    "x-forwarded-for": CLAIM,
    "x-forwarded-host": CLAIM,
    "x-forwarded-proto": f"https;{CLAIM}",
    "x-forwarded-port": f"1{CLAIM}",
    "x-forwarded-client-cert": f"By={CLAIM}",
    "forwarded": f"for={CLAIM};host={CLAIM}",
    "x-real-ip": CLAIM,
    "x-client-ip": CLAIM,
    "x-cluster-client-ip": CLAIM,
    "x-remote-addr": CLAIM,
    "x-remote-user": CLAIM,
    "x-proxyuser-ip": CLAIM,
    "true-client-ip": CLAIM,
    "cf-connecting-ip": CLAIM,
    "fastly-client-ip": CLAIM,
    "client-ip": CLAIM,
    "via": f"1.1 {CLAIM}",
    "x-original-url": f"/v1/{CLAIM}",
    "x-rewrite-url": f"/v1/{CLAIM}",
    "x-http-method-override": f"DELETE{CLAIM}",
    "x_forwarded_for": CLAIM,
    "x-forwarded_for": CLAIM,
    "x_real_ip": CLAIM,
    "x-real_ip": CLAIM,
}
UNLISTED = {"tenant": "t-1", "sec-fetch-site": "none", "cookie": "a=b", "dnt": "1", "x_api_key": "k", "proxy": "p"}
BODY = {"model": "m", "stream": True, "messages": []}


@pytest.fixture(scope="module")
def site() -> Iterator[Site]:
    with ScriptedUpstream() as upstream:
        upstream.on("m", *stream("data: {}\n\n", "data: [DONE]\n\n"))
        upstream.on_path("GET /v1/models", *json_response(200, {}))
        config = {
            "upstreams": [
                {"name": "scripted", "base_url": upstream.url, "apis": ["chat"]},
                {"name": "all", "base_url": upstream.url, "apis": ["responses"], "headers": ["*"]},
                {"name": "more", "base_url": upstream.url, "apis": ["messages"], "headers": ["tenant", "Helicone-*"]},
            ],
            "log": {"level": "debug"},
        }
        with RelayProcess(config) as relay:
            yield Site(upstream, relay)


def asked(site: Site, way: str, headers: dict[str, str]) -> Call:
    """What arrives upstream of a stream, of a path passed through, or of that over HTTP/2."""
    before = len(site.upstream.calls)
    match way:
        case "stream":
            with open_stream(site.relay.url + "/v1/chat/completions", headers=headers, body=BODY) as answer:
                answer.read()
        case "path":
            with open_stream(site.relay.url + "/v1/models", "GET", headers) as answer:
                answer.read()
        case _:
            with H2(site.relay.url) as client:
                more = [(name.encode(), value.encode()) for name, value in headers.items() if name != "authorization"]
                client.wait(client.send(request(b"GET", b"/v1/models", *more)))
    (call,) = site.upstream.calls[before:]
    return call


each_way = pytest.mark.parametrize("way", ["stream", "path", "http2"])


@each_way
def test_no_claim_of_who_the_client_is_goes_upstream_or_is_believed(site: Site, way: str) -> None:
    call = asked(site, way, {**AUTH, **CLAIMS})
    assert CLAIM not in repr(call)
    assert CLAIM not in site.relay.log()
    with open_stream(f"{site.relay.metrics_url}/metrics", "GET") as metrics:
        assert CLAIM not in metrics.read().decode()
    assert call.header("authorization") == AUTH["authorization"]


@each_way
def test_what_is_not_listed_does_not_go_upstream(site: Site, way: str) -> None:
    call = asked(site, way, {**AUTH, **UNLISTED, "x-listed": "1", "openai-beta": "b", "user-agent": "u"})
    names = {name.lower() for name, _ in call.headers}
    assert not names & set(UNLISTED)
    assert {"x-listed", "openai-beta", "user-agent"} <= names


def test_an_upstreams_own_list_lets_more_through_both_ways(site: Site) -> None:
    theirs = {"tenant": "t-2", "helicone-id": "h-2", "other": "o-2"}
    site.upstream.on_path("GET /v1/messages/1", *json_response(200, {}, theirs))
    headers = {**AUTH, "tenant": "t-1", "helicone-id": "h-1", "other": "o-1"}
    with open_stream(site.relay.url + "/v1/messages/1", "GET", headers) as answer:
        assert (answer.headers["tenant"], answer.headers["helicone-id"]) == ("t-2", "h-2")
        assert "other" not in answer.headers
    call = site.upstream.calls[-1]
    assert (call.header("tenant"), call.header("helicone-id"), call.header("other")) == ("t-1", "h-1", None)


def test_no_list_lets_through_what_belongs_to_a_hop(site: Site) -> None:
    theirs = {"proxy-authenticate": "Basic", "x-hop": "1", "trailer": "x", "set-cookie": "a=b", "listed": "1"}
    site.upstream.on_path("GET /v1/responses/1/x", *json_response(200, {}, {**theirs, "connection": "x-hop"}))
    ours = {
        "te": "trailers",
        "trailer": "x",
        "proxy-authorization": "Basic",
        "upgrade": "h2c",
        "expect": "x",
        "cookie": "a",
    }
    headers = {**AUTH, **ours, "connection": "x-hop", "x-hop": "1", "last-event-id": "7", "listed": "1"}
    with open_stream(site.relay.url + "/v1/responses/1/x", "GET", headers) as answer:
        assert set(answer.headers) & set(theirs) == {"listed"}
    call = site.upstream.calls[-1]
    assert {name.lower() for name, _ in call.headers} & {*headers} == {"authorization", "listed"}
    assert call.header("host") == urlsplit(site.upstream.url).netloc


@each_way
def test_what_connection_names_ends_here(site: Site, way: str) -> None:
    if way == "http2":  # where `Connection` itself is malformed: see the smuggling cases
        headers = {**AUTH, "te": "trailers", "x-kept": "1"}
    else:
        headers = {**AUTH, "connection": "x-hop , x-secret", "x-hop": "1", "x-secret": "2", "x-kept": "1"}
    call = asked(site, way, headers)
    names = {name.lower() for name, _ in call.headers}
    assert not names & {"x-hop", "x-secret", "te"}
    assert "x-kept" in names


# All that the relay's own pages may see of it.
OWN = {name.strip().lower() for name in EXPOSED.decode().split(",") if name.strip().lower().startswith("relay-")}
FORGED = {
    **dict.fromkeys(OWN, "forged"),
    "access-control-allow-origin": "*",
    "access-control-allow-credentials": "true",
    "set-cookie": "a=b",
    "alt-svc": 'h3="elsewhere.test:443"',
    "x-accel-redirect": "/internal",
    "x-sendfile": "/etc/passwd",
    "strict-transport-security": "max-age=1",
    "refresh": "0;url=http://elsewhere.test/",
    "clear-site-data": "*",
    "connection": "keep-alive, x-hop",
    "keep-alive": "timeout=99",
    "upgrade": "h2c",
    "proxy-authenticate": "Basic",
    "x-hop": "1",
}


@pytest.mark.parametrize("way", ["stream", "refusal", "path"])
def test_an_upstream_speaks_for_itself_only(site: Site, way: str) -> None:
    """It can forge no header of the relay's, of its proxies' or of its origin's."""
    site.upstream.on("forged", *stream("data: [DONE]\n\n", headers=FORGED))
    site.upstream.on("refused", *json_response(429, {}, FORGED))
    site.upstream.on_path("GET /v1/forged", *json_response(200, {}, FORGED))
    if way == "path":
        answer = open_stream(site.relay.url + "/v1/forged", "GET", AUTH)
    else:
        body = {**BODY, "model": "forged" if way == "stream" else "refused"}
        answer = open_stream(site.relay.url + "/v1/chat/completions", headers=AUTH, body=body)
    with answer:
        seen = {name.lower(): value for name, value in answer.header_list}
        assert not set(seen.items()) & set(FORGED.items())
        assert set(seen) & set(FORGED) <= (OWN if way == "stream" else set())
        assert seen.get("relay-stream-id", "st_").startswith("st_")


UNPRINTABLE = [
    "a\rrelay-stream-id: st_forged",
    "a\r\trelay-stream-id: st_forged",
    "a\x00b",
    "a\x0bb",
    "a\x1fb",
    "a\x7fb",
]


@pytest.mark.parametrize("value", UNPRINTABLE)
@pytest.mark.parametrize("protocol", ["http1", "http2"])
@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/odd"])
def test_a_header_of_an_upstream_ends_no_line(site: Site, path: str, protocol: str, value: str) -> None:
    """A value with CR or NUL in it comes to no client: a proxy behind it may read the end of a line there."""
    headers = {"x-request-id": value, "x-ratelimit-limit": "7"}
    site.upstream.on("odd", *stream("data: [DONE]\n\n", headers=headers))
    site.upstream.on_path("GET /v1/odd", Head(200, headers, "chunked"), Send(b"{}"), Cut())
    posted = path.endswith("completions")
    if protocol == "http1":
        body = {**BODY, "model": "odd"} if posted else None
        with open_stream(site.relay.url + path, "POST" if posted else "GET", AUTH, body) as answer:
            pairs = [(name.encode("latin-1"), v.encode("latin-1")) for name, v in answer.header_list]
    else:
        with H2(site.relay.url) as client:
            payload = b'{"model":"odd","stream":true,"messages":[]}' if posted else None
            number = client.send(request(b"POST" if posted else b"GET", path.encode()), payload)
            client.wait(number)
            pairs = client.answers[number].headers
    assert pairs
    for name, v in pairs:
        assert not set(name + v) & {*range(0x09), *range(0x0A, 0x20), 0x7F}
        assert b"forged" not in v
    assert dict(pairs)[b":status" if protocol == "http2" else b"date"]


@pytest.mark.parametrize("streamed", [True, False])
def test_a_key_goes_to_its_own_upstream_only(streamed: bool) -> None:
    """Two upstreams, each with a key: neither hears the other's, nor the client's."""
    with ScriptedUpstream() as one, ScriptedUpstream() as two:
        for upstream in (one, two):
            for model in ("one-m", "two-m"):
                upstream.on(model, *(stream("data: [DONE]\n\n") if streamed else json_response(200, {})))
        config = {
            "upstreams": [
                {"name": "one", "base_url": one.url, "models": ["one-*"], "api_key_env": "KEY_ONE"},
                {"name": "two", "base_url": two.url, "models": ["two-*"], "api_key_env": "KEY_TWO"},
            ]
        }
        with RelayProcess(config, {"KEY_ONE": "sk-of-one", "KEY_TWO": "sk-of-two"}) as relay:
            for model in ("one-m", "two-m"):
                body = {"model": model, "stream": streamed, "messages": []}
                headers = {**AUTH, "x-api-key": "sk-two", "api-key": "sk-three", "host": urlsplit(two.url).netloc}
                with open_stream(relay.url + "/v1/chat/completions", headers=headers, body=body) as answer:
                    answer.read()
            assert "sk-of" not in relay.log()
        for upstream, own in ((one, "sk-of-one"), (two, "sk-of-two")):
            (call,) = upstream.calls
            assert [value for _, value in call.headers if "sk-" in value] == [own]


@pytest.mark.parametrize("method", ["TRACE", "TRACK", "CONNECT", "PROPFIND", "get", "DEBUG"])
def test_no_method_makes_an_upstream_tell_the_relays_key(site: Site, method: str) -> None:
    """TRACE sends a request's headers back, the relay's own key among them."""
    before = len(site.upstream.calls)
    with open_stream(site.relay.url + "/v1/models", method, AUTH) as answer:
        assert isinstance(answer, RawStream)
        assert (answer.status, "TRACE" in answer.headers["allow"]) == (405, False)
        assert answer.json["error"]["code"] == "method_not_allowed"
    assert len(site.upstream.calls) == before


@pytest.mark.parametrize("protocol", ["http1", "http2"])
@pytest.mark.parametrize(
    ("dates", "told"),
    [
        ({"date": "Sat, 01 Jan 2000 00:00:00 GMT"}, b"Sat, 01 Jan 2000 00:00:00 GMT"),
        ({"Date": "Sun, 02 Jan 2000 00:00:00 GMT", "date": "theirs, again"}, b"Sun, 02 Jan 2000 00:00:00 GMT"),
        ({}, b""),
    ],
    ids=["one", "two", "none"],
)
def test_an_answer_has_one_date_and_one_that_is_passed_through_its_origins(
    site: Site, protocol: str, dates: dict[str, str], told: bytes
) -> None:
    site.upstream.on_path("GET /v1/dated", *json_response(200, {}, dates))
    site.upstream.on_path("GET /v1/refused", *json_response(404, {}, dates))
    site.upstream.on_path("GET /v1/events", *stream("data: {}\n\n", headers=dates))
    for path in ("/v1/dated", "/v1/refused", "/v1/events", "/livez", "/nowhere"):
        if protocol == "http1":
            with open_stream(site.relay.url + path, "GET", AUTH) as answer:
                head = [(name.lower().encode(), v.encode()) for name, v in answer.header_list]
        else:
            with H2(site.relay.url) as client:
                number = client.send(request(b"GET", path.encode()))
                client.wait(number)
                head = client.answers[number].headers
        (found,) = [v for name, v in head if name == b"date"]
        assert found == told if told and path.startswith("/v1/") else parsedate_to_datetime(found.decode()).year > 2000


def test_a_request_that_is_none_of_http_is_refused_with_a_date(site: Site) -> None:
    with open_stream(site.relay.url + "/livez", "GET", {"content-length": "x"}) as answer:
        (found,) = [v for name, v in answer.header_list if name.lower() == "date"]
        assert (answer.status, parsedate_to_datetime(found).year > 2000) == (400, True)
