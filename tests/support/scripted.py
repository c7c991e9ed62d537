"""An upstream that plays byte-exact scripts over real HTTP/1.1 connections.

It promises that every ``Send`` is one write on a socket with TCP_NODELAY, so that a test decides where TCP
cuts the bytes; that a test can hold a connection at a named gate and see who hung up; and that nothing is
sent which the script does not say (no Date, no Server, no keep-alive header).

No HTTP framework belongs here: frameworks repair, buffer and coalesce, which is what tests have to exclude.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import threading
from collections.abc import Coroutine, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from tests.support.http import chunk, first_line, header_list, read_body, read_head, reset
from tests.support.threaded import ServerThread

Framing = Literal["chunked", "length", "close"]


@dataclass(frozen=True)
class Head:
    """Status line and headers. With framing "length" the body is every Send that follows in the script."""

    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)
    framing: Framing = "chunked"


@dataclass(frozen=True)
class Send:
    """Body bytes: one write, framed as the Head says."""

    data: bytes


@dataclass(frozen=True)
class Pause:
    """Silence for so long."""

    seconds: float


@dataclass(frozen=True)
class Gate:
    """Silence until the test opens the gate of this name."""

    name: str


@dataclass(frozen=True)
class Reset:
    """Abort the connection with a RST."""


@dataclass(frozen=True)
class Cut:
    """Close the connection with a FIN, without the zero chunk."""


@dataclass(frozen=True)
class End:
    """The zero chunk of a chunked body; the connection is kept. A script without it ends the same way."""


Step = Head | Send | Pause | Gate | Reset | Cut | End


@dataclass
class Call:
    """One request that arrived, and how its connection fared."""

    method: str
    path: str
    """The request target, query included."""
    headers: list[tuple[str, str]]
    body: bytes
    port: int = 0
    """The peer's, so what came over one connection can be told."""
    ended: threading.Event = field(default_factory=threading.Event, repr=False)
    """Set when the script is over or the connection is."""
    cancelled: bool = False
    """The peer closed before the script had finished."""

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    def header(self, name: str) -> str | None:
        return next((value for key, value in self.headers if key.lower() == name.lower()), None)


def sse(*frames: bytes | str) -> tuple[Send, ...]:
    """One Send per frame; the frames carry their own line ends."""
    return tuple(Send(frame.encode() if isinstance(frame, str) else frame) for frame in frames)


def stream(
    *frames: bytes | str | Step, pause_before: float = 0.0, headers: Mapping[str, str] | None = None
) -> tuple[Step, ...]:
    """A whole event stream. Steps (Pause, Gate …) may stand between frames; the head comes before all."""
    steps: list[Step] = [Head(200, {"content-type": "text/event-stream", **(headers or {})})]
    if pause_before:
        steps.append(Pause(pause_before))
    for frame in frames:
        steps.extend(sse(frame) if isinstance(frame, bytes | str) else (frame,))
    return (*steps, End())


def json_response(status: int, obj: object, headers: Mapping[str, str] | None = None) -> tuple[Step, ...]:
    """A JSON answer with a Content-Length."""
    head = Head(status, {"content-type": "application/json", **(headers or {})}, framing="length")
    return (head, Send(json.dumps(obj).encode()))


class _PeerClosed(Exception):
    """The peer hung up in the middle of a script."""


class _ConnectionOver(Exception):
    """The script itself has ended the connection."""


class ScriptedUpstream(ServerThread):
    """The server, in a thread with an event loop of its own. Use it as a context manager."""

    limit = 1 << 20  # longer than any head that a test sends

    def __init__(self, host: str = "127.0.0.1", port: int = 0) -> None:
        super().__init__(port, host)
        self._by_model: dict[str, tuple[Step, ...]] = {}
        self._by_path: dict[str, tuple[Step, ...]] = {}
        self._calls: list[Call] = []
        self._changed = threading.Condition()
        self._waiting: dict[str, int] = {}
        self._gates: dict[str, asyncio.Event] = {}

    # What a test calls, from its own thread.

    @property
    def calls(self) -> list[Call]:
        with self._changed:
            return list(self._calls)

    def calls_of(self, model: str) -> list[Call]:
        return [call for call in self.calls if _model_of(call) == model]

    def on(self, model: str, *steps: Step) -> None:
        """Answer every POST whose JSON body names this model; a later call replaces the script."""
        self._by_model[model] = steps

    def on_path(self, method_and_path: str, *steps: Step) -> None:
        """Answer "METHOD /path" (with or without its query), whatever the model."""
        self._by_path[method_and_path] = steps

    def open(self, name: str) -> None:
        """Open a gate for good: for the connections that wait at it and for those to come."""
        self.loop.call_soon_threadsafe(lambda: self._gate(name).set())

    def wait_reached(self, name: str, timeout: float = 10.0, connections: int = 1) -> None:
        """Block until so many connections have come to the gate."""
        with self._changed:
            if not self._changed.wait_for(lambda: self._waiting.get(name, 0) >= connections, timeout):
                raise TimeoutError(f"{self._waiting.get(name, 0)} of {connections} connections reached gate {name!r}")

    def wait_calls(self, count: int, timeout: float = 10.0) -> list[Call]:
        """Block until so many requests have arrived."""
        with self._changed:
            if not self._changed.wait_for(lambda: len(self._calls) >= count, timeout):
                raise TimeoutError(f"{len(self._calls)} of {count} requests arrived")
            return list(self._calls)

    # The server, on its own loop.

    def _gate(self, name: str) -> asyncio.Event:
        return self._gates.setdefault(name, asyncio.Event())

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connection = writer.get_extra_info("socket")
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        try:
            while (call := await _read_request(reader)) is not None:
                call.port = writer.get_extra_info("peername")[1]
                with self._changed:
                    self._calls.append(call)
                    self._changed.notify_all()
                try:
                    await self._play(call, self._script(call), reader, writer)
                except (_PeerClosed, ConnectionError):
                    call.cancelled = True
                    return
                except _ConnectionOver:
                    return
                finally:
                    call.ended.set()
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        except asyncio.CancelledError:
            writer.transport.abort()
            raise
        finally:
            writer.close()
            with contextlib.suppress(ConnectionError):
                await writer.wait_closed()

    def _script(self, call: Call) -> tuple[Step, ...]:
        bare_path = call.path.partition("?")[0]
        for key in (f"{call.method} {call.path}", f"{call.method} {bare_path}"):
            if key in self._by_path:
                return self._by_path[key]
        model = _model_of(call)
        if call.method == "POST" and model in self._by_model:
            return self._by_model[model]
        message = f"no script for {call.method} {call.path}, model {model!r}"
        return json_response(404, {"error": {"message": message, "type": "not_found_error", "code": "no_script"}})

    async def _play(
        self, call: Call, script: tuple[Step, ...], reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        framing: Framing = "close"
        chunked_open = False
        for position, step in enumerate(script):
            match step:
                case Head():
                    framing = step.framing
                    chunked_open = framing == "chunked"
                    writer.write(_head_bytes(step, _body_length(script[position + 1 :])))
                    await writer.drain()
                case Send(data):
                    writer.write(chunk(data) if chunked_open and data else data)
                    await writer.drain()
                case Pause(seconds):
                    await _until(asyncio.sleep(seconds), reader)
                case Gate(name):
                    with self._changed:
                        self._waiting[name] = self._waiting.get(name, 0) + 1
                        self._changed.notify_all()
                    await _until(self._gate(name).wait(), reader)
                case Reset():
                    reset(writer)
                    raise _ConnectionOver
                case Cut():
                    raise _ConnectionOver
                case End():
                    if chunked_open:
                        writer.write(chunk(b""))
                        await writer.drain()
                    chunked_open = False
        if chunked_open:
            writer.write(chunk(b""))
            await writer.drain()
        if framing == "close":
            raise _ConnectionOver


async def _until(waiting: Coroutine[Any, Any, Any], reader: asyncio.StreamReader) -> None:
    """Await it, unless the peer closes first. Clients do not pipeline: a read ends at the close."""
    waited = asyncio.ensure_future(waiting)
    closed = asyncio.ensure_future(reader.read(1))
    try:
        await asyncio.wait({waited, closed}, return_when=asyncio.FIRST_COMPLETED)
        if not waited.done():
            raise _PeerClosed
    finally:
        for task in (waited, closed):
            task.cancel()
        await asyncio.gather(waited, closed, return_exceptions=True)


def _head_bytes(head: Head, body_length: int) -> bytes:
    lines = [
        f"HTTP/1.1 {head.status} Scripted",
        *(f"{name}: {value}" for name, value in head.headers.items()),
    ]
    match head.framing:
        case "chunked":
            lines.append("transfer-encoding: chunked")
        case "length":
            lines.append(f"content-length: {body_length}")
        case "close":
            lines.append("connection: close")
    return "\r\n".join([*lines, "", ""]).encode("latin-1")


def _body_length(rest: tuple[Step, ...]) -> int:
    return sum(len(step.data) for step in rest if isinstance(step, Send))


def _model_of(call: Call) -> str | None:
    try:
        body = call.json
    except ValueError:
        return None
    model = body.get("model") if isinstance(body, dict) else None
    return model if isinstance(model, str) else None


async def _read_request(reader: asyncio.StreamReader) -> Call | None:
    """The next request of a connection, or None when the peer has closed it between two."""
    try:
        head = await read_head(reader)
    except asyncio.IncompleteReadError as closed:
        if not closed.partial:
            return None
        raise
    method, target, _ = first_line(head)
    return Call(method, target, header_list(head), await read_body(head, reader))
