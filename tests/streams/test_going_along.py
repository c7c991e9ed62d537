"""What a stream sends as it begins goes along with the appends of others: in one write, in front of them, and by the
node's other connection wherever that cannot be or has come to nothing."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
import redis.exceptions

from relay.protocol.errors import StoreUnavailable
from relay.protocol.ids import new_stream_id
from relay.store.commands import NotSent, all_of
from relay.store.link import Command, Done, StoreDown
from relay.store.node import Node
from tests.streams.test_commit import FIELDS, Scene, Stream, play
from tests.support.stores import ClusterStore, Server
from tests.support.waiting import until

pytestmark = pytest.mark.slow

WITHIN = 20.0


class Watched:
    """How often each connection of a scene's one server was written to, and how many commands went with the appends."""

    def __init__(self, it: Scene) -> None:
        node: Any = it.log.topology.node_of(b"k")
        self.flushes: list[int] = []
        self.asked: list[Command] = []
        flush: Callable[[bytes, int, Done], bool] = node.commit.flush
        call = node.query.call

        def flushed(packed: bytes, count: int, done: Done) -> bool:
            self.flushes.append(count)
            return flush(packed, count, done)

        def called(*command: Any) -> Any:
            self.asked.append(command)
            return call(*command)

        node.commit.flush, node.query.call = flushed, called


async def settled(it: Scene) -> Watched:
    """From when a first stream was appended to: that opens the connection."""
    stream = await it.stream(new_stream_id())
    stream.put(b"1")
    await stream.holds(1)
    return Watched(it)


def fresh(it: Scene) -> Stream:
    """One that the store does not know yet."""
    return Stream(new_stream_id(), it.log, it.committer)


async def made(it: Scene, stream: Stream) -> None:
    async with asyncio.timeout(WITHIN):
        noted = it.log.directory.note_stream("r", stream.name)
        await all_of(noted, it.log.create(stream.name, FIELDS, "1"))
    assert (await it.log.get_status(stream.name)) is not None
    assert stream.name in await it.log.directory.streams_of("r")


def test_a_stream_is_made_in_one_write_with_the_appends_of_others(server: Server) -> None:
    async def story(it: Scene) -> None:
        other = await it.stream(new_stream_id())
        watched = await settled(it)
        stream = fresh(it)
        sent = it.log.directory.note_stream("r", stream.name), it.log.create(stream.name, FIELDS, "1")
        other.put(b"1")
        stream.put(b"1")  # behind its making, on the same connection
        await all_of(*sent)
        assert [await one for one in sent] == [1, 1]
        await stream.holds(1)
        await other.holds(1)
        assert (watched.flushes, watched.asked) == ([3], [])
        assert stream.told == [(1, 1)]

    play(server.url, story)


def test_one_that_nothing_goes_along_with_leaves_at_once(server: Server) -> None:
    async def story(it: Scene) -> None:
        watched = await settled(it)
        stream = fresh(it)
        await all_of(it.log.create(stream.name, FIELDS, "1"))
        assert (watched.flushes, watched.asked) == ([1], [])
        stream.put(b"1")
        await stream.holds(1)

    play(server.url, story)


def test_what_comes_while_a_flush_is_in_flight_goes_with_the_next(server: Server) -> None:
    async def story(it: Scene) -> None:
        other = await it.stream(new_stream_id())
        watched = await settled(it)
        server.pause()
        other.put(b"1")
        await until(lambda: bool(watched.flushes), WITHIN, "a flush to be in flight")
        waits = [it.log.create(fresh(it).name, FIELDS, "1") for _ in range(3)]
        server.resume()
        await all_of(*waits)
        assert (watched.flushes, watched.asked) == ([1, 3], [])

    play(server.url, story)


def test_many_that_begin_at_once_let_the_events_of_others_through(server: Server) -> None:
    async def story(it: Scene) -> None:
        other = await it.stream(new_stream_id())
        watched = await settled(it)
        waits = [it.log.create(fresh(it).name, FIELDS, "1") for _ in range(250)]
        other.put(b"1")
        first = waits[-1].first
        await other.holds(1)
        assert not first.done()
        await all_of(*waits)
        assert (watched.flushes, watched.asked) == ([97, 96, 58], [])

    play(server.url, story)


def test_before_anything_was_appended_there_is_nothing_to_go_along_with(server: Server) -> None:
    async def story(it: Scene) -> None:
        watched = Watched(it)
        await made(it, fresh(it))
        assert watched.flushes == []

    play(server.url, story)


def test_in_a_cluster_each_goes_to_its_own_node(cluster: ClusterStore) -> None:
    async def story(it: Scene) -> None:
        for _ in range(12):  # on every node, before and after there is a connection to go along on
            stream = fresh(it)
            await made(it, stream)
            stream.put(b"1")
            await stream.holds(1)

    play(cluster.url, story)


@pytest.mark.parametrize("sharded", [False, True], ids=["one-server", "cluster"])
def test_a_server_that_has_forgotten_its_scripts_is_told_them_again(
    sharded: bool, server: Server, request: pytest.FixtureRequest
) -> None:
    servers = request.getfixturevalue("cluster").servers if sharded else [server]

    async def story(it: Scene) -> None:
        for _ in range(6):
            stream = fresh(it)
            await made(it, stream)
            stream.put(b"1")
            await stream.holds(1)
        for one in servers:
            one.command("SCRIPT", "FLUSH")
        for _ in range(6):
            await made(it, fresh(it))

    play(request.getfixturevalue("cluster").url if sharded else server.url, story)


@pytest.mark.parametrize("how", ["killed", "silent"])
def test_a_store_that_is_away_is_said_to_be(how: str, server: Server) -> None:
    async def story(it: Scene) -> None:
        await settled(it)
        (server.kill if how == "killed" else server.pause)()
        stream = fresh(it)
        waits = [it.log.create(stream.name, FIELDS, "1"), it.log.directory.note_stream("r", stream.name)]
        async with asyncio.timeout(WITHIN):
            with pytest.raises(StoreUnavailable):
                await all_of(*waits)
            for one in waits:  # each of them is told
                with pytest.raises(StoreUnavailable):
                    await one
        if how == "killed":
            await asyncio.to_thread(server.restart)
        else:
            server.resume()
        for _ in range(100):
            try:
                await made(it, stream)
                break
            except StoreUnavailable:
                await asyncio.sleep(0.1)
        else:
            raise AssertionError("no stream could be made on a store that is back")

    play(server.url, story, timeout=0.4)


def test_one_streams_fault_leaves_the_others_their_way(server: Server) -> None:
    async def story(it: Scene) -> None:
        bad = await it.stream(new_stream_id())
        await settled(it)
        bad.put(None)  # type: ignore[arg-type]
        stream = fresh(it)
        await made(it, stream)
        stream.put(b"1")
        await stream.holds(1)

    play(server.url, story)


def test_nothing_goes_along_with_appends_that_are_over(server: Server) -> None:
    async def story(it: Scene) -> None:
        await settled(it)
        waits = it.log.create(new_stream_id(), FIELDS, "1")
        for queue in it.committer._queues.values():
            await queue.close()
        async with asyncio.timeout(WITHIN):
            await waits
            await made(it, fresh(it))

    play(server.url, story)


@pytest.mark.parametrize(
    "error",
    [
        NotSent(),
        StoreDown("lost"),
        redis.exceptions.TryAgainError("TRYAGAIN"),
        redis.exceptions.ClusterDownError("CLUSTERDOWN"),
        redis.exceptions.ReadOnlyError("READONLY"),
        redis.exceptions.BusyLoadingError("LOADING"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_what_has_come_to_nothing_is_asked_for_again(error: Exception, server: Server) -> None:
    async def story(it: Scene) -> None:
        asked = []

        def along(node: Node, command: Command) -> asyncio.Future[Any]:
            asked.append(command)
            answer: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
            answer.set_exception(error)
            return answer

        it.log.commands.along = along
        await made(it, fresh(it))
        assert len(asked) == 2  # the first attempts, and no further ones

    play(server.url, story)


def test_what_a_server_refuses_is_refused(server: Server) -> None:
    async def story(it: Scene) -> None:
        await settled(it)
        key = it.log.names.replica("r")
        await it.log.commands.call(key, "SET", key, "no set")
        with pytest.raises(StoreUnavailable):
            await it.log.directory.note_stream("r", new_stream_id())
        await it.log.commands.call(key, "DEL", key)
        await made(it, fresh(it))

    play(server.url, story)
