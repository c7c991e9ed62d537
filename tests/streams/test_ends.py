"""Ends that others write, for a producer that is lost or in words that only a newer relay knows, and ends that the
store loses again. An end takes no number, so what it is told under is never an event's.
"""

from __future__ import annotations

import signal
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import redis

from tests.conftest import Relays
from tests.faults.store_replicas import check_log, eventually
from tests.support.asking import ask
from tests.support.oracle import DONE, PATH, check, frame
from tests.support.processes import RelayProcess
from tests.support.replicas import stream_id
from tests.support.samples import APIS, SAMPLES, Api, error_of
from tests.support.scripted import Gate, ScriptedUpstream, stream
from tests.support.sseclient import RawStream
from tests.support.stores import Server, valkey_server
from tests.support.waiting import wait_until

pytestmark = pytest.mark.slow

LEASE = 1.0
AUTH = {"authorization": "Bearer sk-one", "x-api-key": "sk-one"}
SEEN = 4


@dataclass(frozen=True)
class Site:
    upstream: ScriptedUpstream
    server: Server
    relays: list[RelayProcess]

    def fields(self, name: str) -> dict[str, Any]:
        found: Any = self.server.client().hgetall(f"relay:{{{name}}}:meta")
        return dict(found)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    with ScriptedUpstream() as upstream, valkey_server(tmp_path_factory.mktemp("store")) as store:
        config = {
            "upstreams": [{"name": "scripted", "base_url": upstream.url}],
            "streams": {"heartbeat": "200ms", "lease": "20s", "abandon_after": "never"},
            "store": {"url": store.url},
        }
        with RelayProcess(config) as first, RelayProcess(config) as second:
            yield Site(upstream, store.servers[0], [first, second])


def read(relay: RelayProcess, name: str, after: str | None = None) -> RawStream:
    headers = AUTH if after is None else {**AUTH, "last-event-id": after}
    return ask(f"{relay.url}/streams/{name}", "GET", headers)


def end_as_a_newer_replica_would(server: Server, name: str, top: int, content: str) -> None:
    """What its forced end does: the mark, the outcome, the fence, the message."""
    log, meta = f"relay:{{{name}}}:log", f"relay:{{{name}}}:meta"
    server.command("XADD", log, f"{top}-1", "end", content)
    seconds, _ = server.command("TIME")
    outcome = content.partition("\n")[0]
    server.command("HSET", meta, "end", outcome, "ended", seconds * 1000, "fence", "2")
    server.command("SPUBLISH", log, "")


@pytest.mark.parametrize("api", APIS)
def test_an_end_that_this_relay_has_no_name_for_is_an_error_of_that_name(site: Site, api: Api) -> None:
    sample = SAMPLES[api]
    model = f"unknown-{api}"
    site.upstream.on(model, *stream(*sample.frames[:SEEN], Gate(model)))
    here = ask(site.relays[0].url + sample.path, headers=sample.headers(), body=sample.body(model))
    name = stream_id(here)
    there = read(site.relays[1], name)
    for reader in (here, there):
        assert len(reader.events(SEEN)) == SEEN
    end_as_a_newer_replica_would(site.server, name, SEEN, "taken_elsewhere")
    told = there.events()
    assert there.ended == "zero-chunk"
    code, message = error_of(api, told, SEEN - 1)
    assert code == "taken_elsewhere"
    assert "incomplete" in message
    assert [event.id for event in told] == [*[None] * (len(told) - 1), f"{name}.{SEEN}e"]

    eventually("taken_elsewhere", _outcome, site.relays[0], name)
    for relay in site.relays:
        again = read(relay, name, f"{name}.{SEEN}").events()
        assert error_of(api, again, SEEN - 1) == (code, message)
        assert len(read(relay, name).events()) == SEEN + len(told)
        with read(relay, name, f"{name}.{SEEN}e") as over:
            assert over.status == 204
        assert ask(f"{relay.url}/streams/{name}", "DELETE", AUTH).status == 204
    (call,) = site.upstream.calls_of(model)
    assert call.ended.wait(5), "DELETE told the producer that its stream is over"
    assert error_of(api, here.events(), SEEN - 1) == (code, message)


def _outcome(relay: RelayProcess, name: str) -> object:
    return ask(f"{relay.url}/streams/{name}", "GET", {**AUTH, "accept": "application/json"}).json["outcome"]


def test_an_end_that_its_producer_has_spelled_is_told_as_it_stands(site: Site) -> None:
    """Also by a replica that would spell it otherwise."""
    site.upstream.on("spelled", *stream(frame(1), Gate("spelled")))
    here = ask(site.relays[0].url + PATH, headers=AUTH, body={"model": "spelled", "stream": True, "messages": []})
    name = stream_id(here)
    there = read(site.relays[1], name)
    there.events(1)
    closing = f'event: odd\ndata: {{"a": "€\\u2028"}}\n\nid: {name}.1e\ndata: [DONE]\n\n'
    end_as_a_newer_replica_would(site.server, name, 1, f"taken_elsewhere\n{closing}")
    for reader in (there, read(site.relays[1], name, f"{name}.1"), read(site.relays[0], name, f"{name}.1")):
        if reader.status == 200:  # the producer's replica may not have heard of it yet
            assert b"".join(event.raw for event in reader.events()) == closing.encode()


@pytest.mark.parametrize("api", APIS)
def test_an_end_that_was_cut_is_told_again_from_its_first_event(site: Site, api: Api) -> None:
    """Only its last event has an id: whoever comes back has that of the last event before, or the end's."""
    sample = SAMPLES[api]
    model = f"cut-{api}"
    site.upstream.on(model, *stream(*sample.frames[:SEEN], Gate(model)))
    here = ask(site.relays[0].url + sample.path, headers=sample.headers(), body=sample.body(model))
    name = stream_id(here)
    here.events(SEEN)
    assert ask(f"{site.relays[1].url}/streams/{name}", "DELETE", AUTH).status == 204
    end = here.events()
    whole = b"".join(event.raw for event in end)
    assert [event.id for event in end] == [*[None] * (len(end) - 1), f"{name}.{SEEN}e"]
    for relay in site.relays:
        for cut in range(len(end)):
            got = read(relay, name, f"{name}.{SEEN}").take(cut + 1)
            last = next((event.id for event in reversed(got) if event.id), f"{name}.{SEEN}")
            again = read(relay, name, last)
            if cut == len(end) - 1:
                assert again.status == 204
            else:
                assert b"".join(event.raw for event in again.events()) == whole


def test_a_forced_end_that_the_store_loses_makes_no_hole(
    relays: Relays, upstream: ScriptedUpstream, tmp_path: Path
) -> None:
    """A producer is paused and taken for lost, and its end is told to a reader. A failover takes that back; it wakes,
    its fence is good again, and its next events come under the numbers that follow."""
    with valkey_server(tmp_path / "store") as store:
        server = store.servers[0]
        config = {
            "upstreams": [{"name": "scripted", "base_url": upstream.url}],
            "streams": {"heartbeat": "200ms", "lease": f"{LEASE}s", "abandon_after": "never"},
            "store": {"url": store.url},
        }
        first, second = relays.start(config), relays.start(config)
        upstream.on("m", *stream(*[frame(n) for n in range(1, 4)], Gate("g"), *[frame(n) for n in range(4, 9)], DONE))
        here = ask(first.url + PATH, headers=AUTH, body={"model": "m", "stream": True, "messages": []})
        name = stream_id(here)
        seen = here.events(3)
        there = read(second, name)
        keys = (f"relay:{{{name}}}:log", f"relay:{{{name}}}:meta")
        first.signal(signal.SIGSTOP)
        try:
            kept = {key: _dump(server, key) for key in keys}
            told = there.events()
            assert check(told) == (3, "producer_lost")
            assert told[-1].id == f"{name}.3e"
            for key, dump in kept.items():
                server.command("RESTORE", key, 100_000, dump, "REPLACE")
            seconds, _ = server.command("TIME")  # nobody is to end it again in the moment before it wakes
            server.command("HSET", keys[1], "lease", (seconds + 10) * 1000)
        finally:
            first.signal(signal.SIGCONT)
        upstream.open("g")
        assert check(seen + here.events()) == (8, "done")
        wait_until(lambda: check_log(server.client(), name) == (9, "completed"), 10, "the whole log")
        for relay in (first, second):
            assert check(read(relay, name, f"{name}.3").events(), first=4) == (5, "done")
            with read(relay, name, f"{name}.3e") as over:
                assert over.status == 204, "it was told an end, and no event has that id"
            assert check(read(relay, name).events()) == (8, "done")
        assert len(upstream.calls) == 1
        relays.stop_all()


def _dump(server: Server, key: str) -> bytes:
    with redis.Redis.from_url(server.url) as client:
        found: Any = client.dump(key)
    assert found is not None
    return bytes(found)
