"""Every form of store that a URL can name, with two relay processes on it: stream on one, resume on the other."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from relay.store.link import StoreDown
from relay.store.topology import connect
from tests.conftest import Relays
from tests.support.processes import RelayProcess
from tests.support.scripted import Gate, ScriptedUpstream, stream
from tests.support.sseclient import RawEvent, RawStream, open_stream
from tests.support.stores import (
    ClusterStore,
    SentinelStore,
    Store,
    valkey_cluster,
    valkey_sentinel,
    valkey_server,
    valkey_tls,
)

pytestmark = pytest.mark.slow

PATH = "/v1/chat/completions"
AUTH = {"authorization": "Bearer sk-one"}

FORMS: dict[str, Callable[[Path], AbstractContextManager[Store]]] = {
    "standalone": valkey_server,
    "unix": partial(valkey_server, unix=True),
    "tls": valkey_tls,
    "sentinel": valkey_sentinel,
    "cluster": valkey_cluster,
}


def delta(n: int) -> str:
    return f'data: {{"id":"c","choices":[{{"index":0,"delta":{{"content":"{n} "}}}}]}}\n\n'


FINISH = 'data: {"id":"c","choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}\n\n'
DONE = "data: [DONE]\n\n"


@pytest.fixture(scope="module", params=FORMS)
def store(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    with FORMS[request.param](tmp_path_factory.mktemp(str(request.param))) as made:
        yield made


def settings(store: Store, upstream: ScriptedUpstream, **streams: str) -> dict[str, Any]:
    return {
        "store": {"url": store.url},
        "upstreams": [{"name": "scripted", "base_url": upstream.url}],
        "streams": {"heartbeat": "1s", **streams},
    }


def pair(relays: Relays, store: Store, upstream: ScriptedUpstream, **streams: str) -> list[RelayProcess]:
    return [relays.start(settings(store, upstream, **streams)) for _ in range(2)]


def post(relay: RelayProcess, model: str, last_event_id: str | None = None) -> RawStream:
    headers = {**AUTH, "last-event-id": last_event_id} if last_event_id else AUTH
    return open_stream(f"{relay.url}{PATH}", headers=headers, body={"model": model, "stream": True, "messages": []})


def texts(events: list[RawEvent]) -> list[str]:
    """The bodies of the events as the upstream had written them."""
    return [f"data: {event.data}\n\n" for event in events]


def whole(events: list[RawEvent], sent: list[str]) -> None:
    """All that was sent, once and in order, under ids without a gap."""
    assert texts(events) == sent
    streams = {str(event.id).rpartition(".")[0] for event in events}
    assert len(streams) == 1
    assert [int(str(event.id).rpartition(".")[2]) for event in events] == list(range(1, len(sent) + 1))


def test_a_live_stream_goes_on_at_the_other_replica(store: Store, upstream: ScriptedUpstream, relays: Relays) -> None:
    one, two = pair(relays, store, upstream)
    sent = [*(delta(n) for n in range(1, 7)), FINISH, DONE]
    upstream.on("m", *stream(*sent[:3], Gate("go on"), *sent[3:]))
    with post(one, "m") as first:
        assert first.status == 200
        assert first.headers["relay-resumable"] == "true"
        seen = first.events(3)
        with post(two, "m", seen[1].id) as second:
            assert second.status == 200
            assert second.headers["relay-stream-id"] == first.headers["relay-stream-id"]
            again = second.events(1)
            assert again == seen[2:]
            upstream.open("go on")
            whole(seen + first.events(), sent)
            whole(seen[:2] + again + second.events(), sent)
            assert (first.ended, second.ended) == ("zero-chunk", "zero-chunk")
    assert len(upstream.calls) == 1


def test_a_broken_connection_continues_at_the_other_replica(
    store: Store, upstream: ScriptedUpstream, relays: Relays
) -> None:
    one, two = pair(relays, store, upstream)
    sent = [*(delta(n) for n in range(1, 5)), FINISH, DONE]
    upstream.on("m", *stream(*sent[:2], Gate("cut"), *sent[2:]))
    with post(one, "m") as first:
        seen = first.events(2)
        first.close(reset=True)
    with post(two, "m", seen[-1].id) as second:
        upstream.open("cut")
        whole(seen + second.events(), sent)
    assert len(upstream.calls) == 1


def test_a_finished_stream_is_read_from_every_place_at_either(
    store: Store, upstream: ScriptedUpstream, relays: Relays
) -> None:
    one, two = pair(relays, store, upstream)
    sent = [*(delta(n) for n in range(1, 5)), FINISH, DONE]
    upstream.on("m", *stream(*sent))
    with post(one, "m") as first:
        events = first.events()
    whole(events, sent)
    name = first.headers["relay-stream-id"]
    for relay in (two, one):
        for n in range(len(sent)):
            with post(relay, "m", f"{name}.{n}") as resumed:
                assert resumed.status == 200
                assert resumed.events() == events[n:]
        with post(relay, "m", f"{name}.{len(sent)}") as at_the_end:
            assert at_the_end.status == 204
        with open_stream(f"{relay.url}/streams/{name}", "GET", AUTH) as read:
            assert read.events() == events
    assert len(upstream.calls) == 1


def test_a_killed_producer_ends_the_stream_with_an_error(
    store: Store, upstream: ScriptedUpstream, relays: Relays
) -> None:
    one, two = pair(relays, store, upstream, lease="2s")
    sent = [delta(1), delta(2)]
    upstream.on("m", *stream(*sent, Gate("never")))
    with post(one, "m") as first:
        seen = first.events(2)
        with post(two, "m", seen[0].id) as second:
            assert second.events(1) == seen[1:]
            one.kill()
            error, done = second.events()
            assert error.json["error"]["code"] == "producer_lost"
            assert done.data == "[DONE]"
            assert [error.id, done.id] == [None, f"{first.headers['relay-stream-id']}.2e"]
            assert second.ended == "zero-chunk"
    with post(two, "m", seen[0].id) as later:
        assert later.events() == [seen[1], error, done]
    assert len(upstream.calls) == 1


def test_a_failover_in_mid_stream_costs_nothing(tmp_path: Path, upstream: ScriptedUpstream, relays: Relays) -> None:
    with valkey_sentinel(tmp_path) as store:
        assert isinstance(store, SentinelStore)
        one, two = pair(relays, store, upstream)
        sent = [*(delta(n) for n in range(1, 40)), FINISH, DONE]
        upstream.on("m", *stream(*sent[:5], Gate("failover"), *sent[5:20], Gate("settled"), *sent[20:]))
        with post(one, "m") as first:
            seen = first.events(5)
            with post(two, "m", seen[2].id) as second:
                again = second.events(2)
                before = store.primary()
                store.failover()
                assert store.primary() is not before
                upstream.open("failover")  # these may be taken by the old primary, which then forgets them
                seen += first.events(15)
                store.wait_settled()
                upstream.open("settled")
                whole(seen + first.events(), sent)
                whole(seen[:3] + again + second.events(), sent)
                assert (first.ended, second.ended) == ("zero-chunk", "zero-chunk")
        with post(two, "m", f"{first.headers['relay-stream-id']}.0") as later:
            whole(later.events(), sent)
        assert len(upstream.calls) == 1
        upstream.on("after", *stream(*sent))
        with post(two, "after") as new:
            assert new.headers["relay-resumable"] == "true"
            whole(new.events(), sent)


def test_a_primary_that_dies_in_mid_stream(tmp_path: Path, upstream: ScriptedUpstream, relays: Relays) -> None:
    with valkey_sentinel(tmp_path) as store:
        one, two = pair(relays, store, upstream)
        sent = [*(delta(n) for n in range(1, 20)), FINISH, DONE]
        upstream.on("m", *stream(*sent[:5], Gate("dead"), *sent[5:]))
        with post(one, "m") as first:
            seen = first.events(5)
            with post(two, "m", seen[2].id) as second:
                again = second.events(2)
                store.primary().kill()
                upstream.open("dead")  # nothing is shown until the sentinel has made a new primary
                whole(seen + first.events(), sent)
                whole(seen[:3] + again + second.events(), sent)
        assert len(upstream.calls) == 1


def test_streams_on_every_shard(tmp_path: Path, upstream: ScriptedUpstream, relays: Relays) -> None:
    with valkey_cluster(tmp_path) as store:
        assert isinstance(store, ClusterStore)
        one, two = pair(relays, store, upstream)
        sent = [*(delta(n) for n in range(1, 9)), FINISH, DONE]
        upstream.on("m", *stream(*sent[:4], Gate("go on"), *sent[4:]))
        streams = [post(relay, "m") for relay in (one, two) for _ in range(9)]
        others = [two] * 9 + [one] * 9
        seen = [first.events(4) for first in streams]
        names = [first.headers["relay-stream-id"] for first in streams]
        shards = {store.of_key(f"relay:{{{name}}}:log").port for name in names}
        assert len(shards) == 3
        assert all(store.of_key(f"relay:{{{n}}}:log").command("EXISTS", f"relay:{{{n}}}:log") for n in names)
        resumed = [post(other, "m", events[1].id) for other, events in zip(others, seen, strict=True)]
        again = [second.events(2) for second in resumed]
        upstream.open("go on")
        for first, second, events, repeated in zip(streams, resumed, seen, again, strict=True):
            with first, second:
                whole(events + first.events(), sent)
                whole(events[:2] + repeated + second.events(), sent)
        for other, name in zip(others, names, strict=True):
            with post(other, "m", f"{name}.0") as later:
                whole(later.events(), sent)
        assert len(upstream.calls) == 18


def test_sentinels_with_a_password_of_their_own(tmp_path: Path) -> None:
    """It is theirs alone: a server is not shown it."""

    async def primary(url: str) -> bool:
        topology = connect(url)
        try:
            await topology.refresh()
            return int(await topology.nodes()[0].query.call("DBSIZE")) >= 0
        finally:
            await topology.close()

    with valkey_sentinel(tmp_path) as store:
        store.sentinel.command("ACL", "SETUSER", "asking", "on", ">pass-word", "+ping", "+sentinel|master")
        store.sentinel.command("ACL", "SETUSER", "default", "-sentinel")
        with pytest.raises(StoreDown, match="without a password"):
            asyncio.run(primary(store.url))
        with pytest.raises(StoreDown, match="with sentinel_password"):
            asyncio.run(primary(f"{store.url}?sentinel_username=asking&sentinel_password=other"))
        assert asyncio.run(primary(f"{store.url}?sentinel_username=asking&sentinel_password=pass-word"))
        store.sentinel.command("ACL", "SETUSER", "default", "+@all")
