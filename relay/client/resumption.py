"""One relayed stream as its client sees it: fed bytes, ends of connections and answers, it says what to do. No I/O.

    bytes       → whole events to hand out
    cut         → `Ask` again after a wait, END, or AS_IT_IS (the stream cannot be resumed)
    no answer   → `Ask`
    an answer   → READ its body, END (nothing was missing), or `Ask`

Everything else is `Unresumable`. Each event's id is checked: an event that was already handed out is dropped, and a
stream that is another one, or goes on behind a hole, is an error.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum

from relay.client.events import Block, Splitter, error_code, is_terminal
from relay.client.policy import Patience, Policy, retry_after
from relay.protocol.ids import is_stream_id, parse_event_id

logger = logging.getLogger("relay.client")

_WHAT_TO_DO = {
    "stream_not_found": "The relay does not have this stream for this credential. Check that all replicas behind the "
    "address share one store; for a new answer, send the request again.",
    "stream_expired": "The relay no longer keeps this stream. Send the request again for a new answer.",
    "position_unknown": "The relay's log has lost what followed. Send the request again for a new answer.",
    "resume_not_supported": "This stream was relayed without a log. Send the request again for a new answer.",
}
_BY_STATUS = {
    401: "The credential is no longer accepted. Renew it and send the request again.",
    403: "The credential is no longer accepted. Renew it and send the request again.",
}
_ANY_OTHER = "Check what stands between this client and the relay, and send the request again for a new answer."
_NOT_THIS_STREAM = (
    "Something that is not this stream has answered a resume. Let POST requests with their Last-Event-ID header, and "
    "answers with their Relay-Stream-Id header, pass between this client and the relay unchanged."
)


class Unresumable(Exception):
    """The stream cannot go on; the message says why and what to do. It holds nothing that a server wrote but a code."""

    def __init__(self, message: str, last_event_id: str, status: int | None = None, code: str | None = None) -> None:
        super().__init__(message)
        self.last_event_id = last_event_id
        self.status = status
        self.code = code


@dataclass(frozen=True, slots=True)
class Ask:
    """Wait so many seconds, then send the request again with this `Last-Event-ID`."""

    last_event_id: str
    wait: float


class Then(Enum):
    READ = "the body of this answer"
    END = "hand out the end"
    AS_IT_IS = "hand out the end or the error of the connection as it is"


def stream_of(status: int, headers: Mapping[str, str]) -> str | None:
    """The id of the resumable stream that this answer begins, None for any other answer."""
    stream = headers.get("relay-stream-id", "")
    resumable = (
        status == 200
        and is_stream_id(stream)
        and headers.get("relay-resumable") == "true"
        and headers.get("content-type", "").startswith("text/event-stream")
        and headers.get("content-encoding", "identity") == "identity"
    )
    return stream if resumable else None


class Resumption:
    """`stream` is the stream's id, `last` the number of the last event handed out."""

    def __init__(self, api: str, stream: str, policy: Policy, *, asked_for: str | None = None) -> None:
        """`asked_for` is the `Last-Event-ID` with which the SDK's own request came, if it did."""
        start = parse_event_id(asked_for or "")
        self.stream = stream
        self.last = start.n if start is not None and start.stream == stream else 0
        self._api = api
        self._patience = Patience(policy)
        self._retry = 0.0
        self._finished = False
        self._without_ids = False
        self._splitter = Splitter()

    @property
    def last_event_id(self) -> str:
        return f"{self.stream}.{self.last}"

    def feed(self, data: bytes) -> bytes:
        """The whole events that these bytes of the body complete. Raises Unresumable."""
        return b"".join(block.raw for block in self._splitter.feed(data) if self._take(block))

    def _take(self, block: Block) -> bool:
        if block.id is not None:
            stream, n = block.id
            if stream != self.stream:
                raise self._unresumable(f"An event of another stream ({stream}) came. {_NOT_THIS_STREAM}")
            if n <= self.last:
                return False
            if n > self.last + 1:
                raise self._unresumable(f"Event {n} came instead of event {self.last + 1}. {_NOT_THIS_STREAM}")
            self.last = n
        elif block.data is not None and block.type != b"ping":
            # The relay's store was away for too long: the stream goes on, but nobody can come back to it.
            self._without_ids = True
        if block.retry is not None:
            self._retry = block.retry / 1000
        self._finished = self._finished or is_terminal(self._api, block)
        self._patience.progress()
        return True

    def cut(self, why: str | None) -> Ask | Then:
        """The connection has ended: cleanly, or by the error named. Raises Unresumable.

        A clean end without a terminal event is asked about at once: a proxy may have made it out of a cut.
        """
        self._splitter = Splitter()
        if self._finished:
            return Then.END
        if self._without_ids:
            return Then.AS_IT_IS
        return self._again(self._retry, why or "an end without the last event of its API", at_once=why is None)

    def unanswered(self, why: str) -> Ask:
        """The relay could not be reached. Raises Unresumable."""
        return self._again(self._retry, why)

    def answered(self, status: int, headers: Mapping[str, str], body: bytes) -> Ask | Then:
        """The answer to a resume; `body` is that of a refusal. Raises Unresumable."""
        if status == 200 or status == 204:
            found = stream_of(200, headers) if status == 200 else headers.get("relay-stream-id")
            if found != self.stream:
                raise self._unresumable(f"Answered {status}. {_NOT_THIS_STREAM}", status)
            self._patience.reached()
            return Then.READ if status == 200 else Then.END
        code = error_code(body)
        if status >= 500 or status in (408, 425, 429):
            return self._again(max(self._retry, retry_after(headers)), f"{status} {code or ''}".strip(), status, code)
        what_to_do = _WHAT_TO_DO.get(code or "") or _BY_STATUS.get(status, _ANY_OTHER)
        raise self._unresumable(f"Answered {status} {code or '(no code of the relay)'}. {what_to_do}", status, code)

    def _again(
        self, at_least: float, why: str, status: int | None = None, code: str | None = None, *, at_once: bool = False
    ) -> Ask:
        patience = self._patience
        wait = patience.another(at_least, at_once=at_once)
        if wait is None:
            raise self._unresumable(
                f"Gave up after {patience.attempts} attempts in {patience.elapsed:.0f} s; the last obstacle: {why}. "
                f"The generation may go on: send the request with Last-Event-ID {self.last_event_id} to read on, "
                "or raise max_attempts and max_elapsed of the transport's policy.",
                status,
                code,
            )
        logger.debug(
            "stream %s is to be resumed after event %d in %.2f s (attempt %d): %s",
            self.stream,
            self.last,
            wait,
            patience.attempts,
            why,
        )
        return Ask(self.last_event_id, wait)

    def _unresumable(self, message: str, status: int | None = None, code: str | None = None) -> Unresumable:
        head = f"The stream {self.stream} could not be resumed after event {self.last}: "
        return Unresumable(head + message, self.last_event_id, status, code)
