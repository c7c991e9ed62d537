"""A connection to an upstream as it is read: the heads of answers, and the bytes of their bodies, to who takes them.

aiohttp dials, keeps and closes connections. What comes on them is read here, by llhttp (httptools): aiohttp's own way
of a body was six calls for each event, and a reader, a parser and two kinds of headers for each stream.

Promises: a body that its connection broke off is not whole; nothing that follows an answer is taken for the next one;
what is held of a head, or of what is around a body, is bounded.
"""

from __future__ import annotations

import asyncio
from typing import Any

import aiohttp
from aiohttp.client_proto import ResponseHandler
from aiohttp.http_exceptions import HttpProcessingError
from httptools import HttpParserError, HttpParserUpgrade, HttpResponseParser
from multidict import CIMultiDict, CIMultiDictProxy

from relay.protocol.headers import Headers
from relay.upstream.content import Content
from relay.upstream.decoding import Sink, transport_error

# Of a header with its name. Of what is none of a header and none of a body twice as much is read.
MAX_LINE = 64 * 1024
_MAX_HEADERS = 128
# How long a time-out that is due waits for what has arrived in time and was not read yet.
READ_FIRST = 0.1
# Heads (1xx) before an answer's own. Each puts off its time-out.
_INTERIM = 64


class Head:
    """An answer's head; names are in lower case. aiohttp asks its own answers for the rest."""

    __slots__ = ("code", "raw_headers")
    version = None
    reason = ""
    headers: CIMultiDictProxy[str] = CIMultiDictProxy(CIMultiDict())

    def __init__(self, code: int, raw_headers: Headers) -> None:
        self.code = code
        self.raw_headers = raw_headers


class _Nobody:
    """Takes what belongs to no answer."""

    def data_received(self, data: bytes) -> None:
        pass

    def eof_received(self, error: Any) -> None:
        pass


_NOBODY = _Nobody()


class _Few(list[Any]):
    """In the place of a deque, which holds 700 bytes while it is empty: a connection has one head or none here."""

    __slots__ = ()

    def popleft(self) -> Any:
        return self.pop(0)


class Handler(ResponseHandler):
    """aiohttp's connection, whose time-out begins when the request is sent, with these differences. An upstream that
    takes none of a request is as silent as one that does not answer. A process that was stopped does not take its
    pause for the upstream's: it wakes up to its timers, and what has happened meanwhile is read first. An answer that
    only ever announces itself is none. A body without a length, which ends with its connection, is not whole where
    that broke."""

    # With more names in its dictionary, which aiohttp's have, that is one of its own: 1.3 KiB for each connection.
    __slots__ = (
        *("_answers", "_asking", "_bodiless", "_bounded", "_content", "_expecting", "_fields", "_head", "_interim"),
        *("_sent", "_sink", "_unread", "_whole", "stopped"),
    )

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(loop)
        self._buffer = _Few()  # type: ignore[assignment]
        self._answers: HttpResponseParser | None = None
        self._asking: asyncio.Future[tuple[Head, Content]] | None = None
        self._content: Content | None = None
        self._fields: Headers = []
        self._head: tuple[Head, Content] | None = None  # until the read that brought it is over
        self._sink: Sink = _NOBODY
        self._interim = 0
        self._unread = 0  # bytes since the last one of a body or of a header that ended
        self._sent = self._expecting = self._bodiless = self._bounded = self._whole = self.stopped = False

    # -- a request ------------------------------------------------------------------------------------------

    def set_response_params(
        self, *, read_timeout: float | None = None, skip_payload: bool = False, **others: Any
    ) -> None:
        """An answer is expected next, whose body is left out where `skip_payload` says so."""
        self._sent = False
        self._expecting = True
        self._bodiless = skip_payload
        self._interim = self._unread = 0
        self._read_timeout = read_timeout
        if self._answers is None:
            self._answers = HttpResponseParser(self)
            self._answers.set_dangerous_leniencies(  # aiohttp's for answers
                lenient_headers=True, lenient_optional_cr_before_lf=True, lenient_spaces_after_chunk_size=True
            )
            early, self._tail = self._tail, b""
            if early:
                self.data_received(early)

    def ask(self, request: bytes, seconds: float | None) -> asyncio.Future[tuple[Head, Content]]:
        """Sends a request. Its answer, once its head is there, which may take so many seconds."""
        if self.transport is None:
            raise aiohttp.ServerDisconnectedError
        self._asking = asking = self._loop.create_future()
        self.set_response_params(read_timeout=seconds)
        self.transport.write(request)
        self.start_timeout()
        return asking

    def set_exception(self, error: Any, cause: Any = None) -> None:
        super().set_exception(error) if cause is None else super().set_exception(error, cause)
        asking, self._asking = self._asking, None
        if asking is not None and not asking.done():
            asking.set_exception(error)

    @property
    def should_close(self) -> bool:
        return self._should_close or self._expecting or self._content is not None or self._exception is not None

    def start_timeout(self) -> None:
        self._sent = True
        self._reschedule_timeout()

    def stop_timeout(self) -> None:
        self._drop_timeout()

    def pause_writing(self) -> None:
        super().pause_writing()
        super().start_timeout()

    def resume_writing(self) -> None:
        super().resume_writing()
        if self._sent:
            super().start_timeout()
        else:
            self._drop_timeout()

    def _on_read_timeout(self) -> None:
        self._read_timeout_handle = self._loop.call_later(READ_FIRST, self._time_out)

    def _time_out(self) -> None:
        error = aiohttp.SocketTimeoutError("Timeout on reading data from socket")
        self.set_exception(error)
        self.end(error)

    # -- an answer ------------------------------------------------------------------------------------------

    def data_received(self, data: bytes) -> None:
        parser = self._answers
        if parser is None:
            if not self._should_close:  # else it has failed
                self._tail += data  # some answer before they are asked
            return
        self._unread += len(data)
        try:
            parser.feed_data(data)
            if self._unread > 2 * MAX_LINE:
                raise HttpParserError("what belongs to no body is too long")
        except HttpParserUpgrade:
            pass  # nobody asked for it: its status is refused
        except HttpParserError as error:
            self._refuse(error)
        if self._read_timeout_handle is not None:
            self._reschedule_timeout()
        if self._head is not None:
            self._answer(self._head)
        if self._whole:
            self._whole = False
            self.end(None)

    def _answer(self, answered: tuple[Head, Content]) -> None:
        self._head = None
        asking, self._asking = self._asking, None
        if asking is None:
            self.feed_data(answered, 0)  # type: ignore[arg-type]
        elif not asking.done():
            asking.set_result(answered)

    def _refuse(self, error: HttpParserError) -> None:
        self._answers = None
        self._should_close = True
        if self.transport is not None:
            self.transport.close()
        if self._whole:
            return  # what follows an answer is none of it
        early = self._expecting or self._head is not None
        self.end(aiohttp.ClientPayloadError(f"The body is malformed: {error}"))
        if early:
            self._head = None
            self.set_exception(HttpProcessingError(code=400, message=str(error.__context__ or error)))

    def on_message_begin(self) -> None:
        if not self._expecting:
            raise HttpParserError("something follows the answer")
        self._fields = []
        self._bounded = False

    def on_header(self, name: bytes, value: bytes) -> None:
        """Of a head, or of what may follow a body in chunks."""
        self._unread = 0
        if len(self._fields) == _MAX_HEADERS or len(name) + len(value) > MAX_LINE:
            raise HttpParserError("too many headers, or one that is too long")
        if b"\0" in value and self._expecting:
            raise HttpParserError("a header is no text")
        name = name.lower().rstrip(b" ")  # llhttp reads `Content-Length : 5` (RFC 9112, section 5.1)
        value = value.rstrip(b" \t")
        if name == b"content-length":
            self._bounded = True
        elif name == b"transfer-encoding":
            self._bounded = value.lower().rpartition(b",")[2].strip() == b"chunked"
        self._fields.append((name, value))

    def on_headers_complete(self) -> None:
        assert self._answers is not None
        code = self._answers.get_status_code()
        fields, self._fields = self._fields, []
        if 100 <= code < 200 and code != 101:
            self._interim += 1
            if self._interim > _INTERIM:
                raise HttpParserError("too many interim answers")
            return
        self._expecting = False
        self._drop_timeout()
        if self._bodiless or code < 200 or not self._answers.should_keep_alive():
            self._should_close = True
        self._content = content = Content(self, self._bounded)
        self._sink = _NOBODY if self._bodiless else content
        self._whole = self._bodiless
        self._head = Head(code, fields), content

    def on_body(self, data: bytes) -> None:
        self._unread = 0
        self._sink.data_received(data)

    def on_message_complete(self) -> None:
        self._whole = not self._expecting

    def connection_lost(self, exc: BaseException | None) -> None:
        self._answers = None
        super().connection_lost(exc)
        if (content := self._content) is None:
            return
        if exc is not None:
            self.end(aiohttp.ClientPayloadError(f"The connection broke within a body: {exc!r}"))
        elif content.bounded:
            self.end(aiohttp.ClientPayloadError("The connection ended within a body"))
        else:
            self.end(None)

    def end(self, error: BaseException | None) -> None:
        """The body is whole, or there is no more of it."""
        content, sink = self._content, self._sink
        if content is None:
            return
        self._content, self._sink = None, _NOBODY  # an idle connection would keep a whole stream
        self._drop_timeout()
        self.go_on()
        if error is not None:
            self._should_close = True
        content.end(error)
        sink.eof_received(None if error is None else transport_error(error))

    # -- who takes its body ---------------------------------------------------------------------------------

    def push_to(self, sink: Sink) -> None:
        self._sink = sink
        self._read_timeout = None
        self._drop_timeout()
        self.go_on()

    def hand_to(self, sink: Sink) -> None:
        self._sink = sink

    def stop(self) -> None:
        if not self.stopped:
            self.stopped = True
            if self.is_connected():
                self.transport.pause_reading()  # type: ignore[union-attr]

    def go_on(self) -> None:
        if self.stopped:
            self.stopped = False
            if self.is_connected():
                self.transport.resume_reading()  # type: ignore[union-attr]
