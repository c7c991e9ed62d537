"""The log's one behaviour suite, over every store: the scripts on fakeredis, a real server, and a Cluster.

The same `Log` drives all of them. For fakeredis a topology of the tests' own hands the commands to it. No
test waits for a time to pass: leases are dated back, and what expires is seen by its PTTL.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import fakeredis
import pytest
import redis.exceptions

from relay.config import StoreSettings, StreamSettings
from relay.protocol.errors import StoreUnavailable
from relay.protocol.ids import new_stream_id
from relay.store import scripts
from relay.store.log import Log, Page, millis
from relay.store.names import Names
from relay.store.scripts import ALIVE, ENDED, FENCED, GONE, MISMATCH, OK
from relay.store.topology import Topology, connect
from tests.support.stores import valkey_cluster, valkey_server

SETTINGS = StreamSettings(lease=10, retention=30, tombstone=90, max_duration=60)
LONGEST = 1000 * (30 + 90 + 60)
SECRET_KEY = b"relay:secret"
log_key, meta_key = Names().log, Names().meta
FIELDS = {"api": "chat", "owner": "o1", "upstream": "up", "model": "gpt-*", "replica": "r1"}


class FakeLink:
    """What a `Link` is to the log, on fakeredis."""

    def __init__(self, client: Any) -> None:
        self._client = client
        self.up_since = 0.0

    def call(self, *command: Any) -> asyncio.Future[Any]:
        future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        try:
            future.set_result(self._client.execute_command(*command))
        except redis.exceptions.RedisError as error:
            future.set_exception(error)
        return future


class FakeNode:
    def __init__(self) -> None:
        client: Any = fakeredis.FakeRedis(version=(7, 2))
        client.response_callbacks.clear()  # replies as they stand on the wire, as a Link gives them
        for script in scripts.SCRIPTS:
            assert client.execute_command("SCRIPT", "LOAD", script.text) == script.sha.encode()
        self.commit = self.query = FakeLink(client)


class FakeTopology:
    sharded = False

    def __init__(self) -> None:
        self._node = FakeNode()

    def node_of(self, key: bytes) -> Any:
        return self._node

    def nodes(self) -> list[Any]:
        return [self._node]

    async def refresh(self) -> None: ...

    async def close(self) -> None: ...


class Bench:
    """A log, and a look behind it."""

    def __init__(self, topology: Topology, settings: StreamSettings) -> None:
        self.topology = topology
        self.log = Log(topology, settings, StoreSettings())

    async def raw(self, stream: str, *command: Any) -> Any:
        return await self.topology.node_of(log_key(stream)).query.call(*command)

    async def append(
        self, stream: str, expected: int, frames: list[bytes], *, outcome: str = "", usage: str = "", fence: str = "1"
    ) -> tuple[int, int]:
        """What the group commit sends for one stream."""
        settings = self.log.settings
        kept = [millis(settings.retention), millis(settings.tombstone)]
        sent = [*frames, outcome.encode()] if outcome else frames
        args = [*kept, fence, expected, outcome, usage, len(sent), *sent]
        link = self.topology.node_of(log_key(stream)).commit
        ((code, top),) = await link.call("EVALSHA", scripts.APPEND.sha, 2, log_key(stream), meta_key(stream), *args)
        return code, top

    async def made(self, frames: int = 0, outcome: str = "") -> str:
        """A stream of so many frames, and its end if it has one."""
        stream = new_stream_id()
        await self.log.create(stream, FIELDS)
        if frames or outcome:
            assert await self.append(stream, 0, numbered(1, frames), outcome=outcome) == (OK, frames)
        return stream

    async def lapse(self, stream: str) -> None:
        """The producer has not been heard of for longer than its lease."""
        lease = int(await self.raw(stream, "HGET", meta_key(stream), "lease"))
        await self.raw(stream, "HSET", meta_key(stream), "lease", lease - 60_000)

    async def entries(self, stream: str) -> list[tuple[str, bytes, bytes]]:
        found = await self.raw(stream, "XRANGE", log_key(stream), "-", "+")
        return [(entry.decode(), field, content) for entry, (field, content) in found]

    async def pttl(self, stream: str) -> tuple[int, int]:
        return await self.raw(stream, "PTTL", log_key(stream)), await self.raw(stream, "PTTL", meta_key(stream))


def numbered(first: int, last: int) -> list[bytes]:
    return [b"id: x.%d\ndata: \xff%d\n\n" % (n, n) for n in range(first, last + 1)]


def just_below(value: float, bound: float) -> bool:
    """Within the time that a slow machine takes for one test."""
    return bound - 30_000 < value <= bound


Story = Callable[[Bench], Awaitable[None]]
Play = Callable[..., None]


@pytest.fixture(scope="module", params=["fakeredis", "valkey", pytest.param("cluster", marks=pytest.mark.slow)])
def store(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[], Topology]]:
    folder = tmp_path_factory.mktemp(str(request.param))
    if request.param == "fakeredis":
        fake: Any = FakeTopology()
        yield lambda: fake
    elif request.param == "valkey":
        with valkey_server(folder) as server:
            yield lambda: connect(server.url)
    else:
        with valkey_cluster(folder) as cluster:
            yield lambda: connect(cluster.url)


@pytest.fixture
def play(store: Callable[[], Topology]) -> Play:
    def run(story: Story, settings: StreamSettings = SETTINGS) -> None:
        async def scene() -> None:
            topology = store()
            try:
                await topology.refresh()
                await story(Bench(topology, settings))
            finally:
                await topology.close()

        asyncio.run(scene())

    return run


class TestCreate:
    def test_a_new_stream(self, play: Play) -> None:
        async def story(bench: Bench) -> None:
            stream = await bench.made()
            status = await bench.log.look(stream)
            assert status is not None
            assert (status.stream, status.top, status.outcome, status.kept) == (stream, 0, "", True)
            assert (status.api, status.owner, status.upstream, status.model) == ("chat", "o1", "up", "gpt-*")
            assert (status.fence, status.replica, status.usage, status.ended) == ("1", "r1", "", 0)
            assert just_below(1000 * status.lease_left, 10_000)
            assert status.born > 1_700_000_000
            assert just_below(await bench.raw(stream, "PTTL", meta_key(stream)), LONGEST)
            assert await bench.log.read(stream, 0) == Page([], "", False, False)

        play(story)

    def test_asked_twice_is_done_once(self, play: Play) -> None:
        async def story(bench: Bench) -> None:
            stream = await bench.made(frames=3)
            await bench.log.create(stream, FIELDS)
            status = await bench.log.look(stream)
            assert status is not None
            assert status.top == 3
            assert await bench.append(stream, 3, numbered(4, 4)) == (OK, 4)

        play(story)

    def test_one_that_was_never_made_is_unknown(self, play: Play) -> None:
        async def story(bench: Bench) -> None:
            stream = new_stream_id()
            assert await bench.log.look(stream) is None
            assert await bench.log.read(stream, 0) == Page([], "", False, False)
            assert await bench.log.last_frame(stream) == b""

        play(story)


class TestAppend:
    def test_in_order_under_consecutive_ids(self, play: Play) -> None:
        async def story(bench: Bench) -> None:
            stream = await bench.made()
            assert await bench.append(stream, 0, numbered(1, 2)) == (OK, 2)
            assert await bench.append(stream, 2, numbered(3, 3)) == (OK, 3)
            expected = [(f"{n}-0", b"f", frame) for n, frame in enumerate(numbered(1, 3), 1)]
            assert await bench.entries(stream) == expected

        play(story)

    def test_frames_go_through_byte_for_byte(self, play: Play) -> None:
        async def story(bench: Bench) -> None:
            stream = await bench.made()
            frames = [bytes(range(256)), b"\r\n\0\r\n", b" ", "€😀".encode(), b"1"]
            await bench.append(stream, 0, frames)
            assert (await bench.log.read(stream, 0)).frames == frames

        play(story)

    def test_of_nothing_is_a_question_for_the_top(self, play: Play) -> None:
        async def story(bench: Bench) -> None:
            stream = await bench.made(frames=2)
            assert await bench.append(stream, 2, []) == (OK, 2)
            assert await bench.append(stream, 1, []) == (MISMATCH, 2)
            assert len(await bench.entries(stream)) == 2

        play(story)

    def test_a_thousand_at_once(self, play: Play) -> None:
        async def story(bench: Bench) -> None:
            stream = await bench.made()
            frames = numbered(1, 1000)
            assert await bench.append(stream, 0, frames, outcome="completed") == (OK, 1000)
            read: list[bytes] = []
            while not (page := await bench.log.read(stream, len(read))).outcome:
                assert page.frames
                assert not page.gap
                read += page.frames
            assert read + page.frames == frames

        play(story)

    def test_of_several_streams_in_one_call(self, play: Play) -> None:
        async def story(bench: Bench) -> None:
            if bench.topology.sharded:
                return  # two streams' keys may not stand in one call
            one, two, unknown = await bench.made(), await bench.made(frames=1), new_stream_id()
            keys = [key(stream) for stream in (one, two, unknown) for key in (log_key, meta_key)]
            args: list[Any] = [1000, 1000, "1", 0, "", "", 2, b"a", b"b"]
            args += ["1", 0, "", "", 1, b"c"]
            args += ["1", 0, "completed", "", 0]
            link = bench.topology.node_of(b"").commit
            answers = await link.call("EVALSHA", scripts.APPEND.sha, 6, *keys, *args)
            assert answers == [[OK, 2], [MISMATCH, 1], [GONE, 0]]
            assert [content for *_, content in await bench.entries(one)] == [b"a", b"b"]

        play(story)

    def test_beyond_what_a_double_prints_short(self, play: Play) -> None:
        async def story(bench: Bench) -> None:
            stream = await bench.made()
            top = 10**14 - 1
            await bench.raw(stream, "HSET", meta_key(stream), "top", top)
            assert await bench.append(stream, top, [b"a"], outcome="completed") == (OK, top + 1)
            assert [entry for entry, *_ in await bench.entries(stream)] == [f"{top + 1}-0", f"{top + 1}-1"]

        play(story)


class TestMismatch:
    def test_an_append_whose_reply_was_lost_does_not_double(self, play: Play) -> None:
        async def story(bench: Bench) -> None:
            stream = await bench.made(frames=2)
            assert await bench.append(stream, 2, numbered(3, 4)) == (OK, 4)
            assert await bench.append(stream, 2, numbered(3, 4)) == (MISMATCH, 4)
            assert await bench.append(stream, 2, numbered(3, 6)) == (MISMATCH, 4)
            assert await bench.append(stream, 4, numbered(5, 6)) == (OK, 6)
            assert (await bench.log.read(stream, 0)).frames == numbered(1, 6)

        play(story)

    def test_an_end_whose_reply_was_lost_is_one_end(self, play: Play) -> None:
        async def story(bench: Bench) -> None:
            stream = await bench.made(frames=2)
            assert await bench.append(stream, 2, numbered(3, 3), outcome="completed") == (OK, 3)
            assert await bench.append(stream, 2, numbered(3, 3), outcome="completed") == (MISMATCH, 3)
            assert await bench.append(stream, 3, [], outcome="completed") == (OK, 3)
            assert [entry for entry, *_ in await bench.entries(stream)] == ["1-0", "2-0", "3-0", "3-1"]

        play(story)

    def test_a_hole_cannot_be_made(self, play: Play) -> None:
        async def story(bench: Bench) -> None:
            stream = await bench.made(frames=2)
            assert await bench.append(stream, 5, numbered(6, 6)) == (MISMATCH, 2)
            assert await bench.append(stream, 3, [], outcome="completed") == (MISMATCH, 2)
            assert len(await bench.entries(stream)) == 2
            status = await bench.log.look(stream)
            assert status is not None
            assert not status.outcome

        play(story)

    def test_entries_that_the_store_lost_go_in_again_under_their_ids(self, play: Play) -> None:
        async def story(bench: Bench) -> None:
            stream = await bench.made(frames=3)
            kept = {key: await bench.raw(stream, "DUMP", key) for key in (log_key(stream), meta_key(stream))}
            assert await bench.append(stream, 3, numbered(4, 6)) == (OK, 6)
            for key, dump in kept.items():  # a replica that had not got them yet has become the primary
                await bench.raw(stream, "RESTORE", key, LONGEST, dump, "REPLACE")
            assert await bench.append(stream, 6, numbered(7, 7)) == (MISMATCH, 3)
            assert await bench.append(stream, 3, numbered(4, 7), outcome="completed") == (OK, 7)
            page = await bench.log.read(stream, 0)
            assert (page.frames, page.outcome, page.gap) == (numbered(1, 7), "completed", False)

        play(story)

    def test_all_entries_lost_with_the_stream_itself_left(self, play: Play) -> None:
        async def story(bench: Bench) -> None:
            stream = await bench.made()
            empty = await bench.raw(stream, "DUMP", meta_key(stream))
            assert await bench.append(stream, 0, numbered(1, 2)) == (OK, 2)
            await bench.raw(stream, "DEL", log_key(stream))
            await bench.raw(stream, "RESTORE", meta_key(stream), LONGEST, empty, "REPLACE")
            assert await bench.append(stream, 2, numbered(3, 3)) == (MISMATCH, 0)
            assert await bench.append(stream, 0, numbered(1, 3)) == (OK, 3)
            assert all(left > 0 for left in await bench.pttl(stream))

        play(story)

    def test_a_stream_that_the_store_lost_is_gone(self, play: Play) -> None:
        async def story(bench: Bench) -> None:
            stream = await bench.made(frames=2)
            await bench.raw(stream, "DEL", log_key(stream), meta_key(stream))
            assert await bench.append(stream, 2, numbered(3, 3)) == (GONE, 0)
            assert await bench.append(stream, 0, numbered(1, 3), outcome="completed") == (GONE, 0)
            assert await bench.log.renew([(stream, "1")]) == [(GONE, 0)]
            assert await bench.log.seal(stream, 2, "producer_lost", [b"x"], force=True) == (GONE, 0)
            assert await bench.raw(stream, "EXISTS", log_key(stream), meta_key(stream)) == 0

        play(story)


class TestTheEnd:
    def test_the_end_mark_stands_behind_the_last_event(self, play: Play) -> None:
        async def story(bench: Bench) -> None:
            stream = await bench.made(frames=2)
            assert await bench.append(stream, 2, numbered(3, 3), outcome="completed", usage="5 7") == (OK, 3)
            assert (await bench.entries(stream))[-1] == ("3-1", b"end", b"completed")
            status = await bench.log.look(stream)
            assert status is not None
            assert (status.top, status.outcome, status.usage, status.kept) == (3, "completed", "5 7", True)
            assert 0 <= status.ended - status.born < 60
            assert await bench.log.last_frame(stream) == numbered(3, 3)[0]

        play(story)

    @pytest.mark.parametrize("frames", [0, 3])
    def test_it_may_come_by_itself(self, play: Play, frames: int) -> None:
        async def story(bench: Bench) -> None:
            stream = await bench.made(frames=frames)
            assert await bench.append(stream, frames, [], outcome="stopped") == (OK, frames)
            assert (await bench.entries(stream))[-1] == (f"{frames}-1", b"end", b"stopped")
            page = await bench.log.read(stream, 0)
            assert (page.frames, page.outcome, page.gap) == (numbered(1, frames), "stopped", False)
            left, remembered = await bench.pttl(stream)
            assert just_below(left, 30_000)
            assert just_below(remembered, 120_000)

        play(story)

    def test_nothing_goes_in_behind_it(self, play: Play) -> None:
        async def story(bench: Bench) -> None:
            stream = await bench.made(frames=2, outcome="completed")
            before = await bench.entries(stream)
            await bench.append(stream, 2, numbered(3, 3))
            await bench.append(stream, 2, numbered(3, 3), outcome="shutdown")
            assert await bench.entries(stream) == before
            status = await bench.log.look(stream)
            assert status is not None
            assert (status.top, status.outcome) == (2, "completed")

        play(story)

    def test_a_producer_is_not_told_that_events_behind_it_were_taken(self, play: Play) -> None:
        async def story(bench: Bench) -> None:
            stream = await bench.made(frames=2, outcome="completed")
            code, top = await bench.append(stream, 2, numbered(3, 4))
            assert (code, top) != (OK, 4)
            assert top == 2

        play(story)


class TestExpiry:
    def test_a_live_stream_outlives_the_longest_generation(self, play: Play) -> None:
        async def story(bench: Bench) -> None:
            stream = await bench.made(frames=2)
            for left in await bench.pttl(stream):
                assert just_below(left, LONGEST)
            await bench.append(stream, 2, numbered(3, 3))
            assert all(left > 0 for left in await bench.pttl(stream))

        play(story)

    def test_retention_runs_from_the_end_and_the_tombstone_from_there(self, play: Play) -> None:
        async def story(bench: Bench) -> None:
            stream = await bench.made(frames=2, outcome="completed")
            left, remembered = await bench.pttl(stream)
            assert just_below(left, 30_000)
            assert just_below(remembered, 120_000)

        play(story)

    def test_of_a_sealed_stream_too(self, play: Play) -> None:
        async def story(bench: Bench) -> None:
            for frames in (0, 2):
                stream = await bench.made(frames=frames)
                await bench.lapse(stream)
                assert await bench.log.seal(stream, frames, "producer_lost", [b"e"]) == (OK, frames + 1)
                left, remembered = await bench.pttl(stream)
                assert just_below(left, 30_000)
                assert just_below(remembered, 120_000)

        play(story)

    def test_an_expired_stream_is_known_and_not_kept(self, play: Play) -> None:
        async def story(bench: Bench) -> None:
            stream = await bench.made(frames=2, outcome="completed")
            await bench.raw(stream, "PEXPIRE", log_key(stream), 0)
            status = await bench.log.look(stream)
            assert status is not None
            assert (status.kept, status.top, status.outcome, status.owner) == (False, 2, "completed", "o1")
            assert await bench.log.read(stream, 0) == Page([], "", False, False)
            await bench.raw(stream, "PEXPIRE", meta_key(stream), 0)
            assert await bench.log.look(stream) is None

        play(story)

    def test_a_stream_that_ended_without_an_event_expires_as_well(self, play: Play) -> None:
        async def story(bench: Bench) -> None:
            stream = await bench.made(outcome="stopped")
            status = await bench.log.look(stream)
            assert status is not None
            assert status.kept
            await bench.raw(stream, "PEXPIRE", log_key(stream), 0)
            status = await bench.log.look(stream)
            assert status is not None
            assert not status.kept

        play(story)

    def test_a_few_milliseconds_are_enough(self, play: Play) -> None:
        async def story(bench: Bench) -> None:
            stream = await bench.made(frames=1)
            assert await bench.append(stream, 1, [], outcome="completed") == (OK, 1)
            left, remembered = await bench.pttl(stream)
            assert left <= 25
            assert 0 < remembered <= 25 + 60_000
            while await bench.raw(stream, "EXISTS", log_key(stream)):  # by the store's own clock, some 25 ms
                pass
            status = await bench.log.look(stream)
            assert status is not None
            assert not status.kept

        play(story, StreamSettings(retention="25ms", tombstone="60s"))

    def test_no_tombstone_means_forgotten_with_its_events(self, play: Play) -> None:
        async def story(bench: Bench) -> None:
            stream = await bench.made(frames=1, outcome="completed")
            left, remembered = await bench.pttl(stream)
            assert abs(left - remembered) < 1000

        play(story, StreamSettings(retention=30, tombstone=0))

    def test_reading_and_looking_prolong_nothing(self, play: Play) -> None:
        async def story(bench: Bench) -> None:
            stream = await bench.made(frames=2, outcome="completed")
            await bench.raw(stream, "PEXPIRE", log_key(stream), 20_000)
            await bench.raw(stream, "PEXPIRE", meta_key(stream), 25_000)
            await bench.log.look(stream, attached=True)
            await bench.log.read(stream, 0)
            await bench.append(stream, 2, [], outcome="completed")
            left, remembered = await bench.pttl(stream)
            assert left <= 20_000
            assert remembered <= 25_000

        play(story)


class TestLeases:
    def test_a_renewal_begins_the_lease_anew(self, play: Play) -> None:
        async def story(bench: Bench) -> None:
            one, two = await bench.made(), await bench.made()
            await bench.lapse(one)
            answers = await bench.log.renew([(one, "1"), (two, "1")])
            assert [code for code, _ in answers] == [OK, OK]
            for stream in (one, two):
                status = await bench.log.look(stream)
                assert status is not None
                assert just_below(1000 * status.lease_left, 10_000)

        play(story)

    def test_each_gets_its_own_answer_in_order(self, play: Play) -> None:
        async def story(bench: Bench) -> None:
            live, sealed, unknown = await bench.made(), await bench.made(), new_stream_id()
            await bench.log.seal(sealed, 0, "producer_lost", [b"e"], force=True)
            answers = await bench.log.renew([(unknown, "1"), (live, "1"), (sealed, "1")])
            assert [code for code, _ in answers] == [GONE, OK, FENCED]

        play(story)

    def test_of_none(self, play: Play) -> None:
        async def story(bench: Bench) -> None:
            assert await bench.log.renew([]) == []

        play(story)

    def test_of_more_than_go_into_one_call(self, play: Play) -> None:
        async def story(bench: Bench) -> None:
            stream = await bench.made()
            answers = await bench.log.renew([(stream, "1")] * 1200)
            assert [code for code, _ in answers] == [OK] * 1200

        play(story)

    def test_a_lapsed_lease_is_seen(self, play: Play) -> None:
        async def story(bench: Bench) -> None:
            stream = await bench.made(frames=1)
            await bench.lapse(stream)
            status = await bench.log.look(stream)
            assert status is not None
            assert status.lease_left < 0
            assert not status.outcome

        play(story)

    def test_the_producer_learns_of_readers_elsewhere(self, play: Play) -> None:
        async def story(bench: Bench) -> None:
            stream = await bench.made(frames=1)
            seen = int(await bench.raw(stream, "HGET", meta_key(stream), "seen"))
            await bench.raw(stream, "HSET", meta_key(stream), "seen", seen - 60_000)
            await bench.log.look(stream)
            ((_, unseen),) = await bench.log.renew([(stream, "1")])
            assert unseen >= 60
            await bench.log.look(stream, attached=True)
            ((_, unseen),) = await bench.log.renew([(stream, "1")])
            assert unseen < 30

        play(story)


class TestSeal:
    def test_ends_a_stream_whose_lease_lapsed(self, play: Play) -> None:
        async def story(bench: Bench) -> None:
            stream = await bench.made(frames=2)
            await bench.lapse(stream)
            assert await bench.log.seal(stream, 2, "producer_lost", [b"error", b"done"]) == (OK, 4)
            page = await bench.log.read(stream, 0)
            assert (page.frames, page.outcome) == ([*numbered(1, 2), b"error", b"done"], "producer_lost")
            status = await bench.log.look(stream)
            assert status is not None
            assert (status.top, status.outcome, status.fence) == (4, "producer_lost", "2")
            assert status.ended >= status.born

        play(story)

    def test_exactly_once_whoever_comes(self, play: Play) -> None:
        async def story(bench: Bench) -> None:
            stream = await bench.made(frames=2)
            await bench.lapse(stream)
            sealing = (bench.log.seal(stream, 2, "producer_lost", [b"error"]) for _ in range(8))
            answers = await asyncio.gather(*sealing)
            assert sorted(answers) == [(OK, 3), *[(ENDED, 3)] * 7]
            assert [entry for entry, *_ in await bench.entries(stream)] == ["1-0", "2-0", "3-0", "3-1"]

        play(story)

    def test_is_refused_while_the_lease_runs(self, play: Play) -> None:
        async def story(bench: Bench) -> None:
            stream = await bench.made(frames=2)
            assert await bench.log.seal(stream, 2, "producer_lost", [b"error"]) == (ALIVE, 2)
            await bench.lapse(stream)
            await bench.log.renew([(stream, "1")])
            assert await bench.log.seal(stream, 2, "producer_lost", [b"error"]) == (ALIVE, 2)
            assert await bench.append(stream, 2, numbered(3, 3)) == (OK, 3)

        play(story)

    def test_by_force_it_is_not(self, play: Play) -> None:
        async def story(bench: Bench) -> None:
            stream = await bench.made(frames=2)
            assert await bench.log.seal(stream, 2, "stopped", [b"error"], force=True) == (OK, 3)
            assert await bench.log.seal(stream, 3, "stopped", [b"error"], force=True) == (ENDED, 3)

        play(story)

    def test_with_an_event_in_between_it_must_be_said_anew(self, play: Play) -> None:
        async def story(bench: Bench) -> None:
            stream = await bench.made(frames=2)
            assert await bench.append(stream, 2, numbered(3, 3)) == (OK, 3)
            await bench.lapse(stream)
            assert await bench.log.seal(stream, 2, "producer_lost", [b"error"]) == (MISMATCH, 3)
            assert len(await bench.entries(stream)) == 3
            assert await bench.log.seal(stream, 3, "producer_lost", [b"error"]) == (OK, 4)

        play(story)

    def test_fences_the_producer_off(self, play: Play) -> None:
        async def story(bench: Bench) -> None:
            stream = await bench.made(frames=2)
            await bench.lapse(stream)
            await bench.log.seal(stream, 2, "producer_lost", [b"error"])
            sealed = await bench.entries(stream)
            for expected in (2, 3):
                code, _ = await bench.append(stream, expected, numbered(expected + 1, 5))
                assert code == FENCED
                code, _ = await bench.append(stream, expected, [], outcome="completed")
                assert code == FENCED
            assert [code for code, _ in await bench.log.renew([(stream, "1")])] == [FENCED]
            assert await bench.entries(stream) == sealed

        play(story)

    def test_an_ended_stream_stays_as_it_ended(self, play: Play) -> None:
        async def story(bench: Bench) -> None:
            stream = await bench.made(frames=2, outcome="completed")
            await bench.lapse(stream)
            before = await bench.entries(stream)
            for force in (False, True):
                assert await bench.log.seal(stream, 2, "producer_lost", [b"error"], force=force) == (ENDED, 2)
            assert await bench.entries(stream) == before

        play(story)


class TestRead:
    def test_after_every_position(self, play: Play) -> None:
        async def story(bench: Bench) -> None:
            stream = await bench.made(frames=5, outcome="completed")
            for after in range(6):
                page = await bench.log.read(stream, after)
                assert page == Page(numbered(after + 1, 5), "completed", False, False)

        play(story)

    def test_of_a_live_stream_has_no_end(self, play: Play) -> None:
        async def story(bench: Bench) -> None:
            stream = await bench.made(frames=2)
            assert await bench.log.read(stream, 1) == Page(numbered(2, 2), "", False, False)
            assert await bench.log.read(stream, 2) == Page([], "", False, False)

        play(story)

    def test_readers_that_come_together_share_full_pages_and_only_those(self, play: Play) -> None:
        async def story(bench: Bench) -> None:
            stream = await bench.made(frames=300)
            first, second = await bench.log.read(stream, 0), await bench.log.read(stream, 256)
            assert (first.full, second.full) == (True, False)
            assert await bench.append(stream, 300, numbered(301, 301)) == (OK, 301)
            assert await bench.log.read(stream, 256) == Page(numbered(257, 301), "", False, False)
            await bench.raw(stream, "DEL", log_key(stream))
            assert await bench.log.read(stream, 0) is first
            assert await bench.log.read(stream, 256) == Page([], "", False, False)

        play(story)

    def test_pages_that_are_kept_are_bounded(self, play: Play) -> None:
        async def story(bench: Bench) -> None:
            size, kept = 4096, 32 << 20
            streams = [await bench.made() for _ in range(kept // size // 256 + 2)]
            for stream in streams:
                for first in range(1, 257, 64):
                    frames = [b"%d %b" % (n, bytes(size)) for n in range(first, first + 64)]
                    assert await bench.append(stream, first - 1, frames) == (OK, first + 63)
                assert (await bench.log.read(stream, 0)).full
                await bench.raw(stream, "DEL", log_key(stream))
            held = [bool((await bench.log.read(stream, 0)).frames) for stream in streams]
            assert held == [False] * held.count(False) + [True] * held.count(True)  # the last ones
            assert kept // size // 256 - 2 < held.count(True) <= kept // size // 256

        play(story)

    @pytest.mark.parametrize("frames", [255, 256, 257, 511, 512, 513])
    def test_pages_join_without_gap_or_repeat(self, play: Play, frames: int) -> None:
        async def story(bench: Bench) -> None:
            stream = await bench.made(frames=frames, outcome="completed")
            read: list[bytes] = []
            page = Page([], "", False, False)
            while not page.outcome:
                page = await bench.log.read(stream, len(read))
                assert not page.gap
                assert page.frames or page.outcome
                assert page.full or page.outcome
                read += page.frames
            assert read == numbered(1, frames)

        play(story)

    @pytest.mark.parametrize("lost", [1, 3, 5])
    @pytest.mark.parametrize("outcome", ["", "completed"])
    def test_a_lost_entry_is_a_gap_and_never_skipped(self, play: Play, lost: int, outcome: str) -> None:
        async def story(bench: Bench) -> None:
            stream = await bench.made(frames=6, outcome=outcome)
            await bench.raw(stream, "XDEL", log_key(stream), f"{lost}-0")
            assert await bench.log.read(stream, 0) == Page(numbered(1, lost - 1), "", True, False)
            if lost > 1:
                assert await bench.log.read(stream, lost - 1) == Page([], "", True, False)
            behind = await bench.log.read(stream, lost)
            assert (behind.frames, behind.outcome, behind.gap) == (numbered(lost + 1, 6), outcome, False)

        play(story)

    def test_the_last_one_lost_is_no_end(self, play: Play) -> None:
        async def story(bench: Bench) -> None:
            stream = await bench.made(frames=3, outcome="completed")
            await bench.raw(stream, "XDEL", log_key(stream), "3-0")
            assert await bench.log.read(stream, 0) == Page(numbered(1, 2), "", True, False)
            assert await bench.log.read(stream, 2) == Page([], "", True, False)
            assert await bench.log.read(stream, 3) == Page([], "completed", False, False)

        play(story)

    def test_a_trimmed_start_is_a_gap(self, play: Play) -> None:
        async def story(bench: Bench) -> None:
            stream = await bench.made(frames=6, outcome="completed")
            await bench.raw(stream, "XTRIM", log_key(stream), "MINID", "4-0")
            assert await bench.log.read(stream, 0) == Page([], "", True, False)
            assert (await bench.log.read(stream, 3)).frames == numbered(4, 6)

        play(story)

    def test_a_page_of_many_bytes(self, play: Play) -> None:
        async def story(bench: Bench) -> None:
            stream = await bench.made()
            frames = [b"data: " + secrets.token_bytes(64 * 1024) for _ in range(40)]
            for n in range(0, 40, 10):
                assert (await bench.append(stream, n, frames[n : n + 10]))[0] == OK
            assert (await bench.log.read(stream, 0)).frames == frames
            assert (await bench.log.read(stream, 39)).frames == frames[39:]

        play(story)

    def test_an_event_of_the_largest_size(self, play: Play) -> None:
        async def story(bench: Bench) -> None:
            stream = await bench.made()
            frame = b"data: " + secrets.token_bytes(bench.log.settings.max_event_bytes)
            assert await bench.append(stream, 0, [frame]) == (OK, 1)
            assert (await bench.log.read(stream, 0)).frames == [frame]

        play(story)

    def test_readers_of_one_place_share_a_call_and_each_place_has_its_own(self, play: Play) -> None:
        async def story(bench: Bench) -> None:
            one, two = await bench.made(frames=3), await bench.made(frames=1)
            places = [(one, 0), (one, 0), (one, 2), (two, 0), (one, 0)]
            pages = await asyncio.gather(*(bench.log.read(*place) for place in places))
            assert [len(page.frames) for page in pages] == [3, 3, 1, 1, 3]
            await bench.append(one, 3, numbered(4, 4))
            assert len((await bench.log.read(one, 0)).frames) == 4

        play(story)

    def test_a_reader_that_leaves_takes_no_one_elses_page_along(self, play: Play) -> None:
        async def story(bench: Bench) -> None:
            stream = await bench.made(frames=3)
            leaving, staying = (asyncio.ensure_future(bench.log.read(stream, 0)) for _ in range(2))
            await asyncio.sleep(0)
            leaving.cancel()
            assert (await staying).frames == numbered(1, 3)

        play(story)

    def test_the_last_frame(self, play: Play) -> None:
        async def story(bench: Bench) -> None:
            assert await bench.log.last_frame(await bench.made()) == b""
            assert await bench.log.last_frame(await bench.made(outcome="stopped")) == b""
            assert await bench.log.last_frame(await bench.made(frames=3)) == numbered(3, 3)[0]
            assert await bench.log.last_frame(await bench.made(frames=3, outcome="completed")) == numbered(3, 3)[0]

        play(story)


class TestNames:
    def test_the_first_who_claims_one_has_it(self, play: Play) -> None:
        async def story(bench: Bench) -> None:
            name, one, two = new_stream_id(), new_stream_id(), new_stream_id()
            assert await bench.log.named(name) is None
            assert await bench.log.claim(name, one, "d1") == (one, "d1")
            assert await bench.log.claim(name, two, "d2") == (one, "d1")
            assert await bench.log.claim(name, one, "d1") == (one, "d1")
            assert await bench.log.named(name) == one

        play(story)

    def test_only_who_has_it_gives_it_back(self, play: Play) -> None:
        async def story(bench: Bench) -> None:
            name, one, two = new_stream_id(), new_stream_id(), new_stream_id()
            await bench.log.claim(name, one, "d1")
            await bench.log.release(name, two)
            assert await bench.log.named(name) == one
            await bench.log.release(name, one)
            assert await bench.log.named(name) is None
            assert await bench.log.claim(name, two, "d2") == (two, "d2")

        play(story)

    def test_it_expires(self, play: Play) -> None:
        async def story(bench: Bench) -> None:
            claimed, renamed, stream = new_stream_id(), new_stream_id(), new_stream_id()
            await bench.log.claim(claimed, stream, "d")
            await bench.log.rename(renamed, stream)
            assert await bench.log.named(renamed) == stream
            for name in (claimed, renamed):
                key = b"relay:name:{%b}" % name.encode()
                node = bench.topology.node_of(key)
                assert just_below(await node.query.call("PTTL", key), 90_000)

        play(story)


class TestReplicas:
    def test_one_that_gives_no_sign_is_lost(self, play: Play) -> None:
        async def story(bench: Bench) -> None:
            lost, alive = new_stream_id(), new_stream_id()
            assert lost not in await bench.log.sign(lost, 30)
            assert lost not in await bench.log.sign(alive, 30)
            found = await bench.log.sign(alive, -1)  # whoever's last sign is not of the future
            assert {lost, alive} <= set(found)
            await bench.log.forget(lost)
            assert lost not in await bench.log.sign(alive, -1)

        play(story)

    def test_what_it_runs_can_be_found(self, play: Play) -> None:
        async def story(bench: Bench) -> None:
            replica, one, two = new_stream_id(), new_stream_id(), new_stream_id()
            assert await bench.log.streams_of(replica) == []
            for stream in (one, two, one):
                await bench.log.runs(replica, stream)
            assert sorted(await bench.log.streams_of(replica)) == sorted([one, two])
            await bench.log.ran(replica, one)
            assert await bench.log.streams_of(replica) == [two]

        play(story)


def test_the_secret_is_the_first_ones(play: Play) -> None:
    async def story(bench: Bench) -> None:
        first, second = secrets.token_bytes(32), secrets.token_bytes(32)
        await bench.topology.node_of(SECRET_KEY).query.call("DEL", SECRET_KEY)
        assert await bench.log.secret(first) == first
        assert await bench.log.secret(second) == first
        assert await asyncio.gather(*(bench.log.secret(secrets.token_bytes(32)) for _ in range(4))) == [first] * 4
        node = bench.topology.node_of(SECRET_KEY)
        assert await node.query.call("PTTL", SECRET_KEY) == -1

    play(story)


def test_a_key_of_the_wrong_kind_is_an_unavailable_store(play: Play) -> None:
    async def story(bench: Bench) -> None:
        stream = await bench.made()
        await bench.raw(stream, "SET", log_key(stream), "x")
        with pytest.raises(StoreUnavailable):
            await bench.log.read(stream, 0)
        with pytest.raises(redis.exceptions.ResponseError):
            await bench.append(stream, 0, [b"x"])

    play(story)
