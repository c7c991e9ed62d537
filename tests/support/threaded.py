"""Servers and clients on an event loop of their own, in a thread, which a test works from its own thread.

The base of every real server that the tests start within their own process: the scripted upstream, the proxies that
cut, and fleets of clients.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Coroutine
from concurrent.futures import Future
from types import TracebackType
from typing import Any, Self, TypeVar

T = TypeVar("T")

_TIMEOUT = 20.0


class LoopThread:
    """An event loop in a thread. Use it as a context manager, or `start` and `stop` it."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self.loop.run_forever, name=type(self).__name__, daemon=True)

    def start(self) -> Self:
        self._thread.start()
        self.run(self.opened())
        return self

    def stop(self) -> None:
        """May be called twice."""
        if not self._thread.is_alive():
            return
        self.run(self.closing())
        self.run(self._cancel_all())
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join(10)
        self.loop.close()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def submit(self, work: Coroutine[Any, Any, T]) -> Future[T]:
        """Begin work on the loop."""
        return asyncio.run_coroutine_threadsafe(work, self.loop)

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Do work on the loop, and wait for it."""
        return self.submit(work).result(_TIMEOUT)

    async def opened(self) -> None:
        """For subclasses: what is done on the loop before `start` returns."""

    async def closing(self) -> None:
        """For subclasses: what is done on the loop before its tasks are cancelled."""

    async def _cancel_all(self) -> None:
        tasks = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for _ in range(3):  # transports close a moment after their abort
            await asyncio.sleep(0)


class ServerThread(LoopThread):
    """A TCP server on loopback. Subclasses say what becomes of a connection; its end is theirs, too."""

    limit = 1 << 16
    """The longest head that a connection may send; twice as much is read ahead."""

    def __init__(self, port: int = 0, host: str = "127.0.0.1") -> None:
        super().__init__()
        self.host = host
        self.port = port
        """Where it listens; chosen by the kernel at the start unless it is given."""
        self.clients: dict[asyncio.Task[None], asyncio.StreamWriter] = {}
        """The connections that are open."""
        self.server: asyncio.Server | None = None

    @property
    def url(self) -> str:
        return f"http://{self.host}:{self.port}"

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        raise NotImplementedError

    async def listen(self) -> None:
        self.server = await asyncio.start_server(self._accept, self.host, self.port, backlog=4096, limit=self.limit)
        self.port = self.server.sockets[0].getsockname()[1]

    async def opened(self) -> None:
        await self.listen()

    async def closing(self) -> None:
        if self.server is not None:
            for listening in self.server.sockets:
                self.loop.remove_reader(listening.fileno())
            for _ in range(5):  # asyncio loses a connection that is accepted in the turn in which its server is closed
                await asyncio.sleep(0)
            self.server.close()

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = self.loop.create_task(self.serve(reader, writer))
        self.clients[task] = writer
        task.add_done_callback(self._served)

    def _served(self, task: asyncio.Task[None]) -> None:
        writer = self.clients.pop(task)
        if task.cancelled():  # perhaps before it began
            writer.transport.abort()
