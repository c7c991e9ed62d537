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

from relay.http.contract import CLIENT, ConnectionCut
from relay.http.dates import dated
from relay.http.heads import LENGTH, Head, answer_head
from relay.protocol.headers import Headers

if TYPE_CHECKING:
    from relay.http.http1 import Http1

# Of a body that nobody reads; the connection is not read on then.
_HELD = 64 * 1024
# The most of a body that is handed to a connection before it has taken what came before.
SLICE = 64 * 1024
_NO_BODY = (204, 304)
_GONE: Message = {"type": "http.disconnect"}


class Cycle:
    """A request in progress. `whole`: all of it is here. `begun` and `over`: its answer's head, and its end, were sent.
    `keep_alive`: another request may follow on the connection."""

    def __init__(self, connection: Http1, head: Head) -> None:
        self.head = head
        self.whole = head.length == 0
        self.begun = self.over = False
        self.keep_alive = head.keep_alive
        self._connection = connection
        self._parts: list[bytes] = []
        self._held = 0
        self._told = False  # that all of it has come
        self._gone = False
        self._when_gone: Callable[[], None] | None = None
        self._waiting: asyncio.Future[None] | None = None
        self._room: asyncio.Future[None] | None = None
        self._chunked = False
        self._left: int | None = None  # of the answer's body, where its head says how long that is
        self._bodiless = False

    def scope(self) -> Scope:
        head, connection = self.head, self._connection
        path, _, query = head.target.partition(b"?")
        text = path.decode("ascii")
        return {
            "type": "http",
            "http_version": head.version,
            "asgi": {"spec_version": "2.1", "version": "3.0"},
            "method": head.method,
            "scheme": "http",
            "path": unquote(text) if "%" in text else text,
            "raw_path": path,
            "query_string": query,
            "root_path": "",
            "headers": head.headers,
            "client": connection.client,
            "server": connection.server,
            "state": {**connection.connection_state, CLIENT: self},
            "extensions": {},
        }

    # -- the request --------------------------------------------------------------------------------------

    def feed(self, data: bytes, *, whole: bool) -> None:
        """More of the body."""
        self.whole = whole
        if data:
            self._parts.append(data)
            self._held += len(data)
        self._wake()

    async def room(self) -> None:
        """Returns when what was fed has been read, or nobody will read it."""
        while self._held > _HELD and not (self.over or self._gone):
            self._room = asyncio.get_running_loop().create_future()
            await self._room

    def hung_up(self) -> None:
        """Its client has gone."""
        self._gone = True
        self._let_go()
        if (told := self._when_gone) is not None:
            self._when_gone = None
            told()

    def _let_go(self) -> None:
        self._wake()
        if (room := self._room) is not None:
            self._room = None
            if not room.done():
                room.set_result(None)

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
        if (room := self._room) is not None:
            self._room = None
            if not room.done():
                room.set_result(None)
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
        closes = self._connection.closes or not head.keep_alive
        left: int | None = None
        lines: Headers = []
        for item in dated(headers):
            name = item[0]
            if name == b"content-length":
                if left is not None or not LENGTH.fullmatch(item[1]):
                    raise ValueError("an answer's length is not one number")
                left = int(item[1])
            elif name == b"transfer-encoding":
                continue
            elif name == b"connection":
                closes = closes or b"close" in item[1].lower()
                continue
            lines.append(item)
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
        await self._connection.write(data)
        if self._gone:
            raise ConnectionCut

    async def _body(self, data: bytes) -> None:
        if self._left is not None:
            self._left -= len(data)
            if self._left < 0:
                raise ConnectionCut
        connection = self._connection
        with connection.account.holding(len(data)):
            for at in range(0, len(data), SLICE):
                if self._gone or self.over:
                    raise ConnectionCut
                part = data[at : at + SLICE] if len(data) > SLICE else data
                await connection.write(b"%x\r\n%b\r\n" % (len(part), part) if self._chunked else part)
                if self._gone:
                    raise ConnectionCut

    async def _end(self) -> None:
        if self.over:
            return
        if self._gone or (self._left and not self._bodiless):
            raise ConnectionCut
        await self._connection.answered(self, b"0\r\n\r\n" if self._chunked else b"")

    def close(self) -> None:
        """Its answer has come to its end, or never will."""
        self.over = True
        self._when_gone = None
        self._let_go()
