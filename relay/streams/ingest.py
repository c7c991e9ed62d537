"""What a producer takes in: an upstream's bytes as they arrive, to the end of its stream, however it ends.

All of it happens inside the read of the upstream's connection; `finished` is what the producer's task waits for.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Protocol

import httpx

from relay.config import StreamSettings, Timeouts
from relay.protocol import sse
from relay.protocol.dialect import DONE, DONE_MAY_FOLLOW, FAILED, HIDDEN, KEEP_ALIVE, TERMINAL, TOKEN, Watch
from relay.protocol.outcomes import NEW_ANSWER, Cause, Ending, Outcome, StreamFailure
from relay.protocol.text_delta import TextDeltaTemplate
from relay.upstream.client import Body
from relay.upstream.connections import READ_FIRST

# How long an upstream may hold its connection open after its terminal event: for a [DONE] that may follow,
# and so that the connection can be used again.
LINGER_SECONDS = 2.0


class EventSink(Protocol):
    """Makes frames of events. What it raises ends the stream."""

    def append(self, block: bytes) -> None:
        """The next event: its lines and its blank line."""

    def token(self) -> None:
        """The last event has a token."""

    def publish(self) -> None:
        """That is all for now."""


class UpstreamIngest:
    """Reads one upstream's body, and hands its events to a sink.

    `finished` gives the stream's outcome once all its events are in, or raises StreamFailure. `ended_upstream` is done
    when the body is. `terminal` is how the upstream's own terminal event ended the stream. `paused` is True while the
    upstream is made to wait. `asked` is the loop's time at which the upstream was sent the request.
    """

    def __init__(
        self,
        body: Body,
        watch: Watch,
        settings: StreamSettings,
        timeouts: Timeouts,
        asked: float,
        sink: EventSink,
        on_named: Callable[[str], None],
    ) -> None:
        self.terminal: Outcome | None = None
        self._body = body
        self._watch = watch
        self._sink = sink
        self._on_named = on_named
        self._timeouts = timeouts
        self._parser = sse.Parser(settings.max_event_bytes)
        self._template = TextDeltaTemplate(settings.max_event_bytes)
        self._named = False
        self.paused = False
        self._loop = asyncio.get_running_loop()
        self.finished: asyncio.Future[Outcome] = self._loop.create_future()
        self.ended_upstream: asyncio.Future[None] = self._loop.create_future()
        self._silence: asyncio.TimerHandle | None = None
        self._lingering: asyncio.TimerHandle | None = None
        self._asked = asked
        self._paused_at = 0.0
        self._has_token = False
        # Of bytes that brought an event only the second is kept up to date.
        self._heard = self._event_at = self._loop.time()

    def start(self) -> None:
        self._listen()
        self._body.push_to(self)

    def close(self) -> None:
        """Let go of all that knows it."""
        for timer in (self._silence, self._lingering):
            if timer is not None:
                timer.cancel()
        self._silence = self._lingering = None
        # An exception knows the frames that it came through, and they know this.
        self.finished = self._loop.create_future()
        self.finished.cancel()

    def pause(self, paused: bool) -> None:
        """Let the upstream wait, or go on."""
        if paused != self.paused:
            self.paused = paused
            now = self._loop.time()
            if paused:
                self._paused_at = now
                self._body.pause()
            else:
                self._heard = self._event_at = now
                self._asked += now - self._paused_at
                self._body.resume()

    def _listen(self) -> None:
        """One timer, armed again only when it fires, finds an upstream that has exceeded one of its limits."""
        if self.finished.done():
            return
        due, _ = self._next_limit()
        if self._loop.time() >= due:
            self._silence = self._loop.call_later(READ_FIRST, self._give_up)
        else:
            self._silence = self._loop.call_at(due, self._listen)

    def _give_up(self) -> None:
        due, message = self._next_limit()
        if self._loop.time() < due:
            self._listen()
        elif not self.finished.done():
            self._fail(StreamFailure(Cause.UPSTREAM_TIMEOUT, f"{message} {NEW_ANSWER}"))

    def _next_limit(self) -> tuple[float, str]:
        """When the upstream will have exceeded a limit, and which. Time in which it is made to wait does not count."""
        limits = self._timeouts
        idle, stall, first = limits.upstream_idle_timeout, limits.upstream_stall_timeout, limits.first_token_timeout
        dues = [
            (
                max(self._heard, self._event_at) + idle,
                f"The upstream sent nothing for upstream_idle_timeout ({idle:g} s).",
            ),
            (self._event_at + stall, f"The upstream sent no event for upstream_stall_timeout ({stall:g} s)."),
        ]
        if not self._has_token:
            dues.append((self._asked + first, f"The upstream sent no output within first_token_timeout ({first:g} s)."))
        due, message = min(dues)
        return due + (self._loop.time() - self._paused_at if self.paused else 0.0), message

    def data_received(self, data: bytes) -> None:
        if self.finished.done():
            return
        now = self._loop.time()
        sink = self._sink
        try:
            if self._template.matches(data) and self._parser.idle and self.terminal is None:
                self._event_at = now
                sink.append(data)
                sink.token()
            else:
                self._heard = now
                outcome = self._take(data)
                if outcome is not None:
                    self.finished.set_result(outcome)
                    return
            sink.publish()
        except Exception as error:
            self._fail(error)

    def eof_received(self, error: httpx.TransportError | None) -> None:
        self.ended_upstream.set_result(None)
        if self.finished.done():
            return
        if self.terminal is not None:
            self.finished.set_result(self.terminal)
        elif error is None and self._watch.ended_at_eof():
            self.finished.set_result(Cause.UPSTREAM_ERROR if self._watch.error else Ending.COMPLETED)
        else:
            silent = isinstance(error, httpx.ReadTimeout)
            self._fail(StreamFailure(Cause.UPSTREAM_TIMEOUT if silent else Cause.UPSTREAM_DISCONNECTED))

    def _fail(self, error: Exception) -> None:
        self.finished.set_exception(error)
        self.finished.exception()  # whoever still waits hears it; a task that is being stopped need not

    def _take(self, data: bytes) -> Outcome | None:
        """The events of some more bytes; how the stream ended, once it has. Raises StreamFailure."""
        bits = shown = 0
        for event in self._parser.feed(data):
            if self.terminal is not None and event.data != DONE:
                return self.terminal
            bits = self._watch.see(event)
            if not bits & KEEP_ALIVE:
                self._event_at = self._heard
            if not bits & HIDDEN:
                self._sink.append(sse.encode(event, None))
                shown += 1
            if bits & TOKEN:
                self._sink.token()
                self._has_token = True
            if not self._named and self._watch.response_id is not None:
                self._named = True
                self._on_named(self._watch.response_id)
            if bits & TERMINAL:
                if self.terminal is None:
                    self.terminal = Cause.UPSTREAM_ERROR if bits & FAILED else Ending.COMPLETED
                if not bits & DONE_MAY_FOLLOW:
                    return self.terminal
                if self._lingering is None:
                    self._lingering = self._loop.call_later(LINGER_SECONDS, self._lingered)
        if bits == TOKEN and shown == 1 and self._watch.stateless_deltas and self._parser.idle:
            self._template.learn(data, event)
        return None

    def _lingered(self) -> None:
        if not self.finished.done() and self.terminal is not None:
            self.finished.set_result(self.terminal)
