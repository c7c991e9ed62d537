"""One request over HTTP/1.1 and its answer, as the application sees them: its ASGI `receive` and `send`.

Nothing is queued and no task runs for either: what has come is taken at once, who waits for more is woken by the read
that brings it, and a client that hangs up is told of by a call.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING
from urllib.parse import unquote

from starlette.types import Message, Scope

from relay.http.contract import CLIENT, CONNECTION, ConnectionCut
from relay.http.dates import date
from relay.http.heads import LENGTH, Head, answer_head
from relay.protocol.headers import Headers

if TYPE_CHECKING:
    from relay.http.http1 import Http1

# Of a body that nobody reads; the connection is not read on then.
_HELD = 64 * 1024
# The most of a body that is handed to a connection before it has taken what came before.
SLICE = 64 * 1024
_NO_BODY = (204, 304)
_ASGI = {"spec_version": "2.1", "version": "3.0"}
_GONE: Message = {"type": "http.disconnect"}


class Cycle:
    """A request in progress. `whole`: all of it is here. `begun` and `over`: its answer's head, and its end, were sent.
    `keep_alive`: another request may follow on the connection."""

    __slots__ = (
        "_bodiless",
        "_chunked",
        "_gone",
        "_held",
        "_http1",
        "_left",
        "_parts",
        "_told",
        "_waiting",
        "_when_gone",
        "begun",
        "head",
        "keep_alive",
        "over",
        "when_read",
        "whole",
    )

    def __init__(self, http1: Http1, head: Head) -> None:
        self.head = head
        self.whole = head.length == 0
        self.begun = self.over = False
        self.keep_alive = head.keep_alive
        self.when_read: Callable[[], None] | None = None
        """To be called soon once what was fed has been read."""
        self._http1 = http1
        self._parts: list[bytes] = []
        self._held = 0
        self._told = False  # that all of it has come
        self._gone = False
        self._when_gone: Callable[[], None] | None = None
        self._waiting: asyncio.Future[None] | None = None
        self._chunked = False
        self._left: int | None = None  # of the answer's body, where its head says how long that is
        self._bodiless = False

    def scope(self) -> Scope:
        """As small as it may be: it lives as long as the answer."""
        head = self.head
        path, _, query = head.target.partition(b"?")
        text = path.decode("ascii")
        return {
            "type": "http",
            "http_version": head.version,
            "asgi": _ASGI,
            "method": head.method,
            "path": unquote(text) if "%" in text else text,
            "raw_path": path,
            "query_string": query,
            "root_path": "",
            "headers": head.headers,
            "state": {CONNECTION: self._http1.connection, CLIENT: self},
        }

    # -- the request --------------------------------------------------------------------------------------

    def feed(self, data: bytes, *, whole: bool) -> None:
        """More of the body."""
        self.whole = whole
        if data:
            self._parts.append(data)
            self._held += len(data)
        self._wake()

    @property
    def is_full(self) -> bool:
        """Is more to be fed only once this has been read?"""
        return self._held > _HELD

    def hung_up(self) -> None:
        """Its client has gone."""
        self._gone = True
        self._wake()
        if (told := self._when_gone) is not None:
            self._when_gone = None
            told()

    def _wake(self) -> None:
        if (waiting := self._waiting) is not None:
            self._waiting = None
            if not waiting.done():
                waiting.set_result(None)

    def here(self) -> Message | None:
        if not (self._parts or (self.whole and not self._told)):
            return _GONE if self._gone or self.over else None
        parts, self._parts, self._held = self._parts, [], 0
        self._told = self.whole
        if (call := self.when_read) is not None:
            self.when_read = None
            asyncio.get_running_loop().call_soon(call)
        body = parts[0] if len(parts) == 1 else b"".join(parts)
        return {"type": "http.request", "body": body, "more_body": not self.whole}

    def when_gone(self, call: Callable[[], None] | None) -> None:
        if call is not None and (self._gone or self.over):
            call()
        else:
            self._when_gone = call

    async def receive(self) -> Message:
        while (message := self.here()) is None:
            if self._waiting is None:
                self._waiting = asyncio.get_running_loop().create_future()
            await asyncio.shield(self._waiting)
        return message

    # -- the answer ---------------------------------------------------------------------------------------

    async def send(self, message: Message) -> None:
        """Raises ConnectionCut where the client has gone, or the body is another than its head says, and ValueError
        for what is no answer."""
        if message["type"] == "http.response.start":
            await self._start(int(message["status"]), message.get("headers", []))
            return
        if not self.begun:
            raise ValueError("an answer begins with its head")
        body = message.get("body", b"")
        if body and not self._bodiless:
            await self._body(body)
        if not message.get("more_body", False):
            await self._end()

    async def _start(self, status: int, headers: Headers) -> None:
        if self._gone or self.begun:
            raise ConnectionCut
        if status < 200:  # what follows would be read as the answer, or as a tunnel
            raise ValueError("an answer's status is 200 at least")
        head = self.head
        closes = self._http1.context.draining or not head.keep_alive
        left: int | None = None
        is_dated = False
        lines: Headers = []
        for item in headers:
            name = item[0]
            if name == b"content-length":
                if left is not None or not LENGTH.fullmatch(item[1]):
                    raise ValueError("an answer's length is not one number")
                left = int(item[1])
            elif name == b"date":
                if is_dated:
                    continue
                is_dated = True
            elif name == b"transfer-encoding":
                continue
            elif name == b"connection":
                closes = closes or b"close" in item[1].lower()
                continue
            lines.append(item)
        if not is_dated:
            lines.append(date())
        self._left = left
        self._bodiless = head.method == "HEAD" or status in _NO_BODY
        if left is None and status not in _NO_BODY:
            if head.version == "1.1":
                lines.append((b"transfer-encoding", b"chunked"))
                self._chunked = not self._bodiless
            else:
                closes = True
        if closes:
            lines.append((b"connection", b"close"))
            self.keep_alive = False
        data = answer_head(status, lines)
        self.begun = True
        await self._write(data)

    async def _write(self, data: bytes) -> None:
        connection = self._http1.connection
        connection.write(data)
        if connection.writing_paused:
            await connection.drained()
        if connection.transport.is_closing():
            self._http1.hang_up()  # told of later, the application would be in the midst of what it ends with
            raise ConnectionCut

    async def _body(self, data: bytes) -> None:
        if self._gone or self.over:
            raise ConnectionCut
        if self._left is not None:
            self._left -= len(data)
            if self._left < 0:
                raise ConnectionCut
        account = self._http1.connection.account
        account.add(len(data))
        try:
            for at in range(0, len(data), SLICE):
                part = data[at : at + SLICE] if len(data) > SLICE else data
                await self._write(b"%x\r\n%b\r\n" % (len(part), part) if self._chunked else part)
        finally:
            account.remove(len(data))

    async def _end(self) -> None:
        if self.over:
            return
        if self._gone or (self._left and not self._bodiless):
            raise ConnectionCut
        if self._http1.context.draining:
            self._http1.connection.cork()
        if self._chunked:
            await self._write(b"0\r\n\r\n")
        self._http1.answered(self)

    def close(self) -> None:
        """Its answer has come to its end, or never will."""
        self.over = True
        self._when_gone = None
        self._wake()
