"""Replicas that die, stop, leave and come back, and clients that come back in crowds.

The oracle is the same everywhere: event n carries a text made from n, so what a client has, over all its
connections, is contiguous, unrepeated and right, with at most one end, which is last; and the upstream counts
its calls.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from itertools import count
from pathlib import Path

import pytest

from tests.support.clients import Client, Fleet, ends, terminals
from tests.support.oracle import DONE, check, frame
from tests.support.processes import RelayProcess, children, descriptors, needs, rss
from tests.support.replicas import HEARTBEAT, LEASE, SLACK, Probe, StoreView, paced, post, replicas, settings
from tests.support.scripted import Gate, ScriptedUpstream, stream
from tests.support.sseclient import RawStream, open_stream
from tests.support.stores import Store, valkey_server
from tests.support.waiting import wait_until


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with valkey_server(tmp_path / "store", unix=True) as server:
        yield server


@pytest.fixture
def view(store: Store) -> Iterator[StoreView]:
    with StoreView(store) as opened:
        yield opened


@pytest.fixture
def fleet() -> Iterator[Fleet]:
    with Fleet() as running:
        yield running


def stream_of(answer: RawStream) -> str:
    assert answer.status == 200, answer.read()
    return answer.headers["relay-stream-id"]


def status_of(relay: RelayProcess, path: str) -> tuple[int, str]:
    with open_stream(relay.url + path, "GET", timeout=5) as answer:
        body = answer.json
        return answer.status, str(body.get("status") or body["error"]["code"])


# -- death ----------------------------------------------------------------------------------------------------


def test_the_producing_replica_is_killed_under_many_streams(
    upstream: ScriptedUpstream, store: Store, view: StoreView, fleet: Fleet
) -> None:
    lease = 2.0
    streams = 100
    with replicas(2, settings(upstream, store, {"lease": lease})) as (doomed, other):
        upstream.on("m", *paced(400, 0.1))
        clients = [fleet.start(Client([doomed.url, other.url], "m")) for _ in range(streams)]
        for client in clients:
            client.wait_events(5)
        doomed.kill()
        killed_at = time.monotonic()
        fleet.wait(lease + HEARTBEAT + 30)
        for client in clients:
            payload, end = check(client.events)
            assert end == "producer_lost"
            assert payload >= 5
            assert terminals(client.events) == 1
            assert client.stream is not None
            log = view.log(client.stream)
            assert log.ends == ["producer_lost"]
            assert client.numbered == log.events, "all that was written, and nothing else"
            assert client.events[-1].id == f"{client.stream}.{payload}e"
        slowest = max(client.ended_at or 0.0 for client in clients) - killed_at
        assert slowest < lease + HEARTBEAT + SLACK
        assert len(upstream.calls) == streams
        # A late one gets the same bytes.
        assert clients[0].stream is not None
        late = fleet.start(Client([other.url], "m", stream=clients[0].stream))
        fleet.wait(20)
        assert late.raw == clients[0].raw
        assert len(upstream.calls) == streams


def test_a_reading_replica_is_killed(upstream: ScriptedUpstream, store: Store, fleet: Fleet) -> None:
    with replicas(3, settings(upstream, store)) as (producing, doomed, other):
        upstream.on("m", *paced(60, 0.05))
        writers = [fleet.start(Client([producing.url], "m")) for _ in range(10)]
        for writer in writers:
            writer.wait_events(1)
        readers = [
            fleet.start(Client([doomed.url, other.url], "m", stream=writer.stream)) for writer in writers for _ in "ab"
        ]
        for reader in readers:
            reader.wait_events(10)
        doomed.kill()
        fleet.wait(60)
        assert ends(writers + readers) == {"done"}
        assert {writer.cuts for writer in writers} == {0}
        assert all(reader.cuts >= 1 and reader.connections >= 2 for reader in readers)
        for reader, writer in zip(readers, [w for w in writers for _ in "ab"], strict=True):
            assert reader.raw == writer.raw
        assert len(upstream.calls) == len(writers)


def test_who_hops_to_a_replica_that_lags_behind_is_not_told_that_the_log_does(
    upstream: ScriptedUpstream, store: Store
) -> None:
    """It follows the stream already, but no bell rings there: it finds new events by its checks alone."""
    store.servers[0].command("ACL", "SETUSER", "deaf", "on", ">deaf", "~*", "+@all", "resetchannels")
    config = settings(upstream, store, {"lease": "20s"})
    deaf = {**config, "store": {"url": store.url + "?username=deaf&password=deaf"}}
    upstream.on("m", *stream(frame(1), Gate("one"), frame(2), Gate("two"), frame(3), DONE))
    with RelayProcess(config) as producing, RelayProcess(deaf) as lagging:
        writer = post(producing, "m")
        writer.events(1)
        follower = post(lagging, "m", f"{writer.headers['relay-stream-id']}.0")
        follower.events(1)
        upstream.open("one")
        (second,) = writer.events(1)
        writer.close()
        with post(lagging, "m", second.id) as hopped:
            assert hopped.status == 200, hopped.read()
            upstream.open("two")
            assert [event.id for event in hopped.events()] == [f"{second.id[:-1]}{n}" for n in (3, 4)]
        assert len(follower.events()) == 3
        follower.close()


def test_a_rolling_restart_under_load_is_not_noticed(
    upstream: ScriptedUpstream, store: Store, view: StoreView, fleet: Fleet
) -> None:
    """Three replicas are stopped in order and started again, one after the other, while clients write, follow
    and hop between replicas. No client ends in anything but a whole answer."""
    config = settings(upstream, store, {"lease": 3.0}, drain={"timeout": "60s"})
    with replicas(3, config) as trio:
        urls = [relay.url for relay in trio]
        upstream.on("m", *paced(30, 0.1))
        rolled = threading.Event()
        done: list[Client] = []
        turn = count()

        async def write_and_follow() -> None:
            while not rolled.is_set():
                at = next(turn)
                writer = Client(urls, "m", first=at, hops=(7, 19) if at % 2 else ())
                done.append(writer)
                await writer.run()
                assert writer.stream is not None
                done.append(Client(urls, "m", stream=writer.stream, first=at + 1))
                await done[-1].run()

        writing = [fleet.submit(write_and_follow()) for _ in range(15)]
        followed: set[str] = set()
        visitors: list[Client] = []

        def follow_new() -> None:
            followers = []
            for writer in done[:]:
                if writer.stream is not None and writer.stream not in followed:
                    followed.add(writer.stream)
                    followers.append(fleet.start(Client(urls, "m", stream=writer.stream, first=next(turn))))
            done.extend(followers)
            for follower in followers:
                follower.wait_events(1)

        wait_until(lambda: len(done) >= 15 and all(c.events for c in done[:15]), 30, "all clients read")
        for i, relay in enumerate(trio):
            follow_new()
            # One that reads here what the next replica produces: it must be sent away.
            pinned = fleet.start(Client(urls, "m", first=i + 1))
            pinned.wait_events(1)
            visitor = fleet.start(Client(urls, "m", stream=pinned.stream, first=i))
            visitor.wait_events(1)
            done += (pinned, visitor)
            visitors.append(visitor)
            relay.signal(signal.SIGTERM)
            assert relay.wait(30) == 0
            follow_new()
            relay.start()
        follow_new()
        rolled.set()
        for future in writing:
            future.result(60)
        fleet.wait(60)
        assert ends(done) == {"done"}
        assert {check(client.events)[0] for client in done} == {30}
        assert not any(client.unanswered or client.refusals for client in done)
        assert all(visitor.cuts for visitor in visitors), "no reader was sent elsewhere: the test shows nothing"
        by_stream = {client.stream: client.raw for client in done}
        assert all(client.raw == by_stream[client.stream] for client in done)
        assert len(upstream.calls) == len(by_stream)
        assert all(view.log(stream or "").ends == ["completed"] for stream in by_stream)


# -- a producer that sleeps ----------------------------------------------------------------------------------


def test_a_producer_that_slept_past_its_lease_is_fenced(
    upstream: ScriptedUpstream, store: Store, view: StoreView, fleet: Fleet
) -> None:
    with replicas(2, settings(upstream, store)) as (sleeper, other):
        upstream.on("m", *paced(600, 0.05))
        attached = [fleet.start(Client([sleeper.url], "m")) for _ in range(8)]
        for client in attached:
            client.wait_events(5)
        sleeper.signal(signal.SIGSTOP)
        try:
            # Half of the streams are met by a reader elsewhere, half are found by the sweep.
            elsewhere = [fleet.start(Client([other.url], "m", stream=c.stream)) for c in attached[:4]]
            wait_until(
                lambda: all(view.end(c.stream or "") == "producer_lost" for c in attached),
                3 * LEASE + SLACK,
                "all streams ended",
            )
            ended = {c.stream: view.log(c.stream or "") for c in attached}
        finally:
            sleeper.signal(signal.SIGCONT)
        fleet.wait(30)
        for client in attached + elsewhere:
            log = ended[client.stream]
            assert client.end == "producer_lost"
            assert client.numbered == log.events
            assert log.ends == ["producer_lost"]
            assert view.log(client.stream or "") == log, "the log of an ended stream has changed"
        calls = upstream.calls
        assert len(calls) == len(attached)
        for call in calls:
            assert call.ended.wait(10)
            assert call.cancelled
        # The sleeper is a sound replica again.
        again = fleet.start(Client([sleeper.url], "short"))
        upstream.on("short", *paced(3, 0))
        fleet.wait(20)
        assert again.end == "done"


@pytest.mark.parametrize("asleep", [LEASE + 1.5, 7.0], ids=["past-the-lease", "past-the-hold"])
def test_a_producer_that_slept_in_the_middle_of_an_append_is_fenced(
    upstream: ScriptedUpstream, store: Store, view: StoreView, fleet: Fleet, asleep: float
) -> None:
    """The append was sent and not answered when the process was stopped. That is no outage of the store, however
    long it lasts: the producer may not go on without a log that someone else has ended."""
    with replicas(2, settings(upstream, store)) as (sleeper, other):
        upstream.on("m", *paced(600, 0.02, gate_after=5))
        clients = [fleet.start(Client([sleeper.url], "m")) for _ in range(3)]
        for client in clients:
            client.wait_events(5)
        server = store.servers[0]
        server.pause()
        try:
            upstream.open("gate")
            time.sleep(0.3)  # the appends are on their way, and nothing tells when
            sleeper.signal(signal.SIGSTOP)
        finally:
            server.resume()
        try:
            time.sleep(asleep)  # the fault is this time
            wait_until(lambda: all(view.end(c.stream or "") for c in clients), 3 * LEASE + SLACK, "all streams ended")
            ended = {c.stream: view.log(c.stream or "") for c in clients}
        finally:
            sleeper.signal(signal.SIGCONT)
        fleet.wait(30)
        for client in clients:
            assert client.end == "producer_lost"
            assert client.numbered == ended[client.stream].events
            assert view.log(client.stream or "") == ended[client.stream]
        for call in upstream.calls:
            assert call.ended.wait(10)
            assert call.cancelled
        late = fleet.start(Client([other.url], "m", stream=clients[0].stream))
        fleet.wait(20)
        assert late.raw == clients[0].raw


def test_a_replica_an_hour_off_has_no_effect(
    upstream: ScriptedUpstream, store: Store, view: StoreView, fleet: Fleet, tmp_path: Path
) -> None:
    needs(shutil.which("faketime"), "Debian package faketime")
    library = next(Path("/usr/lib").glob("*/faketime/libfaketime.so.1"), None)
    needs(library, "Debian package libfaketime")
    probe = Probe(tmp_path)
    fake = {**probe.env, "LD_PRELOAD": str(library), "FAKETIME_DONT_FAKE_MONOTONIC": "1"}
    config = settings(upstream, store)
    with (
        RelayProcess(config, {**fake, "FAKETIME": "+3600s"}) as ahead,
        RelayProcess(config, {**fake, "FAKETIME": "-3600s"}) as behind,
        RelayProcess(config) as right,
    ):
        for relay, hours in ((ahead, 1), (behind, -1)):
            off = probe.ask(relay.pid)["time"] - time.time()
            assert abs(off - hours * 3600) < 60, "the clock of that process was not shifted"
            with open_stream(relay.url + "/livez", "GET") as answer:
                date = parsedate_to_datetime(answer.headers["date"])
            assert abs((date - datetime.now(UTC)).total_seconds() - hours * 3600) < 60
        # Long enough for every lease to lapse that one of these clocks would let lapse.
        upstream.on("m", *paced(60, LEASE / 20))
        urls = [ahead.url, behind.url, right.url]
        writers = [fleet.start(Client(urls, "m", first=at, hops=(10, 20, 30))) for at in range(6)]
        for writer in writers:
            writer.wait_events(1)
        readers = [
            fleet.start(Client(urls, "m", stream=writer.stream, first=at)) for writer in writers for at in range(3)
        ]
        fleet.wait(60)
        assert ends(writers + readers) == {"done"}
        assert {len(client.refusals) for client in writers + readers} == {0}
        assert len(upstream.calls) == len(writers)
        # And a producer that dies is found out in time, by and beside wrong clocks.
        upstream.on("long", *paced(600, 0.05))
        doomed = [fleet.start(Client([at, right.url], "long")) for at in (ahead.url, behind.url)]
        for client in doomed:
            client.wait_events(5)
        killed_at = time.monotonic()
        ahead.kill()
        behind.kill()
        fleet.wait(30)
        assert ends(doomed) == {"producer_lost"}
        assert max(client.ended_at or 0.0 for client in doomed) - killed_at < LEASE + HEARTBEAT + SLACK
        assert all(view.log(client.stream or "").ends == ["producer_lost"] for client in doomed)


def test_streams_that_nobody_reads_are_swept(
    upstream: ScriptedUpstream, store: Store, view: StoreView, fleet: Fleet
) -> None:
    """Three replicas race to end the streams of a fourth; each ends once, and what was written is still there."""
    with replicas(4, settings(upstream, store)) as (doomed, *others):
        upstream.on("m", *paced(10, 0, gate_after=6))
        streams = []
        for _ in range(12):
            with post(doomed, "m") as answer:
                streams.append(stream_of(answer))
                assert check(answer.events(6)) == (6, None)
        assert view.replicas_with_streams() == 1
        doomed.kill()
        swept = 2 * LEASE + SLACK
        wait_until(lambda: all(view.end(stream) is not None for stream in streams), swept, "the streams' sweep")
        for stream in streams:
            log = view.log(stream)
            assert log.ends == ["producer_lost"]
            assert (len(log.frames), log.closing) == (6, b"")
        late = [
            fleet.start(Client([relay.url], "m", stream=stream))
            for stream, relay in zip(streams, others * 4, strict=True)
        ]
        fleet.wait(20)
        for client in late:
            assert check(client.events) == (6, "producer_lost")
            assert terminals(client.events) == 1
        wait_until(lambda: view.replicas_with_streams() == 0, swept, "the end of the dead replica's register")
        assert len(upstream.calls) == len(streams)
        assert not any(view.log(stream).ends != ["producer_lost"] for stream in streams)


# -- drain ----------------------------------------------------------------------------------------------------


def test_a_draining_replica_takes_nothing_new_sends_visitors_away_and_finishes_its_own(
    upstream: ScriptedUpstream, store: Store, view: StoreView
) -> None:
    config = settings(upstream, store, drain={"timeout": "60s"})
    with replicas(2, config) as (leaving, staying):
        upstream.on("own", *paced(20, 0, gate_after=10, gate="own"))
        upstream.on("other", *paced(20, 0, gate_after=10, gate="other"))
        with post(leaving, "own") as own, post(staying, "other") as other:
            own_id, other_id = stream_of(own), stream_of(other)
            own_seen, other_seen = own.events(10), other.events(10)
            with post(leaving, "other", f"{other_id}.0") as visitor, post(staying, "own", f"{own_id}.0") as away:
                visitor_seen, away_seen = visitor.events(10), away.events(10)
                assert status_of(leaving, "/readyz") == (200, "ok")
                leaving.signal(signal.SIGTERM)
                began = time.monotonic()
                visitor_seen += visitor.events()
                assert time.monotonic() - began < SLACK, "visitors are to be sent away at once"
                assert visitor.ended in ("fin", "reset"), "a cut must not look like an end"
                assert check(visitor_seen) == (10, None)
                # Whoever was sent away cannot come back to it, and a probe sees the same.
                for path in ("/readyz", "/streams/" + other_id):
                    with pytest.raises(ConnectionRefusedError):
                        open_stream(leaving.url + path, "GET")
                # A visitor's way on, and a way back to a stream that still runs on the replica that leaves.
                with post(staying, "other", f"{other_id}.10") as moved, post(staying, "own", f"{own_id}.4") as back:
                    upstream.open("other")
                    assert check(visitor_seen + moved.events()) == (20, "done")
                    assert check(other_seen + other.events()) == (20, "done")
                    assert leaving.returncode is None
                    upstream.open("own")
                    assert check(own_seen + own.events()) == (20, "done")
                    assert check(back.events(), first=5) == (16, "done")
                    assert check(away_seen + away.events()) == (20, "done")
                    assert {own.ended, moved.ended, back.ended, away.ended, other.ended} == {"zero-chunk"}
                assert leaving.wait(15) == 0
        assert view.log(own_id).ends == ["completed"]
        assert len(upstream.calls) == 2
        with post(staying, "own", f"{own_id}.0") as replay:
            assert check(replay.events()) == (20, "done")


def test_what_is_left_after_the_drain_is_told_so(upstream: ScriptedUpstream, store: Store, view: StoreView) -> None:
    with replicas(2, settings(upstream, store, drain={"timeout": "700ms"})) as (leaving, staying):
        upstream.on("m", *paced(20, 0, gate_after=10))
        with post(leaving, "m") as own:
            stream = stream_of(own)
            own_seen = own.events(10)
            with post(staying, "m", f"{stream}.0") as away:
                away_seen = away.events(10)
                leaving.signal(signal.SIGTERM)
                own_seen += own.events()
                away_seen += away.events()
                assert check(own_seen) == check(away_seen) == (10, "shutdown")
                assert terminals(own_seen) == 1
                assert (own.ended, away.ended) == ("zero-chunk", "zero-chunk")
        assert leaving.wait(15) == 0
        log = view.log(stream)
        assert log.ends == ["shutdown"]
        assert b"".join(e.raw for e in own_seen) == log.raw
        (call,) = upstream.calls
        assert call.ended.wait(10)
        assert call.cancelled
        wait_until(lambda: view.replicas_with_streams() == 0, 2 * LEASE + SLACK, "the end of the register")
        assert view.log(stream) == log


def test_a_second_sigterm_ends_at_once(upstream: ScriptedUpstream, store: Store, view: StoreView) -> None:
    with replicas(1, settings(upstream, store, drain={"timeout": "600s"})) as (leaving,):
        upstream.on("m", *paced(20, 0, gate_after=10))
        with post(leaving, "m") as own:
            seen = own.events(10)
            leaving.signal(signal.SIGTERM)
            wait_until(lambda: "draining" in leaving.log(), SLACK, "the drain")
            with pytest.raises(TimeoutError):
                wait_until(lambda: leaving.returncode is not None, 0.5, "the exit")
            leaving.signal(signal.SIGTERM)
            seen += own.events()
            assert check(seen) == (10, "shutdown")
            assert own.ended == "zero-chunk"
        assert leaving.wait(10) == 0
        assert view.log(stream_of(own)).ends == ["shutdown"]


def test_an_idle_replica_with_idle_connections_leaves_at_once(upstream: ScriptedUpstream, store: Store) -> None:
    with replicas(1, settings(upstream, store, drain={"timeout": "600s"})) as (leaving,):
        idle = open_stream(leaving.url + "/livez", "GET")
        assert idle.json == {"status": "ok"}
        leaving.signal(signal.SIGTERM)
        assert leaving.wait(SLACK) == 0
        idle.close()


# -- workers --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["embedded", "shared"])
def test_two_workers_are_two_replicas_of_one_address(
    upstream: ScriptedUpstream, store: Store, fleet: Fleet, kind: str
) -> None:
    config = settings(upstream, store if kind == "shared" else None, workers=2, drain={"timeout": "60s"})
    with replicas(1, config) as (relay,):
        upstream.on("m", *paced(40, 0.05))
        workers = set(children(relay.pid))
        assert len(workers) == 2 + (kind == "embedded")
        # Each hop is a new connection, so it lands on either worker.
        clients = [fleet.start(Client([relay.url], "m", hops=range(3, 36, 4))) for _ in range(16)]
        for client in clients:
            client.wait_events(20)
        followers = [fleet.start(Client([relay.url], "m", stream=client.stream)) for client in clients]
        for follower in followers:
            follower.wait_events(20)
        relay.signal(signal.SIGTERM)
        assert relay.wait(20) == 0
        assert not any(Path(f"/proc/{worker}").exists() for worker in workers)
        # Whoever was sent away finds all of it after the restart: both workers had left at the same time.
        relay.start()
        fleet.wait(60)
        assert ends(clients + followers) == {"done"}
        assert len(upstream.calls) == len(clients)


def test_a_worker_that_dies_is_replaced_and_its_streams_are_told(
    upstream: ScriptedUpstream, store: Store, view: StoreView, fleet: Fleet
) -> None:
    with replicas(1, settings(upstream, store, workers=2)) as (relay,):
        upstream.on("m", *paced(120, 0.05))
        before = set(children(relay.pid))
        clients = [fleet.start(Client([relay.url], "m")) for _ in range(12)]
        for client in clients:
            client.wait_events(5)
        os.kill(min(before), signal.SIGKILL)
        wait_until(lambda: len(set(children(relay.pid)) - {min(before)}) == 2, 10, "a new worker")
        fleet.wait(60)
        assert ends(clients) <= {"done", "producer_lost"}
        for client in clients:
            log = view.log(client.stream or "")
            assert client.numbered == log.events
            assert (client.cuts > 0) == (client.end == "producer_lost")
        assert len(upstream.calls) == len(clients)


# -- crowds ---------------------------------------------------------------------------------------------------


def test_two_resumes_at_the_same_point_get_the_same_bytes(upstream: ScriptedUpstream, store: Store) -> None:
    with replicas(2, settings(upstream, store)) as (first, second):
        upstream.on("m", *paced(40, 0, gate_after=20))
        with post(first, "m") as answer:
            stream = stream_of(answer)
            seen = answer.events(20)
            at = f"{stream}.12"
            twins = [post(relay, "m", at) for relay in (first, first, second, second)]
            halves = [twin.events(8) for twin in twins]
            upstream.open("gate")
            seen += answer.events()
            raw = b"".join(event.raw for event in seen[12:])
            for twin, half in zip(twins, halves, strict=True):
                with twin:
                    assert b"".join(event.raw for event in half + twin.events()) == raw
                    assert twin.ended == "zero-chunk"
        assert check(seen) == (40, "done")
        assert len(upstream.calls) == 1


def test_a_thousand_reconnects_of_one_client_leave_nothing_behind(
    upstream: ScriptedUpstream, store: Store, tmp_path: Path
) -> None:
    probe = Probe(tmp_path)
    with replicas(2, settings(upstream, store), probe.env) as (first, second):
        pair = (first, second)
        upstream.on("m", *paced(60, 0, gate_after=50))
        with post(first, "m") as answer:
            stream = stream_of(answer)
            seen = answer.events(50)
            frames = [event.raw for event in seen]
            draw = random.Random(7)

            def reconnect(times: int) -> None:
                for i in range(times):
                    n = draw.randint(0, 50)
                    with post(pair[i % 2], "m", f"{stream}.{n}") as again:
                        assert stream_of(again) == stream
                        if n < 50:
                            (event,) = again.take(1)
                            assert event.raw == frames[n]

            reconnect(100)
            settled = [(p, descriptors(p.pid), rss(p.pid)) for p in pair]
            baseline = {p.pid: len(probe.tasks(p.pid)) for p in pair}
            began = time.monotonic()
            reconnect(1000)
            assert time.monotonic() - began < 60
            for p, open_before, memory in settled:
                wait_until(lambda p=p, n=open_before: descriptors(p.pid) <= n, 10, "descriptors given back")
                wait_until(lambda p=p: len(probe.tasks(p.pid)) <= baseline[p.pid], 10, "tasks ended")
                assert rss(p.pid) - memory < 8 << 20
            upstream.open("gate")
            assert check(seen + answer.events()) == (60, "done")
        assert len(upstream.calls) == 1


@pytest.mark.parametrize("streams", [1, 50], ids=["one-stream", "many-streams"])
def test_a_crowd_that_comes_back_at_once(
    upstream: ScriptedUpstream, store: Store, fleet: Fleet, tmp_path: Path, streams: int
) -> None:
    """500 clients, four times over: half to the producing replica, half to another."""
    crowd = 500
    probe = Probe(tmp_path)
    config = settings(upstream, store, {"lease": 5.0}, limits={"readers_per_stream": crowd})
    with replicas(2, config, probe.env) as pair:
        producing, other = pair
        upstream.on("m", *paced(320, 0, gate_after=300))
        owners = [post(producing, "m") for _ in range(streams)]
        ids = [stream_of(owner) for owner in owners]
        seen = [owner.events(300) for owner in owners]

        idle: dict[int, tuple[int, int]] = {}
        for pid in (producing.pid, other.pid):
            idle[pid] = (descriptors(pid), len(probe.tasks(pid)))
        memory: dict[int, int] = {}
        for _ in range(3):
            # They read to the head of the live streams and vanish.
            visits = [
                fleet.start(Client([pair[i % 2].url], "m", stream=ids[i % streams], after=200, leave_after=100))
                for i in range(crowd)
            ]
            for i, visit in enumerate(visits):
                visit.wait_events(100)
                assert visit.raw == b"".join(event.raw for event in seen[i % streams][200:300])
            for pid, (open_before, tasks) in idle.items():
                # The other replica has opened what it needs for tailing, once: a few tasks and descriptors.
                wait_until(lambda p=pid, n=open_before: descriptors(p) <= n + 2, 20, "descriptors given back")
                wait_until(lambda p=pid, n=tasks: len(probe.tasks(p)) <= n + 2, 20, "tasks ended")
            memory = memory or {pid: rss(pid) for pid in idle}
        assert max(rss(pid) - memory[pid] for pid in idle) < 12 << 20

        # The fourth time they stay to the end.
        stayers = [
            fleet.submit(Client([pair[i % 2].url], "m", stream=ids[i % streams], after=290).run()) for i in range(crowd)
        ]
        upstream.open("gate")
        for i, future in enumerate(stayers):
            client = future.result(60)
            assert client.end == "done"
            seen_by_owner = seen[i % streams]
            if len(seen_by_owner) == 300:
                seen_by_owner += owners[i % streams].events()
            assert client.raw == b"".join(event.raw for event in seen_by_owner[290:])
        for owner, whole in zip(owners, seen, strict=True):
            owner.close()
            assert check(whole) == (320, "done")
        assert len(upstream.calls) == streams
        wait_until(lambda: descriptors(other.pid) <= idle[other.pid][0] + 2, 20, "descriptors given back")
        wait_until(lambda: len(probe.tasks(other.pid)) <= idle[other.pid][1] + 2, 20, "tasks ended")
        assert max(rss(pid) - memory[pid] for pid in idle) < 16 << 20
