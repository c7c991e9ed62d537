"""Clients that come back: they post, read events, and on any cut post again to the next replica, up to the end.

A `Client` judges nothing but what no client can live with (a clean end that is none, a refusal that no retry can
heal); what it has seen is judged by `oracle.check`. A `Fleet` runs many of them on an event loop in a thread of
its own, so that a test can kill and stop things meanwhile. Everything is bounded: connections, silence, time.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import threading
import time
from collections.abc import Coroutine, Iterable, Mapping, Sequence
from concurrent.futures import Future
from typing import Any, ClassVar
from urllib.parse import urlsplit

from tests.support.http import first_line, read_chunk, read_head
from tests.support.http import headers as headers_of
from tests.support.oracle import PATH, check, error_code
from tests.support.sseclient import RawEvent
from tests.support.threaded import LoopThread, T

# Between two connections: as an SDK or EventSource would, but quicker.
_PAUSE = 0.1
_SILENCE = 20.0
TOKEN = "sk-one"


class Broken(AssertionError):
    """The relay did what no fault may lead to."""


class Client:
    """One generation as one client sees it, over all its connections.

    `hops` are counts of events after which the client hangs up by itself and goes on at the next replica,
    `leave_after` the count after which it does not come back.
    """

    path = PATH
    more: ClassVar[Mapping[str, Any]] = {"messages": []}
    """What its request says beside the model."""

    def __init__(
        self,
        urls: Sequence[str],
        model: str,
        *,
        stream: str | None = None,
        after: int = 0,
        first: int = 0,
        hops: Iterable[int] = (),
        leave_after: int | None = None,
        most: int = 400,
        pause: float = _PAUSE,
    ) -> None:
        self.urls = urls
        self.model = model
        self.stream = stream
        self.first = after + 1
        """The number of the first event that it asks for."""
        self.events: list[RawEvent] = []
        self.ended_at: float | None = None
        self.connections = 0
        self.refusals: list[tuple[int, str]] = []
        """Statuses and codes of answers that said: not here, or not now."""
        self.cuts = 0
        """Connections of this stream that ended without the zero chunk."""
        self.unanswered = 0
        """Posts of a new stream that died before the answer's head: each may have begun a generation."""
        self.heartbeats = 0
        self.longest_silence = 0.0
        """The longest time without an event while it was connected."""
        self.error: BaseException | None = None
        self._at = first
        self._last = f"{stream}.{after}" if stream is not None else None
        self._hops = sorted(hops)
        self._leave_after = leave_after
        self._most = most
        self._pause = pause
        self._seen = threading.Condition()

    @property
    def raw(self) -> bytes:
        return b"".join(event.raw for event in self.events)

    @property
    def numbered(self) -> bytes:
        """Without the end that the relay tells, which takes no number."""
        events = self.events
        return b"".join(e.raw for e in events if e.id is not None and not e.id.endswith("e"))

    @property
    def end(self) -> str | None:
        return check(self.events, first=self.first)[1]

    def is_last(self, event: RawEvent) -> bool:
        """Does its API send nothing after this event?"""
        return event.data == "[DONE]"

    async def run(self) -> Client:
        """Returns at the stream's end, or where the client leaves. Raises Broken."""
        try:
            while self.ended_at is None and self.connections < self._most:
                url = self.urls[self._at % len(self.urls)]
                self.connections += 1
                try:
                    await self._connect(url)
                except OSError:
                    pass
                self._at += 1
                if self.ended_at is None:
                    await asyncio.sleep(self._pause)
            if self.ended_at is None:
                raise Broken(f"{self.model}: no end after {self.connections} connections")
        except BaseException as error:
            self.error = error
            raise
        return self

    async def _connect(self, url: str) -> None:
        parts = urlsplit(url)
        reader, writer = await asyncio.open_connection(parts.hostname, parts.port, limit=1 << 22)
        try:
            await self._exchange(reader, writer, parts.netloc)
        finally:
            writer.transport.abort()
            with contextlib.suppress(OSError):
                await writer.wait_closed()

    async def _exchange(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, host: str) -> None:
        body = json.dumps({"model": self.model, "stream": True, **self.more}).encode()
        lines = [
            f"POST {self.path} HTTP/1.1",
            f"host: {host}",
            f"authorization: Bearer {TOKEN}",
            "content-type: application/json",
            f"content-length: {len(body)}",
        ]
        if self._last is not None:
            lines.append(f"last-event-id: {self._last}")
        writer.write("\r\n".join([*lines, "", ""]).encode() + body)
        await writer.drain()
        try:
            head = await asyncio.wait_for(read_head(reader), _SILENCE)
        except TimeoutError:
            raise Broken(f"{self.model}: {host} gave no answer for {_SILENCE} s, after event {self._last}") from None
        except (asyncio.IncompleteReadError, OSError):
            if self._last is None:
                self.unanswered += 1
            return
        status, headers = int(first_line(head)[1]), headers_of(head)
        if status == 204 and self._last is not None:
            self._over()
            return
        if status != 200:
            await self._refused(status, headers, reader)
            return
        if self.stream is None:
            self.stream = headers["relay-stream-id"]
            self._last = f"{self.stream}.0"
        elif headers["relay-stream-id"] != self.stream:
            raise Broken(f"asked for {self.stream}, was given {headers['relay-stream-id']}")
        await self._read(reader)

    async def _refused(self, status: int, headers: dict[str, str], reader: asyncio.StreamReader) -> None:
        body = await reader.readexactly(int(headers.get("content-length", "0")))
        try:
            code = str(json.loads(body)["error"]["code"])
        except (ValueError, KeyError):
            raise Broken(f"{self.model}: {status} with {body!r} after event {self._last}") from None
        if status != 503 or "retry-after" not in headers:
            raise Broken(f"{self.model}: {status} {code} after event {self._last}: {body!r}")
        self.refusals.append((status, code))

    async def _read(self, reader: asyncio.StreamReader) -> None:
        block = b""
        self._forget_a_part_of_an_end()
        heard = time.monotonic()
        while True:
            count = len(self.events)
            try:
                data = await asyncio.wait_for(read_chunk(reader), _SILENCE)
            except TimeoutError:
                raise Broken(f"{self.model}: not even a heartbeat for {_SILENCE} s, after {self._last}") from None
            except (asyncio.IncompleteReadError, OSError):
                self.cuts += 1
                if self.events and self.is_last(self.events[-1]):
                    self._over()
                return
            if not data:
                if block:
                    raise Broken(f"{self.model}: a clean end inside {block!r}")
                if not self.events or not self.is_last(self.events[-1]):
                    raise Broken(f"{self.model}: a clean end without a terminal event, after {self._last}")
                self._over()
                return
            block = self._take(block + data)
            if len(self.events) > count:
                now = time.monotonic()
                self.longest_silence = max(self.longest_silence, now - heard)
                heard = now
            if self._leave_after is not None and len(self.events) >= self._leave_after:
                self._over()
                return
            if self._hops and len(self.events) >= self._hops[0]:
                self._hops = [hop for hop in self._hops if hop > len(self.events)]
                return

    def _forget_a_part_of_an_end(self) -> None:
        """Of an end that the relay tells only the last event has an id: who is cut before it is told all again."""
        with self._seen:
            while self.events and self.events[-1].id is None:
                self.events.pop()

    def _take(self, block: bytes) -> bytes:
        """Keep the whole events of a block and return the rest."""
        while block:
            if block.startswith(b":"):
                _, found, rest = block.partition(b"\n")
                if not found:
                    break
                self.heartbeats += 1
                block = rest
                continue
            raw, found, rest = block.partition(b"\n\n")
            if not found:
                break
            self._keep(raw + b"\n\n")
            block = rest
        return block

    def _keep(self, raw: bytes) -> None:
        fields: dict[str, str] = {}
        for line in raw.decode().split("\n"):
            name, _, value = line.partition(": ")
            fields[name] = value
        event = RawEvent(fields.get("id"), fields.get("event"), fields.get("data"), raw)
        if event.id is not None:
            self._last = event.id
        with self._seen:
            self.events.append(event)
            self._seen.notify_all()

    def _over(self) -> None:
        self.ended_at = time.monotonic()

    def wait_events(self, count: int, timeout: float = 30.0) -> None:
        """Block (a test's own thread) until the client has so many events."""
        with self._seen:
            if not self._seen.wait_for(lambda: len(self.events) >= count or self.error is not None, timeout):
                raise TimeoutError(f"{self.model}: {len(self.events)} of {count} events; {self.refusals[-3:]}")
        if self.error is not None:
            raise self.error


class Fleet:
    """Clients on an event loop in a thread. Use it as a context manager."""

    def __init__(self) -> None:
        self._thread = LoopThread()
        self._started: list[Future[Any]] = []

    def __enter__(self) -> Fleet:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._thread.stop()

    def submit(self, work: Coroutine[Any, Any, T]) -> Future[T]:
        future = self._thread.submit(work)
        self._started.append(future)
        return future

    def start(self, client: Client) -> Client:
        self.submit(client.run())
        return client

    def wait(self, timeout: float = 60.0) -> None:
        """Block until all that was started has ended; raises the first error."""
        deadline = time.monotonic() + timeout
        for future in self._started:
            future.result(max(0.1, deadline - time.monotonic()))


def ends(clients: Iterable[Client]) -> set[str | None]:
    """The ends of the clients' streams, each judged by the oracle."""
    return {client.end for client in clients}


def terminals(events: Iterable[RawEvent]) -> int:
    """How many ends are among the events: `[DONE]`, or an error with its `[DONE]`."""
    found = list(events)
    errors = sum(1 for event in found if error_code(event) is not None)
    return max(errors, sum(1 for event in found if event.data == "[DONE]"))
