"""A load balancer that loses connections: between an SDK and the replicas of a relay.

Each request draws a `Cut` from a seeded plan: how many bytes of its answer get through, and how the connection ends
action. It promises that bytes are never changed, that a replica which refuses is passed over for the next, and that
requests for a model named "warm-up…" are spared.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import socket
import struct
import threading
from collections import Counter
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any, Literal

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


class Cutter:
    """Use it as a context manager. `targets` are the ports to forward to, in turn; `cuts` counts what it has cut."""

    def __init__(self, *targets: int, plan: Callable[[], Cut] | None = None) -> None:
        self.targets = targets
        self.plan = plan
        self.cuts: Counter[str] = Counter()
        self.connected: Counter[int] = Counter()
        """By target, the connections over which an answer has begun."""
        self.port = 0
        self._changed = threading.Condition()
        self._turn = 0
        self._tasks: dict[asyncio.Task[None], asyncio.StreamWriter] = {}
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="cutter", daemon=True)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def cut_all(self) -> None:
        """Reset every connection that is open."""

        async def cut() -> None:
            for client in self._tasks.values():
                _reset(client)

        self._run(cut())

    def wait_connected(self, target: int, count: int, timeout: float = 20.0) -> None:
        """Block until so many connections have had an answer begin from this target."""
        with self._changed:
            if not self._changed.wait_for(lambda: self.connected[target] >= count, timeout):
                raise TimeoutError(f"{self.connected[target]} of {count} connections reached {target}")

    def __enter__(self) -> Cutter:
        self._thread.start()
        self._run(self._listen())
        return self

    def __exit__(self, *_: object) -> None:
        self._run(self._close())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()

    def _run(self, work: Coroutine[Any, Any, None]) -> None:
        asyncio.run_coroutine_threadsafe(work, self._loop).result(15)

    async def _listen(self) -> None:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0, backlog=256)
        self.port = self._server.sockets[0].getsockname()[1]

    async def _close(self) -> None:
        self._server.close()
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = self._loop.create_task(self._serve(reader, writer))
        self._tasks[task] = writer
        task.add_done_callback(self._tasks.pop)

    async def _serve(self, reader: asyncio.StreamReader, client: asyncio.StreamWriter) -> None:
        client.transport.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        reached = await self._connect()
        if reached is None:
            _reset(client)
            return
        target, answers, server = reached
        link = _Link(self, target, client)
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


class _Link:
    """One connection: its requests, and what gets through of their answers."""

    def __init__(self, cutter: Cutter, target: int, client: asyncio.StreamWriter) -> None:
        self._cutter = cutter
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
                head = await reader.readuntil(b"\r\n\r\n")
                await self._pass(head)
                if b"transfer-encoding: chunked" in head.lower():
                    while await self._chunk(reader):
                        pass
                elif (length := _length(head)) > 0:
                    await self._pass(await reader.readexactly(length))

    async def _chunk(self, reader: asyncio.StreamReader) -> bool:
        line = await reader.readuntil(b"\r\n")
        size = int(line, 16)
        await self._pass(line + await reader.readexactly(size + 2), chunk=size > 0)
        return size > 0

    async def _pass(self, data: bytes, *, chunk: bool = False) -> None:
        """Forward, or cut: raises ConnectionError when the connection is over."""
        if self._asked:
            plan = self._cutter.plan
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
                self._cutter.begun(self._target)
            return
        how = cut.how
        if how == "clean" and chunk:
            self._client.write(data + b"0\r\n\r\n")
        else:
            how = "fin" if how == "clean" else how
            self._client.write(data[:left])
        await self._client.drain()
        self._cutter.cuts["head" if not self._passed and not left else how] += 1
        if how == "rst":
            _reset(self._client)
        raise ConnectionError


def _reset(client: asyncio.StreamWriter) -> None:
    client.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    client.transport.abort()


def _length(head: bytes) -> int:
    for line in head.lower().split(b"\r\n"):
        name, _, value = line.partition(b":")
        if name == b"content-length":
            return int(value)
    return 0
