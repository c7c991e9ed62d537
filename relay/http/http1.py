"""HTTP/1.1 on Hypercorn's protocol and h11, without what two servers may read in two ways.

Request smuggling lives on a proxy and the relay seeing different ends of one request. h11 takes in what older clients
once sent; here it is refused with 400 and the connection closed (RFC 9112, sections 2.2, 5.1, 5.2, 6.3, 7.1 and 11.2):

- a line that ends in LF alone, and a field value that goes on in the next line;
- `Content-Length` beside `Transfer-Encoding`, twice, or as a list, and `Transfer-Encoding` before HTTP/1.1;
- a chunk's size with anything about it but an extension of visible characters;
- a version that is neither 1.0 nor 1.1 (505).

`Upgrade` is not followed: a proxy that passes `h2c` on becomes a tunnel, and nothing here speaks WebSocket. HTTP/2
begins with its own preface, as a connection's first bytes and nowhere else.

In a drain each answer says `Connection: close`, and each is its connection's last. Where the head was sent before, the
client cannot know, and might use the connection again: its end goes out in one segment with the answer's.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import h11
from h11._receivebuffer import ReceiveBuffer
from hypercorn.asyncio.worker_context import EventWrapper, WorkerContext
from hypercorn.events import Closed
from hypercorn.protocol.events import Body, EndBody, Request, Response
from hypercorn.protocol.events import Event as StreamEvent
from hypercorn.protocol.h11 import STREAM_ID, H2ProtocolAssumedError, H11Protocol
from hypercorn.protocol.http_stream import HTTPStream

from relay.http.contract import ConnectionCut
from relay.http.dates import date, dated
from relay.http.unsent import SEND, Sending, Waiting

# The most of a body that is handed to a connection before it has taken what came before.
SLICE = 64 * 1024
# In the connection's state: have what is written from now on sent with the connection's end.
CORK = "relay.cork"

_BARE_LF = re.compile(rb"(?<!\r)\n")
_CHUNK_LINE = re.compile(rb"[0-9A-Fa-f]{1,16}(?:;[\t\x20-\x7e\x80-\xff]*)?\r\n")
_LENGTH = re.compile(rb"content-length:[ \t]*[0-9]{1,19}[ \t]*", re.IGNORECASE)


class Lines(ReceiveBuffer):
    """h11's buffer, in which a line ends in CRLF."""

    def maybe_extract_lines(self) -> list[bytearray] | None:
        if self._data[:2] == b"\r\n":
            self._extract(2)
            return []
        looked = max(0, self._multiple_lines_search - 3)
        end = self._data.find(b"\r\n\r\n", looked)
        if _BARE_LF.search(self._data, looked, end if end >= 0 else len(self._data)):
            raise h11.LocalProtocolError("a line ends in LF alone")
        if end < 0:
            self._multiple_lines_search = len(self._data)
            return None
        lines = self._extract(end + 4)[:-4].split(b"\r\n")
        _check(lines)
        return lines

    def maybe_extract_next_line(self) -> bytearray | None:
        line = super().maybe_extract_next_line()
        if line is not None and not _CHUNK_LINE.fullmatch(line):
            raise h11.LocalProtocolError("malformed chunk size")
        return line


def _check(lines: list[bytearray]) -> None:
    lengths = codings = 0
    for line in lines:
        first = line[:18].lower()
        if first.startswith((b" ", b"\t")):
            raise h11.LocalProtocolError("a field value goes on in the next line")
        if first.startswith(b"content-length:"):
            lengths += 1
            if not _LENGTH.fullmatch(line):
                raise h11.LocalProtocolError("Content-Length is not one number")
        elif first == b"transfer-encoding:":
            codings += 1
    if lengths + codings > 1:
        raise h11.LocalProtocolError("more than one framing header")
    if codings and not lines[0].endswith(b" HTTP/1.1"):
        raise h11.LocalProtocolError("Transfer-Encoding outside an HTTP/1.1 head")


class Context(WorkerContext):
    """What all connections know of the server's end: `draining` is its beginning; at `settled` no request is on its way
    any more; `terminated` is for what is left."""

    def __init__(self) -> None:
        super().__init__(None)
        self.draining = EventWrapper()
        self.settled = EventWrapper()


class Http1(H11Protocol):
    context: Context

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.connection._receive_buffer = Lines()  # type: ignore[union-attr]
        self._sending: Sending = self.connection_state[SEND]

    async def until_to_be_closed(self) -> None:
        """Return when this connection, which is idle, is to be closed for the server's end. One that has yet to bring
        its first request is so last of all."""
        await (self.context.settled if self.keep_alive_requests else self.context.terminated).wait()

    def is_amid_a_head(self) -> bool:
        return bool(self.connection.trailing_data[0])

    @property
    def owes_an_answer(self) -> bool:
        """Has the client sent a whole request whose answer is not at its end?"""
        return self.stream is not None and self.connection.their_state in (h11.DONE, h11.MUST_CLOSE)

    async def probe(self) -> bool:
        """Send what every client reads over, where that is possible: before the head of an answer (RFC 9110, section
        15.2.1)."""
        connection = self.connection
        if connection.our_state is not h11.SEND_RESPONSE or connection.their_http_version == b"1.0":
            return False
        await self._send_h11_event(h11.InformationalResponse(status_code=100, headers=[]))
        return True

    def waiting(self) -> Iterator[Waiting]:
        """Its answer, where it cannot go on before its client takes something."""
        account, taking, abort = self._sending
        if account.total and taking.held:
            since = taking.since()
            yield Waiting(since, since, abort)

    async def stream_send(self, event: StreamEvent) -> None:
        if isinstance(event, Response):
            event = dated(event)
        if isinstance(event, Body):
            with self._sending.account.holding(len(event.data)):
                for at in range(0, len(event.data), SLICE):
                    if self.stream is None:
                        raise ConnectionCut
                    await super().stream_send(Body(event.stream_id, event.data[at : at + SLICE]))
            return
        if isinstance(event, EndBody) and self.context.draining.is_set():
            self.connection_state[CORK]()
        if isinstance(event, Response) and self.context.draining.is_set():
            others = [item for item in event.headers if item[0].lower() != b"connection"]
            event = Response(event.stream_id, [*others, (b"connection", b"close")], event.status_code)
        await super().stream_send(event)

    async def _send_error_response(self, status_code: int) -> None:
        head = [(b"content-length", b"0"), (b"connection", b"close"), date()]
        await self._send_h11_event(h11.Response(status_code=status_code, headers=head))
        await self._send_h11_event(h11.EndOfMessage())

    async def _maybe_recycle(self) -> None:
        if not self.context.draining.is_set():
            await super()._maybe_recycle()
            return
        await self._close_stream()
        await self.can_read.set()
        await self.send(Closed())

    async def _check_protocol(self, event: h11.Request) -> None:
        preface = (event.method, event.target, event.http_version) == (b"PRI", b"*", b"2.0")
        if preface and self.keep_alive_requests == 0:
            raise H2ProtocolAssumedError(b"PRI * HTTP/2.0\r\n\r\n" + self.connection.trailing_data[0])

    async def _create_stream(self, request: h11.Request) -> None:
        if request.http_version not in (b"1.0", b"1.1"):
            await self._send_error_response(505)
            await self.send(Closed())
            return
        self.stream = HTTPStream(
            self.app,
            self.config,
            self.context,
            self.task_group,
            self.ssl,
            self.client,
            self.server,
            self.stream_send,
            STREAM_ID,
        )
        await self.stream.handle(
            Request(
                stream_id=STREAM_ID,
                headers=list(request.headers),
                http_version=request.http_version.decode(),
                method=request.method.decode("ascii"),
                raw_path=request.target,
                state=self.connection_state,
            )
        )
        self.keep_alive_requests += 1
        await self.context.mark_request()
