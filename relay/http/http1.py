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

import logging
from collections.abc import Iterator
from typing import TYPE_CHECKING

from relay.http.context import Context
from relay.http.contract import ConnectionCut
from relay.http.cycle import Cycle
from relay.http.dates import date
from relay.http.heads import PREFACE, Body, Malformed, Received, answer_head, parse
from relay.http.unsent import Waiting

if TYPE_CHECKING:
    from relay.http.connection import Connection

logger = logging.getLogger("relay.http")

_CONTINUE = b"HTTP/1.1 100 \r\n\r\n"
_NO_BODY = Body(0)
# Of what is sent before its turn: requests that are sent together are answered one after the other.
_READ_AHEAD = 16 * 1024


class Http1:
    """What comes on one connection: it reads a request, has the application answer it, and reads the next one."""

    __slots__ = ("_body", "_closed", "_cycle", "connection", "context", "ended", "keep_alive_requests", "received")

    def __init__(self, connection: Connection, context: Context) -> None:
        self.connection = connection
        self.context = context
        self.keep_alive_requests = 0
        """So many requests have begun."""
        self.received = Received(context.config.h11_max_incomplete_size)
        self.ended = False
        """Does the client send no more?"""
        self._cycle: Cycle | None = None
        self._body = _NO_BODY
        self._closed = False

    # -- what the connection asks -------------------------------------------------------------------------

    @property
    def is_to_be_closed(self) -> bool:
        """Is this connection, where it is idle, to be closed for the server's end? One that has yet to bring its first
        request is so last of all."""
        return self.context.settled if self.keep_alive_requests else self.context.terminated.is_set()

    def is_amid_a_head(self) -> bool:
        return bool(self.received.data)

    @property
    def is_idle(self) -> bool:
        """Is what comes next a request's beginning?"""
        return self._cycle is None

    def probe(self) -> bool:
        """Send what every client reads over, where that is possible: before the head of an answer (RFC 9110, section
        15.2.1)."""
        cycle = self._cycle
        if cycle is None or cycle.begun or cycle.head.version == "1.0":
            return False
        self.connection.write(_CONTINUE)
        return True

    def waiting(self) -> Iterator[Waiting]:
        """Its answer, where it cannot go on before its client takes something."""
        connection = self.connection
        if connection.is_waited_for and connection.held:
            since = connection.taken_since()
            yield Waiting(since, since, connection.give_up)

    # -- requests -----------------------------------------------------------------------------------------

    def read(self) -> None:
        """What has been received, as far as that goes."""
        try:
            held_up = self._read()
        except Malformed as error:
            self._refuse(error.status)
            return
        if self._closed:
            return
        if held_up or (self._cycle is not None and len(self.received.data) > _READ_AHEAD):
            self.connection.pause_reading()
        else:
            self.connection.resume_reading()
        if self.ended and not held_up:
            self._end()

    def _read(self) -> bool:
        """True where this is to be called again before more is received. Raises Malformed."""
        received = self.received
        while not self._closed:
            cycle = self._cycle
            if cycle is None:
                head = received.take_head() if received.data else None
                if head is None:
                    break
                if head == PREFACE and self.keep_alive_requests == 0:
                    self._closed = True
                    self.connection.begin_http2(PREFACE + received.take(len(received.data)))
                    break
                self._begin(head)
            elif cycle.whole or not received.data:
                break
            elif cycle.is_full:
                cycle.when_read = self.read
                return True
            else:
                data = self._body.take(received)
                if not (data or self._body.whole):
                    break
                cycle.feed(data, whole=self._body.whole)
                if received.data and not cycle.whole:
                    self.context.loop.call_soon(self.read)  # others have their turn
                    return True
        if self.ended and not self._closed and (received.data or self._cycle) and not self.owes_an_answer:
            raise Malformed("the connection's end amid a request")
        return False

    @property
    def owes_an_answer(self) -> bool:
        """Has the client sent a whole request whose answer is not at its end?"""
        return self._cycle is not None and self._cycle.whole

    def _begin(self, data: bytes) -> None:
        head = parse(data)
        self.connection.begins()
        self._cycle = cycle = Cycle(self, head)
        self._body = Body(head.length) if not cycle.whole else _NO_BODY
        self.keep_alive_requests += 1
        self.connection.spawn(self._run(cycle))
        if head.continues:
            self.connection.write(_CONTINUE)

    def _end(self) -> None:
        """The client has closed its side, and what it sent before has been read."""
        if self.owes_an_answer:
            self.connection.half_closed()
        else:
            self.connection.go()

    async def _run(self, cycle: Cycle) -> None:
        try:
            await self.context.app(cycle.scope(), cycle.receive, cycle.send)
        except ConnectionCut:
            pass
        except Exception:
            logger.exception("a fault of the application's")
        finally:
            if cycle is self._cycle:  # it has left its answer, or the client has not got one
                self._refuse(500)
            self.connection.returned()

    def _refuse(self, status: int) -> None:
        """An answer where there is none yet, and in every case the connection's end."""
        begun = self._cycle is not None and self._cycle.begun
        self.hang_up()
        if not begun:
            self.connection.write(answer_head(status, [(b"content-length", b"0"), (b"connection", b"close"), date()]))
        self.connection.close()

    def hang_up(self) -> None:
        """Nobody is there any more."""
        self._closed = True
        cycle, self._cycle = self._cycle, None
        if cycle is not None:
            cycle.hung_up()

    # -- answers ------------------------------------------------------------------------------------------

    def answered(self, cycle: Cycle) -> None:
        """An answer has come to its end."""
        if cycle is not self._cycle:
            return  # the client has gone meanwhile
        self._cycle = None
        cycle.close()
        more = bool(self.received.data) or not self.ended
        if not (more and cycle.keep_alive and cycle.whole and not self.context.draining):
            self._closed = True
            self.connection.close()
            return
        self.connection.idles()
        if self.received.data:
            self.read()
