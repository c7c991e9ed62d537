"""A connection: HTTP/1.1, until its first bytes are HTTP/2's.

The loop calls it, and it calls what reads (`Http1`): over HTTP/1.1 no task waits for a client, and none writes to it
but the application's. Whoever writes much waits in `drained`. Promises:

- a client that has closed its sending side gets its answers, unless it is seen to have gone;
- who takes nothing of what is held for it for `limits.write_timeout` is let go;
- a connection is over, and known to nobody, once it is closed and its applications have returned.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import select
import socket
import termios
from collections.abc import Callable, Coroutine
from typing import Any, cast

from relay import timers
from relay.http.acknowledged import queued, unheard
from relay.http.chunks import Chunks
from relay.http.context import Context
from relay.http.http1 import Http1
from relay.http.http2 import Http2
from relay.http.http2_tasks import Http2Tasks
from relay.http.unsent import AGAIN, AT_ONCE, SHARE, Account, Taking, Waiting

# Of what nobody asks for yet.
_READ_AHEAD = 32 * 1024
# How often in `limits.write_timeout` a client is looked at that does not take all that it is sent.
_LOOKS = 4


class Connection(asyncio.Protocol):
    """`probe` is the application's; see `contract.Connection`."""

    __slots__ = (
        "_account",
        "_at_hand",
        "_drained",
        "_half_closed",
        "_http2",
        "_idle",
        "_idle_until",
        "_lost",
        "_reading_paused",
        "_resets",
        "_running",
        "_taking",
        "_timer",
        "_was_reset",
        "context",
        "given_up",
        "probe",
        "protocol",
        "transport",
        "writing_paused",
    )

    def __init__(self, context: Context) -> None:
        self.context = context
        self.transport: asyncio.Transport
        self.protocol: Http1 | Http2
        self.probe: Callable[[], None] | None = None
        self.given_up = False
        self.writing_paused = False
        """Has the client not taken most of what was written?"""
        self._http2: Http2Tasks | None = None
        self._idle = True
        self._idle_until = 0.0
        self._timer: timers.Timer | None = None
        self._at_hand = False  # a part of a request, whose turn it is not yet
        self._reading_paused = False
        self._half_closed = False  # amid an answer
        self._was_reset = self._lost = False
        self._running = 0
        self._drained: list[asyncio.Future[None]] = []
        self._resets: select.epoll | None = None
        self._account: Account | None = None
        self._taking: Taking | None = None

    # -- what the loop calls ------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        self.protocol = Http1(self, self.context)
        self.context.connections.add(self)
        self.idles()

    def data_received(self, data: bytes) -> None:
        if self._http2 is not None:
            self._http2.data_received(data)
            return
        http1 = cast(Http1, self.protocol)
        http1.received.data += data
        if self._at_hand:
            if len(http1.received.data) > _READ_AHEAD:
                self.pause_reading()
        elif not http1.is_idle or self.context.beginnings.may_begin():
            http1.read()
        else:
            self._at_hand = True
            self.context.beginnings.wait(self, self._begin)

    def _begin(self) -> bool:
        """It is its turn. False where it has ended meanwhile."""
        self._at_hand = False
        if self.transport.is_closing():
            return False
        cast(Http1, self.protocol).read()
        return True

    def eof_received(self) -> bool:
        if self._http2 is not None:
            self._http2.eof_received()
        else:
            http1 = cast(Http1, self.protocol)
            http1.ended = True
            if not self._at_hand:
                http1.read()
        return True

    def pause_writing(self) -> None:
        self.writing_paused = True

    def resume_writing(self) -> None:
        self.writing_paused = False
        for waiter in self._drained:
            if not waiter.done():
                waiter.set_result(None)
        self._drained.clear()

    def connection_lost(self, error: Exception | None) -> None:
        self._lost = True
        self._was_reset = error is not None
        self._idle = False
        self.resume_writing()
        if self._timer is not None:
            self._timer.cancel()
        if self._resets is not None:
            self.context.loop.remove_reader(self._resets.fileno())
            self._resets.close()
        try:
            if self._http2 is not None:
                self._http2.connection_lost()
            else:
                cast(Http1, self.protocol).hang_up()
        finally:
            self._end_if_over()

    # -- what its protocol asks ---------------------------------------------------------------------------

    def spawn(self, work: Coroutine[Any, Any, None]) -> None:
        """`work` ends with `returned`."""
        self._running += 1
        self.context.tasks.add(self.context.loop.create_task(work))

    def returned(self) -> None:
        self.context.tasks.discard(cast("asyncio.Task[None]", asyncio.current_task()))
        self._running -= 1
        self._end_if_over()

    def _end_if_over(self) -> None:
        if self._lost and not self._running:
            self.context.over(self)
            # Its parts know it, and would wait for the collector of garbage.
            del self.protocol
            self._http2 = self._account = None

    def begin_http2(self, data: bytes) -> None:
        """The client has said so; `data` is all that it has sent."""
        ended = cast(Http1, self.protocol).ended
        self._http2 = Http2Tasks(self, self.context, data, ended=ended)
        self.protocol = self._http2.protocol
        self.idles()
        self.spawn(self._http2.run())

    def write(self, data: bytes) -> None:
        """To the client, which may have gone."""
        if not self.transport.is_closing():
            self.transport.write(data)

    async def drained(self) -> None:
        """Returns when most of what was written is taken, or never will be."""
        if self.writing_paused:
            waiter = self.context.loop.create_future()
            self._drained.append(waiter)
            await waiter

    def pause_reading(self) -> None:
        if not self._reading_paused and not self.transport.is_closing():
            self._reading_paused = True
            self.transport.pause_reading()

    def resume_reading(self) -> None:
        if self._reading_paused and not self.transport.is_closing():
            self._reading_paused = False
            self.transport.resume_reading()

    def half_closed(self) -> None:
        """The client has closed its side amid an answer: it waits, or has gone."""
        if self._half_closed:
            return
        try:
            self._resets = select.epoll()
            # Asked for nothing, it tells of a reset all the same.
            self._resets.register(self._socket.fileno(), 0)
        except (AttributeError, OSError):  # there is no such thing here, or no descriptor left
            self.go()
            return
        self._half_closed = True
        self.context.loop.add_reader(self._resets.fileno(), self.go)
        if not cast(Http1, self.protocol).probe() and self.probe is not None:
            self.probe()

    def go(self) -> None:
        """The client has gone."""
        cast(Http1, self.protocol).hang_up()
        self._idle = False
        self.transport.close()

    def cork(self) -> None:
        """Have what is written from now on sent with the connection's end."""
        if hasattr(socket, "TCP_CORK"):
            with contextlib.suppress(OSError):  # the client has gone
                self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_CORK, 1)

    def close(self) -> None:
        """Once all that was written is sent."""
        self._idle = False
        if not self.transport.is_closing():
            with contextlib.suppress(OSError, RuntimeError):  # the client has gone
                self.transport.write_eof()
            self.transport.close()

    @property
    def _socket(self) -> socket.socket:
        return cast(socket.socket, self.transport.get_extra_info("socket"))

    # -- what the application asks (`contract.Connection`) --------------------------------------------------

    @property
    def read_timeout(self) -> float:
        return self.context.limits.read_timeout

    @property
    def direct(self) -> Chunks:
        return Chunks(self)

    def abort(self) -> None:
        self.transport.abort()

    def has_taken(self) -> bool | None:
        if self._was_reset:
            return False
        if self.transport.is_closing():
            return not self._half_closed
        return self.held + queued(self._socket) == 0 or None

    def unheard(self) -> float:
        return unheard(self._socket)

    # -- what it holds for its client ----------------------------------------------------------------------

    @property
    def account(self) -> Account:
        if self._account is None:
            self._account = Account(SHARE, self._in_order, self.context.unsent)
        return self._account

    @property
    def is_waited_for(self) -> bool:
        """Does an answer hold more of its own than is written?"""
        return self._account is not None and self._account.total > 0

    @property
    def is_over_share(self) -> bool:
        return self._account is not None and self._account.is_full

    @property
    def held(self) -> int:
        """So many bytes in this process."""
        return self.transport.get_write_buffer_size()

    def taken_since(self) -> float:
        """When its client last took any of them."""
        if self._taking is None:
            self._taking = Taking(self.transport, self._socket)
        return self._taking.since()

    def _in_order(self) -> list[Waiting]:
        return sorted(self.protocol.waiting(), key=lambda answer: answer.kept_pace)

    def give_up(self) -> None:
        self.given_up = True
        self.transport.abort()

    def _look(self, now: float) -> float:
        """Let go whoever takes nothing: of an answer, or of all that the connection has for it. Returns when to look
        again."""
        limit = self.context.limits.write_timeout
        late = [answer for answer in self.protocol.waiting() if now - answer.taken >= limit]
        for answer in late[:AT_ONCE]:
            answer.let_go()
        if not self.held:
            self._taking = None
        elif now - self.taken_since() >= limit:
            self.give_up()
        return now + (AGAIN if len(late) > AT_ONCE else limit / _LOOKS)

    # -- its idle times ------------------------------------------------------------------------------------

    @property
    def begun(self) -> bool:
        """Has the client sent the head of a request yet?"""
        return bool(self.protocol.keep_alive_requests)

    def begins(self) -> None:
        """A request."""
        self._idle = False

    def idles(self) -> None:
        if self.transport.is_closing():
            return
        limits, loop = self.context.limits, self.context.loop
        self._idle = True
        self._idle_until = loop.time() + (limits.idle_timeout if self.begun else limits.read_timeout)
        if self._timer is None or self._timer.when > self._idle_until:
            self._set_timer(min(self._idle_until, loop.time() + limits.write_timeout / _LOOKS))
        if self.context.draining:
            loop.call_soon(self.end_if_idle)  # the last answer's end is sent first

    def _set_timer(self, when: float) -> None:
        """One for all times of a connection: it is set again when it fires, not at each request."""
        if self._timer is not None:
            self._timer.cancel()
        self._timer = timers.call_at(when, self._tick)

    def _tick(self) -> None:
        now = self.context.loop.time()
        again = self._look(now)
        if self._idle and now >= self._idle_until and not self._at_hand:
            self.close()
        elif self._idle:
            again = min(again, max(self._idle_until, now + AGAIN))
        self._set_timer(again)

    def end_if_idle(self) -> None:
        """For the server's end, as far as that has come."""
        over = self.context.terminated.is_set()
        if self._idle and (over or (self.protocol.is_to_be_closed and not self._request_is_coming())):
            self.close()  # before the loop can read anything more

    def _request_is_coming(self) -> bool:
        """Has a part of one arrived, be it in the kernel only? Then it will be answered."""
        if self._at_hand or self.protocol.is_amid_a_head() or (self._http2 is not None and self._http2.has_data):
            return True
        descriptor = self._socket.fileno()
        return descriptor >= 0 and fcntl.ioctl(descriptor, termios.FIONREAD, bytes(4)) != bytes(4)
