"""What a producer takes in: an upstream's bytes as they arrive, to the end of its stream, however it ends.

All of it happens inside the read of the upstream's connection; `finished` is what the producer's task waits for.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable

import httpx

from relay.config import StreamSettings, UpstreamSettings
from relay.flags import Flag
from relay.protocol import sse
from relay.protocol.dialect import DONE, Dialect, Watch, split_block
from relay.protocol.ends import (
    DONE_LINE,
    END,
    ENDS,
    ERROR,
    HIDDEN,
    KEEP_ALIVE,
    PART,
    PLAIN,
    TOKEN,
    Act,
    Name,
    State,
    name_of,
)
from relay.protocol.first_event import FirstEvent
from relay.protocol.outcomes import NEW_ANSWER, Cause, Ending, Outcome, StreamFailure
from relay.protocol.sse import Event
from relay.protocol.text_delta import TextDeltaTemplate
from relay.protocol.upstream_error import UpstreamError, read_unframed
from relay.streams.event_sink import EventSink, Replayed
from relay.streams.silence import Silence
from relay.upstream.client import Body

# How long an upstream may hold its connection open after its terminal event: for a [DONE] that may follow,
# and so that the connection can be used again.
LINGER_SECONDS = 2.0


def no_events(said: UpstreamError) -> StreamFailure:
    """How a stream fails whose body was something else, which said this."""
    return StreamFailure(
        Cause.UPSTREAM_MALFORMED,
        f"The upstream answered with an event stream that holds no event: {said.message[:500]} "
        "Check the upstream's base_url, and that it supports streaming for this model.",
        said,
    )


class UpstreamIngest:
    """Reads one upstream's body, and hands its events to a sink.

    `finished` gives the stream's outcome once all its events are in, or raises StreamFailure. `ended_upstream` is set
    when the body is over. `terminal` is how the upstream has ended the stream, as soon as that is in. `paused` is True
    while the upstream is made to wait. `asked` is the loop's time at which the upstream was sent the request.

    Until `open` nothing is taken: `opening` keeps the bytes, and `first` is set when it knows what they begin with,
    the stream is over, or nobody waits for that any longer.
    """

    def __init__(
        self,
        body: Body,
        dialect: Dialect,
        watch: Watch,
        settings: StreamSettings,
        upstream: UpstreamSettings,
        sink: EventSink,
        on_named: Callable[[str], None],
        *,
        asked: float,
        request_id: str,
    ) -> None:
        self.first, self.ended_upstream = Flag(), Flag()
        self.terminal: Outcome | None = None
        self.opening: FirstEvent | None = FirstEvent(dialect, settings.max_event_bytes)
        self.body = body
        self._dialect = dialect
        self._watch = watch
        self._sink = sink
        self._on_named = on_named
        self._request_id = request_id
        self._forward_malformed = upstream.malformed == "forward"
        self._state = State.NOTHING
        self._plain = -1  # an event whose bits are not above it leaves the stream as it is
        self._error: httpx.TransportError | None = None
        self._unframed: UpstreamError | None = None
        self._silence = Silence(upstream.timeouts(settings).extended(body.grace), asked, self._on_silent)
        self._parser = sse.Parser(settings.max_event_bytes, verbatim=watch.verbatim)
        self._between_events = False  # does the next byte begin an event?
        self._template = TextDeltaTemplate(settings.max_event_bytes)
        self._named = False
        self.paused = False
        self._loop = asyncio.get_running_loop()
        self.finished: asyncio.Future[Outcome] = self._loop.create_future()
        self._lingering: asyncio.TimerHandle | None = None

    def replay(self, frames: Iterable[bytes]) -> None:
        """Before `start`: these events are in the sink already. The stream stands where they leave it."""
        sink, self._sink = self._sink, Replayed()
        try:
            for frame in frames:
                if (outcome := self._take(frame)) is not None:
                    self.terminal = outcome
                    self.finished.set_result(outcome)
                    break
        except Exception as error:
            self._fail(error)
        finally:
            self._sink = sink

    @property
    def has_token(self) -> bool:
        return self._silence.has_token

    def start(self) -> None:
        self._silence.listen()
        self.body.push_to(self)

    def open(self) -> None:
        """The stream is there: take what has come, and from now on what comes."""
        opening, self.opening = self.opening, None
        if opening is None:
            return
        self._silence.pause(False)
        self.pause(False)
        if opening.data:
            self.data_received(opening.data)
        if opening.ended and not self.finished.done():
            self._end(self._error)

    def close(self) -> None:
        """Let go of all that knows it."""
        self._silence.close()
        if self._lingering is not None:
            self._lingering.cancel()
            self._lingering = None
        # An exception knows the frames that it came through, and they know this.
        self.finished = self._loop.create_future()
        self.finished.cancel()

    def pause(self, paused: bool) -> None:
        """Let the upstream wait, or go on."""
        if paused != self.paused:
            self.paused = paused
            self._silence.pause(paused)
            if paused:
                self.body.pause()
            else:
                self.body.resume()

    def _on_silent(self, message: str) -> None:
        if not self.finished.done():
            self._stop(Name.SILENCE, f"{message} {NEW_ANSWER}")

    def data_received(self, data: bytes) -> None:
        if self.finished.done():
            return
        now = self._loop.time()
        sink = self._sink
        try:
            if self._between_events and self._template.matches(data):
                self._silence.event_at = now
                sink.append(data, True)
            elif self.opening is not None:
                self._silence.heard = now
                self._keep(self.opening, data)
                return
            else:
                self._silence.heard = now
                if (outcome := self._take(data)) is not None:
                    self._finish(outcome)
                    return
            sink.publish()
        except Exception as error:
            self._fail(error)

    def _keep(self, opening: FirstEvent, data: bytes) -> None:
        """Bytes that come before `open`: when it is known what they begin with, more of them have to wait."""
        if not opening.feed(data):
            return
        if self.first.is_set:
            self.pause(True)
        else:
            self._know_first()

    def _know_first(self) -> None:
        """From now on it is not the upstream that is waited for."""
        self._silence.pause(True)
        self.first.set()

    def eof_received(self, error: httpx.TransportError | None) -> None:
        self.ended_upstream.set()
        if self.finished.done():
            return
        if self.opening is not None:
            self.opening.end()
            self._error = error
            if not self.first.is_set:
                self._know_first()
        else:
            self._end(error)

    def _end(self, error: httpx.TransportError | None) -> None:
        """The body has ended: what it says of the stream, with the event that lacks its blank line."""
        if self._state is State.NOTHING:
            self._unframed = read_unframed(self._parser.held)
        uncertain = self._watch.verbatim and self._parser.incomplete and self.body.ends_with_connection
        event = self._parser.rest()
        if event is not None and (error is None or not self._watch.verbatim):
            try:
                outcome = self._take_last(event, uncertain)
            except StreamFailure as failure:
                self._fail(failure)
                return
            if self.finished.done():
                return
            if outcome is not None:
                self._watch.end_missing = True
                self._finish(outcome)
                return
        silent = isinstance(error, httpx.ReadTimeout)
        self._stop(Name.CLEAN_END if error is None else Name.SILENCE if silent else Name.CUT)

    def _stop(self, name: Name, message: str | None = None) -> None:
        """The upstream sends no more."""
        cell = ENDS[self._watch.grammar][self._state][name]
        if cell is Act.TIMED_OUT:
            self._fail(StreamFailure(Cause.UPSTREAM_TIMEOUT, message))
        elif cell is Act.CUT_OFF and (said := self._unframed) is not None:
            self._fail(no_events(said))
        elif cell is Act.CUT_OFF:
            self._fail(StreamFailure(Cause.UPSTREAM_DISCONNECTED))
        else:
            self._finish(self._closed(cell))

    def _closed(self, cell: Act | State) -> Outcome:
        if cell is Act.WHOLE:
            self._watch.end_missing = True
        if cell is Act.WHOLE or cell is Act.COMPLETE:
            return Ending.COMPLETED
        if cell is Act.FAIL:
            return Cause.UPSTREAM_ERROR
        assert self.terminal is not None
        return self.terminal

    def _finish(self, outcome: Outcome) -> None:
        """The upstream has ended its stream; what it has left out of the end is added."""
        try:
            self._add(self._watch.left_out(self._request_id))
        except StreamFailure as failure:
            self._fail(failure)
        else:
            self.terminal = outcome
            self.finished.set_result(outcome)
            self.first.set()

    def _add(self, events: list[Event]) -> None:
        for event in events:
            self._sink.append(sse.encode(event, None))

    def _fail(self, error: Exception) -> None:
        self.finished.set_exception(error)
        self.finished.exception()  # whoever still waits hears it; a task that is being stopped need not
        self.first.set()

    def _take(self, data: bytes) -> Outcome | None:
        """The events of some more bytes; how the stream ended, once it has. Raises StreamFailure."""
        bits = shown = 0
        silence = self._silence
        for event in self._parser.feed(data):
            try:
                bits = self._watch.see(event)
            except StreamFailure as failure:
                bits = 0
                silence.event_at = silence.heard
                if (outcome := self._take_malformed(event, failure)) is not None:
                    return outcome
                continue
            if bits > self._plain:
                if not bits & KEEP_ALIVE:
                    silence.event_at = silence.heard
                if (outcome := self._step(event, bits)) is not None:
                    return outcome
            else:
                silence.event_at = silence.heard
                if not bits & HIDDEN:
                    self._sink.append(sse.encode(event, None), bits & TOKEN != 0)
                    shown += 1
            if bits & TOKEN:
                silence.has_token = True
            if not self._named and self._watch.response_id is not None:
                self._named = True
                self._on_named(self._watch.response_id)
        self._between_events = self._parser.idle
        if bits | PART == TOKEN | PART and shown == 1 and self._watch.stateless_deltas and self._between_events:
            self._template.learn(data, event)
        return None

    def _step(self, event: Event, bits: int) -> Outcome | None:
        """What the table makes of an event; how the stream ended, once it has. Raises StreamFailure."""
        cell = ENDS[self._watch.grammar][self._state][name_of(bits)]
        if cell is Act.DROP:
            return None
        if cell is Act.CLOSE or cell is Act.WHOLE:
            return self._closed(cell)
        if cell is Act.CUT_OFF:
            raise StreamFailure(Cause.UPSTREAM_DISCONNECTED)
        if bits & ERROR and not self._watch.readable:
            event = self._spell()
        elif bits & DONE_LINE:
            self._add(self._watch.left_out(self._request_id))
            event = Event(b"", DONE)
        if not bits & HIDDEN:
            self._sink.append(sse.encode(event, None), bits & TOKEN != 0)
        if cell is Act.COMPLETE:
            return Ending.COMPLETED
        if cell is Act.FAIL:
            return Cause.UPSTREAM_ERROR
        assert isinstance(cell, State)
        if cell is not self._state:
            self._state = cell
            self._plain = PLAIN if cell is State.BEGUN else -1
            self._template.forget()
        if self.terminal is None and cell in (State.FAILED, State.OVER):
            self.terminal = Cause.UPSTREAM_ERROR if cell is State.FAILED else Ending.COMPLETED
            self._lingering = self._loop.call_later(LINGER_SECONDS, self._lingered)
        return None

    def _spell(self) -> Event:
        """The upstream's last error in the form that clients of the API can read."""
        watch, error = self._watch, self._watch.error
        assert error is not None
        code = error.code or Cause.UPSTREAM_ERROR.value
        spoken = watch.format or self._dialect
        event = spoken.error_events(
            code, error.describe(), watch.last_sequence, self._request_id, kind=error.type, response=watch.response
        )[0]
        watch.see(event)
        watch.error = error
        return event

    def _take_malformed(self, event: Event, failure: StreamFailure) -> Outcome | None:
        """Several events that share a block are taken one by one; what is no event of the API is forwarded as it is."""
        if self.terminal is not None:
            return self.terminal
        parts = split_block(event)
        if not parts:
            if not self._forward_malformed:
                raise failure
            self._watch.malformed += 1
            self._sink.append(sse.encode(event, None))
        return self._take_each(parts)

    def _take_each(self, parts: list[Event]) -> Outcome | None:
        for part in parts:
            bits = self._watch.see(part)
            if (outcome := self._step(part, bits)) is not None:
                return outcome
            if bits & TOKEN:
                self._silence.has_token = True
        return None

    def _take_last(self, event: Event, uncertain: bool) -> Outcome | None:
        """An event without its blank line, or several; half of one is none, and a cut where nothing says that the body
        was whole (`uncertain`)."""
        try:
            bits = self._watch.see(event)
        except StreamFailure:
            return self._take_each(split_block(event, cut=True))
        if uncertain and not bits & (END | DONE_LINE):
            self._stop(Name.CUT)
            return None
        outcome = self._step(event, bits)
        self._watch.end_missing = self._watch.end_missing or self._state not in (State.NOTHING, State.BEGUN)
        return outcome

    def _lingered(self) -> None:
        if not self.finished.done() and self.terminal is not None:
            self._finish(self.terminal)
