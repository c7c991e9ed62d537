"""How a stream ends: the one table of outcomes.

Everything that names an end of a stream takes the name, and what is said about it, from here, and nothing else may
invent one: the refusal where there is no stream yet, the events in a stream, the log's end mark, metrics, log lines,
and the tables of the documentation (`python -m relay.protocol.outcomes` prints them).
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum, StrEnum

from relay.protocol.errors import ApiError, Unavailable, UpstreamDisconnected, UpstreamMalformed, UpstreamTimeout
from relay.protocol.upstream_error import UpstreamError


class Cause(StrEnum):
    """Why a stream ended abnormally: the code in the error event and the label in the metric alike."""

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


class Spelling(Enum):
    """What stands in the stream at its end; a `Dialect` and its `Watch` know each API's form of it."""

    UPSTREAM = "the upstream's own last event, and nothing after it"
    STOP = "what completes the answer as far as it has come (Watch.stop_events)"
    ERROR = "an error event (Dialect.error_events)"


@dataclass(frozen=True, slots=True)
class Row:
    """All that is said of one outcome. `message` is for clients, in the error event or the refusal."""

    message: str = ""
    spelling: Spelling = Spelling.ERROR
    refusal: Callable[[str], ApiError] | None = None
    """Makes, of the message, what a request is answered where there is no stream yet. None: this outcome needs a
    stream, or has an answer of its own (an upstream's refusal is passed on as it is)."""
    meaning: str = ""
    """What happened, in the table of codes for users; every cause has one."""
    lost: bool = False
    """Is it a loss on the way to the answer, after which the same request may well get one? Such an end may be told by
    a cut (`streams.broken_end`). None of the upstream's own errors is one, and no limit of the relay's."""
    runbook: str = ""
    """Where an operator looks, in the runbook's table; every cause has one, and several may share it."""


def _draining(message: str) -> ApiError:
    return Unavailable(message, code="draining", headers={"retry-after": "1"})


NEW_ANSWER = "The text so far is incomplete; send the request again for a new answer."
_MAYBE_PAID = (
    "Nothing of its answer has come, which it may have generated all the same: another try may be paid for twice."
)
_UPSTREAM = "the upstream, or a proxy on the way to it"
_LIMIT = "a limit of `streams`"

OUTCOMES: dict[Outcome, Row] = {
    Cause.UPSTREAM_DISCONNECTED: Row(
        f"The upstream closed the connection before the end of its answer. {NEW_ANSWER}",
        refusal=UpstreamDisconnected,
        lost=True,
        meaning="the upstream's connection ended before its terminal event",
        runbook=_UPSTREAM,
    ),
    Cause.UPSTREAM_ERROR: Row(
        "The upstream reported an error.",
        Spelling.UPSTREAM,
        meaning="the upstream's own error event, forwarded as it is",
        runbook=_UPSTREAM,
    ),
    Cause.UPSTREAM_REFUSED: Row(
        "The upstream refused the request after the stream had begun.",
        meaning="the upstream refused after `streams.patience`",
        runbook=_UPSTREAM,
    ),
    Cause.UPSTREAM_TIMEOUT: Row(
        f"The upstream took too long. {NEW_ANSWER}",
        refusal=UpstreamTimeout,
        lost=True,
        meaning="the upstream exceeded one of its time-outs (`upstream_idle_timeout`, `upstream_stall_timeout`, "
        "`first_token_timeout`, `upstream_answer_timeout`); the message says which",
        runbook="an upstream that has stalled; the client's message names the time-out, set in `streams` or for the "
        "upstream",
    ),
    Cause.UPSTREAM_MALFORMED: Row(
        "The upstream sent an event that is not of its API's format. "
        "The text so far is incomplete; check the upstream and send the request again.",
        refusal=UpstreamMalformed,
        meaning="the upstream sent an event that is not of its API's format",
        runbook=_UPSTREAM,
    ),
    Cause.EVENT_TOO_LARGE: Row(
        "An event of the upstream is larger than streams.max_event_bytes.",
        meaning="an event of the upstream was larger than `streams.max_event_bytes`",
        runbook=_LIMIT,
    ),
    Cause.STREAM_TOO_LARGE: Row(
        "The stream is larger than streams.max_stream_bytes. Ask for a shorter answer or raise the limit.",
        meaning="the stream was larger than `streams.max_stream_bytes`",
        runbook=_LIMIT,
    ),
    Cause.MAX_DURATION: Row(
        "The stream ran for longer than streams.max_duration. Ask for a shorter answer or raise the limit.",
        refusal=UpstreamTimeout,
        meaning="the stream ran for longer than `streams.max_duration`",
        runbook=_LIMIT,
    ),
    Cause.PRODUCER_LOST: Row(
        f"The relay process that read the upstream is gone. {NEW_ANSWER}",
        lost=True,
        meaning="the relay process that read the upstream is gone, and no other could go on with the answer",
        runbook="a replica that died, or hung for longer than `streams.lease`; and an upstream that cannot go on, "
        "or did not, or an owner who was not back within `streams.abandon_after` (`upstreams[].resume`)",
    ),
    Cause.STORE_LOST: Row(
        "The relay lost its store during this stream; the log ends here.",
        meaning="the stream's end could not be written to the store within `streams.retention`: in metrics and logs "
        "only, readers were told the end itself",
        runbook="the store, away until nobody could come back for the stream's end (`streams.retention`); its readers "
        "had all of it: [RelayStoreDown](#relaystoredown)",
    ),
    Cause.SHUTDOWN: Row(
        f"The relay is shutting down. {NEW_ANSWER}",
        refusal=_draining,
        lost=True,
        meaning="the relay shut down before the stream ended",
        runbook="a `drain.timeout`, or a grace period around the relay, that is shorter than answers take",
    ),
    Ending.COMPLETED: Row(spelling=Spelling.UPSTREAM),
    Ending.STOPPED: Row("The stream was stopped by its owner.", Spelling.STOP),
    Ending.ABANDONED: Row(
        "Nobody read this stream for streams.abandon_after, so the upstream call was cancelled. "
        "Send the request again for a new answer.",
        lost=True,
    ),
}

_LATE = re.compile(r"The upstream (?:answered|reported) ([0-9]{3}): ")
# Of an upstream's refusals those after which the same request may get an answer (as SDKs retry them); 5xx are more.
_PASSING = (408, 409, 425, 429)


def refused_late(status: int, told: str, *, answered: bool) -> str:
    """The message of `upstream_refused`. `answered`: the status was the answer's, and not in its body."""
    return f"The upstream {'answered' if answered else 'reported'} {status}: {told}"


def late_status(told: str) -> int | None:
    """The upstream's status in what was told of a late refusal, None where there is none."""
    found = _LATE.search(told)
    return int(found[1]) if found is not None else None


def is_lost(outcome: str, told: str = "") -> bool:
    """Was a stream with this end lost on the way (`Row.lost`)? `told` is what its readers were told: a late refusal is
    one where another try may get an answer."""
    if outcome == Cause.UPSTREAM_REFUSED:
        status = late_status(told) or 0
        return status in _PASSING or status >= 500
    return any(row.lost for known, row in OUTCOMES.items() if known.value == outcome)


def refusal_of(outcome: Outcome, message: str) -> ApiError | None:
    """What the request is answered whose stream failed so before anything of it had come, None where that has an answer
    of its own. An upstream that was asked may have generated: its client is not invited to pay twice."""
    refusal = OUTCOMES[outcome].refusal
    if refusal is None:
        return None
    asked = refusal in (UpstreamDisconnected, UpstreamTimeout)
    return refusal(message.replace(NEW_ANSWER, _MAYBE_PAID) if asked else message)


class StreamFailure(Exception):
    """A stream ends abnormally: its cause, and a message that says what happened and what to do."""

    def __init__(self, cause: Cause, message: str | None = None, error: UpstreamError | None = None) -> None:
        """Args:
        cause: the outcome of the stream.
        message: for the client; by default that of the cause's row.
        error: what the upstream said, where it did.
        """
        self.cause = cause
        self.error = error
        self.message = message or OUTCOMES[cause].message
        super().__init__(f"{cause}: {self.message}")


def parse_outcome(name: str) -> Outcome:
    """The outcome of that name.

    Raises ValueError for a name that is none.
    """
    try:
        return Ending(name)
    except ValueError:
        return Cause(name)


def cause_of(error: ApiError) -> Cause:
    """The cause of a stream's end whose upstream call failed so, after the stream had begun: the row of that refusal,
    else a lost connection."""
    rows = ((known, OUTCOMES[known].refusal) for known in Cause)
    return next((known for known, refusal in rows if refusal is type(error)), Cause.UPSTREAM_DISCONNECTED)


def reference() -> str:
    """The causes as the Markdown table for users."""
    rows = [f"| `{cause}` | {OUTCOMES[cause].meaning} |" for cause in Cause]
    return "\n".join(["| code | what happened |", "|---|---|", *rows])


def runbook() -> str:
    """The causes as the Markdown table for operators, those with one remedy in one row."""
    grouped: dict[str, list[Cause]] = {}
    for cause in Cause:
        grouped.setdefault(OUTCOMES[cause].runbook, []).append(cause)
    rows = [f"| {', '.join(f'`{cause}`' for cause in causes)} | {text} |" for text, causes in grouped.items()]
    return "\n".join(["| cause | it is |", "|---|---|", *rows])


if __name__ == "__main__":
    print(reference(), runbook(), sep="\n\n")
