"""HTTP/2 without TLS, on Hypercorn's protocol, with what long streams that share a connection need.

Hypercorn departs from that in these ways, each worked around here:

- a response that the application breaks off is left open for ever: here it ends with RST_STREAM, so that no
  client takes what it has for a complete answer;
- what a client does not take piles up without bound while its window is closed: here the application waits, so
  that `limits.write_timeout` can end it;
- a request body that its application does not read holds up the whole connection: here only its own stream,
  whose window is given back as the body is read;
- data for a stream whose answer is complete ends the connection: here it is let go;
- looking for a stream that has something to send asks them all, hundreds for each event: here they take turns;
- CONNECT is offered for WebSockets (RFC 8441), which nothing here speaks: here it is not, and is a request like any
  other;
- a connection that has begun no request, or whose last one its client has cancelled, stays open for ever: here it is
  idle, and ends as an idle one does;
- requests may be sent and cancelled without end (CVE-2023-44487): here only so often;
- a connection that is to end resets new requests from one moment to the next: here its client is told first (GOAWAY),
  a request that was on its way is served, and one that comes later is refused as never begun (REFUSED_STREAM);
- a method or a path that would be another request over HTTP/1.1, and a second `Content-Length`, are let in: here their
  stream is reset (RFC 9113, sections 8.1.1 and 8.3.1). h2 itself sees to the rest of a head's form, to its size
  (64 KiB) and to the number of its CONTINUATION frames (64).
"""

from __future__ import annotations

import asyncio
import copy
import re
import time
from collections.abc import Callable
from functools import partial
from typing import Any, TypeVar

from h2.errors import ErrorCodes
from h2.events import DataReceived, Event, RequestReceived, StreamReset
from h2.exceptions import ProtocolError
from h2.settings import SettingCodes, Settings
from hypercorn.config import Config
from hypercorn.events import Closed, RawData, Updated
from hypercorn.events import Event as IOEvent
from hypercorn.protocol import ProtocolWrapper
from hypercorn.protocol.events import Body, Request, StreamClosed
from hypercorn.protocol.events import Event as StreamEvent
from hypercorn.protocol.h2 import (
    BUFFER_HIGH_WATER,
    BUFFER_LOW_WATER,
    BufferCompleteError,
    H2Protocol,
    StreamBuffer,
)
from hypercorn.protocol.h11 import H2ProtocolAssumedError
from hypercorn.protocol.http_stream import HTTPStream
from hypercorn.typing import ConnectionState
from hypercorn.utils import filter_pseudo_headers
from hyperframe.frame import GoAwayFrame
from priority.priority import DeadlockError, MissingStreamError

from relay.http.contract import UNTAKEN
from relay.http.http1 import Context, Http1

# A client may cancel at once as many requests as two times fill a connection, and so many more each second: a proxy's
# clients may all hang up together. (nghttp2, whose connections are one client's, has 1000 and 33.)
_CANCELS = 2000
_CANCELS_PER_SECOND = 100

# The last stream that there can be: a GOAWAY with it says that an end is near, and refuses nothing yet.
_LAST_STREAM = (1 << 31) - 1
# For a request that was on its way to a connection which has begun in a drain.
_CROSSING = 1.0

_METHOD = re.compile(rb"[A-Za-z]{1,32}")
_PATH = re.compile(rb"[\x21-\x7e]+")

_P = TypeVar("_P")


class Protocol(ProtocolWrapper):
    """A connection that begins as HTTP/1.1 and is HTTP/2 once its client says so."""

    context: Context
    protocol: Http1 | _Http2

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.protocol = self._made(Http1)

    @property
    def begun(self) -> bool:
        """Has the client sent the head of a request yet?"""
        return bool(self.protocol.keep_alive_requests)

    async def until_to_be_closed(self) -> None:
        """Return when this connection, which is idle, is to be closed for the server's end."""
        await self.protocol.until_to_be_closed()

    @property
    def owes_an_answer(self) -> bool:
        """Has a client of HTTP/1.1 sent a whole request whose answer is not at its end?"""
        return isinstance(self.protocol, Http1) and self.protocol.owes_an_answer

    async def probe(self) -> bool:
        """See `Http1.probe`."""
        return isinstance(self.protocol, Http1) and await self.protocol.probe()

    async def go_away(self, crossing: float) -> None:
        """Tell a client of HTTP/2 that its connection takes no request that is not here after `crossing` seconds."""
        if isinstance(self.protocol, _Http2):
            await self.protocol.go_away(crossing)

    async def handle(self, event: IOEvent) -> None:
        try:
            await self.protocol.handle(event)
        except H2ProtocolAssumedError as known:
            self.protocol = self._made(_Http2)
            await self.protocol.initiate()
            await self.send(Updated(idle=True))
            if self.context.draining.is_set():
                self.task_group.spawn(self.protocol.go_away, _CROSSING)
            if known.data:
                await self.protocol.handle(RawData(known.data))

    def _made(self, kind: Callable[..., _P]) -> _P:
        return kind(
            self.app,
            self.config,
            self.context,
            self.task_group,
            self.state,
            self.ssl,
            self.client,
            self.server,
            self.send,
        )


class _Turns:
    """Who may send next: those with something to send, one after the other. The priorities that clients may give
    are not followed (RFC 9113, section 5.3.2, deprecates them)."""

    def __init__(self) -> None:
        self._known: set[int] = set()
        self._ready: dict[int, None] = {}

    def __next__(self) -> int:
        for stream in self._ready:
            del self._ready[stream]
            self._ready[stream] = None
            return stream
        raise DeadlockError("no stream has anything to send")

    def insert_stream(self, stream: int) -> None:
        self._known.add(stream)
        self._ready[stream] = None

    def remove_stream(self, stream: int) -> None:
        self._known.discard(stream)
        self._ready.pop(stream, None)

    def block(self, stream: int) -> None:
        self._ready.pop(stream, None)

    def unblock(self, stream: int) -> None:
        if stream not in self._known:
            raise MissingStreamError(f"stream {stream} is over")
        self._ready.setdefault(stream)


class _Buffer(StreamBuffer):
    """What waits to be sent on one stream; who adds to it waits until little of it is left."""

    async def push(self, data: bytes) -> None:
        if self._complete:
            raise BufferCompleteError
        self.buffer.extend(data)
        await self._is_empty.clear()
        if len(self.buffer) >= BUFFER_HIGH_WATER:
            await self._paused.clear()
            await self._paused.wait()

    async def pop(self, max_length: int) -> bytes:
        data = bytes(self.buffer[:max_length])
        del self.buffer[:max_length]
        if len(self.buffer) < BUFFER_LOW_WATER:
            await self._paused.set()
        if not self.buffer:
            await self._is_empty.set()
        return data


class _FlowControlledTasks:
    """The task group, as one stream sees it: what its application reads of the body makes room for more."""

    def __init__(self, protocol: _Http2, stream: int) -> None:
        self._protocol = protocol
        self._stream = stream

    async def spawn_app(self, app: Any, config: Config, scope: Any, send: Any) -> Any:
        async def reading(scope: Any, receive: Any, send: Any, *threads: Any) -> None:
            async def counted() -> Any:
                message = await receive()
                if body := message.get("body"):
                    await self._protocol.make_room(self._stream, len(body))
                return message

            await app(scope, counted, send, *threads)

        return await self._protocol.task_group.spawn_app(reading, config, scope, send)  # type: ignore[arg-type]


class _Http2(H2Protocol):
    context: Context

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self._told_to_go = self.context.event_class()
        self.connection.local_settings = Settings(
            client=False,
            initial_values={
                SettingCodes.MAX_CONCURRENT_STREAMS: self.config.h2_max_concurrent_streams,
                SettingCodes.MAX_HEADER_LIST_SIZE: self.config.h2_max_header_list_size,
            },
        )
        self.priority = _Turns()  # type: ignore[assignment]
        # The stream's window bounds what waits to be read; a full queue would hold up the connection.
        self._stream_config = copy.copy(self.config)
        self._stream_config.max_app_queue_size = 0
        self._cancels = float(_CANCELS)
        self._counted = time.monotonic()

    async def until_to_be_closed(self) -> None:
        await self._told_to_go.wait()

    def is_amid_a_head(self) -> bool:
        return False  # its client has been told that it will not be looked at

    async def go_away(self, crossing: float) -> None:
        """h2 ends a connection with its own GOAWAY, under the streams that run on it."""
        await self.send(RawData(GoAwayFrame(0, last_stream_id=_LAST_STREAM).serialize()))
        await asyncio.sleep(crossing)
        last = self.connection.highest_inbound_stream_id
        await self._told_to_go.set()
        await self.send(RawData(GoAwayFrame(0, last_stream_id=last).serialize()))

    async def stream_send(self, event: StreamEvent) -> None:
        if isinstance(event, StreamClosed):
            buffer = self.stream_buffers.get(event.stream_id)
            if buffer is not None and not buffer.complete:
                await self._forget(event.stream_id)
                await self._reset(event.stream_id, ErrorCodes.INTERNAL_ERROR)
        await super().stream_send(event)

    async def _send_data(self, stream_id: int) -> None:
        buffer = self.stream_buffers[stream_id]
        try:
            window = self.connection.local_flow_control_window(stream_id)
            data = await buffer.pop(min(window, self.connection.max_outbound_frame_size)) if window > 0 else b""
            if data:
                self.connection.send_data(stream_id, data)
            if buffer.complete:
                self.connection.end_stream(stream_id)
                await self._forget(stream_id)
            elif not data or not buffer.buffer:
                self.priority.block(stream_id)
            await self._flush()
        except ProtocolError:
            await self._forget(stream_id)  # its client has ended it

    def _untaken(self, stream_id: int, buffer: _Buffer) -> int:
        """What waits for the client on one stream. Where its window is open, it waits for the connection."""
        waiting = len(buffer.buffer)
        try:
            if self.connection.local_flow_control_window(stream_id) > 0:
                waiting += self.connection_state[UNTAKEN]()
        except ProtocolError:
            pass  # the stream is over
        return waiting

    async def _forget(self, stream_id: int) -> None:
        self.priority.remove_stream(stream_id)
        if (buffer := self.stream_buffers.pop(stream_id, None)) is not None:
            await buffer.close()

    async def make_room(self, stream: int, size: int) -> None:
        """So much of a stream's body has been read: its client may send as much again."""
        try:
            self.connection.increment_flow_control_window(size, stream)
        except ProtocolError:
            return  # the stream is over
        await self._flush()

    async def _reset(self, stream: int, code: ErrorCodes) -> None:
        try:
            self.connection.reset_stream(stream, code)
        except ProtocolError:
            return  # its client was first
        await self._flush()

    async def _handle_events(self, events: list[Event]) -> None:
        for event in events:
            if self.closed:
                return
            if isinstance(event, DataReceived):
                await self._data(event)
                continue
            if isinstance(event, RequestReceived) and self._told_to_go.is_set():
                await self._reset(event.stream_id, ErrorCodes.REFUSED_STREAM)
                continue
            cancelled = isinstance(event, StreamReset) and event.stream_id in self.streams
            await super()._handle_events([event])
            if cancelled:
                await self._count_cancelled()
            if not self.streams and isinstance(event, RequestReceived | StreamReset):
                await self.send(Updated(idle=True))

    async def _count_cancelled(self) -> None:
        now = time.monotonic()
        self._cancels = min(_CANCELS, self._cancels + (now - self._counted) * _CANCELS_PER_SECOND) - 1
        self._counted = now
        if self._cancels < 0:
            self.connection.close_connection(ErrorCodes.ENHANCE_YOUR_CALM)
            await self._flush()
            self.closed = True
            await self.send(Closed())

    async def _data(self, event: DataReceived) -> None:
        stream = event.stream_id
        if event.flow_controlled_length:
            self.connection.increment_flow_control_window(event.flow_controlled_length)
            await self._flush()
        if stream not in self.streams:
            await self._reset(stream, ErrorCodes.NO_ERROR)
            return
        if padding := event.flow_controlled_length - len(event.data):
            await self.make_room(stream, padding)
        if event.data:
            await self.streams[stream].handle(Body(stream_id=stream, data=event.data))

    async def _create_stream(self, request: RequestReceived) -> None:
        number = request.stream_id
        pseudo = dict(request.headers)
        lengths = sum(name == b"content-length" for name, _ in request.headers)
        if not (_METHOD.fullmatch(pseudo[b":method"]) and _PATH.fullmatch(pseudo.get(b":path", b"/")) and lengths <= 1):
            await self._reset(number, ErrorCodes.PROTOCOL_ERROR)
            return
        self.keep_alive_requests += 1
        self.streams[number] = stream = HTTPStream(
            self.app,
            self._stream_config,
            self.context,
            _FlowControlledTasks(self, number),  # type: ignore[arg-type]
            self.ssl,
            self.client,
            self.server,
            self.stream_send,
            number,
        )
        self.stream_buffers[number] = buffer = _Buffer(self.context.event_class)
        self.priority.insert_stream(number)
        self.priority.block(number)
        await stream.handle(
            Request(
                stream_id=number,
                headers=filter_pseudo_headers(request.headers),
                http_version="2",
                method=pseudo[b":method"].decode("ascii"),
                raw_path=pseudo.get(b":path", b"/"),
                state=ConnectionState({**self.connection_state, UNTAKEN: partial(self._untaken, number, buffer)}),
            )
        )
        await self.context.mark_request()
