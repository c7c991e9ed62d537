"""A page in a browser on the same machine spends no key that is lent to whoever comes, and reads nothing."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Any

import pytest

from relay import server
from relay.config import load
from tests.security.wire import H2
from tests.support.processes import RelayProcess
from tests.support.scripted import ScriptedUpstream, json_response, stream
from tests.support.site import Site
from tests.support.sseclient import open_stream

pytestmark = pytest.mark.slow

FRIEND = "http://friend.example"
BODY = {"model": "m", "stream": True, "messages": []}
Headers = dict[str, str]


def settings(upstream: ScriptedUpstream, **more: Any) -> dict[str, Any]:
    served = {"name": "up", "base_url": upstream.url, "api_key_env": "UP_KEY"}
    return {"upstreams": [served], "cors": {"origins": [FRIEND]}, "drain": {"timeout": "0s"}, **more}


@pytest.fixture(scope="module")
def site() -> Iterator[Site]:
    with ScriptedUpstream() as upstream:
        upstream.on("m", *stream("data: {}\n\n", "data: [DONE]\n\n"))
        for path in ("GET /v1/models", "POST /v1/files", "POST /v1/embeddings"):
            upstream.on_path(path, *json_response(200, {}))
        with RelayProcess(settings(upstream), {"UP_KEY": "sk-lent"}) as relay:
            yield Site(upstream, relay)


def status(
    site: Site, headers: Headers, *, path: str = "/v1/chat/completions", method: str = "POST"
) -> tuple[int, str]:
    with open_stream(site.relay.url + path, method, headers, BODY if method == "POST" else None) as answer:
        return answer.status, "" if answer.status < 400 else answer.json["error"]["code"]


ATTACKS: dict[str, tuple[Headers, tuple[int, str]]] = {
    "a post without a question": ({"origin": "http://evil.example", "content-type": "text/plain"}, (403, "origin")),
    "the same of a browser that says less": ({"content-type": "text/plain"}, (415, "media")),
    "a form": ({"content-type": "application/x-www-form-urlencoded"}, (415, "media")),
    "a blob without a kind": ({"content-type": ""}, (415, "media")),
    "a form with files": ({"content-type": "multipart/form-data; boundary=a"}, (415, "media")),
    "a page of another site": ({"sec-fetch-site": "cross-site"}, (403, "origin")),
    "a page of another port": ({"sec-fetch-site": "same-site", "origin": "http://localhost:3000"}, (403, "origin")),
    "a page of another port, of an older browser": ({"origin": "http://127.0.0.1:1"}, (403, "origin")),
    "a sandboxed page": ({"origin": "null"}, (403, "origin")),
    "a name that points here": ({"host": "evil.example:8080"}, (421, "host")),
    "the same, of the same origin": (
        {"host": "evil.example", "origin": "http://evil.example", "sec-fetch-site": "same-origin"},
        (421, "host"),
    ),
    "the same, of a friend's": ({"host": "evil.example", "origin": FRIEND}, (421, "host")),
}


@pytest.mark.parametrize("attack", ATTACKS)
def test_no_page_of_somebody_else_s_spends_the_key(site: Site, attack: str) -> None:
    headers, (refused, word) = ATTACKS[attack]
    before = len(site.upstream.calls)
    for path in ("/v1/chat/completions", "/v1/messages", "/v1/responses", "/v1/embeddings"):
        found = status(site, headers, path=path)
        assert found[0] == refused, (path, found)
        assert word in found[1]
    if word != "media":
        for path in ("/v1/models", "/v1/files", "/streams/st_" + "a" * 22):
            assert status(site, headers, path=path, method="GET")[0] == refused
    assert len(site.upstream.calls) == before


def test_who_may_goes_on_as_before(site: Site) -> None:
    own = site.relay.url.removeprefix("http://")
    welcome: list[Headers] = [
        {},
        {"origin": site.relay.url},
        {"origin": site.relay.url, "sec-fetch-site": "same-origin"},
        {"origin": FRIEND, "sec-fetch-site": "cross-site"},
        {"host": f"localhost:{own.partition(':')[2]}"},
        {"host": "localhost"},
        {"host": "[::1]:80"},
        {"content-type": "application/json; charset=utf-8"},
    ]
    for headers in welcome:
        assert status(site, headers) == (200, ""), headers
    assert status(site, {"content-type": "multipart/form-data; boundary=a"}, path="/v1/files") == (200, "")
    assert status(site, {"sec-fetch-site": "none"}, path="/v1/models", method="GET") == (200, "")


@pytest.mark.parametrize(("authority", "expected"), [(b"localhost:8080", b"200"), (b"evil.example", b"421")])
def test_the_same_over_http2(site: Site, authority: bytes, expected: bytes) -> None:
    pseudo = [(b":method", b"GET"), (b":scheme", b"http"), (b":authority", authority), (b":path", b"/v1/models")]
    with H2(site.relay.url) as client:
        number = client.send(pseudo)
        assert client.wait(number)
        assert dict(client.answers[number].headers)[b":status"] == expected


def test_a_resume_needs_no_kind_for_a_body_that_nobody_reads(site: Site) -> None:
    with open_stream(site.relay.url + "/v1/chat/completions", body=BODY) as first:
        first.read()
    headers = {"last-event-id": f"{first.headers['relay-stream-id']}.0", "content-type": "text/plain"}
    assert status(site, headers) == (200, "")


def test_health_is_told_under_every_name(site: Site) -> None:
    with open_stream(site.relay.url + "/livez", "GET", {"host": "10.1.2.3:8080"}) as answer:
        assert answer.status == 200


def test_names_that_are_set_are_all_that_there_are(upstream: ScriptedUpstream) -> None:
    upstream.on("m", *stream("data: {}\n\n", "data: [DONE]\n\n"))
    with RelayProcess(settings(upstream, hosts=["relay.example", "*.inside"]), {"UP_KEY": "sk-lent"}) as relay:
        found = Site(upstream, relay)
        for host, expected in (
            ("relay.example:443", 200),
            ("a.inside", 200),
            ("localhost", 421),
            ("evil.example", 421),
        ):
            assert status(found, {"host": host})[0] == expected


def test_where_clients_bring_their_own_credentials_nothing_is_asked(upstream: ScriptedUpstream) -> None:
    """What a page does not know it cannot send."""
    upstream.on("m", *stream("data: {}\n\n", "data: [DONE]\n\n"))
    config = settings(upstream)
    del config["upstreams"][0]["api_key_env"]
    with RelayProcess(config) as relay:
        found = Site(upstream, relay)
        for headers in ({"host": "any.example"}, {"origin": "http://any.example"}, {"content-type": "text/plain"}):
            assert status(found, headers) == (200, "")


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        ({}, 200),
        ({"host": "localhost:9464"}, 200),
        ({"host": "evil.example:9464"}, 421),
        ({"host": "evil.example", "origin": "http://evil.example", "sec-fetch-site": "same-origin"}, 421),
        ({"origin": "http://evil.example"}, 403),
        ({"origin": FRIEND}, 403),
        ({"sec-fetch-site": "cross-site", "sec-fetch-mode": "no-cors"}, 403),
        ({"sec-fetch-site": "cross-site", "sec-fetch-mode": "navigate"}, 200),
    ],
)
def test_nor_do_pages_read_the_metrics(site: Site, headers: Headers, expected: int) -> None:
    with open_stream(f"{site.relay.metrics_url}/metrics", "GET", headers) as answer:
        assert answer.status == expected
        assert (b"relay_streams" in answer.read()) == (expected == 200)


@pytest.mark.parametrize("bind", ["127.0.0.1:1", "[::1]:1", "localhost:1", "0.0.0.0:1"])
def test_the_start_says_that_a_key_is_lent_on_loopback_too(bind: str, caplog: pytest.LogCaptureFixture) -> None:
    served = {"name": "up", "base_url": "http://up", "api_key_env": "HOME"}
    with caplog.at_level(logging.WARNING):
        server._warn(load(flags={"bind": bind, "upstreams": [served]}, environ={}))
    assert "spends the keys of the upstreams up" in caplog.text
    assert bind in caplog.text
