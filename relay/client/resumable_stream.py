"""One relayed stream as its client sees it: fed bytes, ends of connections and answers, it says what to do. No I/O.

    bytes       → whole events to hand out
    cut         → `Reconnect` after a wait, or END
    no answer   → `Reconnect`
    an answer   → READ_BODY, END (nothing was missing), or `Reconnect`

Everything else is `Unresumable`. Each event's id is checked: an event that was already handed out is dropped, and a
stream that is another one, or goes on after a hole, is an error.

An end that the relay tells (an error of its own, a stop) takes no number: its frames have no id but the last, which is
`<stream>.<n>e`. Cut between them, the client comes back at n, is told the end again, and drops the frames that it has
handed out already.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum, StrEnum

from relay.client.decoding import Decoder, DecodingError, can_decode, encoding_of
from relay.client.events import HEARTBEATS, KEY_IN_FLIGHT, Block, EventTooLarge, Splitter, error_code, is_terminal
from relay.client.failure_messages import (
    ADVICE,
    ADVICE_WITHOUT_CODE,
    BUDGET_EXHAUSTED,
    DIFFERENT_AFTER_RESUME,
    EVENT_TOO_LARGE,
    WITHOUT_IDS,
    WRONG_STREAM,
)
from relay.client.policy import STEADY_CONNECTION, Counters, Moment, Policy, RetryBudget, notify, retry_after
from relay.protocol.ids import EventId, is_stream_id, parse_event_id

logger = logging.getLogger("relay.client")

# Frames without an id that a client may have to know again: an end has a few, a stream that goes on without ids many.
_MAX_WITHOUT_ID = 16


class Reason(StrEnum):
    """Why a stream could not go on."""

    GAVE_UP = "gave_up"
    """Tries were used up."""
    TIMED_OUT = "timed_out"
    """Time was used up."""
    REFUSED = "refused"
    """The relay says that the stream cannot be had."""
    WRONG_STREAM = "wrong_stream"
    """Something that is not this stream, or has a hole, has come."""
    WITHOUT_IDS = "without_ids"
    """The stream went on without ids, so nobody can come back to it."""
    EVENT_TOO_LARGE = "event_too_large"
    """An event outgrew `max_event_bytes`."""


class Unresumable(Exception):
    """The stream cannot go on; the message says why and what to do. It holds nothing that a server wrote but a code."""

    def __init__(
        self, message: str, reason: Reason, last_event_id: str, status: int | None = None, code: str | None = None
    ) -> None:
        super().__init__(message)
        self.reason = reason
        self.last_event_id = last_event_id
        self.status = status
        self.code = code


@dataclass(frozen=True, slots=True)
class Reconnect:
    """Wait so many seconds, then send the request again with this `Last-Event-ID`, or as it was where that is None."""

    last_event_id: str | None
    wait: float


class Action(Enum):
    """What to do with the answer to a resume, or at the end of a connection."""

    READ_BODY = "the body of this answer"
    END = "hand out the end"


def resumable_stream_id(status: int, headers: Mapping[str, str]) -> str | None:
    """The id of the resumable stream that this answer begins, None for any other answer."""
    stream = headers.get("relay-stream-id", "")
    resumable = (
        status == 200
        and is_stream_id(stream)
        and headers.get("relay-resumable") == "true"
        and headers.get("content-type", "").startswith("text/event-stream")
    )
    if resumable and not can_decode(encoding_of(headers)):
        logger.warning("stream %s comes in an encoding that cannot be read here: it will not be resumed", stream)
        return None
    return stream if resumable else None


class ResumableStream:
    """`stream` is the stream's id, `last` the number of the last event handed out."""

    def __init__(
        self,
        api: str,
        stream: str,
        policy: Policy,
        *,
        requested_event_id: str | None = None,
        first_number_known: bool = True,
        encoding: str = "identity",
        budget: RetryBudget | None = None,
        counters: Counters | None = None,
        fresh_credentials: bool = False,
    ) -> None:
        """Args:
        api: `chat`, `messages`, `responses`, or `any` where the stream is read by its id.
        stream: the stream's id.
        policy: of the transport.
        requested_event_id: the `Last-Event-ID` of the SDK's own request, if it had one.
        first_number_known: False for a stream whose first event may have any number.
        encoding: the content coding of the first response's body.
        budget: the tries and the time that the first response has left.
        counters: of the transport.
        fresh_credentials: a refused credential is no final answer, for the next request has another.
        """
        start = parse_event_id(requested_event_id or "")
        self.stream = stream
        self.last = start.n if start is not None and start.stream == stream else 0
        self._api = api
        self._policy = policy
        self._budget = budget or RetryBudget(policy)
        self._counters = counters or Counters()
        self._first_number_known = first_number_known
        self._fresh_credentials = fresh_credentials
        self._reconnection_time = 0.0
        self._finished = False
        self._end_received = False
        self._without_id: list[bytes] = []
        """The frames without an id that were handed out after event `last`."""
        self._expected_again: list[bytes] = []
        """Those of them that this connection has still to bring again."""
        self._pending: Unresumable | None = None
        self._last_error: tuple[str, int | None, str | None] = ("", None, None)
        self._counters.count("streams")
        self._begin_connection(encoding)

    @property
    def last_event_id(self) -> str:
        """The position to go on from: the last event, or the end after it, that was handed out."""
        return str(EventId(self.stream, self.last, self._end_received))

    @property
    def unfinished(self) -> bytes:
        """What has come of an event that is not whole."""
        return self._splitter.unfinished

    @property
    def finished(self) -> bool:
        """Has its last event been handed out?"""
        return self._finished

    def feed(self, data: bytes) -> bytes:
        """The whole events that these bytes of the body complete; call `raise_pending` when they are handed out.

        Raises Unresumable where nothing can be handed out any more, and DecodingError.
        """
        whole: list[bytes] = []
        try:
            for piece in self._decoder.feed(data):
                whole.extend(self._shown(block) for block in self._splitter.feed(piece) if self._take(block))
            if self._budget.deadline_passed and not self._finished:
                raise self._gave_up()
        except EventTooLarge:
            message = EVENT_TOO_LARGE.format(self._policy.max_event_bytes)
            self._pending = self._unresumable(message, Reason.EVENT_TOO_LARGE)
        except Unresumable as failure:
            self._pending = failure
        except DecodingError:
            if not whole:
                raise  # else what follows is undecodable, too
        if not whole:
            self.raise_pending()
        return b"".join(whole)

    def _shown(self, block: Block) -> bytes:
        """What is handed out of a block."""
        return block.raw

    def raise_pending(self) -> None:
        """Raises Unresumable where the last bytes ended with something that must not be handed out."""
        if self._pending is not None:
            raise self._pending

    def _take(self, block: Block) -> bool:
        if block.id is not None:
            if not self._is_next(block.id):
                return False
            self._budget.on_event()
        elif block.data is not None and block.type not in HEARTBEATS:
            if not self._is_new(block):
                return False
        elif self._policy.clock() - self._since >= STEADY_CONNECTION:
            self._budget.on_sign_of_life()
        if block.retry is not None:
            self._reconnection_time = block.retry / 1000
        self._finished = self._finished or self._end_received or is_terminal(self._api, block)
        return True

    def _is_next(self, found: EventId) -> bool:
        stream, n, end = found
        if stream != self.stream:
            raise self._wrong_stream(f"An event of another stream ({stream}) came.")
        if not self._first_number_known:
            self._first_number_known, self.last = True, n - (not end)
        if self._end_received or (n <= self.last and not end):
            return False
        if n != self.last + (not end):
            what = "The end after event" if end else "Event"
            raise self._wrong_stream(f"{what} {n} came instead of event {self.last + 1}.")
        if self._expected_again:
            raise self._unresumable(DIFFERENT_AFTER_RESUME, Reason.WITHOUT_IDS)
        self._end_received = end
        self._without_id.clear()
        self.last = n
        return True

    def _is_new(self, block: Block) -> bool:
        """A frame without an id is one of the relay's own end, or its server has no log for it."""
        if not self._expected_again:
            if len(self._without_id) <= _MAX_WITHOUT_ID:
                self._without_id.append(block.raw)
            return True
        if block.raw != self._expected_again.pop(0):
            raise self._unresumable(DIFFERENT_AFTER_RESUME, Reason.WITHOUT_IDS)
        return False

    def on_disconnect(self, why: str | None) -> Reconnect | Action:
        """What to do now that the connection has ended.

        A clean end without a terminal event is asked about at once: a proxy may have made it out of a cut.

        Args:
            why: the name of the error that ended it, None for a clean end.

        Raises Unresumable.
        """
        if self._finished:
            return Action.END
        if self._policy.clock() - self._since >= STEADY_CONNECTION:
            self._budget.end_outage()
        self._splitter = Splitter(self._policy.max_event_bytes)
        self._expected_again = list(self._without_id)
        message = why or "an end without the last event of its API"
        self._counters.count("cuts")
        notify(self._policy.on_cut, self._moment(message))
        if len(self._without_id) > _MAX_WITHOUT_ID:
            raise self._unresumable(WITHOUT_IDS, Reason.WITHOUT_IDS)
        return self._reconnect(0.0, message, at_once=why is None)

    def on_request_failed(self, why: str) -> Reconnect:
        """When to try again after a resume had no response; `why` names the error.

        Raises Unresumable where no try is left.
        """
        return self._reconnect(0.0, why)

    def on_response(self, status: int, headers: Mapping[str, str], body: bytes) -> Reconnect | Action:
        """What to do with the response to a resume.

        Args:
            status: 200 goes on, 204 says that nothing was missing.
            headers: of the response; their names in any case.
            body: what was read of a refusal.

        Raises Unresumable where the relay says that the stream cannot be had, or no try is left.
        """
        if status == 200 and headers.get("content-type", "").startswith("text/html"):
            return self._reconnect(retry_after(headers), "a page instead of the stream", status)
        if status == 200 or status == 204:
            if not self._is_of_stream(status, headers):
                raise self._wrong_stream(f"Answered {status}.", status)
            if status == 204 and self._expected_again:
                raise self._unresumable(DIFFERENT_AFTER_RESUME, Reason.WITHOUT_IDS, status)
            self._counters.count("resumes")
            notify(self._policy.on_resume, self._moment(""))
            self._begin_connection(encoding_of(headers))
            return Action.READ_BODY if status == 200 else Action.END
        code = error_code(body)
        passes = status >= 500 or status in (408, 425, 429) or code in (None, KEY_IN_FLIGHT)
        if passes or (status in (401, 403) and self._fresh_credentials):
            # Without a code it is not the relay's word: ingresses answer such while replicas roll.
            return self._reconnect(retry_after(headers), f"{status} {code or ''}".strip(), status, code)
        message = f"Answered {status} {code}. {ADVICE.get(code or '', ADVICE_WITHOUT_CODE)}"
        raise self._unresumable(message, Reason.REFUSED, status, code)

    def _is_of_stream(self, status: int, headers: Mapping[str, str]) -> bool:
        """Is this, by its head, an answer with this stream?"""
        found = resumable_stream_id(200, headers) if status == 200 else headers.get("relay-stream-id")
        return found == self.stream

    def _begin_connection(self, encoding: str) -> None:
        self._since = self._policy.clock()
        self._splitter = Splitter(self._policy.max_event_bytes)
        self._decoder = Decoder(encoding)

    def _reconnect(
        self, at_least: float, why: str, status: int | None = None, code: str | None = None, *, at_once: bool = False
    ) -> Reconnect:
        self._last_error = (why, status, code)
        budget = self._budget
        wait = budget.next_wait(at_least, reconnection_time=self._reconnection_time, at_once=at_once)
        if wait is None:
            raise self._gave_up()
        self._counters.count("attempts")
        logger.debug(
            "stream %s is to be resumed after event %d in %.2f s (attempt %d): %s",
            self.stream,
            self.last,
            wait,
            budget.attempts,
            why,
        )
        return Reconnect(self.last_event_id if self._first_number_known else None, wait)

    def _gave_up(self) -> Unresumable:
        bound = self._budget.exhausted or "deadline"
        why, status, code = self._last_error
        message = BUDGET_EXHAUSTED[bound].format(
            attempts=self._budget.attempts,
            elapsed=self._budget.elapsed,
            bound=self._policy.most_attempts if bound == "max_attempts" else getattr(self._policy, bound),
            why=f"; the last obstacle: {why}" if why else "",
            last_event_id=self.last_event_id,
        )
        return self._unresumable(message, Reason.GAVE_UP if bound == "max_attempts" else Reason.TIMED_OUT, status, code)

    def _wrong_stream(self, what: str, status: int | None = None) -> Unresumable:
        return self._unresumable(f"{what} {WRONG_STREAM}", Reason.WRONG_STREAM, status)

    def _unresumable(
        self, message: str, reason: Reason, status: int | None = None, code: str | None = None
    ) -> Unresumable:
        self._counters.count("gave_up")
        notify(self._policy.on_gave_up, self._moment(self._last_error[0] or reason.value))
        head = f"The stream {self.stream} could not be resumed after event {self.last}: "
        return Unresumable(head + message, reason, self.last_event_id, status, code)

    def _moment(self, why: str) -> Moment:
        return Moment(self.stream, self.last_event_id, self._budget.attempts, self._budget.elapsed, why)
