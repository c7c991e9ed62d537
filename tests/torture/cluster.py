"""A Cluster of three primaries with a replica each: slots move while streams run, primaries die, replicas take over."""

from __future__ import annotations

import contextlib
import random
import time
from collections.abc import Iterator
from pathlib import Path

import redis

from tests.support.processes import free_port
from tests.support.stores import Server
from tests.support.waiting import wait_until
from tests.torture.stores import SETTLE_TIMEOUT, Backend, Entry, entries_at, freeze

_NODE_TIMEOUT = 1500
_SHARDS = 3


class Cluster:
    def __init__(self, servers: list[Server]) -> None:
        self._servers = servers
        self.url = f"redis+cluster://127.0.0.1:{servers[0].port}"

    @property
    def servers(self) -> list[Server]:
        return self._servers

    def primaries(self) -> list[Server]:
        return [server for server in self._servers if _role(server) == "master" and self._has_slots(server)]

    def _has_slots(self, server: Server) -> bool:
        return any(line.split()[2].startswith("myself,master") and len(line.split()) > 8 for line in _nodes(server))

    def owner(self, slot: int) -> Server:
        """The primary that serves the slot."""
        for server in self.primaries():
            for line in _nodes(server):
                words = line.split()
                if "myself" in words[2] and any(_within(slot, word) for word in words[8:]):
                    return server
        raise RuntimeError(f"nobody serves slot {slot}")

    def replica_of(self, primary: Server) -> Server:
        name = primary.command("CLUSTER", "MYID")
        return next(
            s for s in self._servers if s is not primary and _role(s) == "slave" and _nodes_myself(s).split()[3] == name
        )

    def play(self, kind: str, lasts: float, dice: random.Random, streams: list[str]) -> str:
        if kind == "slots_move":
            chosen = dice.sample(sorted(streams), min(len(streams), 3)) if streams else []
            return ", ".join(self._move(stream, lasts, dice) for stream in chosen)
        primary = dice.choice(sorted(self.primaries(), key=lambda s: s.port))
        if kind == "failover":
            replica = self.replica_of(primary)
            replica.command("CLUSTER", "FAILOVER")
            wait_until(lambda: _role(replica) == "master", SETTLE_TIMEOUT, "the failover")
        elif kind == "store_kill":
            replica = self.replica_of(primary)
            primary.kill()
            wait_until(lambda: _role(replica) == "master", SETTLE_TIMEOUT, "the failover")
            time.sleep(lasts)
            primary.start()
        elif kind == "store_freeze":
            freeze(primary, lasts)
        elif kind == "failover_lossy":
            replica = self.replica_of(primary)
            replica.pause()
            try:
                primary.client().client_kill_filter(_type="replica")
                time.sleep(min(lasts, _NODE_TIMEOUT / 1000 * 2))
                primary.kill()
            finally:
                replica.resume()
            # Its link to the primary has been down, and a Cluster may hold that against it: an operator takes over.
            wait_until(lambda: _role(replica) != "", SETTLE_TIMEOUT, "the replica")
            replica.command("CLUSTER", "FAILOVER", "TAKEOVER")
            wait_until(lambda: _role(replica) == "master", SETTLE_TIMEOUT, "the takeover")
            primary.start()
        elif kind == "replica_kill":
            replica = self.replica_of(primary)
            replica.kill()
            time.sleep(lasts)
            replica.start()
        else:
            raise ValueError(kind)
        self.settle()
        return f"node {primary.port}"

    def _move(self, stream: str, hold: float, dice: random.Random) -> str:
        """As redis-cli --cluster reshard does: the keys one by one, and the slot some time behind them."""
        slot = int(self.primaries()[0].command("CLUSTER", "KEYSLOT", f"{{{stream}}}"))
        source = self.owner(slot)
        target = dice.choice(sorted((s for s in self.primaries() if s is not source), key=lambda s: s.port))
        ids = {server.port: server.command("CLUSTER", "MYID") for server in (source, target)}
        target.command("CLUSTER", "SETSLOT", slot, "IMPORTING", ids[source.port])
        source.command("CLUSTER", "SETSLOT", slot, "MIGRATING", ids[target.port])
        between = hold / 4
        self._drain(slot, source, target, between)
        time.sleep(hold - between)
        self._drain(slot, source, target, 0.0)
        for server in (target, source, *(s for s in self.primaries() if s not in (source, target))):
            server.command("CLUSTER", "SETSLOT", slot, "NODE", ids[target.port])
        return f"slot {slot} of {stream} from {source.port} to {target.port}"

    def _drain(self, slot: int, source: Server, target: Server, between: float) -> None:
        deadline = time.monotonic() + SETTLE_TIMEOUT
        while keys := source.command("CLUSTER", "GETKEYSINSLOT", slot, 10):
            for key in keys:
                with contextlib.suppress(redis.exceptions.ResponseError, redis.exceptions.TimeoutError):
                    source.command("MIGRATE", "127.0.0.1", target.port, "", 0, 5000, "REPLACE", "KEYS", key)
                time.sleep(between / len(keys))
            if time.monotonic() > deadline:
                raise TimeoutError(f"slot {slot} does not empty")

    def entries(self, stream: str, *, newest: bool = False) -> list[Entry]:
        slot = int(self.primaries()[0].command("CLUSTER", "KEYSLOT", f"{{{stream}}}"))
        return entries_at(self.owner(slot), stream, newest=newest)

    def settle(self) -> None:
        for server in self._servers:
            server.resume()

        def ok() -> bool:
            try:
                primaries = self.primaries()
                if len(primaries) != _SHARDS:
                    return False
                for server in self._servers:
                    info = server.command("CLUSTER", "INFO").split()
                    if "cluster_state:ok" not in info:
                        return False
                    if (
                        server not in primaries
                        and server.client().info("replication").get("master_link_status") != "up"
                    ):
                        return False
                    if any("fail" in line.split()[2] for line in _nodes(server)):
                        return False
            except (redis.RedisError, StopIteration):
                return False
            return True

        wait_until(ok, SETTLE_TIMEOUT, "the cluster")


def _nodes(server: Server) -> list[str]:
    found = server.command("CLUSTER", "NODES")
    # redis-py turns the reply into a dict by address, unless it is asked for as text.
    if isinstance(found, dict):
        return [_as_line(address, node) for address, node in found.items()]
    return [line for line in str(found).splitlines() if line]


def _as_line(address: str, node: dict[str, object]) -> str:
    slots = " ".join("-".join(s) if isinstance(s, list) else str(s) for s in node.get("slots", []))  # type: ignore[attr-defined]
    state = "connected" if node.get("connected") else "disconnected"
    flags = node["flags"]
    return f"{node['node_id']} {address} {flags} {node['master_id']} 0 0 {node['epoch']} {state} {slots}"


def _nodes_myself(server: Server) -> str:
    return next(line for line in _nodes(server) if "myself" in line.split()[2])


def _within(slot: int, word: str) -> bool:
    if word.startswith("["):  # on its way in or out
        return False
    first, _, last = word.partition("-")
    return int(first) <= slot <= int(last or first)


def _role(server: Server) -> str:
    try:
        return str(server.client().info("replication")["role"])
    except redis.RedisError:
        return ""


@contextlib.contextmanager
def cluster(directory: Path) -> Iterator[Backend]:
    with contextlib.ExitStack() as stack:
        servers: list[Server] = []
        buses: list[int] = []
        for number in range(2 * _SHARDS):
            buses.append(free_port())
            settings = {
                "cluster-enabled": "yes",
                "cluster-port": str(buses[-1]),
                "cluster-announce-ip": "127.0.0.1",
                "cluster-node-timeout": str(_NODE_TIMEOUT),
                "cluster-replica-validity-factor": "0",
                "cluster-migration-barrier": "5",  # replicas stay with their primaries
                "cluster-allow-replica-migration": "no",
            }
            servers.append(Server(directory / f"node{number}", settings, port=free_port()))
            stack.callback(servers[-1].close)
            servers[-1].start(wait=False)
        bounds = [-(-16384 * number // _SHARDS) for number in range(_SHARDS + 1)]
        for number, server in enumerate(servers):
            server.wait_ready()
            if number < _SHARDS:
                server.command("CLUSTER", "ADDSLOTSRANGE", bounds[number], bounds[number + 1] - 1)
            server.command("CLUSTER", "SET-CONFIG-EPOCH", number + 1)
            if number:
                servers[0].command("CLUSTER", "MEET", "127.0.0.1", server.port, buses[number])

        def met() -> bool:
            return all(f"cluster_known_nodes:{len(servers)}" in s.command("CLUSTER", "INFO").split() for s in servers)

        wait_until(met, SETTLE_TIMEOUT, "the nodes to know each other")
        for number in range(_SHARDS):
            name = servers[number].command("CLUSTER", "MYID")
            servers[_SHARDS + number].command("CLUSTER", "REPLICATE", name)
        backend = Cluster(servers)
        backend.settle()
        yield backend
