"""An upstream is one of the settings, whatever a path, a header or a body says: a listener beside it hears nothing."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any
from urllib.parse import unquote

import pytest

from tests.security.wire import H2, Bait, request, say
from tests.support.processes import RelayProcess
from tests.support.scripted import Head, ScriptedUpstream, Send, json_response, stream
from tests.support.site import Site
from tests.support.sseclient import open_stream

KEY = "sk-of-the-relay"
END = ('data: {"choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}\n\n', "data: [DONE]\n\n")


@dataclass(frozen=True)
class Trap(Site):
    bait: Bait

    def untouched(self, before: int) -> None:
        """Nothing came to the listener, and to the upstream only what is its own."""
        assert self.bait.heard == []
        for call in self.upstream.calls[before:]:
            assert unquote(call.path).startswith(("/v1/", "/base/v1/")), call.path
            assert call.header("host") == self.upstream.url.removeprefix("http://")


@pytest.fixture(scope="module")
def trap() -> Iterator[Trap]:
    """A relay with a key of its own: whoever it asks would be told it."""
    with ScriptedUpstream() as upstream, Bait() as bait:
        upstream.on_path("GET /v1/models", *json_response(200, {"data": []}))
        config: dict[str, Any] = {
            "upstreams": [
                {"name": "plain", "base_url": upstream.url, "apis": ["chat"], "api_key_env": "UPSTREAM_KEY"},
                {"name": "base", "base_url": f"{upstream.url}/base", "apis": ["messages"], "models": ["base-*"]},
            ]
        }
        config |= {"hosts": ["*"], "cors": {"origins": ["*"]}}  # else the guard of lent keys is all that is asked
        with RelayProcess(config, {"UPSTREAM_KEY": KEY}) as relay:
            yield Trap(upstream, relay, bait)


# In these, HERE is the listener's host and port.
TARGETS = {
    "userinfo behind an encoded slash": "%2fv1%2f@HERE/v1/models",
    "the same in capitals": "%2Fv1%2F@HERE/v1/models",
    "userinfo for messages": "%2fv1%2fmessages%2f@HERE/v1/models",
    "port behind an encoded slash": "%2fv1/models",
    "encoded version": "/%76%31/@HERE/models",
    "at": "@HERE/v1/models",
    "at with a colon": ":@HERE/v1/models",
    "at in the path": "/v1/@HERE/models",
    "at, encoded": "/v1/%40HERE/models",
    "dot host": ".HERE/v1/models",
    "absolute form": "http://HERE/v1/models",
    "absolute form with userinfo": "http://relay.test@HERE/v1/models",
    "https": "https://HERE/v1/models",
    "two slashes": "//HERE/v1/models",
    "three slashes": "///HERE/v1/models",
    "slash and backslash": "/\\HERE/v1/models",
    "two backslashes": "\\\\HERE/v1/models",
    "two slashes, encoded": "/%2fHERE/v1/models",
    "slashes within": "/v1//HERE/models",
    "absolute form within": "/v1/http://HERE/models",
    "dots": "/v1/../HERE",
    "dots, encoded": "/v1/%2e%2e/HERE",
    "dots, half encoded": "/v1/.%2e/HERE",
    "dots, encoded slash": "/v1/..%2fHERE",
    "dots, backslash": "/v1/..\\HERE",
    "dots, encoded backslash": "/v1/..%5cHERE",
    "dots with a parameter": "/v1/..;/HERE",
    "dots with a long parameter": "/v1/..;a=b/HERE",
    "dots with an encoded parameter": "/v1/..%3bx/HERE",
    "dots at the end": "/v1/models/..",
    "one dot": "/v1/./models",
    "fragment": "/v1/models#@HERE/",
    "fragment in the query": "/v1/models?a#@HERE/",
    "question mark and at": "/v1/models?@HERE/",
    "a whole address in the query": "/v1/models?url=http://HERE/&base_url=http://HERE/",
    "asterisk": "*",
    "authority form": "HERE",
    "no slash": "v1/models",
    "LF, encoded": "/v1/models%0d%0ahost:HERE",
    "NUL, encoded": "/v1/models%00@HERE",
}
MAY_PASS = {
    "encoded version",
    "at in the path",
    "at, encoded",
    "question mark and at",
    "a whole address in the query",
    "NUL, encoded",
}


def asked(case: str, method: bytes = b"GET") -> int:
    """How often upstreams are: the list of models is of both."""
    listed = TARGETS[case].startswith("/v1/models?") and method == b"GET"
    return 2 if listed else int(case in MAY_PASS)


def target_of(trap: Trap, case: str) -> bytes:
    return TARGETS[case].replace("HERE", f"127.0.0.1:{trap.bait.port}").encode()


@pytest.mark.parametrize("case", TARGETS)
@pytest.mark.parametrize("method", [b"GET", b"POST"])
def test_no_path_names_another_host(trap: Trap, method: bytes, case: str) -> None:
    before = len(trap.upstream.calls)
    head = b"%b %b HTTP/1.1\r\nhost: x\r\nconnection: close\r\nx-api-key: sk-client\r\n" % (
        method,
        target_of(trap, case),
    )
    body = b'{"model": "base-1"}' if method == b"POST" else b""
    more = b"content-type: application/json\r\ncontent-length: %d\r\n" % len(body) if body else b""
    heard = say(trap.relay.url, head + more + b"\r\n" + body)
    assert len(heard.statuses) == 1
    trap.untouched(before)
    if case in MAY_PASS:
        calls = trap.upstream.calls[before:]
        assert len(calls) == asked(case, method)
        assert heard.statuses[0] in (200, 404)
        whole = target_of(trap, case).decode()
        for call in calls:  # of the merged list the relay asks for itself
            assert whole in call.path or len(calls) == 2, "it was changed on the way"
    else:
        assert (heard.statuses[0] in (400, 404), len(trap.upstream.calls)) == (True, before)


@pytest.mark.parametrize("case", TARGETS)
def test_nor_does_one_over_http2(trap: Trap, case: str) -> None:
    before = len(trap.upstream.calls)
    with H2(trap.relay.url) as client:
        number = client.send(request(b"GET", target_of(trap, case), (b"x-api-key", b"sk-client")))
        assert client.wait(number)
    trap.untouched(before)
    assert len(trap.upstream.calls) == before + asked(case) * (case in MAY_PASS)


def test_nor_do_authority_and_scheme(trap: Trap) -> None:
    before = len(trap.upstream.calls)
    here = b"127.0.0.1:%d" % trap.bait.port
    for name, value in ((b":authority", here), (b":scheme", b"https"), (b":scheme", b"http://%b/x" % here)):
        head = [(k, value if k == name else v) for k, v in request()]
        with H2(trap.relay.url) as client:
            assert client.wait(client.send(head))
    trap.untouched(before)


@pytest.mark.parametrize(
    "name",
    [
        *("host", "forwarded", "x-forwarded-host", "x-forwarded-server", "x-forwarded-proto", "x-original-url"),
        *("x-rewrite-url", "x-original-uri", "x-original-host", "x-host", "x-http-host-override", "x-real-ip"),
        *("x-base-url", "base-url", "x-upstream", "x-target", "x-openai-base-url", "x-portkey-custom-host", "referer"),
        *("origin", "via", "proxy", "x-envoy-original-path", "x-accel-redirect", "relay-upstream", "location"),
    ],
)
@pytest.mark.parametrize("streamed", [True, False])
def test_no_header_names_another_host(trap: Trap, name: str, streamed: bool) -> None:
    before = len(trap.upstream.calls)
    model = f"header-{name}-{streamed}"
    trap.upstream.on(model, *(stream(*END) if streamed else json_response(200, {})))
    here = f"127.0.0.1:{trap.bait.port}"
    for value in (here, f"http://{here}/v1"):
        body = {"model": model, "stream": streamed, "messages": []}
        with open_stream(trap.relay.url + "/v1/chat/completions", headers={name: value}, body=body) as answer:
            assert answer.status == 200
            answer.read()
    trap.untouched(before)
    assert len(trap.upstream.calls) == before + 2


@pytest.mark.parametrize("streamed", [True, False])
def test_no_body_names_another_host(trap: Trap, streamed: bool) -> None:
    """What libraries that relays are built with take out of a request."""
    before = len(trap.upstream.calls)
    here = f"http://127.0.0.1:{trap.bait.port}/v1"
    trap.upstream.on("body", *(stream(*END) if streamed else json_response(200, {})))
    names = (
        "base_url",
        "api_base",
        "apiBase",
        "host",
        "url",
        "endpoint",
        "proxy",
        "upstream",
        "callback",
        "webhook_url",
    )
    body: dict[str, Any] = {"model": "body", "stream": streamed, "messages": [], **dict.fromkeys(names, here)}
    body["extra_body"] = dict.fromkeys(names, here)
    with open_stream(trap.relay.url + "/v1/chat/completions", body=body) as answer:
        assert answer.status == 200
        answer.read()
    trap.untouched(before)
    (call,) = trap.upstream.calls[before:]
    assert call.json == body


@pytest.mark.parametrize("model", ["http://HERE/v1", "../HERE", "@HERE", "base-1/../../HERE", "base-1@HERE", "//HERE"])
def test_no_model_names_another_host(trap: Trap, model: str) -> None:
    before = len(trap.upstream.calls)
    body = {"model": model.replace("HERE", f"127.0.0.1:{trap.bait.port}"), "messages": []}
    for path in ("/v1/chat/completions", "/v1/messages", "/v1/embeddings"):
        with open_stream(trap.relay.url + path, body=body) as answer:
            assert answer.status == 404  # of the relay, or the script's
    trap.untouched(before)


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
@pytest.mark.parametrize("way", ["stream", "answer", "path"])
def test_redirects_are_not_followed(trap: Trap, status: int, way: str) -> None:
    """Neither the request nor its credential goes where an upstream says."""
    before = len(trap.upstream.calls)
    location = f"http://127.0.0.1:{trap.bait.port}/v1/elsewhere"
    script = (Head(status, {"location": location}, "length"), Send(b""))
    trap.upstream.on(f"redirect-{status}", *script)
    trap.upstream.on_path("GET /v1/redirect", *script)
    if way == "path":
        answer = open_stream(trap.relay.url + "/v1/redirect", "GET")
    else:
        body = {"model": f"redirect-{status}", "stream": way == "stream", "messages": []}
        answer = open_stream(trap.relay.url + "/v1/chat/completions", body=body)
    with answer:
        assert answer.status == (502 if way == "stream" else status)
        answer.read()
    trap.untouched(before)
    assert len(trap.upstream.calls) == before + 1


def test_no_proxy_of_the_environment_comes_between_where_it_is_off(trap: Trap) -> None:
    here = f"http://127.0.0.1:{trap.bait.port}"
    names = ("http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY")
    config = {"upstreams": [{"name": "plain", "base_url": trap.upstream.url, "proxy": "off"}]}
    with RelayProcess(config, {**dict.fromkeys(names, here), "no_proxy": "", "NO_PROXY": ""}) as relay:
        before = len(trap.upstream.calls)
        with open_stream(relay.url + "/v1/models", "GET") as answer:
            assert answer.status == 200
        trap.untouched(before)
