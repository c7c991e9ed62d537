"""One request and its answer, on bare ASGI.

Starlette routes; its middlewares and response classes wrap every `send` and are kept off the stream's way.
Whatever way it ends, nothing of it is left: a refused request's body is read to its end (within bounds), because
a client that is still sending would see a reset instead of the answer, and because the server waits for
room in the request's queue before it can be done with the connection.
"""

from __future__ import annotations

import asyncio
import os
import re
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from typing import Any, TypeVar

from starlette.types import Message, Receive, Scope, Send

from relay.api.bodies import SLOW, Bodies, Charge
from relay.api.json_body import JsonBody, too_large
from relay.api.presence import Presence
from relay.auth.gate import Caller
from relay.http.contract import (
    CLIENT,
    CONNECTION,
    Connection,
    DirectWriter,
)
from relay.protocol import codings
from relay.protocol import headers as rules
from relay.protocol.apis import BY_PATH, of_path
from relay.protocol.cors import Cors
from relay.protocol.dialect import JsonObject
from relay.protocol.errors import (
    ApiError,
    BadRequest,
    BodiesFull,
    HeadersTooLarge,
    MethodNotAllowed,
    RequestTimeout,
    UpgradeRequired,
)
from relay.protocol.headers import Headers
from relay.protocol.json_scan import Layout
from relay.tracing.spans import ReaderSpan

_T = TypeVar("_T")

_NO_LAYOUT = Layout()
_DRAIN_SECONDS = 5.0
_DRAIN_BYTES = 256 << 20

# Under a server that is not the relay's own.
_READ_TIMEOUT = 30.0
# A body may come as slowly as this, in bytes a second; slower ones are held open for their own sake.
_SLOWEST_BODY = 1024
_METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")
# Visible ASCII. A target with a first segment `%2f` would go on where the upstream's host ends.
_TARGET = re.compile(r"/[\x21-\x22\x24-\x7e]*")
_QUERY = re.compile(r"[\x21-\x22\x24-\x7e]*")


class ClientGone(Exception):
    """The client hung up before its answer."""


def _yes() -> bool:
    return True


class Exchange:
    """A request in progress. `dialect` is that of its path, in which refusals are spelled."""

    def __init__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.scope = scope
        self.method: str = scope["method"]
        self.take_headers(list(scope["headers"]))
        self.target: str = scope["raw_path"].decode("latin-1")
        self.query: str = scope["query_string"].decode("latin-1")
        self.dialect = of_path(scope["path"])
        self.request_id = rules.request_id(self.named.get(b"x-request-id")) or f"req_{os.urandom(12).hex()}"
        self.received = time.monotonic()
        """When the last byte of the request was there, once `body_read`."""
        self.caller: Caller
        """Who asks: set at the gate, where the path has one."""
        self.returning: ReaderSpan | None = None
        """The span of one who comes to a stream that is there, from `told.reader_came` on."""
        self.rest: Callable[[], Awaitable[None]] | None = None
        """What is left to be done, however long it takes, once the handler has let go of all that it needed."""
        self.started = False
        self.body_read = False
        self.too_slow: RequestTimeout | None = None
        self.answer_headers: Headers = []
        """What every answer to this request carries."""
        self.own_headers: Headers = []  # `Cors.allow_own`, on the path of an application
        self.charge: Charge | None = None
        self.layout = _NO_LAYOUT  # of a body that was read as `json`
        self._receive = receive
        self._send = send
        self._waited = 0.0
        self._came = 0  # of the body, in bytes
        state = scope.get("state", {})
        self.presence = Presence(state.get(CLIENT), receive)
        self._connection: Connection | None = state.get(CONNECTION)

    @property
    def gone(self) -> bool:
        """Has the client hung up, for all that was read so far?"""
        return self.presence.gone

    def take_headers(self, headers: Headers) -> None:
        """These stand for the client's own from now on; neither they nor `named` are changed."""
        self.headers = headers
        self.named: dict[bytes, bytes] = {}
        """The same by name; several of one are joined with `, ` (RFC 9110, section 5.3)."""
        for name, value in headers:
            self.named[name] = self.named[name] + b", " + value if name in self.named else value

    def forget_head(self) -> None:
        """The headers are looked at no more: a stream may live for hours, and an SDK sends some kilobytes of them."""
        if isinstance(self.scope["headers"], list):  # the server has the same one
            self.scope["headers"].clear()
        self.take_headers([])
        self.layout = _NO_LAYOUT

    def header(self, name: bytes) -> str | None:
        value = self.named.get(name)
        return None if value is None else value.decode("latin-1")

    def has_body(self) -> bool:
        """Whether a body may follow the head. Over HTTP/2 none of its headers has to say so (RFC 9113, section 8.1)."""
        length = self.header(b"content-length")
        if length is not None:
            return length != "0"
        if self.header(b"transfer-encoding") is not None:
            return True
        return self.scope["http_version"] >= "2" and self.method in ("POST", "PUT", "PATCH")

    def check_head(self) -> None:
        """Raises HeadersTooLarge, BadRequest, MethodNotAllowed, UpgradeRequired."""
        if len(b"".join(map(b"".join, self.headers))) > rules.MAX_HEADER_BYTES:
            raise HeadersTooLarge(
                f"The request's headers are larger than {rules.MAX_HEADER_BYTES} bytes. Send smaller ones."
            )
        known = self.target in BY_PATH and not self.query
        if not known and not (_TARGET.fullmatch(self.target) and _QUERY.fullmatch(self.query)):
            raise BadRequest("The request's target is not a path and query of visible ASCII. Send it in that form.")
        # TRACE would send the relay's own key back to whoever asks.
        if self.method not in _METHODS:
            raise MethodNotAllowed(f"Use {', '.join(_METHODS)}.", headers={"allow": ", ".join(_METHODS)})
        if self.scope["http_version"] < "2" and b"websocket" in self.named.get(b"upgrade", b"").lower():
            raise UpgradeRequired
        if known:
            return
        # Some upstreams' servers take a parameter off (`..;x`) before they resolve a segment.
        plain = self.target.lower().replace("%2e", ".").replace("%3b", ";")
        segments = [segment.partition(";")[0] for segment in re.split(r"[/\\]|%2f|%5c", plain)]
        if ".." in segments or "." in segments or "" in segments[1:-1]:
            raise BadRequest("The path has empty or dot segments. Send it in its plain form.")

    # -- the request --------------------------------------------------------------------------------------

    async def chunks(self, limit: int | None = None) -> AsyncIterator[bytes]:
        """The body as it arrives. Raises ClientGone, ContentTooLarge, RequestTimeout."""
        while not self.body_read:
            if chunk := await self.chunk(limit):
                yield chunk

    async def chunk(self, limit: int | None = None) -> bytes:
        """The next part of the body, after which it may be `body_read`. Raises as `chunks` does."""
        message = self.presence.message() or await self._next_message(self._came)
        if message["type"] != "http.request":
            self.body_read = True
            raise ClientGone
        if not message.get("more_body", False):
            self.body_read = True
            self.received = time.monotonic()
        chunk: bytes = message.get("body", b"")
        self._came += len(chunk)
        if limit is not None and self._came > limit:
            raise too_large(limit)
        return chunk

    async def _next_message(self, total: int) -> Message:
        """Waits no longer than a client needs that keeps the slowest pace."""
        timeout = _READ_TIMEOUT if self._connection is None else self._connection.read_timeout
        began = time.monotonic()
        try:
            async with asyncio.timeout(timeout + total / _SLOWEST_BODY - self._waited) as clock:
                if self.charge is not None:
                    self.charge.waits(clock)
                return await self._receive()
        except TimeoutError:
            if self.charge is not None and self.charge.evicted:
                raise BodiesFull(SLOW) from None
            self.too_slow = RequestTimeout(
                f"The request body comes too slowly: after {timeout:g} s (limits.read_timeout) it must have come at "
                f"{_SLOWEST_BODY} bytes a second. Send it again over a better line."
            )
            raise self.too_slow from None
        finally:
            self._waited += time.monotonic() - began
            if self.charge is not None:
                self.charge.came()

    async def json(self, bodies: Bodies, *, empty: bool = False) -> tuple[bytes, JsonObject]:
        """The body without its codings, and the JSON object that it is; with `empty`, no body stands for `{}`. Then
        `layout` says where its members stand, and `charge` is its place among the bodies in flight. What was parsed is
        to be let go of before anything is awaited: it is larger than the body, and not charged. Raises BadRequest,
        BodiesFull, ContentTooLarge, UnsupportedContentEncoding, ClientGone."""
        coded = self.header(b"content-encoding")
        if coded is not None:
            self.take_headers([item for item in self.headers if item[0] != b"content-encoding"])
        checked = self.caller.is_checked
        if checked:  # as a form, or in another charset, it would name other things upstream
            others = (item for item in self.headers if item[0] != b"content-type")
            self.take_headers([*others, (b"content-type", b"application/json")])
        told = self.named.get(b"content-length", b"")
        length = int(told) if told.isdigit() else 0
        if length > bodies.limit:
            raise too_large(bodies.limit)
        self.charge = bodies.open(self.caller.identity, length)
        body = JsonBody(bodies, self.charge, codings.of_header(coded), counted=checked)
        try:
            while not self.body_read:
                if chunk := await self.chunk(bodies.limit):
                    await body.feed(chunk)
            self.charge.coming = False
            raw, parsed, self.layout = await body.finish(empty=empty)
        except BaseException:
            body.let_go()
            raise
        return raw, parsed

    def take_charge(self) -> Charge | None:
        """The body's place is another's to give back from now on."""
        charge, self.charge = self.charge, None
        return charge

    async def discard_body(self) -> None:
        """Read what is left of the body and forget it, within bounds. Raises ClientGone."""
        total = 0
        async for chunk in self.chunks():
            total += len(chunk)
            if total > _DRAIN_BYTES:
                return

    async def unless_gone(self, work: Coroutine[Any, Any, _T]) -> _T:
        """What `work` returns. Where its client hangs up first, the work is cancelled. Raises ConnectionCut then.

        Before the body has been read nobody else may read the connection: then the work is awaited as it is.
        """
        return await (self.presence.unless_gone(work) if self.body_read else work)

    # -- the answer ---------------------------------------------------------------------------------------

    async def start(self, status: int, headers: Headers) -> None:
        self.started = True
        if self.answer_headers:
            names = {name for name, _ in self.answer_headers}
            kept = (item for item in headers if item[0] not in names and item[0][:15] != b"access-control-")
            headers = [*kept, *self.answer_headers]
        await self._send({"type": "http.response.start", "status": status, "headers": headers})

    def sender(self) -> Callable[[bytes], Awaitable[None]]:
        """The server's own `send` for body parts, with nothing in between."""
        send = self._send

        async def part(data: bytes) -> None:
            await send({"type": "http.response.body", "body": data, "more_body": True})

        return part

    def direct(self) -> DirectWriter | None:
        """The connection itself, for the chunks of this answer's body; None where the server keeps it."""
        chunked = self.scope["http_version"] == "1.1" and self.method != "HEAD"
        return self._connection.direct if chunked and self._connection is not None else None

    def when_half_closed(self, probe: Callable[[], None] | None) -> None:
        """What sends something harmless into this answer: it tells a client that waits from one that has gone."""
        if self._connection is not None and self.scope["http_version"] < "2":
            self._connection.probe = probe

    def taken(self) -> Callable[[], bool | None]:
        """To be called at this answer's end: tells whether its client has got all of it, None as long as that cannot be
        said."""
        return self._connection.has_taken if self._connection is not None and self.scope["http_version"] < "2" else _yes

    def unheard(self) -> float:
        """For how many seconds the client's machine has not answered what was sent to it; 0 where that is not known."""
        return 0.0 if self._connection is None else self._connection.unheard()

    @property
    def given_up(self) -> bool:
        """Has the server ended this connection because its client took nothing?"""
        return self._connection is not None and self._connection.given_up

    def abort(self) -> None:
        """Give up a client that takes nothing: what is queued for it would keep the connection for ever. Over
        HTTP/2 the other streams of the connection may be well, and only this one is cut."""
        if self._connection is not None and self.scope["http_version"] < "2":
            self._connection.abort()

    async def end(self) -> None:
        await self._send({"type": "http.response.body", "body": b"", "more_body": False})

    async def answer(self, status: int, body: bytes, headers: Headers | None = None) -> None:
        """A whole answer. A body of 0 bytes has no content type."""
        head: Headers = [(b"content-length", b"%d" % len(body)), *Cors.of_own(headers or [], self.own_headers)]
        if body:
            head.append((b"content-type", b"application/json"))
        if status == 204:
            head = head[1:]
        unread = not self.body_read and self.method not in ("GET", "HEAD", "DELETE")
        if unread and self.scope["http_version"] < "2":  # HTTP/2 knows no such header
            head.append((b"connection", b"close"))
        await self.start(status, head)
        if unread:
            await self._send({"type": "http.response.body", "body": body, "more_body": True})
            await self._drain()
            body = b""
        await self._send({"type": "http.response.body", "body": body, "more_body": False})

    async def _drain(self) -> None:
        try:
            async with asyncio.timeout(_DRAIN_SECONDS):
                await self.discard_body()
        except (TimeoutError, ClientGone, RequestTimeout):
            pass

    def id_header(self) -> tuple[bytes, bytes]:
        """The request's id, under the API's own name for it."""
        return (b"request-id" if self.dialect.name == "messages" else b"x-request-id"), self.request_id.encode()

    async def refuse(self, error: ApiError) -> None:
        """An error in the API's own shape."""
        await self.answer(
            error.status,
            self.dialect.error_body(error, self.request_id),
            [self.id_header()] + [(k.encode(), v.encode()) for k, v in error.headers.items()],
        )
