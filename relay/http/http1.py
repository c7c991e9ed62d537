"""HTTP/1.1, without what two servers may read in two ways.

Request smuggling lives on a proxy and the relay seeing different ends of one request. What older clients once sent is
refused here with 400 and the connection closed (RFC 9112, sections 2.2, 5.1, 5.2, 6.3, 7.1 and 11.2):

- a line that ends in LF alone, and a field value that goes on in the next line;
- `Content-Length` beside `Transfer-Encoding`, twice, or as a list, and `Transfer-Encoding` before HTTP/1.1;
- a chunk's size with anything about it but an extension of visible characters, and a framing header among trailers;
- a control character in a head or a trailer, a tab after `chunked`;
- a version that is neither 1.0 nor 1.1 (505), and a transfer coding that is not `chunked` (501).

`Upgrade` is not followed: a proxy that passes `h2c` on becomes a tunnel, and nothing here speaks WebSocket. HTTP/2
begins with its own preface, as a connection's first bytes and nowhere else.

In a drain each answer says `Connection: close`, and each is its connection's last. Where the head was sent before, the
client cannot know, and might use the connection again: its end goes out in one segment with the answer's.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

from hypercorn.asyncio.task_group import TaskGroup
from hypercorn.asyncio.worker_context import EventWrapper, WorkerContext
from hypercorn.config import Config
from hypercorn.events import Closed, Event, RawData, Updated
from hypercorn.protocol.h11 import H2ProtocolAssumedError
from hypercorn.typing import ConnectionState

from relay.http.contract import ConnectionCut
from relay.http.cycle import Cycle
from relay.http.dates import date
from relay.http.heads import PREFACE, Body, Malformed, Received, answer_head, parse
from relay.http.unsent import SEND, Account, Sending, Waiting

logger = logging.getLogger("relay.http")

# In the connection's state: have what is written from now on sent with the connection's end.
CORK = "relay.cork"

_CONTINUE = b"HTTP/1.1 100 \r\n\r\n"


class Context(WorkerContext):
    """What all connections know of the server's end: `draining` is its beginning; at `settled` no request is on its way
    any more; `terminated` is for what is left."""

    def __init__(self) -> None:
        super().__init__(None)
        self.draining = EventWrapper()
        self.settled = EventWrapper()


class Http1:
    """One connection: it reads a request, has the application answer it, and reads the next one."""

    def __init__(
        self,
        app: Any,
        config: Config,
        context: Context,
        task_group: TaskGroup,
        state: ConnectionState,
        ssl: bool,
        client: tuple[str, int] | None,
        server: tuple[str, int] | None,
        send: Callable[[Event], Awaitable[None]],
    ) -> None:
        self.context = context
        self.connection_state = state
        self.client, self.server = client, server
        self.send = send
        self.keep_alive_requests = 0
        """So many requests have begun."""
        self._app = app.app
        self._task_group = task_group
        self._sending: Sending = state[SEND]
        self._received = Received(config.h11_max_incomplete_size)
        self._cycle: Cycle | None = None
        self._body = Body(0)
        self._ended = False  # the client sends no more
        self._closed = False
        self._answered: asyncio.Future[None] | None = None

    # -- what the server asks -----------------------------------------------------------------------------

    @property
    def is_to_be_closed(self) -> bool:
        """Is this connection, where it is idle, to be closed for the server's end? One that has yet to bring its first
        request is so last of all."""
        return (self.context.settled if self.keep_alive_requests else self.context.terminated).is_set()

    def is_amid_a_head(self) -> bool:
        return bool(self._received.data)

    @property
    def is_idle(self) -> bool:
        """Is what comes next a request's beginning?"""
        return self._cycle is None

    @property
    def owes_an_answer(self) -> bool:
        """Has the client sent a whole request whose answer is not at its end?"""
        return self._cycle is not None and self._cycle.whole

    async def probe(self) -> bool:
        """Send what every client reads over, where that is possible: before the head of an answer (RFC 9110, section
        15.2.1)."""
        cycle = self._cycle
        if cycle is None or cycle.begun or cycle.head.version == "1.0":
            return False
        await self.write(_CONTINUE)
        return True

    def waiting(self) -> Iterator[Waiting]:
        """Its answer, where it cannot go on before its client takes something."""
        account, taking, abort, _ = self._sending
        if account.total and taking.held:
            since = taking.since()
            yield Waiting(since, since, abort)

    # -- requests -----------------------------------------------------------------------------------------

    async def initiate(self) -> None:
        """Nothing is sent before a request."""

    async def handle(self, event: Event) -> None:
        if isinstance(event, RawData):
            if event.data:
                self._received.data += event.data
            else:
                self._ended = True
            try:
                await self._read()
            except Malformed as error:
                await self._refuse(error.status)
        elif isinstance(event, Closed):
            self._hang_up()

    async def _read(self) -> None:
        """Raises Malformed, H2ProtocolAssumedError."""
        received = self._received
        while not self._closed:
            cycle = self._cycle
            if cycle is None:
                head = received.take_head() if received.data else None
                if head is None:
                    break
                await self._begin(head)
            elif not received.data:
                break
            elif not cycle.whole:
                data = self._body.take(received)
                if not (data or self._body.whole):
                    break
                cycle.feed(data, whole=self._body.whole)
                await cycle.room()
                if received.data:
                    await asyncio.sleep(0)  # others have their turn
            else:  # requests that were sent together are answered one after the other
                self._answered = asyncio.get_running_loop().create_future()
                await self._answered
        if self._ended and not self._closed and (received.data or not (self._cycle is None or self._cycle.whole)):
            raise Malformed("the connection's end amid a request")

    async def _begin(self, data: bytes) -> None:
        if data == PREFACE and self.keep_alive_requests == 0:
            rest = self._received.take(len(self._received.data))
            raise H2ProtocolAssumedError(PREFACE + rest)
        head = parse(data)
        await self.send(Updated(idle=False))
        self._cycle = cycle = Cycle(self, head)
        self._body = Body(head.length)
        self._task_group.spawn(self._run, cycle)
        self.keep_alive_requests += 1
        if head.continues:
            await self.write(_CONTINUE)

    async def _run(self, cycle: Cycle) -> None:
        try:
            await self._app(cycle.scope(), cycle.receive, cycle.send)
        except ConnectionCut:
            pass
        except Exception:
            logger.exception("a fault of the application's")
        finally:
            if cycle is self._cycle:  # it has left its answer, or the client has not got one
                await self._refuse(500)

    async def _refuse(self, status: int) -> None:
        """An answer where there is none yet, and in every case the connection's end."""
        begun = self._cycle is not None and self._cycle.begun
        self._hang_up()
        if not begun:
            await self.write(answer_head(status, [(b"content-length", b"0"), (b"connection", b"close"), date()]))
        await self.send(Closed())

    def _hang_up(self) -> None:
        self._closed = True
        cycle, self._cycle = self._cycle, None
        if cycle is not None:
            cycle.hung_up()
        self._go_on()

    def _go_on(self) -> None:
        answered, self._answered = self._answered, None
        if answered is not None and not answered.done():
            answered.set_result(None)

    # -- answers ------------------------------------------------------------------------------------------

    @property
    def account(self) -> Account:
        return self._sending.account

    @property
    def closes(self) -> bool:
        """Is every answer its connection's last?"""
        return self.context.draining.is_set()

    async def write(self, data: bytes) -> None:
        """To the connection itself, whose client may have gone; returns once most of it is taken."""
        writer = self._sending.writer
        try:
            writer.write(data)
            await writer.drain()
        except (ConnectionError, RuntimeError):
            self._hang_up()

    async def answered(self, cycle: Cycle, rest: bytes) -> None:
        """An answer has come to its end, but for these bytes."""
        if self.closes:
            self.connection_state[CORK]()
        if rest:
            await self.write(rest)
        if cycle is not self._cycle:
            return  # the client has gone meanwhile
        self._cycle = None
        cycle.close()
        more = bool(self._received.data) or not self._ended
        if more and cycle.keep_alive and cycle.whole and not self.closes and not self.context.terminated.is_set():
            await self.send(Updated(idle=True))
        else:
            self._closed = True
            await self.send(Closed())
        self._go_on()
