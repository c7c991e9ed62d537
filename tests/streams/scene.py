"""Replicas without their HTTP edge: the real registry, log and store in this process, and upstreams that a test plays.

So a test decides what happens between two steps of one reader, one flush, one message; the store is a real server.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import httpx

from relay.config import Settings
from relay.metrics import Metrics
from relay.protocol.apis import DIALECTS
from relay.protocol.ids import EventId, new_stream_id
from relay.store.log import Log
from relay.store.topology import connect
from relay.streams.account import Request
from relay.streams.lookup import Attached
from relay.streams.producer import Producer
from relay.streams.reader import Reader
from relay.streams.registry import Registry
from relay.upstream.answer_headers import AnswerHeaders
from relay.upstream.client import Body, Response
from relay.upstream.decoding import Sink
from relay.upstream.routing import Route, route_model
from tests.support.oracle import DONE, frame
from tests.support.waiting import until

OWNER = "owner"
TIMEOUT = 10.0


class Upstream(Body):
    """An upstream's answer: what the test sends arrives at once."""

    def __init__(self) -> None:
        self._sink: Sink | None = None
        self.paused = False
        self.cancelled = asyncio.Event()
        self._over = False

    def push_to(self, sink: Sink) -> None:
        self._sink = sink

    def send(self, *frames: bytes) -> None:
        assert self._sink is not None
        self._sink.data_received(b"".join(frames))

    def number(self, first: int, last: int) -> None:
        """Events first to last, one by one."""
        for n in range(first, last + 1):
            self.send(frame(n))

    def end(self, *, broken: bool = False) -> None:
        self._over = True
        if self._sink is not None:
            self._sink.eof_received(httpx.ReadError("broken") if broken else None)
            self._sink = None

    def complete(self) -> None:
        self.send(DONE)
        self.end()

    def pause(self) -> None:
        self.paused = True

    def resume(self) -> None:
        self.paused = False

    async def aclose(self) -> None:
        if not self._over:
            self.cancelled.set()
            self.end(broken=True)


class Replica:
    """One replica. `lookup` and `log` are its registry's."""

    def __init__(self, registry: Registry) -> None:
        self.registry = registry
        self.lookup = registry.lookup
        self.log = registry.log
        self.tail = registry._tail

    async def begin(
        self,
        upstream: Upstream,
        *,
        api: str = "chat",
        read: bool = True,
        request: object = None,
        patience: bool = False,
    ) -> tuple[Producer, Reader]:
        """A generation that the upstream has answered, and its first reader; with `read` the upstream is being read.
        The call upstream holds the `request`. With `patience` the client waits for the first event."""

        async def call(_: object, request: object = request) -> Response:
            return Response(200, AnswerHeaders([(b"content-type", b"text/event-stream")]), upstream)

        del request  # the call has it
        route: Route = route_model(self.registry.settings.upstreams, api, "m")
        producer = self.registry.begin(
            new_stream_id(logged=route.upstream.buffer),
            DIALECTS[api],
            route,
            owner=OWNER,
            request=Request("req_1", time.monotonic(), "m", None),
            hide_usage=False,
            call=call,
        )
        reader = self.lookup.first_reader(producer)
        if not patience:
            await producer.ensure_created()
            await asyncio.wait_for(producer.answer, TIMEOUT)
        if read:
            await until(lambda: upstream._sink is not None, TIMEOUT, "the upstream to be read")
        return producer, reader

    async def attach(self, stream: str, n: int, *, api: str | None = None, end: bool = False) -> Attached:
        return await asyncio.wait_for(self.lookup.attach(EventId(stream, n, end), OWNER, api), TIMEOUT)

    async def read_from(self, stream: str, n: int) -> Reader:
        attached = await self.attach(stream, n)
        assert attached.reader is not None
        return attached.reader

    async def field(self, stream: str, name: str) -> bytes | None:
        """A field of what the store keeps of a stream."""
        key = self.log.names.meta(stream)
        found: bytes | None = await self.log.commands.call(key, "HGET", key, name)
        return found

    async def is_said_to_read(self, stream: str) -> bool:
        """Does the store's word have it that this replica has readers?"""
        return await self.field(stream, f"r:{self.registry.replica_id}") is not None

    async def lapse(self, stream: str) -> None:
        """Its producer has not been heard of for longer than its lease."""
        key = self.log.names.meta(stream)
        await self.log.commands.call(key, "HSET", key, "lease", "1")


@asynccontextmanager
async def replica(store_url: str, *, store: dict[str, Any] | None = None, **streams: Any) -> AsyncIterator[Replica]:
    """A replica on a store; `streams` are settings, `lease` long where nothing is said of it."""
    settings = Settings(
        upstreams=[{"name": "u", "base_url": "http://127.0.0.1:1"}],
        store={"url": store_url, **(store or {})},
        streams={"lease": 60.0, **streams},
    )
    log = Log(connect(store_url), settings.streams, settings.store)
    registry = Registry(settings, log, Metrics())
    await registry.open()
    try:
        yield Replica(registry)
    finally:
        await registry.close()


async def take(reader: Reader, events: int | None = None, timeout: float = TIMEOUT) -> list[bytes]:
    """The next events, as frames: so many, or all to the stream's end."""
    frames: list[bytes] = []
    async with asyncio.timeout(timeout):
        while events is None or len(frames) < events:
            data = await reader.read()
            if data is None:
                assert events is None, f"the stream ended after {len(frames)} of {events} events"
                return frames
            frames += [part + b"\n\n" for part in data.split(b"\n\n")[:-1]]
    return frames


def ids(frames: list[bytes]) -> list[str]:
    """What stands behind the dot in each frame's id, "" where it has none."""
    found = []
    for each in frames:
        line = next((line for line in each.split(b"\n") if line.startswith(b"id: ")), b"")
        found.append(line.decode().rpartition(".")[2])
    return found


async def until_it_says(wanted: object, ask: Callable[..., Awaitable[object]], *args: object) -> None:
    """Ask until the answer is the wanted one."""
    deadline = time.monotonic() + TIMEOUT
    while (answer := await ask(*args)) != wanted:
        assert time.monotonic() < deadline, f"wanted {wanted!r}, the last answer was {answer!r}"
        await asyncio.sleep(0.005)


class Held:
    """A method of a real object whose calls wait for the test, before they are done or before their answers come."""

    def __init__(
        self, owner: Any, name: str, *, answers: bool = False, only: Callable[..., bool] | None = None
    ) -> None:
        self._method: Callable[..., Awaitable[Any]] = getattr(owner, name)
        self._answers = answers
        self._only = only
        self.reached = asyncio.Event()
        self.released = asyncio.Event()
        self._fault: BaseException | None = None
        setattr(owner, name, self._call)

    def fail(self, fault: BaseException) -> None:
        """The call that waits raises this, and no other does."""
        self._fault = fault

    def let_others_pass(self) -> None:
        """Only the calls that wait now wait."""
        self._only = lambda *_, **__: False

    async def _call(self, *args: Any, **kwargs: Any) -> Any:
        held = self._only is None or self._only(*args, **kwargs)
        if held and not self._answers:
            self.reached.set()
            await self.released.wait()
            if self._fault is not None:
                fault, self._fault = self._fault, None
                raise fault
        answer = await self._method(*args, **kwargs)
        if held and self._answers:
            self.reached.set()
            await self.released.wait()
        return answer
