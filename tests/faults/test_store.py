"""The store restarts, falls back to what it held before, forgets all of it, or answers late: what the producers of its
streams have in memory is the truth, and the store gets it again under the same ids.
"""

from __future__ import annotations

import random
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import pytest

from tests.conftest import Relays
from tests.faults.store_replicas import (
    HOLD,
    SLACK,
    ask,
    ask_again,
    check_log,
    config,
    eventually,
    log_end,
    paced,
    refusal,
    resume,
    resume_soon,
    start,
    two,
    whole,
)
from tests.support.cutting import Delay, DropReplies, FaultProxy, Narrow, Pass
from tests.support.entries import raw_entries
from tests.support.oracle import DONE
from tests.support.scripted import Gate, Head, ScriptedUpstream, stream
from tests.support.stores import Server, valkey_sentinel, valkey_server
from tests.support.waiting import wait_until


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

    @pytest.mark.parametrize("silent", [True, False], ids=["upstream-silent", "upstream-sends"])
    def test_lost_entries_are_written_again(
        self, tmp_path: Path, relays: Relays, upstream: ScriptedUpstream, silent: bool
    ) -> None:
        """A machine that loses power keeps what was synced a second ago: here, the file without its end. The lease is
        long: it is the store's return that makes the producer look, and not the next renewal or the next event."""
        with valkey_server(tmp_path / "store", appendonly=True, config=[("appendfsync", "everysec")]) as store:
            server = store.servers[0]
            first, second = two(relays, upstream, server.url, server.url, lease="60s")
            upstream.on("m", *paced(self.EVENTS, 0.01, gate="g", gate_after=30))
            here = start(first, "m")
            there = resume(second, f"{here.stream}.0")
            for client in (here, there):
                client.wait_events(30)
            server.kill()
            (file,) = (server.directory / "appendonlydir").glob("*.incr.aof")
            content = file.read_bytes()
            # From the middle of event 20 on, nothing has reached the disk.
            file.write_bytes(content[: content.index(b"\r\n20-0\r\n") + 10])
            server.start(wait=False)
            if silent:
                server.wait_ready()
                eventually((30, None), check_log, server.client(), here.stream, timeout=SLACK)
            # Whoever comes meanwhile is told to come again, and never that what it has seen does not exist.
            back = resume_soon(second, f"{here.stream}.25", timeout=SLACK)
            upstream.open("g")
            for client in (here, there):
                whole(client, self.EVENTS)
            seen = back.finish()
            assert (seen.payload, seen.end) == (self.EVENTS - 25, "done")
            assert check_log(server.client(), here.stream) == (self.EVENTS + 1, "completed")
            whole(resume(second, f"{here.stream}.0"), self.EVENTS)
            assert len(upstream.calls) == 1

    def test_lost_with_its_producer_is_told(self, tmp_path: Path, relays: Relays, upstream: ScriptedUpstream) -> None:
        """The error ends the log before events that a client has seen. Who has seen them must not take it for what
        follows them."""
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
            for lost, client in enumerate(clients):
                seen = resume(second, f"{client.stream}.{10 - lost}").finish()
                assert (seen.payload, seen.end, seen.events[-1].id) == (
                    0,
                    "producer_lost",
                    f"{client.stream}.{10 - lost}e",
                )


def _lose(server: Server, stream: str, count: int) -> None:
    """The store forgets the last entries of a stream."""
    client = server.client()
    log, meta = f"relay:{{{stream}}}:log", f"relay:{{{stream}}}:meta"
    kept = raw_entries(client, stream)[: -count or None]
    client.delete(log)
    for entry_id, fields in kept:
        server.command("XADD", log, entry_id, *(part for item in fields.items() for part in item))
    client.hset(meta, "top", str(len(kept)))


class TestRestartEmpty:
    def test_it_gets_all_of_it_again_while_the_upstream_is_silent(
        self, server: Server, relays: Relays, upstream: ScriptedUpstream
    ) -> None:
        first, second = two(relays, upstream, server.url, server.url, lease="20s")
        upstream.on("m", *paced(60, 0.01, gate="g", gate_after=30))
        upstream.on("running", *paced(400, 0.01))
        here, running = start(first, "m"), start(first, "running")
        there = resume(second, f"{here.stream}.0")
        for client in (here, there, running):
            client.wait_events(30)
        server.kill()
        server.start()
        eventually((30, None), check_log, server.client(), here.stream, timeout=SLACK)
        newcomer = relays.start(config(server.url, upstream))
        back = [resume_soon(relay, f"{here.stream}.20") for relay in (first, second, newcomer)]
        again = [resume_soon(relay, f"{running.stream}.0") for relay in (first, second, newcomer)]
        upstream.open("g")
        for client in (here, there):
            whole(client, 60)
        for client in (running, *again):
            whole(client, 400)
        for client in back:
            seen = client.finish()
            assert (seen.payload, seen.end) == (40, "done")
        assert check_log(server.client(), here.stream) == (61, "completed")
        assert check_log(server.client(), running.stream) == (401, "completed")
        assert len(upstream.calls) == 2

    @pytest.mark.parametrize("ends", ["before-the-return", "after-the-return"])
    def test_away_for_long_and_back_empty(
        self, server: Server, relays: Relays, upstream: ScriptedUpstream, ends: str
    ) -> None:
        """Also a stream that has ended meanwhile, with nobody in it any more, is written whole."""
        first, second = two(relays, upstream, server.url, server.url)
        upstream.on("m", *paced(40, 0.02, gate="g", gate_after=20))
        client = start(first, "m")
        client.wait_events(20)
        server.kill()
        upstream.open("g")
        if ends == "before-the-return":
            whole(client, 40)
        else:
            client.wait_events(30)
        server.start()
        eventually((41, "completed"), check_log, server.client(), client.stream)
        whole(client, 40)
        for relay in (first, second):
            whole(resume_soon(relay, f"{client.stream}.0"), 40)
            assert refusal(ask_again(relay, f"{client.stream}.41")) == (204, "")
        assert server.client().hget(f"relay:{{{client.stream}}}:meta", "end") == "completed"


class TestFrozen:
    def test_what_it_executes_late_is_there_once(
        self, server: Server, relays: Relays, upstream: ScriptedUpstream
    ) -> None:
        """An append waits in the buffer of a server that is stopped, for longer than readers are held: they are shown
        what it holds, and then it is executed."""
        first, second = two(relays, upstream, server.url, server.url, lease="20s")
        upstream.on("m", *paced(200, 0.02, gate="g", gate_after=20))
        client = start(first, "m")
        client.wait_events(20)
        server.pause()
        try:
            upstream.open("g")
            client.wait_events(21 + 20, timeout=HOLD + SLACK + 2)
            last = client.last_id
            assert int(last.rpartition(".")[2]) >= 41
        finally:
            server.resume()
        # It comes back as EventSource does, with the last id it has, wherever that is.
        back = [resume_soon(relay, last) for relay in (first, second)]
        whole(client, 200)
        for each in back:
            seen = each.finish()
            assert (seen.end, seen.ended) == ("done", "zero-chunk")
        assert check_log(server.client(), client.stream) == (201, "completed")
        whole(resume(second, f"{client.stream}.0"), 200)
        assert len(upstream.calls) == 1


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
            assert seen.with_ids == 401
            assert (elsewhere.payload, elsewhere.end, elsewhere.with_ids) == (400, "done", 401)
            assert check_log(replica.client(), running.stream) == (401, "completed")
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

    def test_large_pages_keep_no_lease_waiting(
        self, server: Server, proxies: list[FaultProxy], relays: Relays, upstream: ScriptedUpstream
    ) -> None:
        """One replica's line to the store is busy for many seconds with what its readers have asked for: the leases of
        its own streams are renewed all the same, and what was asked for arrives."""
        lease = 2.0
        first, second = two(relays, upstream, server.url, proxies[1].url, lease=f"{lease}s")
        size, count = 1 << 20, 6
        chunk = b'data: {"id":"c","choices":[{"index":0,"delta":{"content":"%b"}}]}\n\n' % (b"x" * size)
        upstream.on("large", *stream(*[chunk] * count, DONE))
        upstream.on("live", *paced(150, 0.1))
        large = []
        for _ in range(4):
            with ask(first, "large") as answer:
                assert len(answer.events()) == count + 1
                large.append(answer.headers["relay-stream-id"])
        live = [start(second, "live") for _ in range(3)]
        there = [resume(first, f"{client.stream}.0") for client in live]
        for client in there:
            client.wait_events(1)
        proxies[1].mode = Narrow(2 << 20)
        began = time.monotonic()
        with ThreadPoolExecutor(len(large)) as pool:
            read = list(pool.map(lambda name: len(ask_again(second, f"{name}.0").events()), large))
        assert read == [count + 1] * len(large)
        assert time.monotonic() - began > 3 * lease, "the line was not busy for long enough to show anything"
        for client in (*live, *there):
            whole(client, 150)

    def test_an_upstream_that_falls_silent_while_its_stream_is_made_has_timed_out(
        self, proxies: list[FaultProxy], relays: Relays, upstream: ScriptedUpstream
    ) -> None:
        relay = relays.start(config(proxies[0].url, upstream, upstream_idle_timeout="200ms", lease="10s"))
        proxies[0].mode = Delay(0.2)
        upstream.on("m", Head(200, {"content-type": "text/event-stream"}), Gate("never"))
        with ask(relay, "m") as answer:
            assert (answer.status, answer.json["error"]["code"]) == (504, "upstream_timeout")


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
