"""Commands by key, on real servers: a Cluster whose slots move and whose servers fail, a Sentinel group, a single
server that goes away and comes back."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from relay.config import StoreSettings, StreamSettings
from relay.metrics import Metrics
from relay.protocol.errors import StoreUnavailable
from relay.store import scripts
from relay.store.commands import Commands
from relay.store.link import StoreDown
from relay.store.log import Log
from relay.store.node import Node
from relay.store.topology import connect
from relay.streams.leases import Leases
from tests.support.cutting import Blackhole, FaultProxy
from tests.support.resharding import cluster_replica, start_move, take_over
from tests.support.stores import ClusterStore, SentinelStore, Server, valkey_cluster, valkey_sentinel, valkey_server
from tests.support.waiting import wait_until

pytestmark = pytest.mark.slow

SOON = 3.0  # what a loaded machine may add
EVERY_SHARD = ["{a}", "{b}", "{c}", "{d}", "{e}", "{f}"]

Story = Callable[[Commands], Awaitable[None]]


def play(url: str, story: Story, timeout: float = 2.0) -> None:
    async def scene() -> None:
        commands = Commands(connect(url, timeout))
        try:
            await story(commands)
        finally:
            await commands.topology.close()

    asyncio.run(scene())


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ClusterStore]:
    """Shared: no test kills its servers, and each has keys of its own."""
    with valkey_cluster(tmp_path_factory.mktemp("cluster")) as store:
        assert isinstance(store, ClusterStore)
        assert len({store.of_key(key).port for key in EVERY_SHARD}) == 3
        yield store


def port_of(node: Node) -> int:
    assert node.address is not None
    return node.address[1]


async def soon(predicate: Callable[[], bool], within: float = 10.0) -> float:
    """Returns, with the time that it took, when the predicate is true."""
    began = time.monotonic()
    async with asyncio.timeout(within):
        while not predicate():  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    return time.monotonic() - began


class TestRedirections:
    def test_keys_find_their_servers_before_the_topology_is_known(self, cluster: ClusterStore) -> None:
        async def story(commands: Commands) -> None:
            for key in EVERY_SHARD:
                name = f"{key}before".encode()
                await commands.call(name, "SET", name, key)
                assert cluster.of_key(key).command("GET", f"{key}before") == key

        play(cluster.url, story)

    def test_all_at_once(self, cluster: ClusterStore) -> None:
        async def story(commands: Commands) -> None:
            names = [f"{{once{n}}}".encode() for n in range(200)]
            assert await asyncio.gather(*(commands.call(n, "SET", n, n) for n in names)) == [b"OK"] * 200
            assert await asyncio.gather(*(commands.call(n, "GET", n, reads=True) for n in names)) == names

        play(cluster.url, story)

    def test_a_slot_that_has_moved_is_followed_once_for_all(self, cluster: ClusterStore) -> None:
        async def story(commands: Commands) -> None:
            await commands.topology.refresh()
            await commands.call(b"{moved}1", "SET", b"{moved}1", "x")
            changed: list[bool] = []
            commands.topology.on_change.append(lambda: changed.append(True))
            move = await asyncio.to_thread(start_move, cluster, "{moved}")
            await asyncio.to_thread(move.finish)
            assert port_of(commands.topology.node_of(b"{moved}2")) == move.source.port
            assert await commands.call(b"{moved}1", "GET", b"{moved}1") == b"x"
            assert port_of(commands.topology.node_of(b"{moved}2")) == move.target.port
            assert changed

        play(cluster.url, story)

    def test_keys_at_the_target_while_the_slot_is_not(self, cluster: ClusterStore) -> None:
        async def story(commands: Commands) -> None:
            await commands.call(b"{ask}old", "SET", b"{ask}old", "x")
            move = await asyncio.to_thread(start_move, cluster, "{ask}")
            assert await commands.call(b"{ask}old", "GET", b"{ask}old") == b"x"  # it is where it was
            await asyncio.to_thread(move.move_keys)
            for reads in (False, True):
                assert await commands.call(b"{ask}old", "GET", b"{ask}old", reads=reads) == b"x"
            await commands.call(b"{ask}new", "SET", b"{ask}new", "y")
            assert await commands.run(b"{ask}meta", scripts.CREATE, [b"{ask}meta"], [1000, 60_000, "fence", "1"]) == 1
            assert port_of(commands.topology.node_of(b"{ask}old")) == move.source.port  # only MOVED says otherwise
            await asyncio.to_thread(move.finish)
            assert move.target.command("MGET", "{ask}old", "{ask}new") == ["x", "y"]
            assert await commands.call(b"{ask}old", "GET", b"{ask}old") == b"x"

        play(cluster.url, story)

    def test_a_script_whose_keys_are_apart_waits_for_them(self, cluster: ClusterStore) -> None:
        async def story(commands: Commands) -> None:
            log, meta = b"{apart}log", b"{apart}meta"
            await commands.call(log, "XADD", log, "1-0", "f", "x")
            await commands.run(meta, scripts.CREATE, [meta], [1000, 60_000, "fence", "1", "api", "chat"])
            move = await asyncio.to_thread(start_move, cluster, "{apart}")
            await asyncio.to_thread(move.move_keys, "{apart}log")
            looking = asyncio.ensure_future(commands.run(log, scripts.STATUS, [meta, log], ["", "0"]))
            await asyncio.wait([looking], timeout=0.2)
            assert not looking.done()
            await asyncio.to_thread(move.finish)
            assert await looking is not None

        play(cluster.url, story)

    def test_keys_that_stay_apart_are_not_waited_for_without_end(self, cluster: ClusterStore) -> None:
        async def story(commands: Commands) -> None:
            log, meta = b"{never}log", b"{never}meta"
            await commands.call(log, "XADD", log, "1-0", "f", "x")
            await commands.call(meta, "HSET", meta, "fence", "1")
            move = await asyncio.to_thread(start_move, cluster, "{never}")
            await asyncio.to_thread(move.move_keys, "{never}log")
            with pytest.raises(StoreUnavailable):
                await commands.run(log, scripts.STATUS, [meta, log], ["", "0"])
            await asyncio.to_thread(move.finish)

        play(cluster.url, story)

    def test_a_pending_move_stops_nobody_else(self, cluster: ClusterStore) -> None:
        async def story(commands: Commands) -> None:
            for key in (b"{stay}", b"{went}"):
                await commands.call(key, "SET", key, key)
            move = await asyncio.to_thread(start_move, cluster, "{went}")
            await asyncio.to_thread(move.move_keys)
            calls = [commands.call(key, "GET", key) for key in (b"{stay}", b"{went}") * 50]
            assert await asyncio.gather(*calls) == [b"{stay}", b"{went}"] * 50
            await asyncio.to_thread(move.finish)

        play(cluster.url, story)


class TestServersOfAClusterThatFail:
    @pytest.mark.parametrize("which", [0, 1], ids=["the-start-node", "another"])
    def test_a_silent_one_whose_replica_took_over(self, which: int, tmp_path: Path) -> None:
        async def story(commands: Commands) -> None:
            await commands.topology.refresh()
            key = next(f"{{k{n}}}" for n in range(100) if cluster.of_key(f"{{k{n}}}") is silent).encode()
            await commands.call(key, "SET", key, "x")
            await asyncio.to_thread(wait_until, lambda: replica.command("DBSIZE") == 1, 5)
            before = commands.topology.node_of(key)
            returned: list[Node] = []
            commands.on_returned.append(returned.append)
            assert commands.returned_for(key) == float("inf")
            silent.pause()
            await asyncio.to_thread(take_over, replica)
            began = time.monotonic()
            assert await commands.call(key, "GET", key) == b"x"
            assert time.monotonic() - began < 1.5
            node = commands.topology.node_of(key)
            assert port_of(node) == replica.port
            assert node in returned
            assert commands.returned_for(key) < SOON
            assert commands.healthy_for(key) < SOON
            # The old one is not dialled again, and its connections are closed.
            assert before.closed
            assert node in commands.topology.nodes()
            assert before not in commands.topology.nodes()
            with pytest.raises(StoreDown):
                await before.query.call("PING")

        with valkey_cluster(tmp_path / "cluster") as cluster:
            assert isinstance(cluster, ClusterStore)
            silent = cluster.servers[which]
            with cluster_replica(tmp_path / "replica", cluster, silent) as replica:
                play(cluster.url, story)

    def test_unasked_too(self, tmp_path: Path) -> None:
        """A killed server's end is seen at its connections: who follows it is found before anybody wants to know."""

        async def story(commands: Commands) -> None:
            await commands.topology.refresh()
            key = next(f"{{k{n}}}" for n in range(100) if cluster.of_key(f"{{k{n}}}") is killed).encode()
            await commands.call(key, "GET", key)
            killed.kill()
            await asyncio.to_thread(take_over, replica)
            assert await soon(lambda: port_of(commands.topology.node_of(key)) == replica.port) < SOON
            assert await commands.call(key, "SET", key, "x") == b"OK"

        with valkey_cluster(tmp_path / "cluster") as cluster:
            assert isinstance(cluster, ClusterStore)
            killed = cluster.servers[0]
            with cluster_replica(tmp_path / "replica", cluster, killed) as replica:
                play(cluster.url, story)

    def test_several_start_nodes_one_of_them_silent(self, cluster: ClusterStore) -> None:
        async def story(commands: Commands) -> None:
            began = time.monotonic()
            for key in EVERY_SHARD:
                name = f"{key}start".encode()
                assert await commands.call(name, "SET", name, "x") == b"OK"
            assert time.monotonic() - began < 1.0 + SOON / 2

        with FaultProxy(cluster.servers[0].port) as proxy:
            proxy.mode = Blackhole()
            play(f"redis+cluster://127.0.0.1:{proxy.port},127.0.0.1:{cluster.servers[1].port}", story)


class TestSentinel:
    @pytest.mark.parametrize("first", ["silent", "alive"])
    def test_a_silent_sentinel_delays_nothing(self, first: str, tmp_path: Path) -> None:
        async def story(commands: Commands) -> None:
            await commands.call(b"k", "SET", b"k", "x")
            primary, replica = store.primary(), store.replica()
            await asyncio.to_thread(wait_until, lambda: replica.command("DBSIZE") == 1, 5)
            proxy.mode = Blackhole()
            primary.pause()
            await asyncio.to_thread(wait_until, lambda: store.primary() is replica, 20)
            began = time.monotonic()
            async with asyncio.timeout(10):
                while True:
                    try:
                        assert await commands.call(b"k", "SET", b"k", "y") == b"OK"
                        break
                    except StoreUnavailable:
                        continue
            # The sentinel names the new primary a moment before that takes writes.
            assert time.monotonic() - began < 1.5
            assert replica.command("GET", "k") == "y"
            assert commands.returned_for(b"k") < SOON

        with valkey_sentinel(tmp_path) as store, FaultProxy(store.sentinel.port) as proxy:
            assert isinstance(store, SentinelStore)
            hosts = [f"127.0.0.1:{port}" for port in (proxy.port, store.sentinel.port)]
            if first == "alive":
                hosts.reverse()
            play(f"redis+sentinel://{','.join(hosts)}/{store.name}", story)

    @pytest.mark.parametrize("question", ["unknown stream", "lapsed lease"])
    def test_a_frozen_primary_that_was_replaced_is_not_believed(self, question: str, tmp_path: Path) -> None:
        """It goes on answering, from what it had, until a sentinel has told it that another one took over: what it does
        not know may exist all the same, and what nobody renews there may live."""

        async def story(commands: Commands) -> None:
            fields = {"api": "chat", "owner": "o", "upstream": "u", "model": "m", "replica": "r"}
            log = Log(commands.topology, StreamSettings(lease=0.5), StoreSettings())
            await log.create("st_earlier", fields, "1")
            assert await log.get_status("st_unknown") is None
            await asyncio.to_thread(wait_until, lambda: store.replica().command("DBSIZE") == 1, 5)
            frozen, heir = store.primary(), store.replica()
            frozen.pause()
            await asyncio.to_thread(wait_until, lambda: store.primary() is heir, 20)
            await asyncio.to_thread(wait_until, lambda: heir.client().info("replication")["role"] == "master", 20)
            elsewhere = connect(store.url)
            async with asyncio.timeout(10):
                while True:  # the sentinel names it a moment before it reaches it
                    with contextlib.suppress(StoreUnavailable):
                        await Log(elsewhere, StreamSettings(), StoreSettings()).create("st_later", fields, "1")
                        break
            await elsewhere.close()
            frozen.resume()
            status = await log.get_status("st_earlier")
            assert status is not None
            assert status.lease_left < 0  # it was renewed at the other one, for all that is known here
            leases = Leases(log, "r", None, Metrics(), None)  # type: ignore[arg-type]
            asked = log.get_status("st_later") if question == "unknown stream" else leases.settle(status)
            with pytest.raises(StoreUnavailable):
                await asked
            assert heir.command("HGET", log.names.meta("st_earlier").decode(), "end") is None
            async with asyncio.timeout(10):
                while True:
                    with contextlib.suppress(StoreUnavailable):
                        assert await log.get_status("st_later") is not None
                        break

        with valkey_sentinel(tmp_path) as store:
            assert isinstance(store, SentinelStore)
            play(store.url, story)

    def test_none_that_answers_is_said_in_time(self, tmp_path: Path) -> None:
        async def story(commands: Commands) -> None:
            began = time.monotonic()
            with pytest.raises(StoreDown, match="no sentinel"):
                await commands.topology.refresh()
            assert time.monotonic() - began < 1.0 + SOON

        with valkey_server(tmp_path) as store, FaultProxy(store.servers[0].port) as proxy:
            proxy.mode = Blackhole()
            play(f"redis+sentinel://127.0.0.1:{proxy.port},127.0.0.1:{proxy.port}/relay", story)


class TestOneServer:
    def test_its_return_is_told_unasked(self, tmp_path: Path) -> None:
        async def story(commands: Commands) -> None:
            returned: list[Node] = []
            commands.on_returned.append(returned.append)
            await commands.call(b"k", "PING")
            assert (returned, commands.returned_for(b"k")) == ([], float("inf"))
            server.kill()
            await soon(lambda: commands.healthy_for(b"k") == 0.0)
            with pytest.raises(StoreUnavailable):
                await commands.call(b"k", "PING")
            await asyncio.to_thread(server.restart)
            assert await soon(lambda: bool(returned)) < 1.0 + SOON / 2
            assert returned == [commands.topology.node_of(b"k")]
            assert commands.returned_for(b"k") < SOON
            assert 0 < commands.healthy_for(b"k") < SOON

        with valkey_server(tmp_path) as store:
            (server,) = store.servers
            play(store.url, story)

    def test_away_from_the_start(self, tmp_path: Path) -> None:
        async def story(commands: Commands) -> None:
            returned: list[Node] = []
            commands.on_returned.append(returned.append)
            with pytest.raises(StoreUnavailable):
                await commands.call(b"k", "PING")
            await asyncio.to_thread(server.restart)
            await soon(lambda: bool(returned))
            assert commands.returned_for(b"k") < SOON

        with valkey_server(tmp_path) as store:
            (server,) = store.servers
            server.kill()
            play(store.url, story)

    def test_one_that_became_a_replica_is_dialled_anew(self, tmp_path: Path) -> None:
        """Its address may be another server's by now, as where Redis is rented."""

        async def story(commands: Commands) -> None:
            await commands.call(b"k", "SET", b"k", "x")
            first = commands.topology.node_of(b"k").query.up_since
            server.command("REPLICAOF", "127.0.0.1", "1")
            with pytest.raises(StoreUnavailable):
                await commands.call(b"k", "SET", b"k", "y")
            server.command("REPLICAOF", "NO", "ONE")
            assert await commands.call(b"k", "SET", b"k", "y") == b"OK"
            assert commands.topology.node_of(b"k").query.up_since != first

        with valkey_server(tmp_path) as store:
            (server,) = store.servers
            play(store.url, story)

    def test_refused_writes_are_no_health(self, tmp_path: Path) -> None:
        async def story(commands: Commands) -> None:
            await commands.call(b"k", "PING")
            server.command("CONFIG", "SET", "maxmemory", "1")
            with pytest.raises(StoreUnavailable):
                await commands.call(b"k", "SET", b"k", "x")
            refused = time.monotonic()
            server.command("CONFIG", "SET", "maxmemory", "0")
            assert commands.healthy_for(b"k") <= time.monotonic() - refused + 0.1
            assert await commands.call(b"k", "SET", b"k", "x") == b"OK"

        with valkey_server(tmp_path) as store:
            (server,) = store.servers
            play(store.url, story)

    def test_long_reads_stand_in_front_of_nothing(self, tmp_path: Path) -> None:
        async def story(commands: Commands) -> None:
            key = b"long"
            await commands.call(key, "RPUSH", key, *["x" * 1024] * 256)
            node = commands.topology.node_of(key)
            await node.read.call("PING")
            reads = [asyncio.ensure_future(commands.call(key, "LRANGE", key, 0, -1, reads=True)) for _ in range(200)]
            pings: list[Any] = []
            while not reads[-1].done():
                pings.append(await commands.call(key, "PING"))
            assert len(pings) > 3
            assert all(len(reply) == 256 for reply in await asyncio.gather(*reads))

        with valkey_server(tmp_path) as store:
            play(store.url, story)


def test_a_server_of_the_tests(tmp_path: Path) -> None:
    """The helper's own promise: what a move says is what the servers do."""
    with valkey_cluster(tmp_path) as store:
        assert isinstance(store, ClusterStore)
        server: Server = store.of_key("{t}")
        server.command("SET", "{t}", "x")
        move = start_move(store, "{t}")
        move.finish()
        assert store.of_key("{t}") is move.target is not server
        assert move.target.command("GET", "{t}") == "x"
