"""TCP proxies that break on command: between a replica and every server of its store, and in front of a replica.

Bytes keep their order and are never changed, but for the addresses of the store's servers: a Cluster and a Sentinel
tell where their servers are, and a replica that believed them would go around its proxies. What a blackhole has
swallowed never arrives, so its connections are cut when it ends.
"""

from __future__ import annotations

import asyncio
import random
import re
import socket
import struct
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from typing import cast

from tests.support.processes import free_port
from tests.torture.waiting import until

# What stands in front of a port in replies: CLUSTER SLOTS, SHARDS, NODES, redirections, SENTINEL's maps and messages.
_IN_FRONT = (
    b"127.0.0.1:",
    b"127.0.0.1 ",
    b"127.0.0.1\r\n:",
    b"127.0.0.1\r\n$5\r\n",
    b"$4\r\nport\r\n:",
    b"$4\r\nport\r\n$5\r\n",
)
_DIGITS = 5
_ADDRESS = re.compile(b"(%b)([0-9]{%d})" % (b"|".join(map(re.escape, _IN_FRONT)), _DIGITS))
_LONGEST = max(map(len, _IN_FRONT)) + _DIGITS


def _begun() -> re.Pattern[bytes]:
    """The beginning of an address, at the end of what has come."""
    wholes = []
    for words in _IN_FRONT:
        parts = [re.escape(bytes((char,))) for char in words] + [b"[0-9]"] * (_DIGITS - 1)
        nested = b""
        for part in reversed(parts):
            nested = b"(?:%b%b)?" % (part, nested) if nested else b"(?:%b)?" % part
        wholes.append(nested[:-1])  # its first character has to be there
    return re.compile(b"(?:%b)\\Z" % b"|".join(wholes))


_BEGUN = _begun()


@dataclass(frozen=True)
class Mode:
    """`pass`, `delay`, `blackhole` (nothing comes out), `refuse` (reset, and no new ones), `drop` (the next reply of
    each connection is swallowed, and the connection cut)."""

    name: str = "pass"
    seconds: float = 0.0


PASS = Mode()
Cut = tuple[int, str]
"""After so many bytes of the answer the connection is ended, by a `fin` or a `rst`."""


class Proxy:
    """One listening port in front of one target. `cut` says of each new connection when it is to be cut."""

    def __init__(
        self,
        target: int,
        *,
        ports: Callable[[], dict[bytes, bytes]] | None = None,
        cut: Callable[[], Cut | None] | None = None,
    ) -> None:
        self.port = free_port()
        self.target = target
        self.mode = PASS
        self.connections = 0
        self.cuts = 0
        self.ports = ports
        self.cut = cut
        self._links: set[_Link] = set()
        self._server: asyncio.Server | None = None

    async def start(self) -> None:
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(lambda: _Side(_Link(self)), "127.0.0.1", self.port, backlog=512)

    async def stop(self) -> None:
        self._close_server()
        self.cut_all("rst")
        await until(lambda: not self._links, 5.0)

    async def switch(self, mode: Mode) -> None:
        """In effect for open connections, too."""
        before, self.mode = self.mode, mode
        if mode.name == "refuse":
            self._close_server()
        elif self._server is None:
            await self.start()
        if mode.name == "refuse" or (before.name == "blackhole" and mode != before):
            self.cut_all("rst")

    def cut_all(self, how: str) -> int:
        """End every connection that is open; how many."""
        links = list(self._links)
        for link in links:
            link.end(how)
        return len(links)

    def _close_server(self) -> None:
        if self._server is not None:
            self._server.close()
            self._server = None

    def add(self, link: _Link) -> None:
        self.connections += 1
        self._links.add(link)

    def remove(self, link: _Link) -> None:
        self._links.discard(link)


class _Link:
    """One connection through a proxy."""

    def __init__(self, proxy: Proxy) -> None:
        self.proxy = proxy
        self.client: asyncio.Transport | None = None
        self.server: asyncio.Transport | None = None
        self._loop = asyncio.get_running_loop()
        self._over = False
        self._before: list[bytes] = []
        """What the client sent before the server was reached."""
        self._due = [0.0, 0.0]
        self._tail = b""
        self._cut = proxy.cut() if proxy.cut is not None else None
        self._replied = 0
        self._task: asyncio.Task[None] | None = None

    def opened(self, transport: asyncio.Transport) -> None:
        self.client = transport
        self.proxy.add(self)
        self._task = self._loop.create_task(self._reach())

    async def _reach(self) -> None:
        try:
            reached, _ = await self._loop.create_connection(
                lambda: _Side(self, server=True), "127.0.0.1", self.proxy.target
            )
        except OSError:
            self.end("rst")
            return
        if self._over:
            reached.abort()
            return
        self.server = reached
        for data in self._before:
            self.server.write(data)
        self._before.clear()

    def received(self, data: bytes, *, reply: bool) -> None:
        mode = self.proxy.mode
        if mode.name == "blackhole" or self._over:
            return
        if reply and mode.name == "drop":
            self.end("rst")
            return
        if reply and self.proxy.ports is not None:
            data = self._renamed(data, self.proxy.ports())
        now = self._loop.time()
        if mode.name != "delay" and self._due[reply] <= now:
            self._send(data, reply)
            return
        # Two timers for the same moment may fire in any order, so no two are.
        due = self._due[reply] = max(self._due[reply] + 1e-6, now + mode.seconds)
        self._loop.call_at(due, self._send, data, reply)

    def _renamed(self, data: bytes, ports: dict[bytes, bytes]) -> bytes:
        data = self._tail + data
        self._tail = b""
        begun = _BEGUN.search(data, max(0, len(data) - _LONGEST))
        if begun is not None:  # the rest of the reply is still to come, and an address may be cut here
            data, self._tail = data[: begun.start()], data[begun.start() :]
        return _ADDRESS.sub(lambda found: found[1] + ports.get(found[2], found[2]), data)

    def _send(self, data: bytes, reply: bool) -> None:
        if self._over or self.proxy.mode.name == "blackhole":
            return
        if reply and self._cut is not None:
            left = self._cut[0] - self._replied
            self._replied += len(data)
            if left <= len(data):
                assert self.client is not None
                self.client.write(data[:left])
                self.proxy.cuts += 1
                self.end(self._cut[1])
                return
        to = self.client if reply else self.server
        if to is None:
            self._before.append(data)
        elif not to.is_closing():
            to.write(data)

    def full(self, side: _Side, full: bool) -> None:
        """What one side does not take is not read from the other."""
        source = self.client if side.server else self.server
        if source is not None and not source.is_closing():
            (source.pause_reading if full else source.resume_reading)()

    def end(self, how: str) -> None:
        if self._over:
            return
        self._over = True
        self.proxy.remove(self)
        if self.client is not None:
            if how == "rst":
                reset(self.client)
            else:
                self.client.close()  # what has been written still goes
        if self.server is not None:
            (reset(self.server) if how == "rst" else self.server.abort())

    def lost(self, side: _Side) -> None:
        """One side has closed: so is the other, after what is still on its way."""
        if side.server and self._due[1] > self._loop.time():
            self._loop.call_at(self._due[1] + 1e-5, self.end, "fin")
        else:
            self.end("fin")


class _Side(asyncio.Protocol):
    def __init__(self, link: _Link, *, server: bool = False) -> None:
        self.server = server
        self._link = link

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        found = cast(asyncio.Transport, transport)
        found.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if not self.server:
            self._link.opened(found)

    def data_received(self, data: bytes) -> None:
        self._link.received(data, reply=self.server)

    def connection_lost(self, exc: Exception | None) -> None:
        self._link.lost(self)

    def pause_writing(self) -> None:
        self._link.full(self, True)

    def resume_writing(self) -> None:
        self._link.full(self, False)


def reset(transport: asyncio.Transport) -> None:
    """End a connection with a RST."""
    connection = transport.get_extra_info("socket")
    if connection is not None and not transport.is_closing():
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    transport.abort()


class Line:
    """Everything between one replica and its store: a proxy for each server, by the server's port."""

    def __init__(self, servers: Iterable[int]) -> None:
        ports = {server: Proxy(server, ports=lambda: self._names) for server in servers}
        self.proxies = ports
        self._names = {str(server).encode(): str(proxy.port).encode() for server, proxy in ports.items()}

    def url(self, url: str) -> str:
        """The store's address as this replica is given it."""
        return re.sub(r"(127\.0\.0\.1:)(\d{5})", lambda m: m[1] + self._names[m[2].encode()].decode(), url)

    async def start(self) -> None:
        for proxy in self.proxies.values():
            await proxy.start()

    async def stop(self) -> None:
        for proxy in self.proxies.values():
            await proxy.stop()

    async def switch(self, mode: Mode, servers: Collection[int] | None = None) -> None:
        for server, proxy in self.proxies.items():
            if servers is None or server in servers:
                await proxy.switch(mode)


def cuts(dice: random.Random, share: float, most: int) -> Callable[[], Cut | None]:
    """Cut such a share of all connections, anywhere in their first `most` bytes, mostly in the middle of an event."""

    def draw() -> Cut | None:
        if dice.random() >= share:
            return None
        # Some before the head of the answer is through, most behind it.
        after = dice.randrange(1, 500) if dice.random() < 0.2 else dice.randrange(500, most)
        return after, dice.choice(("fin", "rst"))

    return draw
