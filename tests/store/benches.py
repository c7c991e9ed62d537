"""A log on any store, and a look behind it: fakeredis runs its scripts, a real server or a Cluster runs all of it.

For fakeredis a topology of the tests' own hands the commands over. No test waits for a time to pass: leases are dated
back, and what expires is seen by its PTTL.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import fakeredis
import pytest
import redis.exceptions

from relay.config import StoreSettings, StreamSettings
from relay.protocol.end_mark import End
from relay.protocol.ids import new_stream_id
from relay.store import scripts
from relay.store.commands import millis
from relay.store.log import Log, Renewed, Status
from relay.store.names import Names
from relay.store.scripts import OK
from relay.store.topology import Topology

STORES = ["fakeredis", "valkey", pytest.param("cluster", marks=pytest.mark.slow)]
SETTINGS = StreamSettings(lease=10, retention=30, tombstone=90, max_duration=60)
NEVER = float("inf")
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
    address = None

    def __init__(self) -> None:
        client: Any = fakeredis.FakeRedis(version=(7, 2))
        client.response_callbacks.clear()  # replies as they stand on the wire, as a Link gives them
        for script in scripts.SCRIPTS:
            assert client.execute_command("SCRIPT", "LOAD", script.text) == script.sha.encode()
        self.commit = self.query = self.read = FakeLink(client)
        self.returned_at = float("-inf")


class FakeTopology:
    sharded = False
    refreshed_at = float("inf")

    def __init__(self) -> None:
        self._node = FakeNode()
        self.on_change: list[Any] = []
        self.on_returned: list[Any] = []

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
    ) -> tuple[int, ...]:
        """What the group commit sends for one stream."""
        sent = [*frames, End(outcome).encode()] if outcome else frames
        return await self.append_raw(stream, [fence, expected, outcome, usage, len(sent), *sent])

    async def append_raw(self, stream: str, args: list[Any]) -> tuple[int, ...]:
        settings = self.log.settings
        args = [millis(settings.retention), millis(settings.tombstone), *args]
        link = self.topology.node_of(log_key(stream)).commit
        (reply,) = await link.call("EVALSHA", scripts.APPEND.sha, 2, log_key(stream), meta_key(stream), *args)
        return tuple(reply)

    async def made(self, frames: int = 0, outcome: str = "") -> str:
        """A stream of so many frames, and its end if it has one."""
        stream = new_stream_id()
        await self.log.create(stream, FIELDS, "1")
        if frames or outcome:
            assert await self.append(stream, 0, numbered(1, frames), outcome=outcome) == (OK, frames)
        return stream

    async def status(self, stream: str) -> Status:
        status = await self.log.get_status(stream)
        assert status is not None
        return status

    async def renew(self, stream: str) -> Renewed:
        (answer,) = await self.log.renew([(stream, "1")])
        return answer

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
