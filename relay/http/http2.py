"""HTTP/2 without TLS, on Hypercorn's protocol, with what long streams that share a connection need.

Hypercorn departs from that in these ways, each worked around here:

- a response that the application breaks off is left open for ever: here it ends with RST_STREAM, so that no
  client takes what it has for a complete answer;
- what a client does not take piles up without bound while its window is closed, and any number of streams is tried
  again for each byte that it lets in: here the application waits, what all of them hold is counted (`unsent.py`), one
  that takes nothing for `limits.write_timeout` is reset, and those that wait for the connection's window take turns;
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
  stream is reset (RFC 9113, sections 8.1.1 and 8.3.1). h2 itself sees to the rest of a head's form, and to its size
  once it is unpacked (64 KiB);
- frames may be sent without end, and heads that have none (`frames.py`).
"""

from __future__ import annotations

import asyncio
import copy
import re
import time
from collections.abc import Iterator
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any

from h2.connection import ConnectionState
from h2.errors import ErrorCodes
from h2.events import DataReceived, Event, RequestReceived, StreamReset
from h2.exceptions import ProtocolError
from h2.settings import SettingCodes, Settings
from hypercorn.config import Config
from hypercorn.events import Closed, RawData, Updated
from hypercorn.events import Event as IOEvent
from hypercorn.protocol.events import Body, Request, Response, StreamClosed
from hypercorn.protocol.events import Event as StreamEvent
from hypercorn.protocol.h2 import BufferCompleteError, H2Protocol
from hypercorn.protocol.http_stream import HTTPStream
from hypercorn.utils import filter_pseudo_headers
from hyperframe.frame import GoAwayFrame
from priority.priority import DeadlockError, MissingStreamError

from relay.http.context import Context
from relay.http.contract import CONNECTION, ConnectionCut
from relay.http.dates import dated
from relay.http.frames import SMALL, Frames
from relay.http.sending import Buffer, Turns
from relay.http.unsent import Waiting

if TYPE_CHECKING:
    from relay.http.connection import Connection

# A client may cancel at once as many requests as two times fill a connection, and so many more each second: a proxy's
# clients may all hang up together. (nghttp2, whose connections are one client's, has 1000 and 33.)
_CANCELS = 2000
_CANCELS_PER_SECOND = 100

# The last stream that there can be: a GOAWAY with it says that an end is near, and refuses nothing yet.
_LAST_STREAM = (1 << 31) - 1
# The heads of all requests that a connection runs: 4 KiB each where it has as many as it may.
_HEADS = 4 << 20

_METHOD = re.compile(rb"[A-Za-z]{1,32}")
_PATH = re.compile(rb"[\x21-\x7e]+")


class _FlowControlledTasks:
    """The task group, as one stream sees it: what its application reads of the body makes room for more."""

    def __init__(self, protocol: Http2, stream: int) -> None:
        self._protocol = protocol
        self._stream = stream

    async def spawn_app(self, app: Any, config: Config, scope: Any, send: Any) -> Any:
        async def reading(scope: Any, receive: Any, send: Any, *threads: Any) -> None:
            async def counted() -> Any:
                message = await receive()
                if body := message.get("body"):
                    await self._protocol.make_room(self._stream, len(body))
                return message

            await self._protocol.until_room(self._stream)
            await app(scope, counted, send, *threads)

        return await self._protocol.task_group.spawn_app(reading, config, scope, send)  # type: ignore[arg-type]


def _size(request: RequestReceived) -> int:
    return sum(len(name) + len(value) for name, value in request.headers)


class Http2(H2Protocol):
    context: Context

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self._told_to_go = self.context.event_class()
        self._peer: Connection = self.connection_state[CONNECTION]
        self._frames = self.connection.incoming_buffer = Frames()
        self._heads: dict[int, int] = {}
        self._heads_held = 0
        self._now = asyncio.get_running_loop().time
        self._last_sent = self._now()
        # Those that wait for the connection's window.
        self._starved: dict[int, None] = {}
        self.connection.local_settings = Settings(
            client=False,
            initial_values={
                SettingCodes.MAX_CONCURRENT_STREAMS: self.config.h2_max_concurrent_streams,
                SettingCodes.MAX_HEADER_LIST_SIZE: self.config.h2_max_header_list_size,
            },
        )
        self.stream_buffers: dict[int, Buffer] = {}  # type: ignore[assignment]
        self.priority = Turns()  # type: ignore[assignment]
        # The stream's window bounds what waits to be read; a full queue would hold up the connection.
        self._stream_config = copy.copy(self.config)
        self._stream_config.max_app_queue_size = 0
        self._cancels = float(_CANCELS)
        self._counted = time.monotonic()

    @property
    def is_to_be_closed(self) -> bool:
        return self._told_to_go.is_set()

    def is_amid_a_head(self) -> bool:
        return False  # its client has been told that it will not be looked at

    async def go_away(self, crossing: float) -> None:
        """h2 ends a connection with its own GOAWAY, under the streams that run on it."""
        await self.send(RawData(GoAwayFrame(0, last_stream_id=_LAST_STREAM).serialize()))
        await asyncio.sleep(crossing)
        last = self.connection.highest_inbound_stream_id
        await self._told_to_go.set()
        await self.send(RawData(GoAwayFrame(0, last_stream_id=last).serialize()))
        if not self.streams:
            await self.send(Updated(idle=True))

    async def handle(self, event: IOEvent) -> None:
        if isinstance(event, Closed):
            self.closed = True
            for number in list(self.stream_buffers):
                self._forget(number)
                await self._close_stream(number)
                await asyncio.sleep(0)  # each has an upstream's call to end, and others have their turn
        await super().handle(event)
        while isinstance(event, RawData) and self._frames.is_over_turn and not self._is_over():
            await asyncio.sleep(0)
            await super().handle(RawData(b""))

    def _is_over(self) -> bool:
        return self.closed or self.connection.state_machine.state is ConnectionState.CLOSED

    async def stream_send(self, event: StreamEvent) -> None:
        if isinstance(event, Body):
            try:
                await self.stream_buffers[event.stream_id].push(event.data)
            except (KeyError, BufferCompleteError, MissingStreamError):
                raise ConnectionCut from None
            return
        if isinstance(event, StreamClosed):
            buffer = self.stream_buffers.get(event.stream_id)
            if buffer is not None and not buffer.complete:
                self._forget(event.stream_id)
                await self._reset(event.stream_id, ErrorCodes.INTERNAL_ERROR)
        if isinstance(event, Response):
            event = Response(event.stream_id, dated(event.headers), event.status_code)
        await super().stream_send(event)

    async def _wake(self, stream_id: int) -> None:
        self.priority.unblock(stream_id)
        await self.has_data.set()

    async def _send_data(self, stream_id: int) -> None:
        buffer = self.stream_buffers[stream_id]
        connection = self.connection
        try:
            window = connection.local_flow_control_window(stream_id)
            data = buffer.pop(min(window, connection.max_outbound_frame_size)) if window > 0 else b""
            if data:
                connection.send_data(stream_id, data)
                if len(data) >= SMALL:
                    self._frames.earn()
            if buffer.complete:
                connection.end_stream(stream_id)
                self._forget(stream_id)
            elif not data or not buffer.held:
                self.priority.block(stream_id)
                if buffer.held and connection.outbound_flow_control_window <= 0:
                    self._starved[stream_id] = None
            await self._flush()
            if data:
                self._last_sent = self._now()
        except ProtocolError:
            self._forget(stream_id)  # its client has ended it

    async def send_task(self) -> None:
        while not self.closed:
            if self._starved and self.connection.outbound_flow_control_window > 0:
                stream_id = next(iter(self._starved))
                del self._starved[stream_id]
                self.priority.unblock(stream_id)
            try:
                stream_id = next(self.priority)
            except DeadlockError:
                await self.has_data.wait()
                await self.has_data.clear()
            else:
                await self._send_data(stream_id)

    async def _window_updated(self, stream_id: int | None) -> None:
        if stream_id == 0:
            await self.has_data.set()
        else:
            await super()._window_updated(stream_id)

    def waiting(self) -> Iterator[Waiting]:
        """The streams that have something to send and may not."""
        held_up = self._peer.held > 0
        behind = self._peer.taken_since() if held_up else self._last_sent
        for number, buffer in self.stream_buffers.items():
            stream = self.connection.streams.get(number)
            if not buffer.held or stream is None:
                continue
            if stream.outbound_flow_control_window <= 0:
                yield Waiting(buffer.taken, buffer.kept_pace, partial(self._let_go, number))
            elif held_up or self.connection.outbound_flow_control_window <= 0:
                taken, kept_pace = max(buffer.taken, behind), max(buffer.kept_pace, behind)
                yield Waiting(taken, kept_pace, partial(self._let_go, number))

    def _let_go(self, number: int) -> None:
        """End a stream whose client takes nothing of it."""
        self._forget(number)
        with suppress(RuntimeError):  # the connection is at its end
            self.task_group.spawn(self._end, number)

    async def _end(self, number: int) -> None:
        await self._close_stream(number)
        await self._reset(number, ErrorCodes.INTERNAL_ERROR)
        if not self.streams:
            await self.send(Updated(idle=True))

    async def _close_stream(self, stream_id: int) -> None:
        self._heads_held -= self._heads.pop(stream_id, 0)
        self._peer.account.unpark(stream_id)
        await super()._close_stream(stream_id)

    def _forget(self, stream_id: int) -> None:
        self.priority.remove_stream(stream_id)
        self._starved.pop(stream_id, None)
        if (buffer := self.stream_buffers.pop(stream_id, None)) is not None:
            buffer.close()

    async def until_room(self, number: int) -> None:
        if number in self.streams:
            await self._peer.account.until_room(number)

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
            if isinstance(event, RequestReceived) and not self._has_room(event):
                await self._reset(event.stream_id, ErrorCodes.REFUSED_STREAM)
                continue
            cancelled = isinstance(event, StreamReset) and event.stream_id in self.streams
            if isinstance(event, StreamReset):
                self._forget(event.stream_id)
            await super()._handle_events([event])
            if isinstance(event, RequestReceived):
                await asyncio.sleep(
                    0
                )  # many that arrive together begin one after the other, and others have their turn
            if cancelled:
                await self._count_cancelled()
            if not self.streams and isinstance(event, RequestReceived | StreamReset):
                await self.send(Updated(idle=True))

    def _has_room(self, request: RequestReceived) -> bool:
        return not self._told_to_go.is_set() and self._heads_held + _size(request) <= _HEADS

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
        self._heads[number] = _size(request)
        self._heads_held += self._heads[number]
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
        self.stream_buffers[number] = Buffer(self._peer.account, partial(self._wake, number))
        self.priority.insert_stream(number)
        self.priority.block(number)
        await stream.handle(
            Request(
                stream_id=number,
                headers=filter_pseudo_headers(request.headers),
                http_version="2",
                method=pseudo[b":method"].decode("ascii"),
                raw_path=pseudo.get(b":path", b"/"),
                state=self.connection_state,
            )
        )
        await self.context.mark_request()
