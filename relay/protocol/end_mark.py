"""How a stream's end stands in its log, and how it is told to readers.

An end takes no number: it is a mark after the last event. Where the upstream has told it (a complete answer, an error
event of its own) nothing follows. Where the relay tells it, its frames come after the last event: only the last of them
has an id, `<stream>.<n>e`, so that a reader who is cut in between comes back for the whole of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass

from relay.protocol import sse
from relay.protocol.dialect import Dialect, Watch
from relay.protocol.ends import DONE_LINE, END, ERROR, FAILURE
from relay.protocol.outcomes import OUTCOMES, Cause, Ending, Outcome, Spelling, StreamFailure, is_lost
from relay.protocol.sse import Event

_SENT_BY_UPSTREAM = frozenset(known.value for known, row in OUTCOMES.items() if row.spelling is Spelling.UPSTREAM)
_UNKNOWN = "The stream ended early ({}). The text so far is incomplete; send the request again for a new answer."


@dataclass(frozen=True, slots=True)
class End:
    """`outcome` is the name of how the stream ended, which a newer relay may have written; `closing` the frames that
    tell it, empty where the upstream has told it or its producer could not."""

    outcome: str
    closing: bytes = b""

    @property
    def sent_by_relay(self) -> bool:
        """Does the relay send this end, and not the upstream's own last event?"""
        return sent_by_relay(self.outcome)

    @property
    def lost(self) -> bool:
        """Was the stream lost on the way, so that the same request may well get an answer?"""
        return is_lost(self.outcome, self.closing.decode("utf-8", "replace"))

    def encode(self) -> bytes:
        """The content of the log's end mark."""
        return b"%b\n%b" % (self.outcome.encode(), self.closing) if self.closing else self.outcome.encode()


def sent_by_relay(outcome: str) -> bool:
    """Does the relay send this end, and not the upstream's own last event? An unknown outcome is the relay's."""
    return outcome not in _SENT_BY_UPSTREAM


def decode_end(content: bytes) -> End:
    """The end that an end mark's content says; bytes that are no UTF-8 are replaced, so it never fails."""
    outcome, _, closing = content.partition(b"\n")
    return End(outcome.decode("utf-8", "replace"), closing)


def encode_frames(events: Sequence[Event], stream: str, n: int) -> bytes:
    """The frames of an end.

    Args:
        events: at least one; only the last one's frame has an id.
        stream: the stream's id, empty for a stream without a log, whose frames have no ids.
        n: the number of the last event before the end.
    """
    last = f"{stream}.{n}e".encode() if stream else None
    return b"".join(sse.encode(event, last if event is events[-1] else None) for event in events)


def closing_events(dialect: Dialect, watch: Watch, outcome: Outcome, message: str, request_id: str) -> list[Event]:
    """The events with which the relay ends a stream, in its API's form; `watch` has seen all events before them, and
    knows what the upstream said of it."""
    spelling = OUTCOMES[outcome].spelling
    if spelling is Spelling.STOP:
        return watch.stop_events(request_id)
    kind = watch.error.type if watch.error is not None else ""
    return (watch.format or dialect).error_events(
        outcome.value, message, watch.last_sequence, request_id, kind=kind, response=watch.response
    )


def closing_end(
    dialect: Dialect, watch: Watch, outcome: Outcome, message: str, request_id: str, stream: str, n: int
) -> End:
    """The end of a stream that the relay ends after event n, as its readers are told it; `stream` is empty where it has
    no log."""
    events = closing_events(dialect, watch, outcome, message, request_id)
    return End(outcome.value, encode_frames(events, stream, n))


def error_frames(
    dialect: Dialect, outcome: str, stream: str, n: int, last_frame: bytes, request_id: str, first_frame: bytes = b""
) -> bytes:
    """The frames of an end that its producer could not send, for a reader of the stream's API.

    Args:
        dialect: the API in which the reader is told.
        outcome: its name, which a newer relay may have written.
        stream: the stream's id.
        n: the number of the last event before the end.
        last_frame: the frame of event n, empty where there is none.
        request_id: the relay's id of the reader's request.
        first_frame: the frame of event 1, which names the upstream's response, empty where it is not at hand.
    """
    message = words_of(outcome)
    seen = _watched(dialect, first_frame), _watched(dialect, last_frame)
    response = seen[1].response or seen[0].response
    spoken = seen[0].format or seen[1].format or dialect
    events = spoken.error_events(outcome, message, seen[1].last_sequence, request_id, response=response)
    return encode_frames(events, stream, n)


def words_of(outcome: str) -> str:
    """What is said of an end, also of one that only a newer relay knows."""
    message = next((row.message for known, row in OUTCOMES.items() if known.value == outcome), "")
    return message or _UNKNOWN.format(outcome)


def outcome_from_log(dialect: Dialect, last_frame: bytes) -> Cause | Ending:
    """How a stream ended whose producer is lost: where its upstream's last event is in the log, only the end mark is
    missing, and the answer is whole."""
    bits = 0
    try:
        for event in sse.Parser(max(len(last_frame), 1)).feed(last_frame):
            bits = dialect.watch().see(event)
    except StreamFailure:
        return Cause.PRODUCER_LOST
    if bits & (ERROR | FAILURE):
        return Cause.UPSTREAM_ERROR
    return Ending.COMPLETED if bits & (END | DONE_LINE) else Cause.PRODUCER_LOST


def _watched(dialect: Dialect, frame: bytes) -> Watch:
    watch = dialect.watch()
    with suppress(StreamFailure):
        for event in sse.Parser(max(len(frame), 1)).feed(frame):
            watch.see(event)
    return watch
