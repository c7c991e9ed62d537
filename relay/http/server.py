"""The HTTP server: connections on the relay's own listener, with HTTP/1.1 of its own and Hypercorn's HTTP/2 (h2c).

Hypercorn's own accept loop is not used, for two reasons. A kept-alive connection that its client closes
while idle keeps its descriptor until the keep-alive time-out (its connection waits for its own idle timer);
and its shutdown offers no moment between "take no more" and "3 seconds left", which a drain needs.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import select
import socket
import termios
from collections.abc import Awaitable, Callable
from typing import Any

from hypercorn.app_wrappers import ASGIWrapper
from hypercorn.asyncio.task_group import TaskGroup
from hypercorn.asyncio.tcp_server import TCPServer
from hypercorn.events import Closed, Event, RawData, Updated
from hypercorn.typing import ConnectionState
from hypercorn.utils import parse_socket_addr
from starlette.types import ASGIApp

from relay import timers
from relay.config import LimitSettings
from relay.http.accepting import Accepting
from relay.http.acknowledged import taken, unheard
from relay.http.beginnings import Beginnings
from relay.http.chunks import Chunks
from relay.http.configuration import configuration
from relay.http.contract import (
    ABORT,
    DIRECT,
    GIVEN_UP,
    HALF_CLOSE,
    READ_TIMEOUT,
    TAKEN,
    UNHEARD,
    HalfClose,
)
from relay.http.http1 import CORK, Context
from relay.http.protocol import Protocol
from relay.http.sharing import ALONE, Share
from relay.http.unsent import AGAIN, AT_ONCE, BOUND, SEND, SHARE, Account, Sending, Taking, Waiting

# Hypercorn's own backlog of 100 drops SYNs under a burst, which come back after a second and more.
_BACKLOG = 4096
_MAX_READ = 64 * 1024
# Of what nobody asks for yet; the connection is read on to twice as much.
_READ_AHEAD = 16 * 1024
# Requests of connections over HTTP/1.1 that are read in one turn of the loop.
_AT_ONCE = 4
# How often in `limits.write_timeout` a client is looked at that does not take all that it is sent.
_LOOKS = 4
_GRACE = 3.0
_SETTLE = 0.25
Until = Callable[["Server"], Awaitable[None]]
# For what a client had sent, or was about to, when the drain began: more than any network takes, on a busy machine.
_CROSSING = 1.0


class _Connection(TCPServer):
    """Raises OSError where the client has gone by now."""

    protocol: Protocol  # type: ignore[assignment]
    context: Context
    _idle = False  # once it is over
    _at_hand = False  # a part of a request, whose turn it is not yet

    def __init__(
        self,
        limits: LimitSettings,
        whole: Account,
        beginnings: Beginnings,
        writer: asyncio.StreamWriter,
        reader: asyncio.StreamReader,
        *more: Any,
    ) -> None:
        account = Account(SHARE, self._in_order, whole)
        self.sending = Sending(account, Taking(writer), self._give_up, writer)
        self._given_up = False
        self._half_close = HalfClose()
        state = {
            ABORT: writer.transport.abort,
            CORK: self._cork,
            DIRECT: Chunks(writer, account),
            GIVEN_UP: self._has_given_up,
            HALF_CLOSE: self._half_close,
            READ_TIMEOUT: limits.read_timeout,
            SEND: self.sending,
            TAKEN: self._taken,
            UNHEARD: self._unheard,
        }
        super().__init__(*more, state, reader, writer)  # type: ignore[call-arg]
        self._limits = limits
        self._beginnings = beginnings
        self._looks: timers.Timer | None = None
        self._idle = True
        self._idle_until = 0.0
        self._idle_timer: timers.Timer | None = None
        self._over: asyncio.Event | None = None
        own = self.writer.get_extra_info("socket")
        self._ends = [parse_socket_addr(own.family, end()) for end in (own.getpeername, own.getsockname)]

    def _has_given_up(self) -> bool:
        return self._given_up

    def _cork(self) -> None:
        if hasattr(socket, "TCP_CORK"):
            with contextlib.suppress(OSError):  # the client has gone
                self.writer.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_CORK, 1)

    def _taken(self) -> Callable[[], bool | None]:
        return taken(self.reader, self.writer, self._half_close)

    def _unheard(self) -> float:
        return unheard(self.writer.get_extra_info("socket"))

    def _give_up(self) -> None:
        self._given_up = True
        self.writer.transport.abort()

    async def run(self) -> None:
        client, server = self._ends
        try:
            async with TaskGroup(self.loop) as group:
                self._task_group = group
                state = ConnectionState(self.state)
                self.protocol = Protocol(
                    self.app, self.config, self.context, group, state, client, server, self.protocol_send
                )
                self._look()
                await self.protocol.initiate()
                self._begin_idling()
                await self._read_data()
        except OSError:
            pass  # the client has gone
        finally:
            try:
                await self._close()
            finally:
                for timer in (self._looks, self._idle_timer):
                    if timer is not None:
                        timer.cancel()

    def _in_order(self) -> list[Waiting]:
        return sorted(self.protocol.waiting(), key=lambda answer: answer.kept_pace)

    def _look(self) -> None:
        """Let go whoever takes nothing: of an answer, or of all that the connection has for it."""
        limit = self._limits.write_timeout
        now = self.loop.time()
        late = [answer for answer in self.protocol.waiting() if now - answer.taken >= limit]
        for answer in late[:AT_ONCE]:
            answer.let_go()
        if now - self.sending.taking.since() >= limit:
            self.sending.abort()
        self._looks = timers.call_later(AGAIN if len(late) > AT_ONCE else limit / _LOOKS, self._look)

    async def _read_data(self) -> None:
        with contextlib.suppress(OSError):
            while await self._read_more():
                if self.reader._buffer:  # type: ignore[attr-defined]
                    await asyncio.sleep(0)  # others have their turn
            if self.protocol.owes_an_answer:
                await self._answered_or_gone()
            else:
                await self.protocol.handle(RawData(b""))
        await self.protocol.handle(Closed())

    async def _read_more(self) -> bool:
        """False at the end. What was read is held by nobody but the protocol while the next bytes are awaited."""
        data = await self.reader.read(_MAX_READ)
        if data:
            if self.protocol.is_idle:
                self._at_hand = True
                await self._beginnings.turn(self)
                self._at_hand = False
            await self.protocol.handle(RawData(data))
        return bool(data)

    async def _answered_or_gone(self) -> None:
        """The client has closed its side: return when its answer is at its end, or it is seen to have gone."""
        if self.writer.transport.is_closing() or not hasattr(select, "epoll"):
            return
        self._half_close.amid = True
        over = self._over = asyncio.Event()
        descriptor = self.writer.get_extra_info("socket").fileno()
        with select.epoll() as resets:
            # Asked for nothing, it tells of a reset all the same.
            resets.register(descriptor, 0)
            self.loop.add_reader(resets.fileno(), over.set)
            try:
                if not await self.protocol.probe() and (probe := self._half_close.probe) is not None:
                    probe()
                await self.protocol.handle(RawData(b""))  # with the answer's end the connection is over
                await over.wait()
            finally:
                self.loop.remove_reader(resets.fileno())

    async def protocol_send(self, event: Event) -> None:
        if isinstance(event, Updated):
            self._idle = event.idle
            if event.idle:
                self._begin_idling()
        else:
            await super().protocol_send(event)
        if self._over is not None and isinstance(event, Closed | Updated):
            self._over.set()

    def _begin_idling(self) -> None:
        """One timer for all of a connection's idle times: it is set again when it fires, not at each request."""
        self._idle = True
        limit = self._limits.idle_timeout if self.protocol.begun else self._limits.read_timeout
        self._idle_until = self.loop.time() + limit
        timer = self._idle_timer
        if timer is None or timer.when > self._idle_until:
            if timer is not None:
                timer.cancel()
            self._idle_timer = timers.call_at(self._idle_until, self._idled)
        if self.context.draining.is_set():
            self.loop.call_soon(self.end_if_idle)  # the last answer's end is sent first

    def _idled(self) -> None:
        self._idle_timer = None
        if not self._idle:
            return
        if self._at_hand:
            self._idle_timer = timers.call_later(AGAIN, self._idled)
        elif self.loop.time() >= self._idle_until:
            self.writer.close()
        else:
            self._idle_timer = timers.call_at(self._idle_until, self._idled)

    def end_if_idle(self) -> None:
        """For the server's end, as far as that has come."""
        if not self._idle:
            return
        if self.send_lock.locked():
            self.loop.call_later(AGAIN, self.end_if_idle)
            return
        if self.context.terminated.is_set() or (self.protocol.is_to_be_closed and not self._request_is_coming()):
            self.writer.close()  # before the loop can read anything more

    def _request_is_coming(self) -> bool:
        """Has a part of one arrived, be it in the kernel only? Then it will be answered."""
        if self._at_hand or self.protocol.protocol.is_amid_a_head() or self.reader._buffer:  # type: ignore[attr-defined]
            return True
        descriptor = self.writer.get_extra_info("socket").fileno()
        return descriptor >= 0 and fcntl.ioctl(descriptor, termios.FIONREAD, bytes(4)) != bytes(4)


class Server:
    """Connections on `listener`, which it closes."""

    def __init__(self, app: ASGIApp, listener: socket.socket, limits: LimitSettings, share: Share = ALONE) -> None:
        self._app = ASGIWrapper(app)  # type: ignore[arg-type]
        self._listener, self._share = listener, share
        self._limits = limits
        self._loop = asyncio.get_running_loop()
        self._config = configuration()
        self._context = Context()
        self._accepting: Accepting | None = None
        self._connections: dict[asyncio.Task[None], _Connection] = {}
        self._going_away: set[asyncio.Task[None]] = set()
        self._unsent = Account(BOUND, self._waiting)
        self._beginnings = Beginnings(_AT_ONCE, between=0)

    async def start(self) -> None:
        self._accepting = Accepting(self._listener, _BACKLOG, self._protocol, self._share)

    async def drain(self, *, listening: bool) -> None:
        """Have every connection end as soon as no request runs on it, and return when what was on its way is here.

        New connections are refused from now on. With `listening` they are taken, for one request each. A connection
        ends with its next answer, over HTTP/2 with all that run on it (RFC 9113, section 6.8), and at once where it has
        been idle for a moment.
        """
        if not listening:
            await self._stop_accepting()
        await self._send_away()
        await self._ended(_CROSSING)
        await self._settle()

    async def answered(self) -> None:
        """In a drain: return when no request is under way any more."""
        while busy := [task for task, connection in self._connections.items() if connection.protocol.begun]:
            await asyncio.wait(busy)

    async def close(self) -> None:
        """No more connections, a moment for the requests of those just accepted, and one for all answers to end."""
        await self._stop_accepting()
        await self._send_away()
        await self._ended(_SETTLE)
        await self._context.terminated.set()
        await self._settle()
        await self._ended(_GRACE)
        left = [*self._connections, *self._going_away]
        for task in left:
            task.cancel()
        await asyncio.gather(*left, return_exceptions=True)

    async def _stop_accepting(self) -> None:
        accepting, self._accepting = self._accepting, None
        if accepting is not None:
            await accepting.stop()

    async def _send_away(self) -> None:
        if self._context.draining.is_set():
            return
        await self._context.draining.set()
        for connection in self._connections.values():
            task = asyncio.create_task(connection.protocol.go_away(_CROSSING))
            self._going_away.add(task)
            task.add_done_callback(self._going_away.discard)

    async def _settle(self) -> None:
        await self._context.settled.set()
        for connection in list(self._connections.values()):
            connection.end_if_idle()

    async def _ended(self, timeout: float) -> None:
        if self._connections:
            await asyncio.wait(self._connections, timeout=timeout)

    def _waiting(self) -> list[Waiting]:
        """All answers that wait for their client, those of connections first that hold more than their share."""
        found = [
            (not connection.sending.account.is_full, answer.kept_pace, answer)
            for connection in self._connections.values()
            for answer in connection.protocol.waiting()
        ]
        return [answer for *_, answer in sorted(found, key=lambda entry: entry[:2])]

    def _protocol(self) -> asyncio.StreamReaderProtocol:
        reader = asyncio.StreamReader(limit=_READ_AHEAD, loop=self._loop)
        protocol = asyncio.StreamReaderProtocol(reader, self._connected, loop=self._loop)
        protocol._drain_waiters = []  # type: ignore[attr-defined]  # in the place of a deque, 700 bytes for one at most
        return protocol

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        try:
            given = self._app, self._loop, self._config, self._context
            connection = _Connection(self._limits, self._unsent, self._beginnings, writer, reader, *given)
        except OSError:
            writer.close()
            return
        self._connections[task] = connection
        try:
            await connection
        finally:
            del self._connections[task]
            self._share.holds(len(self._connections))
            vars(connection).clear()  # else its parts, which know each other, wait for the collector of garbage


async def serve(
    app: ASGIApp, listener: socket.socket, until: Until, limits: LimitSettings, share: Share = ALONE
) -> None:
    """Serve until `until` returns; then open connections have a moment to end."""
    server = Server(app, listener, limits, share)
    await server.start()
    try:
        await until(server)
    finally:
        await server.close()
