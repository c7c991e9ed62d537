"""A store of each topology, and what can happen to it.

Everything here blocks and is called from a thread, one thing at a time. Whatever has been done, `settle` brings every
server up again, with all of them agreed on who is who; it raises where they do not.
"""

from __future__ import annotations

import contextlib
import random
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

import redis

from tests.support.entries import Entry as Entry
from tests.support.entries import entries_in_full
from tests.support.processes import free_port
from tests.support.stores import SentinelStore, Server, valkey_sentinel, valkey_server
from tests.support.waiting import wait_until

SETTLE_TIMEOUT = 40.0
_CALM = 1.5


class Backend(Protocol):
    url: str

    @property
    def servers(self) -> list[Server]:
        """All that a relay may talk to."""

    def primaries(self) -> list[Server]:
        """Those that hold the data now."""

    def play(self, kind: str, lasts: float, dice: random.Random, streams: list[str]) -> str:
        """One of this topology's faults, begun and lifted; `streams` are some that run. What was done, in words."""

    def settle(self) -> None: ...

    def entries(self, stream: str, *, newest: bool = False) -> list[Entry]:
        """A stream's log, or its newest entry alone."""


def entries_at(server: Server, stream: str, *, newest: bool) -> list[Entry]:
    return entries_in_full(server.client(), stream, newest=newest)


def log_top(backend: Backend, stream: str) -> int | None:
    """How many events of a stream its log holds, as its primary says now; None where nobody answers."""
    try:
        newest = backend.entries(stream, newest=True)
    except (redis.RedisError, RuntimeError, StopIteration):
        return None
    return int(newest[0][0].partition("-")[0]) if newest else 0


def forget_scripts(backend: Backend) -> str:
    for server in backend.primaries():
        server.command("SCRIPT", "FLUSH")
    return ""


def cut_connections(backend: Backend, dice: random.Random) -> str:
    """CLIENT KILL, as an operator's script or a limit would: of clients, or of subscribers alone."""
    kind = dice.choice(("normal", "pubsub"))
    killed = 0
    for server in backend.primaries():
        with contextlib.suppress(redis.RedisError):
            killed += int(server.command("CLIENT", "KILL", "TYPE", kind, "SKIPME", "yes"))
    return f"{killed} of {kind}"


def freeze(server: Server, lasts: float) -> None:
    server.pause()
    try:
        time.sleep(lasts)
    finally:
        server.resume()


def kill(server: Server, lasts: float, *, wait: bool = True) -> None:
    server.kill()
    time.sleep(lasts)
    server.start(wait=wait)


class Standalone:
    """One server with an append-only file."""

    def __init__(self, server: Server, url: str) -> None:
        self.url = url
        self._server = server

    @property
    def servers(self) -> list[Server]:
        return [self._server]

    def primaries(self) -> list[Server]:
        return [self._server]

    def play(self, kind: str, lasts: float, dice: random.Random, streams: list[str]) -> str:
        server = self._server
        if kind == "store_freeze":
            freeze(server, lasts)
        elif kind == "store_kill":
            kill(server, lasts)
        elif kind == "store_tail":
            server.kill()
            lost = self._lose_tail(dice)
            time.sleep(lasts)
            server.start()
            return f"{lost} bytes"
        elif kind == "store_empty":
            server.kill()
            for file in (server.directory / "appendonlydir").iterdir():
                file.unlink()
            time.sleep(lasts)
            server.start()
        else:
            raise ValueError(kind)
        return ""

    def _lose_tail(self, dice: random.Random) -> int:
        """What a machine that lost power had not yet on its disk."""
        newest = max((self._server.directory / "appendonlydir").glob("*.incr.aof"), key=lambda p: p.stat().st_mtime)
        size = newest.stat().st_size
        lost = min(size, dice.choice((40, 400, 4000, 40_000)) + dice.randrange(40))
        with newest.open("r+b") as file:
            file.truncate(size - lost)
        return lost

    def entries(self, stream: str, *, newest: bool = False) -> list[Entry]:
        return entries_at(self._server, stream, newest=newest)

    def settle(self) -> None:
        self._server.resume()
        self._server.wait_ready()


class Sentinel:
    """A primary, its replica and three sentinels, any of which may decide."""

    def __init__(self, store: SentinelStore, sentinels: list[Server]) -> None:
        self._store = store
        self._sentinels = sentinels
        addresses = ",".join(f"127.0.0.1:{sentinel.port}" for sentinel in sentinels)
        self.url = f"redis+sentinel://{addresses}/{store.name}"

    @property
    def servers(self) -> list[Server]:
        return [*self._store.servers[:2], *self._sentinels]

    def primaries(self) -> list[Server]:
        return [self._store.primary()]

    def play(self, kind: str, lasts: float, dice: random.Random, streams: list[str]) -> str:
        store = self._store
        if kind == "failover":
            with contextlib.suppress(redis.ResponseError, TimeoutError):  # one has just been, or comes to nothing
                store.failover()
            store.wait_settled()
        elif kind == "failover_lossy":
            return self._lose(lasts)
        elif kind == "store_kill":
            old = store.primary()
            old.kill()
            self._wait_other(old)
            time.sleep(lasts)
            old.start()
            store.wait_settled()
        elif kind == "store_freeze":
            freeze(store.primary(), lasts)
            self._decided()
        elif kind == "sentinel_freeze":
            freeze(dice.choice(self._sentinels[:-1]), lasts)
        elif kind == "replica_kill":
            kill(store.replica(), lasts)
            store.wait_settled()
        else:
            raise ValueError(kind)
        return ""

    def _lose(self, lasts: float) -> str:
        """The replica sees nothing for a while, its primary acknowledges alone and dies: what it told is gone."""
        old, new = self._store.primary(), self._store.replica()
        new.pause()
        try:
            old.client().client_kill_filter(_type="replica")
            time.sleep(lasts)
            old.kill()
        finally:
            new.resume()
        self._wait_other(old)
        old.start()
        self._store.wait_settled()
        return f"{lasts:.1f} s of writes"

    def _wait_other(self, old: Server) -> None:
        def promoted() -> bool:
            primary = self._store.primary()
            return primary is not old and _role(primary) == "master"

        wait_until(promoted, SETTLE_TIMEOUT, "the failover")

    def _decided(self) -> None:
        """Return when no sentinel is about to depose the primary that was silent, or has done so."""
        deadline = time.monotonic() + SETTLE_TIMEOUT
        calm = time.monotonic()
        while time.monotonic() < calm + _CALM:
            if time.monotonic() > deadline:
                raise TimeoutError("the sentinels do not come to an end")
            for sentinel in self._sentinels:
                master: Any = sentinel.client().sentinel_master(self._store.name)
                if master["flags"] != "master" or _role(self._store.primary()) != "master":
                    calm = time.monotonic()
            time.sleep(0.05)
        self._all_up()

    def _all_up(self) -> None:
        for server in self.servers:
            server.resume()
        wait_until(lambda: all(_role(s) for s in self._store.servers[:2]), SETTLE_TIMEOUT, "both servers")
        self._store.wait_settled(SETTLE_TIMEOUT)

    def entries(self, stream: str, *, newest: bool = False) -> list[Entry]:
        return entries_at(self._store.primary(), stream, newest=newest)

    def settle(self) -> None:
        self._all_up()


def _role(server: Server) -> str:
    try:
        return str(server.client().info("replication")["role"])
    except redis.RedisError:
        return ""


@contextlib.contextmanager
def standalone(directory: Path) -> Iterator[Backend]:
    with valkey_server(directory, appendonly=True, config=[("appendfsync", "everysec")]) as store:
        yield Standalone(store.servers[0], store.url)


@contextlib.contextmanager
def sentinel(directory: Path) -> Iterator[Backend]:
    with valkey_sentinel(directory) as store, contextlib.ExitStack() as stack:
        more: list[Server] = []
        for number in range(2):
            port = free_port()
            config = directory / f"sentinel-{number}.conf"
            config.write_text(
                f"""port {port}
bind 127.0.0.1
dir {directory}
sentinel monitor {store.name} 127.0.0.1 {store.primary().port} 1
sentinel down-after-milliseconds {store.name} 500
sentinel failover-timeout {store.name} 3000
"""
            )
            server = Server(directory / f"sentinel-{number}", {}, port=port, config_file=config)
            stack.callback(server.close)
            server.start()
            server.command("SENTINEL", "DEBUG", "INFO-PERIOD", 200, "PUBLISH-PERIOD", 200, "PING-PERIOD", 300)
            more.append(server)
        # The one that is asked who is primary, and told to fail over, is never frozen, and the last that relays ask.
        everyone = [*more, store.sentinel]

        def known() -> bool:
            return all(len(s.command("SENTINEL", "SENTINELS", store.name)) == 2 for s in everyone)

        wait_until(known, SETTLE_TIMEOUT, "three sentinels that know each other")
        yield Sentinel(store, everyone)


def open_backend(topology: str, directory: Path) -> contextlib.AbstractContextManager[Backend]:
    from tests.torture.cluster import cluster

    opened: dict[str, Any] = {"standalone": standalone, "sentinel": sentinel, "cluster": cluster}
    return opened[topology](directory)  # type: ignore[no-any-return]
