"""What happens to a Cluster while it serves: slots move, replicas join and take over."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import redis

from tests.support.processes import free_port
from tests.support.stores import START_TIMEOUT, ClusterStore, Server, cluster_settings
from tests.support.waiting import wait_until


@dataclass
class SlotMove:
    """The slot of a key on its way to another server, as `redis-cli --cluster reshard` moves it: first its keys, each
    for itself, then the slot."""

    store: ClusterStore
    slot: int
    source: Server
    target: Server

    def move_keys(self, *keys: str) -> None:
        """These, or all that the slot has."""
        found = keys or tuple(self.source.command("CLUSTER", "GETKEYSINSLOT", self.slot, 1000))
        if found:
            self.source.command("MIGRATE", "127.0.0.1", self.target.port, "", 0, 5000, "KEYS", *found)

    def finish(self) -> None:
        """The slot is the target's from now on."""
        self.move_keys()
        owner = self.target.command("CLUSTER", "MYID")
        for server in dict.fromkeys((self.target, self.source, *self.store.servers)):
            server.command("CLUSTER", "SETSLOT", self.slot, "NODE", owner)
        self.store.moved[self.slot] = self.target


def start_move(store: ClusterStore, key: str) -> SlotMove:
    """Begin to move the slot of a key to the next server; nothing has moved yet.

    Each move raises the target's config epoch above all that it knows. One that begins before its servers know of the
    last one's epoch may end with a slot that each of two servers says is the other's, for good.
    """
    wait_until(lambda: _agreed(store), START_TIMEOUT, "the servers' agreement")
    source = store.of_key(key)
    target = store.servers[(store.servers.index(source) + 1) % len(store.servers)]
    move = SlotMove(store, int(source.command("CLUSTER", "KEYSLOT", key)), source, target)
    target.command("CLUSTER", "SETSLOT", move.slot, "IMPORTING", source.command("CLUSTER", "MYID"))
    source.command("CLUSTER", "SETSLOT", move.slot, "MIGRATING", target.command("CLUSTER", "MYID"))
    return move


def _agreed(store: ClusterStore) -> bool:
    """Do all servers tell the same owners of all slots, and the same config epochs?"""
    views = set()
    for server in store.servers:
        nodes = [line.split() for line in server.command("CLUSTER", "NODES").splitlines()]
        # Each line: id, address, flags, primary, ping, pong, config epoch, link state, slots.
        views.add(frozenset((node[0], node[6], *(part for part in node[8:] if part[0] != "[")) for node in nodes))
    return len(views) == 1


def take_over(replica: Server) -> None:
    """The replica is its shard's primary from now on, whatever the old one does."""
    replica.command("CLUSTER", "FAILOVER", "TAKEOVER")
    wait_until(lambda: replica.client().info("replication")["role"] == "master", START_TIMEOUT, "the failover")


@contextmanager
def cluster_replica(directory: Path, store: ClusterStore, primary: Server) -> Iterator[Server]:
    """A replica of one of the servers, which is in step with it and known to the others."""
    bus = free_port()
    replica = Server(directory, cluster_settings(bus), port=free_port())
    try:
        replica.start()
        of, mine = primary.command("CLUSTER", "MYID"), replica.command("CLUSTER", "MYID")
        store.servers[0].command("CLUSTER", "MEET", "127.0.0.1", replica.port, bus)
        wait_until(lambda: _in_step(replica, of), START_TIMEOUT, "the replica")
        wait_until(lambda: all(_knows(server, mine, of) for server in store.servers), START_TIMEOUT, "its peers")
        wait_until(lambda: "cluster_state:ok" in replica.command("CLUSTER", "INFO"), START_TIMEOUT, "its state")
        yield replica
    finally:
        replica.close()


def _in_step(replica: Server, primary: str) -> bool:
    info = replica.client().info("replication")
    if info["role"] != "slave":
        with suppress(redis.ResponseError):  # it does not know that primary yet
            replica.command("CLUSTER", "REPLICATE", primary)
        return False
    return bool(info["master_link_status"] == "up")


def _knows(server: Server, replica: str, primary: str) -> bool:
    nodes: str = server.command("CLUSTER", "NODES")
    return any(line.startswith(replica) and primary in line for line in nodes.splitlines())
