"""Reverse proxies between a client and relays that cut answers off, each on an event loop in a thread of its own.

`CuttingProxy` forwards one request per client connection, and a test says of each what becomes of it. It promises that
the bytes it lets through are unchanged, that a cut before the head comes only when the server has answered, and that a
client that leaves is noticed at once.

`CuttingBalancer` keeps connections as a load balancer does, and draws a `Cut` for each answer. It promises that bytes
are never changed, that a replica which refuses is passed over for the next, and that requests for a model named
"warm-up…" are spared.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import socket
import threading
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal
from urllib.parse import urlsplit

from tests.support.http import chunk, first_line, headers, is_chunked, read_body, read_chunk, read_head, reset
from tests.support.threaded import ServerThread

BEFORE_HEAD = -1


Way = Literal["fin", "rst", "clean", "close", "hang"]


@dataclass(frozen=True)
class Fate:
    """What becomes of one request. `clean` ends the body properly, as proxies do that hide a cut; `hang` ends
    nothing and sends nothing more."""

    cut_at: int | None = None
    """After so many bytes of the body; None: not at all."""
    how: Way = "fin"
    to: int = 0
    """Which of the proxy's servers is asked."""
    instead: bytes | None = None
    """Answer this, and ask no server."""
    without: tuple[str, ...] = ()
    """Headers of the request that the server does not get."""


@dataclass
class Asked:
    """One request, as the client sent it."""

    path: str
    headers: dict[str, str]
    body: bytes
    sent: int = 0
    """How many bytes of the answer's body the client was sent."""
    gone: threading.Event = field(default_factory=threading.Event)
    """Set when the client has hung up."""

    @property
    def model(self) -> str:
        return str(self.json.get("model", ""))

    @property
    def json(self) -> dict[str, Any]:
        parsed: dict[str, Any] = json.loads(self.body or "{}")
        return parsed


class _Over(Exception):
    """The connection to the client has been dealt with."""


class CuttingProxy(ServerThread):
    """`fate` is asked once for every request, on the proxy's own thread. Use it as a context manager."""

    def __init__(self, *servers: str, fate: Callable[[Asked], Fate] = lambda asked: Fate()) -> None:
        super().__init__()
        self.fate = fate
        self._servers = [urlsplit(server) for server in servers]
        self._asked: list[Asked] = []
        self._changed = threading.Condition()

    def asked(self, model: str | None = None) -> list[Asked]:
        with self._changed:
            return [asked for asked in self._asked if model is None or asked.model == model]

    def wait_for(self, happened: Callable[[], bool], timeout: float = 20.0) -> None:
        """Block until it has; it is looked at after every request and every piece of an answer."""
        with self._changed:
            if not self._changed.wait_for(happened, timeout):
                raise TimeoutError(f"not within {timeout} s; {len(self._asked)} requests came")

    async def serve(self, reader: asyncio.StreamReader, client: asyncio.StreamWriter) -> None:
        try:
            head = await read_head(reader)
            asked = Asked(first_line(head)[1], headers(head), await read_body(head, reader))
            with self._changed:
                self._asked.append(asked)
                self._changed.notify_all()
            fate = self.fate(asked)
            if fate.instead is not None:
                client.write(fate.instead)
                await client.drain()
                return
            head = _without(head, "connection", *fate.without)[:-2] + b"connection: close\r\n\r\n"
            answering = asyncio.ensure_future(self._answer(asked, fate, head, client))
            leaving = asyncio.ensure_future(reader.read(1))
            await asyncio.wait({answering, leaving}, return_when=asyncio.FIRST_COMPLETED)
            if not answering.done():
                asked.gone.set()
            for task in (answering, leaving):
                task.cancel()
            await asyncio.gather(answering, leaving, return_exceptions=True)
        except (OSError, asyncio.IncompleteReadError):
            pass
        finally:
            client.close()

    async def _answer(self, asked: Asked, fate: Fate, head: bytes, client: asyncio.StreamWriter) -> None:
        target = self._servers[fate.to]
        try:
            reader, server = await asyncio.open_connection(target.hostname, target.port)
        except OSError:
            await _end(client, "rst")
            return
        try:
            body = chunk(asked.body) + chunk(b"") if asked.body and is_chunked(head) else asked.body
            server.write(head + body)
            await self._forward(asked, fate, reader, client)
        except _Over:
            pass
        except (OSError, asyncio.IncompleteReadError):
            if client.is_closing():  # it is the client's connection that failed
                asked.gone.set()
            await _end(client, "rst")
        finally:
            server.transport.abort()

    async def _forward(
        self, asked: Asked, fate: Fate, server: asyncio.StreamReader, client: asyncio.StreamWriter
    ) -> None:
        head = await read_head(server)
        if fate.cut_at == BEFORE_HEAD:
            await _end(client, fate.how)
            raise _Over
        head = _without(head, "connection")
        closes = fate.cut_at is None or fate.how in ("clean", "close")
        client.write(head[:-2] + b"connection: close\r\n\r\n" if closes else head)
        if not is_chunked(head):
            while data := await server.read(65536):
                client.write(data)
                await client.drain()
                self._count(asked, data)
            return
        while data := await read_chunk(server):
            left = None if fate.cut_at is None else fate.cut_at - asked.sent
            await self._send(asked, data[:left] if left is not None else data, client)
            if left is not None and left <= len(data):
                await _end(client, fate.how)
                raise _Over
        client.write(chunk(b""))
        await client.drain()

    async def _send(self, asked: Asked, data: bytes, client: asyncio.StreamWriter) -> None:
        if not data:
            return
        client.write(chunk(data))
        await client.drain()
        self._count(asked, data)

    def _count(self, asked: Asked, data: bytes) -> None:
        with self._changed:
            asked.sent += len(data)
            self._changed.notify_all()


def _without(head: bytes, *names: str) -> bytes:
    """The head without these headers."""
    kept = (line for line in head.split(b"\r\n") if line.partition(b":")[0].decode("latin-1").lower() not in names)
    return b"\r\n".join(kept)


async def _end(client: asyncio.StreamWriter, how: str) -> None:
    match how:
        case "rst":
            reset(client)
        case "hang":
            await asyncio.Event().wait()
        case "clean":
            client.write(chunk(b""))
            client.close()
        case _:
            client.close()


# -- a balancer that cuts ---------------------------------------------------------------------------------------

How = Literal["fin", "rst", "clean"]


@dataclass(frozen=True)
class Cut:
    """After so many bytes of the answer (0: not even its head) the connection ends: with a FIN, with a RST, or,
    after the chunk in which they end, with a zero chunk, as if the answer were complete."""

    after: int
    how: How


def at_random(seed: int, most: int, heads: int) -> Callable[[], Cut]:
    """The first `heads` answers and every fifth of the others get no byte through, the rest up to `most`."""
    dice = random.Random(seed)
    first = iter(range(heads))

    def draw() -> Cut:
        how: How = dice.choice(("fin", "rst", "clean"))
        none = dice.random() < 0.2 or next(first, None) is not None
        return Cut(0 if none else dice.randrange(1, most), how)

    return draw


class CuttingBalancer(ServerThread):
    """Use it as a context manager. `targets` are the ports to forward to, in turn; `cuts` counts what it has cut."""

    def __init__(self, *targets: int, plan: Callable[[], Cut] | None = None) -> None:
        super().__init__()
        self.targets = targets
        self.plan = plan
        self.cuts: Counter[str] = Counter()
        self.connected: Counter[int] = Counter()
        """By target, the connections over which an answer has begun."""
        self._changed = threading.Condition()
        self._turn = 0

    def cut_all(self) -> None:
        """Reset every connection that is open."""

        async def cut() -> None:
            for client in self.clients.values():
                reset(client)

        self.run(cut())

    def wait_connected(self, target: int, count: int, timeout: float = 20.0) -> None:
        """Block until so many connections have had an answer begin from this target."""
        with self._changed:
            if not self._changed.wait_for(lambda: self.connected[target] >= count, timeout):
                raise TimeoutError(f"{self.connected[target]} of {count} connections reached {target}")

    async def serve(self, reader: asyncio.StreamReader, client: asyncio.StreamWriter) -> None:
        client.transport.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        reached = await self._connect()
        if reached is None:
            reset(client)
            return
        target, answers, server = reached
        link = _Balanced(self, target, client)
        lanes = [
            asyncio.create_task(link.requests(reader, server)),
            asyncio.create_task(link.answers(answers)),
        ]
        try:
            await asyncio.wait(lanes, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for lane in lanes:
                lane.cancel()
            await asyncio.gather(*lanes, return_exceptions=True)
            client.close()
            server.transport.abort()

    async def _connect(self) -> tuple[int, asyncio.StreamReader, asyncio.StreamWriter] | None:
        self._turn += 1
        targets = self.targets
        for number in range(len(targets)):
            target = targets[(self._turn + number) % len(targets)]
            with contextlib.suppress(OSError):
                return target, *await asyncio.open_connection("127.0.0.1", target)
        return None

    def begun(self, target: int) -> None:
        with self._changed:
            self.connected[target] += 1
            self._changed.notify_all()


class _Balanced:
    """One connection: its requests, and what gets through of their answers."""

    def __init__(self, balancer: CuttingBalancer, target: int, client: asyncio.StreamWriter) -> None:
        self._balancer = balancer
        self._target = target
        self._client = client
        self._cut: Cut | None = None
        self._asked = False
        self._spared = False
        self._passed = 0
        self._begun = False

    async def requests(self, reader: asyncio.StreamReader, server: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(65536):
                if not self._asked:  # a request's head and its body may come apart
                    self._asked, self._spared = True, False
                self._spared = self._spared or b"warm-up" in data
                server.write(data)
                await server.drain()

    async def answers(self, reader: asyncio.StreamReader) -> None:
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            while True:
                head = await read_head(reader)
                await self._pass(head)
                if is_chunked(head):
                    while data := await read_chunk(reader):
                        await self._pass(chunk(data), whole_chunk=True)
                    await self._pass(chunk(b""))
                elif body := await read_body(head, reader):
                    await self._pass(body)

    async def _pass(self, data: bytes, *, whole_chunk: bool = False) -> None:
        """Forward, or cut: raises ConnectionError when the connection is over."""
        if self._asked:
            plan = self._balancer.plan
            self._asked, self._passed = False, 0
            self._cut = None if plan is None or self._spared else plan()
        cut = self._cut
        left = len(data) if cut is None else cut.after - self._passed
        if cut is None or left > len(data):
            self._client.write(data)
            await self._client.drain()
            self._passed += len(data)
            if not self._begun:
                self._begun = True
                self._balancer.begun(self._target)
            return
        how = cut.how
        if how == "clean" and whole_chunk:
            self._client.write(data + chunk(b""))
        else:
            how = "fin" if how == "clean" else how
            self._client.write(data[:left])
        await self._client.drain()
        self._balancer.cuts["head" if not self._passed and not left else how] += 1
        if how == "rst":
            reset(self._client)
        raise ConnectionError
