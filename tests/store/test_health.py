"""What `relay check` and the start say of a server: that it lets anybody in, or evicts. Real servers, that listen on
loopback only: an address that nobody has stands for the network."""

from __future__ import annotations

import asyncio
import logging
import socketserver
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from relay.metrics import Metrics
from relay.store.health import Health, _is_loopback, node_faults
from relay.store.topology import connect
from tests.conftest import Relays
from tests.support.guarded import Guard, login, valkey_with_users
from tests.support.processes import RelayProcess, free_port
from tests.support.scripted import ScriptedUpstream
from tests.support.sseclient import open_stream
from tests.support.stores import Store, valkey_cluster, valkey_sentinel, valkey_server
from tests.support.waiting import until, wait_until

pytestmark = pytest.mark.slow

# TEST-NET-1 (RFC 5737); the minus: it need not be there.
EVERYWHERE = ("bind", "127.0.0.1 -192.0.2.1")
UNPROTECTED = ("protected-mode", "no")
OPEN = "gets in without a password"


async def faults(url: str) -> list[str]:
    topology = connect(url)
    try:
        await topology.refresh()
        return [fault for node in topology.nodes() for fault in await node_faults(node)]
    finally:
        await topology.close()


def test_one_that_lets_anybody_in(tmp_path: Path) -> None:
    with valkey_server(tmp_path, config=[EVERYWHERE, UNPROTECTED]) as store:
        (fault,) = asyncio.run(faults(store.url))
        assert f"whoever reaches 127.0.0.1 port {store.servers[0].port} {OPEN}" in fault
        assert "store.url" in fault


def test_one_that_lets_in_others_than_the_relay(tmp_path: Path) -> None:
    """The relay's own password keeps nobody out."""
    with valkey_server(tmp_path, config=[EVERYWHERE, UNPROTECTED]) as store:
        store.servers[0].command("ACL", "SETUSER", "relay", "on", ">pw", "~relay:*", "&relay:*", "+@all")
        (fault,) = asyncio.run(faults(store.url.replace("redis://", "redis://" + login("relay", "pw"))))
        assert OPEN in fault


@pytest.mark.parametrize(
    ("config", "unix"),
    [
        pytest.param([EVERYWHERE], False, id="protected-mode"),
        pytest.param([UNPROTECTED], False, id="loopback"),
        pytest.param([("bind", "127.0.0.1 -::1"), UNPROTECTED], False, id="loopback-both"),
        pytest.param([EVERYWHERE, UNPROTECTED], True, id="unix-socket"),
    ],
)
def test_one_that_only_this_machine_reaches(config: list[tuple[str, str]], unix: bool, tmp_path: Path) -> None:
    with valkey_server(tmp_path, config=config, unix=unix) as store:
        assert asyncio.run(faults(store.url)) == []


def test_one_with_a_password(tmp_path: Path) -> None:
    with valkey_server(tmp_path, config=[EVERYWHERE, UNPROTECTED]) as store:
        store.servers[0].command("CONFIG", "SET", "requirepass", "pw")
        assert asyncio.run(faults(store.url.replace("redis://", "redis://" + login("", "pw")))) == []


def test_one_where_anybody_may_do_no_more_than_ping(tmp_path: Path) -> None:
    with valkey_with_users(tmp_path) as store:
        server = store.servers[0]
        server.command("CONFIG", "SET", "protected-mode", "no")
        server.command("CONFIG", "SET", "bind", EVERYWHERE[1])
        server.command("ACL", "SETUSER", "relay", "+config|get")
        server.command("ACL", "SETUSER", "default", "on", "nopass", "+ping")
        assert asyncio.run(faults(store.url)) == []
        server.command("ACL", "SETUSER", "default", "+@read", "~*")
        (fault,) = asyncio.run(faults(store.url))
        assert OPEN in fault


def test_one_that_wants_a_certificate(tmp_path: Path) -> None:
    guard = Guard(tmp_path)
    server = guard.server(tmp_path / "server", {"bind": EVERYWHERE[1], "protected-mode": "no"}, port=free_port())
    try:
        server.start()
        server.command("ACL", "SETUSER", "default", "on", "nopass", "~*", "+@all")
        url = guard.url(f"127.0.0.1:{server.port}", "")
        assert asyncio.run(faults(url)) == []
        server.command("CONFIG", "SET", "tls-auth-clients", "optional")
        (fault,) = asyncio.run(faults(url))
        assert OPEN in fault
    finally:
        server.close()


def test_every_server_of_a_group_is_asked(tmp_path: Path) -> None:
    for name, form, said in (("sentinel", valkey_sentinel, 1), ("cluster", valkey_cluster, 2)):
        with form(tmp_path / name) as store:
            assert asyncio.run(faults(store.url)) == []
            for server in store.servers[:2]:
                server.command("CONFIG", "SET", "protected-mode", "no")
                server.command("CONFIG", "SET", "bind", EVERYWHERE[1])
            found = asyncio.run(faults(store.url))
            assert len(found) == said, found
            assert all(OPEN in fault for fault in found)


@pytest.mark.parametrize("address", ["127.0.0.1", "127.8.0.1", "::1", "::ffff:127.0.0.1", "localhost"])
def test_this_machine(address: str) -> None:
    assert _is_loopback(address)


@pytest.mark.parametrize(
    "address", ["10.0.0.5", "192.0.2.1", "::", "*", "fe80::1%eth0", "::ffff:10.0.0.5", "redis", ""]
)
def test_other_machines(address: str) -> None:
    assert not _is_loopback(address)


def test_one_that_evicts(tmp_path: Path) -> None:
    with valkey_server(tmp_path, config=[("maxmemory-policy", "volatile-ttl")]) as store:
        (fault,) = asyncio.run(faults(store.url))
        assert "volatile-ttl" in fault
        assert "noeviction" in fault


def test_one_that_tells_nothing_of_itself(tmp_path: Path) -> None:
    """As where Redis is rented; it is no fault."""
    with valkey_with_users(tmp_path) as store:
        store.servers[0].command("ACL", "SETUSER", "relay", "-info")
        assert asyncio.run(faults(store.url)) == []


def used_memory(metrics: Metrics) -> float:
    (family,) = metrics.store_memory_used.collect()
    return family.samples[0].value


async def nothing_to_write() -> None:
    pass


def test_health_says_it_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async def watched(store: Store) -> None:
        """A watch begins with a look at every server."""
        topology = connect(store.url)
        metrics = Metrics()
        health = Health(topology, metrics, nothing_to_write)
        try:
            for _ in range(3):
                metrics.store_memory_used.set(0)
                watching = asyncio.create_task(health.watch())
                await until(lambda: used_memory(metrics) > 0, 5, "a look")
                watching.cancel()
        finally:
            await topology.close()

    with valkey_server(tmp_path, config=[EVERYWHERE, UNPROTECTED]) as store, caplog.at_level(logging.WARNING):
        asyncio.run(watched(store))
    assert [OPEN in message for message in caplog.messages] == [True]


def test_the_start_warns(tmp_path: Path, upstream: ScriptedUpstream, relays: Relays) -> None:
    with valkey_server(tmp_path, config=[EVERYWHERE, UNPROTECTED]) as store:
        upstreams = [{"name": "scripted", "base_url": upstream.url}]
        relay = relays.start({"store": {"url": store.url}, "upstreams": upstreams})
        wait_until(lambda: OPEN in relay.log(), 5, "the warning")
        (line,) = [line for line in relay.log().splitlines() if OPEN in line]
        assert " WARNING relay.store.health store: whoever reaches 127.0.0.1 port " in line


# -- a store that is there and refuses the relay -----------------------------------------------------------------

REFUSED = "store: the relay cannot use it"


def readiness(relay: RelayProcess, query: str = "?store=required") -> int:
    with open_stream(f"{relay.url}/readyz{query}", "GET") as answer:
        answer.read()
        return answer.status


def refused_relay(relays: Relays, upstream: ScriptedUpstream, url: str) -> RelayProcess:
    return relays.start({"store": {"url": url}, "upstreams": [{"name": "scripted", "base_url": upstream.url}]})


@contextmanager
def server_that_says(words: bytes) -> Iterator[str]:
    """Its address; it says so to whoever comes, and hangs up."""

    class Saying(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            self.request.sendall(words)

    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Saying) as server:
        answering = threading.Thread(target=server.serve_forever, args=(0.05,))
        answering.start()
        try:
            yield "{}:{}".format(*server.server_address)
        finally:
            server.shutdown()
            answering.join()


def said(relay: RelayProcess) -> list[str]:
    return [line for line in relay.log().splitlines() if REFUSED in line]


@pytest.mark.parametrize("refusal", ["nobody", "password", "user", "scripts", "replica", "no store"])
def test_readiness_that_requires_the_store_sees_every_refusal(
    tmp_path: Path, upstream: ScriptedUpstream, relays: Relays, refusal: str
) -> None:
    """Each is an answer of a server, or none; `/readyz` by itself is 200, since streams begin without a log."""
    with valkey_with_users(tmp_path) as store, ScriptedUpstream() as web:
        command = store.servers[0].command
        url = store.url
        match refusal:
            case "nobody":
                url = f"redis://127.0.0.1:{free_port()}"
            case "password":
                command("ACL", "SETUSER", "relay", "resetpass", ">another")
            case "user":
                command("ACL", "SETUSER", "relay", "off")
            case "scripts":
                command("ACL", "SETUSER", "relay", "-evalsha")
            case "replica":
                command("REPLICAOF", "127.0.0.1", str(free_port()))
            case "no store":
                url = f"redis://{web.url.removeprefix('http://')}"
        relay = refused_relay(relays, upstream, url)
        wait_until(lambda: said(relay), 15, "the error in the log")
        assert all(" ERROR relay.store.health " in line and "store.url" in line for line in said(relay))
        assert (readiness(relay), readiness(relay, "")) == (503, 200)


def test_a_server_in_protected_mode_is_said_as_an_error(
    tmp_path: Path, upstream: ScriptedUpstream, relays: Relays
) -> None:
    """What it answers to whoever comes from another machine, word for word."""
    denial = b"-DENIED Redis is running in protected mode because protected mode is enabled.\r\n"
    with server_that_says(denial) as address:
        relay = refused_relay(relays, upstream, f"redis://{address}")
        wait_until(lambda: said(relay), 15, "the error in the log")
        assert "protected mode" in said(relay)[0]
        assert (readiness(relay), readiness(relay, "")) == (503, 200)


def test_readiness_follows_the_store(tmp_path: Path, upstream: ScriptedUpstream, relays: Relays) -> None:
    with valkey_with_users(tmp_path) as store:
        relay = refused_relay(relays, upstream, store.url)
        wait_until(lambda: readiness(relay) == 200, 10, "the first look")
        store.servers[0].command("ACL", "SETUSER", "relay", "-evalsha")
        wait_until(lambda: readiness(relay) == 503, 15, "the store's refusal")
        store.servers[0].command("ACL", "SETUSER", "relay", "+evalsha")
        wait_until(lambda: readiness(relay) == 200, 15, "the store's return")
        assert len(said(relay)) == 1
        wait_until(lambda: "store: the relay can use it again" in relay.log(), 10, "the line")


def test_a_probe_with_a_word_that_is_none_finds_out(upstream: ScriptedUpstream, relays: Relays) -> None:
    relay = relays.start({"upstreams": [{"name": "scripted", "base_url": upstream.url}]})
    for query in ("?store=", "?store=require", "?store=required&store=required"):
        assert readiness(relay, query) == 400, query
    assert readiness(relay, "?at=1") == 200
