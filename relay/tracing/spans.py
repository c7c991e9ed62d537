"""What the relay tells of streams and readers for traces, and the twin that does nothing with it. Nothing of a prompt,
an answer or a credential is told."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

Value = str | int | float | bool
Headers = Iterable[tuple[bytes, bytes]]


@dataclass(frozen=True, slots=True)
class Ended:
    """What is told of a stream at its end: `stream` is its id, empty where none was made; `error` is why it failed,
    empty where it did not; the tokens are None where the upstream told none."""

    stream: str
    outcome: str
    error: str
    model: str
    upstream: str
    address: str
    response_id: str | None
    events: int
    input_tokens: int | None
    output_tokens: int | None


class StreamSpan:
    """That of one stream. `traceparent` is what its children, and those who link to it, are told; empty where there is
    no span."""

    traceparent = ""
    trace_id: str | None = None

    def event(self, name: str, **attributes: Value) -> None:
        """Something has happened to it."""

    def end(self, ended: Ended, owner: str) -> None:
        """Once."""


class ReaderSpan:
    """That of one reader who has come back to a stream, or joined it."""

    def link(self, traceparent: str) -> None:
        """Which stream it is about."""

    def end(self, **attributes: Value) -> None:
        """Once."""


NO_STREAM = StreamSpan()
NO_READER = ReaderSpan()


class Tracing:
    """Off."""

    on = False

    def stream(self, headers: Headers, api: str, model: str, age: float) -> StreamSpan:
        """A stream that has been asked for with these headers, so many seconds ago."""
        return NO_STREAM

    def reader(self, headers: Headers, api: str, stream: str, **attributes: Value) -> ReaderSpan:
        """A reader that has come back with these headers."""
        return NO_READER

    def close(self) -> None:
        """Hand over what has not been handed over yet. It may block for some seconds."""
