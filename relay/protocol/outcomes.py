"""How a stream ends: the one table of outcomes and causes.

Everything that names an end of a stream (error frames, the log's end mark, metrics, log lines) takes the
name from here, and nothing else may invent one.
"""

from __future__ import annotations

from enum import StrEnum


class Cause(StrEnum):
    """Why a stream ended abnormally: the code in the error frame and the label in the metric alike."""

    UPSTREAM_DISCONNECTED = "upstream_disconnected"
    UPSTREAM_ERROR = "upstream_error"
    UPSTREAM_REFUSED = "upstream_refused"
    UPSTREAM_TIMEOUT = "upstream_timeout"
    UPSTREAM_MALFORMED = "upstream_malformed"
    EVENT_TOO_LARGE = "event_too_large"
    STREAM_TOO_LARGE = "stream_too_large"
    MAX_DURATION = "max_duration"
    PRODUCER_LOST = "producer_lost"
    STORE_LOST = "store_lost"
    SHUTDOWN = "shutdown"


class Ending(StrEnum):
    """Ends that are no failure."""

    COMPLETED = "completed"
    STOPPED = "stopped"
    ABANDONED = "abandoned"


Outcome = Cause | Ending

MESSAGES: dict[Outcome, str] = {
    Cause.UPSTREAM_DISCONNECTED: "The upstream closed the connection before the end of its answer. "
    "The text so far is incomplete; send the request again for a new answer.",
    Cause.UPSTREAM_ERROR: "The upstream reported an error.",
    Cause.UPSTREAM_REFUSED: "The upstream refused the request after the stream had begun.",
    Cause.UPSTREAM_TIMEOUT: "The upstream sent nothing for streams.upstream_idle_timeout. "
    "The text so far is incomplete; send the request again for a new answer.",
    Cause.UPSTREAM_MALFORMED: "The upstream sent an event that is not of its API's format. "
    "The text so far is incomplete; check the upstream and send the request again.",
    Cause.EVENT_TOO_LARGE: "An event of the upstream is larger than streams.max_event_bytes.",
    Cause.STREAM_TOO_LARGE: "The stream is larger than streams.max_stream_bytes. "
    "Ask for a shorter answer or raise the limit.",
    Cause.MAX_DURATION: "The stream ran for longer than streams.max_duration. "
    "Ask for a shorter answer or raise the limit.",
    Cause.PRODUCER_LOST: "The relay process that read the upstream is gone. "
    "The text so far is incomplete; send the request again for a new answer.",
    Cause.STORE_LOST: "The relay lost its store during this stream; the log ends here.",
    Ending.STOPPED: "The stream was stopped by its owner.",
    Ending.ABANDONED: "Nobody read this stream for streams.abandon_after, so the upstream call was cancelled. "
    "Send the request again for a new answer.",
    Cause.SHUTDOWN: "The relay is shutting down. "
    "The text so far is incomplete; send the request again for a new answer.",
}


class StreamFailure(Exception):
    """A stream ends abnormally: its cause, and a message that says what happened and what to do."""

    def __init__(self, cause: Cause, message: str | None = None) -> None:
        self.cause = cause
        self.message = message or MESSAGES[cause]
        super().__init__(f"{cause}: {self.message}")


def parse_outcome(name: str) -> Outcome:
    """The outcome of that name. Raises ValueError for a name that is none."""
    try:
        return Ending(name)
    except ValueError:
        return Cause(name)
