"""The group commit on real servers: one stream's trouble is that stream's alone, and a store that is away is asked
until it answers, while its streams are told in time."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from relay.config import StoreSettings, StreamSettings
from relay.metrics import Metrics
from relay.protocol.end_mark import End
from relay.protocol.errors import StoreUnavailable
from relay.store.log import Log
from relay.store.pubsub import ShardSubscriptions
from relay.store.scripts import FENCED, GONE, MISMATCH, OK
from relay.store.topology import connect
from relay.streams.ahead import Ahead
from relay.streams.commit import Committer
from relay.streams.commit_queue import HoldClock
from relay.streams.writer import LogWriter
from tests.support.resharding import cluster_replica, start_move, take_over
from tests.support.stores import ClusterStore, Server, valkey_cluster, valkey_server

pytestmark = pytest.mark.slow

SOON = 3.0  # what a loaded machine may add
FIELDS = {"api": "chat", "owner": "o", "upstream": "u", "model": "m", "replica": "r"}


class _Writer(LogWriter):
    """What the commit tells it, its stream is told, and nothing else comes of it."""

    listener: Any

    def on_append_result(self, code: int, top: int, sent: int, ended: bool) -> bool:
        return bool(self.listener.on_append_result(code, top, sent, ended))

    def on_store_away(self) -> None:
        self.listener.on_store_away()


class Stream:
    """A listener that appends what it is given, and remembers what it was told."""

    def __init__(self, name: str, log: Log, committer: Committer) -> None:
        self.name = name
        meter = Metrics().meter("chat", "u", "m")
        self.writer: LogWriter = _Writer(
            name,
            log,
            self,  # type: ignore[arg-type]
            submit=committer.submit,
            meter=meter,
            ahead=Ahead(1 << 30),
            max_bytes=1 << 30,
        )
        self.told: list[Any] = []
        self.raises: dict[str, Exception] = {}  # by method
        self._committer = committer
        self._changed = asyncio.Event()

    def put(self, *frames: bytes, outcome: str = "") -> None:
        self.writer.feed.frames += frames
        self.writer.outcome = outcome
        self.writer.end = End(outcome)
        self._committer.submit(self.writer)

    async def holds(self, top: int) -> None:
        await self.until(lambda: self.writer.acked == top)

    async def until(self, predicate: Callable[[], bool], within: float = 20.0) -> None:
        async with asyncio.timeout(within):
            while not predicate():
                self._changed.clear()
                await self._changed.wait()

    def count(self, what: str) -> int:
        return self.told.count(what)

    def usage_summary(self) -> str:
        self._raise("usage_summary")
        return "1/2"

    def on_append_result(self, code: int, top: int, sent: int, ended: bool) -> bool:
        self._tell((code, top))
        self._raise("on_append_result")
        self.writer.acked = sent if code == OK else min(top, len(self.writer.feed.frames))
        if code in (FENCED, GONE) or (code == OK and ended):
            return False
        return self.writer.acked < len(self.writer.feed.frames) or bool(self.writer.outcome)

    def on_store_away(self) -> None:
        self._tell("away")
        self._raise("on_store_away")

    def on_fault(self, error: Exception) -> None:
        self._tell(error)
        self._raise("on_fault")

    def _tell(self, what: Any) -> None:
        self.told.append(what)
        self._changed.set()

    def _raise(self, method: str) -> None:
        if (error := self.raises.get(method)) is not None:
            raise error


class Scene:
    def __init__(self, url: str, hold: float, timeout: float) -> None:
        self.log = Log(connect(url, timeout), StreamSettings(), StoreSettings(url=url, hold=hold))
        self.committer = Committer(self.log, Metrics())

    async def stream(self, name: str) -> Stream:
        await self.log.create(name, FIELDS, "1")
        return Stream(name, self.log, self.committer)

    async def streams(self, *names: str) -> list[Stream]:
        return [await self.stream(name) for name in names]

    async def frames(self, stream: Stream) -> list[bytes]:
        return (await self.log.read(stream.name, 0)).frames


Story = Callable[[Scene], Awaitable[None]]


def play(url: str, story: Story, *, hold: float = 5.0, timeout: float = 2.0) -> None:
    async def scene() -> None:
        it = Scene(url, hold, timeout)
        try:
            await story(it)
        finally:
            await it.committer.close()
            await it.log.topology.close()

    asyncio.run(scene())


@pytest.fixture(params=["one-server", "cluster"])
def url(request: pytest.FixtureRequest) -> str:
    if request.param == "cluster":
        return str(request.getfixturevalue("cluster").url)
    return str(request.getfixturevalue("server").url)


class TestOneStreamsFault:
    def test_raised_on_a_reply(self, url: str) -> None:
        async def story(it: Scene) -> None:
            bad, *good = await it.streams("bad-reply", *(f"good-reply{n}" for n in range(4)))
            for stream in (bad, *good):
                stream.put(b"1")
                await stream.holds(1)
            fault = bad.raises["on_append_result"] = RuntimeError("a fault in one stream")
            for stream in (good[0], bad, *good[1:]):  # in one flush, in the middle of it
                stream.put(b"2")
            for stream in good:
                await stream.holds(2)
            assert bad.told[-1] is fault
            for stream in good:
                stream.put(b"3")
                await stream.holds(3)
                assert stream.told == [(OK, 1), (OK, 2), (OK, 3)]
            bad.raises.clear()
            bad.put()  # it is behind by what it did not take in, which the log tells it
            await bad.holds(2)
            last: object = bad.told[-1]
            assert last == (MISMATCH, 2)

        play(url, story)

    @pytest.mark.parametrize("method", ["usage_summary", "on_fault"])
    def test_raised_on_the_way_to_the_store(self, method: str, url: str) -> None:
        async def story(it: Scene) -> None:
            bad, *good = await it.streams(f"bad-{method}", *(f"good-{method}{n}" for n in range(4)))
            fault = bad.raises["usage_summary"] = RuntimeError("a fault in one stream")
            bad.raises[method] = fault
            for stream in (good[0], bad, *good[1:]):
                stream.put(b"1", outcome="completed")
            for stream in good:
                await stream.until(lambda stream=stream: stream.told == [(OK, 1)])  # type: ignore[misc]
            await bad.until(lambda: bad.told[:1] == [fault])
            again = await it.stream(f"again-{method}")
            again.put(b"1")
            await again.holds(1)

        play(url, story)

    @pytest.mark.parametrize("frame", [None, [1]], ids=["without-a-size", "not-bytes"])
    def test_a_frame_that_cannot_be_sent(self, frame: object, url: str) -> None:
        async def story(it: Scene) -> None:
            bad, *good = await it.streams(f"bad-{frame}", *(f"good-{frame}{n}" for n in range(4)))
            for stream in (good[0], bad, *good[1:]):
                stream.put(b"1" if stream is not bad else frame)  # type: ignore[arg-type]
            for stream in good:
                await stream.holds(1)
            await bad.until(lambda: len(bad.told) == 1)
            assert isinstance(bad.told[0], (TypeError, AttributeError))

        play(url, story)

    def test_a_log_of_another_type_waits_alone(self, url: str) -> None:
        async def story(it: Scene) -> None:
            bad, *good = await it.streams("bad-type", *(f"good-type{n}" for n in range(4)))
            key = it.log.names.log(bad.name)
            await it.log.commands.call(key, "SET", key, "no stream")
            for stream in (good[0], bad, *good[1:]):
                stream.put(b"1")
            for stream in good:
                await stream.holds(1)
            await bad.until(lambda: bad.told == ["away"])
            for stream in good:
                stream.put(b"2")
                await stream.holds(2)
                assert "away" not in stream.told
            await it.log.commands.call(key, "DEL", key)
            await bad.holds(1)
            assert bad.told == ["away", (OK, 1)]

        play(url, story, hold=0.5)

    def test_raised_when_the_store_is_away(self, server: Server) -> None:
        async def story(it: Scene) -> None:
            bad, good = await it.streams("bad", "good")
            bad.raises["on_store_away"] = fault = RuntimeError("a fault in one stream")
            server.kill()
            bad.put(b"1")
            good.put(b"1")
            await good.until(lambda: bool(good.count("away")))
            assert bad.told == ["away", fault]

        play(server.url, story, hold=0.3)


class TestAStoreThatIsAway:
    @pytest.mark.parametrize("how", ["killed", "silent"])
    def test_told_in_time_and_asked_until_it_answers(self, how: str, tmp_path: Path) -> None:
        server: Server
        hold = 1.2

        async def story(it: Scene) -> None:
            streams = await it.streams("a", "b", "c")
            for stream in streams:
                stream.put(b"1")
                await stream.holds(1)
            (server.kill if how == "killed" else server.pause)()
            began = time.monotonic()
            for stream in streams:
                stream.put(b"2")
            for stream in streams:
                await stream.until(lambda stream=stream: bool(stream.count("away")))  # type: ignore[misc]
            assert hold - 0.1 <= time.monotonic() - began < hold + 1.0
            # Who comes while it is away is told at once.
            late = Stream("late", it.log, it.committer)
            late.put(b"1")
            began = time.monotonic()
            await late.until(lambda: bool(late.count("away")))
            assert time.monotonic() - began < 0.5
            if how == "killed":
                await asyncio.to_thread(server.restart)
            else:
                server.resume()
            for stream in streams:
                stream.put(b"3")
                await stream.holds(3)
                assert await it.frames(stream) == [b"1", b"2", b"3"]
                assert stream.count("away") == 1
            await late.until(lambda: late.told[-1] == (GONE, 0))
            fresh = await it.stream("fresh")
            fresh.put(b"1")
            await fresh.holds(1)
            assert not fresh.count("away")

        with valkey_server(tmp_path, appendonly=True, config=[("appendfsync", "always")]) as store:
            (server,) = store.servers
            play(store.url, story, hold=hold, timeout=0.5)

    def test_one_that_answers_everything_but_appends(self, server: Server) -> None:
        """Its connections open again and again, which is no reason to wait for longer."""

        async def story(it: Scene) -> None:
            stream = await it.stream("s")
            stream.put(b"1")
            await stream.holds(1)
            server.command("CLIENT", "PAUSE", 60_000, "WRITE")
            began = time.monotonic()
            stream.put(b"2")
            await stream.until(lambda: bool(stream.count("away")))
            assert 0.9 <= time.monotonic() - began < 1.0 + SOON
            server.command("CLIENT", "UNPAUSE")
            await stream.holds(2)

        play(server.url, story, hold=1.0, timeout=0.3)

    def test_a_short_one_is_not_told(self, tmp_path: Path) -> None:
        server: Server

        async def story(it: Scene) -> None:
            stream = await it.stream("s")
            stream.put(b"1")
            await stream.holds(1)
            await asyncio.to_thread(server.stop)
            stream.put(b"2")
            await asyncio.to_thread(server.start)
            await stream.holds(2)
            assert not stream.count("away")

        with valkey_server(tmp_path, appendonly=True) as store:
            (server,) = store.servers
            play(store.url, story)

    def test_one_that_takes_no_writes(self, server: Server) -> None:
        async def story(it: Scene) -> None:
            one, two = await it.streams("one", "two")
            server.command("CONFIG", "SET", "maxmemory", "1")
            for stream in (one, two):
                stream.put(b"1")
            for stream in (one, two):
                await stream.until(lambda stream=stream: bool(stream.count("away")))  # type: ignore[misc]
            server.command("CONFIG", "SET", "maxmemory", "0")
            for stream in (one, two):
                await stream.holds(1)

        play(server.url, story, hold=0.5)

    def test_scripts_that_were_forgotten(self, url: str, request: pytest.FixtureRequest) -> None:
        async def story(it: Scene) -> None:
            streams = await it.streams(*(f"script{n}" for n in range(6)))
            for stream in streams:
                stream.put(b"1")
                await stream.holds(1)
            for node in it.log.topology.nodes():
                await node.query.call("SCRIPT", "FLUSH")
            for stream in streams:
                stream.put(b"2")
            for stream in streams:
                await stream.holds(2)
                assert (OK, 2) in stream.told

        play(url, story)

    def test_shards_are_away_each_for_itself(self, tmp_path: Path) -> None:
        async def story(it: Scene) -> None:
            await it.log.topology.refresh()
            streams = await it.streams(*(f"s{n}" for n in range(12)))
            lost = [s for s in streams if store.of_key(f"relay:{{{s.name}}}:log") is store.servers[1]]
            rest = [s for s in streams if s not in lost]
            assert lost
            store.servers[1].kill()
            for stream in streams:
                stream.put(b"1")
            for stream in rest:
                await stream.holds(1)
            for stream in lost:
                await stream.until(lambda stream=stream: bool(stream.count("away")))  # type: ignore[misc]
            for stream in rest:
                # The Cluster as a whole goes down, where not told otherwise, once it misses a shard; not before.
                assert "away" not in stream.told

        with valkey_cluster(tmp_path) as store:
            assert isinstance(store, ClusterStore)
            for server in store.servers:
                server.command("CONFIG", "SET", "cluster-require-full-coverage", "no")
            play(store.url, story, hold=0.5)


class TestSlotsThatMove:
    def test_only_its_streams_go_along(self, cluster: ClusterStore) -> None:
        async def story(it: Scene) -> None:
            streams = await it.streams(*(f"move{n}" for n in range(8)))
            for stream in streams:
                stream.put(b"1")
                await stream.holds(1)
            move = await asyncio.to_thread(start_move, cluster, f"relay:{{{streams[0].name}}}:log")
            await asyncio.to_thread(move.finish)
            for stream in streams:
                stream.put(b"2")
            for stream in streams:
                await stream.holds(2)
                assert stream.told == [(OK, 1), (OK, 2)]
            assert move.target.command("XLEN", f"relay:{{{streams[0].name}}}:log") == 2

        play(cluster.url, story)

    def test_its_log_is_at_the_target_and_the_slot_is_not(self, cluster: ClusterStore) -> None:
        """Nothing is lost, nothing told, and who is subscribed at the slot's owner hears of it."""

        async def story(it: Scene) -> None:
            stream, other = await it.streams("ask", "other")
            for each in (stream, other):
                each.put(b"1")
                await each.holds(1)
            channel = it.log.names.log(stream.name)
            heard = asyncio.Event()
            subscriptions = ShardSubscriptions(it.log.topology, lambda channel, message: heard.set())
            await subscriptions.subscribe(channel)
            move = await asyncio.to_thread(start_move, cluster, channel.decode())
            await asyncio.to_thread(move.move_keys)
            for n in range(2, 6):
                heard.clear()
                stream.put(b"%d" % n)
                other.put(b"%d" % n)
                await stream.holds(n)
                await other.holds(n)
                async with asyncio.timeout(SOON):
                    await heard.wait()
            assert await it.frames(stream) == [b"1", b"2", b"3", b"4", b"5"]
            await asyncio.to_thread(move.finish)
            stream.put(b"6", outcome="completed")
            await stream.holds(6)
            assert stream.told == [(OK, n) for n in range(1, 7)]
            await subscriptions.close()

        play(cluster.url, story)

    def test_its_keys_are_apart_for_a_while(self, cluster: ClusterStore) -> None:
        async def story(it: Scene) -> None:
            stream, other = await it.streams("apart", "together")
            for each in (stream, other):
                each.put(b"1")
                await each.holds(1)
            log = it.log.names.log(stream.name).decode()
            move = await asyncio.to_thread(start_move, cluster, log)
            await asyncio.to_thread(move.move_keys, log)
            stream.put(b"2")
            await stream.until(lambda: bool(stream.count("away")))
            other.put(b"2")
            await other.holds(2)
            await asyncio.to_thread(move.finish)
            await stream.holds(2)
            assert stream.told == [(OK, 1), "away", (OK, 2)]
            assert other.told == [(OK, 1), (OK, 2)]

        play(cluster.url, story, hold=0.5)

    @pytest.mark.parametrize("how", ["killed", "silent"])
    def test_a_failover_costs_no_event(self, how: str, tmp_path: Path) -> None:
        async def story(it: Scene) -> None:
            await it.log.topology.refresh()
            streams = await it.streams(*(f"s{n}" for n in range(12)))
            for stream in streams:
                stream.put(b"1")
                await stream.holds(1)
            moved = [s for s in streams if store.of_key(f"relay:{{{s.name}}}:log") is lost]
            assert moved
            await asyncio.to_thread(in_step, lost, replica)
            (lost.kill if how == "killed" else lost.pause)()
            for stream in streams:
                stream.put(b"2")
            await asyncio.to_thread(take_over, replica)
            began = time.monotonic()
            for stream in streams:
                await stream.holds(2)
            assert time.monotonic() - began < 1.5
            for stream in streams:
                assert await it.frames(stream) == [b"1", b"2"]
                assert not stream.count("away")

        with valkey_cluster(tmp_path / "cluster") as store:
            assert isinstance(store, ClusterStore)
            lost = store.servers[1]
            with cluster_replica(tmp_path / "replica", store, lost) as replica:
                play(store.url, story)


def in_step(primary: Server, replica: Server) -> None:
    assert int(primary.command("WAIT", 1, 5000)) == 1 or replica.command("DBSIZE")


class FakeLoop:
    """Time passes when it is told to; timers run when theirs has come."""

    def __init__(self) -> None:
        self.now = 0.0
        self._timers: list[tuple[float, Callable[[], None]]] = []

    def time(self) -> float:
        return self.now

    def call_later(self, delay: float, callback: Callable[[], None]) -> Any:
        timer = (self.now + delay, callback)
        self._timers.append(timer)
        loop = self

        class Handle:
            def cancel(self) -> None:
                loop._timers = [other for other in loop._timers if other is not timer]

        return Handle()

    def run_to(self, when: float) -> None:
        while self._timers and min(self._timers, key=lambda timer: timer[0])[0] <= when:
            due = min(self._timers, key=lambda timer: timer[0])
            self._timers.remove(due)
            self.now = max(self.now, due[0])
            due[1]()
        self.now = max(self.now, when)

    def stop_until(self, when: float) -> None:
        """The process is stopped: nothing runs, and what is due then runs late."""
        self.now = when


class TestHoldClock:
    def started(self, seconds: float = 5.0, counted: float = 0.0) -> tuple[FakeLoop, list[float]]:
        loop, over = FakeLoop(), list[float]()
        self.clock = HoldClock(loop, seconds, counted, lambda: over.append(loop.now))  # type: ignore[arg-type]
        return loop, over

    def test_it_is_over_when_its_time_is(self) -> None:
        loop, over = self.started(5.1)
        loop.run_to(60.0)
        assert over == [pytest.approx(5.1)]

    def test_what_had_passed_before_counts(self) -> None:
        loop, over = self.started(counted=2.0)
        loop.run_to(60.0)
        assert over == [pytest.approx(3.0)]

    def test_more_than_all_of_it_had(self) -> None:
        loop, over = self.started(1.0, counted=2.0)
        loop.run_to(0.0)
        assert over == [0.0]

    def test_cancelled_it_never_is(self) -> None:
        loop, over = self.started()
        loop.run_to(4.9)
        self.clock.cancel()
        loop.run_to(60.0)
        assert over == []

    def test_the_time_in_which_the_process_was_stopped_counts_little(self) -> None:
        loop, over = self.started()
        loop.run_to(2.0)
        loop.stop_until(100.0)
        loop.run_to(100.0)
        assert over == []
        loop.run_to(200.0)
        assert over == [pytest.approx(102.0, abs=0.3)]


def test_a_store_that_never_was_there(tmp_path: Path) -> None:
    server: Server

    async def story(it: Scene) -> None:
        with pytest.raises(StoreUnavailable):
            await it.stream("s")
        stream = Stream("s", it.log, it.committer)
        stream.put(b"1")
        await stream.until(lambda: bool(stream.count("away")))
        await asyncio.to_thread(server.restart)
        await stream.until(lambda: stream.told[-1] == (GONE, 0))

    with valkey_server(tmp_path) as store:
        (server,) = store.servers
        server.kill()
        play(store.url, story, hold=0.3)
