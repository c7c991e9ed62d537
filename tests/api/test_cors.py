"""Pages of the origins in the settings may call the relay, and no others."""

from __future__ import annotations

from typing import Any

import pytest

from tests.conftest import Relays
from tests.support.scripted import ScriptedUpstream, json_response, stream
from tests.support.sseclient import open_stream
from tests.support.streams import PATHS, chat, data

pytestmark = pytest.mark.slow

APP = "https://app.example"
KEY = {"authorization": "Bearer sk-one"}
BODY = {"model": "m", "stream": True, "messages": []}
STREAM = stream(chat({"content": "a"}), chat({}, "stop"), data("[DONE]"))
PREFLIGHT = {
    "access-control-request-method": "POST",
    "access-control-request-headers": "authorization,content-type,last-event-id",
}


def config(upstream: ScriptedUpstream, *origins: str) -> dict[str, Any]:
    return {"upstreams": [{"name": "up", "base_url": upstream.url}], "cors": {"origins": list(origins)}}


@pytest.mark.parametrize("allowed", [APP, "*"])
def test_a_page_that_is_let_in_sees_the_stream_and_its_headers(
    upstream: ScriptedUpstream, relays: Relays, allowed: str
) -> None:
    upstream.on("m", *STREAM)
    relay = relays.start(config(upstream, allowed))
    with open_stream(relay.url + PATHS["chat"], headers={**KEY, "origin": APP}, body=BODY) as answer:
        assert answer.headers["access-control-allow-origin"] == APP
        assert "relay-stream-url" in answer.headers["access-control-expose-headers"]
        assert answer.headers["vary"] == "origin"
        assert len(answer.events()) == 3
    assert upstream.calls[0].header("origin") is None
    with open_stream(relay.url + PATHS["chat"], "OPTIONS", {"origin": APP, **PREFLIGHT}) as answer:
        assert answer.status == 204
        assert answer.headers["access-control-allow-headers"] == PREFLIGHT["access-control-request-headers"]
        assert answer.headers["access-control-allow-methods"] == "GET, POST, DELETE"
    with open_stream(f"{relay.url}/streams/x", "GET", {**KEY, "origin": APP}) as refused:
        assert refused.status == 400
        assert refused.headers["access-control-allow-origin"] == APP
    assert len(upstream.calls) == 1


def test_an_upstream_s_own_say_does_not_stand_beside_it(upstream: ScriptedUpstream, relays: Relays) -> None:
    theirs = {"access-control-allow-origin": "https://elsewhere.example", "vary": "accept"}
    upstream.on_path("GET /v1/models", *json_response(200, {"data": []}, theirs))
    relay = relays.start(config(upstream, APP))
    with open_stream(f"{relay.url}/v1/models", "GET", {"origin": APP}) as answer:
        found = [value for name, value in answer.header_list if name.lower() == "access-control-allow-origin"]
        assert found == [APP]


@pytest.mark.parametrize("origins", [(), (APP,)])
@pytest.mark.parametrize(
    "origin", ["https://evil.example", "https://app.example.evil.example", "http://app.example", "null"]
)
def test_every_other_page_is_told_nothing(
    upstream: ScriptedUpstream, relays: Relays, origins: tuple[str, ...], origin: str
) -> None:
    upstream.on("m", *STREAM)
    relay = relays.start(config(upstream, *origins))
    with open_stream(relay.url + PATHS["chat"], headers={**KEY, "origin": origin}, body=BODY) as answer:
        assert not [name for name in answer.headers if name.startswith("access-control-")]
        answer.read()
    with open_stream(f"{relay.url}/streams/x", "OPTIONS", {"origin": origin, **PREFLIGHT}) as answer:
        assert answer.status != 204
        assert not [name for name in answer.headers if name.startswith("access-control-")]
