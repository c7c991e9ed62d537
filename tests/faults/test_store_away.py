"""The store is out of reach, takes no writes, or is so for one replica only.

A stream in flight is held back for `store.hold`, then shown ahead of its log, with its ids; the log gets what is
missing when the store is back. Nobody who is alive is taken for lost, and whoever was ended by others meanwhile stops.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.conftest import Relays
from tests.faults.store_replicas import (
    HEADERS,
    HOLD,
    LEASE,
    SLACK,
    Client,
    ask,
    ask_again,
    check_log,
    config,
    eventually,
    paced,
    refusal,
    refused_again,
    resume,
    resume_soon,
    start,
    two,
    unlogged,
    whole,
)
from tests.support import asking
from tests.support.cutting import Blackhole, FaultProxy, Pass, Refuse
from tests.support.processes import RelayProcess
from tests.support.scripted import Gate, Head, ScriptedUpstream, Send, Step, stream
from tests.support.sseclient import open_stream
from tests.support.stores import Server, valkey_server
from tests.support.waiting import wait_until

# A command that gets no answer is given up after 2 s and asked once more.
COMMAND = 4.0


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    with valkey_server(tmp_path / "store") as store:
        yield store.servers[0]


@pytest.fixture
def proxies(server: Server) -> Iterator[list[FaultProxy]]:
    """One in front of the store for each of two replicas."""
    with ExitStack() as stack:
        yield [stack.enter_context(FaultProxy(server.port)) for _ in range(2)]


def refused_new(relay: RelayProcess, headers: Mapping[str, str] | None = None) -> tuple[int, str]:
    return refusal(ask(relay, "new", headers))


def assert_stopped(upstream: ScriptedUpstream, model: str) -> None:
    for call in upstream.calls_of(model):
        assert call.ended.wait(10), "the generation still runs, and is paid for"
        assert call.cancelled


class TestBlackhole:
    def test_degrade(
        self, server: Server, proxies: list[FaultProxy], relays: Relays, upstream: ScriptedUpstream
    ) -> None:
        first, second = two(relays, upstream, proxies[0].url, proxies[1].url, lease="3s")
        upstream.on("short", *paced(40, 0.05))
        upstream.on("long", *paced(260, 0.05))
        upstream.on("new", *paced(20, 0.001))
        short, long = start(first, "short"), start(first, "long")
        foreign = start(second, "long")
        there = resume(second, f"{long.stream}.0")
        for client in (short, long, foreign, there):
            client.wait_events(15)
        for proxy in proxies:
            proxy.mode = Blackhole()
        before = there.count
        held = resume(first, f"{long.stream}.0")  # from this replica's own memory
        began = time.monotonic()
        new = ask(first, "new")
        assert time.monotonic() - began < COMMAND + SLACK
        lost = unlogged(new, 20)
        assert refusal(ask_again(first, f"{lost.stream}.1")) == (400, "resume_not_supported")
        calls = len(upstream.calls)
        keyed = ask(first, "new", {"idempotency-key": "k1"})
        assert "retry-after" in keyed.headers
        assert refusal(keyed) == (503, "store_unavailable")
        assert len(upstream.calls) == calls  # nothing was paid for
        elsewhere = ask_again(first, f"{foreign.stream}.1")
        assert "retry-after" in elsewhere.headers
        assert refusal(elsewhere) == (503, "store_unavailable")
        whole(short, 40)  # it has ended while the store is away
        for client in (long, foreign, held):
            client.wait_events(100)
        assert there.count <= before + 10, "the log has not what is shown ahead of it"
        for proxy in proxies:
            proxy.mode = Pass()
        for client in (long, foreign, held, there):
            whole(client, 260)
        for client in (long, foreign):
            assert client.longest_stall < HOLD + SLACK
        for client, events in ((short, 40), (long, 260), (foreign, 260)):
            eventually((events + 1, "completed"), check_log, server.client(), client.stream)
            for relay in (first, second):
                assert refusal(ask_again(relay, client.last_id)) == (204, "")
        whole(resume_soon(second, f"{short.stream}.0"), 40)
        whole(start(first, "new"), 20)
        # A key that nobody has is no free one before all who may have it had the time to say so.
        eventually((200, ""), refused_new, first, {"idempotency-key": "k1"})
        whole(start(first, "new", {"idempotency-key": "k1"}), 20)
        assert len(upstream.calls) == calls + 2

    def test_refuse(self, proxies: list[FaultProxy], relays: Relays, upstream: ScriptedUpstream) -> None:
        first, _ = two(relays, upstream, proxies[0].url, proxies[1].url, store={"outage": "refuse"})
        upstream.on("long", *paced(160, 0.05))
        upstream.on("new", *paced(20, 0.001))
        client = start(first, "long")
        client.wait_events(10)
        proxies[0].mode = Blackhole()
        for headers in ({}, {}, {"idempotency-key": "k"}):
            began = time.monotonic()
            refused = ask(first, "new", headers)
            assert "retry-after" in refused.headers
            assert refusal(refused) == (503, "store_unavailable")
            assert time.monotonic() - began < COMMAND + SLACK
        assert client.count > 30, "it is held back for store.hold and no longer"
        proxies[0].mode = Pass()
        whole(client, 160)
        eventually((200, ""), refused_new, first)
        whole(start(first, "new"), 20)
        # A client's retries on 503 must not each be paid for.
        assert len(upstream.calls_of("new")) == 2

    def test_what_is_ahead_of_the_store_is_bounded(
        self, server: Server, proxies: list[FaultProxy], relays: Relays, upstream: ScriptedUpstream
    ) -> None:
        """Beyond `store.ahead`, all streams together, upstreams wait."""
        ahead = 1 << 20
        size, count = 32 << 10, 200
        relay = relays.start(config(proxies[0].url, upstream, store={"ahead": str(ahead)}, lease="20s"))
        chunk = b'data: {"id":"c","choices":[{"index":0,"delta":{"content":"%b"}}]}\n\n' % (b"x" * size)
        upstream.on("m", *stream(chunk, Gate("g"), *[chunk] * count, b"data: [DONE]\n\n"))
        answers = [ask(relay, "m") for _ in range(2)]
        readers = [Reading(answer) for answer in answers]
        wait_until(lambda: all(reader.events == 1 for reader in readers), 10, "the first events")
        proxies[0].mode = Blackhole()
        upstream.open("g")
        wait_until(lambda: sum(r.events for r in readers) * size > ahead // 2, HOLD + SLACK + 2, "events ahead")
        time.sleep(1.0)  # what is to be seen is that no more comes
        # Of what an upstream is not to send any more, some is in buffers on the way.
        assert sum(reader.events for reader in readers) * size < 2 * ahead
        proxies[0].mode = Pass()
        for reader in readers:
            assert reader.finish() == (count + 2, "zero-chunk")
        for answer in answers:
            assert check_log(server.client(), answer.headers["relay-stream-id"]) == (count + 2, "completed")


class Reading(Client):
    """A response whose events nobody judges."""

    @property
    def events(self) -> int:
        return self.count

    def finish(self, timeout: float = 30.0) -> tuple[int, str | None]:  # type: ignore[override]
        self._thread.join(timeout)
        numbers = [int((event.id or "").rpartition(".")[2]) for event in self._events]
        assert numbers == list(range(1, len(numbers) + 1))
        return len(numbers), self._ended


class TestName:
    """A response's id is told to the store before its first event is shown."""

    def test_it_holds_no_event_for_longer_than_the_hold(
        self, server: Server, proxies: list[FaultProxy], relays: Relays, upstream: ScriptedUpstream
    ) -> None:
        first, second = two(relays, upstream, proxies[0].url, server.url, store={"hold": "2s"}, lease="20s")
        upstream.on("m", *_response("resp_1", gate="named"))
        body = {"model": "m", "stream": True, "input": ""}
        answer = asking.ask(first.url + "/v1/responses", headers={**HEADERS, "prefer": "respond-async"}, body=body)
        assert answer.status == 202, answer.read()
        name = answer.headers["relay-stream-id"]
        reader = asking.ask(f"{first.url}/streams/{name}", "GET", HEADERS)
        proxies[0].mode = Blackhole()
        began = time.monotonic()
        upstream.open("named")
        (created,) = reader.events(1)
        took = time.monotonic() - began
        assert 1.0 < took < 2.0 + 1.5, "the hold is one, whatever an event waits for"
        assert created.id == f"{name}.1"
        proxies[0].mode = Pass()
        upstream.open("rest")
        assert [event.id for event in reader.events()] == [f"{name}.2", f"{name}.3"]
        # Its name is known by then as if nothing had been.
        eventually((200, name), _retrieved, second, "resp_1")

    def test_it_is_known_again_in_a_store_that_came_back_empty(
        self, server: Server, relays: Relays, upstream: ScriptedUpstream
    ) -> None:
        first, second = two(relays, upstream, server.url, server.url, lease="20s")
        upstream.on("m", *_response("resp_2", gate="named"))
        body = {"model": "m", "stream": True, "input": ""}
        upstream.open("named")
        answer = asking.ask(first.url + "/v1/responses", headers=HEADERS, body=body)
        answer.events(1)
        server.kill()
        server.start()
        for relay in (first, second):
            eventually((200, answer.headers["relay-stream-id"]), _retrieved, relay, "resp_2")
        upstream.open("rest")
        assert len(answer.events()) == 2


def _response(name: str, gate: str) -> tuple[Step, ...]:
    kinds = ("response.created", "response.in_progress", "response.completed")
    bodies = [
        {"type": kind, "sequence_number": n, "response": {"id": name, "object": "response", "status": "in_progress"}}
        for n, kind in enumerate(kinds)
    ]
    created, *rest = [Send(f"event: {body['type']}\ndata: {json.dumps(body)}\n\n".encode()) for body in bodies]
    return Head(200, {"content-type": "text/event-stream"}), Gate(gate), created, Gate("rest"), *rest


def _retrieved(relay: RelayProcess, response: str) -> tuple[int, str | None]:
    answer = open_stream(f"{relay.url}/v1/responses/{response}?stream=true&starting_after=0", "GET", HEADERS)
    with answer:
        return answer.status, answer.headers.get("relay-stream-id")


class TestOutOfMemory:
    def _fill(self, server: Server) -> None:
        server.client().config_set("maxmemory-policy", "noeviction")
        server.client().config_set("maxmemory", "1000")

    def _free(self, server: Server) -> None:
        server.client().config_set("maxmemory", "0")

    def _read_on_both(
        self, server: Server, relays: Relays, upstream: ScriptedUpstream, steps: tuple[Step, ...], lease: str
    ) -> tuple[list[RelayProcess], Client, Client]:
        """Two replicas, and a client of each that has some events of the same stream."""
        pair = two(relays, upstream, server.url, server.url, lease=lease)
        upstream.on("m", *steps)
        here = start(pair[0], "m")
        there = resume(pair[1], f"{here.stream}.0")
        there.wait_events(10)
        return pair, here, there

    def test_for_a_moment(self, server: Server, relays: Relays, upstream: ScriptedUpstream) -> None:
        _, here, there = self._read_on_both(server, relays, upstream, paced(100, 0.02), "10s")
        self._fill(server)
        refusals = server.client().info("stats")["total_error_replies"]
        wait_until(lambda: server.client().info("stats")["total_error_replies"] >= refusals + 3, 10, "refused appends")
        self._free(server)
        for client in (here, there):
            whole(client, 100)
        assert check_log(server.client(), here.stream) == (101, "completed")

    def test_for_longer_than_a_lease(self, server: Server, relays: Relays, upstream: ScriptedUpstream) -> None:
        """No lease could be renewed meanwhile: nobody is taken for lost before it had the time to."""
        (_, second), here, there = self._read_on_both(server, relays, upstream, paced(200, 0.03), "2s")
        self._fill(server)
        wait_until(lambda: lease_left(server, here.stream) < 0, 4, "the lease to lapse")
        self._free(server)
        with ask_again(second, f"{here.stream}.0") as again:  # asks whether the producer is lost
            assert again.status == 200
            for client in (here, there, Client(again)):
                whole(client, 200)
        assert check_log(server.client(), here.stream) == (201, "completed")

    def test_for_long(self, server: Server, relays: Relays, upstream: ScriptedUpstream) -> None:
        upstream.on("new", *paced(20, 0.001))
        (first, second), here, there = self._read_on_both(server, relays, upstream, paced(100, 0.1), "10s")
        self._fill(server)
        unlogged(ask(first, "new"), 20)
        keyed = ask(first, "new", {"idempotency-key": "k1"})
        assert refusal(keyed) == (503, "store_unavailable")
        here.wait_events(60)
        assert there.count < 40
        assert refusal(ask_again(second, f"{here.stream}.50")) == (503, "store_unavailable")
        self._free(server)
        back = resume_soon(second, f"{here.stream}.50")
        for client in (here, there):
            whole(client, 100)
        seen = back.finish()
        assert (seen.payload, seen.end) == (50, "done")
        assert here.longest_stall < HOLD + SLACK
        assert check_log(server.client(), here.stream) == (101, "completed")
        whole(start(first, "new"), 20)


def lease_left(server: Server, stream: str) -> float:
    """Milliseconds, by the store's clock."""
    seconds, micros = server.command("TIME")
    return float(server.command("HGET", f"relay:{{{stream}}}:meta", "lease")) - seconds * 1000 - micros / 1000


class TestCutOff:
    """One replica cannot reach the store, the other can."""

    def test_back_soon(
        self, server: Server, proxies: list[FaultProxy], relays: Relays, upstream: ScriptedUpstream
    ) -> None:
        """Its streams were ended, and its readers have seen no more than the log holds: they are told."""
        first, second = two(relays, upstream, proxies[0].url, server.url, store={"hold": "20s"})
        upstream.on("m", *paced(800, 0.02))
        here = [start(first, "m") for _ in range(5)]
        there = [resume(second, f"{client.stream}.0") for client in here]
        for client in there:
            client.wait_events(10)
        proxies[0].mode = Refuse()
        cut = time.monotonic()
        for client in there:
            assert client.finish().end == "producer_lost"
        assert time.monotonic() - cut < LEASE + SLACK
        proxies[0].mode = Pass()
        for client in here:
            seen = client.finish()
            assert (seen.end, seen.ended) == ("producer_lost", "zero-chunk")
            assert check_log(server.client(), client.stream) == (seen.payload, "producer_lost")
            assert seen.events[-1].id == f"{client.stream}.{seen.payload}e"
        assert_stopped(upstream, "m")
        assert len(upstream.calls) == 5

    def test_back_late(
        self, server: Server, proxies: list[FaultProxy], relays: Relays, upstream: ScriptedUpstream
    ) -> None:
        """Its readers have seen more than the log will ever hold: they are cut, and told so when they come back."""
        first, second = two(relays, upstream, proxies[0].url, server.url)
        upstream.on("m", *paced(400, 0.05))
        here = start(first, "m")
        there = resume(second, f"{here.stream}.0")
        there.wait_events(10)
        proxies[0].mode = Refuse()
        assert there.finish().end == "producer_lost"
        ended = check_log(server.client(), here.stream)
        assert ended[1] == "producer_lost"
        wait_until(lambda: here.count > ended[0] + 5, HOLD + SLACK, "the stream to be shown ahead of its log")
        proxies[0].mode = Pass()
        seen = here.finish()
        assert (seen.end, seen.ended) in ((None, "fin"), (None, "reset"))
        assert seen.with_ids == seen.payload > ended[0] + 5
        assert_stopped(upstream, "m")
        for relay in (first, second):
            eventually((410, "position_unknown"), refused_again, relay, here.last_id)
            told = resume(relay, f"{here.stream}.{ended[0]}").finish()
            assert (told.payload, told.end) == (0, "producer_lost")
        assert check_log(server.client(), here.stream) == ended
        again = start(first, "m")
        again.wait_events(5)
        again.close()

    def test_a_position_that_the_log_does_not_hold_yet(
        self, server: Server, proxies: list[FaultProxy], relays: Relays, upstream: ScriptedUpstream
    ) -> None:
        first, second = two(relays, upstream, proxies[0].url, server.url, lease="60s")
        upstream.on("m", *paced(200, 0.02, gate="g", gate_after=100))
        here = start(first, "m")
        here.wait_events(10)
        proxies[0].mode = Blackhole()
        here.wait_events(90)
        top = check_log(server.client(), here.stream)[0]
        there = resume(second, f"{here.stream}.{top}")
        behind = ask_again(second, f"{here.stream}.90")
        assert int(behind.headers["retry-after"]) >= 1
        assert refusal(behind) == (503, "store_behind")
        proxies[0].mode = Pass()
        back = resume_soon(second, f"{here.stream}.90")
        upstream.open("g")
        whole(here, 200)
        for client, n in ((there, top), (back, 90)):
            seen = client.finish()
            assert (seen.payload, seen.end) == (200 - n, "done")

    def test_a_stop_reaches_a_generation_that_others_have_ended(
        self, server: Server, proxies: list[FaultProxy], relays: Relays, upstream: ScriptedUpstream
    ) -> None:
        first, second = two(relays, upstream, proxies[0].url, server.url)
        upstream.on("m", *paced(1000, 0.05))
        here = start(first, "m")
        there = resume(second, f"{here.stream}.0")
        there.wait_events(5)
        proxies[0].mode = Blackhole()
        assert there.finish().end == "producer_lost"
        assert _stop(second, here.stream) == 204
        proxies[0].mode = Pass()
        assert_stopped(upstream, "m")


class TestAfterwards:
    """An outage leaves nothing behind."""

    def test_a_stop_stops(
        self, server: Server, proxies: list[FaultProxy], relays: Relays, upstream: ScriptedUpstream
    ) -> None:
        first, second = two(relays, upstream, proxies[0].url, proxies[1].url, lease="20s")
        upstream.on("m", *paced(1000, 0.02))
        clients = [start(first, "m") for _ in range(2)]
        for client in clients:
            client.wait_events(5)
        for proxy in proxies:
            proxy.mode = Blackhole()
        for client in clients:
            client.wait_events(client.count + 30)
        for proxy in proxies:
            proxy.mode = Pass()
        for relay, client in zip((first, second), clients, strict=True):
            eventually(204, _stop, relay, client.stream)
            seen = client.finish_stopped()
            assert seen == "zero-chunk"
            assert check_log(server.client(), client.stream)[1] == "stopped"
        assert_stopped(upstream, "m")

    def test_repairs_keep_no_lease_waiting(
        self, server: Server, proxies: list[FaultProxy], relays: Relays, upstream: ScriptedUpstream
    ) -> None:
        """Many streams are behind when the store is back, far away: those that begin then live as long as they run."""
        lease = 3.0
        first, second = two(relays, upstream, proxies[0].url, server.url, lease=f"{lease}s")
        upstream.on("old", *paced(200, 0.05))
        upstream.on("new", *paced(80, 0.1))
        old = [start(first, "old") for _ in range(60)]
        for client in old:
            client.wait_events(2)
        server.pause()
        try:
            for client in old:
                client.wait_events(40)
        finally:
            server.resume()
        new = [start(first, "new") for _ in range(3)]
        there = [resume(second, f"{client.stream}.0") for client in (*new, *old[:5])]
        for client in (*new, *there[:3]):
            whole(client, 80)
        for client in (*old, *there[3:]):
            whole(client, 200)
        for client in old:
            assert check_log(server.client(), client.stream) == (201, "completed")

    def test_a_replica_is_on_record_for_no_stream_that_is_over(
        self, server: Server, proxies: list[FaultProxy], relays: Relays, upstream: ScriptedUpstream
    ) -> None:
        first = relays.start(config(proxies[0].url, upstream))
        upstream.on("m", *paced(100, 0.02))
        upstream.on("new", *paced(5, 0.001))
        client = start(first, "m")
        client.wait_events(5)
        wait_until(lambda: _on_record(server) == {client.stream}, 5, "its stream on record")
        for mode in (Refuse(), Blackhole()):
            proxies[0].mode = mode
            for _ in range(5):
                unlogged(ask(first, "new"), 5)
            proxies[0].mode = Pass()
            eventually((200, ""), refused_new, first)
        whole(client, 100)
        server.kill()
        server.start()
        eventually((200, ""), refused_new, first)
        wait_until(lambda: not _on_record(server), 5 * LEASE + SLACK, "the record to be empty")


def _on_record(server: Server) -> set[str]:
    """The streams that replicas are said to run."""
    client = server.client()
    found: set[str] = set()
    for key in client.scan_iter("relay:replica:*", count=1000):
        found |= set(client.smembers(key))
    return found


def _stop(relay: RelayProcess, stream: str) -> int:
    with open_stream(f"{relay.url}/streams/{stream}", "DELETE", HEADERS, timeout=15) as answer:
        return answer.status
