"""What is recorded of a stream: its metrics, and a line in the process's log at its begin and at its end.

Nothing of its prompt, its completion or a credential is ever in either; at debug the process's log has the words of an
upstream's error, which may quote them.
"""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from relay import access
from relay.metrics import Meter
from relay.protocol.dialect import Watch
from relay.protocol.ids import is_logged
from relay.protocol.outcomes import Cause, Outcome
from relay.store.log import Status
from relay.tracing.spans import NO_STREAM, Ended, StreamSpan

if TYPE_CHECKING:
    from relay.streams.producer import Producer

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Request:
    """What a stream's lines say of the request that began it: `received` is the monotonic time of its last byte,
    `model` the name that goes upstream, `trace` the trace id of its `traceparent` or None, `key` the name of the
    relay's key that it came with, `span` the stream's."""

    id: str
    received: float
    model: str
    trace: str | None
    key: str = ""
    span: StreamSpan = NO_STREAM


class StreamAccount:
    """One generation's, kept by its producer. `readers` and `resumes` are those on this replica."""

    def __init__(self, meter: Meter, request: Request) -> None:
        self.meter = meter
        self.request = request
        self.readers = 0
        self.resumes = 0
        self._first_token: float | None = None
        self._line: dict[str, Any] = {}

    def began(self, stream: str, owner: str) -> None:
        """Write the line of the begin. `owner` is the owner's name, or what stands for the credential."""
        line = {
            "stream": stream,
            "api": self.meter.api,
            "upstream": self.meter.upstream,
            "model": self.request.model[:200],
            "resumable": is_logged(stream),
        }
        access.of_stream("stream begun", line | self._who(owner))

    def _who(self, owner: str) -> dict[str, Any]:
        found = {"owner": owner, "key": self.request.key, "request_id": self.request.id, "trace_id": self.request.trace}
        return {name: value for name, value in found.items() if value}

    def first_token(self, stream: str) -> None:
        self._first_token = time.monotonic() - self.request.received
        self.request.span.event("first_token", seconds=round(self._first_token, 6))
        self.meter.first_token(self._first_token, stream)

    def ended(self, stream: str, outcome: Outcome, events: int, watch: Watch, at: float = 0.0) -> None:
        """Count the end, which was at this monotonic time or is now, once; `close` writes the line."""
        if self._line:
            return
        seconds = (at or time.monotonic()) - self.request.received
        self.meter.ended(outcome, seconds, stream)
        line = _line(self.meter, stream, outcome, events) | self._upstream(watch)
        usage = watch.usage
        for kind, n in (("input", usage.input), ("output", usage.output)) if usage is not None else ():
            if n is not None:
                self.meter.tokens(kind, n)
                line[f"{kind}_tokens"] = n
        if self._first_token is not None:
            line["first_token_seconds"] = round(self._first_token, 6)
        line["duration_seconds"] = round(seconds, 6)
        line["model"] = self.request.model[:200]
        self._line = line

    def _upstream(self, watch: Watch) -> dict[str, Any]:
        """What was wrong with the upstream's stream. Of its error code and type are logged, its words only at debug."""
        found: dict[str, Any] = {}
        error = watch.error
        if error is not None:
            found |= {k: v for k, v in (("error_code", error.code), ("error_type", error.type)) if v}
            logger.debug("request %s: the upstream's error: %r", self.request.id, error.message)
        if watch.malformed:
            found["malformed_events"] = watch.malformed
            self.meter.malformed(watch.malformed)
        if watch.continued:
            found["continued"] = watch.continued
        if watch.end_missing:
            found["end_missing"] = True
        return found

    def close(self, remote_readers: int, owner: str) -> None:
        """Write the line. `remote_readers` is how often a reader came to the stream on another replica, `owner` as of
        `began`."""
        if self._line:
            self._line |= {"readers": self.readers + remote_readers, "resumes": self.resumes + remote_readers}
            _write(self._line | self._who(owner))


def span_end(producer: Producer) -> Ended:
    """What a stream's span is told at its end, or at that of a request for one that was never made."""
    account, outcome, usage = producer.account, producer.outcome, producer.watch.usage
    refused = not (producer.created.done() and not producer.created.cancelled() and producer.created.result())
    return Ended(
        stream="" if refused else producer.stream,
        outcome="" if outcome is None else outcome.value,
        error=outcome.value if isinstance(outcome, Cause) else "refused" if refused and outcome is None else "",
        model=account.request.model,
        upstream=producer.route.upstream.name,
        address=producer.route.upstream.base_url,
        response_id=producer.watch.response_id,
        events=producer.writer.last,
        input_tokens=None if usage is None else usage.input,
        output_tokens=None if usage is None else usage.output,
    )


def count_forced_end(meter: Meter, status: Status, outcome: Outcome, events: int, seconds: float, owner: str) -> None:
    """The end of a stream that this replica wrote for a lost producer: what the log knows of it. `owner` as of
    `StreamAccount.began`."""
    meter.ended(outcome, seconds, status.stream)
    line = _line(meter, status.stream, outcome, events)
    line |= {"duration_seconds": round(seconds, 3), "owner": owner, "producer": status.replica}
    _write(line)


def _line(meter: Meter, stream: str, outcome: Outcome, events: int) -> dict[str, Any]:
    line = {"stream": stream, "api": meter.api, "upstream": meter.upstream, "model": meter.model}
    if isinstance(outcome, Cause):
        line |= {"outcome": "failed", "cause": outcome.value}
    else:
        line |= {"outcome": outcome.value}
    return {**line, "events": events, "resumable": is_logged(stream) and outcome is not Cause.STORE_LOST}


def _write(line: dict[str, Any]) -> None:
    access.of_stream("stream ended", line, failed="cause" in line)
