"""Every answer has one date (RFC 9110, section 6.6.1): its origin's where it is passed through, else the relay's."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
from email.utils import parsedate_to_datetime

import pytest

from tests.security.wire import AUTH, H2, request
from tests.support.processes import RelayProcess
from tests.support.scripted import Cut, ScriptedUpstream, json_response, stream
from tests.support.sseclient import open_stream
from tests.support.streams import APIS, DONE, PATHS, Api, answer, chat, credential

OLD = "Thu, 09 Oct 2025 08:53:20 GMT"
TOKEN = AUTH["authorization"].removeprefix("Bearer ")


@dataclass
class Site:
    relay: RelayProcess
    stream: str
    failed: str

    def dates(self, protocol: str, method: str, target: str, body: object, headers: dict[str, str]) -> list[str]:
        """Those of an answer."""
        payload = None if body is None else json.dumps(body).encode()
        if protocol == "http1":
            with open_stream(self.relay.url + target, method, headers, payload) as found:
                found.read()
                return [value for name, value in found.header_list if name.lower() == "date"]
        more = [(name.encode(), value.encode()) for name, value in headers.items() if name not in AUTH]
        with H2(self.relay.url) as client:
            number = client.send(request(method.encode(), target.encode(), *more), payload)
            client.wait(number)
            return [value.decode() for name, value in client.answers[number].headers if name == b"date"]


@pytest.fixture(scope="module")
def site() -> Iterator[Site]:
    """Everything that the upstream says is old."""
    old = {"date": OLD}
    with ScriptedUpstream() as upstream:
        for api in APIS:
            upstream.on(api, *stream(*answer(api, ["a", "b"]).events, headers=old))
        upstream.on("failed", *stream(chat({"content": "a"}), headers=old)[:-1], Cut())
        upstream.on("refused", *json_response(429, {"error": {"message": "m"}}, old))
        upstream.on("plain", *json_response(200, {"id": "x"}, old))
        upstream.on_path("GET /v1/files", *json_response(200, {"data": []}, old))
        upstream.on_path("GET /v1/events", *stream(chat({"content": "a"}), DONE, headers=old))
        with RelayProcess({"upstreams": [{"name": "up", "base_url": upstream.url}]}) as relay:
            names = []
            for model in ("chat", "failed"):
                body = asked(model)
                with open_stream(relay.url + PATHS["chat"], headers=credential("chat", TOKEN), body=body) as found:
                    found.read()
                    names.append(found.headers["relay-stream-id"])
            yield Site(relay, *names)


def asked(model: str, *, streamed: bool = True) -> dict[str, object]:
    return {"model": model, "stream": streamed, "messages": [], "input": "x", "max_tokens": 9}


JSON = {"accept": "application/json"}
OWN: dict[str, tuple[str, str, object, dict[str, str]]] = {
    "a resume": ("GET", "/streams/{stream}", None, {}),
    "nothing missing": ("POST", PATHS["chat"], {}, {"last-event-id": "{stream}.5"}),
    "how it stands": ("GET", "/streams/{stream}", None, JSON),
    "its answer": ("GET", "/streams/{stream}?content=true", None, JSON),
    "an answer that failed": ("GET", "/streams/{failed}?content=true", None, JSON),
    "a stop": ("DELETE", "/streams/{stream}", None, {}),
    "a detached generation": ("POST", PATHS["chat"], asked("chat"), {"prefer": "respond-async"}),
    "a stream that fails": ("POST", PATHS["chat"], asked("failed"), {}),
    "no such stream": ("GET", "/streams/st_" + "A" * 22, None, {}),
    "a refusal of the relay's": ("POST", PATHS["chat"], {}, {}),
    "a probe": ("GET", "/livez", None, {}),
}
PASSED: dict[str, tuple[str, str, object]] = {
    "a refusal": ("POST", PATHS["chat"], asked("refused")),
    "no stream": ("POST", PATHS["chat"], asked("plain", streamed=False)),
    "a path": ("GET", "/v1/files", None),
    "events": ("GET", "/v1/events", None),
}
each_protocol = pytest.mark.parametrize("protocol", ["http1", "http2"])


def is_now(date: str) -> bool:
    return abs(parsedate_to_datetime(date).timestamp() - time.time()) < 60


@each_protocol
@pytest.mark.parametrize("api", APIS)
def test_a_stream_has_the_relay_s(site: Site, protocol: str, api: Api) -> None:
    (date,) = site.dates(protocol, "POST", PATHS[api], asked(api), credential(api, TOKEN))
    assert is_now(date)


@each_protocol
@pytest.mark.parametrize("name", OWN)
def test_what_the_relay_answers_itself_has_its_own(site: Site, protocol: str, name: str) -> None:
    method, target, body, more = OWN[name]
    ids = {"stream": site.stream, "failed": site.failed}
    headers = {key: value.format(**ids) for key, value in (credential("chat", TOKEN) | more).items()}
    (date,) = site.dates(protocol, method, target.format(**ids), body, headers)
    assert is_now(date)


@each_protocol
@pytest.mark.parametrize("name", PASSED)
def test_what_is_passed_through_has_its_origin_s(site: Site, protocol: str, name: str) -> None:
    method, target, body = PASSED[name]
    assert site.dates(protocol, method, target, body, credential("chat", TOKEN)) == [OLD]
