"""A stream of an upstream that no one here wrote comes through whole, and continues on another relay."""

from __future__ import annotations

import pytest

from tests.support.processes import RelayProcess
from tests.support.sseclient import RawEvent, open_stream
from tests.support.streams import APIS, PATHS, Api, credential
from tests.upstream.conftest import Pair
from tests.upstream.formats import KEY, is_whole, normal, request
from tests.upstream.servers import Upstream

pytestmark = pytest.mark.slow


def from_upstream(server: Upstream, api: Api, body: object) -> list[RawEvent]:
    """Every event of the upstream itself: a ping without an id is one of its events, a comment is none."""
    with open_stream(server.endpoint(api), headers=credential(api, KEY), body=body) as answer:
        events = [event for event in answer if event.data is not None]
        assert (answer.status, answer.ended) == (200, "zero-chunk")
        return events


def through_relay(relay: RelayProcess, api: Api, body: object) -> tuple[list[RawEvent], dict[str, str]]:
    """Every event that is in the relay's log, without the relay's heartbeats; and the headers."""
    with open_stream(relay.url + PATHS[api], headers=credential(api, KEY), body=body) as answer:
        events = answer.events()
        assert (answer.status, answer.ended) == (200, "zero-chunk")
        return events, answer.headers


@pytest.mark.parametrize("api", APIS)
def test_upstream_answers_in_the_format_and_the_same_each_time(server: Upstream, api: Api) -> None:
    """What the comparisons below rest on."""
    for prompt in server.prompts:
        body = request(api, server.model, prompt)
        first = from_upstream(server, api, body)
        second = from_upstream(server, api, body)
        assert is_whole(api, first)
        assert [normal(event) for event in first] == [normal(event) for event in second]


@pytest.mark.parametrize("api", APIS)
def test_relayed_stream_is_the_upstreams(server: Upstream, pair: Pair, api: Api) -> None:
    for prompt in server.prompts:
        body = request(api, server.model, prompt)
        direct = from_upstream(server, api, body)
        relayed, head = through_relay(pair.first, api, body)

        assert is_whole(api, relayed)
        kept = [event for event in direct if event.event != "ping"]
        assert [normal(event) for event in relayed] == [normal(event) for event in kept]
        stream_id = head["relay-stream-id"]
        assert head["relay-resumable"] == "true"
        assert [event.id for event in relayed] == [f"{stream_id}.{n}" for n in range(1, len(relayed) + 1)]


@pytest.mark.parametrize("api", APIS)
def test_stream_continues_on_another_relay(server: Upstream, pair: Pair, api: Api) -> None:
    for prompt in server.prompts:
        relayed, head = through_relay(pair.first, api, request(api, server.model, prompt))
        middle = len(relayed) // 2
        position = {**credential(api, KEY), "last-event-id": f"{head['relay-stream-id']}.{middle}"}
        url = f"{pair.second.url}/streams/{head['relay-stream-id']}"
        with open_stream(url, "GET", position) as answer:
            rest = answer.read()
            assert (answer.status, answer.ended) == (200, "zero-chunk")
        assert rest == b"".join(event.raw for event in relayed[middle:])
