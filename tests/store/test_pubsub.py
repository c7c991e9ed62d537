"""Shard subscriptions on real servers: where a channel is, where it goes, and what is missed on the way."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

import pytest

from relay.store.commands import Commands
from relay.store.pubsub import ShardSubscriptions
from relay.store.topology import connect
from tests.support.cutting import Blackhole, FaultProxy, Pass
from tests.support.resharding import cluster_replica, start_move, take_over
from tests.support.stores import ClusterStore, SentinelStore, Server, valkey_cluster, valkey_sentinel, valkey_server
from tests.support.waiting import wait_until

pytestmark = pytest.mark.slow

SOON = 3.0  # what a loaded machine may add
EVERY_SHARD = [b"{a}", b"{b}", b"{c}", b"{d}", b"{e}", b"{f}"]


class Heard:
    """What was told, in order, and who waits for more of it."""

    def __init__(self) -> None:
        self.messages: list[tuple[bytes, bytes]] = []
        self._told = asyncio.Event()

    def __call__(self, channel: bytes, message: bytes) -> None:
        self.messages.append((channel, message))
        self._told.set()

    def on(self, channel: bytes) -> list[bytes]:
        return [message for name, message in self.messages if name == channel]

    async def wait(self, channel: bytes, message: bytes, within: float = 10.0) -> float:
        """Returns, with the time it took, when that has been told."""
        began = time.monotonic()
        async with asyncio.timeout(within):
            while (channel, message) not in self.messages:
                self._told.clear()
                await self._told.wait()
        return time.monotonic() - began


class Scene:
    def __init__(self, url: str, on_message: Callable[[bytes, bytes], None] | None = None) -> None:
        self.commands = Commands(connect(url))
        self.heard = Heard()
        self.subscriptions = ShardSubscriptions(self.commands.topology, on_message or self.heard)

    async def publish(self, channel: bytes, message: bytes) -> None:
        await self.commands.call(channel, "SPUBLISH", channel, message)

    async def reached(self, channel: bytes, message: bytes = b"hello") -> float:
        """Published again and again until it is heard: how long that took."""
        began = time.monotonic()
        while not self.heard.on(channel).count(message):
            try:
                await self.publish(channel, message)
                await self.heard.wait(channel, message, 0.02)
            except Exception as error:
                if time.monotonic() - began > 20:
                    raise TimeoutError(f"{channel!r} hears nothing") from error
        return time.monotonic() - began


async def until(predicate: Callable[[], bool], within: float) -> None:
    """Returns when the predicate, which may ask a server, is true."""
    await asyncio.to_thread(wait_until, predicate, within)


Story = Callable[[Scene], Awaitable[None]]


def play(url: str, story: Story, on_message: Callable[[bytes, bytes], None] | None = None) -> None:
    async def scene() -> None:
        it = Scene(url, on_message)
        try:
            await story(it)
        finally:
            await it.subscriptions.close()
            await it.commands.topology.close()

    asyncio.run(scene())


def subscribers(server: Server) -> set[str]:
    """The connections that are subscribed to something."""
    return {client["id"] for client in server.client().client_list() if int(client["ssub"])}


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ClusterStore]:
    """Shared: no test kills its servers, and each has channels of its own."""
    with valkey_cluster(tmp_path_factory.mktemp("cluster")) as store:
        assert isinstance(store, ClusterStore)
        yield store


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    with valkey_server(tmp_path) as store:
        yield store.servers[0]


def same_node(store: ClusterStore, count: int, tag: str) -> list[bytes]:
    """Channels of different slots, all at one server."""
    found = [f"{{{tag}{n}}}" for n in range(100)]
    first = store.of_key(found[0])
    return [name.encode() for name in found if store.of_key(name) is first][:count]


class TestInACluster:
    def test_a_channel_wanted_before_the_topology_is_known_finds_its_server(self, cluster: ClusterStore) -> None:
        async def story(it: Scene) -> None:
            assert len({cluster.of_key(name.decode()).port for name in EVERY_SHARD}) == 3
            async with asyncio.timeout(SOON):
                await asyncio.gather(*(it.subscriptions.want(name) for name in EVERY_SHARD))
            for name in EVERY_SHARD:
                assert len(subscribers(cluster.of_key(name.decode()))) == 1
                await it.publish(name, b"m")
                await it.heard.wait(name, b"m")
            assert sorted(it.heard.messages) == [(name, b"m") for name in EVERY_SHARD]

        play(cluster.url, story)

    def test_a_slot_that_moves_takes_its_channel_along_and_no_other(self, cluster: ClusterStore) -> None:
        async def story(it: Scene) -> None:
            moved, *others = names = same_node(cluster, 4, "m")
            await asyncio.gather(*(it.subscriptions.subscribe(name) for name in names))
            source = cluster.of_key(moved.decode())
            connections = subscribers(source)
            move = await asyncio.to_thread(start_move, cluster, moved.decode())
            await asyncio.to_thread(move.finish)
            # Told that something may have been missed, as soon as nothing more can be.
            assert await it.heard.wait(moved, b"") < SOON
            await it.publish(moved, b"there")
            await it.heard.wait(moved, b"there")
            for name in others:
                await it.publish(name, b"here")
                await it.heard.wait(name, b"here")
            assert [it.heard.on(name) for name in others] == [[b"here"]] * 3
            assert it.heard.on(moved) == [b"", b"there"]
            assert subscribers(source) == connections

        play(cluster.url, story)

    def test_back_and_forth(self, cluster: ClusterStore) -> None:
        async def story(it: Scene) -> None:
            name = b"{to-and-fro}"
            await it.subscriptions.subscribe(name)
            for n in range(6):
                move = await asyncio.to_thread(start_move, cluster, name.decode())
                await asyncio.to_thread(move.finish)
                assert await it.reached(name, b"%d" % n) < SOON

        play(cluster.url, story)

    def test_unsubscribed_while_the_slot_moves(self, cluster: ClusterStore) -> None:
        """The answers of a server that has given a slot away must not be taken for those of others."""

        async def story(it: Scene) -> None:
            moved, other, new = same_node(cluster, 3, "u")
            await asyncio.gather(it.subscriptions.subscribe(moved), it.subscriptions.subscribe(other))
            move = await asyncio.to_thread(start_move, cluster, moved.decode())
            await asyncio.to_thread(move.finish)
            # In the same turn of the loop, before the end of the subscription was read.
            it.subscriptions.unsubscribe(moved)
            it.subscriptions.unsubscribe(other)
            wanted = [it.subscriptions.want(name) for name in (other, new)]
            async with asyncio.timeout(SOON):
                await asyncio.gather(*wanted)
            for name in (other, new):
                await it.publish(name, b"m")
                await it.heard.wait(name, b"m")
            async with asyncio.timeout(SOON):
                await it.subscriptions.want(moved)
            await it.publish(moved, b"m")
            await it.heard.wait(moved, b"m")

        play(cluster.url, story)

    @pytest.mark.parametrize("how", ["killed", "silent"])
    def test_a_server_whose_replica_took_over(self, how: str, tmp_path: Path) -> None:
        async def story(it: Scene) -> None:
            await asyncio.gather(*(it.subscriptions.subscribe(name) for name in EVERY_SHARD))
            on_lost = [name for name in EVERY_SHARD if store.of_key(name.decode()) is lost]
            assert on_lost
            lost.kill() if how == "killed" else lost.pause()
            await asyncio.to_thread(take_over, replica)
            began = time.monotonic()
            for name in on_lost:
                await it.heard.wait(name, b"")
            # Nothing was published meanwhile, and nothing else asked of the server that is lost.
            assert time.monotonic() - began < 1.5
            for name in EVERY_SHARD:
                assert await it.reached(name) < SOON
            assert [it.heard.on(name).count(b"") for name in EVERY_SHARD] == [int(n in on_lost) for n in EVERY_SHARD]

        with valkey_cluster(tmp_path / "cluster") as store:
            assert isinstance(store, ClusterStore)
            lost = store.servers[1]
            with cluster_replica(tmp_path / "replica", store, lost) as replica:
                play(store.url, story)

    def test_channels_come_and_go_while_others_move(self, cluster: ClusterStore) -> None:
        async def story(it: Scene) -> None:
            names = [f"{{busy{n}}}".encode() for n in range(60)]
            await asyncio.gather(*(it.subscriptions.subscribe(name) for name in names))
            for n in range(3):
                move = await asyncio.to_thread(start_move, cluster, names[n].decode())
                finishing = asyncio.ensure_future(asyncio.to_thread(move.finish))
                for name in names[30:]:
                    it.subscriptions.unsubscribe(name)
                    it.subscriptions.want(name)
                await finishing
            for name in names:
                assert await it.reached(name) < SOON

        play(cluster.url, story)


class TestOneServer:
    def test_messages_in_their_order(self, server: Server) -> None:
        async def story(it: Scene) -> None:
            await it.subscriptions.subscribe(b"c")
            sent = [b"%d" % n for n in range(500)]
            await asyncio.gather(*(it.publish(b"c", message) for message in sent))
            await it.heard.wait(b"c", sent[-1])
            assert it.heard.on(b"c") == sent

        play(server.url, story)

    def test_unsubscribed_it_is_told_nothing(self, server: Server) -> None:
        async def story(it: Scene) -> None:
            for name in (b"c", b"d"):
                await it.subscriptions.subscribe(name)
            it.subscriptions.unsubscribe(b"c")
            await it.publish(b"c", b"no")
            await it.publish(b"d", b"yes")
            await it.heard.wait(b"d", b"yes")
            assert it.heard.messages == [(b"d", b"yes")]

        play(server.url, story)

    def test_wanted_again_at_once_it_stays(self, server: Server) -> None:
        async def story(it: Scene) -> None:
            await it.subscriptions.subscribe(b"c")
            for n in range(20):
                it.subscriptions.unsubscribe(b"c")
                await it.subscriptions.subscribe(b"c")
                await it.publish(b"c", b"%d" % n)
                await it.heard.wait(b"c", b"%d" % n)

        play(server.url, story)

    def test_who_waits_for_what_is_not_wanted_any_more_waits_no_longer(self, tmp_path: Path) -> None:
        async def story(it: Scene) -> None:
            waiting = it.subscriptions.want(b"c")
            it.subscriptions.unsubscribe(b"c")
            assert waiting.done()

        with valkey_server(tmp_path) as store:
            store.servers[0].kill()
            play(store.url, story)

    def test_a_restart_is_followed_and_told(self, server: Server) -> None:
        async def story(it: Scene) -> None:
            for name in (b"c", b"d"):
                await it.subscriptions.subscribe(name)
            await asyncio.to_thread(server.restart)
            for name in (b"c", b"d"):
                assert await it.heard.wait(name, b"") < SOON
                assert await it.reached(name) < SOON
            assert it.heard.on(b"c") == [b"", b"hello"]

        play(server.url, story)

    def test_a_silent_server_is_given_up_and_found_again(self, server: Server) -> None:
        async def story(it: Scene) -> None:
            await it.subscriptions.subscribe(b"c")
            connections = proxy.connections
            proxy.mode = Blackhole()
            await until(lambda: proxy.connections > connections, 2.0 + SOON)
            proxy.mode = Pass()
            assert await it.heard.wait(b"c", b"") < SOON
            assert await it.reached(b"c") < SOON

        with FaultProxy(server.port) as proxy:
            play(proxy.url, story)

    def test_away_from_the_start(self, server: Server) -> None:
        """Whoever subscribed meanwhile looked too early: it is told when it is subscribed."""

        async def story(it: Scene) -> None:
            server.kill()
            began = time.monotonic()
            await it.subscriptions.subscribe(b"c")
            assert time.monotonic() - began < 1.0 + SOON
            await asyncio.to_thread(server.restart)
            assert await it.heard.wait(b"c", b"") < SOON

        play(server.url, story)

    def test_where_nothing_is_wanted_nothing_is_dialled(self, server: Server) -> None:
        async def story(it: Scene) -> None:
            await it.subscriptions.subscribe(b"c")
            it.subscriptions.unsubscribe(b"c")
            await asyncio.to_thread(server.restart)
            await it.subscriptions.subscribe(b"d")
            assert len(subscribers(server)) == 1
            connections = int(server.client().info("stats")["total_connections_received"])
            own = len(server.client().client_list())
            assert connections <= own + 1  # those that are open, and one that the test's own wait for the start closed

        play(server.url, story)

    def test_one_listener_that_raises_keeps_nothing_from_others(self, server: Server) -> None:
        heard = Heard()

        def on_message(channel: bytes, message: bytes) -> None:
            if channel == b"bad":
                raise RuntimeError("a fault in one stream")
            heard(channel, message)

        async def story(it: Scene) -> None:
            for name in (b"bad", b"good"):
                await it.subscriptions.subscribe(name)
            for message in (b"1", b"2"):
                await it.publish(b"bad", message)
                await it.publish(b"good", message)
                await heard.wait(b"good", message)

        play(server.url, story, on_message)

    def test_closed_it_leaves_no_connection(self, server: Server) -> None:
        async def story(it: Scene) -> None:
            await it.subscriptions.subscribe(b"c")
            await it.subscriptions.close()
            await until(lambda: not subscribers(server), SOON)

        async def scene() -> None:
            it = Scene(server.url)
            await story(it)
            await it.commands.topology.close()

        asyncio.run(scene())


def test_a_failover_of_sentinel_is_followed(tmp_path: Path) -> None:
    async def story(it: Scene) -> None:
        await it.subscriptions.subscribe(b"c")
        before = store.primary()
        before.pause()
        await until(lambda: store.primary() is not before, 20)
        assert await it.heard.wait(b"c", b"") < 1.5
        assert await it.reached(b"c") < SOON
        assert subscribers(store.primary())
        before.resume()

    with valkey_sentinel(tmp_path) as store:
        assert isinstance(store, SentinelStore)
        play(store.url, story)
