"""MCP through a relay (`apis: [sse]`): the answer to a call can be resumed, and goes on where its server closes the
connection; what a GET opens, and what has ids of the server's, is the server's own."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest

from tests.support.processes import RelayProcess
from tests.support.scripted import (
    Call,
    Cut,
    End,
    Gate,
    Head,
    Reset,
    ScriptedUpstream,
    Send,
    Step,
    json_response,
    stream,
)
from tests.support.sseclient import RawStream, open_stream

pytestmark = pytest.mark.slow

SESSION = {"authorization": "Bearer me", "mcp-session-id": "s-1", "accept": "application/json, text/event-stream"}
OF_SERVER = {"mcp-session-id": "s-1"}
_numbers = itertools.count()


def message(body: dict[str, Any], event_id: int | None = None) -> str:
    line = "" if event_id is None else f"id: {event_id}\r\n"
    return f"{line}event: message\r\ndata: {json.dumps({'jsonrpc': '2.0', **body})}\r\n\r\n"


def progress(n: int, event_id: int | None = None) -> str:
    return message({"method": "notifications/progress", "params": {"progress": n}}, event_id)


def result(number: int, event_id: int | None = None) -> str:
    return message({"id": number, "result": {"content": []}}, event_id)


PRIMING = "id: {}\r\ndata: \r\nretry: 20\r\n\r\n"


@dataclass(frozen=True)
class Site:
    relay: RelayProcess
    server: ScriptedUpstream

    def play(self, **scripts: tuple[Step, ...]) -> str:
        """A path, and how it answers by method."""
        path = f"/mcp/{next(_numbers)}"
        for method, steps in scripts.items():
            self.server.on_path(f"{method} {path}", *steps)
        return path

    def calls(self, path: str) -> list[Call]:
        return [call for call in self.server.calls if call.path == path]


@pytest.fixture(scope="module")
def site() -> Iterator[Site]:
    with ScriptedUpstream() as server:
        upstream = {
            "name": "mcp",
            "base_url": server.url,
            "apis": ["sse"],
            "paths": ["/mcp/*"],
            "upstream_resume": "5s",
        }
        with RelayProcess({"upstreams": [upstream], "drain": {"timeout": "0s"}}) as relay:
            yield Site(relay, server)


def call(site: Site, path: str, *ids: int, **headers: str) -> RawStream:
    requests = [{"jsonrpc": "2.0", "id": each, "method": "tools/call", "params": {}} for each in ids]
    body = requests if len(requests) > 1 else requests[0]
    return open_stream(site.relay.url + path, "POST", {**SESSION, **headers}, body=body)


def bodies(answer: RawStream) -> list[dict[str, Any]]:
    with answer:
        assert answer.status == 200, answer.read()
        events = [event for event in answer.events() if event.data]
        assert answer.ended == "zero-chunk"
        assert {event.event for event in events} == {"message"}
        return [event.json for event in events]


def numbers(found: list[dict[str, Any]]) -> list[int]:
    """The steps of progress, and the requests that are answered, below 0."""
    return [each["params"]["progress"] if "method" in each else -each["id"] for each in found]


def test_a_call_is_resumed_by_get_as_its_clients_do(site: Site) -> None:
    path = site.play(POST=stream(progress(1), Gate("resumed"), progress(2), result(7), headers=OF_SERVER))
    answer = call(site, path, 7)
    assert answer.headers["mcp-session-id"] == "s-1"
    (first,) = answer.take(1)
    again = open_stream(site.relay.url + path, "GET", {**SESSION, "last-event-id": str(first.id)})
    site.server.open("resumed")
    assert numbers(bodies(again)) == [2, -7]
    assert [each.method for each in site.calls(path)] == ["POST"]


@pytest.mark.parametrize("last", [End(), Cut()])
def test_it_goes_on_where_its_server_closes_the_connection(site: Site, last: Step) -> None:
    """By GET, after the last id of the server's, as often as it takes; the client has one stream."""
    head = Head(200, {"content-type": "text/event-stream", **OF_SERVER})
    begun = (head, Send(PRIMING.format(1).encode()), Send(progress(1, 2).encode()), last)
    path = site.play(POST=begun, GET=stream(PRIMING.format(9), progress(2, 11), result(7, 12), headers=OF_SERVER))
    answer = call(site, path, 7)
    whole = answer.events()
    ids = [event.id for event in whole]
    stream_id = answer.headers["relay-stream-id"]
    assert ids == [f"{stream_id}.{n}" for n in range(1, len(ids) + 1)]
    assert numbers([event.json for event in whole if event.data]) == [1, 2, -7]
    post, get = site.calls(path)
    assert (post.method, get.method, get.header("last-event-id"), get.body) == ("POST", "GET", "2", b"")
    assert get.header("mcp-session-id") == "s-1"


WHOLE = [PRIMING.format(1), progress(1, 2), progress(2, 3), progress(3, 4), result(7, 5)]


@pytest.mark.parametrize("last", [Cut(), Reset()])
def test_a_connection_that_its_server_loses_anywhere_is_gone_on_with(site: Site, last: Step) -> None:
    """After every event and inside every event: the client has each message once, and GET asks after the last id."""
    sent = "".join(WHOLE).encode()
    first = len(WHOLE[0])
    places = sorted({*range(first, len(sent), 13), *(len("".join(WHOLE[:n])) + d for n in range(1, 5) for d in (0, 1))})
    asked = []
    for place in places:
        came = max(n for n in range(len(WHOLE) + 1) if len("".join(WHOLE[:n])) <= place)
        begun = (Head(200, {"content-type": "text/event-stream"}), Send(sent[:place]), last)
        path = site.play(POST=begun, GET=stream(PRIMING.format(90 + came), *WHOLE[came:]))
        asked.append((path, came, call(site, path, 7)))
    for path, came, answer in asked:
        assert (came, numbers(bodies(answer))) == (came, [1, 2, 3, -7])
        post, get = site.calls(path)
        assert (post.method, get.method, get.header("last-event-id")) == ("POST", "GET", str(came))


def test_a_message_that_its_server_keeps_while_it_begins_a_connection_is_had(site: Site) -> None:
    """The official SDK's server sends what comes while it replays to nobody, and then says a position behind it."""
    begun = (Head(200, {"content-type": "text/event-stream"}), Send(progress(1, 2).encode()), Cut())
    path = site.play(POST=begun, GET=stream(PRIMING.format(4), Gate("lost-rpc")))
    answer = call(site, path, 7)
    site.server.wait_reached("lost-rpc")
    site.server.on_path(f"GET {path}", *stream(PRIMING.format(5), result(7, 3)))
    site.server.open("lost-rpc")
    assert numbers(bodies(answer)) == [1, -7]
    assert [each.header("last-event-id") for each in site.calls(path)[1:]] == ["2", "2"]


def test_a_server_that_keeps_nothing_is_not_asked_again(site: Site) -> None:
    path = site.play(POST=(Head(200, {"content-type": "text/event-stream"}), Send(progress(1).encode()), Cut()))
    *before, error = bodies(call(site, path, 7))
    assert numbers(before) == [1]
    assert (error["id"], error["error"]["data"]) == (7, {"relay": "upstream_disconnected"})
    assert len(site.calls(path)) == 1


def test_a_server_that_refuses_is_not_asked_for_long(site: Site) -> None:
    head = Head(200, {"content-type": "text/event-stream"})
    path = site.play(POST=(head, Send(progress(1, 2).encode()), Cut()), GET=json_response(405, {"error": "no GET"}))
    *_, error = bodies(call(site, path, 7))
    assert error["error"]["data"] == {"relay": "upstream_disconnected"}
    assert len(site.calls(path)) == 2


def test_every_request_of_a_batch_is_to_be_answered(site: Site) -> None:
    path = site.play(POST=(Head(200, {"content-type": "text/event-stream"}), Send(result(7).encode()), Cut()))
    found = bodies(call(site, path, 7, 8))
    assert numbers(found) == [-7, -8]
    assert "error" in found[1]


def test_a_stop_answers_the_request(site: Site) -> None:
    path = site.play(POST=stream(progress(1), Gate("never-rpc")))
    answer = call(site, path, 7)
    answer.events(1)
    address = f"{site.relay.url}/streams/{answer.headers['relay-stream-id']}"
    with open_stream(address, "DELETE", SESSION) as stopped:
        assert stopped.status == 204
    (error,) = bodies(answer)
    assert (error["id"], error["error"]["data"]) == (7, {"relay": "stopped"})


def test_what_a_get_opens_is_the_servers_own(site: Site) -> None:
    """Its ids, its hints and its end go to its client as they are; a position of the server's goes to the server."""
    path = site.play(GET=stream(PRIMING.format(3), progress(1, 4)))
    headers = {**SESSION, "accept": "text/event-stream", "last-event-id": "theirs-2"}
    with open_stream(site.relay.url + path, "GET", headers) as answer:
        assert answer.status == 200
        assert "relay-stream-id" not in answer.headers
        assert answer.read().decode() == PRIMING.format(3) + progress(1, 4)
    (asked,) = site.calls(path)
    assert asked.header("last-event-id") == "theirs-2"


def test_a_whole_answer_is_the_servers_own(site: Site) -> None:
    path = site.play(POST=json_response(200, {"jsonrpc": "2.0", "id": 7, "result": {}}, OF_SERVER))
    with call(site, path, 7) as answer:
        assert (answer.status, answer.json["id"], answer.headers["mcp-session-id"]) == (200, 7, "s-1")
    path = site.play(DELETE=json_response(200, {}))
    with open_stream(site.relay.url + path, "DELETE", SESSION) as answer:
        assert answer.status == 200
