"""The store fails under running streams: it stalls, restarts, forgets, fills up, or is out of reach.

Nothing is ever lost without a word. A stream goes on with ids where the log can go on; it goes on without them
where the log cannot; and whoever comes back to a log that ended early is told so.
"""

from __future__ import annotations

import random
import time
from collections.abc import Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import pytest

from relay.streams.commit import HOLD
from tests.conftest import Relays
from tests.faults.proxy import Blackhole, Delay, DropReplies, FaultProxy, Pass, Refuse
from tests.faults.store_replicas import (
    LEASE,
    Client,
    ask,
    ask_again,
    check_log,
    config,
    entries,
    eventually,
    log_end,
    paced,
    refusal,
    refused_again,
    resume,
    start,
    two,
)
from tests.support.processes import RelayProcess
from tests.support.scripted import Gate, Head, ScriptedUpstream, Step
from tests.support.stores import Server, valkey_sentinel, valkey_server, wait_until

# A flush that gets no answer is given up after 2 s, so a stream may be held back for one more than HOLD.
LONGEST_HOLD = HOLD + 2.0
SLACK = 3.0


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    """A store that keeps nothing over a restart."""
    with valkey_server(tmp_path / "store") as store:
        yield store.servers[0]


@pytest.fixture
def proxies(server: Server) -> Iterator[list[FaultProxy]]:
    """One in front of the store for each of two replicas."""
    with ExitStack() as stack:
        yield [stack.enter_context(FaultProxy(server.port)) for _ in range(2)]


def whole(client: Client, events: int, *, with_ids: bool = True) -> None:
    """The client gets the whole generation and its end."""
    seen = client.finish()
    assert (seen.payload, seen.end, seen.ended) == (events, "done", "zero-chunk")
    if with_ids:
        assert seen.with_ids == events + 1


class TestRestartWithFile:
    EVENTS = 60

    @pytest.fixture(params=["always, killed", "everysec, shut down"])
    def kept(self, request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[Server, bool]]:
        fsync, _, how = request.param.partition(", ")
        with valkey_server(tmp_path / "store", appendonly=True, config=[("appendfsync", fsync)]) as store:
            yield store.servers[0], how == "killed"

    def test_a_stall_then_the_stream_goes_on(
        self, kept: tuple[Server, bool], relays: Relays, upstream: ScriptedUpstream
    ) -> None:
        server, killed = kept
        first, second = two(relays, upstream, server.url, server.url)
        upstream.on("m", *paced(self.EVENTS, 0.01, gate="g", gate_after=30))
        upstream.on("running", *paced(300, 0.01))
        here, running = start(first, "m"), start(first, "running")
        there = resume(second, f"{here.stream}.0")
        for client in (here, there):
            client.wait_events(30)
        acknowledged = running.count
        if killed:
            server.kill()
        else:
            server.stop()
        server.start()
        assert check_log(server.client(), here.stream) == (30, None)
        assert check_log(server.client(), running.stream)[0] >= acknowledged
        upstream.open("g")
        for client in (here, there):
            whole(client, self.EVENTS)
        whole(running, 300)
        assert check_log(server.client(), here.stream) == (self.EVENTS + 1, "completed")
        assert check_log(server.client(), running.stream) == (301, "completed")
        whole(resume(second, f"{here.stream}.0"), self.EVENTS)
        assert len(upstream.calls) == 2

    def test_lost_entries_are_written_again(self, tmp_path: Path, relays: Relays, upstream: ScriptedUpstream) -> None:
        """A machine that loses power keeps what was synced a second ago: here, the file without its end."""
        with valkey_server(tmp_path / "store", appendonly=True, config=[("appendfsync", "everysec")]) as store:
            server = store.servers[0]
            first, second = two(relays, upstream, server.url, server.url, lease="5s")
            upstream.on("m", *paced(self.EVENTS, 0.01, gate="g", gate_after=30))
            here = start(first, "m")
            there = resume(second, f"{here.stream}.0")
            for client in (here, there):
                client.wait_events(30)
            server.kill()
            (file,) = (server.directory / "appendonlydir").glob("*.incr.aof")
            content = file.read_bytes()
            # From the middle of event 20 on, nothing has reached the disk.
            file.write_bytes(content[: content.index(f"id: {here.stream}.20\n".encode()) + 10])
            server.start()
            assert check_log(server.client(), here.stream) == (19, None)
            # What this replica holds in memory it still serves; one that has only the log says that it ends before.
            assert refusal(ask_again(second, f"{here.stream}.25")) == (410, "position_unknown")
            upstream.open("g")
            for client in (here, there):
                whole(client, self.EVENTS)
            assert check_log(server.client(), here.stream) == (self.EVENTS + 1, "completed")
            whole(resume(second, f"{here.stream}.0"), self.EVENTS)
            assert len(upstream.calls) == 1

    def test_lost_with_its_producer_is_told(self, tmp_path: Path, relays: Relays, upstream: ScriptedUpstream) -> None:
        """The error that ends the log stands where events stood that a client has seen. Who has seen them must not
        take what follows the error's first event, nor the end, for the end of the answer."""
        with valkey_server(tmp_path / "store", appendonly=True) as store:
            server = store.servers[0]
            first, second = two(relays, upstream, server.url, server.url)
            upstream.on("m", *paced(self.EVENTS, 0.001, gate="g", gate_after=10))
            clients = [start(first, "m") for _ in range(4)]
            for client in clients:
                client.wait_events(10)
            first.kill()
            for lost, client in enumerate(clients):
                _lose(server, client.stream, lost)
            for client in clients:
                # Here the resume itself ends the stream, when the lease has lapsed.
                eventually("producer_lost", log_end, server, client.stream)
            told = [refusal(ask_again(second, client.last_id)) for client in clients]
            assert told == [(200, ""), *[(410, "position_unknown")] * 3]
            assert resume(second, clients[0].last_id).finish().end == "producer_lost"


def _lose(server: Server, stream: str, count: int) -> None:
    """The store forgets the last entries of a stream."""
    client = server.client()
    log, meta = f"relay:{{{stream}}}:log", f"relay:{{{stream}}}:meta"
    kept = entries(client, stream)[: -count or None]
    client.delete(log)
    for entry_id, fields in kept:
        server.command("XADD", log, entry_id, *(part for item in fields.items() for part in item))
    client.hset(meta, "top", str(len(kept)))


class TestRestartEmpty:
    def test_readers_finish_and_resumes_are_gone(
        self, server: Server, relays: Relays, upstream: ScriptedUpstream
    ) -> None:
        first, second = two(relays, upstream, server.url, server.url)
        upstream.on("m", *paced(60, 0.01, gate="g", gate_after=30))
        upstream.on("running", *paced(200, 0.01))
        here, running = start(first, "m"), start(first, "running")
        there = resume(second, f"{here.stream}.0")
        for client in (here, there):
            client.wait_events(30)
        server.kill()
        server.start()
        newcomer = relays.start(config(server.url, upstream))
        for relay in (first, second, newcomer):
            for stream in (here.stream, running.stream):
                eventually((410, "stream_expired"), refused_again, relay, f"{stream}.1")
        upstream.open("g")
        for client in (here, running):
            seen = client.finish()
            assert (seen.end, seen.ended) == ("done", "zero-chunk")
            assert 0 < seen.with_ids < seen.payload
        seen = there.finish()
        assert seen.end is None
        assert seen.ended != "zero-chunk"  # cut: the log that it read is gone
        assert len(upstream.calls) == 2

    def test_away_for_long_and_back_empty(self, server: Server, relays: Relays, upstream: ScriptedUpstream) -> None:
        first, second = two(relays, upstream, server.url, server.url)
        upstream.on("m", *paced(30, 0.01, gate="g", gate_after=10))
        upstream.on("running", *paced(100, 0.1))
        client = start(first, "running")
        client.wait_events(10)
        server.kill()
        whole(client, 100, with_ids=False)
        server.start()
        for relay in (first, second):
            eventually((410, "stream_expired"), refused_again, relay, client.last_id)


class TestFailover:
    def test_behind_its_primary(self, tmp_path: Path, relays: Relays, upstream: ScriptedUpstream) -> None:
        with valkey_sentinel(tmp_path / "store") as store:
            first, second = two(relays, upstream, store.url, store.url, lease="10s")
            primary, replica = store.primary(), store.replica()
            upstream.on("m", *paced(60, 0.005, gate="lag", gate_after=10))
            upstream.on("running", *paced(400, 0.02))
            here, running = start(first, "m"), start(first, "running")
            there = resume(second, f"{here.stream}.0")
            there_too = resume(second, f"{running.stream}.0")
            upstream.wait_reached("lag")
            for client in (here, there):
                client.wait_events(10)
            wait_until(
                lambda: check_log(replica.client(), here.stream)[0] == 10, 10, "the replica to have what was written"
            )
            # The replica sees nothing from here on, and its primary acknowledges alone.
            replica.pause()
            assert primary.client().client_kill_filter(_type="replica") == 1
            before = running.count
            running.wait_events(before + 30)
            primary.kill()
            replica.resume()
            behind = check_log(replica.client(), running.stream)[0]
            assert behind < running.count
            wait_until(lambda: store.primary() is replica, 20, "the failover")
            upstream.open("lag")
            for client in (here, there):
                whole(client, 60)
            assert check_log(replica.client(), here.stream) == (61, "completed")
            seen = running.finish()
            assert (seen.payload, seen.end) == (400, "done")
            elsewhere = there_too.finish()
            if seen.with_ids == 401:
                assert (elsewhere.payload, elsewhere.end) == (400, "done")
                assert check_log(replica.client(), running.stream) == (401, "completed")
            else:  # this machine took longer than the relay waits
                eventually("store_lost", log_end, replica, running.stream)
                assert elsewhere.end in ("store_lost", None)
            assert len(upstream.calls) == 2


def _grown(proxy: FaultProxy, dropped: int) -> bool:
    return proxy.dropped > dropped


class TestLostReplies:
    def test_no_doubles_and_no_holes(
        self, server: Server, proxies: list[FaultProxy], relays: Relays, upstream: ScriptedUpstream
    ) -> None:
        proxy = proxies[0]
        first, second = two(relays, upstream, proxy.url, proxies[1].url, lease="10s")
        events = 150
        for i in range(8):
            upstream.on(f"m{i}", *paced(events, 0.015 + 0.001 * i))
        here = [start(first, f"m{i}") for i in range(8)]
        there = [resume(second, f"{client.stream}.0") for client in here]
        chance = random.Random(7)
        while (count := here[0].count) < events - 10:
            time.sleep(chance.uniform(0, 0.05))  # a random moment is what is tested
            for each in proxies:
                dropped = each.dropped
                each.mode = DropReplies()
                if each is proxy:
                    wait_until(partial(_grown, proxy, dropped), 10, "a reply to drop")
                each.mode = Pass()
            here[0].wait_events(min(count + 5, events))
        assert proxy.dropped > 5
        for client in (*here, *there):
            whole(client, events)
        for client in here:
            assert check_log(server.client(), client.stream) == (events + 1, "completed")
        assert len(upstream.calls) == 8


class TestSlow:
    def test_throughput_is_kept(
        self, proxies: list[FaultProxy], relays: Relays, upstream: ScriptedUpstream, server: Server
    ) -> None:
        first, second = two(relays, upstream, proxies[0].url, proxies[1].url, lease="10s")
        for proxy in proxies:
            proxy.mode = Delay(0.1)  # there and back: 200 ms
        upstream.on("m", *paced(200, 0.005))
        began = time.monotonic()
        here = [start(first, "m") for _ in range(5)]
        there = resume(second, f"{here[0].stream}.0")
        for client in (*here, there):
            whole(client, 200)
        took = time.monotonic() - began
        assert took < 8.0, f"200 events at 200/s took {took:.1f} s"
        assert check_log(server.client(), here[0].stream) == (201, "completed")

    def test_an_upstream_that_falls_silent_while_its_stream_is_made_has_timed_out(
        self, proxies: list[FaultProxy], relays: Relays, upstream: ScriptedUpstream
    ) -> None:
        relay = relays.start(config(proxies[0].url, upstream, upstream_idle_timeout="200ms", lease="10s"))
        proxies[0].mode = Delay(0.2)
        upstream.on("m", Head(200, {"content-type": "text/event-stream"}), Gate("never"))
        assert "upstream_timeout" in str(start(relay, "m").finish().events[0].data)


def refused_new(relay: RelayProcess) -> tuple[int, str]:
    return refusal(ask(relay, "new"))


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
        held = resume(first, f"{long.stream}.0")  # from this replica's own memory
        began = time.monotonic()
        new = ask(first, "new")
        took = time.monotonic() - began
        assert new.status == 200
        assert new.headers["relay-resumable"] == "false"
        assert took < LONGEST_HOLD + SLACK
        unlogged = Client(new)
        seen = unlogged.finish()
        assert (seen.payload, seen.end, seen.with_ids) == (20, "done", 0)
        assert refusal(ask_again(first, f"{unlogged.stream}.1")) == (400, "resume_not_supported")
        calls = len(upstream.calls)
        keyed = ask(first, "new", {"idempotency-key": "k1"})
        assert "retry-after" in keyed.headers
        assert refusal(keyed) == (503, "store_unavailable")
        assert len(upstream.calls) == calls  # nothing was paid for
        elsewhere = ask_again(first, f"{foreign.stream}.1")
        assert "retry-after" in elsewhere.headers
        assert refusal(elsewhere) == (503, "store_unavailable")
        whole(short, 40, with_ids=False)
        for client in (long, foreign, held):
            whole(client, 260, with_ids=False)
            assert client.longest_stall < LONGEST_HOLD + SLACK
            assert client.seen().with_ids < 260
        for proxy in proxies:
            proxy.mode = Pass()
        for client in (short, long, foreign):
            eventually("store_lost", log_end, server, client.stream)
            for relay in (first, second):
                seen = resume(relay, client.last_id).finish()
                assert (seen.end, seen.ended) == ("store_lost", "zero-chunk")
        assert there.finish().end == "store_lost"
        again = start(first, "new")
        whole(again, 20)
        whole(start(first, "new", {"idempotency-key": "k1"}), 20)

    def test_refuse(self, proxies: list[FaultProxy], relays: Relays, upstream: ScriptedUpstream) -> None:
        first, _ = two(relays, upstream, proxies[0].url, proxies[1].url, outage="refuse")
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
            assert time.monotonic() - began < LONGEST_HOLD + SLACK
        whole(client, 160, with_ids=False)
        proxies[0].mode = Pass()
        eventually((200, ""), refused_new, first)
        whole(start(first, "new"), 20)
        # A client's retries on 503 must not each be paid for.
        assert len(upstream.calls_of("new")) == 2


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
        wait_until(lambda: lease_left(server, here.stream) < 0, HOLD - 1, "the lease to lapse")
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
        new = ask(first, "new")
        assert new.headers["relay-resumable"] == "false"
        seen = Client(new).finish()
        assert (seen.payload, seen.end, seen.with_ids) == (20, "done", 0)
        keyed = ask(first, "new", {"idempotency-key": "k1"})
        assert refusal(keyed) == (503, "store_unavailable")
        whole(here, 100, with_ids=False)
        assert here.seen().with_ids < 100
        assert here.longest_stall < LONGEST_HOLD + SLACK
        self._free(server)
        eventually("store_lost", log_end, server, here.stream)
        assert there.finish().end == "store_lost"
        assert resume(second, here.last_id).finish().end == "store_lost"
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
        first, second = two(relays, upstream, proxies[0].url, server.url)
        upstream.on("m", *paced(400, 0.02))
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
            assert seen.with_ids == len(seen.events)
            top, outcome = check_log(server.client(), client.stream)
            assert outcome == "producer_lost"
            assert top == len(seen.events)
        for call in upstream.calls:
            assert call.ended.wait(10)
            assert call.cancelled
        assert len(upstream.calls) == 5

    def test_back_late(
        self, server: Server, proxies: list[FaultProxy], relays: Relays, upstream: ScriptedUpstream
    ) -> None:
        first, second = two(relays, upstream, proxies[0].url, server.url)
        upstream.on("m", *paced(200, 0.05))
        here = start(first, "m")
        there = resume(second, f"{here.stream}.0")
        there.wait_events(10)
        proxies[0].mode = Refuse()
        assert there.finish().end == "producer_lost"
        ended = check_log(server.client(), here.stream)
        wait_until(lambda: here.count > ended[0] + 5, HOLD + LONGEST_HOLD, "the stream to go on without ids")
        proxies[0].mode = Pass()
        whole(here, 200, with_ids=False)
        assert here.seen().with_ids < 200
        whole_again = start(first, "m")
        whole_again.wait_events(5)
        assert whole_again.seen().with_ids >= 5
        assert check_log(server.client(), here.stream) == ended
        assert ended[1] == "producer_lost"
        whole_again.close()


class TestInterference:
    def test_scripts_and_connections_are_lost(self, server: Server, relays: Relays, upstream: ScriptedUpstream) -> None:
        first, second = two(relays, upstream, server.url, server.url)
        events = 250
        upstream.on("m", *paced(events, 0.01))
        here = [start(first, "m") for _ in range(4)]
        there = [resume(second, f"{client.stream}.0") for client in here]
        client = server.client()
        for round in range(6):
            target = 25 * (round + 1)
            for reader in (*here, *there):
                reader.wait_events(target)
            client.script_flush()
            if round % 2:
                assert client.client_kill_filter(_type="normal", skipme=True) >= 2
            if round > 2:
                assert client.client_kill_filter(_type="pubsub") >= 2
        for reader in (*here, *there):
            whole(reader, events)
        assert len(upstream.calls) == 4

    def test_paused_for_a_moment(self, server: Server, relays: Relays, upstream: ScriptedUpstream) -> None:
        """A server that answers nothing for less than a hold costs a stall and nothing else."""
        first, second = two(relays, upstream, server.url, server.url, lease="10s")
        upstream.on("m", *paced(100, 0.02))
        here = start(first, "m")
        there = resume(second, f"{here.stream}.0")
        there.wait_events(10)
        server.pause()
        try:
            time.sleep(3.0)  # longer than one flush may take
        finally:
            server.resume()
        for client in (here, there):
            whole(client, 100)
        assert check_log(server.client(), here.stream) == (101, "completed")
