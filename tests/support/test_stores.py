"""The servers that other tests stand on: each form starts, answers its own kind of client, and ends."""

import asyncio
import os
from contextlib import ExitStack
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import redis
import redis.asyncio
from redis.backoff import NoBackoff
from redis.cluster import RedisCluster
from redis.retry import Retry
from redis.sentinel import Sentinel

from tests.support.processes import free_port
from tests.support.stores import Server, valkey_cluster, valkey_sentinel, valkey_server, valkey_tls
from tests.support.waiting import wait_until

pytestmark = pytest.mark.slow


def ended(server: Server) -> bool:
    try:
        os.kill(server.pid, 0)
    except ProcessLookupError:
        return True
    return False


def impatient(url: str) -> redis.Redis:
    """A client that shows a failure at once: redis-py's own default tries again for seconds."""
    return redis.Redis.from_url(url, retry=Retry(NoBackoff(), 0))


@pytest.mark.parametrize("unix", [False, True])
def test_a_server_answers_and_ends(tmp_path: Path, unix: bool) -> None:
    with valkey_server(tmp_path, unix=unix) as store, redis.Redis.from_url(store.url) as client:
        client.set("key", "value")
        assert client.get("key") == b"value"
    assert all(ended(server) for server in store.servers)


@pytest.mark.parametrize(("appendonly", "kept"), [(False, None), (True, "value")])
def test_a_restart_keeps_what_the_append_only_file_has(tmp_path: Path, appendonly: bool, kept: str | None) -> None:
    with valkey_server(tmp_path, appendonly=appendonly) as store:
        (server,) = store.servers
        server.client().set("key", "value")
        server.kill()
        assert ended(server)
        server.restart()
        assert server.client().get("key") == kept


def test_a_paused_server_answers_nothing_until_resumed(tmp_path: Path) -> None:
    with valkey_server(tmp_path) as store:
        (server,) = store.servers
        server.client().set("key", "value")
        server.pause()
        with impatient(f"{store.url}?socket_timeout=0.2") as client, pytest.raises(redis.TimeoutError):
            client.ping()
        server.resume()
        assert server.client().get("key") == "value"


def test_settings_reach_the_server(tmp_path: Path) -> None:
    with valkey_server(tmp_path, config=[("maxmemory", "10mb")]) as store:
        assert store.servers[0].client().config_get("maxmemory")["maxmemory"] == str(10 * 1024 * 1024)


def test_a_failing_test_leaves_no_server(tmp_path: Path) -> None:
    started: list[Server] = []

    def failing_test() -> None:
        with valkey_server(tmp_path) as store:
            started.extend(store.servers)
            store.servers[0].pause()
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        failing_test()
    assert [ended(server) for server in started] == [True]


def test_a_bad_setting_is_told_with_the_servers_words(tmp_path: Path) -> None:
    with ExitStack() as stack, pytest.raises(RuntimeError, match="no-such-setting"):
        stack.enter_context(valkey_server(tmp_path, config=[("no-such-setting", "1")]))


def test_tls_answers_who_trusts_its_authority_and_nobody_else(tmp_path: Path) -> None:
    with valkey_tls(tmp_path) as store:
        with redis.Redis.from_url(store.url, decode_responses=True) as client:
            client.set("key", "value")
            assert client.get("key") == "value"

        async def get() -> object:
            async with redis.asyncio.Redis.from_url(store.url, decode_responses=True) as client:
                return await client.get("key")

        assert asyncio.run(get()) == "value"
        address = store.url.partition("?")[0]
        with impatient(address) as client, pytest.raises(redis.ConnectionError, match="VERIFY_FAILED"):
            client.ping()
        with impatient(address.replace("rediss", "redis")) as client, pytest.raises(redis.ConnectionError):
            client.ping()


def test_tls_closes_connections_when_its_server_dies(tmp_path: Path) -> None:
    with valkey_tls(tmp_path) as store, impatient(store.url) as client:
        client.ping()
        store.servers[0].kill()
        with pytest.raises(redis.ConnectionError):
            client.ping()
        store.servers[0].restart()
        assert client.ping()


def test_sentinel_names_the_primary_through_a_failover(tmp_path: Path) -> None:
    with valkey_sentinel(tmp_path) as store:
        address = urlsplit(store.url)
        sentinel = Sentinel([(address.hostname, address.port)], decode_responses=True)  # type: ignore[no-untyped-call]
        client = sentinel.master_for(address.path.removeprefix("/"))  # type: ignore[no-untyped-call]
        client.set("key", "value")
        client.wait(1, 1000)
        old, new = store.primary(), store.replica()
        store.failover()
        assert (store.primary(), store.replica()) == (new, old)
        assert client.get("key") == "value"
        client.close()
        for server in sentinel.sentinels:
            server.close()


def test_sentinel_promotes_the_replica_of_a_killed_primary(tmp_path: Path) -> None:
    with valkey_sentinel(tmp_path) as store:
        killed, promoted = store.primary(), store.replica()
        killed.kill()
        wait_until(lambda: store.primary() is promoted, 20)
        killed.restart()
        store.wait_settled()
        promoted.client().set("key", "value")
        wait_until(lambda: killed.client().get("key") == "value", 5)


def test_cluster_spreads_keys_over_its_primaries(tmp_path: Path) -> None:
    with valkey_cluster(tmp_path) as store:
        cluster = RedisCluster.from_url(store.url.replace("redis+cluster", "redis"), decode_responses=True)
        keys = [f"key-{number}" for number in range(30)]
        for key in keys:
            cluster.set(key, key)
        assert [cluster.get(key) for key in keys] == keys
        cluster.close()
        for server in store.servers:
            held = [key for key in keys if store.of_key(key) is server]
            assert sorted(server.client().keys("*")) == sorted(held)


def test_cluster_is_whole_again_after_a_node_restarted(tmp_path: Path) -> None:
    with valkey_cluster(tmp_path) as store:
        store.servers[1].kill()
        store.servers[1].restart()
        store.wait_ok()


def test_ports_are_given_once() -> None:
    ports = [free_port() for _ in range(100)]
    assert len(set(ports)) == 100
