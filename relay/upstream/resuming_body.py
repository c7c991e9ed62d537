"""An upstream's answer over as many connections as it takes: a body that goes on where another broke off.

Promises: what is handed out is whole events, each once and in order, or the end that the first loss would have been;
nothing is generated a second time for it; after `aclose` no task and no connection is left.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import replace

import httpx

from relay.client.events import MAX_REFUSAL_BYTES, MAX_REFUSAL_TIME
from relay.client.resumable_stream import Action, Reason, Reconnect, ResumableStream, Unresumable
from relay.config import Timeouts
from relay.protocol.dialect import Watch
from relay.protocol.errors import ApiError
from relay.protocol.legs import Leg
from relay.upstream.client import Body, Response, body_of
from relay.upstream.decoding import Sink
from relay.upstream.positions import OwnIdsStream
from relay.upstream.reading import READ_FIRST

logger = logging.getLogger(__name__)

# While the upstream is made to wait its silence is looked at this often.
_PAUSED = 1.0
_STOP_SECONDS = 10.0
# An upstream may end each connection after one event, and each event is a reason to ask again at once.
_BETWEEN = 0.25
_LAST_STOPS_SECONDS = 2.0
_STOPPING: set[asyncio.Task[None]] = set()

Ask = Callable[[str], Awaitable[Response]]
"""Asks the upstream for what follows this position. Raises as `UpstreamClient.send` does."""


class _Connection:
    """Takes what one connection brings, for as long as it is the one that counts."""

    __slots__ = ("_owner", "body")

    def __init__(self, owner: ResumingBody, body: Body) -> None:
        self._owner = owner
        self.body = body

    def data_received(self, data: bytes) -> None:
        if self._owner.connection is self:
            self._owner.on_data(data)

    def eof_received(self, error: httpx.TransportError | None) -> None:
        if self._owner.connection is self:
            self._owner.on_end(error)


class ResumingBody(Body):
    """`body` is that of the first answer, None where this goes on with what another replica has begun, and `stream`
    what is known of it; `silence` says, of an answer's headers, for how many seconds its connection may bring nothing
    at all, `timeouts` are the upstream's. `ask` and `stop` send requests: for the rest, and, unless it is None, that
    nobody wants it; `on_result` hears of each loss whether it was gone on, `on_over`, once or more often, that no more
    is asked for."""

    def __init__(
        self,
        body: Body | None,
        stream: ResumableStream,
        ask: Ask,
        stop: Callable[[], Awaitable[None]] | None,
        *,
        silence: Callable[[Mapping[str, str]], float],
        headers: Mapping[str, str],
        timeouts: Timeouts,
        on_result: Callable[[bool], None],
        on_over: Callable[[], None],
    ) -> None:
        self.grace = timeouts.upstream_resume
        self.leg: Leg | None = None
        """How another replica can go on with it, None where none can."""
        self.connection: _Connection | None = None if body is None else _Connection(self, body)
        self._stream = stream
        self._ask = ask
        self._stop = stop
        self._on_result = on_result
        self._on_over = on_over
        self._silence_of = silence
        self._silence = silence(headers)
        self._stall = timeouts.upstream_stall_timeout if isinstance(stream, OwnIdsStream) else float("inf")
        self._answer = timeouts.upstream_answer_timeout
        self._sink: Sink | None = None
        self._on_taken: Callable[[int], None] | None = None
        self._loss: list[httpx.TransportError | None] = []
        self._unfinished = b""
        """What the connection that was lost first had brought of an event."""
        self._paused = False
        self._over = self._unwanted = False
        self._heard = self._event_at = self._next_try = 0.0
        self._timer: asyncio.TimerHandle | None = None
        self._task: asyncio.Task[None] | None = None

    # -- a body ---------------------------------------------------------------------------------------------

    def push_to(self, sink: Sink) -> None:
        self._sink = sink
        if self.connection is None:
            self._lose(httpx.ReadError("The relay that read this answer is gone."), None)
        else:
            self._listen(self.connection)

    def pause(self) -> None:
        self._paused = True
        if self.connection is not None:
            self.connection.body.pause()

    def resume(self) -> None:
        self._paused = False
        self._heard = self._event_at = asyncio.get_running_loop().time()
        if self.connection is not None:
            self.connection.body.resume()

    async def __aiter__(self) -> AsyncIterator[bytes]:
        assert self.connection is not None
        async for chunk in self.connection.body:
            yield chunk

    def follow(self, on_taken: Callable[[int], None]) -> None:
        """Tell, now and whenever it may have changed, which number a relay upstream has given to the last event that
        was handed out."""
        if not isinstance(self._stream, OwnIdsStream):
            self._on_taken = on_taken
            on_taken(self._stream.last)

    async def hang_up(self) -> None:
        """Let go of the connection: somebody else goes on with the answer, unless `aclose` follows."""
        task, self._task = self._task, None
        connection, self.connection = self.connection, None
        self._unwanted = self._unwanted or not self._over
        self._over = True
        self._drop_timer()
        self._on_over()
        if task is not None:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
        if connection is not None:
            await connection.body.aclose()

    async def aclose(self) -> None:
        await self.hang_up()
        unwanted, self._unwanted = self._unwanted, False
        if unwanted and self._stop is not None:
            stopping = asyncio.create_task(_quietly(self._stop()))
            _STOPPING.add(stopping)
            stopping.add_done_callback(_STOPPING.discard)

    # -- a connection ---------------------------------------------------------------------------------------

    def _listen(self, connection: _Connection) -> None:
        self._heard = self._event_at = asyncio.get_running_loop().time()
        self._watch_silence()
        connection.body.push_to(connection)
        if self._paused and self.connection is connection:
            connection.body.pause()

    def on_data(self, data: bytes) -> None:
        assert self._sink is not None
        self._heard = asyncio.get_running_loop().time()
        before = self._stream.last_event_id
        try:
            whole = self._stream.feed(data)
            if self._stream.last_event_id != before:
                self._event_at = self._heard
                self._loss.clear()
            if whole:
                self._sink.data_received(whole)
                if self._on_taken is not None:
                    self._on_taken(self._stream.last)
            self._stream.raise_pending()
        except Unresumable as failure:
            if failure.reason is Reason.EVENT_TOO_LARGE:  # who takes it has that bound, too, and says so
                self._sink.data_received(self._stream.unfinished)
            self._give_up(failure)

    def on_end(self, error: httpx.TransportError | None) -> None:
        """The connection that counts has ended."""
        self._lose(error, None if error is None else type(error).__name__)

    def _lose(self, error: httpx.TransportError | None, why: str | None) -> None:
        assert self._sink is not None
        connection, self.connection = self.connection, None
        self._drop_timer()
        if not self._loss:
            self._unfinished = self._stream.unfinished
        self._loss.append(error)
        try:
            action = self._stream.on_disconnect(why)
        except Unresumable as failure:
            self._give_up(failure, connection)
            return
        if not isinstance(action, Reconnect):
            _hang_up(connection)
            self._end(error)
        else:
            self._task = asyncio.create_task(self._come_back(action, connection))

    # -- silence --------------------------------------------------------------------------------------------

    def _due(self) -> float:
        return min(max(self._heard, self._event_at) + self._silence, self._event_at + self._stall)

    def _watch_silence(self) -> None:
        """As `streams.silence`: armed again only when it fires, and once more when it is due."""
        loop = asyncio.get_running_loop()
        if (due := self._due()) == float("inf"):
            return
        if self._paused:
            self._timer = loop.call_later(_PAUSED, self._watch_silence)
        elif loop.time() >= due:
            self._timer = loop.call_later(READ_FIRST, self._on_silence)
        else:
            self._timer = loop.call_at(due, self._watch_silence)

    def _on_silence(self) -> None:
        connection = self.connection
        if connection is None or self._paused or asyncio.get_running_loop().time() < self._due():
            self._watch_silence()
        else:
            self.on_end(httpx.ReadTimeout("The upstream was silent for too long."))

    def _drop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    # -- coming back ----------------------------------------------------------------------------------------

    async def _come_back(self, action: Reconnect | Action, lost: _Connection | None) -> None:
        loop = asyncio.get_running_loop()
        if lost is not None:
            await lost.body.aclose()
        try:
            while isinstance(action, Reconnect):
                await asyncio.sleep(max(action.wait, self._next_try - loop.time()))
                self._next_try = loop.time() + _BETWEEN
                action = await self._try(action.last_event_id or "")
        except Unresumable as failure:
            self._task = None
            self._give_up(failure)
            return
        self._task = None
        if action is Action.END:
            self._end(None)
        elif self.connection is not None:
            self._on_result(True)
            self._listen(self.connection)

    async def _try(self, position: str) -> Reconnect | Action:
        """One request for the rest; `connection` has its body where that is to be read. Raises Unresumable."""
        try:
            async with asyncio.timeout(None if self._answer == float("inf") else self._answer):
                response = await self._ask(position)
        except (ApiError, TimeoutError) as error:
            logger.debug("an upstream's answer that broke off cannot be gone on with yet: %s", error)
            return self._stream.on_request_failed(type(error).__name__)
        body = body_of(response)
        refusal = b"" if response.status_code in (200, 204) else await beginning_of(body)
        try:
            action = self._stream.on_response(response.status_code, response.headers, refusal)
        except BaseException:
            await body.aclose()
            raise
        if action is Action.READ_BODY:
            self._silence = self._silence_of(response.headers)
            self.connection = _Connection(self, body)
        else:
            await body.aclose()
        return action

    def _give_up(self, failure: Unresumable, lost: _Connection | None = None) -> None:
        """It ends as the first loss would have ended it. `lost` may be one that was only silent."""
        logger.info("an upstream's answer broke off and is not gone on with: %s", failure)
        self._on_result(False)
        connection, self.connection = self.connection, None
        _hang_up(lost or connection)
        self._end(self._loss[0] if self._loss else httpx.ReadError(str(failure)))

    def _end(self, error: httpx.TransportError | None) -> None:
        assert self._sink is not None
        self._over = True
        self._drop_timer()
        self._on_over()
        if self._loss and self._unfinished:
            self._sink.data_received(self._unfinished)
        self._sink.eof_received(error)


def leg_of(body: Body, watch: Watch) -> Leg | None:
    """How another replica can go on with an answer that is watched so, None where none can."""
    leg = body.leg if isinstance(body, ResumingBody) else None
    return None if leg is None else replace(leg, choices=watch.choices, hides_usage=watch.hides_usage)


def follow(body: Body, on_taken: Callable[[int], None]) -> None:
    """As the method, of any body."""
    if isinstance(body, ResumingBody):
        body.follow(on_taken)


async def let_go(body: Body, *, goes_on: bool) -> None:
    """Take nothing more of it. Where it may go on elsewhere, a relay upstream is not told that nobody wants it; once
    it may not, let go of it again."""
    await (body.hang_up() if goes_on and isinstance(body, ResumingBody) else body.aclose())


def _hang_up(connection: _Connection | None) -> None:
    if connection is not None:
        closing = asyncio.create_task(connection.body.aclose())
        _STOPPING.add(closing)
        closing.add_done_callback(_STOPPING.discard)


async def beginning_of(body: Body) -> bytes:
    """What a refusal's body begins with: its sender may never end it."""
    found = b""
    try:
        async with asyncio.timeout(MAX_REFUSAL_TIME):
            async for chunk in body:
                found += chunk
                if len(found) > MAX_REFUSAL_BYTES:
                    break
    except (httpx.HTTPError, TimeoutError):
        pass
    return found


async def stopped() -> None:
    """Returns when the upstreams have been told of all that is not wanted, or are not heard within a moment. To be
    called before the process ends."""
    if _STOPPING:
        await asyncio.wait(_STOPPING, timeout=_LAST_STOPS_SECONDS)


async def _quietly(stop: Awaitable[None]) -> None:
    """Whether it is heard or not, the other relay ends what nobody reads."""
    try:
        async with asyncio.timeout(_STOP_SECONDS):
            await stop
    except (ApiError, TimeoutError) as error:
        logger.debug("an upstream was not told that its answer is not wanted: %s", error)
