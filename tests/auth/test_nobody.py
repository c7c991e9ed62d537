"""Who owns a stream: whatever an upstream may take for a credential counts, and without any it is nobody's."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from tests.support.processes import RelayProcess
from tests.support.scripted import ScriptedUpstream, json_response, stream
from tests.support.sseclient import RawStream, open_stream
from tests.support.streams import FIRST_TOKENS, PATHS, chat

pytestmark = pytest.mark.slow

NONE = {"authorization": ""}
DONE = (chat({"content": "a"}), chat({}, "stop"), "data: [DONE]\n\n")


@pytest.fixture(scope="module", params=["theirs", "lent"])
def relay(request: pytest.FixtureRequest) -> Iterator[RelayProcess]:
    """With the clients' own credentials, and with a key that is lent to whoever comes."""
    with ScriptedUpstream() as upstream:
        upstream.on("m", *stream(*DONE))
        upstream.on("r", *stream(*FIRST_TOKENS["responses-text"].events))
        upstream.on_path("GET /v1/responses/resp_1", *json_response(401, {"error": {"message": "no"}}))
        served: dict[str, Any] = {"name": "up", "base_url": upstream.url}
        if request.param == "lent":
            served["api_key_env"] = "UP_KEY"
        settings = {"upstreams": [served], "drain": {"timeout": "0s"}, "streams": {"attach_retries": True}}
        with RelayProcess(settings, {"UP_KEY": "sk-lent"}) as process:
            yield process


def begin(relay: RelayProcess, headers: dict[str, str], query: str = "") -> RawStream:
    body = {"model": "m", "stream": True, "messages": []}
    with open_stream(f"{relay.url}{PATHS['chat']}{query}", headers=headers, body=body) as answer:
        assert answer.status == 200, answer.read()
        answer.read()
        return answer


def reach(relay: RelayProcess, stream_id: str, how: str, headers: dict[str, str], query: str = "") -> tuple[int, str]:
    """The status and code of one way to a stream."""
    url, method = f"{relay.url}/streams/{stream_id}{query}", "GET"
    body: dict[str, Any] | None = None
    match how:
        case "post":
            url, method, body = f"{relay.url}{PATHS['chat']}{query}", "POST", {}
            headers = {**headers, "last-event-id": f"{stream_id}.0"}
        case "status":
            headers = {**headers, "accept": "application/json"}
        case "stop":
            method = "DELETE"
    with open_stream(url, method, headers, body) as answer:
        return answer.status, "" if answer.status < 400 else answer.json["error"]["code"]


HOW = ("post", "get", "status", "stop")


def test_what_nobody_began_nobody_resumes_joins_or_stops(relay: RelayProcess) -> None:
    first = begin(relay, NONE)
    name = first.headers["relay-stream-id"]
    for how in HOW:
        for headers in (NONE, {}, {"authorization": "Bearer "}, {"x-api-key": ""}, {**NONE, "cookie": "a=b"}):
            assert reach(relay, name, how, headers) == (404, "stream_not_found"), (how, headers)


def test_it_is_answered_as_one_that_does_not_exist(relay: RelayProcess) -> None:
    name = begin(relay, NONE).headers["relay-stream-id"]
    nothing = name[:-4] + ("aaaa" if not name.endswith("aaaa") else "bbbb")
    told = []
    for each in (name, nothing):
        with open_stream(f"{relay.url}/streams/{each}", "GET", {**NONE, "x-request-id": "same"}) as answer:
            head = [item for item in answer.header_list if item[0] != "date"]
            told.append((answer.status, head, answer.read()))
    assert told[0] == told[1]


def test_a_ticket_opens_it(relay: RelayProcess) -> None:
    first = begin(relay, NONE)
    assert first.headers["relay-resumable"] == "true"
    with open_stream(relay.url + first.headers["relay-stream-url"], "GET", NONE) as again:
        assert again.status == 200
        assert b"[DONE]" in again.read()


def test_without_a_ticket_it_says_that_nobody_can_come_back(relay: RelayProcess) -> None:
    first = begin(relay, {**NONE, "relay-ticket": "off"})
    assert first.headers["relay-resumable"] == "false"
    detached = begin(relay, {**NONE, "relay-ticket": "off", "prefer": "respond-async"})
    assert "location" not in detached.headers


@pytest.mark.parametrize("more", [{"idempotency-key": "one"}, {"x-stainless-retry-count": "1"}])
def test_a_retry_of_nobody_s_joins_nobody_s(relay: RelayProcess, more: dict[str, str]) -> None:
    names = {begin(relay, {**NONE, **more}).headers["relay-stream-id"] for _ in range(3)}
    assert len(names) == 3


def test_a_response_of_nobody_s_is_retrieved_by_nobody(relay: RelayProcess) -> None:
    body = {"model": "r", "stream": True, "input": "a"}
    with open_stream(relay.url + PATHS["responses"], headers=NONE, body=body) as answer:
        answer.read()
    with open_stream(f"{relay.url}/v1/responses/resp_1?stream=true", "GET", NONE) as answer:
        assert answer.status == 401  # the upstream's own answer


CREDENTIALS: list[tuple[dict[str, str], str]] = [
    ({"authorization": "Bearer VALUE"}, ""),
    ({"authorization": "Basic VALUE"}, ""),
    ({"x-api-key": "VALUE"}, ""),
    ({**NONE, "x-goog-api-key": "VALUE"}, ""),
    ({**NONE, "x-portkey-config": "VALUE"}, ""),
    ({**NONE, "cf-access-client-secret": "VALUE"}, ""),
    ({**NONE, "x-auth-token": "VALUE"}, ""),
    ({**NONE, "x-unheard-of-token": "VALUE"}, ""),
    ({"authorization": "Bearer shared", "x-unheard-of-key": "VALUE"}, ""),
    (NONE, "?key=VALUE"),
    (NONE, "?api%5Fkey=VALUE"),
    (NONE, "?sig=VALUE"),
    ({"authorization": "Bearer shared"}, "?access_token=VALUE"),
]


@pytest.mark.parametrize(("headers", "query"), CREDENTIALS)
def test_whatever_may_be_a_credential_is_the_owner_s(relay: RelayProcess, headers: dict[str, str], query: str) -> None:
    mine = {name: value.replace("VALUE", "mine") for name, value in headers.items()}
    theirs = {name: value.replace("VALUE", "theirs") for name, value in headers.items()}
    name = begin(relay, mine, query.replace("VALUE", "mine")).headers["relay-stream-id"]
    for how in ("post", "get", "status"):
        assert reach(relay, name, how, mine, query.replace("VALUE", "mine")) == (200, ""), how
        for other, shown in ((theirs, query.replace("VALUE", "theirs")), (NONE, "")):
            assert reach(relay, name, how, other, shown) == (404, "stream_not_found"), how
